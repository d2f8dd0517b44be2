"""What every record carries: command, code, versions, machine, day."""

from __future__ import annotations

import datetime
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path


def evidence() -> dict:
    import torch

    return {
        "command": shlex.join(["python", f"results/scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "code": code(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "timm", "torchvision", "numpy")},
        "device": f"cpu, {platform.machine()}, {torch.get_num_threads()} thread(s)",
        "date": datetime.date.today().isoformat(),
    }


def code() -> str:
    """`git describe`, -dirty if the package or a script differs; what they write, records and pages, does not count."""
    told = _git("describe", "--always", "--tags").stdout.strip()
    differs = _git("diff", "--quiet", "HEAD", "--", ":/src", ":/results/scripts").returncode == 1
    return told + "-dirty" if differs else told


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).resolve().parent
    return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)


def show_in(page: str, name: str, text: str) -> None:
    """Put `text` between `<!-- record NAME -->` and `<!-- end NAME -->` of docs/PAGE: no number there is typed."""
    from pnnh.report import write_text

    path = Path(__file__).resolve().parents[2] / "docs" / page
    first, last = f"<!-- record {name} -->\n", f"<!-- end {name} -->"
    before, _, rest = path.read_text().partition(first)
    _, found, after = rest.partition(last)
    if not found:
        raise SystemExit(f"{path} has no {first.strip()} ... {last}")
    write_text(path, f"{before}{first}\n{text.strip()}\n\n{last}{after}")
