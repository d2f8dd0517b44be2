"""Fusing against a float64 reference, and the exported files against the network in their own runtime."""

import copy
import json
import sys

import pytest
import timm
import torch
from test_convert import with_statistics
from torch import nn

import pnnh.models  # noqa: F401
from pnnh._errors import RunError, UsageError
from pnnh.certify import certify
from pnnh.convert import export, fuse, quantize
from pnnh.convert.equivalence import Agreement
from pnnh.convert.fold import folded
from pnnh.convert.int8 import sqnr
from pnnh.convert.write import required
from pnnh.layers import FrozenDirac, PerLayerCoder, PipelinedStage, PlainOptions


def net(name="pnnh_resnet_tiny", **kwargs):
    torch.manual_seed(0)
    return with_statistics(timm.create_model(name, **kwargs))


VARIANTS = {
    "default": {},
    "pipelined": {"form": PipelinedStage},
    "pipelined, wide coder": {
        "form": PipelinedStage,
        "options": PlainOptions(kernel_size=1, coder_kernel_size=3, dilation=2),
    },
    "own coders": {"options": PlainOptions(coder=PerLayerCoder())},
    "frozen, pipelined": {"form": PipelinedStage, "options": PlainOptions(coder=FrozenDirac())},
    "groups": {"learner_ratio": 0.5, "options": PlainOptions(groups=2)},
    "dilated": {"options": PlainOptions(dilation=2)},
    "1 x 1": {"options": PlainOptions(kernel_size=1)},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_structured_form_is_the_same_function_without_zeros_and_diracs(name):
    model = net(**VARIANTS[name])
    fused = fuse(model, form="structured")
    assert fused.fusion.relative_error <= 1e-12
    assert fused.fusion.macs_after <= 1.02 * fused.fusion.macs_before  # the shift of the stream is all that is added
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    certificate = certify(fused, torch.zeros(2, 3, 32, 32))
    assert certificate.plain
    assert certificate.depth == 7


def test_kernel_entries_of_a_learn_and_a_write_in_either_form():
    stage = net(depth=14, learner_ratio=0.75).stages[0]
    learner, stream, read, write = 3, 4, 9, stage.coders[0].weight[0, 0].numel()
    dense, thin = folded(stage, "chain"), folded(stage, "structured")
    sizes = [module.weight.numel() for module in dense if isinstance(module, nn.Conv2d)]
    assert sizes[2:] == [read * stream * (learner + stream), write * (learner + stream) * stream]
    sizes = [conv.weight.numel() for layer in thin.layers for conv in layer.modules() if isinstance(conv, nn.Conv2d)]
    assert sizes[1:] == [read * stream * learner, stream, write * learner * stream]  # in between: the shift


@pytest.mark.parametrize("name", VARIANTS)
def test_every_plain_layer_folds_to_one_convolution(name):
    model = net(**VARIANTS[name])
    fused = fuse(model, form="chain")
    assert fused.fusion.relative_error <= 1e-12
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    convolutions = sum(isinstance(module, nn.Conv2d) for module in fused.modules())
    depth = certify(model, torch.zeros(2, 3, 32, 32)).depth
    assert (depth, convolutions) == (7, 8)  # the last is the head's norm, one weight a channel
    assert fused.head.norm.weight.numel() == fused.num_features
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())  # the source is as it was


@pytest.mark.parametrize(
    ("pool", "num_classes"), [("avg", 10), ("max", 10), ("catavgmax", 10), ("avg", 0), ("max", 0), ("", 0)]
)
def test_a_fused_head_is_equal_for_any_pooling_with_and_without_a_classifier(pool, num_classes):
    model, x = net(global_pool=pool, num_classes=num_classes), torch.randn(3, 3, 32, 32)
    nn.init.normal_(model.head.norm.weight)
    fused = fuse(model)
    assert fused.fusion.relative_error <= 1e-12
    torch.testing.assert_close(fused.forward_features(x), model.forward_features(x), rtol=1e-4, atol=1e-4)
    model.reset_classifier(0, "avg"), fused.reset_classifier(0, "avg")
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_folded_head_is_left_as_it_is():
    assert folded(folded(net().head, "chain"), "chain") is None


def test_depth_56_folds_to_rounding():
    fusion = fuse(net("pnnh_resnet56"), torch.randn(16, 3, 32, 32)).fusion
    assert fusion.relative_error <= 1e-9
    assert fusion.rounding_fused <= 2 * fusion.rounding_unfused
    assert fusion.argmax == 1


def test_a_foreign_model_with_our_stages_and_timms_blocks_fold():
    foreign = nn.Sequential(net().stages, nn.Flatten(), nn.Linear(16 * 4, 3)).eval()
    assert fuse(foreign, torch.randn(2, 4, 8, 8)).fusion.folded == ("0.0", "0.1", "0.2")


def test_a_stage_inside_a_chain_folds_with_it():
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), net().stages[0])
    fused = fuse(with_statistics(nn.Sequential(chain, nn.Flatten())), torch.randn(2, 3, 8, 8))
    assert fused.fusion.folded == ("0", "0.3")
    assert fused.fusion.relative_error <= 1e-12
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


@pytest.mark.parametrize(
    ("name", "kwargs", "size"),
    [
        ("repvgg_a0", {"num_classes": 3}, 32),
        ("repvit_m0_9", {"num_classes": 3, "depth": (1, 1, 1, 1)}, 64),
        ("levit_128s", {"num_classes": 3, "img_size": 64, "depth": (1, 1, 1)}, 64),
    ],
)
def test_timms_blocks_fold_through_their_own_interface(name, kwargs, size):
    model = with_statistics(timm.create_model(name, **kwargs))
    fused = fuse(model, torch.randn(2, 3, size, size))
    assert fused.fusion.relative_error <= 1e-9
    assert not any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in fused.modules())
    assert torch.get_default_dtype() == torch.float32


def test_transformer_blocks_fold_to_four_linears_each():
    torch.manual_seed(0)
    model = timm.create_model("pnnh_vit_test_patch4_16").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # scales, shifts and queries that are not trivial
    fused = fuse(model)
    assert fused.fusion.folded[0] == ""
    assert fused.fusion.relative_error <= 1e-12
    assert not list(fused.coders.parameters())
    assert not [name for block in fused.blocks for name, _ in block.named_parameters() if "norm" in name]
    linears = [module for module in fused.blocks.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 4 * len(model.blocks)
    assert fused.fusion.macs_after == fused.fusion.macs_before
    images = torch.randn(2, 3, 16, 16)
    assert certify(fused, images).plain


def test_shared_stage_is_folded_once():
    stage = net().stages[0]
    twice = nn.ModuleDict({"a": stage, "b": stage})

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = twice

        def forward(self, x):
            return self.stages["b"](self.stages["a"](x))

    fused = fuse(Twice().eval(), torch.randn(2, 4, 8, 8))
    assert fused.stages["a"] is fused.stages["b"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: net().train(), "train mode"),
        (lambda: timm.create_model("pnnh_resnet_tiny").eval(), "never seen data"),
        (lambda: nn.Sequential(nn.Linear(3, 3)).eval(), "does not tell its input size"),
    ],
)
def test_fuse_refuses_in_one_line(make, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        fuse(make())
    assert "\n" not in str(caught.value)


def test_nothing_to_fold_is_refused():
    with pytest.raises(UsageError, match="nothing to fold"):
        fuse(nn.Sequential(nn.Linear(3, 3)).eval(), torch.randn(2, 3))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_onnx_of_a_plain_net_is_a_bare_chain_at_any_batch_size(tmp_path, layout):
    model, x = net().to(memory_format=layout), torch.randn(2, 3, 32, 32)
    done = export(model, x, tmp_path / "net.onnx", labels=["a", "b"], form="chain")
    assert set(done.op_types) <= {"Conv", "Relu", "ReduceMean", "GlobalAveragePool", "Flatten", "Reshape", "Gemm"}
    assert (done.op_types["Relu"], done.op_types["Conv"]) == (7, 8)  # the last convolution is the head's norm
    assert done.plain
    assert done.chain
    assert done.worst.relative_error <= 1e-5
    facts = json.loads((tmp_path / "net.onnx.json").read_text())
    assert facts["sha256"] == done.sha256
    assert facts["labels"] == ["a", "b"]
    assert facts["preprocessing"]["mean"] == [0.4914, 0.4822, 0.4465]


def test_a_residual_net_exports_and_is_not_called_a_chain(tmp_path):
    done = export(net("cifar_resnet_tiny"), torch.randn(2, 3, 32, 32), tmp_path / "net.onnx")
    assert (done.plain, done.chain, done.op_types["Add"]) == (False, False, 3)


def test_pt2_runs_at_other_batch_sizes(tmp_path):
    done = export(net(), torch.randn(2, 3, 32, 32), tmp_path / "net.pt2")
    assert done.worst.relative_error <= 1e-5


def test_export_refuses(tmp_path):
    with pytest.raises(UsageError, match=r"ends in \.tflite"):
        export(net(), torch.randn(2, 3, 32, 32), tmp_path / "net.tflite")
    with pytest.raises(UsageError, match="batch of 2"):
        export(net(), torch.randn(1, 3, 32, 32), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="train mode"):
        export(net().train(), torch.randn(2, 3, 32, 32), tmp_path / "net.onnx")


def test_int8_is_smaller_and_close_layer_by_layer(tmp_path):
    images = torch.randn(32, 3, 32, 32)
    export(net("pnnh_resnet20"), images, tmp_path / "net.onnx", form="chain")
    done = quantize(tmp_path / "net.onnx", tmp_path / "net.int8.onnx", images)
    assert done.bytes_after < 0.4 * done.bytes_before
    assert len(done.layers) == 21
    assert done.worst_db > 10
    with pytest.raises(UsageError, match="too few"):
        quantize(tmp_path / "net.onnx", tmp_path / "x.onnx", images[:4])


def test_sqnr_in_decibels():
    signal = torch.ones(100).numpy()
    assert sqnr(signal, signal + 0.1) == pytest.approx(20, abs=1e-4)
    assert sqnr(signal, signal) == float("inf")


def test_openvino_agrees(tmp_path):
    pytest.importorskip("openvino")
    from pnnh.convert.edge import to_openvino

    model, example = net(), torch.randn(2, 3, 32, 32)
    export(model, example, tmp_path / "net.onnx")
    assert to_openvino(tmp_path / "net.onnx", tmp_path / "net.xml", model, example).relative_error <= 1e-4


def test_executorch_agrees(tmp_path):
    pytest.importorskip("executorch")
    from pnnh.convert.edge import to_executorch

    example = torch.randn(1, 3, 32, 32)
    for form in ("chain", "structured"):
        assert to_executorch(tmp_path / "net.pte", fuse(net(), form=form), example).relative_error <= 1e-4
        assert (tmp_path / "net.pte").stat().st_size > 1000


MISSING = {
    "openvino": ("openvino", lambda edge: edge.to_openvino("net.onnx", "net.xml", net(), torch.randn(1, 3, 32, 32))),
    "executorch.exir": ("executorch", lambda edge: edge.to_executorch("net.pte", net(), torch.randn(1, 3, 32, 32))),
    "onnx": ("export", lambda edge: required("onnx")),
    "onnxruntime": ("export", lambda edge: required("onnxruntime")),
}


@pytest.mark.parametrize("package", MISSING)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, package):
    from pnnh.convert import edge

    extra, use = MISSING[package]
    monkeypatch.setitem(sys.modules, package, None)
    name = package.partition(".")[0]
    with pytest.raises(UsageError, match=rf"^{name} is not installed; pip install 'pnnh\[{extra}\]'$"):
        use(edge)


def test_a_program_that_disagrees_is_refused(tmp_path):
    from pnnh.convert.edge import _checked

    assert _checked(Agreement(9e-5, 1.0, 1), "net.pte").samples == 1
    for error in (2e-4, float("nan")):
        with pytest.raises(RunError, match=r"net.pte disagrees: relative error"):
            _checked(Agreement(error, 1.0, 1), "net.pte")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_parametrized_weight_is_folded_and_the_source_keeps_its_own():
    torch.manual_seed(0)
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3))
    model, x = with_statistics(nn.Sequential(conv, nn.BatchNorm2d(3))), torch.randn(2, 3, 8, 8)
    expected = model(x)
    fused = fuse(model, x)
    torch.testing.assert_close(fused(x), expected)
    assert torch.equal(model(x), expected)
    assert nn.utils.parametrize.is_parametrized(model[0])
    assert type(fused[0]) is nn.Conv2d


def test_outputs_of_every_kind_are_compared():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.stage, self.chain = net().stages[0], nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

        def forward(self, x):
            y = self.stage(x)
            return {"maps": [y, self.chain(y)], "size": x.shape[-1]}

    model, x = with_statistics(Several()), torch.randn(2, 4, 8, 8)
    fused = fuse(model, x)
    assert fused.fusion.folded == ("stage", "chain")
    for size in (8, 11):
        images = torch.randn(3, 4, size, size)
        for ours, theirs in zip(fused(images)["maps"], model(images)["maps"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_layers_read_by_number_or_by_name_keep_both():
    class Tapped(nn.Module):
        def __init__(self, taps):
            super().__init__()
            chain = [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()]
            self.layers, self.taps = nn.Sequential(*chain, *[copy.deepcopy(layer) for layer in chain]), taps

        def forward(self, x):
            read = []
            for number, layer in enumerate(self.layers):
                x = layer(x)
                read += [x.clone()] if number in self.taps else []
            return read

    x = torch.randn(2, 3, 8, 8)
    for taps, parts in (((2, 5), ("layers",)), ((0, 5), ())):
        model = with_statistics(Tapped(taps))
        if not parts:  # what the convolution alone returns is read, so nothing is folded
            with pytest.raises(UsageError, match="also read from outside the Sequential"):
                fuse(model, x)
            continue
        fused = fuse(model, x)
        assert fused.fusion.folded == parts
        assert len(fused.layers) == 6
        for ours, theirs in zip(fused(x), model(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_example_with_the_strides_of_an_image_file_gives_the_same_operators(tmp_path):
    x = torch.randn(2, 3, 32, 32)
    made = [
        export(net(), item, tmp_path / "net.onnx", form="chain")
        for item in (x, x.to(memory_format=torch.channels_last))
    ]
    assert made[0].op_types == made[1].op_types
