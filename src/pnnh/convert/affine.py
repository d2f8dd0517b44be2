"""Affine maps between two activations, exactly: sums and compositions of zero-padded convolutions of one state.

Shapes: kernel [O, I, K, K], K odd, padding (K - 1) / 2; bias [O] or None. All arithmetic is in the kernel's dtype (the
callers use float64) and runs on the meta device too, where it yields sizes without values. Source: derived.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pnnh._errors import UsageError


@dataclass(frozen=True)
class Affine:
    """conv2d(state, kernel, bias, stride, padding=(K - 1) // 2) of state number `state`; `positive`: never negative."""

    state: int
    kernel: Tensor
    bias: Tensor | None = None
    stride: int = 1
    positive: bool = False

    @property
    def channels(self) -> int:
        return self.kernel.shape[0]

    def negative(self) -> Affine:
        return self.scaled(-torch.ones(self.channels, dtype=self.kernel.dtype, device=self.kernel.device))

    def scaled(self, scale: Tensor, shift: Tensor | None = None) -> Affine:
        """scale [O] times the value, plus shift [O]: a folded norm."""
        bias = None if self.bias is None else self.bias * scale
        if shift is not None:
            bias = shift if bias is None else bias + shift
        return replace(self, kernel=self.kernel * scale[:, None, None, None], bias=bias, positive=False)

    def subsampled(self, stride: int) -> Affine:
        return replace(self, stride=self.stride * stride)

    def plus(self, other: Affine, where: str) -> Affine:
        """The sum of two values of the same state and size."""
        if (self.state, self.stride) != (other.state, other.stride):
            raise UsageError(f"{where}: the sum reads two states or strides at once; use the structured form")
        side = max(self.kernel.shape[-1], other.kernel.shape[-1])
        kernel = widened(self.kernel, side) + widened(other.kernel, side)
        biases = [item for item in (self.bias, other.bias) if item is not None]
        return Affine(
            self.state, kernel, sum(biases) if biases else None, self.stride, self.positive and other.positive
        )


def identity(state: int, channels: int, *, start: int, count: int, like: Tensor, positive: bool) -> Affine:
    """Channels [start, start + count) of a state of `channels` channels: a Dirac kernel [count, channels, 1, 1]."""
    kernel = torch.zeros(count, channels, 1, 1, dtype=like.dtype, device=like.device)
    kernel[:, start : start + count, 0, 0].copy_(torch.eye(count, dtype=like.dtype, device=like.device))
    return Affine(state, kernel, positive=positive)


def widened(kernel: Tensor, side: int) -> Tensor:
    """Zero-pad a centred kernel to side x side."""
    margin = (side - kernel.shape[-1]) // 2
    return F.pad(kernel, (margin,) * 4) if margin else kernel


def centred(weight: Tensor, padding: int, dilation: int, groups: int) -> Tensor:
    """A square kernel with any padding -> the equal dense one [O, I, K, K], centred with padding (K - 1) / 2."""
    out, inner, size, _ = weight.shape
    span = dilation * (size - 1) + 1
    side = 2 * max(padding, span - 1 - padding) + 1
    dense = weight.new_zeros(out, inner * groups, side, side)
    first = (side - 1) // 2 - padding
    places = slice(first, first + span, dilation)
    for group in range(groups):
        rows = slice(group * out // groups, (group + 1) * out // groups)
        dense[rows, group * inner : (group + 1) * inner, places, places].copy_(weight[rows])
    return dense


def composed(inner: Affine, kernel: Tensor, bias: Tensor | None, stride: int, where: str) -> Affine:
    """conv2d(inner, kernel, bias, stride) as one map of the state.

    Exact when the outer kernel is 1 x 1, or the inner one is 1 x 1 without bias and stride (padding then commutes).
    """
    if kernel.shape[-1] == 1:
        product = torch.einsum("om,mihw->oihw", kernel[:, :, 0, 0], inner.kernel)
        if inner.bias is not None:
            moved = kernel[:, :, 0, 0] @ inner.bias
            bias = moved if bias is None else bias + moved
        return Affine(inner.state, product, bias, inner.stride * stride)
    if inner.kernel.shape[-1] > 1 or inner.bias is not None or inner.stride > 1:
        raise UsageError(
            f"{where}: two convolutions without an activation between have no single equal one at the image border; "
            "use the structured form"
        )
    product = torch.einsum("omhw,mi->oihw", kernel, inner.kernel[:, :, 0, 0])
    return Affine(inner.state, product, bias, stride)


def stacked(parts: list[Affine], where: str) -> Affine:
    """Concatenate along the output channels."""
    if len({(part.state, part.stride) for part in parts}) > 1:
        raise UsageError(f"{where}: one layer would need two strides or states; use the structured form")
    side = max(part.kernel.shape[-1] for part in parts)
    kernel = torch.cat([widened(part.kernel, side) for part in parts])
    zeros = [kernel.new_zeros(part.channels) if part.bias is None else part.bias for part in parts]
    return Affine(parts[0].state, kernel, torch.cat(zeros), parts[0].stride)
