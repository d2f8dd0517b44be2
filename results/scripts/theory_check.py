"""Theory beside measurement, where its assumptions hold and where not: results/theory_check.json.

    python results/scripts/theory_check.py           # measure (a few minutes on a core), then draw
    python results/scripts/theory_check.py --draw    # docs/figures/theory-breaks.svg again, from the records

Hold: plain MLPs and CNNs of He-normal weights; mean, mean square and survival of every layer in standard errors from
`pnnh.theory`. Conv-batch norm-ReLU chains of 56 layers: growth of the gradient, and with the depth-solved shift.
Break: the same nets on correlated inputs, batch norm and its running statistics, the paper's centred form.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from pnnh import theory
from pnnh.analysis import Decoder, Dissipation, diagnose
from pnnh.provenance import environment
from pnnh.report import json_text, write_text

OUT = Path(__file__).resolve().parents[1]
FIGURE = OUT.parent / "docs" / "figures" / "theory-breaks.svg"
DEPTH, SEEDS, K = 24, range(5), 1.0
CHEAP = {"decoder": Decoder(grid=2, features=4, ridges=(1e-2,)), "draws": 2, "pictures": 1, "batch_size": 64}
MEASURES = ("mean_z", "square_z", "survival_z")
KEPT = ("depth", "survival", "dead", "mean", "variance", "cosine", "theory_variance", "theory_survival", *MEASURES)


def mlp(depth: int, width: int = 512) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers)


def cnn(depth: int, width: int = 64, shift: float | None = None, padding: str = "zeros") -> nn.Sequential:
    """He-normal convolutions and ReLU; with a shift, batch norm of that bias in between."""
    layers: list[nn.Module] = []
    for index in range(depth):
        conv = nn.Conv2d(width if index else 3, width, 3, padding=1, padding_mode=padding, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv]
        if shift is not None:
            layers += [nn.BatchNorm2d(width)]
            nn.init.constant_(layers[-1].bias, shift)
        layers += [nn.ReLU()]
    return nn.Sequential(*layers)


def pictures(seed: int) -> Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def vectors(seed: int) -> Tensor:
    return torch.rand(64, 512, generator=torch.Generator().manual_seed(seed))


def alike(seed: int) -> Tensor:
    """Inputs of correlation 0.95: one picture, and a little of each."""
    own = torch.randn(64, 512, generator=torch.Generator().manual_seed(seed))
    return math.sqrt(0.95) * own[:1] + math.sqrt(0.05) * own


def unlike(seed: int) -> Tensor:
    return torch.randn(64, 512, generator=torch.Generator().manual_seed(seed))


def runs(build, inputs, training: bool | None = None, gradient: bool = False) -> list[Dissipation]:
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        net = build()
        found.append(diagnose(net, inputs(seed), training=training, gradient=gradient, seed=seed, **CHEAP))
    return found


def rows(found: list[Dissipation]) -> list[dict]:
    return [{"seed": s, **{k: row[k] for k in KEPT}} for s, run in zip(SEEDS, found, strict=True) for row in run.rows()]


def agreement(found: list[Dissipation]) -> dict:
    """All layers of all seeds, one by one and, the seeds' deviations added up, layer by layer."""
    layers = [layer for run in found for layer in run.layers]
    pooled = {
        name: [sum(getattr(layer, name) for layer in same) / math.sqrt(len(same)) for same in zip(*nets, strict=True)]
        for name in MEASURES
        for nets in [[run.layers for run in found]]
    }
    beyond = [
        {"seed": seed, "layer": layer.layer, "measure": name, "z": getattr(layer, name)}
        for seed, run in zip(SEEDS, found, strict=True)
        for layer in run.layers
        for name in MEASURES
        if abs(getattr(layer, name)) > 3
    ]
    return {
        "layers": len(layers),
        "agree": sum(bool(layer.agrees) for layer in layers),
        "expected_by_chance": len(layers) * len(MEASURES) * math.erfc(3 / math.sqrt(2)),
        "beyond_3": beyond,
        "pooled_layers": len(found[0].layers),
        "pooled_agree": sum(max(map(abs, zs)) <= 3 for zs in zip(*pooled.values(), strict=True)),
        "pooled_largest": {name: max(zs, key=abs) for name, zs in pooled.items()},
        "bound_violations": sum(layer.survival < layer.bound for layer in layers),
        "survival_mean": statistics.fmean(layer.survival for layer in layers),
        "variance_over_theory": statistics.fmean(layer.variance / layer.theory_variance for layer in layers),
        "rows": rows(found),
    }


def growths(shift: float, padding: str, depth: int = 56) -> dict:
    found = runs(lambda: cnn(depth, shift=shift, padding=padding), pictures, training=True, gradient=True)
    total = [run.gradient_growth for run in found]
    each = [value ** (1 / (depth - 1)) for value in total]
    record = {
        "shift": shift,
        "padding": padding,
        "theory_each": math.sqrt(theory.chi(shift)),
        "each": each,
        "total": total,
    }
    return record | {"each_mean": statistics.fmean(each), "each_std": statistics.stdev(each)}


def main() -> None:
    if "--draw" in sys.argv:
        return draw(json.loads((OUT / "theory_check.json").read_text()))
    record = environment() | {"seeds": list(SEEDS), "depth": DEPTH}
    for name, build, inputs in (("mlp", mlp, vectors), ("cnn", cnn, pictures)):
        record[name] = agreement(runs(lambda build=build: build(DEPTH), inputs))
        print(name, {key: value for key, value in record[name].items() if key != "rows"}, flush=True)
    for name, shift in (("unshifted", 0.0), ("solved", theory.solve_shift(56, K))):
        for padding in ("circular", "zeros"):
            record[f"{name}, {padding}"] = growths(shift, padding)
            print(name, record[f"{name}, {padding}"], flush=True)
    record["breaks"] = {
        "independent inputs": rows(runs(lambda: mlp(DEPTH), unlike)),
        "correlated inputs": rows(runs(lambda: mlp(DEPTH), alike)),
        "batch norm": rows(runs(lambda: cnn(DEPTH, shift=0.0), pictures, training=True)),
        "batch norm, running statistics": rows(runs(lambda: cnn(DEPTH, shift=0.0), pictures, training=False)),
    }
    write_text(OUT / "theory_check.json", json_text(record))
    draw(record)


def by_depth(found: list[dict], key: str) -> list[float]:
    """Mean over the seeds, layer by layer."""
    return [
        statistics.fmean(r[key] for r in found if r["depth"] == d + 1) for d in range(max(r["depth"] for r in found))
    ]


def draw(record: dict) -> None:
    """Four panels: what the theory takes for granted, and by how much a net strays that does not grant it."""
    from pnnh.report.figure import COLOURS
    from pnnh.report.figure import draw as figure_of

    breaks = record["breaks"]
    with figure_of(2, 2, width=8.6, height=6.2) as figure:
        (centred, dead), (cosine, trained) = figure.axes
        _centred(centred, record["mlp"]["rows"], breaks["batch norm, running statistics"], COLOURS)
        for name, colour in (("independent inputs", COLOURS[0]), ("correlated inputs", COLOURS[1])):
            found = breaks[name]
            dead.plot(range(1, DEPTH + 1), by_depth(found, "dead"), color=colour, label=f"measured, {name}")
            measured = by_depth(found, "cosine")
            expected = [measured[0]]
            for _ in measured[1:]:
                expected.append(theory.correlation(expected[-1]))
            cosine.plot(range(1, DEPTH + 1), measured, color=colour, label=name)
            cosine.plot(range(1, DEPTH + 1), expected, "k.", markersize=3.5)
        dead.axhline(0, color="k", linestyle=":", linewidth=1, label="independent neurons: 2⁻⁶⁴")
        dead.set(title="Units dead for all 64 inputs", ylim=(-0.02, 0.52))
        cosine.plot([], [], "k.", markersize=3.5, label="theory, infinite width")
        cosine.set(title="Correlation of two inputs' features", ylim=(0, 1.02), xlabel="layer")
        _strays(trained, breaks, COLOURS)
        for axes in figure.axes.flat:
            axes.legend(fontsize=7.5)
    write_text(FIGURE, figure.svg)


def _centred(axes, found: list[dict], unfitted: list[dict], colours) -> None:
    """Measured variance over both forms; the input of a layer is the ReLU of the response before it."""
    variance = by_depth(found, "variance")
    general = [v / t for v, t in zip(variance, by_depth(found, "theory_variance"), strict=True)]
    inputs = [theory.rectified(theory.Response(0.0, v)).variance for v in variance[:-1]]
    paper = [v / theory.paper_plain(i).variance for v, i in zip(variance[1:], inputs, strict=True)]
    axes.plot(range(1, len(general) + 1), general, color=colours[0], label="general form, 2 (v + m²)")
    axes.plot(range(2, len(general) + 1), paper, color=colours[1], label="centred form, 2 v")
    ratio = [v / t for v, t in zip(by_depth(unfitted, "variance"), by_depth(unfitted, "theory_variance"), strict=True)]
    axes.plot(range(1, len(ratio) + 1), ratio, color=colours[3], label="CNN, batch norm never fitted: 1")
    axes.set(title="Variance measured over predicted", ylim=(0, 1.8))


def _strays(axes, breaks: dict, colours) -> None:
    """Survival measured less predicted: batch norm at the start, and trained nets where their record is there."""
    pairs = zip(
        by_depth(breaks["batch norm"], "survival"), by_depth(breaks["batch norm"], "theory_survival"), strict=True
    )
    place = [d / DEPTH for d in range(1, DEPTH + 1)]
    axes.plot(place, [s - t for s, t in pairs], color=colours[2], label="batch norm, untrained")
    trained = OUT / "dissipation-trained.json"
    nets = json.loads(trained.read_text())["nets"] if trained.is_file() else {}
    for (name, net), colour in zip(nets.items(), (colours[1], colours[0], colours[4]), strict=False):
        known = [r for r in net["rows"] if r["theory_survival"] is not None]
        depth = [r["depth"] / len(net["rows"]) for r in known]
        axes.plot(
            depth, [r["survival"] - r["theory_survival"] for r in known], color=colour, lw=1, label=f"trained {name}"
        )
    axes.set(title="Survival measured less predicted", xlabel="depth, as a share of the net's", ylim=(-0.5, 0.5))


if __name__ == "__main__":
    main()
