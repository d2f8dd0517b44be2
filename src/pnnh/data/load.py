"""The front door of the data: `load_data` reads a named data set or a folder of images."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import torch
from torch import Tensor

from pnnh._errors import UsageError
from pnnh.data import sources
from pnnh.data.disk import open_folder
from pnnh.data.folder import read_folder
from pnnh.data.types import Dataset, Source, Split, cache_dir, resize

NAMES = ("digits", "cifar10", "cifar100", "fashion-mnist", "imagenette64")
LAYOUT = "with train/CLASS/*.jpg and test/CLASS/*.jpg"


def load_data(
    spec: str,
    *,
    root: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    held_out: int | None = None,
) -> Dataset:
    """Read `digits`, `cifar10`, `cifar100`, `fashion-mnist`, `imagenette64` or `folder:PATH` into memory.

    `cifar10:PATH` (and cifar100, imagenette64) reads the set from a folder in its original files, class folders or
    strips. The images of `imagefolder:PATH` stay on disk and are decoded as they are needed.

    root: directory searched first (default: PNNH_CACHE or ~/.cache/pnnh).
    image_size: pixels a side; default the data's own (digits: 16, up from 8).
    channels: 1 (luminance) or 3 (grey repeated); default the data's own (folder: 3).
    held_out: test on so many of the training images, stratified, and leave the test images alone.
    limit: train on so many images only, stratified.
    Raises UsageError for a request that cannot be meant, RunError for data that cannot be read.
    """
    if image_size is not None and image_size < 8:
        raise UsageError(f"image size {image_size} must be at least 8 pixels")
    if channels not in (None, 1, 3):
        raise UsageError(f"channels {channels} must be 1 or 3")
    kind, colon, path = spec.partition(":")
    if colon and not path:
        raise UsageError(f"{kind}: needs a path, e.g. {kind}:photos ({LAYOUT})")
    here = Path(path).expanduser() if path else None
    if kind == "imagefolder" and here:
        data = open_folder(here, image_size=image_size, channels=channels)
    else:
        source = _read(spec, kind, here, Path(root) if root else cache_dir(), image_size, channels)
        data = counted(source, image_size, channels)
    data = data if held_out is None else data.hold_out(held_out)
    return data if limit is None else data.limit(limit)


def _read(spec: str, kind: str, path: Path | None, root: Path, image_size: int | None, channels: int | None) -> Source:
    match kind:
        case "folder" if path:
            return read_folder(path, image_size=image_size, channels=channels or 3)
        case "cifar10" | "cifar100" | "imagenette64":
            return sources.known(kind, path, root)
        case "fashion-mnist" if path is None:
            return sources.fashion_mnist(root)
        case "digits" if path is None:
            return sources.digits(image_size or 16)
    near = difflib.get_close_matches(kind, NAMES, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UsageError(f"unknown data {spec!r}{hint}; use {', '.join(NAMES)}, folder:PATH or imagefolder:PATH")


def counted(source: Source, image_size: int | None = None, channels: int | None = None) -> Dataset:
    """`source` at the size and with the channels asked for, with its pixel statistics."""
    train, test = (_shaped(split, image_size, channels) for split in (source.train, source.test))
    mean, std = pixel_statistics(train.images)
    return Dataset(source.name, source.classes, train, test, mean, std, source.flip, source.about)


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
    return Split(images.contiguous(), split.labels, split.notes)


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact mean and standard deviation per channel of uint8 [N, C, S, S], in units of 255."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for part in images.split(4096):
        for channel in range(images.shape[1]):
            counts[channel] += torch.bincount(part[:, channel].reshape(-1), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(dim=1, keepdim=True)
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(dim=1)
    return tuple(mean.tolist()), tuple(variance.sqrt().clamp(min=1 / 255).tolist())
