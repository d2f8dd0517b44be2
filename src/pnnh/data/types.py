"""What an image data set is: two splits of images with labels. Legend: N images, C channels, S x S pixels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from pnnh._errors import UsageError


class Images(Protocol):
    """Images with labels, whether they lie in memory (`Split`) or are decoded from disk (`pnnh.data.disk.Files`)."""

    @property
    def labels(self) -> Tensor: ...  # int64 [N]

    @property
    def shape(self) -> tuple[int, int, int]: ...  # (C, S, S) of one image

    @property
    def notes(self) -> tuple[str, ...]: ...  # what a record must say, e.g. which images cannot be read

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Self:
        """The images at the positions `index`, in that order."""
        ...

    def pixels(self, index: Tensor) -> Tensor:
        """The images at the positions `index` as uint8 [n, C, S, S]."""
        ...

    def batches(self, batch_size: int, rank: int = 0, size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """(uint8 images, labels) of every `size`-th image from number `rank` on, once and in order."""
        ...

    def content(self) -> Iterator[Any]:
        """Bytes that differ between splits of different images or labels; `Dataset.sha256` hashes them."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """Images in memory. images: uint8 [N, C, S, S]; labels: int64 [N]."""

    images: Tensor
    labels: Tensor
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split(images={tuple(self.images.shape)}, labels={len(self)})"

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, index: Tensor) -> Split:
        return replace(self, images=self.images[index], labels=self.labels[index])

    def pixels(self, index: Tensor) -> Tensor:
        return self.images[index]

    def batches(self, batch_size: int, rank: int = 0, size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        part = slice(rank, None, size)
        return zip(self.images[part].split(batch_size), self.labels[part].split(batch_size), strict=True)

    def content(self) -> Iterator[Any]:
        yield repr(tuple(self.images.shape)).encode()
        for chunk in (*self.images.split(4096), self.labels):
            yield chunk.contiguous().numpy()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set to train and test on.

    mean, std: per channel, in units of 1 (pixel 255 is 1.0).
    flip: a mirrored image is still one of its class.
    about: what a record must say about the data as a whole; `notes` adds what it must say of the splits.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True
    about: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.about, *self.train.notes, *self.test.notes)))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return self.train.shape[0]

    @property
    def image_size(self) -> int:
        return self.train.shape[-1]

    @cached_property
    def sha256(self) -> str:
        """Hash of both splits: pixels and labels in memory; names, labels and image size of files on disk."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for chunk in split.content():
                digest.update(chunk)
        return digest.hexdigest()

    def limit(self, count: int, seed: int = 0) -> Dataset:
        """The same data with `count` training images, the classes in their shares: for quick rankings."""
        if not self.num_classes <= count <= len(self.train):
            rule = f"between {self.num_classes} (one a class) and {len(self.train)} (all)"
            raise UsageError(f"limit {count} must be {rule} for {self.name}")
        return replace(self, train=self.train.take(stratified(self.train.labels, count, seed)[0]))

    def hold_out(self, count: int, seed: int = 0) -> Dataset:
        """Take `count` images out of `train` and test on them instead: for tuning, so that `test` stays unseen."""
        most = len(self.train) - self.num_classes
        if not self.num_classes <= count <= most:
            rule = f"between {self.num_classes} (one a class) and {most} (one a class left to train on)"
            raise UsageError(f"held_out {count} must be {rule} for {self.name}")
        held, kept = stratified(self.train.labels, count, seed)
        name = f"{self.name} ({count} training images held out)"
        return replace(self, name=name, train=self.train.take(kept), test=self.train.take(held))

    def to_dict(self) -> dict[str, Any]:
        """What a record says about the data."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "num_train": len(self.train),
            "num_test": len(self.test),
            "num_classes": self.num_classes,
            "channels": self.channels,
            "image_size": self.image_size,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, eq=False)
class Source:
    """What a reader returns: images in memory at their own size and channels, not yet counted."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    flip: bool = True
    about: tuple[str, ...] = ()


def cache_dir() -> Path:
    """Where data is looked for and kept: PNNH_CACHE, else ~/.cache/pnnh."""
    return Path(os.environ.get("PNNH_CACHE") or "~/.cache/pnnh").expanduser()


def stratified(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of `count` images with the classes in their shares, and of the rest; both sorted, given by `seed`."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = order[labels[order].argsort(stable=True)]
    sizes = labels.bincount()
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # within the class
    share = torch.empty(len(labels), dtype=torch.float64)
    share[by_class] = (rank + 0.5).double() / sizes.repeat_interleave(sizes)
    ranking = share.argsort(stable=True)
    return ranking[:count].sort().values, ranking[count:].sort().values


def resize(images: Tensor, image_size: int) -> Tensor:
    """uint8 [N, C, H, W] -> uint8 [N, C, image_size, image_size], antialiased bilinear."""
    parts = (
        torch.nn.functional.interpolate(
            part.float(), size=(image_size, image_size), mode="bilinear", antialias=True, align_corners=False
        )
        for part in images.split(4096)
    )
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])
