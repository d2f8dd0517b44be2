"""`pnnh models`: what there is."""

from __future__ import annotations


def run() -> int:
    """List our models with their depth, parameters and multiply-accumulates of one image at their own size."""
    import timm
    import torch
    from rich.console import Console

    from pnnh import report
    from pnnh._cost import cost
    from pnnh.models import imagenet_registry, registry, vit_registry

    rows = []
    for name in (*registry.SPECS, *imagenet_registry.NETS, *vit_registry.SPECS):
        with torch.device("meta"):
            model = timm.create_model(name)
        size = model.pretrained_cfg["input_size"]
        counted = cost(model, size)
        rows.append(
            {
                "model": name,
                "depth": model.depth if hasattr(model, "depth") else len(model.blocks),
                "params": counted.num_params,
                "macs": counted.macs,
                "input": "x".join(map(str, size)),
            }
        )
    Console().print(report.terminal(rows))
    return 0
