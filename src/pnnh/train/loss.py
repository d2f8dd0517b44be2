"""What is minimised: types called with logits [N, K] and targets, labels [N] or shares of the classes [N, K]."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class CrossEntropy:
    """One class out of K."""

    def __call__(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Each class by itself, there or not; of a mixed image, every class whose share is above `threshold` is there.

    Wightman, Touvron, Jegou 2021, section 2.2. Label smoothing takes from what is there and gives to what is not.
    """

    threshold: float = 0.2

    def __call__(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        shares = F.one_hot(targets, logits.shape[1]) if targets.ndim == 1 else targets
        there = (shares > self.threshold).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, there.lerp(there.new_full((), 0.5), label_smoothing))
