"""The parts of a recipe: optimisers, schedules, losses and mixing, each a small frozen value that builds timm's."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from pnnh._errors import UsageError


def check(choice: Any, **rules: tuple[bool, str]) -> None:
    """Raise UsageError for the first field of `choice` whose rule does not hold, or that is NaN or infinite."""
    for item in fields(choice):
        value = getattr(choice, item.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{item.name} {value} must be a finite number")
    for name, (holds, rule) in rules.items():
        if not holds:
            raise UsageError(f"{name} {getattr(choice, name)!r} must be {rule}")


class Optimizer:
    """Base of the optimisers: each has a learning rate `lr` above 0 and builds timm's optimiser of its name."""

    lr: float

    def __post_init__(self) -> None:
        shares = {"momentum", "beta1", "beta2"} & set(vars(self))
        check(self, lr=(self.lr > 0, "above 0"), **{n: (0 <= getattr(self, n) < 1, "in [0, 1)") for n in shares})

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser of the parameter groups that `param_groups` returns."""
        from timm.optim import create_optimizer_v2

        name, options = self.timm()
        return create_optimizer_v2(groups, opt=name, lr=self.lr, **options)

    def timm(self) -> tuple[str, dict[str, Any]]:
        """timm's name of the optimiser and its keyword arguments, beside the learning rate."""
        raise NotImplementedError


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True

    def timm(self) -> tuple[str, dict[str, Any]]:
        return "nesterov" if self.nesterov else "momentum", {"momentum": self.momentum}


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def timm(self) -> tuple[str, dict[str, Any]]:
        return "adamw", {"betas": (self.beta1, self.beta2), "eps": self.eps}


@dataclass(frozen=True)
class Muon(Optimizer):
    """Momentum orthogonalised by Newton-Schulz steps for matrices, AdamW for vectors (timm's, Nesterov momentum).

    Its updates are scaled to the size of AdamW's, so AdamW's rates and decay fit.
    """

    lr: float = 1e-3
    momentum: float = 0.95

    def timm(self) -> tuple[str, dict[str, Any]]:
        return "nmuon", {"momentum": self.momentum}


@dataclass(frozen=True)
class Lamb(Optimizer):
    """Adam with steps in proportion to each weight's norm, for large batches (You et al. 2020)."""

    lr: float = 5e-3

    def timm(self) -> tuple[str, dict[str, Any]]:
        return "lamb", {}


@dataclass(frozen=True)
class OneCycle:
    """The rate rises in a line from `start` (a share of the peak) over `warmup` of the run, then falls as a cosine."""

    warmup: float = 0.3
    start: float = 0.04

    def __post_init__(self) -> None:
        in_unit = "in [0, 1]"
        check(self, warmup=(0 <= self.warmup <= 1, in_unit), start=(0 <= self.start <= 1, in_unit))

    def share(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """The learning rate of update number `step` as a share of the peak, in [0, 1]."""
        return _share(step, steps, round(self.warmup * steps), self.start, _cosine)


@dataclass(frozen=True)
class Cosine:
    """The rate rises in a line from 0 over `warmup_epochs`, then falls to 0 as a cosine."""

    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        check(self, warmup_epochs=(self.warmup_epochs >= 0, "0 or more"))

    def share(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """The learning rate of update number `step` as a share of the peak, in [0, 1]."""
        return _share(step, steps, round(self.warmup_epochs * steps_per_epoch), 0.0, _cosine)


@dataclass(frozen=True)
class Linear(Cosine):
    """The rate rises in a line from 0 over `warmup_epochs`, then falls to 0 in a line."""

    def share(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """The learning rate of update number `step` as a share of the peak, in [0, 1]."""
        return _share(step, steps, round(self.warmup_epochs * steps_per_epoch), 0.0, lambda done: 1 - done)


def _share(step: int, steps: int, warmup: int, start: float, fall) -> float:
    warmup = min(warmup, steps - 1)
    if step < warmup:
        return start + (1 - start) * step / warmup
    return fall((step - warmup) / (steps - warmup))


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class CrossEntropy:
    """One class out of K."""

    def build(self, label_smoothing: float) -> nn.Module:
        """The loss of logits [n, K] and labels [n] or shares of the classes [n, K]."""
        return nn.CrossEntropyLoss(label_smoothing=label_smoothing)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Each class by itself, there or not; in a mixed image every class whose share is above `threshold` is there.

    timm's, after Wightman, Touvron, Jegou 2021, section 2.2.
    """

    threshold: float = 0.2

    def __post_init__(self) -> None:
        check(self, threshold=(0 <= self.threshold < 1, "in [0, 1)"))

    def build(self, label_smoothing: float) -> nn.Module:
        """The loss of logits [n, K] and labels [n] or shares of the classes [n, K]."""
        from timm.loss import BinaryCrossEntropy as Loss

        return Loss(smoothing=label_smoothing, target_threshold=self.threshold)


@dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019) of a batch with itself, reversed; timm's.

    The shares are drawn from Beta(mixup, mixup) or Beta(cutmix, cutmix). 0 leaves one of the two out; with both, a
    coin is tossed for every batch.
    """

    mixup: float = 0.1
    cutmix: float = 1.0

    def __post_init__(self) -> None:
        check(self)
        if min(self.mixup, self.cutmix) < 0 or not self.mixup + self.cutmix:
            raise UsageError(f"mixup {self.mixup} and cutmix {self.cutmix} must be 0 or more, and one of them above 0")

    def mix(self, images: Tensor, labels: Tensor, num_classes: int, label_smoothing: float) -> tuple[Tensor, Tensor]:
        """float [n, C, H, W] and labels [n] -> mixed images and class shares [n, K]; draws from numpy's generator."""
        from timm.data import Mixup

        mixup = Mixup(self.mixup, self.cutmix, label_smoothing=label_smoothing, num_classes=num_classes)
        return mixup(images.clone(), labels)
