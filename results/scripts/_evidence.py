"""The environment that a script's record names: command, date, code and library versions, device."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def evidence() -> dict:
    """`environment` of the package, with the script as the command.

    The code version ends in -dirty if the package or a script was changed; the records and pages that scripts write
    do not count.
    """
    from pnnh.provenance import environment

    return environment() | {
        "command": shlex.join(["python", f"results/scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "code_version": _code(),
    }


def _code() -> str:
    version = _git("describe", "--always", "--tags").stdout.strip()
    changed = _git("diff", "--quiet", "HEAD", "--", ":/src", ":/results/scripts").returncode == 1
    return version + "-dirty" if changed else version


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
