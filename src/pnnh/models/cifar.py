"""The CIFAR family of He et al. 2015, section 4.2: stem, three stages of 2n layers, pooling, classifier; depth 6n + 2.

Three nets, one skeleton; they differ in what a stage is:

    PnnhResNet   plain layers with a shared coder        no residual connection
    PlainResNet  conv-norm-relu                          no residual connection, no coder
    CifarResNet  residual blocks, option-A shortcuts
"""

from __future__ import annotations

from torch import nn

from pnnh.layers import AlternatingStage, NormHead, PlainOptions, PlainStage
from pnnh.models.baselines import ChainStage, ConvNormAct, ResidualStage
from pnnh.models.staged import StagedNet

WIDTHS = (16, 32, 64)


def layers_per_stage(depth: int) -> int:
    """2n for depth = 6n + 2 (the stem and the classifier are the 2). Raises ValueError for any other depth."""
    if depth < 8 or (depth - 2) % 6:
        near = max(8, 6 * round((depth - 2) / 6) + 2)
        raise ValueError(f"depth {depth} must be 6n + 2 (8, 14, 20, 32, 44, 56, 110, ...); the nearest is {near}")
    return (depth - 2) // 3


class CifarNet(StagedNet):
    """A 3x3 stem and three stages of equal depth. Subclasses say what a stage is.

    Input [B, in_chans, H, W] with H, W >= 8; output [B, num_classes], or [B, 4 w, H / 4, W / 4] features.
    """

    def __init__(self, depth: int = 20, widths: tuple[int, int, int] = WIDTHS, **kwargs):
        super().__init__(widths, (layers_per_stage(depth),) * 3, **kwargs)

    def first_layer(self, in_chans: int, out_chans: int) -> nn.Module:
        return ConvNormAct(in_chans, out_chans)


class PlainResNet(CifarNet):
    """The plain twin: the same convolutions in a bare chain."""

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        return ChainStage(in_chans, out_chans, num_layers, stride=stride)


class CifarResNet(CifarNet):
    """The residual twin, option A: shortcuts without parameters."""

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        return ResidualStage(in_chans, out_chans, num_layers, stride=stride)


class PnnhResNet(CifarNet):
    """The PNNH net: plain layers, a learner of its own per layer, a coder shared by the layers of a stage.

    The stream is as wide as the residual twin, the learner `learner_ratio` of that. Chosen: three quarters hold at most
    0.56 of the twin's parameters at every depth from 20 on.
    """

    def __init__(
        self,
        depth: int = 20,
        widths: tuple[int, int, int] = WIDTHS,
        *,
        learner_ratio: float = 0.75,
        form: type[PlainStage] = AlternatingStage,
        options: PlainOptions | None = None,
        **kwargs,
    ):
        if learner_ratio <= 0:
            raise ValueError(f"learner_ratio {learner_ratio} must be above 0: without a learner nothing is learned")
        self.learner_ratio, self.form, self.options = learner_ratio, form, options or PlainOptions()
        super().__init__(depth, widths, **kwargs)

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        learner = max(1, round(self.learner_ratio * out_chans))
        return self.form(in_chans, out_chans, learner, num_layers, stride=stride, options=self.options)

    def last_layer(self, in_chans: int, num_classes: int, **kwargs) -> NormHead:
        return NormHead(in_chans, num_classes, norm=self.options.norm, **kwargs)
