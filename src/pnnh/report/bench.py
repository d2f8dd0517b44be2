"""The report of a benchmark: figures, tables and sentences made from a record (as in results.json)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pnnh.report.figure import COLOURS, draw
from pnnh.report.page import Page, Section

WORKS = {"train": "training step", "infer": "inference batch", "latency": "single image"}
QUIET = 0.95

_TIMES = (
    "Time: 1 is the first model's, above 1 is slower; the median of paired ratios with its 95 % bootstrap interval. "
    "cpu time: the same by the process's own CPU clock. A verdict needs 30 pairs, an interval that excludes 1 and a "
    "control whose interval holds it."
)
_SIZES = (
    "Params: shared kernels once. MACs and FLOPs (2 x MACs): forward pass of one image. Peaks: memory that one step or "
    "batch adds to weights and optimiser state."
)


def bench_page(record: Mapping[str, Any]) -> Page:
    """`record`: cells (settings with rows and a control) and the environment, as `pnnh bench` writes them."""
    sections = [section for cell in record["cells"] for section in _sections(cell)]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items() if number)
    lead = (
        "Models measured against the first one of their group in one process, in interleaved pairs (A B B A), with a "
        "copy of the first as the control."
    )
    evidence = (
        f"Command: {record['command']}",
        f"{record['date']}, code {record['code_version']}; {versions}",
        f"Device: {record['device']}",
    )
    return Page("Speed and memory", lead, sections, evidence)


def bench_reading(cell: Mapping[str, Any]) -> list[str]:
    """Sentences computed from one setting: who is faster, where nothing can be said, where the time goes."""
    lines = []
    for row in cell["rows"][1:]:
        for work, name in WORKS.items():
            verdict, time = row[f"{work}_verdict"], row[f"{work}_time"]
            if verdict in ("faster", "slower"):
                side = f"{verdict}: {time:.3f} times the time ({_interval(row, work)})"
                lines.append(f"{row['model']}, {name}: {side} of {cell['rows'][0]['model']}.")
    if not lines:
        lines.append("No difference in time is claimed here.")
    lines += [f"Control, {name}: {_control(cell['control'], work)}." for work, name in WORKS.items()]
    if cell["busy"] < QUIET and cell["setting"]["device"] == "cpu":
        lines.append(
            f"The machine was not quiet: the process had a core for {100 * cell['busy']:.0f} % of the time. "
            "Trust the CPU clock more than the wall clock, and measure again."
        )
    return lines


def _control(control: Mapping[str, Any], work: str) -> str:
    return f"{control[f'{work}_time']:.3f} ({_interval(control, work)})"


def _interval(row: Mapping[str, Any], work: str) -> str:
    return f"{row[f'{work}_low']:.3f} to {row[f'{work}_high']:.3f}"


def _sections(cell: Mapping[str, Any]) -> list[Section]:
    rows, title = [*cell["rows"], cell["control"]], cell["title"]
    sections = [Section(title, reading=bench_reading(cell), svgs=[_ratios(cell)])]
    for work, name in WORKS.items():
        table = [of_work(row, work) for row in rows]
        sections.append(Section(f"{name.capitalize()}: {title}", rows=table, caption=_TIMES if work == "train" else ""))
    sizes = [{key: row[key] for key in row if not any(_is_time(key, work) for work in WORKS)} for row in cell["rows"]]
    sections.append(Section(f"Sizes: {title}", rows=sizes, caption=_SIZES))
    return sections


def of_work(row: Mapping[str, Any], work: str) -> dict[str, Any]:
    """The columns of a row that time `work`, without its name."""
    return {key.removeprefix(f"{work}_"): row[key] for key in row if key == "model" or _is_time(key, work)}


def _is_time(key: str, work: str) -> bool:
    return key.startswith(f"{work}_") and not key.endswith("_mb")


def _ratios(cell: Mapping[str, Any]) -> str:
    """A dot and its interval per model and work; the control on top."""
    rows = [cell["control"], *cell["rows"][1:]]
    with draw(3, width=10, height=1.2 + 0.35 * len(rows), sharey=True) as figure:
        for axes, (work, name) in zip(figure.axes, WORKS.items(), strict=True):
            for place, row in enumerate(rows):
                low, middle, high = (row[f"{work}_{key}"] for key in ("low", "time", "high"))
                spread = [[max(0, middle - low)], [max(0, high - middle)]]
                colour = COLOURS[5] if place == 0 else COLOURS[0]
                axes.errorbar([middle], [place], xerr=spread, fmt="o", color=colour, capsize=3)
            axes.axvline(1, color=COLOURS[5], linewidth=1)
            axes.set(title=name, xlabel="time, 1 = first model")
        axes = figure.axes[0]
        axes.set_yticks(range(len(rows)), [row["model"] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
    return figure.svg
