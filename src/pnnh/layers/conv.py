"""One plain layer: a linear map, then one activation, from (f, c) to (f', c'); no path leads around the activation.

Legend: f learner features [B, L, H, W]: what a layer learned and has not written yet; c the stream [B, C, H, W]: what
the layers so far have written; K the kernel of the stage's coder, with which a layer writes.

    Learn      f' = act(norm(learner * c)),  c' = act(c + shift)
    Deepen     f' = act(norm(learner * f)),  c' = act(c + shift)
    Write      f' = f,                       c' = act(c + K * f + bias)
    PlainConv  f' = act(norm(learner * c)),  c' = act(c + K * f + bias)

All are called alike, `f, c = layer(f, c, kernel)`; a layer that only learns ignores the kernel.

`c +` is the Dirac tap of the layer's linear map: both terms of the sum have crossed the same activations, and the sum
crosses the next one. f and c stay two tensors, so that nothing is sliced, joined or copied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from pnnh.layers.init import he_normal_


def padded(kernel_size: int, dilation: int) -> int:
    """The padding that keeps the size at stride 1. `kernel_size` must be odd: an even one has no centre tap."""
    if kernel_size % 2 == 0 or kernel_size < 1:
        raise ValueError(f"kernel_size {kernel_size} must be odd: the stream passes through the kernel's centre tap")
    return dilation * (kernel_size // 2)


class LearnerConv(nn.Conv2d):
    """The learner's convolution, C -> L channels: each layer has its own. Keeps the size; He start; no bias."""

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ):
        padding = padded(kernel_size, dilation)
        geometry = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "padding_mode": padding_mode,
        }
        super().__init__(in_chans, out_chans, kernel_size, bias=False, **geometry)

    def reset_parameters(self) -> None:
        he_normal_(self.weight)


class CoderConv(LearnerConv):
    """The coder's convolution, L -> C channels: a Conv2d whose kernel is an argument, owned by the stage's `Coder`.

    The bias [C] is the layer's own and starts at 0.
    """

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int = 1, **geometry):
        super().__init__(in_chans, out_chans, kernel_size, **geometry)
        self.weight = None
        self.bias = nn.Parameter(torch.zeros(out_chans))

    def forward(self, f: Tensor, kernel: Tensor) -> Tensor:
        return self._conv_forward(f, kernel, self.bias)


class _ShiftedRelu(torch.autograd.Function):
    """relu(c + shift) that keeps c for the backward pass (the learner's convolution does anyway), not its output."""

    @staticmethod
    def forward(c: Tensor, shift: Tensor) -> Tensor:
        return (c + shift).relu_()

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        c, shift = ctx.saved_tensors
        total = c + shift
        grad = torch.ops.aten.threshold_backward.grad_input(grad, total, 0, grad_input=total)
        return grad, grad.sum_to_size(shift.shape)


def shifted(act: nn.Module, c: Tensor, shift: Tensor) -> Tensor:
    """act(c + shift), c [B, C, H, W], shift [C], in c's dtype. In training a ReLU keeps c, and nothing of its own.

    A compiler left to itself keeps a boolean per unit, slow to store on a CPU (torch 2.15); checkpointing has it
    computed again from c. Where an export or a probe wants to see every operator, it is plain autograd.
    """
    shift = shift.to(c.dtype).view(-1, 1, 1)
    if act.training and not torch.compiler.is_exporting():
        if torch.compiler.is_compiling():
            return checkpoint(lambda c, shift: act(c + shift), c, shift, use_reentrant=False)
        if type(act) is nn.ReLU and not torch._C._is_torch_function_mode_enabled():
            return _ShiftedRelu.apply(c, shift)
    return act(c + shift)


class Learn(nn.Module):
    """f' = act(norm(learner * c)), c' = act(c + shift). Reads the stream; the stream crosses the activation as well.

    `shift` [C] is learned from 0 on: below 0 it makes the stream forget, above 0 survive (chosen). `reads`: how many
    channels the learner reads, by default the stream's.
    """

    def __init__(
        self, stream: int, learner: int, *, reads: int | None = None, norm=nn.BatchNorm2d, act=nn.ReLU, **geometry
    ):
        super().__init__()
        self.conv = LearnerConv(stream if reads is None else reads, learner, **geometry)
        self.norm = norm(learner)
        self.shift = nn.Parameter(torch.zeros(stream))
        self.act = act(inplace=True)

    def forward(self, f: Tensor, c: Tensor, kernel: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.act(self.norm(self.conv(c))), shifted(self.act, c, self.shift)


class Deepen(Learn):
    """f' = act(norm(learner * f)), c' = act(c + shift). Learns from the features just learned, not from the stream."""

    def __init__(self, stream: int, learner: int, **options):
        super().__init__(stream, learner, reads=learner, **options)

    def forward(self, f: Tensor, c: Tensor, kernel: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.act(self.norm(self.conv(f))), shifted(self.act, c, self.shift)


class Write(nn.Module):
    """c' = act(c + K * f + bias), f unchanged. The features are normed where they are learned; the kernel is small."""

    def __init__(self, stream: int, learner: int, kernel_size: int = 1, *, act=nn.ReLU, **geometry):
        super().__init__()
        self.conv = CoderConv(learner, stream, kernel_size, **geometry)
        self.act = act(inplace=True)

    def forward(self, f: Tensor, c: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        return f, self.act(c + self.conv(f, kernel))


class PlainConv(nn.Module):
    """A learn and a write at once: f' = act(norm(learner * c)), c' = act(c + K * f + bias).

    The layer reads the stream while the features of the layer before are written.
    """

    def __init__(
        self, stream: int, learner: int, *, coder_kernel_size: int = 1, norm=nn.BatchNorm2d, act=nn.ReLU, **geometry
    ):
        super().__init__()
        self.conv = LearnerConv(stream, learner, **geometry)
        self.norm = norm(learner)
        self.write = Write(stream, learner, act=act, **geometry | {"kernel_size": coder_kernel_size})
        self.act = act(inplace=True)

    def forward(self, f: Tensor, c: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        return self.act(self.norm(self.conv(c))), self.write(f, c, kernel)[1]
