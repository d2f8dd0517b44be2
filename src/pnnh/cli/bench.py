"""`pnnh bench`: models side by side, the first one is the yardstick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro


def run(
    models: Annotated[tuple[str, ...], tyro.conf.Positional],
    *,
    batch_size: int = 128,
    image_size: int | None = None,
    device: str = "cpu",
    amp: Literal["fp32", "bf16"] = "fp32",
    compiled: bool = False,
    pairs: int = 30,
    out: Path | None = None,
) -> int:
    """Time training steps and inference batches of MODELS against the first one, interleaved in one process.

    Ratios above 1 are slower than the first; a ratio counts only if its interval excludes 1 and the control's does not.

    Args:
        models: timm names, checkpoint folders or module:function; the first is the yardstick.
        batch_size: Images a step.
        image_size: Pixels a side; default the first model's own.
        device: cpu, cuda, ...
        amp: Arithmetic of the forward pass.
        compiled: torch.compile both sides.
        pairs: Timed pairs per ratio.
        out: A .json file for the record.
    """
    from dataclasses import asdict

    from rich.console import Console

    from pnnh import bench, report, train
    from pnnh._errors import UsageError
    from pnnh.cli._model import load_model
    from pnnh.train import record

    if not models:
        raise UsageError("no model given; name at least one, like: pnnh bench cifar_resnet56 pnnh_resnet56")
    place = train.pick_device(device)
    loaded = [(name, load_model(name, image_size=image_size)) for name in models]
    size = loaded[0][1][1]
    setting = bench.Setting(size, batch_size, str(place), amp, compiled=compiled, pairs=pairs)
    result = bench.bench(
        [(name, model) for name, (model, _) in loaded], setting, tell=lambda line: print(line, flush=True)
    )
    rows = [*result.rows(), result.control]
    Console(width=200).print(report.terminal(rows, f"{batch_size} images of {size}, {place}, {amp}"))
    if out is not None:
        evidence = {"rows": result.rows(), "control": result.control, "setting": asdict(setting)} | record.environment(
            place
        )
        print(f"record: {report.write_text(out, report.json_text(evidence))}")
    return 0
