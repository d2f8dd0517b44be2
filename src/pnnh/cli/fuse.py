"""`pnnh fuse CHECKPOINT --out DIR`: every plain layer as one convolution."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pnnh.cli._shared import Model, Net, Show, noise


def run(model: Model, *, out: Path, form: Literal["structured", "chain"] = "structured", net: Net, show: Show) -> None:
    """Fold norms and coder of MODEL and prove the result equal: between two activations one linear map is left.

    Args:
        model: A checkpoint folder, or any MODEL whose norms have seen data.
        out: Folder for the fused checkpoint; every command reads it back fused.
        form: structured (thin convolutions and an Add; fewest MACs) or chain (dense convolutions in a row).
    """
    from pnnh import checkpoint
    from pnnh.convert import fuse

    loaded = net.open(model)
    fused = fuse(loaded.model, noise(loaded.input_size, 4), form=form)
    record = dict(loaded.record) or {"model": {"name": model, "kwargs": {}}}
    record["model"] = {**record["model"], "storage": "fused", "form": form}
    folder = checkpoint.save(out, fused, record)
    show.table(fused.fusion.rows(), model)
    show.say(f"{fused.fusion}; written to {folder}")
