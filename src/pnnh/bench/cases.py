"""What is timed: a training step, inference on a batch, and on a single image, of any classifier on random images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from pnnh._errors import UsageError
from pnnh.train import param_groups
from pnnh.train.evaluate import autocast


@dataclass(frozen=True)
class Setting:
    """Under which conditions models are timed. Raises UsageError for values that cannot be meant.

    input_size: (C, H, W) of an image. amp: "fp32" or "bf16" in the forward pass. compiled: by torch.compile.
    pairs, rounds, repeats, error: of the clock, see `paired`; with fewer than 30 pairs nothing is claimed and none are
    added.
    """

    input_size: tuple[int, int, int] = (3, 32, 32)
    batch_size: int = 128
    device: str = "cpu"
    amp: str = "fp32"
    channels_last: bool = True
    compiled: bool = False
    pairs: int = 30
    rounds: int = 3
    repeats: int = 2
    error: float = 0.015

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch_size {self.batch_size} must be at least 1, and 2 for a training step")
        if self.pairs < 1:
            raise UsageError(f"pairs {self.pairs} must be at least 1; below 30 nothing is claimed")
        if len(self.input_size) != 3 or min(self.input_size) < 1:
            raise UsageError(f"input_size {self.input_size} must be three positive numbers: channels, height, width")
        if self.amp not in ("fp32", "bf16"):
            raise UsageError(f"amp {self.amp!r} must be fp32 or bf16")

    def __str__(self) -> str:
        how = "compiled" if self.compiled else "eager"
        layout = "channels_last" if self.channels_last else "contiguous"
        size = "x".join(map(str, self.input_size))
        return f"{self.batch_size} images of {size}, {self.device}, {self.amp}, {how}, {layout}"


class TrainingStep:
    """Forward, cross-entropy, backward and SGD with momentum on one fixed batch, without waiting for the device."""

    def __init__(self, model: nn.Module, setting: Setting):
        model, self.images = _ready(model, setting)
        model.train()
        self.labels = torch.zeros(setting.batch_size, dtype=torch.long, device=setting.device)
        self.optimizer = torch.optim.SGD(param_groups(model, 5e-4), lr=1e-4, momentum=0.9)
        self.run = torch.compile(model, dynamic=False) if setting.compiled else model
        self.setting = setting

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.setting.device, self.setting.amp):
            loss = nn.functional.cross_entropy(self.run(self.images), self.labels)
        loss.backward()
        self.optimizer.step()


class Inference:
    """One batch in eval mode, without gradients."""

    def __init__(self, model: nn.Module, setting: Setting):
        model, self.images = _ready(model, setting)
        model.eval()
        self.run = torch.compile(model, dynamic=False) if setting.compiled else model
        self.setting = setting

    def __call__(self) -> None:
        with torch.inference_mode(), autocast(self.setting.device, self.setting.amp):
            self.run(self.images)


def latency(model: nn.Module, setting: Setting) -> Inference:
    """One image in eval mode, without gradients."""
    return Inference(model, replace(setting, batch_size=1))


WORKS: dict[str, Callable[[nn.Module, Setting], Callable[[], None]]] = {
    "train": TrainingStep,
    "infer": Inference,
    "latency": latency,
}


def _ready(model: nn.Module, setting: Setting) -> tuple[nn.Module, torch.Tensor]:
    """A copy of `model` and a batch, where and how `setting` wants them."""
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    images = torch.randn(setting.batch_size, *setting.input_size, generator=torch.Generator().manual_seed(0))
    model = copy.deepcopy(model).to(setting.device, memory_format=layout)
    return model, images.to(setting.device).contiguous(memory_format=layout)
