"""`pnnh models`: what there is."""

from __future__ import annotations

import csv
from importlib import resources


def run() -> int:
    """List our models with their depth, parameters and multiply-accumulates of one image at their own size."""
    from rich.console import Console

    from pnnh import report

    Console().print(report.terminal(known()))
    return 0


def known() -> list[dict]:
    """The rows of models/sizes.csv, which results/scripts/model_sizes.py writes: counting all nets takes a minute."""
    table = resources.files("pnnh").joinpath("models", "sizes.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(table.splitlines())
    return [{key: int(value) if value.isdigit() else value for key, value in row.items()} for row in rows]


def counted(name: str) -> dict:
    """The row of one model, counted anew, on the meta device."""
    import torch

    from pnnh import models
    from pnnh.cost import cost

    with torch.device("meta"):
        net = models.create_model(name)
    size = net.pretrained_cfg["input_size"]
    depth = net.depth if hasattr(net, "depth") else len(net.blocks)
    found = cost(net, size)
    return {
        "model": name,
        "depth": depth,
        "params": found.num_params,
        "macs": found.macs,
        "input": "x".join(map(str, size)),
    }
