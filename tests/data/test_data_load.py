"""Data sets: what is read, what is refused, what is remembered."""

import gzip
import hashlib
import logging
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pnnh._errors import RunError, UsageError
from pnnh._files import fetch
from pnnh.data import folder, load_data, sources, stratified
from pnnh.data.load import pixel_statistics
from pnnh.data.types import cache_dir


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PNNH_CACHE", str(tmp_path / "cache"))


def picture(path, value, size=(10, 8), mode="RGB"):
    """A flat image of one value; PNG keeps it exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value)).save(path)


@pytest.fixture
def photos(tmp_path):
    """Two classes, three training and two test images each; the value tells which image it is."""
    for part, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("ant", "bee")):
            for i in range(count):
                picture(tmp_path / "photos" / part / name / f"{i}.png", 100 * label + i)
    return tmp_path / "photos"


def test_digits_is_the_published_set_split_once():
    data = load_data("digits")
    assert data.train.images.shape == (1438, 1, 16, 16)
    assert data.test.images.shape == (359, 1, 16, 16)
    assert data.train.images.dtype == torch.uint8
    assert data.test.labels.bincount().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert data.sha256 == "4c72438dd93eabc7fc9290c696b0cc3bb9813b0607da8c5a122bfc885c89866c"
    assert not data.flip


def test_digits_agree_with_scikit_learn(tmp_path):
    theirs = pytest.importorskip("sklearn.datasets").load_digits()
    ours = sources.digits(8)
    images = torch.cat([ours.train.images, ours.test.images]).reshape(-1, 64).tolist()
    labels = torch.cat([ours.train.labels, ours.test.labels]).tolist()
    scaled = np.rint(theirs.data * 255 / 16).astype(int).tolist()
    assert sorted(zip(images, labels, strict=True)) == sorted(zip(scaled, theirs.target.tolist(), strict=True))


def test_pixel_statistics_are_those_of_float64():
    images = torch.randint(0, 256, (7, 3, 5, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = pixel_statistics(images)
    values = images.double().transpose(0, 1).reshape(3, -1) / 255
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), values.mean(1))
    torch.testing.assert_close(torch.tensor(std, dtype=torch.float64), values.std(1, correction=0))


def test_stratified_choice_keeps_the_shares_and_loses_nothing():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    held, kept = stratified(labels, 20, seed=3)
    assert labels[held].bincount().tolist() == [12, 6, 2]
    assert sorted([*held.tolist(), *kept.tolist()]) == list(range(100))
    assert torch.equal(held, stratified(labels, 20, seed=3)[0])
    assert not torch.equal(held, stratified(labels, 20, seed=4)[0])


def test_tuning_split_leaves_the_test_images_alone():
    data = load_data("digits")
    tuning = load_data("digits", held_out=144)
    assert (len(tuning.train), len(tuning.test)) == (1294, 144)
    both = torch.cat([tuning.train.images, tuning.test.images]).reshape(1438, -1).tolist()
    assert sorted(both) == sorted(data.train.images.reshape(1438, -1).tolist())
    assert tuning.mean == data.mean
    assert tuning.sha256 != data.sha256
    assert tuning.name == "digits (144 training images held out)"
    with pytest.raises(UsageError, match=r"held_out 1430 must be between 10 .* and 1428"):
        load_data("digits", held_out=1430)


def test_limit_is_stratified_and_bounded():
    assert load_data("digits", limit=100).train.labels.bincount().tolist() == [10] * 10
    with pytest.raises(UsageError, match=r"limit 9 must be between 10"):
        load_data("digits", limit=9)


@pytest.mark.parametrize(
    ("spec", "message"),
    [("cifra10", "did you mean 'cifar10'"), ("folder:", "needs a path"), ("folder:/no/such", "no folder /no/such")],
)
def test_unknown_data_says_the_way_out(spec, message):
    with pytest.raises(UsageError, match=message):
        load_data(spec)


def test_grey_becomes_colour_and_back():
    grey, colour = load_data("digits"), load_data("digits", channels=3)
    assert colour.train.images.shape[1] == 3
    assert all(torch.equal(colour.train.images[:, i], grey.train.images[:, 0]) for i in range(3))
    assert len(colour.mean) == 3


def test_folder_reads_every_image_in_order(photos):
    data = load_data(f"folder:{photos}", image_size=8)
    assert data.classes == ("ant", "bee")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.images[:, 0, 4, 4].tolist() == [0, 1, 2, 100, 101, 102]
    assert data.train.images[:, 2, 4, 4].tolist() == [255, 254, 253, 155, 154, 153]
    assert data.test.images.shape == (4, 3, 8, 8)
    grey = load_data(f"folder:{photos}", image_size=8, channels=1).train.images
    expected = [np.asarray(Image.open(photos / "train" / "bee" / "2.png").convert("L"))[0, 0]]
    assert grey[5:, 0, 4, 4].tolist() == expected


def test_folder_crops_the_centre_of_the_shorter_side(tmp_path):
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 200  # the centre square
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(wide).save(tmp_path / part / "a" / "0.png")
    data = load_data(f"folder:{tmp_path}", image_size=8)
    assert data.train.images.unique().tolist() == [200]


def test_folder_takes_small_square_images_at_their_own_size(tmp_path):
    for part in ("train", "val"):
        picture(tmp_path / part / "a" / "0.png", 5, size=(20, 20))
    assert load_data(f"folder:{tmp_path}").image_size == 20


def test_folder_is_decoded_once_until_a_file_changes(photos, monkeypatch):
    first = load_data(f"folder:{photos}", image_size=8)
    decode = folder._fitted
    monkeypatch.setattr(folder, "_fitted", lambda *_: pytest.fail("decoded twice"))
    assert load_data(f"folder:{photos}", image_size=8).sha256 == first.sha256
    monkeypatch.setattr(folder, "_fitted", decode)
    picture(photos / "train" / "ant" / "0.png", 77, size=(12, 8))
    assert load_data(f"folder:{photos}", image_size=8).train.images[0, 0, 4, 4] == 77


def test_a_broken_cache_is_decoded_again(photos, tmp_path):
    first = load_data(f"folder:{photos}", image_size=8).sha256
    stores = list((tmp_path / "cache" / "decoded").glob("*/images.npy"))
    assert len(stores) == 2
    for store in stores:
        whole = store.read_bytes()
        for damaged in (whole[:150], whole[:-1] + bytes([whole[-1] ^ 1])):
            store.write_bytes(damaged)
            assert load_data(f"folder:{photos}", image_size=8).sha256 == first


def test_folder_works_where_the_cache_cannot_be_written(photos, tmp_path, monkeypatch, caplog):
    first = load_data(f"folder:{photos}", image_size=8)
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("PNNH_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "pnnh"):
        assert load_data(f"folder:{photos}", image_size=8).sha256 == first.sha256
    assert "decoded images are not kept" in caplog.text


def test_broken_images_are_counted_and_named_also_from_the_cache(photos, caplog):
    (photos / "train" / "bee" / "0.png").write_bytes(b"no image")
    whole = (photos / "test" / "ant" / "0.png").read_bytes()
    (photos / "test" / "ant" / "0.png").write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        data = load_data(f"folder:{photos}", image_size=8)
        assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
        assert data.train.images[:, 0, 4, 4].tolist() == [0, 1, 2, 101, 102]
        assert len(data.test) == 3
        left_out = "1 image(s) cannot be read and are left out"
        assert (
            data.to_dict()["notes"]
            == list(data.notes)
            == [
                f"{left_out}: train/bee/0.png (damaged or not an image)",
                f"{left_out}: test/ant/0.png (damaged or not an image)",
            ]
        )
    assert "train/bee/0.png" in caplog.text


def test_a_class_without_readable_images_is_an_error(photos):
    for path in (photos / "test" / "bee").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(RunError, match=r"class 'bee' in .*test has no image that can be read"):
        load_data(f"folder:{photos}", image_size=8)


def test_wrong_layouts_are_one_line_each(photos):
    def complaint():
        with pytest.raises(UsageError) as caught:
            load_data(f"folder:{photos}", image_size=8)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (photos / "test" / "cat").mkdir()
    assert "classes that train has not: cat" in complaint()
    (photos / "train" / "cat").mkdir()
    assert "class 'cat' in" in complaint()
    assert "has no images" in complaint()
    (photos / "test").rename(photos / "elsewhere")
    assert "has no test folder" in complaint()


CIFAR10_FILES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def records(root, names, label_bytes=1, per_file=1):
    """Binary files whose pixels count up; labels are the number of the record."""
    root.mkdir(parents=True)
    for first, name in zip(range(0, per_file * len(names), per_file), names, strict=True):
        numbers = range(first, first + per_file)
        parts = [bytes([99] * (label_bytes - 1) + [n]) + bytes([n]) * 1024 + bytes([7]) * 2048 for n in numbers]
        (root / name).write_bytes(b"".join(parts))


@pytest.fixture
def small(monkeypatch):
    """The published CIFAR sets, as if they had five and two training images."""
    ten = replace(sources.CIFAR10, num_train=5, num_test=1, content="")
    hundred = replace(sources.CIFAR100, num_train=2, num_test=2, content="")
    monkeypatch.setattr(sources, "CIFAR10", ten)
    monkeypatch.setattr(sources, "CIFAR100", hundred)
    return ten


def test_cifar_records_are_labels_then_planes(tmp_path, small):
    records(tmp_path / "cifar-10-batches-bin", CIFAR10_FILES)
    for spec, root in (("cifar10", tmp_path), (f"cifar10:{tmp_path}", None)):
        data = load_data(spec, root=root)
        assert data.train.labels.tolist() == [0, 1, 2, 3, 4]
        assert data.train.images[3, :, 0, 0].tolist() == [3, 7, 7]
        assert (data.test.labels.tolist(), data.classes[5]) == ([5], "dog")
    records(tmp_path / "cifar-100-binary", ["train.bin", "test.bin"], 2, per_file=2)
    fine = load_data("cifar100", root=tmp_path)
    assert fine.train.labels.tolist() == [0, 1]
    assert fine.test.images[1, :, 31, 31].tolist() == [3, 7, 7]
    assert fine.num_classes == 100


def test_a_short_cifar_file_is_an_error(tmp_path, small):
    records(tmp_path / "cifar-10-batches-bin", CIFAR10_FILES)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"data_batch_4.bin is missing or cut short"):
        load_data("cifar10", root=tmp_path)
    path.unlink()
    with pytest.raises(RunError, match=r"data_batch_4.bin is missing or cut short"):
        load_data("cifar10", root=tmp_path)


def test_unpacked_cifar_files_are_hashed(tmp_path, monkeypatch, small):
    records(tmp_path / "cifar-10-batches-bin", CIFAR10_FILES)
    content = sources.content_sha256(sources.known("cifar10", tmp_path, tmp_path))
    monkeypatch.setattr(sources, "CIFAR10", replace(small, content=content))
    assert len(load_data("cifar10", root=tmp_path).train) == 5
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    for place in (0, 77):  # a label, a pixel
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(RunError, match="does not hold the original pixels and labels of cifar10"):
            load_data("cifar10", root=tmp_path)


def test_the_content_of_a_set_is_the_same_in_any_order():
    data = sources.digits(8)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    shuffled = replace(data, train=data.train.take(order))
    assert sources.content_sha256(shuffled) == sources.content_sha256(data)
    labels = data.train.labels.clone()
    labels[:2] = labels[:2].flip(0)
    assert labels.tolist() != data.train.labels.tolist()
    assert sources.content_sha256(replace(data, train=replace(data.train, labels=labels))) != sources.content_sha256(
        data
    )


def test_a_known_set_is_complete_or_refused(tmp_path, small):
    for part, count in (("train", 5), ("test", 1)):
        for number in range(10):
            for i in range(count):
                picture(tmp_path / "cifar10" / part / f"class{number}" / f"image{i}.png", i, size=(32, 32))
    with pytest.raises(RunError, match=r"cifar10 has 50 training images, cifar10 has 5; .* folder:"):
        load_data("cifar10", root=tmp_path)
    for part in ("train", "test"):
        for number in range(5):
            shutil.rmtree(tmp_path / "cifar10" / part / f"class{number}")
    with pytest.raises(RunError, match=r"cifar10 has 5 classes, cifar10 has 10"):
        load_data(f"cifar10:{tmp_path / 'cifar10'}")
    with pytest.raises(UsageError, match=r"no imagenette64 in .*give imagenette64:PATH"):
        load_data("imagenette64", root=tmp_path)
    with pytest.raises(UsageError, match=r"no folder /nowhere"):
        load_data("cifar10:/nowhere")


ORIGINALS = cache_dir()  # before the tests have a cache of their own


@pytest.mark.skipif(not (ORIGINALS / "cifar100" / "train").is_dir(), reason="no CIFAR-100 on this machine")
def test_the_original_cifar100(tmp_path):
    data = load_data("cifar100", root=ORIGINALS)
    assert (len(data.train), len(data.test), data.classes[0]) == (50_000, 10_000, "apple")
    assert data.test.labels.bincount().tolist() == [100] * 100
    published = torch.tensor([129.304166, 124.069963, 112.434050, 68.170243, 65.391808, 70.418370], dtype=torch.float64)
    torch.testing.assert_close(255 * torch.tensor([*data.mean, *data.std], dtype=torch.float64), published)


def test_cifar_archive_from_a_mirror_is_checked_then_read(tmp_path, monkeypatch, small):
    records(tmp_path / "made" / "cifar-10-batches-bin", CIFAR10_FILES)
    archive = tmp_path / "mirror" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "made" / "cifar-10-batches-bin", "cifar-10-batches-bin")
    monkeypatch.setenv("PNNH_MIRROR", archive.parent.as_uri())
    with pytest.raises(RunError, match="is not the published file"):
        load_data("cifar10", root=tmp_path / "root")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(sources, "CIFAR10", replace(small, archive_sha256=digest))
    assert load_data("cifar10", root=tmp_path / "root").train.labels.tolist() == [0, 1, 2, 3, 4]


def test_offline_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("PNNH_MIRROR", (tmp_path / "nowhere").as_uri())
    with pytest.raises(RunError, match=r"cannot download .*cifar-100-binary.tar.gz .*put cifar-100-binary.tar.gz into"):
        load_data("cifar100", root=tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())
    with pytest.raises(RunError, match="use digits, which needs no download"):
        fetch("file:///nowhere", "x", None, tmp_path)


def test_fashion_mnist_is_checked_byte_by_byte(tmp_path, monkeypatch):
    (tmp_path / "fashion-mnist").mkdir()
    (tmp_path / "fashion-mnist" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(RunError, match=r"train-images-idx3-ubyte.gz is not the published file"):
        load_data("fashion-mnist", root=tmp_path)
    (tmp_path / "fashion-mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(RunError, match="is damaged"):
        load_data("fashion-mnist", root=tmp_path)


@pytest.mark.skipif(not sources.DEBIAN_FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian(tmp_path):
    data = load_data("fashion-mnist", root=tmp_path)
    assert (len(data.train), len(data.test), data.image_size) == (60_000, 10_000, 28)
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.mean == pytest.approx((0.2860,), abs=1e-4)  # the values everybody normalises by
    assert data.std == pytest.approx((0.3530,), abs=1e-4)
