"""Prototype nets of the design search: plain nets whose path crosses real activations, and the twins beside them.

Each net is a stem, three stages and a head. Legend: x [B, C, H, W] features of a stage; P a fixed 0/1 diagonal;
W, K kernels.

    Strong    x' = relu(x + norm(W2 * relu(norm(W1 * x))))                strong residual net: last norm starts at 0.3
    Merged    x' = act(P x + norm(W * x))                                 one convolution a layer; P marks the path
    Pipelined f' = relu(norm(W * c)),  c' = relu(c + norm(K * f))         two tensors, a write in every layer

`Merged` with `shared` stores the rows of the path once for a stage: W = [K; W_l]. All norms are a layer's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnnh.layers import LearnerConv, NormHead

GAIN = 0.3  # start of the scale of what is added to a path


def norm(channels: int, gain: float = 1.0) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(channels)
    nn.init.constant_(module.weight, gain)
    return module


def subsampled(x: Tensor, stride: int) -> Tensor:
    return x[:, :, ::stride, ::stride] if stride > 1 else x


class StrongBlock(nn.Module):
    """relu(x + norm2(conv2(relu(norm1(conv1(x)))))), the shortcut subsampled and padded with zeros (option A)."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, gain: float = GAIN):
        super().__init__()
        self.conv1, self.norm1 = LearnerConv(in_chans, out_chans, stride=stride), norm(out_chans)
        self.conv2, self.norm2 = LearnerConv(out_chans, out_chans), norm(out_chans, gain)
        self.stride, self.widening = stride, out_chans - in_chans

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(F.pad(subsampled(x, self.stride), (0, 0, 0, 0, 0, self.widening)) + h)


class StrongStage(nn.Sequential):
    def __init__(self, in_chans: int, out_chans: int, layers: int, stride: int, **options):
        first = StrongBlock(in_chans, out_chans, stride, **options)
        super().__init__(first, *(StrongBlock(out_chans, out_chans, 1, **options) for _ in range(layers // 2 - 1)))


class MergedStage(nn.Module):
    """x' = act(P x + norm(W * x)), `layers` times; the first layer takes stride and widening.

    path: share of the channels that P lets pass. gain: start of the norm's scale there; elsewhere 1. shared: the rows
    of the path share one kernel in all layers but the first. slope: of a leaky ReLU.
    """

    def __init__(
        self, in_chans: int, out_chans: int, layers: int, stride: int, *,
        path: float = 0.5, gain: float = GAIN, shared: bool = False, slope: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.path, self.stride, self.slope = round(path * out_chans), stride, slope
        self.arriving = min(round(path * in_chans), self.path)
        self.first = LearnerConv(in_chans, out_chans, stride=stride)
        rows = out_chans - self.path if shared else out_chans
        self.learners = nn.ModuleList(LearnerConv(out_chans, rows) for _ in range(layers - 1))
        self.coder = LearnerConv(out_chans, self.path).weight if shared else None
        self.norms = nn.ModuleList(norm(out_chans) for _ in range(layers))
        for index, module in enumerate(self.norms):
            nn.init.constant_(module.weight[: self.path if index else self.arriving], gain)

    def add(self, x: Tensor, path: Tensor) -> Tensor:
        """act(P path + x) for the first channels of x."""
        width = path.shape[1]
        return F.leaky_relu(torch.cat([x[:, :width] + path, x[:, width:]], 1), self.slope)

    def forward(self, x: Tensor) -> Tensor:
        path = subsampled(x[:, : self.arriving], self.stride)
        x = self.add(self.norms[0](self.first(x)), path)
        for learner, norm in zip(self.learners, self.norms[1:], strict=True):
            kernel = learner.weight if self.coder is None else torch.cat([self.coder, learner.weight])
            x = self.add(norm(F.conv2d(x, kernel, padding=1)), x[:, : self.path])
        return x


class PipelinedStage(nn.Module):
    """f' = relu(norm(W * c)), c' = relu(c + norm(K * f)), `layers` writes; K is the stage's own 3x3 kernel if `shared`.

    ratio: learner channels over stream channels.
    """

    def __init__(
        self, in_chans: int, out_chans: int, layers: int, stride: int, *,
        ratio: float = 1.0, gain: float = GAIN, shared: bool = True, kernel_size: int = 3,
    ):  # fmt: skip
        super().__init__()
        thin = round(ratio * out_chans)
        self.enter_f = nn.Sequential(LearnerConv(in_chans, thin, stride=stride), norm(thin), nn.ReLU())
        self.enter_c = nn.Sequential(LearnerConv(in_chans, out_chans, stride=stride), norm(out_chans), nn.ReLU())
        self.learners = nn.ModuleList(
            nn.Sequential(LearnerConv(out_chans, thin), norm(thin), nn.ReLU()) for _ in range(layers - 1)
        )
        self.writes = nn.ModuleList(norm(out_chans, gain) for _ in range(layers))
        kernels = [LearnerConv(thin, out_chans, kernel_size).weight for _ in range(1 if shared else layers)]
        self.coder = nn.ParameterList(kernels)
        self.shared, self.padding = shared, kernel_size // 2

    def write(self, layer: int, f: Tensor, c: Tensor) -> Tensor:
        kernel = self.coder[0 if self.shared else layer]
        return F.relu(c + self.writes[layer](F.conv2d(f, kernel, padding=self.padding)))

    def forward(self, x: Tensor) -> Tensor:
        f, c = self.enter_f(x), self.enter_c(x)
        for layer, learner in enumerate(self.learners):
            f, c = learner(c), self.write(layer, f, c)
        return self.write(len(self.learners), f, c)


class Prototype(nn.Sequential):
    """Stem, a stage per width with `layers` layers, head with a norm before the pooling."""

    def __init__(self, stage: type[nn.Module], layers: int, widths: tuple[int, int, int], num_classes: int, **options):
        chans = (widths[0], *widths)
        stem = nn.Sequential(LearnerConv(3, widths[0]), norm(widths[0]), nn.ReLU())
        stages = [stage(chans[i], width, layers, 2 if i else 1, **options) for i, width in enumerate(widths)]
        super().__init__(stem, *stages, NormHead(widths[-1], num_classes, norm=nn.BatchNorm2d))


def registered(name: str):
    """A net of the package."""

    def build(num_classes: int) -> nn.Module:
        import pnnh

        return pnnh.create_model(name, num_classes=num_classes)

    return build


def prototype(stage: type[nn.Module], layers: int, widths: tuple[int, int, int], **options):
    return lambda num_classes: Prototype(stage, layers, widths, num_classes, **options)


NETS = {
    # cost of the residual net of depth 20: 270k parameters
    "residual-20": prototype(StrongStage, 6, (16, 32, 64)),
    "narrow-20": prototype(StrongStage, 6, (12, 23, 46)),
    "short-20": prototype(StrongStage, 4, (16, 32, 64)),
    "pnnh-20": registered("pnnh_resnet20"),
    "merged-20": prototype(MergedStage, 6, (16, 32, 64)),
    "merged-wide-20": prototype(MergedStage, 3, (23, 46, 92)),
    "merged-wide-20-shared": prototype(MergedStage, 3, (23, 46, 92), shared=True),
    "merged-wide-20-leaky": prototype(MergedStage, 3, (23, 46, 92), slope=0.1),
    "chain-wide-20": prototype(MergedStage, 3, (23, 46, 92), path=0.0),
    "pipelined-20": prototype(PipelinedStage, 3, (16, 32, 64), ratio=0.75),
    "pipelined-20-own": prototype(PipelinedStage, 3, (16, 32, 64), ratio=0.75, shared=False),
    # cost of the residual net of depth 56: 853k parameters
    "residual-56": prototype(StrongStage, 18, (16, 32, 64)),
    "narrow-56": prototype(StrongStage, 18, (11, 22, 44)),
    "short-56": prototype(StrongStage, 8, (16, 32, 64)),
    "pnnh-56": registered("pnnh_resnet56"),
    "merged-wide-56": prototype(MergedStage, 9, (23, 46, 92)),
    "merged-wide-56-shared": prototype(MergedStage, 9, (23, 46, 92), shared=True),
    "merged-wide-56-leaky": prototype(MergedStage, 9, (23, 46, 92), slope=0.1),
    "chain-wide-56": prototype(MergedStage, 9, (23, 46, 92), path=0.0),
    "pipelined-56": prototype(PipelinedStage, 9, (16, 32, 64), ratio=1.0),
    "pipelined-56-own": prototype(PipelinedStage, 9, (16, 32, 64), ratio=1.0, shared=False),
}
