"""`pnnh certify`, `fuse`, `convert` and `export` from their arguments to their files, and how they refuse."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import pnnh.models  # noqa: F401
from pnnh import checkpoint
from pnnh.cli import main
from pnnh.load import open_model


def with_statistics(model: nn.Module) -> nn.Module:
    """Norms that have seen data, with statistics, scales and shifts of their own; eval mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.num_batches_tracked.fill_(1)
    return model.eval()


KWARGS = {"num_classes": 10, "in_chans": 1, "depth": 14, "widths": [4, 8, 8]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint folder as `pnnh train` writes it, of a net whose norms have statistics."""
    torch.manual_seed(0)
    model = with_statistics(timm.create_model("pnnh_resnet_tiny", **KWARGS))
    record = {
        "model": {"name": "pnnh_resnet_tiny", "kwargs": KWARGS},
        "data": {"name": "digits", "channels": 1, "image_size": 8},
    }
    return checkpoint.save(tmp_path_factory.mktemp("trained"), model, record)


@pytest.mark.parametrize("form", ["chain", "structured"])
def test_a_fused_checkpoint_comes_back_fused_in_its_form(trained, tmp_path, capsys, form):
    assert main(["fuse", str(trained), "--out", str(tmp_path / "f"), "--form", form]) == 0
    assert f"({form})" in capsys.readouterr().out
    fused, source = open_model(tmp_path / "f"), open_model(trained).model
    assert fused.input_size == (1, 8, 8)
    assert fused.trained
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.model.modules())
    wide = max(conv.in_channels for conv in fused.model.modules() if isinstance(conv, nn.Conv2d))
    assert wide == (14 if form == "chain" else 8)  # its layers read stream and learner side by side
    images = torch.randn(5, *fused.input_size)
    with torch.no_grad():
        torch.testing.assert_close(fused.model(images), source(images), rtol=1e-4, atol=1e-5)
    assert not any("running_mean" in name for name in checkpoint.load(tmp_path / "f").tensors)


def test_certify_says_plain_by_its_exit_code(trained, tmp_path, capsys):
    assert main(["certify", str(trained), "--out", str(tmp_path / "c.json")]) == 0
    assert "plain: 19 activations, 13 on every path to the end" in " ".join(capsys.readouterr().out.split())
    (found,) = json.loads((tmp_path / "c.json").read_text())
    assert (found["plain"], found["rows"]) == (True, [])
    assert main(["certify", "cifar_resnet_tiny"]) == 3
    assert "not plain: 3 joins" in capsys.readouterr().out


def test_convert_prints_the_cost_and_only_then_converts(tmp_path, capsys):
    assert main(["convert", "cifar_resnet_tiny", "--dry-run", "--image-size", "8"]) == 0
    assert "3 shortcuts can be converted" in capsys.readouterr().out
    assert main(["convert", "cifar_resnet_tiny", "--image-size", "8", "--out", str(tmp_path / "twin.pt2")]) == 0
    assert "3 shortcuts converted" in capsys.readouterr().out
    assert torch.export.load(tmp_path / "twin.pt2").module()(torch.randn(3, 3, 8, 8)).shape == (3, 10)


def test_export_to_int8_shows_accuracy_before_and_after(trained, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    assert (
        main(["export", str(trained), "--to", "int8", "--form", "chain", "--data", "digits", "--out", str(tmp_path)])
        == 0
    )
    shown = capsys.readouterr().out
    assert "int8 against float32 on digits" in shown
    facts = json.loads((tmp_path / f"{trained.name}.onnx.json").read_text())
    assert facts["labels"] == list("0123456789")
    assert facts["chain"]
    assert (tmp_path / f"{trained.name}.int8.onnx").exists()


def gated() -> nn.Module:
    """x + relu(conv(x)) * sigmoid(relu(conv(x))) with the gate in `body.se`."""

    class Gate(nn.Module):
        def forward(self, x):
            return x * x.mean((2, 3), keepdim=True).sigmoid()

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential()
            self.body.add_module("conv", nn.Conv2d(3, 3, 3, padding=1))
            self.body.add_module("act", nn.ReLU())
            self.body.add_module("se", Gate())

        def forward(self, x):
            return x + self.body(x)

    return Residual()


def seven() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


BAD = {
    "int8 without data": (["export", "CKPT", "--to", "int8", "--out", "OUT"], "int8 is calibrated on real images"),
    "wrong data": (
        ["export", "pnnh_vit_tiny_or_not", "--to", "onnx", "--out", "OUT"],
        "unknown model 'pnnh_vit_tiny_or_not'",
    ),
    "classes": (
        ["export", f"{__name__}:seven", "--to", "int8", "--data", "digits", "--image-size", "8", "--out", "OUT"],
        "has 7 outputs, digits has 10 classes",
    ),
    "untrained": (["fuse", "pnnh_resnet_tiny", "--out", "OUT"], "stem.1: this norm has never seen data"),
    "nothing to fold": (["fuse", "vit_tiny_patch16_224", "--out", "OUT"], "nothing to fold"),
    "suffix": (["convert", "resnet10t", "--out", "twin.tflite"], "must be a folder or end in .pt2 or .onnx"),
    "dry run with a file": (["convert", "resnet10t", "--dry-run", "--out", "t.onnx"], "a dry run writes nothing"),
    "gate": (["convert", f"{__name__}:gated", "--image-size", "8"], "body.se: a gate multiplies"),
    "no weights": (["convert", "resnet10t", "--weights", "none.safetensors"], "no weights file at none.safetensors"),
    "pickle": (["convert", "resnet10t", "--weights", "PICKLE"], "pickled checkpoints are not read"),
    "empty": (["certify", " "], "MODEL is empty"),
    "no function": (["certify", "torch.nn:Nothing"], "cannot import 'torch.nn:Nothing'"),
    "no callable": (["certify", "torch.nn:functional"], "cannot be called without arguments"),
    "no net": (["certify", "torch:Tensor"], "torch:Tensor returned Tensor, not a torch.nn.Module"),
    "too small": (["certify", "pnnh_resnet_tiny", "--image-size", "4"], "check that model(example) runs"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_request_that_cannot_be_met_is_one_line(trained, tmp_path, capsys, monkeypatch, name):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    (tmp_path / "weights.pth").touch()
    places = {"CKPT": str(trained), "OUT": str(tmp_path / "out"), "PICKLE": str(tmp_path / "weights.pth")}
    arguments, message = BAD[name]
    assert main([places.get(word, word) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith(f"pnnh {arguments[0]}: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_does_not_name_code_to_run(tmp_path, capsys, monkeypatch):
    """The function is given on the command line, or --trust; nothing is imported before."""
    (tmp_path / "nets_of_mine.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n\nPath('ran').touch()\n\n"
        "def small():\n    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    record = {"model": {"name": "nets_of_mine:small", "kwargs": {}}, "data": {"channels": 1, "image_size": 8}}
    checkpoint.save(tmp_path / "run", net, record)
    assert main(["certify", "run"]) == 2
    error = capsys.readouterr().err
    assert "`nets_of_mine:small --weights run`, or --trust" in error
    assert not (tmp_path / "ran").exists()
    assert main(["certify", "run", "--trust"]) == 0
    assert (tmp_path / "ran").exists()
    given = open_model("nets_of_mine:small", weights="run", image_size=8)
    assert torch.equal(given.model[0].weight, net[0].weight)


def test_random_weights_are_exported_only_when_asked_for(tmp_path, capsys):
    arguments = ["export", "pnnh_resnet_tiny", "--to", "pt2", "--image-size", "8", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "has random weights; give --weights FILE" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--weights", "random"]) in (0, 2)  # norms that have never seen data are not folded
