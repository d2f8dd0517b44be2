"""The report of a comparison: results (as in results.json) -> a page of figures, a table and what the numbers say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pnnh.report.figure import COLOURS, draw
from pnnh.report.page import Page, Section

_RIVALS = {"diracnet": "DiracNet", "repvgg": "RepVGG", "isonet": "ISONet", "tat": "TAT"}
_COLOUR = {"plain": COLOURS[4], "residual": COLOURS[0], "pnnh": COLOURS[2]}
_COLOUR |= dict(zip(_RIVALS, (COLOURS[1], COLOURS[3], COLOURS[6], COLOURS[7]), strict=True))
_COLOUR |= {"skip_init": COLOURS[1], "pnnh_wide": COLOURS[5]}
_COLUMNS = "Params: shared kernels once. MACs: of one image. img/s: training, median epoch."
_SEEDS = "Thin lines: single seeds. Test accuracy after each epoch."
_ALIVE = (
    "Share of positive units after each ReLU on 128 test images, first layer left, last layer right. "
    "A layer of a PNNH net has a learner and a stream: a dot each."
)
_OURS = {"pnnh": "PNNH", "pnnh_wide": "Wider PNNH"}
_LABEL = {"plain": "plain", "residual": "residual"} | _OURS | _RIVALS | {"skip_init": "Cutting the Skip"}


def comparison_page(results: Mapping[str, Any]) -> Page:
    """`results`: rows, summary, settings, data and the environment, as `pnnh compare` writes them."""
    rows, table = results["rows"], results["summary"]
    recipe = results["settings"]["recipe"]
    data = results["data"]
    own = ", except for its learning rate" if any("lr" in row for row in table) else ""
    lead = (
        f"{len(rows)} nets trained on {data['name']} for {recipe['epochs']} epochs each, batch {recipe['batch_size']}, "
        f"{recipe['optimizer']['type']}, the same recipe for every method{own}. "
        "Curves show test images after every epoch; the table takes the last."
    )
    sections = [
        Section("What happened", reading=[*reading(table), *divergences(rows)]),
        Section("Results", rows=as_read(table), caption=_COLUMNS),
        Section("Accuracy against depth and against parameters", svgs=[accuracy(table)]),
        Section("Training curves", svgs=[_curves(rows)], caption=_SEEDS),
        Section(
            "Survival by layer",
            svgs=[_survival(rows)],
            caption=_ALIVE,
        ),
    ]  # fmt: skip
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    evidence = (
        f"Command: {results['command']}",
        f"{results['date']}, code {results['code_version']}; {versions}",
        f"Device: {results['device']}; seeds {sorted({row['seed'] for row in rows})}",
        f"Data: {data['name']}, sha256 {data.get('sha256')}",
    )
    return Page("Plain, residual and PNNH nets side by side", lead, sections, evidence)


def as_read(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The summary as people read it: "diverged" where no net has an accuracy."""
    return [{**row, "test_%": "diverged" if row["test_%"] is None else row["test_%"]} for row in table]


def divergences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each net whose loss left the numbers."""
    return [
        f"Depth {row['depth']}, seed {row['seed']}: the {_LABEL.get(row['method'], row['method'])} net diverged: "
        f"{row['diverged']}."
        for row in rows
        if row.get("diverged")
    ]


def reading(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences computed from the summary rows: who trains, who fails, by how much, at what size."""
    cell = {(row["method"], row["depth"]): row for row in table if row["test_%"] is not None}
    depths = sorted({row["depth"] for row in table})
    lines = []
    for depth in depths:
        present = {m: cell[m, depth] for m in _LABEL if (m, depth) in cell}
        for method in [name for name in _OURS if {name, "residual"} <= present.keys()]:
            ours, theirs = present[method], present["residual"]
            gap = ours["test_%"] - theirs["test_%"]
            side = f"{gap:.1f} points above" if gap > 0 else f"{-gap:.1f} points below"
            how = "level with" if abs(gap) < 0.5 else side
            params, macs = ours["params"] / theirs["params"], ours["macs"] / theirs["macs"]
            lines.append(
                f"Depth {depth}: {_OURS[method]} reaches {ours['test_%']:.1f} %, {how} its residual twin "
                f"({theirs['test_%']:.1f} %), with {params:.2f} times the parameters and {macs:.2f} times the MACs"
                + _caution(ours, theirs, gap)
            )
        if "plain" in present and len(present) > 1:
            reached = present["plain"]["test_%"]
            gap = max(row["test_%"] for method, row in present.items() if method != "plain") - reached
            verdict = "fails to follow" if gap >= 5 else ("falls behind" if gap >= 1 else "keeps up")
            distance = f"{gap:.1f} points short of" if gap >= 0 else f"{-gap:.1f} points ahead of"
            lines.append(
                f"Depth {depth}: the plain net {verdict}: {reached:.1f} %, {distance} the best net with a path."
            )
    for method in _LABEL:
        reached = [(depth, cell[method, depth]["test_%"]) for depth in depths if (method, depth) in cell]
        if len(reached) > 1:
            (d0, first), (d1, last) = reached[0], reached[-1]
            change = last - first
            word = "gains" if change > 0.5 else ("loses" if change < -0.5 else "neither gains nor loses:")
            lines.append(f"From depth {d0} to {d1} the {_LABEL[method]} net {word} {abs(change):.1f} points.")
    return lines


def _caution(ours: Mapping[str, Any], theirs: Mapping[str, Any], gap: float) -> str:
    if min(ours["n"], theirs["n"]) < 2:
        return "; one seed each, so read differences of a point or two as noise."
    spread = ((ours["std"] ** 2) / ours["n"] + (theirs["std"] ** 2) / theirs["n"]) ** 0.5
    return f"; the difference is {gap:+.2f} +- {spread:.2f} (standard error over seeds)."


def accuracy(table: Sequence[Mapping[str, Any]]) -> str:
    """Figure of the summary rows in `table`: accuracy against depth and against parameters, bars are one deviation."""
    with draw(2, width=9.5, height=3.4) as figure:
        left, right = figure.axes
        for method in dict.fromkeys(row["method"] for row in table):
            group = [row for row in table if row["method"] == method and row["test_%"] is not None]
            style = {"color": _COLOUR.get(method), "label": _LABEL.get(method, method), "marker": "o", "capsize": 3}
            spread = [row["std"] or 0 for row in group]
            left.errorbar([row["depth"] for row in group], [row["test_%"] for row in group], spread, **style)
            right.errorbar([row["params"] / 1e6 for row in group], [row["test_%"] for row in group], spread, **style)
        depths = sorted({row["depth"] for row in table})
        left.set(xlabel="depth", ylabel="test accuracy, %", title="Deeper", xticks=depths)
        right.set(xlabel="parameters, millions", title="Leaner")
        left.legend()
    return figure.svg


def _curves(rows: Sequence[Mapping[str, Any]]) -> str:
    depths = sorted({row["depth"] for row in rows})
    with draw(len(depths), width=min(11, 4.8 * max(2, len(depths))), height=3.2, sharey=True, squeeze=False) as figure:
        for axes, depth in zip(figure.axes[0], depths, strict=True):
            named = set()
            for row in (row for row in rows if row["depth"] == depth):
                method = row["method"]
                seen = [event for event in row["curve"] if event["test_accuracy"] is not None]
                points = [event["epoch"] for event in seen], [100 * event["test_accuracy"] for event in seen]
                label = None if method in named else _LABEL.get(method, method)
                named.add(method)
                axes.plot(*points, color=_COLOUR.get(method), label=label, linewidth=1.3)
            axes.set(title=f"Depth {depth}", xlabel="epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        figure.axes[0][0].set_ylabel("test accuracy, %")
        figure.axes[0][0].legend()
    return figure.svg


def _survival(rows: Sequence[Mapping[str, Any]]) -> str:
    """At the depth that most methods have, the greatest of them."""
    methods = {depth: {row["method"] for row in rows if row["depth"] == depth} for depth in {r["depth"] for r in rows}}
    depth = max(methods, key=lambda depth: (len(methods[depth]), depth))
    rows = [row for row in rows if row["depth"] == depth]
    with draw(2, width=9.5, height=3.2, sharey=True) as figure:
        for axes, when, title in zip(
            figure.axes, ("survival_at_init", "survival_trained"), ("At initialisation", "After training"), strict=True
        ):
            for method in dict.fromkeys(row["method"] for row in rows):
                alive = next((row[when] for row in rows if row["method"] == method and row[when]), [])
                place = [index / max(1, len(alive) - 1) for index in range(len(alive))]
                axes.plot(place, alive, ".", color=_COLOUR.get(method), label=_LABEL.get(method, method), markersize=5)
            axes.axhline(0.5, color="#999999", linewidth=0.8, linestyle=":")
            axes.set(title=f"{title}, depth {depth}", xlabel="position in the net", ylim=(0, 1))
        figure.axes[0].set_ylabel("share of positive units")
        figure.axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure.svg
