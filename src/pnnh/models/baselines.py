"""The stages of the nets that a PNNH net is compared with: plain chains and residual blocks.

Every stage maps x [B, in, H, W] to [B, C, H / stride, W / stride], as a plain stage of `pnnh.layers` does.

    ChainStage            conv-norm-relu, no shortcut
    BottleneckChainStage  the same with 1x1, 3x3, 1x1
    ResidualStage         He et al.'s basic blocks, shortcuts without parameters (option A)
    SharedResidualStage   the same, the second convolution of a block shared by the stage
    SameBlockStage        a PNNH net's blocks, made residual: their stream skips the activations it only passes
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import torch.nn.functional as F
from torch import Tensor, nn

from pnnh.layers import AlternatingStage, CoderConv, LearnerConv, PlainOptions, Transition
from pnnh.layers.coder import coders

GAIN = 0.3  # where the last norm of a residual block starts, as loud as a PNNH net's writes (chosen)


class ConvNormAct(nn.Sequential):
    """relu(norm(conv(x)))"""

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int = 3, *, stride: int = 1):
        conv = LearnerConv(in_chans, out_chans, kernel_size, stride=stride)
        super().__init__(conv, nn.BatchNorm2d(out_chans), nn.ReLU(inplace=True))


class ChainStage(nn.Sequential):
    """`num_layers` of conv-norm-relu in a chain: a stage of the plain net of He et al. 2015."""

    def __init__(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int = 1):
        first = ConvNormAct(in_chans, out_chans, stride=stride)
        super().__init__(first, *(ConvNormAct(out_chans, out_chans) for _ in range(num_layers - 1)))


class BottleneckChainStage(nn.Sequential):
    """`num_layers / 3` bottlenecks of 1x1, 3x3 and 1x1 (He et al. 2015, figure 5), their shortcuts left out."""

    def __init__(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int = 1, expansion: int = 4):
        super().__init__()
        thin = out_chans // expansion
        for index in range(num_layers // 3):
            first = index == 0
            self.append(ConvNormAct(in_chans if first else out_chans, thin, 1))
            self.append(ConvNormAct(thin, thin, stride=stride if first else 1))
            self.append(ConvNormAct(thin, out_chans, 1))


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))), the second norm's scale starting at `gain`."""

    def __init__(self, in_chans: int, out_chans: int, *, stride: int = 1, gain: float = 1.0):
        super().__init__()
        self.conv1 = LearnerConv(in_chans, out_chans, stride=stride)
        self.norm1 = nn.BatchNorm2d(out_chans)
        self.conv2 = LearnerConv(out_chans, out_chans)
        self.norm2 = nn.BatchNorm2d(out_chans)
        nn.init.constant_(self.norm2.weight, gain)
        self.act = nn.ReLU(inplace=True)
        self.widening, self.stride = out_chans - in_chans, stride

    def shortcut(self, x: Tensor) -> Tensor:
        """He et al.'s option A: every `stride`-th pixel, and channels of zeros behind the others."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.widening)) if self.widening else x

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm1(self.conv1(x)))
        return self.act(self.shortcut(x) + self.norm2(self.conv2(h)))


class ResidualStage(nn.Sequential):
    """`num_layers / 2` residual blocks. `gain`: where the scale of each block's last norm starts."""

    def __init__(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int = 1, gain: float = 1.0):
        first = ResidualBlock(in_chans, out_chans, stride=stride, gain=gain)
        super().__init__(first, *(ResidualBlock(out_chans, out_chans, gain=gain) for _ in range(num_layers // 2 - 1)))


class SharedResidualStage(ResidualStage):
    """Residual blocks that share their second convolution; norms and shortcuts are each block's own.

    This is ShaResNet (arXiv 1702.08782).

    lr_scale: multiplies the shared kernel's learning rate, which is then not decayed; None: trained like any other, as
    in that paper.
    """

    def __init__(self, *sizes: int, lr_scale: float | None = None, **options):
        super().__init__(*sizes, **options)
        shared = self[0].conv2
        if lr_scale is not None:
            shared.lr_scale = lr_scale
        for block in self:
            block.conv2 = shared


class SameBlockStage(nn.Module):
    """The blocks of an `AlternatingStage`, made residual: the stream skips the activations of the learners.

    f = learners(c), c' = act(c + K * f + bias). The plain stage's stream c crosses an activation at each learner, too:
    c = act(c + shift). Everything else is the same: transition, learners, the shared kernel K, and how all of them
    start. So a net of such stages and its PNNH net differ in those activations only.
    """

    def __init__(
        self,
        in_chans: int,
        stream: int,
        learner: int,
        num_layers: int,
        *,
        stride: int = 1,
        options: PlainOptions | None = None,
    ):
        super().__init__()
        options = options or PlainOptions()
        groups, side = AlternatingStage.grouped(num_layers, options), options.coder_kernel_size
        self.transition = Transition(in_chans, stream, learner, stride=stride, **options.layer())
        shapes, start = {"weight": (stream, learner, side, side)}, options.starts()
        self.coders = coders(options.coder, shapes, len(groups), starts=start, rate=1 / len(groups) ** 2)
        self.learners, self.writes = nn.ModuleList(), nn.ModuleList(CoderConv(learner, stream, side) for _ in groups)
        for index, size in enumerate(groups):
            reads = [stream] * (index > 0) + [learner] * (size - 2)  # the transition is the first group's first learner
            self.learners.append(nn.Sequential(*(ConvNormAct(chans, learner) for chans in reads)))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h, c = self.transition(x)
        for learn, write, coder in zip(self.learners, self.writes, cycle(self.coders), strict=False):
            h = c = self.act(c + write(learn(h), coder.weight))
        return c


def residual_params(
    num_layers: Sequence[int], widths: Sequence[int], *, stem_side: int = 3, num_classes: int = 10, in_chans: int = 3
) -> int:
    """Number of parameters of a net of residual stages with a stem of the first width and a norm before the pooling.

    Derived: kernels of 3x3 (the stem's: `stem_side`), two numbers a norm and channel, the classifier.
    """
    count, before = (stem_side**2 * in_chans + 2) * widths[0], widths[0]
    for layers, width in zip(num_layers, widths, strict=True):
        count += 9 * before * width + (layers - 1) * 9 * width**2 + 2 * layers * width
        before = width
    return count + 2 * before + num_classes * (before + 1)
