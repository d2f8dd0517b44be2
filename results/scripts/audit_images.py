"""Thousands of odd and damaged image files through the readers of class folders; results/audit_images.json.

    python results/scripts/audit_images.py

A file is wrong if reading it raises anything but Unreadable, takes more than 30 seconds, makes the process a gigabyte
larger, or gives other grey levels than were written; a batch is wrong if the readers of whole folders disagree.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from pnnh.data import load_data, pictures
from pnnh.provenance import environment
from pnnh.report import json_text, write_text

RECORD = Path(__file__).resolve().parents[1] / "audit_images.json"
SECONDS, MEGABYTES, SIZE = 30, 1000, 48
EXACT = {
    "png": "L RGB RGBA P LA 1",
    "tif": "L RGB P RGBA",
    "bmp": "L RGB P",
    "ppm": "L RGB",
    "tga": "L RGB",
    "gif": "L P",
}
EXACT |= {"pcx": "L", "sgi": "L RGB", "qoi": "RGB", "jp2": "L RGB", "im": "L RGB", "dds": "RGB"}
LOSSY = {"jpg": "L RGB CMYK", "webp": "RGB", "jfif": "L", "avif": "RGB"}
DEEP = {"png": "<u2", "tif": "<u2 <f4 >u2", "pgm": "<u2", "pfm": "<f4"}


def written(draw: random.Random, path: Path) -> tuple[Path, np.ndarray | None]:
    """One whole image file beside `path` with a ramp of greys, and the upright grey values 0..255 that it shows."""
    ramp = np.tile(np.linspace(0, 1, SIZE), (SIZE, 1))
    if draw.random() < 0.25:
        ending = draw.choice(list(DEEP))
        kind, white = np.dtype(draw.choice(DEEP[ending].split())), 65535
        if kind.kind == "f":
            white = draw.choice((1, 255)) if ending == "tif" else 1
        path = path.with_suffix(f".{ending}")
        Image.fromarray((ramp * white).astype(kind)).save(path)
        return path, ramp * 255
    table = draw.choice((EXACT, EXACT, LOSSY))
    ending = draw.choice(list(table))
    mode, path = draw.choice(table[ending].split()), path.with_suffix(f".{ending}")
    image = Image.fromarray((ramp * 255).astype(np.uint8))
    image = image.convert("RGB").convert(mode) if mode in ("P", "CMYK", "RGBA") else image.convert(mode)
    turn, choices = draw.randrange(1, 9), {}
    if ending in ("png", "jpg", "webp", "tif", "jfif"):
        choices["exif"] = Image.Exif()
        choices["exif"][0x0112] = turn
    image.save(path, **choices)
    shown = np.asarray(image.convert("RGB").convert("L"))
    return path, upright(shown, turn) if choices else shown


def upright(values: np.ndarray, turn: int) -> np.ndarray:
    """The definition of EXIF's orientation, by array operations: where row 0 and column 0 of the stored image lie."""
    turns = {2: np.fliplr, 3: lambda v: v[::-1, ::-1], 4: np.flipud, 5: np.transpose}
    turns |= {6: lambda v: np.rot90(v, -1), 7: lambda v: v[::-1, ::-1].T, 8: np.rot90}
    return turns.get(turn, lambda v: v)(values)


def damage(draw: random.Random, data: bytes) -> bytes:
    """`data` cut, with bytes changed, zeroed, doubled or removed; often in the header, where sizes stand."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(min(len(data), draw.choice((64, len(data)))) or 1)
        match draw.randrange(5):
            case 0:
                data = data[:place]
            case 1:
                data[place : place + 1] = bytes([draw.randrange(256)])
            case 2:
                data[place : place + 4] = draw.randbytes(4)
            case 3:
                data[place:place] = data[place : place + draw.randrange(1, 200)]
            case 4:
                data[place : place + 2] = b"\xff\xff"
    return bytes(data)


def fault(path: Path, expected: np.ndarray | None) -> tuple[str, bool]:
    """What is wrong with how `path` is read ("" if nothing), and whether it was read at all."""

    def late(*_: object) -> None:
        raise KeyboardInterrupt

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    values = None
    try:
        with pictures.silently():
            values = np.asarray(pictures.load(path, "L")[0])
    except pictures.Unreadable:
        pass
    except KeyboardInterrupt:
        return f"hangs: {time.monotonic() - start:.0f} s", False
    except BaseException as error:
        return f"raises {type(error).__name__}", False
    finally:
        signal.alarm(0)
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 1024 * MEGABYTES:
        return "memory", values is not None
    if expected is None:
        return "", values is not None
    if values is None or values.shape != expected.shape:
        return "not read", values is not None
    off = np.abs(values.astype(float) - expected)
    return ("grey levels" if off.mean() > 6 or np.median(off) > 4 else ""), True


def batch(draw: random.Random, folder: Path, count: int) -> tuple[Counter, list[str]]:
    """Write and read `count` files; how many of each kind, and what was wrong."""
    kinds, wrong, readable = Counter(), [], 0
    for part, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        (folder / part / name).mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE)).save(folder / part / name / "good.png")
    for number in range(count):
        path, expected = written(draw, folder / "train" / "a" / f"{number}")
        kind = draw.choice(("whole", "damaged", "damaged", "noise"))
        if kind == "damaged":
            path.write_bytes(damage(draw, path.read_bytes()))
        elif kind == "noise":
            path.write_bytes(path.read_bytes()[: draw.randrange(12)] + draw.randbytes(draw.randrange(400)))
        found, was_read = fault(path, expected if kind == "whole" else None)
        kinds[kind] += 1
        readable += was_read
        wrong += [f"{kind} {path.name}: {found}"] if found else []
    memory, disk = load_data(f"folder:{folder}", image_size=16), load_data(f"imagefolder:{folder}", image_size=32)
    counts = len(memory.train), sum(len(labels) for _, labels in disk.train.batches(64))
    wrong += [] if set(counts) == {readable + 2} else [f"folder: {counts} images instead of {readable + 2}"]
    return kinds | {"readable": readable}, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw, kinds, wrong = random.Random(asked.seed), Counter(), []
    while sum(kinds[kind] for kind in ("whole", "damaged", "noise")) < asked.files:
        with tempfile.TemporaryDirectory() as folder:
            more, faults = batch(draw, Path(folder), 250)
        kinds.update(more)
        wrong += faults
        print(dict(kinds), wrong[-3:], flush=True)
    record = {"pillow": PIL.__version__, "files": asked.files, "seed": asked.seed, "kinds": dict(kinds)}
    record |= {"num_wrong": len(wrong), "wrong": wrong}
    write_text(RECORD, json_text(environment() | record))


if __name__ == "__main__":
    main()
