"""`pnnh export MODEL --to FORMAT --out DIR`: a file for another runtime, checked there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pnnh.cli._shared import MaybeText, Model, Net, Show


def run(
    model: Model,
    *,
    to: Literal["onnx", "pt2", "int8", "openvino", "executorch"] = "onnx",
    out: Path,
    form: Literal["structured", "chain"] = "structured",
    data: MaybeText = None,
    net: Net,
    show: Show,
) -> None:
    """Fuse MODEL, write it for another runtime, run the file there and compare.

    Args:
        model: A checkpoint folder, a timm name, or module:function.
        to: onnx, pt2 (torch.export), int8 (static quantization for onnxruntime), openvino or executorch.
        out: Folder for the files; metadata is written beside them.
        form: Of the fused net: structured (thin convolutions and an Add) or chain (dense convolutions in a row).
        data: Data set the model was trained on: labels, preprocessing, calibration (needed for int8), accuracy.
    """
    from pnnh._errors import UsageError
    from pnnh.cli._deploy import Deployment

    if to == "int8" and data is None:
        raise UsageError("int8 is calibrated on real images; give --data, the data set the model was trained on")
    loaded = net.open(model)
    if loaded.trained is False and net.weights != "random":
        raise UsageError(
            f"{model} has random weights; give --weights FILE, a checkpoint folder or `pretrained`, or say "
            "--weights random if that is what you mean"
        )
    name = Path(model).name.replace(":", "_")
    for title, rows in Deployment(loaded.model, loaded.input_size, out, name, data, form).write(to):
        show.table(rows, title)
