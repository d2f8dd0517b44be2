"""The picture of dissipating inputs: its tiles are the bytes of the views, its words follow R²."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pnnh._errors import UsageError
from pnnh.analysis.readback import ends, read_back
from pnnh.report.picture import losses, picture, pictures, reading, words


def view(channels: int = 1, r2=(0.8, 0.3)) -> dict:
    pixels = np.arange(3 * channels * 4, dtype=np.uint8)
    return {
        "activations": 4,
        "at": [2, 4],
        "r2": list(r2),
        "survival": [0.5, 0.5, 0.4, 0.3],
        "shape": [3, channels, 2, 2],
        "pixels": base64.b64encode(pixels.tobytes()).decode(),
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_the_tiles_hold_the_bytes_of_the_view(channels):
    tiles = pictures(view(channels))
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(tile.partition(",")[2])))) for tile in tiles]
    assert [image.reshape(2, 2, channels).transpose(2, 0, 1).tolist() for image in images] == np.arange(
        3 * channels * 4
    ).reshape(3, channels, 2, 2).tolist()


def test_every_net_and_state_has_its_row_and_its_accuracy_only_when_trained():
    nets = [("plain", 20, 0.25, {"untrained": view(), "trained": view()}), ("a&b", 20, None, {"untrained": view()})]
    svg = picture(nets)
    assert svg.count("<image") == 9
    assert svg.count("25.0 % correct") == 1
    assert "a&amp;b" in svg
    assert ">layer 10<" in svg
    assert len(losses(nets)) == 4
    part = "a third of the image is left at the end (R² 0.30), less than half from layer 20 on"
    score = "It gets 25.0 % of the test images right."
    assert reading(nets)[0] == f"plain: untrained, {part}; trained, {part}. {score}"


def test_words_fall_with_r2():
    assert words(0.95).startswith("nearly all")
    assert words(0.5).startswith("about half")
    assert words(0.01).startswith("nothing")


def test_parts_end_at_equal_shares_of_the_activations():
    assert ends(56, 8) == [6, 13, 20, 27, 34, 41, 48, 55]
    assert ends(3, 8) == [0, 1, 2]


def test_a_net_that_keeps_its_input_is_read_back_and_one_that_loses_it_is_not():
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    class Blank(nn.Module):
        def forward(self, x):
            return x * 0

    kept = read_back(nn.Sequential(nn.ReLU(), nn.ReLU()), images, steps=2)
    lost = read_back(nn.Sequential(nn.ReLU(), Blank(), nn.ReLU(), nn.ReLU()), images, steps=3)
    assert min(kept["r2"]) > 0.99
    assert (lost["r2"][0] > 0.99, lost["r2"][-1]) == (True, 0.0)
    assert kept["shape"] == [3, 1, 8, 8]
    assert kept["survival"] == [1.0, 1.0]
    pixels = np.frombuffer(base64.b64decode(kept["pixels"]), np.uint8).reshape(3, 64).astype(int)
    assert abs(pixels[1] - pixels[0]).max() <= 3


def test_reading_back_needs_images_and_activations():
    with pytest.raises(UsageError, match="0 activations, 32 images"):
        read_back(nn.Conv2d(1, 1, 3), torch.rand(32, 1, 8, 8))
    with pytest.raises(UsageError, match="1 activations, 8 images"):
        read_back(nn.ReLU(), torch.rand(8, 1, 8, 8))
