"""`pnnh export CHECKPOINT --to FORMAT --out DIR`: a file for another runtime, checked there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro


def run(
    model: Annotated[str, tyro.conf.Positional],
    *,
    to: Literal["onnx", "pt2", "int8", "openvino", "executorch"] = "onnx",
    out: Path,
    form: Literal["dense", "structured"] = "dense",
    data: str | None = None,
    image_size: int | None = None,
) -> None:
    """Fuse MODEL, write it for another runtime, run the file there and compare.

    Args:
        model: A checkpoint folder, a timm name, or module:function.
        to: onnx, pt2 (torch.export), int8 (static quantisation for onnxruntime), openvino or executorch.
        out: Folder for the files; metadata is written beside them.
        form: Of the fused net: dense (a bare chain of single convolutions) or structured (thin ones and an Add).
        data: Data set the model was trained on: labels, preprocessing, calibration (needed for int8), accuracy.
        image_size: Side of the images, in pixels; default: the model's own.
    """
    from rich.console import Console

    from pnnh import report
    from pnnh._errors import UsageError
    from pnnh.cli._deploy import Deployment
    from pnnh.cli._model import load_model

    if to == "int8" and data is None:
        raise UsageError("int8 is calibrated on real images; give --data, the data set the model was trained on")
    network, shape = load_model(model, image_size=image_size)
    deployment = Deployment(network, shape, out, Path(model).name.replace(":", "_"), data, form)
    console = Console()
    for title, rows in deployment.write(to):
        console.print(report.terminal(rows, title=title))
