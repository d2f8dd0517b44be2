"""`pnnh convert MODEL`: a residual net as an exactly equal plain one; the cost first."""

from __future__ import annotations

from typing import Literal

from pnnh.cli._shared import MaybePath, Model, Net, Show, file_in, noise


def run(
    model: Model,
    *,
    form: Literal["structured", "dense"] = "structured",
    dry_run: bool = False,
    out: MaybePath = None,
    net: Net,
    show: Show,
) -> None:
    """Turn a residual MODEL into an equal plain one, proven in float64; prints what it costs.

    Args:
        model: A timm name, a checkpoint folder, or module:function.
        form: structured (same parameters and MACs, more activations) or dense (one chain of single convolutions).
        dry_run: Only print the cost.
        out: Folder for twin.pt2, or a .pt2 or .onnx file.
    """
    from pnnh._errors import UsageError
    from pnnh.convert import convert, export

    path = None if out is None else file_in(out, "twin.pt2", ".onnx")
    if dry_run and out is not None:
        raise UsageError(f"a dry run writes nothing; drop --dry-run or --out {out}")
    loaded = net.open(model)
    example = noise(loaded.input_size)
    twin, done = convert(loaded.model, example, form=form, dry_run=dry_run)
    show.table(done.rows(), f"{model}, one image of {'x'.join(map(str, loaded.input_size))}")
    show.say(f"{done}; {done.certificate}")
    if path is not None and twin is not None:
        show.table(export(twin, example, path).rows(), str(path))
