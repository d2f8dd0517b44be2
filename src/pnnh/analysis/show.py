"""A diagnosis for a reader: the main columns in words, the pictures read back, and a curve."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy
from torch import Tensor

STEPS, PICTURES = 8, 3


def columns(layers) -> list[dict[str, Any]]:
    """One row per layer; every column says what it is."""
    return [
        {
            "#": layer.depth,
            "layer": layer.layer,
            "function": layer.op,
            "share positive": round(layer.survival, 2),
            "input read back (R2)": round(layer.r2.value, 2),
            "R2 of noise, at most": round(layer.r2.edge, 2),
            "similarity (CKA)": round(layer.cka.value, 2),
            "gradient": float(f"{layer.gradient:.3g}"),
            "kB an image": round(layer.bytes / 1000, 1),
        }
        for layer in layers
    ]


def strip(originals: Tensor, pictures: Tensor) -> str:
    """Images [P, C, V, V] and what layers read back of them [layers, P, C, V, V], as an HTML table; '' if too small."""
    if not len(originals) or originals.shape[-1] < 4 or originals.shape[1] not in (1, 3):
        return ""
    picked = numpy.unique(numpy.linspace(0, len(pictures) - 1, STEPS).round().astype(int)).tolist()
    low, high = originals.min().item(), originals.max().item()
    head = "".join(f"<th>{name}</th>" for name in ("input", *(number + 1 for number in picked)))
    rows = [
        "".join(f"<td>{_image(item, low, high)}</td>" for item in (originals[p], *(pictures[n, p] for n in picked)))
        for p in range(min(PICTURES, len(originals)))
    ]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _image(picture: Tensor, low: float, high: float) -> str:
    from PIL import Image

    levels = ((picture - low) / (high - low)).nan_to_num().clamp(0, 1).mul(255).byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels).save(file, "png")
    return f'<img alt="" width="64" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def curve(name: str, layers, axes: Any = None) -> Any:
    """R2 of every activation over the edge of its noise; returns the matplotlib axes (new ones if None)."""
    from matplotlib import pyplot

    axes = pyplot.subplots()[1] if axes is None else axes
    depth = [layer.depth for layer in layers]
    axes.plot(depth, [layer.r2.value for layer in layers], marker="o", label=name.replace("$", r"\$"))
    axes.fill_between(depth, 0, [max(layer.r2.edge, 0) for layer in layers], alpha=0.2, label="noise")
    axes.set(xlabel="activation, in order of execution", ylabel="input read back, R2")
    axes.legend()
    return axes
