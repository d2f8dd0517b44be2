"""Fetch a published file once, check it, keep it. Offline is an answer: what to put where, in one line."""

from __future__ import annotations

import hashlib
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from pnnh._errors import RunError


def fetch(host: str, name: str, sha256: str | None, folder: Path) -> Path:
    """folder/name, downloaded from `host` (or PNNH_MIRROR) if it is not there; checked if a SHA-256 is given.

    Raises RunError with the way out if it cannot be had or is not the published file.
    """
    path = folder / name
    url = f"{(os.environ.get('PNNH_MIRROR') or host).rstrip('/')}/{name}"
    if not path.is_file():
        way_out = f"put {name} into {folder}, set PNNH_MIRROR, or use digits, which needs no download"
        partial = path.with_name(f".{name}.{os.getpid()}.partial")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(url, timeout=20) as source, open(partial, "wb") as target:
                while block := source.read(1 << 20):
                    target.write(block)
            partial.replace(path)
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise RunError(f"cannot download {url} ({reason}); {way_out}") from None
        finally:
            partial.unlink(missing_ok=True)
    if sha256 is not None and _sha256(path) != sha256:
        raise RunError(f"{path} is not the published file (SHA-256 differs); remove it and try again")
    return path


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def archive_members(path: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The contents of the files called `names`, wherever they lie in the archive; nothing is unpacked to disk."""
    wanted = set(names)
    with tarfile.open(path, "r:*") as archive:
        members = [m for m in archive if m.isfile() and Path(m.name).name in wanted]
        return {Path(m.name).name: archive.extractfile(m).read() for m in members}
