"""The classifier of a plain net: norm, pooling, linear map.

Before training every write adds a non-negative value to the stream. In a deep net the mean of the stream is then much
larger than the differences between images; the norm removes that mean, so that the classifier need not (chosen).
"""

from __future__ import annotations

from timm.layers import ClassifierHead
from torch import Tensor, nn


class NormHead(ClassifierHead):
    """timm's `ClassifierHead` after a norm: [B, C, H, W] -> [B, num_classes], or [B, C] with pre_logits."""

    def __init__(self, in_features: int, num_classes: int, *, norm=nn.BatchNorm2d, **kwargs):
        super().__init__(in_features, num_classes, **kwargs)
        self.norm = norm(in_features)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return super().forward(self.norm(x), pre_logits)
