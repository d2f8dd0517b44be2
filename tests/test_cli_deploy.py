"""`pnnh certify`, `fuse`, `convert` and `export` from their arguments to their files, and how they refuse."""

import json
from pathlib import Path

import pytest
import timm
import torch
from test_convert import with_statistics
from torch import nn

import pnnh.models  # noqa: F401
from pnnh.cli import main
from pnnh.cli._model import load_model
from pnnh.train import checkpoint

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


@pytest.mark.parametrize("form", ["dense", "structured"])
@pytest.mark.parametrize("storage", ["fused", "shared"])
def test_a_fused_checkpoint_comes_back_fused_in_its_form(trained, tmp_path, capsys, form, storage):
    assert main(["fuse", str(trained), "--out", str(tmp_path / "f"), "--form", form, "--storage", storage]) == 0
    assert f"({form})" in capsys.readouterr().out
    model, shape = load_model(str(tmp_path / "f"))
    source, _ = load_model(str(trained))
    assert shape == (1, 8, 8)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    wide = max(conv.in_channels for conv in model.modules() if isinstance(conv, nn.Conv2d))
    assert wide == (14 if form == "dense" else 8)  # dense layers read stream and learner side by side
    images = torch.randn(5, *shape)
    with torch.no_grad():
        torch.testing.assert_close(model(images), source(images), rtol=1e-4, atol=1e-5)
    stored = checkpoint.load(tmp_path / "f").tensors
    assert any("running_mean" in name for name in stored) is (storage == "shared")


def test_certify_says_plain_by_its_exit_code(trained, tmp_path, capsys):
    assert main(["certify", str(trained), "--json", str(tmp_path / "c.json")]) == 0
    assert "plain: 19 activations, 13 on every path to the end" in " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "c.json").read_text())
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
    assert main(["export", str(trained), "--to", "int8", "--data", "digits", "--out", str(tmp_path)]) == 0
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
        ["export", "test_cli_deploy:seven", "--to", "int8", "--data", "digits", "--image-size", "8", "--out", "OUT"],
        "has 7 outputs, digits has 10 classes",
    ),
    "untrained": (["fuse", "pnnh_resnet_tiny", "--out", "OUT"], "stem.1: this norm has never seen data"),
    "nothing to fold": (["fuse", "vit_tiny_patch16_224", "--out", "OUT"], "nothing to fold"),
    "suffix": (["convert", "resnet10t", "--out", "twin.tflite"], "must end in .onnx or .pt2"),
    "dry run with a file": (["convert", "resnet10t", "--dry-run", "--out", "t.onnx"], "a dry run writes nothing"),
    "gate": (["convert", "test_cli_deploy:gated", "--image-size", "8"], "body.se: a gate multiplies"),
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


def test_a_checkpoint_of_a_function_is_found_again_and_names_its_home(tmp_path, capsys, monkeypatch):
    (tmp_path / "my_nets.py").write_text("from torch import nn\n\ndef small():\n    return nn.Conv2d(1, 2, 3)\n")
    monkeypatch.chdir(tmp_path)
    model, _ = load_model("my_nets:small")
    record = {"model": {"name": "my_nets:small", "kwargs": {}, "folder": str(tmp_path)}, "data": {"channels": 1}}
    checkpoint.save(tmp_path / "run", model, record)
    again, shape = load_model(str(tmp_path / "run"))
    assert torch.equal(again.weight, model.weight)
    assert shape[0] == 1
    record["model"]["name"] = "gone_nets:small"
    checkpoint.save(tmp_path / "run", model, record)
    assert main(["certify", str(tmp_path / "run")]) == 2
    assert f"it was trained in {tmp_path}" in capsys.readouterr().err
