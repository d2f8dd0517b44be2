"""Properties that hold for every layer, fusion and checkpoint, tried on examples that hypothesis draws."""

import copy
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from pnnh import layers
from pnnh._errors import UsageError
from pnnh.certify import certify
from pnnh.convert import fuse
from pnnh.layers.fold import fold, fold_norm
from pnnh.train import checkpoint
from pnnh.train.checkpoint import Damaged

SLOW = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
CODERS = [layers.LearnedCoder(), layers.FrozenDirac(), layers.FrozenOrthogonal(), layers.PerLayerCoder()]


@st.composite
def stages(draw):
    """A stage of any form and geometry with norms that have seen something, float64, and images that fit it."""
    groups = draw(st.sampled_from([1, 1, 2]))
    options = layers.PlainOptions(
        coder=draw(st.sampled_from(CODERS)),
        gain=draw(st.floats(0.05, 2)),
        shift=draw(st.floats(-1, 1)),
        kernel_size=draw(st.sampled_from([1, 3, 5])),
        coder_kernel_size=draw(st.sampled_from([1, 3])),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        padding_mode=draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"])),
        act=draw(st.sampled_from([nn.ReLU, nn.LeakyReLU, nn.SiLU])),
    )
    form = draw(st.sampled_from([layers.AlternatingStage, layers.PipelinedStage]))
    num_layers = draw(st.sampled_from([2, 4, 6] if form is layers.AlternatingStage else [2, 3, 5]))
    stream, learner = (groups * draw(st.integers(1, 4)) for _ in range(2))
    torch.manual_seed(draw(st.integers(0, 99)))
    stride = draw(st.integers(1, 2))
    net = form(draw(st.integers(1, 3)), stream, learner, num_layers, stride=stride, options=options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 2)
            nn.init.normal_(module.weight), nn.init.normal_(module.bias)
            module.num_batches_tracked.fill_(1)
        if isinstance(module, (layers.Learn, layers.CoderConv)):
            nn.init.normal_(module.shift if isinstance(module, layers.Learn) else module.bias)
    height, width = (draw(st.integers(9, 12)) for _ in range(2))  # reflection needs more than its padding
    chans = net.transition.learner[0].in_channels
    return net.double().eval(), torch.randn(2, chans, height, width, dtype=torch.float64), stream, stride


@settings(max_examples=40, **SLOW)
@given(drawn=stages())
def test_a_stage_has_its_shape_and_folds_to_an_equal_chain(drawn):
    net, x, stream, stride = drawn
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        out = net(x)
        chain, structured = fold(net), fold(net, "structured")
        side = [-(-length // stride) for length in x.shape[2:]]
        assert out.shape == (2, stream, *side)
        largest = out.abs().max().clamp(min=1)
        assert (chain(x) - out).abs().max() <= 1e-9 * largest
        assert (structured(x) - out).abs().max() <= 1e-9 * largest
    assert all(isinstance(module, (nn.Conv2d, nn.ReLU, nn.LeakyReLU, nn.SiLU)) for module in chain)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@settings(max_examples=4, **SLOW)
@given(drawn=stages())
def test_every_stage_is_plain(drawn):
    net, x, _, _ = drawn
    kinds = (layers.Write, layers.Learn) if isinstance(net, layers.AlternatingStage) else (layers.Write,)
    certificate = certify(net.float(), x.float())
    assert certificate.plain
    assert certificate.depth == 1 + sum(isinstance(module, kinds) for module in net.modules())


@settings(max_examples=15, **SLOW)
@given(
    drawn=stages(), form=st.sampled_from(["dense", "structured"]), dtype=st.sampled_from([torch.float32, torch.float64])
)
def test_fuse_proves_itself_inside_any_net(drawn, form, dtype):
    stage, x, stream, _ = drawn
    last = nn.BatchNorm2d(3)
    nn.init.normal_(last.running_mean), nn.init.uniform_(last.running_var, 0.3, 2)
    last.num_batches_tracked.fill_(1)
    net = nn.Sequential(stage, nn.Sequential(nn.Conv2d(stream, 3, 3, padding=1), last, nn.ReLU())).to(dtype).eval()
    expected = net(x.to(dtype))
    fused = fuse(net, x.to(dtype), form=form)
    assert fused.fusion.relative_error <= 1e-9
    assert fused.fusion.folded == ("0", "1")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert {p.dtype for p in fused.parameters()} == {dtype}
    scale = expected.abs().max().clamp(min=1)
    assert (fused(x.to(dtype)) - expected).abs().max() <= (1e-9 if dtype == torch.float64 else 1e-3) * scale
    assert torch.equal(net(x.to(dtype)), expected)


@settings(max_examples=25, **SLOW)
@given(
    out=st.integers(1, 4),
    affine=st.booleans(),
    biased=st.booleans(),
    eps=st.floats(1e-6, 1e-1),
    seed=st.integers(0, 99),
)
def test_a_folded_norm_is_the_norm(out, affine, biased, eps, seed):
    torch.manual_seed(seed)
    conv, norm = nn.Conv2d(2, out, 3, bias=biased).double(), nn.BatchNorm2d(out, eps=eps, affine=affine).double().eval()
    nn.init.normal_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.01, 2)
    if affine:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    kernel, bias = fold_norm(conv.weight.detach(), conv.bias, norm)
    torch.testing.assert_close(nn.functional.conv2d(x, kernel, bias), norm(conv(x)).detach(), rtol=1e-11, atol=1e-11)


def test_the_cost_of_a_fusion_is_that_of_one_image():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
    norm.num_batches_tracked.fill_(1), nn.init.normal_(norm.running_mean)
    fusion = fuse(nn.Sequential(conv, norm).eval(), torch.randn(5, 2, 4, 6)).fusion
    assert fusion.macs_before == fusion.macs_after == 3 * 2 * 9 * 4 * 6
    assert (fusion.parameters_before, fusion.parameters_after) == (54 + 3 + 6, 54 + 3)


def test_what_cannot_be_folded_is_named_by_its_place():
    options = layers.PlainOptions(norm=lambda channels: nn.GroupNorm(1, channels))
    stage, x = layers.AlternatingStage(3, 4, 2, 2, options=options).eval(), torch.randn(2, 3, 8, 8)
    with pytest.raises(UsageError, match=r"^AlternatingStage: GroupNorm cannot be folded"):
        fuse(stage, x)
    with pytest.raises(UsageError, match=r"^1: GroupNorm cannot be folded"):
        fuse(nn.Sequential(nn.Identity(), stage).eval(), x)


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@st.composite
def trees(draw):
    """Some tensors by name: any dtype, rank and size, some of them views that share memory, some not contiguous."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    names = draw(st.lists(st.text("ab.é_0", min_size=1, max_size=6), min_size=1, max_size=4, unique=True))
    tree = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 3), max_size=4))
        value = torch.randint(0, 2, shape, generator=generator).to(draw(st.sampled_from(DTYPES)))
        if draw(st.booleans()) and value.ndim > 1:
            value = value.transpose(0, 1)
        tree[name] = value
        if draw(st.booleans()):
            tree[f"{name}.again"] = value
    return tree


JSON = st.dictionaries(
    st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.floats(allow_nan=False)), max_size=3
)


@settings(max_examples=25, **SLOW)
@given(tree=trees(), value=JSON)
def test_any_tensors_and_values_come_back_as_they_were(tmp_path, tree, value):
    place = tmp_path / "state"
    checkpoint.write_folder(place, {"t.safetensors": tree}, {"v.json": value})
    tensors, values = checkpoint.read_folder(place)
    assert values == {"v.json": value}
    assert tensors["t.safetensors"].keys() == tree.keys()
    for name, expected in tree.items():
        found = tensors["t.safetensors"][name]
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    shutil.rmtree(place)


@settings(max_examples=60, **SLOW)
@given(tree=trees(), data=st.data())
def test_any_flipped_bit_of_any_tensors_is_detected(tmp_path, tree, data):
    place = tmp_path / "state"
    checkpoint.write_folder(place, {"t.safetensors": tree}, {"v.json": {"step": 3}})
    path = place / data.draw(st.sampled_from(["t.safetensors", "v.json"]))
    whole = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    flipped = whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]
    path.write_bytes(flipped)
    with pytest.raises(Damaged):
        checkpoint.read_folder(place)
    shutil.rmtree(place)
