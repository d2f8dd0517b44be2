"""`pnnh diagnose` from its arguments to its files, and how it refuses."""

import csv
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pnnh import checkpoint
from pnnh.cli import main


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


def mute():
    return nn.Conv2d(3, 8, 3)


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for index in range(10):
        coarse = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(coarse.numpy()).resize((40, 30)).save(tmp_path / f"{index}.png")
    return tmp_path


def test_files_and_table(folder, tmp_path, capsys):
    out = tmp_path / "out"
    tiny_spec = f"{__name__}:tiny"
    options = ["--images", str(folder), "--num", "10", "--image-size", "24", "--out", str(out)]
    assert main(["diagnose", tiny_spec, tiny_spec, *options]) == 0
    printed = capsys.readouterr().out
    assert "of the picture can be read back" in printed
    assert max(len(line) for line in printed.splitlines() if not line.startswith("wrote ")) <= 80
    record = json.loads((out / "diagnosis.json").read_text())
    assert [len(net["layers"]) for net in record["models"]] == [2, 2]
    assert record["models"][0]["settings"]["images"] == 10
    rows = list(csv.DictReader((out / "diagnosis.csv").read_text().splitlines()))
    assert [row["layer"] for row in rows] == ["1", "3", "1", "3"]
    page = (out / "diagnosis.html").read_text()
    assert page.count("<svg") == 5
    assert "http-equiv" not in page
    assert "<script" not in page


def biased():
    """Its first activation is dead with these weights, and only with these."""
    net = tiny()
    nn.init.constant_(net[0].bias, -100)
    return net


def layers_of(out):
    (net,) = json.loads((out / "diagnosis.json").read_text())["models"]
    return net["settings"]["mode"], net["layers"]


def test_weights_are_loaded_and_run_in_eval_mode(tmp_path):
    out, file = tmp_path / "out", tmp_path / "net.safetensors"
    save_file(biased().state_dict(), file)
    arguments = ["diagnose", f"{__name__}:tiny", "--num", "16", "--image-size", "16", "--out", str(out)]
    assert main([*arguments, "--data", "digits"]) == 0
    assert layers_of(out)[0] == "train"
    assert main([*arguments, "--weights", str(file)]) == 0
    mode, layers = layers_of(out)
    assert mode == "eval"
    assert [layer["dead"] for layer in layers] == [1, pytest.approx(0.5, abs=0.5)]
    assert layers[0]["survival"] == 0


def test_a_checkpoint_is_shown_its_own_data(tmp_path, capsys):
    out, folder = tmp_path / "out", tmp_path / "net"
    record = {
        "model": {"name": f"{__name__}:biased"},
        "data": {"name": "digits (embedded)", "channels": 3, "image_size": 16},
    }
    checkpoint.save(folder, tiny(), record)
    assert main(["diagnose", str(folder), "--num", "16", "--out", str(out), "--trust"]) == 0
    mode, layers = layers_of(out)
    assert mode == "eval"
    assert layers[0]["survival"] > 0.1  # the saved weights, not those of the function that builds it
    checkpoint.save(folder, tiny(), record | {"data": {"name": "folder:photos", "channels": 3, "image_size": 16}})
    assert main(["diagnose", str(folder), "--trust"]) == 2
    assert "trained on folder:photos" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["resnet81"], "resnet18"),
        (["x", "--num", "3"], "at least 8"),
        (["x", "--images", "/nowhere", "--data", "digits"], "give one"),
        ([f"{__name__}:mute", "--image-size", "16"], "no activation function ran"),
        ([f"{__name__}:tiny", "--images", "/nowhere"], "no directory at"),
        ([f"{__name__}:tiny", "--data", "digitz", "--image-size", "16"], "digits"),
    ],
)
def test_refusals_are_one_line(arguments, says, capsys):
    assert main(["diagnose", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
