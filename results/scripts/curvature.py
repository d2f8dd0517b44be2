"""How steep the loss is at the start, and the rate that allows: why nets without norm need a smaller one.

    python results/scripts/curvature.py        writes results/curvature.json

Largest curvature lambda by power iteration on 64 training images of CIFAR-10 at 16 px, depth 56, seed 0. On a
quadratic, gradient descent with Nesterov momentum m is stable below 2 (1 + m) / (1 + 2 m) / lambda. Batch norm flattens
the loss as weights grow, so its nets bear far more than their start allows; nets without norm bear little more.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from _evidence import evidence
from torch.nn import functional as F

from pnnh import recipes
from pnnh.train import Normalise, load_data

PLACE = Path(__file__).resolve().parents[1] / "curvature.json"
METHODS = ("residual", "isonet", "tat")
MOMENTUM, ITERATIONS, DEPTH = 0.9, 12, 56


def steepest(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The Hessian's eigenvalue of largest magnitude, with its sign."""
    parameters = list(model.parameters())
    loss = F.cross_entropy(model.train()(images), labels)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    direction, value = [torch.randn_like(p) for p in parameters], 0.0
    for _ in range(ITERATIONS):
        length = sum((part**2).sum() for part in direction) ** 0.5
        direction = [part / length for part in direction]
        along = sum((a * b).sum() for a, b in zip(gradient, direction, strict=True))
        image = torch.autograd.grad(along, parameters, retain_graph=True)
        value = sum((a * b).sum() for a, b in zip(image, direction, strict=True)).item()
        direction = [part.detach() for part in image]
    return value


def largest_rate(curvature: float, momentum: float = MOMENTUM) -> float:
    """At which gradient descent with Nesterov momentum on a quadratic is just stable."""
    return 2 * (1 + momentum) / (1 + 2 * momentum) / curvature


def main() -> None:
    data = load_data("cifar10", image_size=16, limit=1000)
    images = Normalise(data, torch.device("cpu"))(data.train.images[:64])
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        torch.manual_seed(0)
        model, _ = recipes.build(method, DEPTH)
        curvature = steepest(model, images, data.train.labels[:64])
        rows.append({"method": method, "curvature": curvature, "largest_rate": largest_rate(curvature)})
        print(rows[-1], flush=True)
    PLACE.write_text(json.dumps({"depth": DEPTH, "rows": rows, "evidence": evidence()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
