"""Class folders of images, decoded once into one uint8 array that is kept in the cache.

PATH/train/CLASS/* and PATH/test/CLASS/* (or val/). A file is one image, or a strip: a column of square images. The
cache's key is the listing (names, sizes, times of change), so a changed folder is decoded again; a kept array whose
bytes have changed is decoded again too. Where the cache cannot be written the array stays in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pnnh._errors import RunError, UsageError
from pnnh._files import sha256_file
from pnnh.data import pictures, strips
from pnnh.data.types import Source, Split, cache_dir

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
    notes: tuple[str, ...] = ()


def listings(path: Path) -> tuple[tuple[str, ...], Listing, Listing]:
    """The classes of a folder and the files of its training and held-out images. Raises UsageError."""
    if not path.is_dir():
        raise UsageError(f"no folder {path}; {LAYOUT}")
    classes = _subfolders(path / "train")
    held_out = next((path / part for part in HELD_OUT if (path / part).is_dir()), None)
    if held_out is None:
        raise UsageError(f"{path} has no test folder; {LAYOUT}")
    if unknown := sorted(set(_subfolders(held_out)) - set(classes)):
        raise UsageError(f"{held_out} has classes that train has not: {pictures.some(unknown)}")
    parts = _list(path / "train", classes), _list(held_out, classes)
    return tuple(map(pictures.shown, classes)), *parts


def layout_notes(path: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """What is odd about a folder as a whole: one class only, several held-out folders."""
    parts = [part for part in HELD_OUT if (path / part).is_dir()]
    unused = f"tested on {parts[0]}/; {', '.join(parts[1:])} is not read"
    one = f"{classes[0]!r} is the only class: there is nothing to tell apart"
    return (*([one] if len(classes) == 1 else []), *([unused] if len(parts) > 1 else []))


def _subfolders(path: Path) -> list[str]:
    if not path.is_dir():
        raise UsageError(f"no folder {path}; {LAYOUT}")
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UsageError(f"{path} has no class folders; {LAYOUT}")
    return names


def _list(root: Path, classes: list[str]) -> Listing:
    files, labels, others = [], [], Counter()
    digest = hashlib.sha256(b"pnnh 2 " + os.fsencode(root.resolve()))
    for label, name in enumerate(classes):
        if not (root / name).is_dir():
            raise UsageError(f"{root} has no class {pictures.shown(name)!r}, but train has; {LAYOUT}")
        images, not_images = pictures.walk(root / name)
        if not images:
            raise UsageError(f"class {pictures.shown(name)!r} in {root} has no images; add some or remove the folder")
        others += not_images
        for file, status in images:
            files.append(f"{name}/{file}")
            labels.append(label)
            digest.update(os.fsencode(f"{files[-1]}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    kinds = ", ".join(f"{pictures.shown(ending)} {count}" for ending, count in sorted(others.items()))
    notes = (f"{others.total()} file(s) of {root.name} are not images and are not read ({kinds})",) if others else ()
    return Listing(root, tuple(files), tuple(labels), digest.hexdigest(), notes)


def read_folder(path: Path, *, image_size: int | None = None, channels: int = 3) -> Source:
    """Decode (or take from the cache) both splits, cropped to the centre square and scaled.

    image_size: default the first image's own if it is square and at most 64 px, else 224; strips have their tiles'.
    Images that cannot be read are left out, counted and named. Raises UsageError for a wrong layout or an empty
    class, RunError if a class has no image that can be read or a strip is cut short.
    """
    classes, *parts = listings(path)
    tile = strips.tile_of(parts[0].root, parts[0].files, parts[0].labels)
    size = tile or image_size or _own_size(parts[0])
    splits = []
    for part in parts:
        split = _cached(part, size, channels, tile is not None)
        if missing := set(range(len(classes))) - set(split.labels.tolist()):
            raise RunError(f"class {classes[min(missing)]!r} in {part.root} has no image that can be read")
        splits.append(split)
    notes = layout_notes(path, classes)
    for note in (*notes, *splits[0].notes, *splits[1].notes):
        _log.warning("%s: %s", path, note)
    return Source(f"folder:{pictures.shown(path.name)}", classes, *splits, about=notes)


def read_pictures(folder: Path, count: int, *, size: tuple[int, int], channels: int) -> Tensor:
    """The first `count` images below `folder`, as uint8 [n, channels, height, width]; fewer if there are no more.

    size: (width, height); images are cropped to that shape around their centre, then scaled. Files that cannot be
    read are left out and named in the log.
    """
    images = []
    for file, _ in pictures.walk(folder)[0]:
        if len(images) == count:
            break
        try:
            with pictures.silently():
                images.append(_fitted(folder / file, size, channels)[0])
        except pictures.Unreadable as reason:
            _log.warning("left out: %s (%s)", pictures.shown(file), reason)
    stack = np.stack(images) if images else np.zeros((0, channels, *size[::-1]), np.uint8)
    return torch.from_numpy(stack)


def _own_size(listing: Listing) -> int:
    sizes = (pictures.size_of(listing.root / file) for file in listing.files[:100])
    width, height = next((size for size in sizes if size), (0, 0))
    return width if width == height and 8 <= width <= 64 else 224


def _fitted(path: Path, size: tuple[int, int], channels: int) -> tuple[np.ndarray, bool]:
    """uint8 [channels, height, width], and whether the file had more than 8 bits. Raises Unreadable."""
    image, deep = pictures.load(path, "RGB" if channels == 3 else "L", side=max(size))
    if image.size != size:
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(*size[::-1], channels).transpose(2, 0, 1), deep


def _fill(array: np.ndarray, listing: Listing, counts: list[int]) -> tuple[list[int], tuple[str, ...]]:
    """Decode the files into the front of `array` [N, C, S, S]. Returns the labels and notes."""
    channels, size = array.shape[1:3]
    labels, deep, broken = [], 0, []

    def decoded(file: str) -> tuple[np.ndarray, bool] | pictures.Unreadable:
        try:
            if counts:
                return strips.tiles(listing.root / file, size, channels), False
            pixels, more_bits = _fitted(listing.root / file, (size, size), channels)
            return pixels[None], more_bits
        except pictures.Unreadable as reason:
            return reason

    with pictures.silently(), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for file, label, got in zip(listing.files, listing.labels, pool.map(decoded, listing.files), strict=True):
            if isinstance(got, pictures.Unreadable):
                broken.append(f"{listing.root.name}/{file} ({got})")
                continue
            array[len(labels) : len(labels) + len(got[0])] = got[0]
            labels += [label] * len(got[0])
            deep += got[1]
    if broken and counts:
        raise RunError(f"strip {pictures.some(broken)} in {listing.root.parent} cannot be read; copy it again")
    left_out = f"{len(broken)} image(s) cannot be read and are left out: {pictures.some(broken)}"
    scaled = f"{deep} image(s) of {listing.root.name} have more than 8 bits a grey value and are scaled to 8"
    return labels, (*([left_out] if broken else []), *([scaled] if deep else []))


def _cached(listing: Listing, size: int, channels: int, in_strips: bool) -> Split:
    """The decoded images of `listing`, from the cache if they are known and whole there."""
    counts = [strips.count(listing.root / file, size) for file in listing.files] if in_strips else []
    place = cache_dir() / "decoded" / f"{listing.key[:32]}-{size}-{channels}"
    shape = (sum(counts) or len(listing.files), channels, size, size)
    try:
        return _open(place, listing)
    except (OSError, ValueError, KeyError, TypeError):
        shutil.rmtree(place, ignore_errors=True)
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        array = _reserve(partial / "images.npy", shape)
    except OSError as error:
        _log.warning("decoded images are not kept: %s", error)
        shutil.rmtree(partial, ignore_errors=True)
        array = np.empty(shape, np.uint8)
        labels, notes = _fill(array, listing, counts)
        return Split(torch.from_numpy(array[: len(labels)]), torch.tensor(labels), (*listing.notes, *notes))
    try:
        labels, notes = _fill(array, listing, counts)
        array.flush()
        index = {"labels": labels, "notes": notes, "sha256": sha256_file(partial / "images.npy")}
        (partial / "index.json").write_text(json.dumps(index))
        if not place.exists():
            partial.rename(place)
            partial = place
        return _open(partial, listing)
    finally:
        if partial != place:
            shutil.rmtree(partial, ignore_errors=True)


def _open(place: Path, listing: Listing) -> Split:
    """A decoded split, mapped from disk: pages are read when used, so it need not fit in memory."""
    index = json.loads((place / "index.json").read_text())
    if sha256_file(place / "images.npy") != index["sha256"]:
        raise ValueError(f"{place} was changed")
    array = np.load(place / "images.npy", mmap_mode="c", allow_pickle=False)
    labels = torch.tensor(index["labels"], dtype=torch.int64)
    return Split(torch.from_numpy(array[: len(labels)]), labels, (*listing.notes, *index["notes"]))


def _reserve(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A writable array on disk whose blocks are allocated now: a full disk is an OSError here, not a crash later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
