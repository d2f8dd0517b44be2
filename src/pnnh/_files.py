"""Files that are written whole or not at all, their SHA-256, and published files fetched once."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

from pnnh._errors import RunError, UsageError


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file `path` by `data` at one instant: write a file beside it, sync it to the disk, rename it.

    After a crash or an error `path` holds either its old content or all of `data`. Raises OSError.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the renames inside `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(folder: Path) -> None:
    """Write a file in `folder` and remove it, with every folder made for it, before hours of work depend on it.

    Raises UsageError with the reason if that fails.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / ".probe", b"probe")
        (folder / ".probe").unlink()
        for place in missing:
            place.rmdir()
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}; choose another --out") from None


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of `data` in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of the file `path` in hexadecimal digits, read in pieces. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(host: str, name: str, sha256: str | None, folder: Path) -> Path:
    """The file folder/name, downloaded from `host` (or PNNH_MIRROR) if it is not there.

    Raises RunError with the way out if it cannot be had, or if it has another SHA-256 than one that is given.
    """
    path = folder / name
    url = f"{(os.environ.get('PNNH_MIRROR') or host).rstrip('/')}/{name}"
    if not path.is_file():
        way_out = f"put {name} into {folder}, set PNNH_MIRROR, or use digits, which needs no download"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(url, timeout=20) as source:
                write_bytes(path, source.read())
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise RunError(f"cannot download {url} ({getattr(error, 'reason', error)}); {way_out}") from None
    if sha256 is not None and sha256_file(path) != sha256:
        raise RunError(f"{path} is not the published file (SHA-256 differs); remove it and try again")
    return path
