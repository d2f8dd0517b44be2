"""Files that are written whole or not at all, and their SHA-256."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pnnh._errors import UsageError


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
