"""The ImageNet shape of He et al. 2015, section 3.3: 7x7 stem, max pool, four stages, pooling, classifier.

PnnhImagenet             plain layers with a shared coder      no residual connection
PlainImagenet            conv-norm-relu                        no residual connection, no coder
PlainBottleneckImagenet  1x1, 3x3, 1x1                         no residual connection, no coder
ResidualImagenet         residual blocks, shortcuts without parameters, with the start and the head of a PNNH net
NarrowImagenet           the same, as narrow as a PnnhImagenet has parameters
timm's own resnet18, resnet34, resnet50 are the residual nets as published
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

from torch import nn

from pnnh.models.baselines import GAIN, BottleneckChainStage, ChainStage, ConvNormAct, ResidualStage, residual_params
from pnnh.models.staged import PnnhNet, StagedNet, params_on_meta

Four = tuple[int, int, int, int]
BASIC_WIDTHS = (64, 128, 256, 512)


class ImagenetNet(StagedNet):
    """Subclasses say what a stage is. `num_layers` counts convolutions in a row, stage by stage.

    Input [B, in_chans, H, W] of any H, W >= 32; output [B, num_classes], or [B, widths[3], H / 32, W / 32] features.
    `feature_info` names the stem's output and the four stages' (reductions 2, 4, 8, 16, 32), as timm's ResNets do.
    As there, nothing norms the features before the pooling, unless `head_norm` does (a `PnnhImagenet` has one).
    """

    min_size = 32
    stem_reduction = 4
    stem_is_feature = True

    def __init__(
        self,
        num_layers: Four = (4, 4, 4, 4),
        widths: Four = BASIC_WIDTHS,
        *,
        stem_width: int = 64,
        head_norm: Callable[[int], nn.Module] | Literal[False] = False,
        num_classes: int = 1000,
        **kwargs,
    ):
        kwargs |= {"stem_width": stem_width, "head_norm": head_norm, "num_classes": num_classes}
        super().__init__(widths, num_layers, **kwargs)

    def first_layer(self, in_chans: int, out_chans: int) -> nn.Module:
        return ConvNormAct(in_chans, out_chans, 7, stride=2)

    def first_pool(self) -> nn.Module:
        return nn.MaxPool2d(3, stride=2, padding=1)


class PlainImagenet(ImagenetNet):
    """The plain twin of timm's ResNets of basic blocks: the same convolutions in a chain."""

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        return ChainStage(in_chans, out_chans, num_layers, stride=stride)


class ResidualImagenet(ImagenetNet):
    """The residual twin: a norm before the pooling, the last norm of each block starts at `gain`."""

    def __init__(self, num_layers: Four = (4, 4, 4, 4), widths: Four = BASIC_WIDTHS, *, gain: float = GAIN, **kwargs):
        self.gain = gain
        super().__init__(num_layers, widths, **{"head_norm": nn.BatchNorm2d} | kwargs)

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        return ResidualStage(in_chans, out_chans, num_layers, stride=stride, gain=self.gain)


class NarrowImagenet(ResidualImagenet):
    """The residual twin, so narrow that it has as many parameters as the default PnnhImagenet (within 3 %)."""

    def __init__(self, num_layers: Four = (4, 4, 4, 4), widths: Four | None = None, **kwargs):
        ends = kwargs.get("num_classes", 1000), kwargs.get("in_chans", 3)
        widths = widths or narrow_widths(tuple(num_layers), *ends)
        super().__init__(num_layers, widths, **{"stem_width": widths[0]} | kwargs)


class PlainBottleneckImagenet(ImagenetNet):
    """The plain twin of timm's ResNets of bottlenecks."""

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        return BottleneckChainStage(in_chans, out_chans, num_layers, stride=stride)


class PnnhImagenet(PnnhNet, ImagenetNet):
    """The PNNH net.

    With four layers a stage has two writes, each after one learner: there the thinner learner and the 1x1 coder save
    the parameters, not the sharing. 7/8 of the stream's width gives 0.56 of resnet18's parameters. Longer stages learn
    twice before each write, and their nets have thinner learners (`pnnh.models.registry`).
    """

    def __init__(
        self, num_layers: Four = (4, 4, 4, 4), widths: Four = BASIC_WIDTHS, *, learner_ratio: float = 0.875, **kwargs
    ):
        super().__init__(num_layers, widths, learner_ratio=learner_ratio, **kwargs)


@lru_cache
def narrow_widths(num_layers: Four, num_classes: int = 1000, in_chans: int = 3) -> Four:
    """Widths (w, 2 w, 4 w, 8 w) with which a ResidualImagenet's parameters come nearest to the default PNNH net's."""
    ends = {"num_classes": num_classes, "in_chans": in_chans}
    wanted = params_on_meta(lambda: PnnhImagenet(num_layers, **ends))
    choices = [(width, 2 * width, 4 * width, 8 * width) for width in range(4, BASIC_WIDTHS[0] + 1)]
    return min(choices, key=lambda widths: abs(residual_params(num_layers, widths, stem_side=7, **ends) - wanted))
