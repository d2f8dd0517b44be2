"""Parts of `pnnh bench`: from its arguments to settings, from reports to tables and files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from pnnh import bench, report
from pnnh._errors import UsageError
from pnnh.bench import Report, Setting

CHOICES = {"amp": ("fp32", "bf16"), "mode": ("eager", "compiled"), "layout": ("channels_last", "contiguous")}
SIZES = (
    "model", "params", "macs", "flops", "checkpoint_mb", "optimizer_mb", "train_peak_mb", "infer_peak_mb", "compile_s",
)  # fmt: skip


def groups_of(models: Sequence[str], preset: str | None, tell: Callable) -> tuple[list[tuple[str, ...]], int]:
    """Groups of names, the first of each its yardstick, and the batch size to take by default."""
    if bool(models) == (preset is not None):
        raise UsageError(
            "name at least one MODEL, like `pnnh bench cifar_resnet56 pnnh_resnet56`, or a --preset, not both"
        )
    if preset is None:
        return [tuple(models)], 128
    groups, missing = bench.known(bench.PRESETS[preset].groups)
    if missing:
        tell(f"left out, not in this installation: {', '.join(missing)}")
    if not groups:
        raise UsageError(f"nothing of --preset {preset} is installed; name models instead")
    return groups, bench.PRESETS[preset].batch_size


def settings_of(base: Setting, batch_sizes: Sequence[int], **lists: str) -> list[Setting]:
    """Every combination of the comma-separated choices."""
    chosen = {name: _choices(name, text) for name, text in lists.items()}
    return [
        replace(base, batch_size=size, amp=amp, compiled=mode == "compiled", channels_last=layout == "channels_last")
        for size, amp, mode, layout in product(batch_sizes, *(chosen[name] for name in CHOICES))
    ]


def setting(device: str, pairs: int) -> Setting:
    if pairs < 1:
        raise UsageError(f"pairs {pairs} must be at least 1; below 30 nothing is claimed")
    return Setting(device=device, pairs=pairs)


def numbers(name: str, text: str) -> list[int]:
    try:
        values = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{name} {text!r} must be whole numbers with commas between them") from error
    if min(values) < 2:
        raise UsageError(f"{name} {min(values)} must be at least 2: batch norm needs two images")
    return values


def tables(result: Report) -> list[Any]:
    """What the terminal shows of one setting: sizes, then times, a row per work and model."""
    rows = [*result.rows(), result.control]
    times = [{"work": work} | report.of_work(row, work) for work in bench.WORKS for row in rows]
    return [
        report.terminal([{key: row[key] for key in SIZES} for row in result.rows()], str(result.setting)),
        report.terminal(times, "time: 1 is the first model's, above 1 is slower"),
    ]


def cell(result: Report) -> dict[str, Any]:
    """A report as JSON."""
    return asdict(result) | {"rows": result.rows(), "title": str(result.setting)}


def write(out: Path, record: dict[str, Any]) -> list[Path]:
    """A folder gets results.json and report.html, a .json name the record alone."""
    if out.suffix == ".json":
        return [report.write_text(out, report.json_text(record))]
    return [
        report.write_text(out / "results.json", report.json_text(record)),
        report.write_text(out / "report.html", report.html(report.bench_page(record))),
    ]


def _choices(name: str, text: str) -> list[str]:
    words = text.split(",")
    for word in words:
        if word not in CHOICES[name]:
            raise UsageError(f"{name} {word!r} must be of {', '.join(CHOICES[name])}, with commas between several")
    return words
