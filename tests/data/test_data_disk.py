"""Data that stays on disk: every image once, the same batches whoever reads them, and what goes wrong with workers."""

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pnnh._errors import RunError, UsageError
from pnnh.compare import recipe_for
from pnnh.data import disk
from pnnh.train import SGD, Augment, Recipe, ResizedCrop, Stopped, checkpoint, evaluate, load_data, train
from pnnh.train.feed import feed_of
from pnnh.train.processes import Alone

CPU = torch.device("cpu")
WHOLE = ResizedCrop(smallest=1.0, flip=False)


class Part(Alone):
    """What process `rank` of `size` would read."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def picture(number, size=32):
    """A plain colour that tells its number: red 8 x number."""
    pixels = np.full((size, size, 3), 100, np.uint8)
    pixels[..., 0] = 8 * number
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    """12 images to train and 7 to test, of two classes, numbered through."""
    for part, numbers in (("train", range(12)), ("val", range(12, 19))):
        for number in numbers:
            place = tmp_path / "images" / part / ("even", "odd")[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            picture(number).save(place / f"{number:02d}.png")
    return tmp_path / "images"


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    monkeypatch.setenv("PNNH_WORKERS", "0")


def numbers(images):
    return [round(value / 8) for value in images[:, 0, 16, 16].tolist()]


def opened(folder, **choices):
    return load_data(f"imagefolder:{folder}", image_size=32, **choices)


def feed(data, processes=None, batch_size=4, seed=1, augment=WHOLE):
    return feed_of(data, Recipe(1, batch_size, augment=augment), seed, CPU, processes or Alone())


def test_an_epoch_has_every_image_once_with_its_label(folder):
    data = opened(folder)
    assert (len(data.train), len(data.test), data.classes, data.channels) == (12, 7, ("even", "odd"), 3)
    batches = feed(data)
    epochs = []
    for epoch in range(2):
        seen = [batches.batch(3 * epoch + place) for place in range(3)]
        epochs.append([number for images, _ in seen for number in numbers(images)])
        for images, labels in seen:
            assert [number % 2 for number in numbers(images)] == labels.tolist()
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]


def test_a_batch_is_the_same_from_any_place_worker_and_process(folder, monkeypatch):
    data, crops = opened(folder), ResizedCrop(policy="rand-m7-mstd0.5")
    in_order = feed(data, augment=crops)
    expected = [in_order.batch(step)[0] for step in range(4)]
    torch.rand(1), np.random.rand()
    before = torch.get_rng_state()
    assert torch.equal(feed(data, augment=crops).batch(2)[0], expected[2])
    assert torch.equal(torch.get_rng_state(), before)  # the model's own draws are left alone
    monkeypatch.setenv("PNNH_WORKERS", "2")
    again = feed(data, augment=crops)
    assert all(torch.equal(again.batch(step)[0], expected[step]) for step in range(4))
    monkeypatch.setenv("PNNH_WORKERS", "0")
    halves = [feed(data, Part(rank, 2), augment=crops).batch(1)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), expected[1])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_share_the_test_images(folder, size):
    data = opened(folder)
    parts = [data.test.batches(2, rank, size) for rank in range(size)]
    assert sorted(n for part in parts for images, _ in part for n in numbers(images)) == list(range(12, 19))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Dropout(0.1), nn.Linear(48, 2))


def test_training_on_disk_goes_on_bitwise(folder, tmp_path):
    data = opened(folder)
    recipe = recipe_for(data, epochs=2, batch_size=4, optimizer=SGD(lr=0.01))
    assert recipe.augment == ResizedCrop()
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    whole, second = net(), net()
    events = list(train(whole, data, recipe, device="cpu"))
    asked = iter([False, True])
    with pytest.raises(Stopped):
        list(train(net(), data, recipe, device="cpu", out=tmp_path / "out", stop=lambda: next(asked)))
    again = list(train(second, data, recipe, device="cpu", out=tmp_path / "out"))
    assert torch.equal(whole[3].weight, second[3].weight)
    assert [e.loss for e in again] == [e.loss for e in events]
    assert checkpoint.load(tmp_path / "out").record["data"]["num_test"] == 7
    assert data.sha256 == opened(folder).sha256 != load_data(f"imagefolder:{folder}", image_size=64).sha256


def test_broken_images_are_left_out_counted_and_named(folder, tmp_path, caplog):
    for name in ("train/even/04.png", "val/odd/13.png"):
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    data = opened(folder)
    images, labels = zip(*[feed(data).batch(step) for step in range(3)], strict=True)
    assert set(numbers(torch.cat(images))) == set(range(12)) - {4}
    assert len(torch.cat(labels)) == 12
    assert all(n % 2 == label for n, label in zip(numbers(torch.cat(images)), torch.cat(labels).tolist(), strict=True))
    assert evaluate(net(), data).num_images == 6
    assert data.to_dict()["notes"] == [
        "1 image(s) of train cannot be read: even/04.png",
        "1 image(s) of val cannot be read: odd/13.png",
    ]
    assert caplog.text.count("cannot be read, left out: even/04.png") == 1


def test_a_dead_worker_is_reported(folder, monkeypatch):
    from torch.utils.data import DataLoader

    monkeypatch.setenv("PNNH_WORKERS", "1")

    class Kills(DataLoader):
        def __iter__(self):
            batches = super().__iter__()
            os.kill(batches._workers[0].pid, signal.SIGKILL)
            return batches

    class Slow(disk.Decoder):
        def __getitem__(self, key):
            signal.pause()

    monkeypatch.setattr(disk, "DataLoader", Kills)
    with pytest.raises(RunError, match=r"a process that reads images died \(DataLoader worker .*PNNH_WORKERS lower"):
        next(disk.read(Slow(None, None, 0), [[(0, 0)]]))


def test_other_errors_of_a_worker_pass():
    def broken():
        raise RuntimeError("something else")
        yield

    with pytest.raises(RuntimeError, match="something else"):
        list(disk.watched(broken()))


@pytest.mark.parametrize(
    ("spec", "choices", "message"),
    [
        ("imagefolder:", {}, "needs a path"),
        ("imagefolder:/nowhere", {}, r"no folder /nowhere; a folder needs train/CLASS/\*.jpg"),
        ("imagefolder:{}", {"channels": 1}, "gives 3 channels"),
        ("imagefolder:{}", {"limit": 1}, "limit 1 must be between 2"),
    ],
)
def test_requests_that_cannot_be_met(folder, spec, choices, message):
    with pytest.raises(UsageError, match=message):
        load_data(spec.format(folder), **choices)


def test_augmentation_belongs_to_the_kind_of_data(folder):
    data = opened(folder)
    with pytest.raises(UsageError, match="is on disk and takes ResizedCrop, not Augment"):
        train(net(), data, Recipe(1, 4, augment=Augment()), device="cpu")
    digits, model = load_data("digits", image_size=8), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UsageError, match="is in memory and takes Augment, not ResizedCrop"):
        train(model, digits, Recipe(1, 64, augment=ResizedCrop()), device="cpu")
    (folder / "val" / "new").mkdir()
    with pytest.raises(UsageError, match="classes that train has not: new"):
        opened(folder)
