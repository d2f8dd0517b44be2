"""`pnnh bench MODEL...`: models side by side, the first one is the yardstick."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from pnnh.cli._shared import MaybeInts, MaybePath, MaybeText, Models, Names, Net, Show

CHOICES = {"amp": ("fp32", "bf16"), "mode": ("eager", "compiled"), "layout": ("channels_last", "contiguous")}
SIZES = ("model", "params", "macs", "checkpoint_mb", "train_peak_mb", "infer_peak_mb")
TIMES = ("time", "low", "high", "verdict", "ms", "img/s")


def run(
    models: Models = (),
    *,
    preset: MaybeText = None,
    batch_size: MaybeInts = None,
    device: str = "cpu",
    amp: Names = ("fp32",),
    mode: Names = ("eager",),
    layout: Names = ("channels_last",),
    pairs: int = 30,
    out: MaybePath = None,
    net: Net,
    show: Show,
) -> None:
    """Time training steps, inference batches and single images of MODELS against the first one, interleaved.

    Ratios above 1 are slower than the first; a ratio counts only if its interval excludes 1 and the control's does not.
    Several values of an option measure every combination.

    Args:
        models: timm names, checkpoint folders or module:function; the first is the yardstick.
        preset: The twins and rivals of one kind instead of MODELS: cifar, imagenet or vit.
        batch_size: Images a step; default 128, or the preset's.
        device: cpu, cuda, ...
        amp: Arithmetic of the forward pass: fp32, bf16.
        mode: eager, compiled (torch.compile).
        layout: channels_last, contiguous.
        pairs: Timed pairs per ratio, and up to four times as many until it is known within 1.5 %. Below 30 none are
            added, and nothing is claimed.
        out: Folder for results.json and report.html, or a .json file for the record alone.
    """
    from pnnh import provenance
    from pnnh.bench import WORKS, Setting, bench
    from pnnh.report.bench import WORKS as NAMES
    from pnnh.train import pick_device

    groups, usual = _groups(models, preset, show)
    options = {"amp": amp, "mode": mode, "layout": layout}
    _check(options)
    place, cells = str(pick_device(device)), []
    for group in groups:
        nets = {name: net.open(name) for name in group}
        size = nets[group[0]].input_size
        for number, arithmetic, how, order in product(batch_size or (usual,), *options.values()):
            compiled, last = how == "compiled", order == "channels_last"
            setting = Setting(size, number, place, arithmetic, channels_last=last, compiled=compiled, pairs=pairs)
            result = bench({name: found.model for name, found in nets.items()}, setting, tell=show.say)
            cells.append(result.to_dict())
            show.table([{key: row[key] for key in SIZES} for row in result.rows()], str(setting))
            for work in WORKS:
                shown = (result.control, *result.rows()[1:])
                rows = [{"model": row["model"]} | {key: row[f"{work}_{key}"] for key in TIMES} for row in shown]
                show.table(rows, f"{NAMES[work]}: 1 is {group[0]}, above 1 is slower")
            if out is not None:  # a later cell may fail: what is measured is kept
                _write(out, {"cells": cells} | provenance.environment(place))
    if out is not None:
        show.wrote([out])


def _groups(models: tuple[str, ...], preset: str | None, show: Show) -> tuple[list[tuple[str, ...]], int]:
    """Groups of names, the first of each its yardstick, and the batch size to take by default."""
    from pnnh._errors import UsageError
    from pnnh.bench import presets

    if bool(models) == (preset is not None):
        raise UsageError("name at least one MODEL, as in `pnnh bench cifar_resnet56 pnnh_resnet56`, or a --preset")
    if preset is None:
        return [models], 128
    if preset not in presets.PRESETS:
        raise UsageError(f"unknown --preset {preset!r}; use {', '.join(presets.PRESETS)}")
    groups, missing = presets.known(presets.PRESETS[preset].groups)
    if missing:
        show.say(f"left out, not in this installation: {', '.join(missing)}")
    if not groups:
        raise UsageError(f"nothing of --preset {preset} is installed; name models instead")
    return groups, presets.PRESETS[preset].batch_size


def _check(options: dict[str, tuple[str, ...]]) -> None:
    from pnnh._errors import UsageError

    for name, words in options.items():
        for word in words:
            if word not in CHOICES[name]:
                raise UsageError(f"{name} {word!r} must be {' or '.join(CHOICES[name])}, or both")


def _write(out: Path, record: dict) -> None:
    from pnnh import report

    if out.suffix == ".json":
        report.write_text(out, report.json_text(record))
        return
    report.write_text(out / "results.json", report.json_text(record))
    report.write_text(out / "report.html", report.html(report.bench_page(record)))
