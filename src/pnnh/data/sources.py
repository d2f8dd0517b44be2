"""Readers of the named data sets: from a local folder if it holds the set, else downloaded; each set is checked."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from pnnh._errors import RunError, UsageError
from pnnh._files import fetch, sha256_bytes
from pnnh.data.folder import HELD_OUT, read_folder
from pnnh.data.types import Source, Split, resize, stratified

DIGITS_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
CIFAR_HOST = "https://www.cs.toronto.edu/~kriz"
FASHION_HOST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
FASHION_CLASSES = "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle-boot"
FASHION_SHA256 = {  # of the unpacked bytes: distributors compress them differently
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def digits(image_size: int = 16) -> Source:
    """1,797 handwritten digits of 8x8 pixels, upscaled, 1,438 to train and 359 to test.

    The file is embedded: Alpaydin & Kaynak (1998), UCI, CC BY 4.0. The split is stratified and fixed.
    """
    packed = resources.files("pnnh.data").joinpath("digits.csv.gz").read_bytes()
    _check_bytes(packed, DIGITS_SHA256, "the embedded digits.csv.gz", "reinstall pnnh")
    lines = gzip.decompress(packed).decode().split()
    table = torch.tensor([[int(float(value)) for value in line.split(",")] for line in lines])
    images = (table[:, :64] * 255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    both = Split(resize(images, image_size), table[:, 64].clone())
    test, train = stratified(both.labels, 359, seed=0)
    return Source("digits", tuple("0123456789"), both.take(train), both.take(test), flip=False)


def fashion_mnist(root: Path) -> Source:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 60,000 + 10,000 grey images of 28x28."""
    places = (root, root / "fashion-mnist", root / "FashionMNIST" / "raw", DEBIAN_FASHION)

    def unpacked(name: str) -> bytes:
        paths = [path for place in places for path in (place / name, place / f"{name}.gz") if path.is_file()]
        path = paths[0] if paths else fetch(FASHION_HOST, f"{name}.gz", None, root / "fashion-mnist")
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (gzip.BadGzipFile, EOFError) as error:
            raise RunError(f"{path} is damaged ({error}); remove it and try again") from None
        _check_bytes(data, FASHION_SHA256[name], str(path), "remove it and try again")
        return data

    def split(prefix: str) -> Split:
        images = np.frombuffer(unpacked(f"{prefix}-images-idx3-ubyte"), np.uint8, offset=16).reshape(-1, 1, 28, 28)
        return _split(images, np.frombuffer(unpacked(f"{prefix}-labels-idx1-ubyte"), np.uint8, offset=8))

    return Source("fashion-mnist", tuple(FASHION_CLASSES.split()), split("train"), split("t10k"))


@dataclass(frozen=True)
class Known:
    """A published data set: what it must hold, and where it lies when it is unpacked.

    content: `content_sha256` of the original images, "" if there is none to compare with.
    binary: folder of the original binary records, `label_bytes` before the 3 x 32 x 32 pixels of each.
    """

    name: str
    num_classes: int
    num_train: int
    num_test: int
    content: str = ""
    binary: str = ""
    train_files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    label_bytes: int = 1
    archive: str = ""
    archive_sha256: str = ""


CIFAR10 = Known(
    "cifar10", 10, 50_000, 10_000, "abf4b167a135b062ef28f7f742091acaf0d93435cacacaa70137c477b4a499cb",
    "cifar-10-batches-bin",
    tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",), 1,
    "cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)  # fmt: skip
CIFAR100 = Known(
    "cifar100", 100, 50_000, 10_000, "34a73562c333c3f38088a2a09d18abd6d04eacc4d045680dcbdc10f3a665e06b",
    "cifar-100-binary", ("train.bin",), ("test.bin",), 2,
    "cifar-100-binary.tar.gz", "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)  # fmt: skip
IMAGENETTE64 = Known("imagenette64", 10, 9_469, 3_925)


def known(name: str, path: Path | None, root: Path) -> Source:
    """CIFAR-10, CIFAR-100 (Krizhevsky 2009, fine labels) or Imagenette at 64 px, from `path` or where `root` has it.

    The CIFAR sets are read as binary records, torchvision's python batches, class folders or strips, or downloaded to
    `root`. Raises RunError if the images are not those of the data set, UsageError if there are none.
    """
    wanted = {"cifar10": CIFAR10, "cifar100": CIFAR100, "imagenette64": IMAGENETTE64}[name]
    if path is not None and not path.is_dir():
        raise UsageError(f"no folder {path}; give the folder that holds {name}")
    for place in (path,) if path else (root / name, root / f"{name}_lossless", root):
        source = _source_in(place, wanted, folders=place != root)
        if source is not None:
            return _checked(replace(source, name=name), wanted, place)
    if path is not None or not wanted.archive:
        formats = "class folders, strips or the original files" if wanted.archive else "class folders or strips"
        raise UsageError(f"no {name} in {path or root / name}; give {name}:PATH, a folder with {formats}")
    archive = fetch(CIFAR_HOST, wanted.archive, wanted.archive_sha256, root)
    names = {*wanted.train_files, *wanted.test_files}
    with tarfile.open(archive, "r:*") as file:
        members = [member for member in file if member.isfile() and Path(member.name).name in names]
        blobs = {Path(member.name).name: file.extractfile(member).read() for member in members}
    return _checked(_records(blobs, archive, wanted), wanted, archive)


def _source_in(place: Path, wanted: Known, *, folders: bool) -> Source | None:
    """The data set in `place`, as binary records, python batches, class folders or strips; None if it is not there."""
    binary = next((here for here in (place, place / wanted.binary) if _holds(here, wanted)), None)
    if binary is not None:
        names = (*wanted.train_files, *wanted.test_files)
        return _records({n: (binary / n).read_bytes() for n in names if (binary / n).is_file()}, binary, wanted)
    python = wanted.binary.replace("batches-bin", "batches-py").replace("100-binary", "100-python")
    if wanted.binary and python in (place.name, *(entry.name for entry in place.glob(python))):
        return _python_batches(place.parent if place.name == python else place, wanted)
    if folders and (place / "train").is_dir() and any((place / part).is_dir() for part in HELD_OUT):
        return read_folder(place)
    return None


def _holds(place: Path, wanted: Known) -> bool:
    return any((place / name).is_file() for name in wanted.train_files + wanted.test_files)


def _records(blobs: dict[str, bytes], place: Path, wanted: Known) -> Source:
    """The binary files `blobs` by name; a missing, short or long one is an error."""
    size = wanted.label_bytes + 3 * 32 * 32

    def split(names: tuple[str, ...]) -> Split:
        for name in names:
            if not blobs.get(name) or len(blobs[name]) % size:
                raise RunError(f"{place / name} is missing or cut short; remove {place} and try again")
        table = np.frombuffer(b"".join(blobs[name] for name in names), np.uint8).reshape(-1, size)
        return _split(table[:, wanted.label_bytes :].reshape(-1, 3, 32, 32), table[:, wanted.label_bytes - 1])

    classes = CIFAR10_CLASSES.split() if wanted.num_classes == 10 else [f"class {i}" for i in range(100)]
    return Source(wanted.name, tuple(classes), split(wanted.train_files), split(wanted.test_files))


def _python_batches(root: Path, wanted: Known) -> Source:
    """torchvision's reader, which compares the files' MD5 before it unpickles them."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[wanted.name]
    try:
        parts = [kind(str(root), train=train, download=False) for train in (True, False)]
    except RuntimeError:
        raise RunError(f"{root / kind.base_folder} is incomplete or damaged; remove it and try again") from None
    splits = [_split(part.data.transpose(0, 3, 1, 2), np.array(part.targets)) for part in parts]
    return Source(wanted.name, tuple(parts[0].classes), *splits)


def _checked(source: Source, wanted: Known, place: Path) -> Source:
    """`source`, if its classes, counts and (where they are known) its pixels are those of the published set."""
    counts = {
        "classes": (len(source.classes), wanted.num_classes),
        "training images": (len(source.train), wanted.num_train),
        "test images": (len(source.test), wanted.num_test),
    }
    for what, (have, need) in counts.items():
        if have != need:
            way_out = f"complete it, or read a part as folder:{place}"
            raise RunError(f"{place} has {have} {what}, {source.name} has {need}; {way_out}")
    labels = int(torch.cat([source.train.labels, source.test.labels]).max())
    if labels >= wanted.num_classes:
        raise RunError(f"{place} holds label {labels}, above {wanted.num_classes - 1}; remove it and try again")
    if wanted.content and content_sha256(source) != wanted.content:
        way_out = "get the original, or read these images as folder:PATH"
        raise RunError(f"{place} does not hold the original pixels and labels of {source.name}; {way_out}")
    return source


def content_sha256(source: Source) -> str:
    """Hash of all images with their labels, whatever their order and the files they came in."""
    digest = hashlib.sha256()
    for split in (source.train, source.test):
        images = split.images.numpy()
        each = (hashlib.sha256(bytes([y]) + x.tobytes()).digest() for x, y in zip(images, split.labels, strict=True))
        digest.update(b"".join(sorted(each)))
    return digest.hexdigest()


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(np.array(images)), torch.from_numpy(labels.astype(np.int64)))


def _check_bytes(data: bytes, sha256: str, what: str, way_out: str) -> None:
    if sha256_bytes(data) != sha256:
        raise RunError(f"{what} is not the published file (SHA-256 differs); {way_out}")
