"""Properties that hold for every checkpoint, tried on tensors and modules that hypothesis draws."""

import copy
import re
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from pnnh import checkpoint
from pnnh._errors import RunError
from pnnh.checkpoint import Damaged

SLOW = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
SEEDS, SHAPES = st.integers(0, 999), st.lists(st.integers(0, 3), max_size=4)


def values(draw, shape):
    """A tensor of any dtype with any bits that are finite numbers."""
    dtype = draw(st.sampled_from(DTYPES))
    bits = torch.randint(0, 256, (*shape, dtype.itemsize), generator=torch.Generator().manual_seed(draw(SEEDS)))
    if dtype == torch.bool:
        return bits[..., 0] > 127
    value = bits.to(torch.uint8).view(dtype).squeeze(-1)
    return value.nan_to_num(0.5, 2.0, -2.0) if value.is_floating_point() else value


@st.composite
def trees(draw):
    """Some tensors by name, any dtype, rank and size: sharing memory, parts of larger ones, transposed."""
    tree = {}
    for name in draw(st.lists(st.text("ab.é_0", min_size=1, max_size=6), min_size=1, max_size=4, unique=True)):
        value = values(draw, draw(SHAPES))
        if value.ndim > 1:
            value = draw(st.sampled_from([value, value.transpose(0, 1), value[1:], value[..., 1:]]))
        tree[name] = value
        if draw(st.booleans()):
            tree[f"{name}.again"] = value
    return tree


@st.composite
def modules(draw, levels=2):
    """Modules in modules: layers, parameters and buffers of any dtype, some of them in two places."""
    net = nn.ModuleList()
    for index in range(draw(st.integers(1, 3))):
        match draw(st.sampled_from(["linear", "conv", "tensors", *(["modules", "again"] if levels and index else [])])):
            case "linear":
                made = nn.Linear(2, draw(st.integers(1, 3)), dtype=draw(st.sampled_from(DTYPES[:4])))
            case "conv":
                made = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4))
                made.to(memory_format=torch.channels_last)
            case "tensors":
                made, value = nn.Module(), values(draw, draw(SHAPES))
                made.register_buffer("buffer", value)
                made.parameter = nn.Parameter(value.clone(), requires_grad=value.is_floating_point())
            case "modules":
                made = draw(modules(levels - 1))
            case "again":
                made = net[0]
        net.append(made)
    return net


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
RECORDS = st.dictionaries(st.text(max_size=5), JSON, max_size=3)


def bits(value):
    return value.dtype, value.shape, value.contiguous().reshape(-1).view(torch.uint8).tolist()


@settings(max_examples=25, **SLOW)
@given(tree=trees(), value=RECORDS)
def test_any_tensors_and_values_come_back_as_they_were(tmp_path, tree, value):
    place = tmp_path / "state"
    checkpoint.write_folder(place, {"t.safetensors": tree}, {"v.json": value})
    tensors, values = checkpoint.read_folder(place)
    assert values == {"v.json": value}
    assert tensors["t.safetensors"].keys() == tree.keys()
    for name, expected in tree.items():
        assert bits(tensors["t.safetensors"][name]) == bits(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    shutil.rmtree(place)


@settings(max_examples=25, **SLOW)
@given(net=modules(), value=RECORDS, as_module=st.booleans(), data=st.data())
def test_any_module_comes_back_and_no_other_takes_its_place(tmp_path, net, value, as_module, data):
    place = checkpoint.save(tmp_path / "run", net if as_module else net.state_dict(), value)
    found, other = checkpoint.load(place), copy.deepcopy(net)
    for entry in other.state_dict().values():
        entry.fill_(1)
    assert found.record == value
    assert found.load_into(other) is other
    expected = {name: bits(entry) for name, entry in net.state_dict().items()}
    assert {name: bits(entry) for name, entry in other.state_dict().items()} == expected

    places = [entry.data_ptr() for entry in net.state_dict().values()]
    alone = [name for name, entry in net.state_dict().items() if places.count(entry.data_ptr()) == 1]
    odd = data.draw(st.sampled_from(sorted(alone or expected)))
    quoted = re.escape(repr(odd))
    unlike = {
        rf"{quoted} is \(7, 7\) in the checkpoint, .* in the model": found.tensors | {odd: torch.zeros(7, 7)},
        r"'~' is missing in the model": found.tensors | {"~": torch.zeros(1)},
    }
    if alone:  # of tensors with two names one is enough
        without = {name: entry for name, entry in found.tensors.items() if name != odd}
        unlike[rf"{quoted} is missing in the checkpoint"] = without
    for message, tensors in unlike.items():
        with pytest.raises(RunError, match=message):
            checkpoint.Checkpoint(tensors, {}).load_into(other)
    assert {name: bits(entry) for name, entry in other.state_dict().items()} == expected
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
