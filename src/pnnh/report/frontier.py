"""The lead figure of a comparison: test accuracy against parameters, multiply-accumulates and step time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pnnh.report.figure import COLOURS, draw


@dataclass(frozen=True)
class Look:
    """How a method appears in every figure and sentence: its name, and colour, marker and line, which all differ."""

    label: str
    colour: str
    marker: str
    line: str | tuple[int, tuple[int, ...]] = "-"

    def style(self) -> dict[str, Any]:
        """Keyword arguments of matplotlib's `plot`."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.line}


LOOKS = {
    "pnnh": Look("PNNH", COLOURS[2], "o"),
    "pnnh_wide": Look("wider PNNH", COLOURS[5], "o", "--"),
    "residual": Look("residual", COLOURS[0], "s"),
    "residual_same_block": Look("residual, PNNH's block", COLOURS[7], "D", "--"),
    "residual_narrow": Look("residual, narrow", COLOURS[3], "v", "-."),
    "residual_short": Look("residual, short", COLOURS[1], "^", ":"),
    "residual_shared": Look("residual, shared kernels", COLOURS[6], "P", (0, (1, 3))),
    "residual_2015": Look("residual of 2015", "#89a7e0", "s", ":"),
    "plain": Look("plain", COLOURS[4], "X", "-."),
    "diracnet": Look("DiracNet", "#555555", "<", "--"),
    "repvgg": Look("RepVGG", "#8c564b", ">", ":"),
    "isonet": Look("ISONet", "#b07aa1", "h", "-."),
    "tat": Look("TAT", "#17789c", "*", "--"),
    "skip_init": Look("Cutting the Skip", COLOURS[1], "^", "--"),
}


def look(method: str) -> Look:
    return LOOKS.get(method, Look(method, "#333333", "o"))


@dataclass(frozen=True)
class Anchor:
    """A published result: parameters, multiply-accumulates (None: not stated), test accuracy in %."""

    label: str
    params: float | None
    macs: float | None
    accuracy: float


ZOO = "chenyaofo/pytorch-cifar-models, 200 epochs, last epoch"
PRUNED = "Torch-Pruning's table of ResNet-56 (with and without sparse learning; ResRep)"
ANCHORS = {  # data -> source -> results
    "cifar10": {
        ZOO: (
            Anchor("ResNet-20", 0.27e6, 40.8e6, 92.56),
            Anchor("32", 0.47e6, 69.1e6, 93.41),
            Anchor("44", 0.66e6, 97.4e6, 93.85),
            Anchor("56", 0.86e6, 125.8e6, 94.21),
        ),
        "He et al. 2015, table 6": (Anchor("2015: 20", 0.27e6, None, 91.25), Anchor("2015: 56", 0.85e6, None, 93.03)),
        PRUNED: (
            Anchor("pruned 56", None, 125.8e6 / 2.13, 93.77),
            Anchor("", None, 125.8e6 / 2.13, 93.46),
            Anchor("", None, 125.8e6 / 2.12, 93.71),
        ),
    },
    "cifar100": {
        ZOO: (
            Anchor("ResNet-20", 0.27e6, 40.8e6, 68.48),
            Anchor("32", 0.47e6, 69.1e6, 70.00),
            Anchor("44", 0.66e6, 97.4e6, 71.63),
            Anchor("56", 0.86e6, 125.8e6, 72.37),
        )
    },
}
COSTS = (("num_params", "parameters"), ("macs", "MACs of an image"), ("step_ms", "step while training, ms"))


def anchors(data: Mapping[str, Any]) -> dict[str, tuple[Anchor, ...]]:
    """Published results on the same pixels and all 10,000 test images, by source; none for other data."""
    same = data.get("image_size") == 32 and data.get("num_test") == 10_000
    return ANCHORS.get(data["name"], {}) if same else {}


def frontier(results: Mapping[str, Any]) -> str:
    """The figure of `results` (rows and data): a mark per net, a line per method through the means of its depths.

    Nets more than 12 points below the best stand at the lower edge, with an arrow and their accuracy.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    rows = [row for row in results["rows"] if row["test_accuracy"] is not None]
    published = [anchor for source in anchors(results["data"]).values() for anchor in source]
    floor = 100 * max((row["test_accuracy"] for row in rows), default=0) - 12
    with draw(3, width=11, height=4.4, sharey=True) as figure:
        for axes, (cost, label) in zip(figure.axes, COSTS, strict=True):
            for method in dict.fromkeys(row["method"] for row in rows):
                _draw(axes, method, [row for row in rows if row["method"] == method and row.get(cost)], cost, floor)
            for anchor in published:
                where = {"num_params": anchor.params, "macs": anchor.macs, "step_ms": None}[cost]
                if where is not None:
                    axes.plot(where, anchor.accuracy, "*", color="#777777", markersize=9, markerfacecolor="none")
                    axes.annotate(anchor.label, (where, anchor.accuracy), (4, 4), textcoords="offset points", size=7)
            axes.set(xscale="log", xlabel=label)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_minor_formatter(NullFormatter())
        figure.axes[0].set_ylabel("test accuracy, %")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        if handles:
            figure.axes[1].figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure.svg


def _draw(axes, method: str, rows: Sequence[Mapping[str, Any]], cost: str, floor: float) -> None:
    style = look(method).style()
    height = [max(floor, 100 * row["test_accuracy"]) for row in rows]
    axes.plot([row[cost] for row in rows], height, **style | {"linestyle": ""}, alpha=0.5)
    depths = {row["depth"]: [r for r in rows if r["depth"] == row["depth"]] for row in rows}
    means = [(fmean(r[cost] for r in d), 100 * fmean(r["test_accuracy"] for r in d)) for _, d in sorted(depths.items())]
    for where, mean in means:
        if mean < floor:
            axes.annotate(f"\u2193 {mean:.0f} %", (where, floor), (-10, 6), textcoords="offset points", size=7)
    if means:
        axes.plot(*zip(*((x, max(floor, y)) for x, y in means), strict=True), **style, label=look(method).label)
