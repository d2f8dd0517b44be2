"""`pnnh convert MODEL`: a residual net as an exactly equal plain one; the cost first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro


def run(
    model: Annotated[str, tyro.conf.Positional],
    *,
    form: Literal["structured", "dense"] = "structured",
    dry_run: tyro.conf.UseCounterAction[int] = 0,
    weights: str | None = None,
    image_size: int | None = None,
    out: Path | None = None,
) -> None:
    """Turn a residual MODEL into an exactly equal plain one, proven in float64; prints what it costs.

    Args:
        model: A timm name, a checkpoint folder, or module:function.
        form: structured (same parameters and MACs, more activations) or dense (one chain of single convolutions).
        dry_run: Only print the cost.
        weights: A .safetensors file, or "pretrained" for timm's own weights.
        image_size: Side of the example image, in pixels; default: the model's own.
        out: Write the twin here, as a .pt2 or .onnx file.
    """
    import torch
    from rich.console import Console

    from pnnh import report
    from pnnh._errors import UsageError
    from pnnh.cli._model import load_model
    from pnnh.convert import convert
    from pnnh.convert.export import export

    if out is not None and (dry_run or out.suffix not in (".onnx", ".pt2")):
        raise UsageError(f"--out {out} must end in .onnx or .pt2, and a dry run writes nothing; change or drop it")
    network, shape = load_model(model, weights=weights, image_size=image_size)
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    twin, done = convert(network, example, form=form, dry_run=bool(dry_run))
    console = Console()
    console.print(report.terminal(done.rows(), title=f"{model}, one image of {'x'.join(map(str, shape))}"))
    console.print(f"{done}; {done.certificate}", highlight=False)
    if out is not None and twin is not None:
        console.print(report.terminal(export(twin, example, out).rows()))
