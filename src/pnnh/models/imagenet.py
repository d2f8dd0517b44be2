"""The ImageNet shape of He et al. 2015, section 3.3: 7x7 stem, max pool, four stages, pooling, classifier.

PnnhImagenet             plain layers with a shared coder      no residual connection
PlainImagenet            conv-norm-relu                        no residual connection, no coder
PlainBottleneckImagenet  1x1, 3x3, 1x1                         no residual connection, no coder
the residual twins are timm's own resnet18, resnet34, resnet50
"""

from __future__ import annotations

from torch import nn

from pnnh.layers import AlternatingStage, NormHead, PlainOptions, PlainStage
from pnnh.models.baselines import BottleneckChainStage, ChainStage, ConvNormAct
from pnnh.models.staged import StagedNet

Four = tuple[int, int, int, int]
BASIC_WIDTHS = (64, 128, 256, 512)


class ImagenetNet(StagedNet):
    """Subclasses say what a stage is. `num_layers` counts convolutions in a row, stage by stage.

    Input [B, in_chans, H, W] of any H, W >= 32; output [B, num_classes], or [B, widths[3], H / 32, W / 32] features.
    `feature_info` names the stem's output and the four stages' (reductions 2, 4, 8, 16, 32), as timm's ResNets do.
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
        num_classes: int = 1000,
        **kwargs,
    ):
        super().__init__(widths, num_layers, stem_width=stem_width, num_classes=num_classes, **kwargs)

    def first_layer(self, in_chans: int, out_chans: int) -> nn.Module:
        return ConvNormAct(in_chans, out_chans, 7, stride=2)

    def first_pool(self) -> nn.Module:
        return nn.MaxPool2d(3, stride=2, padding=1)


class PlainImagenet(ImagenetNet):
    """The plain twin of the nets of basic blocks."""

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        return ChainStage(in_chans, out_chans, num_layers, stride=stride)


class PlainBottleneckImagenet(ImagenetNet):
    """The plain twin of the nets of bottlenecks."""

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        return BottleneckChainStage(in_chans, out_chans, num_layers, stride=stride)


class PnnhImagenet(ImagenetNet):
    """The PNNH net. `learner_ratio`: the learner's width as a share of the stream's.

    Four layers a stage are two writes, each after one learner, so what saves parameters there is the thinner learner
    and the pointwise coder, not the sharing; 7/8 holds resnet18 at 0.56 of its parameters. Longer stages learn twice
    before they write, and their nets take thinner learners for it (`pnnh.models.imagenet_registry`).
    """

    def __init__(
        self,
        num_layers: Four = (4, 4, 4, 4),
        widths: Four = BASIC_WIDTHS,
        *,
        learner_ratio: float = 0.875,
        form: type[PlainStage] = AlternatingStage,
        options: PlainOptions | None = None,
        **kwargs,
    ):
        if learner_ratio <= 0:
            raise ValueError(f"learner_ratio {learner_ratio} must be above 0: without a learner nothing is learned")
        self.learner_ratio, self.form, self.options = learner_ratio, form, options or PlainOptions()
        super().__init__(num_layers, widths, **kwargs)

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        learner = max(1, round(self.learner_ratio * out_chans))
        return self.form(in_chans, out_chans, learner, num_layers, stride=stride, options=self.options)

    def last_layer(self, in_chans: int, num_classes: int, **kwargs) -> NormHead:
        return NormHead(in_chans, num_classes, norm=self.options.norm, **kwargs)
