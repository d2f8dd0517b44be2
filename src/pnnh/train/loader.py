"""Worker processes that read and decode images ahead of their use, and what may go wrong with them.

An item of an indexed source is (epoch, index): its augmentation follows from these and the seed, so a batch is the same
whoever reads it. Shards are read in an order that follows from (seed, epoch, number of workers and processes).
"""

from __future__ import annotations

import logging
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from pnnh._errors import RunError
from pnnh.train.feed import numbered
from pnnh.train.processes import Alone

UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, Image.DecompressionBombError)
Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # uint8 [N, 3, S, S], labels [N], decoded [N], index [N]
log = logging.getLogger("pnnh")


class Images(TorchDataset):
    """Decodes and transforms image `index` as it is in `epoch`; a black one where that fails."""

    def __init__(self, reader: Any, transform: Any, seed: int) -> None:
        self.reader, self.transform, self.seed = reader, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, bool, int]:
        epoch, index = key
        try:
            file, label, *_ = self.reader[index]
            with file, Image.open(file) as image:
                image = image.convert("RGB")
        except UNDECODABLE:
            black = Image.new("RGB", (8, 8))
            return self.transform(black), 0, False, index
        with drawing_from(numbered(self.seed, f"image {epoch}", index, "cpu").initial_seed()):
            return self.transform(image), int(label), True, index


class Shards(IterableDataset):
    """(image, label) of a reader of shards, transformed."""

    def __init__(self, reader: Any, transform: Any) -> None:
        self.reader, self.transform = reader, transform

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for image, label in self.reader:
            yield self.transform(image), int(label)


def read(images: Images, keys: list[list[tuple[int, int]]]) -> Iterator[Batch]:
    """The batches `keys`, in order. Raises RunError if a worker dies."""
    unused = torch.Generator().manual_seed(0)  # a DataLoader draws from somewhere: not from the model's numbers
    return watched(DataLoader(images, batch_sampler=keys, generator=unused, **_options(num_workers())))


def read_shards(reader: Any, transform: Any, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All batches of `reader`. Raises RunError if a worker dies."""
    workers = min(max(1, num_workers()), len(reader.split_info.filenames))
    reader.set_loader_cfg(num_workers=workers)
    generator = torch.Generator().manual_seed(seed)
    return watched(DataLoader(Shards(reader, transform), batch_size, generator=generator, **_options(workers)))


class IndexedFeed:
    """Training batches of an indexed source; of each batch a process reads its share."""

    def __init__(
        self, split: Any, transform: Any, *, batch_size: int, seed: int, device: torch.device, processes: Alone
    ) -> None:
        self.split, self.batch_size, self.seed, self.device = split, batch_size, seed, device
        self.part, self.steps_per_epoch = processes.share(batch_size), len(split) // batch_size
        self.images = Images(split.reader, transform, seed)
        self._next, self._batches = -1, iter(())

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """uint8 images [n, 3, S, S] and labels [n] of update number `step`, on the device."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if step != self._next or place == 0:
            self._batches = read(self.images, self._keys(epoch)[place:])
        pixels, labels, good, index = next(self._batches)
        self._next = step + 1
        if not good.all():
            self.split.report(index[~good])
            stand_in = int(good.int().argmax())  # a decoded image of the batch takes the place of a broken one
            pixels[~good], labels[~good] = pixels[stand_in].clone(), labels[stand_in].clone()
        return pixels.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _keys(self, epoch: int) -> list[list[tuple[int, int]]]:
        order = torch.randperm(len(self.split), generator=numbered(self.seed, "order", epoch, "cpu")).tolist()
        starts = range(0, self.steps_per_epoch * self.batch_size, self.batch_size)
        return [[(epoch, index) for index in order[start : start + self.batch_size][self.part]] for start in starts]


class ShardedFeed:
    """Training batches of shards. Going on in the middle of an epoch reads its beginning again."""

    def __init__(
        self, split: Any, transform: Any, *, batch_size: int, seed: int, device: torch.device, processes: Alone
    ) -> None:
        self.split, self.transform, self.seed, self.device, self.processes = split, transform, seed, device, processes
        self.share, self.steps_per_epoch = batch_size // processes.size, len(split) // batch_size
        self._next, self._batches = -1, iter(())

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """uint8 images [n, 3, S, S] and labels [n] of update number `step`, on the device."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if step != self._next or place == 0:
            self._batches = self._open(epoch)
            for _ in range(place):
                next(self._batches)
        pixels, labels = next(self._batches)
        self._next = step + 1
        return pixels.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _open(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        reader = self.split.make(training=True, batch_size=self.share, seed=self.seed)
        reader.dist_rank, reader.dist_num_replicas = self.processes.rank, self.processes.size
        reader.set_epoch(epoch)
        own = numbered(self.seed, f"shards {self.processes.rank}", epoch, "cpu").initial_seed()
        return read_shards(reader, self.transform, self.share, own)


def name_of(reader: Any, index: int) -> str:
    try:
        return str(reader.filename(index) or f"image {index}")
    except UNDECODABLE:
        return f"image {index}"


def num_workers() -> int:
    """PNNH_WORKERS, else the machine's cores among its processes, at most 8."""
    asked = os.environ.get("PNNH_WORKERS", "")
    if asked.isdigit():
        return int(asked)
    return max(1, min(8, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def watched(batches: DataLoader) -> Iterator[Any]:
    """The same, with a dead worker reported as what it is."""
    try:
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        hint = "often memory ran out: set PNNH_WORKERS lower; the same command goes on from the last saved state"
        raise RunError(f"a process that reads images died ({str(error).splitlines()[0]}); {hint}") from None


def _options(workers: int) -> dict[str, Any]:
    more = {"worker_init_fn": _deaf, "prefetch_factor": 4} if workers else {}
    return {"num_workers": workers, "pin_memory": torch.cuda.is_available(), **more}


def _deaf(worker: int) -> None:
    """Stopping is for the process that trains to decide."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Inside, everybody's global generators are seeded; afterwards they are as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed), np.random.seed(seed % 2**32), torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0]), np.random.set_state(states[1]), torch.set_rng_state(states[2])
