"""Large image sets, decoded as they are needed: class folders, Hugging Face data sets, webdataset shards.

timm's readers find and read them:

    imagefolder:PATH   PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg
    hfds:NAME          a Hugging Face data set with an image and a label column, or a local folder of one
    wds:PATH           shards listed in PATH/_info.json, with "num_classes" there; PATH may be a URL
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pnnh._errors import RunError, UsageError
from pnnh.train import loader
from pnnh.train.augment import ResizedCrop
from pnnh.train.data import Dataset
from pnnh.train.processes import Alone
from pnnh.train.recipe import Recipe

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HELD_OUT = ("validation", "val", "test")
Transform = Callable[[Any], Tensor]


@dataclass(frozen=True, eq=False)
class Indexed:
    """Images that can be read in any order. `broken` collects the names of those that cannot be decoded."""

    reader: Any
    image_size: int
    broken: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.reader)

    def batches(self, batch_size: int, processes: Alone) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, scaled and cropped to its centre; with several processes, each has every n-th image."""
        keys = [(0, index) for index in range(processes.rank, len(self), processes.size)]
        images = loader.Images(self.reader, evaluation_transform(self.image_size), seed=0)
        parts = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
        for pixels, labels, good, index in loader.read(images, parts):
            self.report(index[~good])
            if good.any():
                yield pixels[good], labels[good]

    def report(self, indices: Tensor) -> None:
        for index in set(indices.tolist()) - self.broken.keys():
            self.broken[index] = loader.name_of(self.reader, index)
            loader.log.warning("cannot be decoded, left out: %s", self.broken[index])

    def names(self) -> Iterator[str]:
        """What tells this split from another: its images' names and labels, or its fingerprint."""
        if hasattr(self.reader, "samples"):
            yield from (f"{self.reader.filename(i)} {label}" for i, (_, label) in enumerate(self.reader.samples))
        else:
            yield f"{len(self)} {getattr(self.reader.dataset, '_fingerprint', '')}"


@dataclass(frozen=True, eq=False)
class Sharded:
    """Images in tar files, read one after another; a process reads whole files. `make` builds timm's reader."""

    make: Callable[..., Any]
    image_size: int
    info: Any
    broken: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.info.num_samples

    def batches(self, batch_size: int, processes: Alone) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, scaled and cropped to its centre; with several processes, each has every n-th file."""
        files = self.info.filenames[processes.rank :: processes.size]
        if files:
            reader = self.make(training=False, batch_size=batch_size, seed=0)
            reader.dist_rank, reader.dist_num_replicas = 0, 1  # the files are dealt out here, none twice
            reader.split_info = replace(reader.split_info, filenames=files)
            yield from loader.read_shards(reader, evaluation_transform(self.image_size), batch_size, seed=0)

    def names(self) -> Iterator[str]:
        yield f"{len(self)}"
        yield from self.info.filenames


@dataclass(frozen=True, eq=False)
class Stream(Dataset):
    """A data set that stays on disk: for training and testing, one batch at a time. Three channels, square images."""

    train: Indexed | Sharded  # type: ignore
    test: Indexed | Sharded  # type: ignore

    @property
    def channels(self) -> int:
        return 3

    @property
    def image_size(self) -> int:
        return self.train.image_size

    @cached_property
    def sha256(self) -> str:
        """Hash of the names and labels, not of the pixels."""
        digest = hashlib.sha256(f"{self.image_size}".encode())
        for split in (self.train, self.test):
            for name in split.names():
                digest.update(f"{name}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def limit(self, count: int, seed: int = 0) -> Dataset:
        raise UsageError(f"limit is for data in memory; {self.name} is read as it is, use folder:PATH for a part")

    def split(self, fraction: float, seed: int = 0) -> Dataset:
        raise UsageError(f"splitting is for data in memory; {self.name} is read as it is, use folder:PATH")

    def feed(self, recipe: Recipe, seed: int, device: torch.device, processes: Alone):
        choices = {"batch_size": recipe.batch_size, "seed": seed, "device": device, "processes": processes}
        if not isinstance(recipe.augment, ResizedCrop):
            raise UsageError(f"{self.name} is augmented by ResizedCrop, not by {type(recipe.augment).__name__}")
        transform = recipe.augment.transform(self.image_size)
        kind = loader.IndexedFeed if isinstance(self.train, Indexed) else loader.ShardedFeed
        return kind(self.train, transform, **choices)

    def to_dict(self) -> dict[str, Any]:
        broken = [*self.train.broken.values(), *self.test.broken.values()]
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        note = [f"{len(broken)} image(s) could not be decoded: {', '.join(broken[:5])}{more}"] if broken else []
        return super().to_dict() | {"notes": [*self.notes, *note]}


def evaluation_transform(image_size: int) -> Transform:
    """The shorter side to image_size / 0.95, the centre cut out; uint8 [3, image_size, image_size]."""
    from timm.data import create_transform

    return create_transform((3, image_size, image_size), interpolation="bicubic", crop_pct=0.95, normalize=False)


def open_stream(kind: str, path: str, image_size: int | None) -> Stream:
    """The data set `kind`:`path`, images of `image_size` (default 224) pixels. Raises UsageError, RunError."""
    size = image_size or 224
    opened = {"imagefolder": _folders, "hfds": _hugging_face, "wds": _shards}[kind](path, size)
    classes, train, test = opened
    return Stream(f"{kind}:{Path(path).name or path}", classes, train, test, IMAGENET_MEAN, IMAGENET_STD)


def _folders(path: str, size: int):
    from timm.data.readers import create_reader

    root = Path(path).expanduser()
    held_out = next((root / name for name in HELD_OUT if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or held_out is None:
        raise UsageError(f"{root} needs train/CLASS/*.jpg and val/CLASS/*.jpg")
    try:
        train = create_reader("", root=str(root / "train"))
        known = train.class_to_idx
        if unknown := sorted({entry.name for entry in held_out.iterdir() if entry.is_dir()} - known.keys()):
            raise UsageError(f"{held_out} has classes that train has not: {', '.join(unknown[:5])}")
        test = create_reader("", root=str(held_out), class_map=known)
    except RuntimeError as error:
        raise UsageError(f"{root}: {str(error).splitlines()[0]}") from None
    return tuple(known), Indexed(train, size), Indexed(test, size)


def _hugging_face(name: str, size: int):
    try:
        from timm.data.readers import create_reader

        train = create_reader(f"hfds/{name}", split="train")
    except ImportError:
        raise UsageError("hfds: needs Hugging Face datasets: pip install 'pnnh[scale]'") from None
    except Exception as error:  # whatever that library raises: no network, no such name, no such column
        raise RunError(f"hfds:{name} cannot be read: {str(error).splitlines()[0][:200]}") from None
    for split in HELD_OUT:
        try:
            test = create_reader(f"hfds/{name}", split=split)
        except ValueError:
            continue
        return tuple(map(str, train.class_to_idx)), Indexed(train, size), Indexed(test, size)
    raise UsageError(f"hfds:{name} has none of the splits {', '.join(HELD_OUT)}")


def _shards(path: str, size: int):
    try:
        import webdataset  # noqa: F401
        from timm.data.readers.reader_wds import ReaderWds, _load_info
    except ImportError:
        raise UsageError("wds: needs webdataset: pip install 'pnnh[scale]'") from None
    info = _load_info(path)
    held_out = next((name for name in HELD_OUT if name in info.get("splits", {})), None)
    if held_out is None or "train" not in info["splits"] or "num_classes" not in info:
        wanted = '{"num_classes": 1000, "splits": {"train": ..., "validation": ...}}'
        raise UsageError(f"{path} needs an _info.json with {wanted}; see docs/scaling.md")

    def split(name: str) -> Sharded:
        def make(*, training: bool, batch_size: int, seed: int) -> ReaderWds:
            return ReaderWds(path, split=name, is_training=training, batch_size=batch_size, seed=seed)

        return Sharded(make, size, make(training=False, batch_size=1, seed=0).split_info)

    return tuple(f"class {i}" for i in range(info["num_classes"])), split("train"), split(held_out)
