"""Class folders of images, decoded once into one uint8 array that is kept in the cache.

PATH/train/CLASS/* and PATH/test/CLASS/* (or val/). The cache's key is the listing (names, sizes, times of change),
so a changed folder is decoded again; where the cache cannot be written the array stays in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pnnh._errors import RunError, UsageError
from pnnh.data.types import Source, Split, cache_dir

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
LAYOUT = "a folder needs train/CLASS/*.jpg and test/CLASS/*.jpg"
HELD_OUT = ("test", "val", "valid", "validation")  # the first of these that exists is tested on
_log = logging.getLogger("pnnh")


@dataclass(frozen=True)
class Listing:
    """The image files of one split, class by class; `key` changes when a file does."""

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...]
    key: str


def read_folder(path: Path, *, image_size: int | None = None, channels: int = 3, name: str | None = None) -> Source:
    """Decode (or take from the cache) both splits, scaled to the shorter side and cropped to the centre.

    image_size: default the first image's own if it is square and at most 64 px, else 224.
    Images that cannot be decoded are left out, counted and named. Raises UsageError for a wrong layout or an empty
    class, RunError if a class has no image that can be decoded.
    """
    classes, *parts = listings(path)
    size = image_size or _own_size(parts[0])
    splits, broken = [], []
    for listing in parts:
        images, labels, names = _cached(listing, size, channels)
        if missing := set(range(len(classes))) - set(labels.tolist()):
            raise RunError(f"class {classes[min(missing)]!r} in {listing.root} has no image that can be decoded")
        splits.append(Split(images, labels))
        broken += [f"{listing.root.name}/{file}" for file in names]
    notes = ()
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        notes = (f"{len(broken)} image(s) could not be decoded and are left out: {', '.join(broken[:5])}{more}",)
        _log.warning("%s: %s", path, notes[0])
    return Source(name or f"folder:{path.name}", tuple(classes), *splits, notes=notes)


def listings(path: Path) -> tuple[tuple[str, ...], Listing, Listing]:
    """The classes of a folder and the files of its training and held-out images. Raises UsageError."""
    if not path.is_dir():
        raise UsageError(f"no folder {path}; {LAYOUT}")
    classes = _subfolders(path / "train")
    held_out = next((path / part for part in HELD_OUT if (path / part).is_dir()), None)
    if held_out is None:
        raise UsageError(f"{path} has no test folder; {LAYOUT}")
    if unknown := sorted(set(_subfolders(held_out)) - set(classes)):
        raise UsageError(f"{held_out} has classes that train has not: {', '.join(unknown[:5])}")
    return tuple(classes), _list(path / "train", classes), _list(held_out, classes)


def _subfolders(path: Path) -> list[str]:
    if not path.is_dir():
        raise UsageError(f"no folder {path}; {LAYOUT}")
    found = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise UsageError(f"{path} has no class folders; {LAYOUT}")
    return found


def _list(root: Path, classes: list[str]) -> Listing:
    files, labels, digest = [], [], hashlib.sha256(f"pnnh 1 {root.resolve()}".encode())
    for label, name in enumerate(classes):
        if not (root / name).is_dir():
            raise UsageError(f"{root} has no class {name!r}, but train has; {LAYOUT}")
        before = len(files)
        for entry in sorted(os.scandir(root / name), key=lambda entry: entry.name):
            if Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file():
                stat = entry.stat()
                files.append(f"{name}/{entry.name}")
                labels.append(label)
                digest.update(f"{files[-1]}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        if len(files) == before:
            raise UsageError(f"class {name!r} in {root} has no images; add some or remove the folder")
    return Listing(root, tuple(files), tuple(labels), digest.hexdigest())


def _own_size(listing: Listing) -> int:
    for file in listing.files[:100]:
        try:
            with Image.open(listing.root / file) as image:
                width, height = image.size
        except UNDECODABLE:
            continue
        return width if width == height and 8 <= width <= 64 else 224
    return 224


UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, Image.DecompressionBombError)


def _decode(path: Path, size: int, mode: str) -> np.ndarray | None:
    """uint8 [size, size] or [size, size, 3]; None if the file is not an image Pillow can read."""
    try:
        with Image.open(path) as image:
            image.draft(mode, (2 * size, 2 * size))  # JPEG: decode at a half, a quarter ... when that is enough
            image = image.convert(mode)
            scale = size / min(image.size)
            if scale != 1:
                target = tuple(max(size, round(side * scale)) for side in image.size)
                image = image.resize(target, Image.Resampling.BILINEAR)  # antialiased
            left, top = ((side - size) // 2 for side in image.size)
            return np.asarray(image.crop((left, top, left + size, top + size)))
    except PermissionError:
        raise
    except UNDECODABLE:
        return None


def _decoded(listing: Listing, size: int, channels: int) -> Iterator[np.ndarray | None]:
    mode = "RGB" if channels == 3 else "L"
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        yield from pool.map(lambda file: _decode(listing.root / file, size, mode), listing.files)


def _fill(array: np.ndarray, listing: Listing, size: int, channels: int) -> tuple[list[int], list[str]]:
    """Write what decodes to the front of `array` [N, C, size, size]. Returns its labels and the files that do not."""
    labels, broken = [], []
    for file, label, image in zip(listing.files, listing.labels, _decoded(listing, size, channels), strict=True):
        if image is None:
            broken.append(file)
            continue
        array[len(labels)] = image.reshape(size, size, channels).transpose(2, 0, 1)
        labels.append(label)
    return labels, broken


def _cached(listing: Listing, size: int, channels: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """(images, labels, names of the broken files), from the cache if the listing is known there."""
    place = cache_dir() / "decoded" / f"{listing.key[:32]}-{size}-{channels}"
    shape = (len(listing.files), channels, size, size)
    try:
        return _open(place)
    except (OSError, ValueError, KeyError):
        shutil.rmtree(place, ignore_errors=True)
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        array = _reserve(partial / "images.npy", shape)
    except OSError as error:
        _log.warning("decoded images are not kept: %s", error)
        array, partial = np.empty(shape, np.uint8), None
    try:
        labels, broken = _fill(array, listing, size, channels)
        if partial is None:
            return torch.from_numpy(array[: len(labels)]), torch.tensor(labels), broken
        array.flush()
        (partial / "index.json").write_text(json.dumps({"labels": labels, "broken": broken}))
        if not place.exists():
            partial.rename(place)
            partial = place
        return _open(partial)
    finally:
        if partial not in (None, place):
            shutil.rmtree(partial, ignore_errors=True)


def _open(place: Path) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """A decoded split, mapped from disk: pages are read when used, so it need not fit in memory."""
    index = json.loads((place / "index.json").read_text())
    array = np.load(place / "images.npy", mmap_mode="c", allow_pickle=False)
    return torch.from_numpy(array[: len(index["labels"])]), torch.tensor(index["labels"]), index["broken"]


def _reserve(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A writable array on disk whose blocks are allocated now: a full disk is an OSError here, not a crash later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
