"""The CIFAR family of He et al. 2015, section 4.2: stem, three stages of 2n layers, pooling, classifier; depth 6n + 2.

    PnnhResNet       plain layers with a shared coder                        no residual connection
    PlainResNet      conv-norm-relu                                          no residual connection, no coder
    CifarResNet      residual blocks, shortcuts without parameters
    SameBlockResNet  PnnhResNet's blocks, made residual                      isolates what plainness costs
    NarrowResNet     CifarResNet, as narrow as PnnhResNet has parameters     equal size, depth kept
    ShortResNet      CifarResNet, as short as PnnhResNet has parameters      equal size, width kept
    SharedResNet     CifarResNet, second convolutions shared by a stage      sharing with shortcuts

All have a norm before the pooling, and the last norm of every residual block starts at 0.3, as a PNNH net's writes do.
He et al.'s own nets are CifarResNet and PlainResNet with `head_norm=False`, the residual one with `gain=1.0`.
"""

from __future__ import annotations

from functools import lru_cache

from torch import nn

from pnnh.layers import PlainOptions
from pnnh.models.baselines import (
    GAIN,
    ChainStage,
    ConvNormAct,
    ResidualStage,
    SameBlockStage,
    SharedResidualStage,
    residual_params,
)
from pnnh.models.staged import PnnhNet, StagedNet, params_on_meta

Three = tuple[int, int, int]
WIDTHS = (16, 32, 64)


def layers_per_stage(depth: int) -> int:
    """2n for depth = 6n + 2 (the stem and the classifier are the 2). Raises ValueError for any other depth."""
    if depth < 8 or (depth - 2) % 6:
        near = max(8, 6 * round((depth - 2) / 6) + 2)
        raise ValueError(f"depth {depth} must be 6n + 2 (8, 14, 20, 32, 44, 56, 110, ...); the nearest is {near}")
    return (depth - 2) // 3


class CifarNet(StagedNet):
    """A 3x3 stem and three stages of equal depth; subclasses build the stages.

    Input [B, in_chans, H, W] with H, W >= 8; output [B, num_classes], or [B, 4 w, H / 4, W / 4] features.
    """

    def __init__(self, depth: int = 20, widths: Three = WIDTHS, **kwargs):
        super().__init__(widths, (layers_per_stage(depth),) * 3, **kwargs)

    def first_layer(self, in_chans: int, out_chans: int) -> nn.Module:
        return ConvNormAct(in_chans, out_chans)


class PlainResNet(CifarNet):
    """The plain twin: CifarResNet's convolutions in a chain without shortcuts."""

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        return ChainStage(in_chans, out_chans, num_layers, stride=stride)


class CifarResNet(CifarNet):
    """The residual twin. `gain`: where the scale of each block's last norm starts (chosen: 0.3; He et al.: 1)."""

    def __init__(self, depth: int = 20, widths: Three = WIDTHS, *, gain: float = GAIN, **kwargs):
        self.gain = gain
        super().__init__(depth, widths, **kwargs)

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        return ResidualStage(in_chans, out_chans, num_layers, stride=stride, gain=self.gain)


class SharedResNet(CifarResNet):
    """The residual twin whose blocks share their second convolution, one a stage (ShaResNet, arXiv 1702.08782).

    lr_scale: see `SharedResidualStage`.
    """

    def __init__(self, depth: int = 20, widths: Three = WIDTHS, *, lr_scale: float | None = None, **kwargs):
        self.lr_scale = lr_scale
        super().__init__(depth, widths, **kwargs)

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        choices = {"stride": stride, "gain": self.gain, "lr_scale": self.lr_scale}
        return SharedResidualStage(in_chans, out_chans, num_layers, **choices)


class PnnhResNet(PnnhNet, CifarNet):
    """The PNNH net: plain layers with a learner of their own and a coder that the layers of a stage share.

    The stream is as wide as the residual twin, the learner `learner_ratio` of that. Chosen: with three quarters the net
    has at most 0.56 of the twin's parameters at every depth from 20 on.
    """

    def __init__(self, depth: int = 20, widths: Three = WIDTHS, *, learner_ratio: float = 0.75, **kwargs):
        super().__init__(depth, widths, learner_ratio=learner_ratio, **kwargs)


class SameBlockResNet(CifarNet):
    """The residual net of PnnhResNet's own blocks: its stream skips the activations that it only passes."""

    def __init__(
        self,
        depth: int = 20,
        widths: Three = WIDTHS,
        *,
        learner_ratio: float = 0.75,
        options: PlainOptions | None = None,
        **kwargs,
    ):
        self.learner_ratio, self.options = learner_ratio, options
        super().__init__(depth, widths, **kwargs)

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        learner = max(1, round(self.learner_ratio * out_chans))
        return SameBlockStage(in_chans, out_chans, learner, num_layers, stride=stride, options=self.options)


class NarrowResNet(CifarResNet):
    """The residual twin of the same depth, so narrow that it has as many parameters as the PNNH net (within 3 %)."""

    def __init__(self, depth: int = 20, widths: Three | None = None, **kwargs):
        ends = kwargs.get("num_classes", 10), kwargs.get("in_chans", 3)
        super().__init__(depth, widths or narrow_widths(depth, *ends), **kwargs)


class ShortResNet(CifarResNet):
    """The residual twin of the same widths, with the depth at which it has nearly the PNNH net's parameters.

    depth: that of the PNNH net; the net's own `depth` is less, 14 in place of 20.
    """

    def __init__(self, depth: int = 20, widths: Three = WIDTHS, **kwargs):
        ends = kwargs.get("num_classes", 10), kwargs.get("in_chans", 3)
        super().__init__(short_depth(depth, widths, *ends), widths, **kwargs)


def narrow_widths(depth: int, num_classes: int = 10, in_chans: int = 3) -> Three:
    """Widths (w / 4, w / 2, w), rounded, with which a CifarResNet's parameters come nearest to the PNNH net's."""
    choices = [(round(width / 4), round(width / 2), width) for width in range(4, WIDTHS[-1] + 1)]
    return min(choices, key=lambda widths: _distance(depth, WIDTHS, depth, widths, num_classes, in_chans))


def short_depth(depth: int, widths: Three = WIDTHS, num_classes: int = 10, in_chans: int = 3) -> int:
    """The depth 6n + 2 at which a CifarResNet's parameters come nearest to those of the PNNH net of `depth`."""
    choices = range(8, depth + 1, 6)
    return min(choices, key=lambda shorter: _distance(depth, widths, shorter, widths, num_classes, in_chans))


def _distance(depth: int, widths: Three, depth2: int, widths2: Three, num_classes: int, in_chans: int) -> int:
    """How many parameters lie between a PNNH net and a CifarResNet of the second depth and widths."""
    layers = (layers_per_stage(depth2),) * 3
    residual = residual_params(layers, widths2, num_classes=num_classes, in_chans=in_chans)
    return abs(residual - pnnh_params(depth, tuple(widths), num_classes, in_chans))


@lru_cache
def pnnh_params(depth: int, widths: Three = WIDTHS, num_classes: int = 10, in_chans: int = 3) -> int:
    """Number of parameters of the default PnnhResNet of this size."""
    return params_on_meta(lambda: PnnhResNet(depth, widths, num_classes=num_classes, in_chans=in_chans))
