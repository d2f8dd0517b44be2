"""`pnnh diagnose MODEL`: how much of the input is left, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def run(
    model: Annotated[str, tyro.conf.Positional],
    *,
    data: str | None = None,
    images: Path | None = None,
    weights: str | None = None,
    compare: tuple[str, ...] = (),
    num: int = 64,
    image_size: int | None = None,
    dists: Path | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """See, layer by layer, how much of the input is left in MODEL, how many neurons survive and what theory expects.

    Untrained models run in train mode, so that batch norm normalises; with weights, in eval mode.

    Args:
        model: A timm name, a checkpoint folder, or module:function.
        data: Data set to take images from: digits, cifar10, cifar100, fashion-mnist or folder:PATH; by default a
            checkpoint's own, else digits.
        images: A directory of image files instead.
        weights: A .safetensors file, or "pretrained" for timm's own.
        compare: More models, drawn over the first.
        num: Number of images, at least 8; half fit the readout, half score it.
        image_size: Side of the images, in pixels; default: the model's own.
        dists: torchvision's vgg16-397923af.pth: adds the DISTS column (needs pip install 'pnnh[dists]').
        seed: Of random weights and of the choice of images.
        out: Write diagnosis.json, diagnosis.csv and diagnosis.html into this directory.
    """
    from rich.console import Console

    from pnnh import report
    from pnnh.cli import _diagnose

    options = {"weights": weights, "data": data, "folder": images, "num": num, "image_size": image_size}
    found = _diagnose.all_of((model, *compare), **options, dists=dists, seed=seed)
    console = Console()
    for diagnosis in found:
        console.print(report.terminal(_diagnose.in_terminal(diagnosis), title=diagnosis.model))
        console.print(_diagnose.verdict(diagnosis), highlight=False)
    if out is not None:
        for path in _diagnose.write(found, out):
            console.print(f"wrote {path}", highlight=False)
