"""`pnnh fuse CHECKPOINT --out DIR`: every plain layer as one convolution."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro


def run(
    model: Annotated[str, tyro.conf.Positional],
    *,
    out: Path,
    form: Literal["dense", "structured"] = "dense",
    storage: Literal["fused", "shared"] = "fused",
) -> None:
    """Fold norms and coder of MODEL: between two activations one linear map is left. Proves itself.

    Args:
        model: A checkpoint folder (or any MODEL whose norms have seen data).
        out: Folder for the fused checkpoint; every command reads it back fused.
        form: dense (a bare chain of single convolutions) or structured (thin convolutions and an Add; fewer MACs).
        storage: What the file holds: fused (the folded weights) or shared (training weights, folded at load).
    """
    import json

    from rich.console import Console

    from pnnh import report
    from pnnh.cli._model import load_model
    from pnnh.convert import fuse
    from pnnh.train import checkpoint

    network, shape = load_model(model)
    fused = fuse(network, _noise(shape), form=form)
    source = Path(model) / "record.json"
    record = json.loads(source.read_text()) if source.is_file() else {"model": {"name": model, "kwargs": {}}}
    record["model"] |= {"storage": storage, "form": form}
    folder = checkpoint.save(out, fused if storage == "fused" else network, record)
    console = Console()
    console.print(report.terminal(fused.fusion.rows(), title=model))
    console.print(f"{fused.fusion}; written to {folder}", highlight=False)


def _noise(shape: tuple[int, int, int]):
    import torch

    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
