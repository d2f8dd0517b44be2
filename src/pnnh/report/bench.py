"""The report of a benchmark: a record (as in results.json) -> figures, tables and what the numbers say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pnnh.report.figure import COLOURS, draw
from pnnh.report.page import Page, Section

WORKS = {"train": "training step", "infer": "inference batch", "latency": "single image"}
KINDS = ("conv", "matmul", "attention", "norm", "activation", "add", "pool", "loss", "other")
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
_ROOF = (
    "One training step, operator by operator. Predicted: the larger of bytes / bandwidth and FLOPs / matrix rate, each "
    "as measured on this device; every operand counted once, as if it came from the cache it fits in."
)


def bench_page(record: Mapping[str, Any]) -> Page:
    """`record`: cells (settings with rows, control, rooflines) and the environment, as `pnnh bench` writes them."""
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
    return Page("Speed, memory and what limits them", lead, sections, evidence)


def bench_reading(cell: Mapping[str, Any]) -> list[str]:
    """Sentences computed from one setting: who is faster, where nothing can be said, where the time goes."""
    lines = []
    for row in cell["rows"][1:]:
        for work, name in WORKS.items():
            verdict, time = row[f"{work}_verdict"], row[f"{work}_time"]
            if verdict in ("faster", "slower"):
                side = f"{verdict}: {time:.3f} times the time ({row[f'{work}_interval']})"
                lines.append(f"{row['model']}, {name}: {side} of {cell['rows'][0]['model']}.")
    if not lines:
        lines.append("No difference in time is claimed here.")
    lines += [f"Control, {name}: {_control(cell['control'], work)}." for work, name in WORKS.items()]
    if cell["busy"] < QUIET and cell["setting"]["device"] == "cpu":
        lines.append(
            f"The machine was not quiet: the process had a core for {100 * cell['busy']:.0f} % of the time. "
            "Trust the CPU clock more than the wall clock, and measure again."
        )
    return lines + [line for model, rows in cell["rooflines"].items() for line in _dominant(model, rows)]


def _control(control: Mapping[str, Any], work: str) -> str:
    return f"{control[f'{work}_time']:.3f} ({control[f'{work}_interval']})"


def _dominant(model: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    *parts, total = rows
    shares = {f"{row['phase']} {row['kind']}": row["share_%"] for row in parts[:3]}
    told = ", ".join(f"{name} {share:.0f} %" for name, share in shares.items())
    yield f"{model}, training step: {told}; {total['measured/predicted']:.1f} times the roofline."


def _sections(cell: Mapping[str, Any]) -> list[Section]:
    rows, title = [*cell["rows"], cell["control"]], cell["title"]
    sections = [Section(title, reading=bench_reading(cell), svgs=[_ratios(cell)])]
    for work, name in WORKS.items():
        table = [of_work(row, work) for row in rows]
        sections.append(Section(f"{name.capitalize()}: {title}", rows=table, caption=_TIMES if work == "train" else ""))
    sizes = [{key: row[key] for key in row if not any(_is_time(key, work) for work in WORKS)} for row in cell["rows"]]
    sections.append(Section(f"Sizes: {title}", rows=sizes, caption=_SIZES))
    if cell["rooflines"]:
        sections.append(Section(f"Where the time goes: {title}", svgs=[_stacks(cell["rooflines"])], caption=_ROOF))
        sections += [Section(f"{model}: {title}", rows=parts) for model, parts in cell["rooflines"].items()]
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
                low, high = map(float, row[f"{work}_interval"].split("-"))
                middle = row[f"{work}_time"]
                spread = [[max(0, middle - low)], [max(0, high - middle)]]
                colour = COLOURS[5] if place == 0 else COLOURS[0]
                axes.errorbar([middle], [place], xerr=spread, fmt="o", color=colour, capsize=3)
            axes.axvline(1, color=COLOURS[5], linewidth=1)
            axes.set(title=name, xlabel="time, 1 = first model")
        axes = figure.axes[0]
        axes.set_yticks(range(len(rows)), [row["model"] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
    return figure.svg


def _stacks(rooflines: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Milliseconds of a training step by kind of operator: measured above, the roofline's below."""
    colours = dict(zip(KINDS, (*COLOURS, "#444444"), strict=True))
    with draw(1, width=9.5, height=1.2 + 0.7 * len(rooflines)) as figure:
        for place, parts in enumerate(rooflines.values()):
            for offset, column, alpha in ((-0.19, "measured_ms", 1.0), (0.19, "predicted_ms", 0.45)):
                left = 0.0
                for kind in KINDS:
                    width = sum(row[column] for row in parts[:-1] if row["kind"] == kind)
                    label = kind if place == 0 and column == "measured_ms" and width else None
                    style = {"height": 0.36, "left": left, "color": colours[kind], "alpha": alpha, "label": label}
                    figure.axes.barh(place + offset, width, **style)
                    left += width
        figure.axes.set_yticks(range(len(rooflines)), list(rooflines))
        figure.axes.set_ylim(len(rooflines) - 0.5, -0.5)
        figure.axes.set(xlabel="milliseconds of a training step: measured (upper, full), roofline (lower, pale)")
        figure.axes.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.28))
    return figure.svg
