"""`publish`: a trained net as a folder that timm reads from a disk (`local-dir:`) and, uploaded, from the Hub."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pnnh._errors import RunError, UsageError
from pnnh.report.card import model_card


@torch.no_grad()
def publish(model: nn.Module, record: dict[str, Any], out: str | PathLike[str]) -> Path:
    """Write config.json, model.safetensors, record.json and README.md (the model card) to `out`; read back and compare.

    Args:
        model: the net in its training form, in eval mode, on the CPU.
        record: its record, as `pnnh train` writes it; "model" names the net in timm's registry.

    Raises:
        UsageError: a net that timm cannot build by name. RunError: what is read back is another function.
    """
    import timm
    from timm.models import save_for_hf

    name, arguments = record["model"]["name"], dict(record["model"].get("kwargs") or {})
    if not timm.is_model(name):
        raise UsageError(f"the Hub rebuilds nets by their timm name, and {name!r} is none; register it with timm first")
    if record["model"].get("storage") == "fused":
        raise UsageError("timm builds nets in their training form, and this one is fused; give what it was fused from")
    out, shape = Path(out), _shape(model, record)
    example = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    try:
        choices = {"model_args": arguments, "data_config": _preprocessing(record, shape)}
        labels = {"label_names": list(record["classes"])} if "classes" in record else {}
        save_for_hf(model, str(out), model_config=labels, safe_serialization=True, **choices)
        (out / "record.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        (out / "README.md").write_text(model_card(record))
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror or error}") from None
    again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    if not torch.equal(again(example), model(example)):
        raise RunError(f"{out} read back by timm gives other outputs; do not publish it")
    return out


def _shape(model: nn.Module, record: dict[str, Any]) -> tuple[int, int, int]:
    data, config = record.get("data") or {}, getattr(model, "pretrained_cfg", {})
    channels, height, width = config.get("input_size", (3, 224, 224))
    return (data.get("channels", channels), data.get("image_size", height), data.get("image_size", width))


def _preprocessing(record: dict[str, Any], shape: tuple[int, int, int]) -> dict[str, Any]:
    """As it was trained: whole images at their own size, the data set's mean and deviation."""
    data = record.get("data") or {}
    told = {name: tuple(data[name]) for name in ("mean", "std") if name in data}
    return {"input_size": shape, "crop_pct": 1.0, "interpolation": "bilinear"} | told
