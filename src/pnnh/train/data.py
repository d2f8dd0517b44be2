"""Image data sets as two uint8 tensors and their labels. Legend: N images, C channels, H = W pixels."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pnnh._errors import UsageError
from pnnh.train.augment import Augment

if TYPE_CHECKING:
    from pnnh.train.feed import Feed
    from pnnh.train.processes import Alone
    from pnnh.train.recipe import Recipe


STREAMED = ("imagefolder", "hfds", "wds")


@dataclass(frozen=True, eq=False)
class Split:
    """images: uint8 [N, C, H, W]; labels: int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split(images={tuple(self.images.shape)}, labels={len(self)})"

    def batches(self, batch_size: int, processes: Alone) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in batches; with several processes, each has every n-th image."""
        mine = slice(processes.rank, None, processes.size)
        return zip(self.images[mine].split(batch_size), self.labels[mine].split(batch_size), strict=True)

    def take(self, index: Tensor) -> Split:
        return Split(self.images[index], self.labels[index])

    def stratified(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Indices of `count` images with the classes in their shares, and of the rest; both sorted, given by `seed`."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        by_class = order[self.labels[order].argsort(stable=True)]
        sizes = self.labels.bincount()
        rank = torch.arange(len(self)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # within the class
        place = torch.empty(len(self), dtype=torch.float64)
        place[by_class] = (rank + 0.5).double() / sizes.repeat_interleave(sizes)
        chosen = place.argsort(stable=True)
        return chosen[:count].sort().values, chosen[count:].sort().values


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    mean, std: per channel over the train images, in units of 1 (pixel 255 is 1.0).
    flip: a mirrored image is still one of its class.
    notes: what the reader should know, e.g. images left out because they could not be decoded.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True
    notes: tuple[str, ...] = field(default=())

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        return self.train.images.shape[-1]

    @cached_property
    def sha256(self) -> str:
        """Hash of the images and labels as they are trained on and tested."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            digest.update(repr(tuple(split.images.shape)).encode())
            for chunk in (*split.images.split(4096), split.labels):
                digest.update(chunk.contiguous().numpy())
        return digest.hexdigest()

    def limit(self, count: int, seed: int = 0) -> Dataset:
        """The same data with `count` training images, stratified: for quick rankings."""
        if not self.num_classes <= count <= len(self.train):
            rule = f"between {self.num_classes} (one a class) and {len(self.train)} (all)"
            raise UsageError(f"limit {count} must be {rule} for {self.name}")
        return replace(self, train=self.train.take(self.train.stratified(count, seed)[0]))

    def split(self, fraction: float, seed: int = 0) -> Dataset:
        """Hold out `fraction` of train as `test`: tune on this and leave the real test images alone."""
        if not 0 < fraction < 1:
            raise UsageError(f"fraction {fraction} must be between 0 and 1, e.g. 0.1")
        held, kept = self.train.stratified(round(fraction * len(self.train)), seed)
        name = f"{self.name} (tuning split {fraction:g})"
        return replace(self, name=name, train=self.train.take(kept), test=self.train.take(held))

    def feed(self, recipe: Recipe, seed: int, device: torch.device, processes: Alone) -> Feed:
        """The batches that `recipe` asks for."""
        from pnnh.train.feed import Feed

        if not isinstance(recipe.augment, Augment):
            raise UsageError(f"{self.name} is in memory and takes Augment, not {type(recipe.augment).__name__}")
        choices = {"batch_size": recipe.batch_size, "seed": seed, "device": device, "processes": processes}
        return Feed(self.train.images, self.train.labels, recipe.augment, **choices)

    def to_dict(self) -> dict:
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
    """What a reader returns: a data set before its pixels are counted, at its own size and channels."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    flip: bool = True
    notes: tuple[str, ...] = ()


def cache_dir() -> Path:
    """Where data is looked for and kept: PNNH_CACHE, else ~/.cache/pnnh."""
    return Path(os.environ.get("PNNH_CACHE") or "~/.cache/pnnh").expanduser()


def load_data(
    spec: str,
    *,
    root: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
) -> Dataset:
    """Read `digits`, `cifar10`, `cifar100`, `fashion-mnist` or `folder:PATH` into memory.

    `imagefolder:PATH`, `hfds:NAME` and `wds:PATH` stay on disk and are decoded as they are needed.

    root: directory searched first (default: PNNH_CACHE or ~/.cache/pnnh).
    image_size: pixels a side; default the data's own (digits: 16, up from 8).
    channels: 1 (luminance) or 3 (grey repeated); default the data's own (folder: 3).
    limit: use only so many training images, stratified.
    Raises UsageError for a request that cannot be meant, RunError for data that cannot be read.
    """
    if image_size is not None and image_size < 8:
        raise UsageError(f"image size {image_size} must be at least 8 pixels")
    if channels not in (None, 1, 3):
        raise UsageError(f"channels {channels} must be 1 or 3")
    kind, _, path = spec.partition(":")
    if kind in STREAMED:
        return _streamed(kind, path, image_size, channels, limit)
    source = _read(spec, Path(root) if root else cache_dir(), image_size, channels)
    train, test = (_shaped(split, image_size, channels) for split in (source.train, source.test))
    mean, std = pixel_statistics(train.images)
    data = Dataset(source.name, source.classes, train, test, mean, std, source.flip, source.notes)
    return data if limit is None else data.limit(limit)


def _streamed(kind: str, path: str, image_size: int | None, channels: int | None, limit: int | None) -> Dataset:
    from pnnh.train.stream import open_stream

    if not path:
        raise UsageError(f"{kind}: needs a path or name after the colon")
    if channels == 1:
        raise UsageError(f"{kind}: gives 3 channels; for 1 use folder:PATH")
    data = open_stream(kind, path, image_size)
    return data if limit is None else data.limit(limit)


def _read(spec: str, root: Path, image_size: int | None, channels: int | None) -> Source:
    kind, colon, path = spec.partition(":")
    if kind == "folder":
        if not path:
            raise UsageError("folder: needs a path, e.g. folder:photos (with train/CLASS/*.jpg and test/CLASS/*.jpg)")
        from pnnh.train.folder import read_folder

        return read_folder(Path(path).expanduser(), image_size=image_size, channels=channels or 3)
    from pnnh.train import sources

    readers: dict[str, Callable[[Path, int | None], Source]] = {
        "digits": sources.digits,
        "cifar10": sources.cifar10,
        "cifar100": sources.cifar100,
        "fashion-mnist": sources.fashion_mnist,
    }
    if colon or kind not in readers:
        near = difflib.get_close_matches(kind, readers, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UsageError(
            f"unknown data {spec!r}{hint}; use {', '.join(readers)}, folder:PATH, or {', '.join(STREAMED)} and a path"
        )
    return readers[kind](root, image_size)


def _shaped(split: Split, image_size: int | None, channels: int | None) -> Split:
    """Resize (antialiased bilinear) and change channels where asked; otherwise the same tensors."""
    images = split.images
    if channels == 3 and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    elif channels == 1 and images.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601 luma, as Pillow's "L"
        parts = [torch.einsum("nchw,c->nhw", part.float(), weights) for part in images.split(4096)]
        images = torch.cat(parts).round().to(torch.uint8)[:, None]
    if image_size is not None and images.shape[-2:] != (image_size, image_size):
        images = resize(images, image_size)
    return Split(images.contiguous(), split.labels)


def resize(images: Tensor, image_size: int) -> Tensor:
    """uint8 [N, C, H, W] -> uint8 [N, C, image_size, image_size]."""
    parts = (
        torch.nn.functional.interpolate(
            part.float(), size=(image_size, image_size), mode="bilinear", antialias=True, align_corners=False
        )
        for part in images.split(4096)
    )
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact mean and standard deviation per channel of uint8 [N, C, H, W], in units of 255."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for part in images.split(4096):
        for channel in range(images.shape[1]):
            counts[channel] += torch.bincount(part[:, channel].reshape(-1), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(dim=1, keepdim=True)
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(dim=1)
    return tuple(mean.tolist()), tuple(variance.sqrt().clamp(min=1 / 255).tolist())
