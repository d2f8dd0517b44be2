"""What is timed: a training step and an inference batch of any classifier, on random images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pnnh._cost import cost
from pnnh.bench.clock import Ratio, paired
from pnnh.bench.memory import LiveBytes
from pnnh.train import param_groups
from pnnh.train.evaluate import autocast


@dataclass(frozen=True)
class Setting:
    """batch_size images of `input_size` [C, H, W]; `compiled`: torch.compile; `amp`: "fp32" or "bf16"."""

    input_size: tuple[int, int, int] = (3, 32, 32)
    batch_size: int = 128
    device: str = "cpu"
    amp: str = "fp32"
    channels_last: bool = True
    compiled: bool = False
    pairs: int = 30


@dataclass(frozen=True)
class Report:
    """One row per model: sizes, memory, time ratios to the first; `control` is the first against a copy of itself."""

    models: tuple[dict[str, Any], ...]
    control: dict[str, Any]
    setting: Setting

    def rows(self) -> list[dict[str, Any]]:
        return list(self.models)


def training_step(model: nn.Module, setting: Setting) -> Callable[[], None]:
    """Forward, cross-entropy, backward, SGD with momentum, on one fixed batch; nothing waits for the device."""
    model, images = _ready(model.train(), setting)
    labels = torch.randint(10, (setting.batch_size,), device=setting.device)
    optimizer = torch.optim.SGD(param_groups(model, 5e-4), lr=1e-4, momentum=0.9)
    run = torch.compile(model) if setting.compiled else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(setting.device, setting.amp):
            loss = nn.functional.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()

    return step


def inference(model: nn.Module, setting: Setting) -> Callable[[], None]:
    """One batch in eval mode, without gradients."""
    model, images = _ready(model.eval(), setting)
    run = torch.compile(model) if setting.compiled else model

    def step() -> None:
        with torch.inference_mode(), autocast(setting.device, setting.amp):
            run(images)

    return step


def bench(models: Sequence[tuple[str, nn.Module]], setting: Setting = Setting(), tell: Callable = print) -> Report:
    """Time every model against the first one, interleaved in this process; a copy of the first is the control.

    A ratio above 1 means slower than the first model. `tell` gets a line of progress per timing.
    """
    (first, reference), *_ = models
    device = torch.device(setting.device)
    works = {"train": training_step, "infer": inference}
    control, rows = {}, []
    for name, model in [(f"{first} (control)", copy.deepcopy(reference)), *models[1:]]:
        row = {"model": name} | _sizes(model, setting)
        for what, make in works.items():
            tell(f"timing {what}: {name} against {first}")
            pair = (make(copy.deepcopy(reference), setting), make(copy.deepcopy(model), setting))
            row |= _columns(what, paired(*pair, device=device, pairs=setting.pairs), setting)
        rows.append(row)
    control = rows.pop(0)
    base = {"model": first} | _sizes(reference, setting)
    for what in works:
        base |= {f"{what}_time": 1.0, f"{what}_interval": "—", f"{what}_img/s": control[f"{what}_img/s"]}
    return Report((base, *rows), control, setting)


def _columns(what: str, ratio: Ratio, setting: Setting) -> dict[str, Any]:
    speed = setting.batch_size / ratio.median_b
    return {
        f"{what}_time": round(ratio.ratio, 3),
        f"{what}_interval": f"{ratio.low:.3f}-{ratio.high:.3f}",
        f"{what}_img/s": round(speed),
    }


def _sizes(model: nn.Module, setting: Setting) -> dict[str, Any]:
    counted = cost(model, setting.input_size)
    with LiveBytes() as training:
        training_step(copy.deepcopy(model), setting)()
    with LiveBytes() as inferring:
        inference(copy.deepcopy(model), setting)()
    return {
        "params": counted.num_params,
        "macs": counted.macs,
        "train_peak_mb": round(training.peak / 1e6, 3),
        "infer_peak_mb": round(inferring.peak / 1e6, 3),
    }


def _ready(model: nn.Module, setting: Setting) -> tuple[nn.Module, torch.Tensor]:
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    images = torch.randn(setting.batch_size, *setting.input_size, device=setting.device)
    return model.to(setting.device, memory_format=layout), images.contiguous(memory_format=layout)
