"""Images as people have them: grey levels, orientation, endings, names, sizes; by both readers of folders."""

import os

import numpy as np
import pytest
from PIL import Image, ImageOps

from pnnh._errors import UsageError
from pnnh.data import load_data, pictures
from pnnh.data.folder import read_pictures

RAMP = np.tile(np.linspace(0, 1, 32), (32, 1))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PNNH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PNNH_WORKERS", "0")


@pytest.fixture
def tree(tmp_path):
    """One ordinary image in each of two classes of train and test."""
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "tree" / part / name).mkdir(parents=True)
            Image.fromarray((RAMP * 255).astype(np.uint8)).save(tmp_path / "tree" / part / name / "0.png")
    return tmp_path / "tree"


def notes(data):
    return " | ".join(data.to_dict()["notes"])


DEEP = [
    ("png", np.uint16, 65535),
    ("tif", np.uint16, 65535),
    ("pgm", np.uint16, 65535),
    ("tif", np.float32, 1),
    ("tif", np.float32, 255),
    ("pfm", np.float32, 1),
]


@pytest.mark.parametrize(("ending", "kind", "white"), DEEP)
def test_deep_images_keep_their_grey_levels(tree, ending, kind, white):
    Image.fromarray((RAMP * white).astype(kind)).save(tree / "train" / "a" / f"1.{ending}")
    data = load_data(f"folder:{tree}", channels=1)
    assert data.train.labels.tolist() == [0, 0, 1]
    eight_bits, deep = data.train.images[:2].int()
    assert (eight_bits - deep).abs().max() <= 1
    assert "1 image(s) of train have more than 8 bits" in notes(data)


def test_twelve_bits_of_tiff(tmp_path):
    path = tmp_path / "x.tif"
    Image.fromarray(np.array([[0, 4095]], np.uint16)).save(path)
    with Image.open(path) as image:
        offset = image.tag_v2[273][0]
    data, tag = path.read_bytes(), bytes([2, 1, 3, 0, 1, 0, 0, 0])  # BitsPerSample, one short number
    assert data.count(tag + bytes([16])) == 1
    data = data.replace(tag + bytes([16]), tag + bytes([12]))
    path.write_bytes(data[:offset] + b"\x00\x0f\xff" + data[offset + 3 :])  # the same pixels, packed
    assert np.asarray(pictures.load(path, "L")[0]).tolist() == [[0, 255]]


@pytest.mark.parametrize(
    "values",
    [
        np.full((9, 9), np.nan, np.float32),
        np.full((9, 9), 300, np.float32),
        np.full((9, 9), -1, np.float32),
        np.full((9, 9), 70000, np.int32),
    ],
)
def test_values_without_a_scale_are_left_out_and_named(tree, values):
    Image.fromarray(values).save(tree / "train" / "a" / "1.tif")
    data = load_data(f"folder:{tree}")
    assert len(data.train) == 2
    assert "left out: train/a/1.tif (" in notes(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_photographs_are_read_upright(tmp_path, orientation, ending):
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (3, 5, 3), np.uint8)).resize((40, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"x.{ending}", exif=exif, quality=95)
    with Image.open(tmp_path / f"x.{ending}") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert np.array_equal(np.asarray(pictures.load(tmp_path / f"x.{ending}", "RGB")[0]), expected)


def test_a_damaged_exif_block_does_not_cost_the_image(tmp_path):
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    with pictures.silently():
        assert pictures.load(tmp_path / "x.jpg", "RGB")[0].size == (8, 8)


def png_of(width, height):
    """A PNG of many pixels in few bytes, written by its definition."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("size", "reason"),
    [((1, 60_000), "one side is more than 100 times"), ((20_000, 20_000), "more than 89478485 pixels")],
)
def test_one_bound_on_pixels(tree, size, reason):
    (tree / "train" / "a" / "x.png").write_bytes(png_of(*size))
    data = load_data(f"folder:{tree}")
    assert reason in notes(data)
    with pytest.raises(pictures.Unreadable, match=reason), pictures.silently():
        pictures.load(tree / "train" / "a" / "x.png", "RGB")
    on_disk = load_data(f"imagefolder:{tree}", image_size=32)
    assert [len(labels) for _, labels in on_disk.train.batches(4)] == [2]
    assert "1 image(s) of train cannot be read" in notes(on_disk)


def test_both_readers_read_the_same_files(tree):
    image = Image.open(tree / "train" / "a" / "0.png").convert("RGB")
    names = [
        "deep/down/1.JPG",
        "2.jpeg",
        "3.ppm",
        "4.tga",
        "5.gif",
        "6.avif",
        "7.bmp",
        "8.webp",
        "9.jp2",
        "deep/10.tiff",
    ]
    for name in names:
        (tree / "train" / "b" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tree / "train" / "b" / name)
    (tree / "train" / "b" / "labels.txt").write_text("no image")
    (tree / "train" / "b" / "vector.eps").write_text("%!PS")
    (tree / "train" / "b" / ".hidden.png").write_text("not looked at")
    os.mkfifo(tree / "train" / "b" / "pipe.png")
    (tree / "train" / "b" / "around").symlink_to(tree / "train" / "b")
    memory, disk = load_data(f"folder:{tree}"), load_data(f"imagefolder:{tree}", image_size=32)
    assert len(memory.train) == len(disk.train) == 2 + len(names)
    assert sum(len(labels) for _, labels in disk.train.batches(4)) == 2 + len(names)
    assert "3 file(s) of train are not images and are not read (.eps 1, .png 1, .txt 1)" in notes(memory)
    assert notes(memory) == notes(disk)


def test_an_eps_file_under_another_name_is_not_run(tree):
    (tree / "train" / "a" / "1.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    assert "train/a/1.png (damaged or not an image)" in notes(load_data(f"folder:{tree}"))


def test_names_in_any_encoding(tree):
    where = os.fsencode(tree / "train" / "a")
    os.rename(where + b"/0.png", where + b"/caf\xe9.png")
    (tree / "train" / "a" / "new\nline.png").write_bytes(b"broken")
    with open(where + b"/\xff.png", "wb") as file:
        file.write(b"broken")
    for part in ("train", "test"):
        os.rename(os.fsencode(tree / part) + b"/b", os.fsencode(tree / part) + b"/b\xfc")
    memory, disk = load_data(f"folder:{tree}"), load_data(f"imagefolder:{tree}", image_size=32)
    assert memory.classes == disk.classes == ("a", r"b\udcfc")
    assert r"train/a/new\nline.png" in notes(memory)
    assert r"train/a/\udcff.png" in notes(memory)
    assert len(memory.train) == 2
    assert memory.sha256
    assert disk.sha256
    assert load_data(f"folder:{tree}").sha256 == memory.sha256  # from the cache
    for text in (*memory.classes, notes(memory), memory.name):
        text.encode()


def test_both_readers_test_on_the_same_part(tree):
    (tree / "val" / "a").mkdir(parents=True)
    Image.new("L", (32, 32)).save(tree / "val" / "a" / "0.png")
    (tree / "val" / "b").symlink_to(tree / "val" / "a")
    memory, disk = load_data(f"folder:{tree}"), load_data(f"imagefolder:{tree}", image_size=32)
    assert memory.test.images[0].float().mean() > 100  # test/, not the black images of val/
    assert disk.test.root.name == "test"
    assert "tested on test/; val is not read" in notes(memory)
    assert notes(memory) == notes(disk)


def test_a_single_class_is_named(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part / "only").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / part / "only" / "0.png")
    for kind in ("folder", "imagefolder"):
        assert "'only' is the only class" in notes(load_data(f"{kind}:{tmp_path}"))


def test_pictures_without_classes_for_a_diagnosis(tree, caplog):
    (tree / "train" / "a" / "broken.png").write_bytes(b"broken")
    images = read_pictures(tree, 8, size=(12, 10), channels=3)
    assert images.shape == (4, 3, 10, 12)
    assert len(read_pictures(tree, 3, size=(12, 10), channels=1)) == 3
    assert "left out: train/a/broken.png (damaged or not an image)" in caplog.text


def test_images_on_disk_are_held_out_and_limited(tree):
    for number in range(1, 6):
        for name in ("a", "b"):
            Image.new("RGB", (32, 32), (number, 0, 0)).save(tree / "train" / name / f"{number}.png")
    data = load_data(f"imagefolder:{tree}", image_size=32, held_out=4, limit=6)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.train.labels.bincount().tolist() == [3, 3]
    assert not {*data.test.files} & {*data.train.files}
    assert sum(len(labels) for _, labels in data.test.batches(3)) == 4
    with pytest.raises(UsageError, match="held_out 11 must be between 2"):
        load_data(f"imagefolder:{tree}", image_size=32, held_out=11)
