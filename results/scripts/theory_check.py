"""Theory beside measurement where its assumptions hold: results/theory_check.json and .md.

    python results/scripts/theory_check.py

Plain MLPs and CNNs of He-normal weights: mean, mean square and survival of every layer against `pnnh.theory`, within
three standard errors. Conv-batch norm-ReLU chains of 56 layers: growth of the gradient, and with the solved shift.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import torch
from _evidence import evidence
from torch import Tensor, nn

from pnnh import theory
from pnnh.analysis import Decoder, Dissipation, diagnose
from pnnh.report import json_text, write_text

OUT = Path(__file__).resolve().parents[1]
DEPTH, SEEDS, K = 24, range(5), 1.0
CHEAP = {"decoder": Decoder(grid=2, features=4, ridges=(1e-2,)), "draws": 2, "pictures": 1, "batch_size": 64}


def mlp(depth: int, width: int = 512) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers)


def cnn(depth: int, width: int = 64, shift: float | None = None) -> nn.Sequential:
    """He-normal convolutions and ReLU; with a shift, batch norm of that bias in between."""
    layers: list[nn.Module] = []
    for index in range(depth):
        conv = nn.Conv2d(width if index else 3, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv]
        if shift is not None:
            layers += [nn.BatchNorm2d(width)]
            nn.init.constant_(layers[-1].bias, shift)
        layers += [nn.ReLU()]
    return nn.Sequential(*layers)


def pictures(seed: int) -> Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def agreement(found: list[Dissipation]) -> dict:
    layers = [layer for run in found for layer in run.layers]
    return {
        "layers": len(layers),
        "agree": sum(bool(layer.agrees) for layer in layers),
        "bound_violations": sum(layer.survival < layer.bound for layer in layers),
        "survival_mean": statistics.fmean(layer.survival for layer in layers),
        "variance_over_theory": statistics.fmean(layer.variance / layer.theory_variance for layer in layers),
        "rows": [row for run in found for row in run.rows()],
    }


def growths(shift: float, depth: int = 56) -> list[float]:
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        found.append(diagnose(cnn(depth, shift=shift), pictures(seed), training=True, **CHEAP).gradient_growth)
    return found


def main() -> None:
    record = evidence() | {"seeds": list(SEEDS), "depth": DEPTH}
    for name, build in (("mlp", mlp), ("cnn", cnn)):
        runs = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            net = build(DEPTH)
            images = (
                pictures(seed) if name == "cnn" else torch.rand(64, 512, generator=torch.Generator().manual_seed(seed))
            )
            runs.append(diagnose(net, images, gradient=False, **CHEAP))
        record[name] = agreement(runs)
        print(name, {key: value for key, value in record[name].items() if key != "rows"}, flush=True)
    solved = theory.solve_shift(56, K)
    for name, shift in (("unshifted", 0.0), ("solved", solved)):
        total = growths(shift)
        each = [value ** (1 / 55) for value in total]
        record[name] = {"shift": shift, "theory_each": math.sqrt(theory.chi(shift)), "each": each, "total": total}
        record[name] |= {
            "each_mean": statistics.fmean(each),
            "each_std": statistics.stdev(each),
            "target": math.exp(K / 2),
        }
        print(name, record[name], flush=True)
    write_text(OUT / "theory_check.json", json_text(record))
    write_text(OUT / "theory_check.md", markdown(record))


def markdown(record: dict) -> str:
    lines = [f"Theory beside measurement. Again: `{record['command']}` (record: theory_check.json).", ""]
    lines += [
        "| net | layers measured | within 3 standard errors in all of mean, mean square, survival | bound violated |"
    ]
    lines += ["|---|---|---|---|"]
    for name in ("mlp", "cnn"):
        found = record[name]
        counts = f"{found['layers']} | {found['agree']} | {found['bound_violations']}"
        lines.append(f"| plain {name}, {record['depth']} layers | {counts} |")
    lines += [
        "",
        "| conv-BN-ReLU, 56 layers | shift | growth a layer, theory | measured, mean ± std | total | target |",
    ]
    lines += ["|---|---|---|---|---|---|"]
    for name in ("unshifted", "solved"):
        row = record[name]
        total = ", ".join(f"{value:.4g}" for value in row["total"])
        target = f"{row['target']:.3g}" if name == "solved" else ""
        each = f"{row['each_mean']:.4f} ± {row['each_std']:.4f}"
        lines.append(f"| {name} | {row['shift']:.3f} | {row['theory_each']:.4f} | {each} | {total} | {target} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
