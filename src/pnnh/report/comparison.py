"""The report of a comparison: results (as in results.json) -> a page of figures, a table and sentences.

A sentence speaks of a difference only where the 95 % interval of the difference excludes 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pnnh.report.figure import draw
from pnnh.report.frontier import anchors, frontier, look
from pnnh.report.page import Page, Section, evidence_of
from pnnh.report.picture import losses, picture
from pnnh.report.picture import reading as picture_reading

OURS = ("pnnh", "pnnh_wide")
NEAREST = ("residual_narrow", "residual_short", "residual_same_block")  # made to be as large as the PNNH net
EQUAL = 0.05  # how far apart two numbers of parameters count as equal
GAP = 15  # points between training and test accuracy that call for a warning
_COLUMNS = (
    "Params: shared kernels once. MACs: of one image. ms: one update while training, median of the epochs. "
    "std: over n seeds."
)


def comparison_page(results: Mapping[str, Any]) -> Page:
    """`results`: rows, summary, settings, data and the environment, as `pnnh compare` writes them."""
    rows, table, data = results["rows"], results["summary"], results["data"]
    recipe = results["settings"]["recipe"]
    own = ", except for its learning rate" if any("lr" in row for row in table) else ""
    lead = (
        f"{len(rows)} nets trained on {data['name']} for {recipe['epochs']} epochs each, batch {recipe['batch_size']}, "
        f"{recipe['optimizer']['type']}, the same recipe for every method{own}. "
        "Accuracies are those of the last epoch."
    )
    stars = "".join(f" Stars: {source}." for source in anchors(data))
    sections = [
        *dissipation(rows),
        Section(
            "Accuracy against parameters, multiply-accumulates and time",
            svgs=[frontier(results)],
            caption=f"A mark is a net, a line joins the means of a method's depths.{stars}",
        ),
        Section("What happened", reading=[*reading(results), *divergences(rows)]),
        Section("Results", rows=as_read(table), caption=_COLUMNS),
        Section("Training curves", svgs=[_curves(rows)], caption="Test accuracy after each epoch, a line per net."),
    ]
    more = {"Seeds": ", ".join(map(str, sorted({row["seed"] for row in rows})))}
    more |= {"Data": f"{data['name']}, {data['num_test']} test images, sha256 {data.get('sha256')}"}
    return Page("Plain, residual and PNNH nets side by side", lead, sections, evidence_of(results, **more))


def dissipation(rows: Sequence[Mapping[str, Any]]) -> list[Section]:
    """One image read back along the deepest nets, and the lines behind the picture; nothing without views."""
    nets = [(row["method"], row["depth"], row["test_accuracy"], row["views"]) for row in rows if row.get("views")]
    if not nets:
        return []
    caption = (
        "A test image, and what a linear decoder, fitted on other images, still reads of it at the end of each part of "
        "a net. R² is the share of the image's variance that is read; a grey average means that nothing is left."
    )
    alive = "Share of positive responses: means over twelve parts of a net, on test images."
    return [
        Section(f"One image on its way through {nets[0][1]} layers", svgs=[picture(nets)], caption=caption),
        Section("In words and lines", reading=picture_reading(nets), svgs=losses(nets), caption=alive),
    ]


def as_read(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The summary as people read it: "diverged" where no net has an accuracy, no deviations of single seeds."""
    single = all(row["std"] is None for row in table)
    short = {"step_ms": "ms"}  # so that the table fits 80 columns
    rows = [{short.get(k, k): value for k, value in row.items() if not (single and k == "std")} for row in table]
    return [row | {"test_%": "diverged" if row["test_%"] is None else row["test_%"]} for row in rows]


def divergences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each net whose loss became infinite or NaN."""
    return [
        f"Depth {row['depth']}, seed {row['seed']}: the {look(row['method']).label} net diverged: {row['diverged']}."
        for row in rows
        if row.get("diverged")
    ]


class Net(NamedTuple):
    """A method at a depth: the test accuracies of its seeds in %, parameters, MACs, mean training accuracy in %."""

    method: str
    depth: int
    tests: list[float]
    params: int
    macs: int
    train: float | None

    @property
    def name(self) -> str:
        return f"{look(self.method).label} of depth {self.depth}"

    @property
    def mean(self) -> float:
        return statistics.fmean(self.tests)


class Difference(NamedTuple):
    """A difference of two accuracies in points, half the width of its 95 % interval, and the kind of interval."""

    points: float
    half_width: float
    kind: str

    def __str__(self) -> str:
        shown = f"{self.points:+.2f} +- {self.half_width:.2f} points, {self.kind}"
        if abs(self.points) <= self.half_width:
            return f"no difference shown ({shown})"
        side = "above" if self.points > 0 else "below"
        return f"{abs(self.points):.1f} points {side} ({shown})"


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: a table up to 10 degrees of freedom, an expansion beyond (error < 0.003)."""
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    if freedom <= len(table):
        return table[max(1, freedom) - 1]
    z = 1.95996
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def difference(ours: Sequence[float], theirs: Sequence[float], num_test: int) -> Difference:
    """Mean of `ours` less mean of `theirs` (accuracies in %, one a seed) with its 95 % interval.

    With two seeds or more on both sides Welch's, over seeds; otherwise, or where the seeds agree exactly, of two
    independent binomials over the test images, which is wide because both nets saw the same images.
    """
    points = statistics.fmean(ours) - statistics.fmean(theirs)
    if min(len(ours), len(theirs)) > 1:
        parts = [statistics.variance(seeds) / len(seeds) for seeds in (ours, theirs)]
        if sum(parts) > 0:
            spread = sum(part**2 / (len(seeds) - 1) for part, seeds in zip(parts, (ours, theirs), strict=True))
            half = student(int(sum(parts) ** 2 / spread)) * math.sqrt(sum(parts))
            return Difference(points, half, f"95 % Welch interval over {len(ours)} and {len(theirs)} seeds")
    half = math.hypot(_binomial(ours, num_test), _binomial(theirs, num_test))
    return Difference(points, half, f"95 % binomial interval over {num_test:,} test images")


def _binomial(seeds: Sequence[float], num_test: int) -> float:
    share = statistics.fmean(seeds) / 100
    return 196 * math.sqrt(share * (1 - share) / num_test)


def reading(results: Mapping[str, Any]) -> list[str]:
    """Sentences computed from the rows: chance and test size, PNNH nets against each twin, depths, warnings."""
    rows, data = results["rows"], results["data"]
    nets = _nets(rows)
    lines = []
    for ours in (net for net in nets if net.method in OURS):
        twins = [net for net in nets if net.method not in OURS and _is_twin(ours, net)]
        lines += [_against(ours, twin, data["num_test"]) for twin in twins]
        residual = any(net.method.startswith("residual") for net in twins)
        if residual and not any(net.method in NEAREST or _ratio(ours, net) < EQUAL for net in twins):
            lines.append(
                f"No residual net of the size of {ours.name} was trained; "
                "residual_narrow, residual_short and residual_same_block are methods for this."
            )
    lines += [_deeper(net, nets, data["num_test"]) for net in nets if _shallower(net, nets)]
    commonest = [row["curve"][-1].get("chance") or 0 for row in rows if row.get("curve")]
    chance = 100 * max(1 / data["num_classes"], *commonest, 0)
    size = f"Accuracies are shares of {data['num_test']:,} test images; always the same answer gives {chance:.3g} %."
    return [size, *lines, *[line for net in nets for line in _warnings(net, chance, data["num_test"])]]


def _nets(rows: Sequence[Mapping[str, Any]]) -> list[Net]:
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["test_accuracy"] is not None:
            groups.setdefault((row["depth"], row["method"]), []).append(row)
    nets = []
    for (depth, method), group in sorted(groups.items(), key=lambda item: item[0][0]):
        learnt = [100 * row["train_accuracy"] for row in group if row.get("train_accuracy") is not None]
        tests, train = [100 * row["test_accuracy"] for row in group], statistics.fmean(learnt) if learnt else None
        nets.append(Net(method, depth, tests, group[0]["num_params"], group[0]["macs"], train))
    return nets


def _ratio(a: Net, b: Net) -> float:
    return abs(a.params / b.params - 1)


def _is_twin(ours: Net, net: Net) -> bool:
    """A net of the same depth, or a residual one of another depth with as many parameters."""
    return net.depth == ours.depth or (net.method.startswith("residual") and _ratio(ours, net) < EQUAL)


def _against(ours: Net, twin: Net, num_test: int) -> str:
    gap = difference(ours.tests, twin.tests, num_test)
    equal = (
        "as many parameters" if _ratio(ours, twin) < EQUAL else f"{ours.params / twin.params:.2f} times the parameters"
    )
    return (
        f"{ours.name} ({ours.mean:.1f} %) against {twin.name} ({twin.mean:.1f} %), with {equal} and "
        f"{ours.macs / twin.macs:.2f} times the MACs: {gap}."
    )


def _shallower(net: Net, nets: Sequence[Net]) -> list[Net]:
    return [other for other in nets if other.method == net.method and other.depth < net.depth]


def _deeper(net: Net, nets: Sequence[Net], num_test: int) -> str:
    other = _shallower(net, nets)[-1]
    gap = difference(net.tests, other.tests, num_test)
    return f"{look(net.method).label}, depth {net.depth} against {other.depth}: {gap}."


def _warnings(net: Net, chance: float, num_test: int) -> list[str]:
    lines = []
    if net.mean - _binomial(net.tests, num_test) <= chance:
        lines.append(f"{net.name}: {net.mean:.1f} % is not distinguishable from guessing.")
    if net.train is not None and net.train - net.mean > GAP:
        lines.append(
            f"{net.name}: training accuracy, {net.train:.1f} %, is {net.train - net.mean:.1f} points above test "
            "accuracy: the net learned its training images by heart, or its norms' statistics lag behind its weights."
        )
    return lines


def _curves(rows: Sequence[Mapping[str, Any]]) -> str:
    depths = sorted({row["depth"] for row in rows})
    with draw(len(depths), width=min(11, 4.8 * max(2, len(depths))), height=3.2, sharey=True, squeeze=False) as figure:
        for axes, depth in zip(figure.axes[0], depths, strict=True):
            named = set()
            for row in (row for row in rows if row["depth"] == depth):
                method = row["method"]
                seen = [event for event in row["curve"] if event["test_accuracy"] is not None]
                points = [event["epoch"] for event in seen], [100 * event["test_accuracy"] for event in seen]
                style = look(method).style() | {"markevery": max(1, len(seen) // 6), "markersize": 4, "linewidth": 1.3}
                axes.plot(*points, **style, label=None if method in named else look(method).label)
                named.add(method)
            axes.set(title=f"Depth {depth}", xlabel="epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        figure.axes[0][0].set_ylabel("test accuracy, %")
        figure.axes[0][0].legend()
    return figure.svg
