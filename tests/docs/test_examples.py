"""The examples run, and their switch does what it says."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_swapping_the_stages_makes_the_net_plain_and_smaller():
    found = example("swap_a_block").main()
    before, after = found["before"], found["after"]
    assert (before["plain"], after["plain"]) == (False, True)
    assert after["parameters"] < 0.6 * before["parameters"]
    assert before["logits"] == after["logits"] == (2, 10)


@pytest.fixture
def photos(tmp_path):
    draw = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 8)):
        for name, level in (("dark", 60), ("light", 190)):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = (level + draw.normal(0, 20, (16, 16, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves files open
@pytest.mark.parametrize("model", [[], ["--model", "pnnh_resnet_tiny"]], ids=["own net", "timm name"])
def test_the_training_script_learns_to_tell_dark_from_light(photos, model):
    sizes = ["--size", "16", "--batch-size", "8", "--epochs", "3", "--lr", "0.05"]
    assert example("train_with_timm").main(["--data", str(photos), *sizes, *model]) > 0.9
