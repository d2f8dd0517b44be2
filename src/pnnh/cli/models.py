"""`pnnh models`: the models of this package."""

from __future__ import annotations

from pnnh.cli._shared import Show


def run(*, show: Show) -> None:
    """List our models with their depth, parameters and multiply-accumulates of one image at their own size."""
    show.table(known())


def known() -> list[dict]:
    """The rows of models/sizes.csv, which results/scripts/model_sizes.py writes: counting all nets takes a minute."""
    import csv
    from importlib import resources

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
    total = cost(net, size)
    shown = "x".join(map(str, size))
    return {"model": name, "depth": depth, "params": total.num_params, "macs": total.macs, "input": shown}
