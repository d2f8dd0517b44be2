"""Strips, many images in one file: the same images as in files of their own, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from pnnh._errors import RunError, UsageError
from pnnh.data import load_data


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PNNH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pixels():
    """Two classes of seven training and three test images."""
    generator = np.random.default_rng(0)
    return {
        (part, name): generator.integers(0, 256, (count, 10, 10, 3), np.uint8)
        for part, count in (("train", 7), ("val", 3))
        for name in ("ant", "bee")
    }


def write(root, pixels, each, ending="webp"):
    """Strips of `each` images."""
    for (part, name), images in pixels.items():
        (root / part / name).mkdir(parents=True)
        for number, start in enumerate(range(0, len(images), each)):
            column = np.concatenate(images[start : start + each])
            Image.fromarray(column).save(root / part / name / f"{number:02d}.{ending}", lossless=True)


@pytest.mark.parametrize(("each", "ending"), [(7, "webp"), (3, "png"), (2, "webp")])
def test_strips_hold_the_images_in_order(tmp_path, pixels, each, ending):
    write(tmp_path / "strips", pixels, each, ending)
    data = load_data(f"folder:{tmp_path / 'strips'}")
    expected = np.concatenate([pixels["train", "ant"], pixels["train", "bee"]]).transpose(0, 3, 1, 2)
    assert np.array_equal(data.train.images.numpy(), expected)
    assert data.train.labels.tolist() == [0] * 7 + [1] * 7
    assert (len(data.test), data.image_size, data.classes) == (6, 10, ("ant", "bee"))
    write(tmp_path / "files", pixels, 1, "png")
    assert load_data(f"folder:{tmp_path / 'files'}").sha256 == data.sha256  # one by one: the same data
    grey, small = (
        load_data(f"folder:{tmp_path / 'strips'}", channels=1),
        load_data(f"folder:{tmp_path / 'strips'}", image_size=8),
    )
    assert grey.train.images.shape == (14, 1, 10, 10)
    assert small.train.images.shape == (14, 3, 8, 8)


def test_a_strip_cut_short_is_one_line(tmp_path, pixels):
    write(tmp_path, pixels, 3, "png")
    path = tmp_path / "train" / "bee" / "01.png"
    column = Image.open(path)
    column.crop((0, 0, 10, 29)).save(path)
    with pytest.raises(RunError, match=r"01.png is 10 x 29, but a strip is 10 wide and a multiple of 10 high"):
        load_data(f"folder:{tmp_path}")
    column.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    with pytest.raises(RunError, match=r"01.png cannot be read, but a strip is 10 wide"):
        load_data(f"folder:{tmp_path}")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"strip train/bee/01.png \(.*\) in .* cannot be read"):
        load_data(f"folder:{tmp_path}")


def test_ordinary_images_are_no_strips(tmp_path):
    for part in ("train", "test"):
        for name, size in (("a", (8, 16)), ("b", (16, 8))):  # a wide one: no strips
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", size).save(tmp_path / part / name / "0.png")
    assert load_data(f"folder:{tmp_path}", image_size=8).train.labels.tolist() == [0, 1]


def test_images_on_disk_cannot_be_strips(tmp_path, pixels):
    write(tmp_path, pixels, 3)
    with pytest.raises(UsageError, match=r"holds strips.*folder:"):
        load_data(f"imagefolder:{tmp_path}")


def test_images_are_held_out_of_strips(tmp_path, pixels):
    write(tmp_path, pixels, 3)
    data, tuning = load_data(f"folder:{tmp_path}"), load_data(f"folder:{tmp_path}", held_out=4)
    assert tuning.test.labels.tolist() == [0, 0, 1, 1]
    assert len(tuning.train) == 10
    both = torch.cat([tuning.train.images, tuning.test.images]).reshape(14, -1).tolist()
    assert sorted(both) == sorted(data.train.images.reshape(14, -1).tolist())
