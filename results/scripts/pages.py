"""Write docs/records/*.md: every record in results/ as tables. No number on those pages is typed.

    python results/scripts/pages.py

PAGES names each page's records in order; a record that does not exist (yet) is left out, a page without any as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from _bodies import Record, body

from pnnh.report import write_text

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGES_AT = ROOT / "results", ROOT / "docs" / "records"
MARK = "<!-- written by results/scripts/pages.py: do not edit -->"


@dataclass(frozen=True)
class Page:
    """A page of records: its file's name, its title, a sentence on what the records are, their names or patterns."""

    name: str
    title: str
    lead: str
    records: tuple[str, ...]


PAGES = (
    Page(
        "comparisons",
        "Records: comparisons",
        "Nets trained side by side by `pnnh compare`; test accuracy after the last epoch. See "
        "[Training deep plain nets](../training-deep-plain-nets.md).",
        ("cifar*", "imagenette*", "digits*", "bf16*", "tuned*"),
    ),
    Page(
        "dissipation",
        "Records: dissipation",
        "What is left of the input by depth. See [Seeing inputs dissipate](../seeing-inputs-dissipate.md). The record "
        "`dissipation` took its inputs from a JPEG copy of CIFAR-10, and its residual net is that of 2015.",
        ("picture", "dissipation*", "diagnose_cost", "diagnose_families"),
    ),
    Page(
        "theory",
        "Records: theory beside measurement",
        "Formulas of `pnnh.theory` against nets at initialisation. See [Theory](../theory.md).",
        ("theory_check",),
    ),
    Page(
        "conversion",
        "Records: fusing and converting",
        "The exact conversions: their cost and their error. See [Deploying a plain net](../deploying-a-plain-net.md).",
        ("fuse_forms", "convert_models", "imagenet-shapes"),
    ),
    Page(
        "families",
        "Records: which families are plain",
        "One small model of every timm family, and ours. See [Is my network plain?](../is-my-network-plain.md). The "
        "family that is not certified runs a recurrent operator, whose inside no graph shows.",
        ("certify_families",),
    ),
    Page(
        "speed",
        "Records: speed and memory",
        "Times are ratios to the first model of a table: above 1 is slower. See "
        "[Measuring speed and memory](../benchmarking.md).",
        ("step-account", "step-time-56", "bench-*", "clock-noise"),
    ),
    Page(
        "audits",
        "Records: audits",
        "Odd command lines and damaged image files, made by a random generator: what the program does with them.",
        ("audit*",),
    ),
    Page(
        "several-processes",
        "Records: several processes",
        "Training on two processes, stopped and continued. See [From a laptop to several nodes](../scaling.md).",
        ("scaling",),
    ),
)


def source(name: str, record: Record) -> str:
    """Where the numbers come from: command, code, versions, device, day."""
    found = record.get("evidence", record)
    device = found["device"]
    machine = device if isinstance(device, str) else f"{device['name']}, {device.get('threads', '?')} thread(s)"
    code, torch = found.get("code_version", found.get("code")), found["versions"]["torch"]
    return (
        f"Record: [results/{name}.json](../../results/{name}.json), from `{found['command']}`; code {code}, "
        f"torch {torch}, {machine}, {found['date'][:10]}."
    )


def records(page: Page) -> Iterator[tuple[str, Record]]:
    files = [file for pattern in page.records for file in sorted(RESULTS.glob(f"{pattern}.json"))]
    for file in dict.fromkeys(files):
        yield file.stem, json.loads(file.read_text())


def rendered(page: Page) -> str:
    """The page's text; empty without records."""
    sections = [f"## {name}\n\n{body(name, record)}\n\n{source(name, record)}" for name, record in records(page)]
    return "\n\n".join([f"# {page.title}", MARK, page.lead, *sections]) + "\n" if sections else ""


def main() -> None:
    for page in PAGES:
        if text := rendered(page):
            write_text(PAGES_AT / f"{page.name}.md", text)


if __name__ == "__main__":
    main()
