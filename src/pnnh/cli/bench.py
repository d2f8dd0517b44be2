"""`pnnh bench`: models side by side, the first one is the yardstick."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro


def run(
    models: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    *,
    preset: Literal["cifar", "imagenet", "vit"] | None = None,
    batch_size: str | None = None,
    image_size: int | None = None,
    device: str = "cpu",
    amp: str = "fp32",
    mode: str = "eager",
    layout: str = "channels_last",
    pairs: int = 30,
    out: Path | None = None,
) -> int:
    """Time training steps, inference batches and single images of MODELS against the first one, interleaved.

    Ratios above 1 are slower than the first; a ratio counts only if its interval excludes 1 and the control's does not.
    Several values with commas between them measure every combination.

    Args:
        models: timm names, checkpoint folders or module:function; the first is the yardstick.
        preset: The twins and rivals of one kind instead of MODELS.
        batch_size: Images a step; default 128, or the preset's.
        image_size: Pixels a side; default the first model's own.
        device: cpu, cuda, ...
        amp: Arithmetic of the forward pass: fp32, bf16.
        mode: eager, compiled (torch.compile).
        layout: channels_last, contiguous.
        pairs: Timed pairs per ratio, and up to four times as many until it is known within 1.5 %. Below 30 none are
            added, and nothing is claimed.
        out: A folder for results.json and report.html, or a .json file for the record alone.
    """
    from rich.console import Console

    from pnnh import bench, provenance, train
    from pnnh.cli import _bench
    from pnnh.cli._model import load_model

    tell = partial(print, flush=True)
    groups, usual = _bench.groups_of(models, preset, tell)
    sizes = _bench.numbers("batch_size", batch_size or str(usual))
    base = _bench.setting(str(train.pick_device(device)), pairs)
    cells, written = [], []
    for group in groups:
        nets = [(name, *load_model(name, image_size=image_size)) for name in group]
        for setting in _bench.settings_of(base, sizes, amp=amp, mode=mode, layout=layout):
            result = bench.bench([net[:2] for net in nets], _bench.replace(setting, input_size=nets[0][2]), tell=tell)
            Console(width=220).print(*_bench.tables(result))
            cells.append(_bench.cell(result))
            if out is not None:  # a later cell may fail: what is measured is kept
                written = _bench.write(out, {"cells": cells} | provenance.environment(base.device))
    for path in written:
        tell(f"wrote {path}")
    return 0
