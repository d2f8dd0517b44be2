"""`pnnh models`: what there is."""

from __future__ import annotations


def run() -> int:
    """List our models with their depth, parameters and multiply-accumulates of one image at their own size."""
    import timm
    from rich.console import Console

    from pnnh import report
    from pnnh._cost import cost
    from pnnh.models.registry import SPECS

    rows = []
    for name in SPECS:
        model = timm.create_model(name)
        size = model.pretrained_cfg["input_size"]
        counted = cost(model, size)
        rows.append(
            {
                "model": name,
                "depth": model.depth,
                "params": counted.num_params,
                "macs": counted.macs,
                "input": "x".join(map(str, size)),
            }
        )
    Console().print(report.terminal(rows))
    return 0
