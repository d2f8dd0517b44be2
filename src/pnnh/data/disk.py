"""Large class folders whose images stay on disk and are decoded by worker processes as they are needed.

An item is asked for as (epoch, index): its augmentation follows from these and the seed, so a batch is the same
whatever the number of workers and processes.
"""

from __future__ import annotations

import logging
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pnnh._errors import RunError, UsageError
from pnnh.data import pictures, strips
from pnnh.data.augment import numbered
from pnnh.data.folder import layout_notes, listings
from pnnh.data.types import Dataset

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Transform = Callable[[Any], Tensor]
Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # uint8 [n, 3, S, S], labels [n], decoded [n], index [n]
_log = logging.getLogger("pnnh")


def open_folder(path: Path, *, image_size: int | None = None, channels: int | None = None) -> Dataset:
    """The images of PATH/train/CLASS/* and PATH/test/CLASS/* (or val/), of `image_size` (default 224) pixels."""
    if channels == 1:
        raise UsageError("imagefolder: gives 3 channels; for 1 use folder:PATH")
    classes, *parts = listings(path)
    if strips.tile_of(parts[0].root, parts[0].files, parts[0].labels):
        raise UsageError(f"{path} holds strips, many images in a file; read them with folder:{path}")
    train, test = (
        Files(part.root, part.files, torch.tensor(part.labels), image_size or 224, part.notes) for part in parts
    )
    name = f"imagefolder:{pictures.shown(path.name)}"
    return Dataset(name, classes, train, test, IMAGENET_MEAN, IMAGENET_STD, about=layout_notes(path, classes))


@dataclass(frozen=True, eq=False)
class Files:
    """Image files below `root` with labels int64 [N]; three channels. `broken` collects those that cannot be read."""

    root: Path
    files: tuple[str, ...]
    labels: Tensor
    image_size: int
    listed: tuple[str, ...] = ()
    broken: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.image_size, self.image_size

    @property
    def notes(self) -> tuple[str, ...]:
        names = sorted(self.broken)
        text = f"{len(names)} image(s) of {self.root.name} cannot be read: {pictures.some(names)}"
        return (*self.listed, *([text] if names else []))

    def take(self, index: Tensor) -> Files:
        return replace(self, files=tuple(self.files[i] for i in index.tolist()), labels=self.labels[index])

    def pixels(self, index: Tensor) -> Tensor:
        parts = [pixels for pixels, _ in self.take(index).batches(256)]
        return torch.cat(parts) if parts else torch.zeros(0, *self.shape, dtype=torch.uint8)

    def batches(self, batch_size: int, rank: int = 0, size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Images scaled and cropped to their centre; those that cannot be read are left out."""
        keys = [(0, index) for index in range(rank, len(self), size)]
        decoder = Decoder(self, evaluation_transform(self.image_size), seed=0)
        parts = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
        for pixels, labels, good, index in read(decoder, parts):
            self.report(index[~good])
            if good.any():
                yield pixels[good], labels[good]

    def report(self, indices: Tensor) -> None:
        """Note that the images at `indices` cannot be read."""
        for file in {self.files[index] for index in indices.tolist()} - self.broken:
            self.broken.add(file)
            _log.warning("cannot be read, left out: %s", pictures.shown(file))

    def content(self) -> Iterator[bytes]:
        yield f"{self.image_size} {len(self)}\n".encode()
        for file, label in zip(self.files, self.labels.tolist(), strict=True):
            yield os.fsencode(f"{file} {label}\n")


class Decoder(TorchDataset):
    """Decodes and transforms image `index` as it is in `epoch`; a black one where that fails."""

    def __init__(self, files: Files, transform: Transform, seed: int) -> None:
        self.files, self.transform, self.seed = files, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, bool, int]:
        epoch, index = key
        try:
            with pictures.silently():
                image, _ = pictures.load(self.files.root / self.files.files[index], "RGB")
        except pictures.Unreadable:
            return self.transform(Image.new("RGB", (8, 8))), 0, False, index
        with drawing_from(numbered(self.seed, f"image {epoch}", index, "cpu").initial_seed()):
            return self.transform(image), int(self.files.labels[index]), True, index


def evaluation_transform(image_size: int) -> Transform:
    """PIL image -> uint8 [3, S, S]: the shorter side to image_size / 0.95, the centre cut out."""
    from timm.data import create_transform

    return create_transform((3, image_size, image_size), interpolation="bicubic", crop_pct=0.95, normalize=False)


def read(decoder: Decoder, keys: list[list[tuple[int, int]]]) -> Iterator[Batch]:
    """The batches `keys`, in order, decoded by worker processes. Raises RunError if one of them dies."""
    workers = num_workers()
    more = {"worker_init_fn": _ignore_signals, "prefetch_factor": 4} if workers else {}
    unused = torch.Generator().manual_seed(0)  # a DataLoader draws a number: not from the model's generator
    choices = {"num_workers": workers, "pin_memory": torch.cuda.is_available(), "generator": unused, **more}
    return watched(DataLoader(decoder, batch_sampler=keys, **choices))


def num_workers() -> int:
    """PNNH_WORKERS, else the machine's cores among its processes, at most 8."""
    asked = os.environ.get("PNNH_WORKERS", "")
    if asked.isdigit():
        return int(asked)
    return max(1, min(8, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def watched(batches: DataLoader) -> Iterator[Any]:
    """The same batches; a worker that died is a RunError."""
    try:
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        hint = "often memory ran out: set PNNH_WORKERS lower; the same command goes on from the last saved state"
        raise RunError(f"a process that reads images died ({str(error).splitlines()[0]}); {hint}") from None


def _ignore_signals(worker: int) -> None:
    """The training process decides when to stop; a worker ignores the signals."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Inside, the global generators of random, numpy and torch are seeded; afterwards they are as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed), np.random.seed(seed % 2**32), torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0]), np.random.set_state(states[1]), torch.set_rng_state(states[2])
