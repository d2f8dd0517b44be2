"""A recipe is one frozen value: everything about a training run except the model, the data and the seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from pnnh._errors import UsageError
from pnnh.data.augment import Augment, ResizedCrop
from pnnh.train.choices import (
    SGD,
    AdamW,
    BinaryCrossEntropy,
    Cosine,
    CrossEntropy,
    Lamb,
    Linear,
    Mixing,
    Muon,
    OneCycle,
    check,
)

CHOICES: dict[str, tuple[type, ...]] = {
    "optimizer": (SGD, AdamW, Muon, Lamb),
    "schedule": (OneCycle, Cosine, Linear),
    "augment": (Augment, ResizedCrop),
    "loss": (CrossEntropy, BinaryCrossEntropy),
    "mixing": (Mixing,),
}


@dataclass(frozen=True)
class Recipe:
    """How to train. Defaults: SGD 0.1, one cycle, batch 128, decay 5e-4, four-pixel crops and mirror images.

    batch_size: images of one update, over all processes.
    weight_decay: of matrices and kernels; of norms and biases only if `decay_norms` (He et al. 2015); never of coders.
    ema_decay: 0 is off; otherwise the averaged parameters and buffers are evaluated and saved.
    grad_clip: largest total gradient norm; 0 is off.
    amp: "fp32", or "bf16" for bfloat16 autocast; the weights stay float32.
    mixing: two images in one, after augmentation; None is off.
    recompute_norms: before each evaluation, take the statistics of batch norms anew from training images that are not
        augmented, instead of running averages, which lag behind when few steps were made. None: in runs of fewer than
        1,000 steps.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: SGD | AdamW | Muon | Lamb = field(default_factory=SGD)
    schedule: OneCycle | Cosine | Linear = field(default_factory=OneCycle)
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
    recompute_norms: bool | None = None

    def __post_init__(self) -> None:
        check(
            self,
            epochs=(isinstance(self.epochs, int) and self.epochs >= 1, "at least 1"),
            batch_size=(isinstance(self.batch_size, int) and self.batch_size >= 2, "at least 2 (for batch norm)"),
            weight_decay=(self.weight_decay >= 0, "0 or more"),
            label_smoothing=(0 <= self.label_smoothing < 1, "in [0, 1)"),
            ema_decay=(0 <= self.ema_decay < 1, "in [0, 1)"),
            grad_clip=(self.grad_clip >= 0, "0 (off) or more"),
            amp=(self.amp in ("fp32", "bf16"), "'fp32' or 'bf16'"),
        )

    def with_lr(self, lr: float) -> Recipe:
        """The same recipe with another peak of the learning rate. Raises UsageError unless it is above 0 and finite."""
        return replace(self, optimizer=replace(self.optimizer, lr=lr))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; a choice carries its type's name under "type"."""
        values = asdict(self)
        for name in CHOICES:
            if (choice := getattr(self, name)) is not None:
                values[name] = {"type": type(choice).__name__} | values[name]
        return values

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`; what is not named has its default. Raises UsageError on unknown names."""
        names = {item.name for item in fields(cls)}
        if unknown := sorted(set(value) - names):
            raise UsageError(f"recipe has unknown entries {', '.join(unknown)}; known: {', '.join(sorted(names))}")
        built = dict(value)
        for name, types in CHOICES.items():
            if built.get(name) is None:
                continue
            by_name = {kind.__name__: kind for kind in types}
            entry = dict(built[name])
            kind = entry.pop("type", None)
            if kind not in by_name:
                raise UsageError(f"recipe.{name} {kind!r} is unknown; use one of {', '.join(by_name)}")
            built[name] = by_name[kind](**entry)
        return cls(**built)
