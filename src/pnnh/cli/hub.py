"""`pnnh hub CHECKPOINT --out DIR`: a trained net as timm and the Hugging Face Hub read it, with its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def run(model: Annotated[str, tyro.conf.Positional], *, out: Path, fused: bool = False) -> None:
    """Write MODEL for timm: config, weights, model card. Read back and compared; nothing is uploaded.

    timm.create_model("local-dir:DIR", pretrained=True) builds it after `import pnnh.models`.

    Args:
        model: A checkpoint folder that `pnnh train` wrote.
        out: Folder for config.json, model.safetensors, README.md and record.json.
        fused: Fold norms and coder: one convolution per layer.
    """
    import json

    from pnnh._errors import UsageError
    from pnnh.cli._model import load_model
    from pnnh.hub import publish

    source = Path(model) / "record.json"
    if not source.is_file():
        raise UsageError(f"{model} is no folder that `pnnh train` wrote: it has no record.json for the model card")
    place = publish(load_model(model)[0], json.loads(source.read_text()), out, fused=fused)
    print(f'timm.create_model("local-dir:{place}", pretrained=True)\nhf upload OWNER/NAME {place}')
