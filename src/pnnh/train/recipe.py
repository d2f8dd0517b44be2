"""A recipe is one frozen value: everything about a training run except the model, the data and the seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from pnnh._errors import UsageError
from pnnh.data.augment import Augment, ResizedCrop
from pnnh.train.loss import BinaryCrossEntropy, CrossEntropy
from pnnh.train.mixing import Mixing


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum."""

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        from timm.optim import create_optimizer_v2

        name = "nesterov" if self.nesterov else "momentum"
        return create_optimizer_v2(groups, opt=name, lr=self.lr, momentum=self.momentum)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        from timm.optim import create_optimizer_v2

        return create_optimizer_v2(groups, opt="adamw", lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps)


@dataclass(frozen=True)
class Muon:
    """Momentum orthogonalised by Newton-Schulz steps for matrices, AdamW for vectors (timm's, Nesterov momentum).

    Its updates are scaled to the size of AdamW's, so AdamW's rates and decay fit.
    """

    lr: float = 1e-3
    momentum: float = 0.95

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        from timm.optim import create_optimizer_v2

        return create_optimizer_v2(groups, opt="nmuon", lr=self.lr, momentum=self.momentum)


@dataclass(frozen=True)
class Lamb:
    """Adam with steps in proportion to each weight's norm, for large batches (You et al. 2020; timm's)."""

    lr: float = 5e-3

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        from timm.optim import create_optimizer_v2

        return create_optimizer_v2(groups, opt="lamb", lr=self.lr)


@dataclass(frozen=True)
class OneCycle:
    """Linear rise to the peak over `warmup` of the run, then a cosine to zero. `start` is a share of the peak."""

    warmup: float = 0.3
    start: float = 0.04

    def build(self, optimizer: torch.optim.Optimizer, *, steps: int, steps_per_epoch: int):
        return _cosine(optimizer, steps, round(self.warmup * steps), self.start)


@dataclass(frozen=True)
class Cosine:
    """A cosine to zero after `warmup_epochs` of linear rise from zero."""

    warmup_epochs: float = 0.0

    def build(self, optimizer: torch.optim.Optimizer, *, steps: int, steps_per_epoch: int):
        return _cosine(optimizer, steps, round(self.warmup_epochs * steps_per_epoch), 0.0)


def _cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int, start: float):
    """timm's scheduler over `steps` updates: a pure function of the step, and it honours a group's `lr_scale`."""
    from timm.scheduler import CosineLRScheduler

    warmup = min(warmup, steps - 1)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(steps - warmup, 2),  # timm logs a complaint about a cycle of one step
        warmup_t=warmup,
        warmup_lr_init=start * optimizer.defaults["lr"],
        warmup_prefix=True,
        t_in_epochs=False,
    )


@dataclass(frozen=True)
class Recipe:
    """How to train. Defaults: SGD 0.1, one cycle, batch 128, decay 5e-4, four-pixel crops and mirror images.

    decay_norms: whether norms and biases decay like the kernels, as in He et al. 2015; coders never do.
    ema_decay: 0 is off; otherwise the averaged parameters and buffers are what is evaluated and saved.
    grad_clip: largest total gradient norm; 0 is off.
    amp: "fp32", or "bf16" for bfloat16 autocast.
    mixing: two images in one, after augmentation; None is off.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: SGD | AdamW | Muon | Lamb = field(default_factory=SGD)
    schedule: OneCycle | Cosine = field(default_factory=OneCycle)
    weight_decay: float = 5e-4
    decay_norms: bool = False
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    grad_clip: float = 0.0
    amp: str = "fp32"
    channels_last: bool = True
    augment: Augment | ResizedCrop = field(default_factory=Augment)
    loss: CrossEntropy | BinaryCrossEntropy = field(default_factory=CrossEntropy)
    mixing: Mixing | None = None

    def __post_init__(self) -> None:
        rules = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 2, "at least 2 (batch norm needs two images)"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
            "ema_decay": (0 <= self.ema_decay < 1, "in [0, 1)"),
            "grad_clip": (self.grad_clip >= 0, "0 (off) or more"),
            "amp": (self.amp in ("fp32", "bf16"), "'fp32' or 'bf16'"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise UsageError(f"{name} {getattr(self, name)!r} must be {rule}")
        if self.optimizer.lr <= 0:
            raise UsageError(f"lr {self.optimizer.lr} must be above 0")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; choices carry their type's name under "type". Those in `_LATER` only if they differ."""
        same = [name for name, default in _LATER.items() if getattr(self, name) == default]
        out = {name: value for name, value in asdict(self).items() if name not in same}
        for name in _CHOICES.keys() & out.keys():
            out[name] = {"type": type(getattr(self, name)).__name__} | out[name]
        return out

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`. Raises UsageError on names this version does not know."""
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(value) - known):
            raise UsageError(f"recipe has unknown entries {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        built = dict(value)
        for name, choices in _CHOICES.items():
            if name in _LATER and name not in value:
                continue
            entry = dict(value[name])
            kind = entry.pop("type")
            if kind not in choices:
                raise UsageError(f"recipe.{name} {kind!r} is unknown; use one of {', '.join(choices)}")
            built[name] = choices[kind](**entry)
        return cls(**built)

    def with_lr(self, lr: float) -> Recipe:
        return replace(self, optimizer=replace(self.optimizer, lr=lr))


_CHOICES = {
    "optimizer": {"SGD": SGD, "AdamW": AdamW, "Muon": Muon, "Lamb": Lamb},
    "schedule": {"OneCycle": OneCycle, "Cosine": Cosine},
    "augment": {"Augment": Augment, "ResizedCrop": ResizedCrop},
    "loss": {"CrossEntropy": CrossEntropy, "BinaryCrossEntropy": BinaryCrossEntropy},
    "mixing": {"Mixing": Mixing},
}
# records written before these existed mean their defaults
_LATER = {"loss": CrossEntropy(), "mixing": None, "decay_norms": False}
