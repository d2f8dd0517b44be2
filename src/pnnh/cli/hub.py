"""`pnnh hub CHECKPOINT --out DIR`: a trained net as timm and the Hugging Face Hub read it, with its model card."""

from __future__ import annotations

from pathlib import Path

from pnnh.cli._shared import Model


def run(model: Model, *, out: Path) -> None:
    """Write MODEL for timm: config, weights, model card. Read back and compared; nothing is uploaded.

    timm.create_model("local-dir:DIR", pretrained=True) builds it after `import pnnh.models`.

    Args:
        model: A checkpoint folder that `pnnh train` wrote.
        out: Folder for config.json, model.safetensors, README.md and record.json.
    """
    from pnnh._errors import UsageError
    from pnnh.hub import publish
    from pnnh.load import open_model

    loaded = open_model(model)
    if not loaded.record:
        raise UsageError(f"{model} is no folder that `pnnh train` wrote: it has no record.json for the model card")
    folder = publish(loaded.model, dict(loaded.record), out)
    print(f'import timm\n\nimport pnnh.models\n\ntimm.create_model("local-dir:{folder}", pretrained=True)')
    print(f"\nhf upload OWNER/NAME {folder}")
