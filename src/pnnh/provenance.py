"""Where a result comes from: the entries that every record of this package and its scripts has in common."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import pnnh

LIBRARIES = ("pnnh", "torch", "torchvision", "timm", "safetensors", "numpy")


def environment(device: torch.device | str = "cpu", *, data: dict[str, Any] | None = None) -> dict[str, Any]:
    """The entries of a record that say how to make it again, ready for JSON.

    Args:
        device: where the work was done.
        data: what is known of the data, with its "sha256" (`Dataset.to_dict()`); None if there was none.

    Returns:
        "command" as it would be typed, "date" (UTC), "code_version" (git, "-dirty" if the code was changed),
        "versions" of Python and the libraries, "device" (type, name, cores, threads), and "data" where given.
    """
    return {
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_version": code_version(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
        "device": describe_device(torch.device(device)),
    } | ({} if data is None else {"data": data})


def command() -> str:
    """The command line as it would be typed from the top of the checkout."""
    program = Path(sys.argv[0] if sys.argv and sys.argv[0] else "python")
    name = "python -m pnnh" if program.name == "__main__.py" else program.name
    if program.resolve().parent.parts[-2:] == ("results", "scripts"):
        name = f"python results/scripts/{program.name}"
    line = " ".join([name, *map(shlex.quote, sys.argv[1:])])
    return line.encode(errors="backslashreplace").decode()  # arguments may hold bytes that are no UTF-8


def code_version() -> str:
    """`git describe` of the checkout that the package lies in, else the package's version.

    "-dirty" if a file of the package or of results/scripts was changed; records and pages may change.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return pnnh.__version__
    try:
        description = _git(root, "describe", "--always", "--tags")
        changed = _git(root, "diff", "--quiet", "HEAD", "--", "src", "results/scripts").returncode == 1
    except (OSError, subprocess.SubprocessError):
        return pnnh.__version__
    if description.returncode:
        return pnnh.__version__
    return description.stdout.strip() + ("-dirty" if changed else "")


def describe_device(device: torch.device) -> dict[str, Any]:
    """Type and name of the device; for a CPU also its cores and torch's threads. The machine is not named."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return {"type": device.type, "name": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
