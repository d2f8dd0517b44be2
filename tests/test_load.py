"""A network by name: what is built, what is known of it, and every name that means nothing."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pnnh import RunError, UsageError, checkpoint, load_model
from pnnh.load import load_weights, open_model

MINE = """
import sys
from torch import nn

def boom():
    raise RuntimeError("boom\\nand more")

def leave():
    sys.exit(7)

def dead():
    raise KeyError

def needs(x):
    return nn.Linear(2, 2)

def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())

ready = nn.Linear(2, 2)
three = 3
"""


@pytest.fixture(autouse=True)
def code(tmp_path, monkeypatch):
    """A module of the user in the current folder, under a name of its own."""
    (tmp_path / f"mine_{tmp_path.name}.py").write_text(MINE)
    (tmp_path / f"broken_{tmp_path.name}.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return f"mine_{tmp_path.name}"


def test_what_is_known_of_a_network():
    random = open_model("pnnh_resnet_tiny", num_classes=3, in_chans=1)
    assert (random.input_size, random.trained, dict(random.record)) == ((1, 8, 8), False, {}) or random.trained is False
    assert random.model.num_classes == 3
    assert not random.model.training
    assert open_model("pnnh_resnet_tiny", image_size=24).input_size == (3, 24, 24)


def test_functions_and_modules_of_the_user(code):
    assert isinstance(load_model(f"{code}:net"), nn.Sequential)
    assert open_model(f"{code}:net").trained is None
    assert isinstance(load_model(f"{code}:ready"), nn.Linear)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "MODEL is empty"),
        ("resnet1o", "unknown model 'resnet1o'; did you mean"),
        (":", "cannot import ':'"),
        ("CODE:", "cannot import"),
        ("CODE:gone", "cannot import .*has no attribute 'gone'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("BROKEN:f", "SyntaxError"),
        ("CODE:boom", "boom failed: RuntimeError: boom$"),
        ("CODE:leave", "leave failed: SystemExit: 7"),
        ("CODE:dead", "dead failed: KeyError"),
        ("CODE:needs", "cannot be called without arguments"),
        ("CODE:three", "cannot be called without arguments"),
        ("builtins:dict", "returned dict, not a torch.nn.Module"),
        (".", "is a folder without record.json"),
    ],
)
def test_names_that_mean_nothing_are_refused_in_one_line(code, name, message):
    name = name.replace("CODE", code).replace("BROKEN", code.replace("mine", "broken"))
    with pytest.raises(UsageError, match=message) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [-1, 0, 10**9])
def test_a_size_that_no_image_has(size):
    with pytest.raises(UsageError, match="must be between 1 and 4096 pixels"):
        load_model("pnnh_resnet_tiny", image_size=size)


def test_what_a_checkpoint_or_a_function_knows_cannot_be_given(code):
    with pytest.raises(UsageError, match="knows its own num_classes"):
        load_model(f"{code}:net", num_classes=3)
    with pytest.raises(UsageError, match="weights 'pretrained' are timm's"):
        load_model(f"{code}:net", weights="pretrained")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "os:abort"}, "names 'os:abort', which is no registered model"),
        ({"name": "hf-hub:someone/net"}, "is no registered model"),
        ({"name": 3}, "names 3"),
        ({"name": "pnnh_resnet_tiny", "kwargs": {"checkpoint_path": "/etc/passwd"}}, "would read other files"),
        ({"name": "pnnh_resnet_tiny", "kwargs": {"pretrained": True}}, "would read other files"),
        ([1], 'has no "model"'),
        ({}, 'has no "model"'),
    ],
)
def test_a_record_names_registered_models_and_nothing_else(tmp_path, model, message):
    checkpoint.save(tmp_path / "net", nn.Linear(2, 2), {"model": model})
    with pytest.raises(UsageError, match=message):
        load_model(tmp_path / "net")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_are_read_with_and_without_the_prefix_of_a_wrapper(tmp_path, code, prefix):
    saved = load_model(f"{code}:net")
    save_file({prefix + name: value for name, value in saved.state_dict().items()}, tmp_path / "w.safetensors")
    found = open_model(f"{code}:net", weights=tmp_path / "w.safetensors")
    assert found.trained
    assert torch.equal(found.model[0].weight, saved[0].weight)


def test_weights_that_do_not_fit_are_named_one_by_one(tmp_path, code):
    net = load_model(f"{code}:net")
    save_file({"0.weight": torch.zeros(2, 1, 5, 5), "1.bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(RunError, match=r"'0.bias' is missing.*'0.weight' is .*5, 5.*'1.bias' is missing in the model"):
        load_weights(net, tmp_path / "w.safetensors")
    for name, message in {"none.safetensors": "no weights file", f"{code}.py": "not .safetensors"}.items():
        with pytest.raises(UsageError, match=message):
            load_weights(net, tmp_path / name)
    (tmp_path / "bad.safetensors").write_bytes(b"\x08")
    with pytest.raises(RunError, match=r"cannot be read as \.safetensors"):
        load_weights(net, tmp_path / "bad.safetensors")
