"""One image file as people have it: read upright, with its grey levels, within one bound on its size."""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

MOST_PIXELS = 89_478_485  # Pillow's own bound, a quarter of a gigabyte in colour
MOST_ASPECT = 100  # a side may be so many times the other: scaling the shorter one up scales the longer one too
_TURNS = dict(enumerate((0, 3, 1, 5, 4, 6, 2), start=2))  # EXIF orientation -> what makes the image upright
_DEEP = {"I;16", "I;16B", "I;16L", "I;16N", "I", "F"}


class Unreadable(Exception):
    """The file is not an image that can be read right; the message is the reason."""


@cache
def formats() -> tuple[str, ...]:
    """The formats Pillow opens by itself; for EPS it would start another program."""
    Image.init()
    return tuple(name for name in Image.OPEN if name != "EPS")


@cache
def endings() -> frozenset[str]:
    """The endings of image files, with the dot and in small letters."""
    formats()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats())


@contextmanager
def silently() -> Iterator[None]:
    """Within the block Pillow's warnings of damaged metadata are not shown. Not for several threads at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load(path: Path, mode: str, *, side: int | None = None, strip: bool = False) -> tuple[Image.Image, bool]:
    """The image at `path`, upright, as mode "RGB" or "L"; and whether it had more than 8 bits a grey value.

    side: a JPEG may be decoded at a half, a quarter ... of its size, but not below twice this.
    strip: the image is a column of tiles: only the number of pixels is bounded.
    Raises Unreadable, whatever the decoder raised.
    """
    try:
        with Image.open(path, formats=formats()) as image:
            _check_size(image, strip)
            if side:
                image.draft(mode, (2 * side, 2 * side))
            image.load()
            _check_size(image, strip)
            shallow = _eight_bits(image)
            return _upright(shallow.convert(mode), image), shallow is not image
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable(f"more than {MOST_PIXELS} pixels") from None
    except Exception as error:  # decoders raise anything on damaged bytes
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "damaged or not an image"
        raise Unreadable(reason.lower()) from None


def size_of(path: Path) -> tuple[int, int] | None:
    """(width, height) from the file's header, None if it has none."""
    try:
        with silently(), Image.open(path, formats=formats()) as image:
            return image.size
    except Exception:
        return None


def _check_size(image: Image.Image, strip: bool) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise Unreadable(f"{width} x {height} is more than {MOST_PIXELS} pixels")
    if not strip and max(width, height) > MOST_ASPECT * min(width, height):
        raise Unreadable(f"{width} x {height}: one side is more than {MOST_ASPECT} times the other")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 bits, and floats of 0..1 or 0..255, scaled to 0..255; other images are returned unchanged."""
    if image.mode not in _DEEP:
        return image
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 255):  # NaN is refused too
            raise Unreadable("floats that are neither in 0..1 nor in 0..255")
        values *= 255 if values.max() <= 1 else 1
    elif image.mode == "I" and image.format not in ("PNG", "PPM"):  # those two mean 16 bits by it
        raise Unreadable("integers of 32 bits or with a sign: what is white is unknown")
    else:
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # TIFF also has 12
        values *= 255 / (2**bits - 1)
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))


def _upright(image: Image.Image, original: Image.Image) -> Image.Image:
    """`image` turned as the EXIF orientation of `original` says (damaged EXIF data says nothing)."""
    try:
        turn = _TURNS.get(original.getexif().get(0x0112))
    except Exception:
        return image
    return image if turn is None else image.transpose(Image.Transpose(turn))


def walk(folder: Path) -> tuple[list[tuple[str, os.stat_result]], Counter[str]]:
    """Image files below `folder`, nested ones too, as sorted (relative name, stat), and the endings of other files.

    Hidden files are not looked at; a folder that links lead to twice is read once; pipes and devices are others.
    """
    images, others = [], Counter()
    for path in _paths(folder):
        ending = os.path.splitext(path)[1].lower()
        try:
            status = os.stat(path)
        except OSError:
            status = None
        if status is not None and stat.S_ISREG(status.st_mode) and ending in endings():
            images.append((os.path.relpath(path, folder), status))
        else:
            others[ending or "no ending"] += 1
    return sorted(images, key=lambda item: item[0]), others


def _paths(folder: Path) -> Iterator[str]:
    visited: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in visited else sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(here, name) for name in files if real not in visited and not name.startswith("."))
        visited.add(real)


def shown(name: str) -> str:
    """`name` with what cannot be printed (bytes that are no UTF-8, control characters) written as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def some(names: list[str]) -> str:
    """The first five names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(shown, names[:5])) + more
