"""Readers of the named data sets: local files first, every byte checked against a SHA-256 kept here."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from pnnh._errors import RunError
from pnnh.data.fetch import archive_members, fetch
from pnnh.data.folder import read_folder
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


def digits(root: Path, image_size: int | None) -> Source:
    """1,797 handwritten digits of 8x8 pixels, upscaled (16 px unless asked), 1,438 to train and 359 to test.

    The file is embedded: Alpaydin & Kaynak (1998), UCI, CC BY 4.0. The split is stratified and fixed.
    """
    packed = resources.files("pnnh.data").joinpath("digits.csv.gz").read_bytes()
    _check(packed, DIGITS_SHA256, "the embedded digits.csv.gz", "reinstall pnnh")
    lines = gzip.decompress(packed).decode().split()
    table = torch.tensor([[int(float(value)) for value in line.split(",")] for line in lines])
    images = (table[:, :64] * 255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    both = Split(resize(images, image_size or 16), table[:, 64].clone())
    test, train = stratified(both.labels, 359, seed=0)
    return Source("digits", tuple("0123456789"), both.take(train), both.take(test), flip=False)


def fashion_mnist(root: Path, image_size: int | None) -> Source:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 60,000 + 10,000 grey images of 28x28."""
    places = (root, root / "fashion-mnist", root / "FashionMNIST" / "raw", DEBIAN_FASHION)

    def unpacked(name: str) -> bytes:
        found = [path for place in places for path in (place / name, place / f"{name}.gz") if path.is_file()]
        path = found[0] if found else fetch(FASHION_HOST, f"{name}.gz", None, root / "fashion-mnist")
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (gzip.BadGzipFile, EOFError) as error:
            raise RunError(f"{path} is damaged ({error}); remove it and try again") from None
        _check(data, FASHION_SHA256[name], str(path), "remove it and try again")
        return data

    def split(prefix: str) -> Split:
        images = np.frombuffer(unpacked(f"{prefix}-images-idx3-ubyte"), np.uint8, offset=16).reshape(-1, 1, 28, 28)
        labels = np.frombuffer(unpacked(f"{prefix}-labels-idx1-ubyte"), np.uint8, offset=8)
        return _split(images, labels)

    return Source("fashion-mnist", tuple(FASHION_CLASSES.split()), split("train"), split("t10k"))


@dataclass(frozen=True)
class Cifar:
    """Where one of the CIFAR sets lies and how its binary records look: `label_bytes`, then 3 x 32 x 32 pixels."""

    name: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    python_folder: str
    archive: str
    sha256: str
    label_bytes: int
    classes: tuple[str, ...]


CIFAR10 = Cifar(
    "cifar10",
    "cifar-10-batches-bin",
    tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    ("test_batch.bin",),
    "cifar-10-batches-py",
    "cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    1,
    tuple(CIFAR10_CLASSES.split()),
)
CIFAR100 = Cifar(
    "cifar100",
    "cifar-100-binary",
    ("train.bin",),
    ("test.bin",),
    "cifar-100-python",
    "cifar-100-binary.tar.gz",
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    2,
    tuple(f"class {i}" for i in range(100)),
)


def cifar10(root: Path, image_size: int | None) -> Source:
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 images of 32x32."""
    return _cifar(root, CIFAR10)


def cifar100(root: Path, image_size: int | None) -> Source:
    """CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 images of 32x32, the 100 fine labels."""
    return _cifar(root, CIFAR100)


def _cifar(root: Path, cifar: Cifar) -> Source:
    """What is there first (unpacked binary, torchvision's python batches, class folders), then the archive."""
    here, names = root / cifar.folder, (*cifar.train, *cifar.test)
    if here.is_dir():
        blobs = {name: (here / name).read_bytes() for name in names if (here / name).is_file()}
    elif (root / cifar.python_folder).is_dir():
        return _torchvision(root, cifar)
    elif (root / cifar.name / "train").is_dir():
        return read_folder(root / cifar.name, name=f"{cifar.name} (images in folders)")
    else:
        blobs = archive_members(fetch(CIFAR_HOST, cifar.archive, cifar.sha256, root), names)
    return Source(
        cifar.name, cifar.classes, *(_records(blobs, part, here, cifar) for part in (cifar.train, cifar.test))
    )


def _records(blobs: dict[str, bytes], names: tuple[str, ...], here: Path, cifar: Cifar) -> Split:
    """The binary files `names`, one after the other; a missing, short or long one is an error."""
    size = cifar.label_bytes + 3 * 32 * 32
    for name in names:
        if not blobs.get(name) or len(blobs[name]) % size:
            raise RunError(f"{here / name} is missing or cut short; remove {here} and try again")
    table = np.frombuffer(b"".join(blobs[name] for name in names), np.uint8).reshape(-1, size)
    labels = table[:, cifar.label_bytes - 1]
    if labels.max() >= len(cifar.classes):
        raise RunError(f"{here} holds label {labels.max()}, above {len(cifar.classes) - 1}; remove it and try again")
    return _split(table[:, cifar.label_bytes :].reshape(-1, 3, 32, 32), labels)


def _torchvision(root: Path, cifar: Cifar) -> Source:
    """torchvision's python batches; it compares their MD5 before it unpickles them."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[cifar.name]
    try:
        parts = [kind(str(root), train=train, download=False) for train in (True, False)]
    except RuntimeError:
        place = root / cifar.python_folder
        raise RunError(f"{place} is incomplete or damaged; remove it and try again") from None
    splits = [_split(part.data.transpose(0, 3, 1, 2), np.array(part.targets)) for part in parts]
    return Source(cifar.name, tuple(parts[0].classes), *splits)


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(np.array(images)), torch.from_numpy(labels.astype(np.int64)))


def _check(data: bytes, sha256: str, what: str, way_out: str) -> None:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise RunError(f"{what} is not the published file (SHA-256 differs); {way_out}")
