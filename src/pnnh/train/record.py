"""What a number travels with: command, code version, library versions, device, recipe, data, seed, every epoch."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import pnnh

if TYPE_CHECKING:
    from pnnh.train.run import Run


def build(run: Run, *, spec: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, Any]:
    """The final record of a finished run, ready for JSON."""
    trainable = {id(p): p.numel() for p in run.model.parameters()}
    last = history[-1]
    seconds = sum(event["seconds"] for event in history)
    speeds = sorted(event["images_per_second"] for event in history)
    return {
        "model": spec | {"num_params": sum(trainable.values())},
        "data": run.data.to_dict() | {"mean": list(run.data.mean), "std": list(run.data.std)},
        "classes": list(run.data.classes),
        "recipe": run.recipe.to_dict(),
        "seed": run.seed,
        "execution": run.execution.to_dict() | {"processes": run.processes.size},
        "result": {
            "test_accuracy": last["test_accuracy"],
            "train_accuracy": last["train_accuracy"],
            "loss": last["loss"],
            "images_per_second": speeds[len(speeds) // 2],
            "seconds": seconds,
        },
        "epochs": history,
    } | environment(run.device)


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Command, date (UTC), code and library versions, device: the part every record shares."""
    return {
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_version": code_version(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES},
        "device": describe_device(torch.device(device)),
    }


_LIBRARIES = ("pnnh", "torch", "torchvision", "timm", "safetensors", "numpy")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def command() -> str:
    """The command line as it would be typed."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    name = "python -m pnnh" if name == "__main__.py" else name
    return " ".join([name, *map(shlex.quote, sys.argv[1:])])


def code_version() -> str:
    """`git describe` of the checkout the package lies in (-dirty if changed), else the package's version."""
    here = Path(__file__).resolve()
    if (here.parents[3] / ".git").exists():
        try:
            told = subprocess.run(
                ["git", "-C", str(here.parents[3]), "describe", "--always", "--dirty", "--tags"],
                capture_output=True, text=True, timeout=10, check=True,
            )  # fmt: skip
            return told.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    return pnnh.__version__


def describe_device(device: torch.device) -> dict[str, Any]:
    """Type, name and threads; the machine's own name is nobody's business."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return {"type": device.type, "name": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
