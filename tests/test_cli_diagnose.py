"""`pnnh diagnose` from its arguments to its files, and how it refuses."""

import csv
import json

import pytest
import torch
from PIL import Image
from torch import nn

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
    assert main(["diagnose", tiny_spec, "--compare", tiny_spec, *options]) == 0
    assert "activations" in capsys.readouterr().out
    record = json.loads((out / "diagnosis.json").read_text())
    assert [len(net["layers"]) for net in record["models"]] == [2, 2]
    assert record["models"][0]["settings"]["images"] == 10
    assert record["models"][0]["dists"] == "not computed"
    rows = list(csv.DictReader((out / "diagnosis.csv").read_text().splitlines()))
    assert [row["layer"] for row in rows] == ["1", "3", "1", "3"]
    page = (out / "diagnosis.html").read_text()
    assert page.count("<svg") == 5
    assert "http-equiv" not in page
    assert "<script" not in page


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
