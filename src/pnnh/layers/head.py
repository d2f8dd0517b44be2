"""The classifier of a plain net: norm, pooling, linear map.

At the start the stream only grows from write to write, so that its mean outweighs what tells images apart, the more the
deeper the net. A classifier that reads the stream as it is has to unlearn that mean; after a norm it has not (chosen).
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
