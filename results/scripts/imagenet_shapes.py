"""What the ImageNet-shaped nets cost beside timm's ResNets of the same depth: results/imagenet-shapes.json.

python results/scripts/imagenet_shapes.py
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch

import pnnh.models  # noqa: F401  registers the nets
from pnnh.cost import cost
from pnnh.provenance import environment
from pnnh.report import json_text, write_text

ROOT = Path(__file__).resolve().parents[2]
DEPTHS, SIZE = (18, 34, 50), (3, 224, 224)


def costs() -> list[dict]:
    """Parameters and multiply-accumulates of one image, and both as multiples of the residual net's."""
    rows = []
    for depth in DEPTHS:
        with torch.device("meta"):
            names = [f"{kind}resnet{depth}" for kind in ("", "plain_", "pnnh_")]
            counted = {name: cost(timm.create_model(name), SIZE) for name in names}
        residual = counted[f"resnet{depth}"]
        for name, own in counted.items():
            rows.append({"net": name, "num_params": own.num_params, "macs": own.macs})
            rows[-1]["params_ratio"] = own.num_params / residual.num_params
            rows[-1]["macs_ratio"] = own.macs / residual.macs
    return rows


if __name__ == "__main__":
    write_text(ROOT / "results" / "imagenet-shapes.json", json_text({"costs": costs()} | environment()))
