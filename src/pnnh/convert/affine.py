"""Affine maps between two activations: the only arithmetic of convolution kernels in the package.

A net is a chain of states, each the result of one activation; what lies between two of them is an affine map of the
older state. `Affine` is such a map as one convolution; sums, compositions and stacks of affine maps are again affine
maps, and `Chain` writes them down as layers. Shapes: kernel [O, I, K, K], K odd, padding dilation (K - 1) / 2; bias [O]
or None. The arithmetic is in the kernel's dtype (the callers use float64) and runs on the meta device too, where it
yields sizes without values. Source: derived.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnnh._errors import UsageError


@dataclass(frozen=True)
class Affine:
    """conv2d(state, kernel, bias, stride, padding, dilation, padding_mode) of state number `state`.

    positive: no entry is ever negative. selects: the map picks the channels [selects, selects + O) of the state.
    """

    state: int
    kernel: Tensor
    bias: Tensor | None = None
    stride: int = 1
    positive: bool = False
    dilation: int = 1
    padding_mode: str = "zeros"
    selects: int | None = None

    @property
    def channels(self) -> int:
        return self.kernel.shape[0]

    @property
    def taps(self) -> tuple[int, str] | None:
        """How the kernel is laid on the image; None for a 1 x 1 kernel, which fits any."""
        return (self.dilation, self.padding_mode) if self.kernel.shape[-1] > 1 else None

    def negative(self) -> Affine:
        return self.scaled(-torch.ones(self.channels, dtype=self.kernel.dtype, device=self.kernel.device))

    def scaled(self, scale: Tensor, shift: Tensor | None = None) -> Affine:
        """scale [O] times the value, plus shift [O]: a folded norm."""
        bias = None if self.bias is None else self.bias * scale
        if shift is not None:
            bias = shift if bias is None else bias + shift
        kernel = self.kernel * scale[:, None, None, None]
        return replace(self, kernel=kernel, bias=bias, positive=False, selects=None)

    def shifted(self, shift: Tensor) -> Affine:
        """The value plus shift [O]."""
        return replace(self, bias=shift if self.bias is None else self.bias + shift, positive=False, selects=None)

    def subsampled(self, stride: int) -> Affine:
        return replace(self, stride=self.stride * stride, selects=None)

    def padded(self, before: int, after: int) -> Affine:
        """With channels that are 0 before and after its own."""
        bias = None if self.bias is None else F.pad(self.bias, (before, after))
        kernel = F.pad(self.kernel, (0, 0, 0, 0, 0, 0, before, after))
        return replace(self, kernel=kernel, bias=bias, selects=None)

    def plus(self, other: Affine, where: str) -> Affine:
        """The sum of two values of the same state and size."""
        taps = _common([self, other], where)
        side = max(self.kernel.shape[-1], other.kernel.shape[-1])
        kernel = widened(self.kernel, side) + widened(other.kernel, side)
        biases = [item for item in (self.bias, other.bias) if item is not None]
        bias = torch.stack(biases).sum(0) if biases else None
        return Affine(self.state, kernel, bias, self.stride, self.positive and other.positive, *taps)


def _common(parts: list[Affine], where: str) -> tuple[int, str]:
    """Dilation and padding mode that all parts share; refuses parts of several states, strides or layouts."""
    if len({(part.state, part.stride) for part in parts}) > 1:
        raise UsageError(f"{where}: one layer would read two states or strides at once; use the structured form")
    taps = {part.taps for part in parts} - {None}
    if len(taps) > 1:
        raise UsageError(f"{where}: one layer would need two dilations or paddings; use the structured form")
    return taps.pop() if taps else (1, "zeros")


def widened(kernel: Tensor, side: int) -> Tensor:
    """Zero-pad a centred kernel to side x side."""
    margin = (side - kernel.shape[-1]) // 2
    return F.pad(kernel, (margin,) * 4) if margin else kernel


def dense(weight: Tensor, groups: int) -> Tensor:
    """[O, I / groups, K, K] -> [O, I, K, K] with zeros between the groups."""
    if groups == 1:
        return weight
    out, inner = weight.shape[:2]
    full = weight.new_zeros(out, inner * groups, *weight.shape[2:])
    for group in range(groups):
        rows = slice(group * out // groups, (group + 1) * out // groups)
        full[rows, group * inner : (group + 1) * inner].copy_(weight[rows])
    return full


def centred(weight: Tensor, padding: int, dilation: int, groups: int) -> Tensor:
    """A square kernel with any zero padding -> the equal dense one [O, I, K, K], centred, with padding (K - 1) / 2."""
    full, span = dense(weight, groups), dilation * (weight.shape[-1] - 1) + 1
    side = 2 * max(padding, span - 1 - padding) + 1
    spread = full.new_zeros(*full.shape[:2], side, side)
    first = (side - 1) // 2 - padding
    taps = slice(first, first + span, dilation)
    spread[:, :, taps, taps].copy_(full)
    return spread


def norm_map(
    mean: Tensor, var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(scale, shift) [C] of a batch norm with frozen statistics, in float64."""
    scale = (var.double() + eps).rsqrt()
    scale = scale if weight is None else scale * weight.detach().double()
    shift = -mean.double() * scale
    return scale, shift if bias is None else shift + bias.detach().double()


def composed(
    inner: Affine, kernel: Tensor, bias: Tensor | None, stride: int, where: str, taps: tuple[int, str] = (1, "zeros")
) -> Affine:
    """conv2d(inner, kernel, bias, stride) as one map of the state; `taps`: dilation and padding mode of the kernel.

    Exact when the outer kernel is 1 x 1, or the inner one is 1 x 1 without bias and stride (padding then commutes).
    """
    outer = Affine(inner.state, kernel, bias, stride, False, *taps)
    if inner.selects is not None:
        right = inner.kernel.shape[1] - inner.selects - inner.channels
        return replace(outer, kernel=F.pad(kernel, (0, 0, 0, 0, inner.selects, right)))
    if kernel.shape[-1] == 1:
        product = torch.einsum("om,mihw->oihw", kernel[:, :, 0, 0], inner.kernel)
        if inner.bias is not None:
            moved = kernel[:, :, 0, 0] @ inner.bias
            bias = moved if bias is None else bias + moved
        return Affine(inner.state, product, bias, inner.stride * stride, False, inner.dilation, inner.padding_mode)
    if inner.kernel.shape[-1] > 1 or inner.bias is not None or inner.stride > 1:
        raise UsageError(
            f"{where}: two convolutions without an activation between have no single equal one at the image border; "
            "use the structured form"
        )
    return replace(outer, kernel=torch.einsum("omhw,mi->oihw", kernel, inner.kernel[:, :, 0, 0]))


def stacked(parts: list[Affine], where: str) -> Affine:
    """Concatenate along the output channels."""
    taps = _common(parts, where)
    side = max(part.kernel.shape[-1] for part in parts)
    kernel = torch.cat([widened(part.kernel, side) for part in parts])
    zeros = [kernel.new_zeros(part.channels) if part.bias is None else part.bias for part in parts]
    return Affine(parts[0].state, kernel, torch.cat(zeros), parts[0].stride, False, *taps)


def conv_of(kernel: Tensor, bias: Tensor, groups: int = 1, **geometry: Any) -> nn.Conv2d:
    """A Conv2d that owns these weights, [O, I / groups, K, K] and [O], in their dtype; `geometry` as in `nn.Conv2d`."""
    out, inner, *size = kernel.shape
    conv = nn.Conv2d(inner * groups, out, tuple(size), groups=groups, device="meta", dtype=kernel.dtype, **geometry)
    conv.weight, conv.bias = nn.Parameter(kernel), nn.Parameter(bias)
    return conv


class Chain:
    """A chain of layers under construction, and the number of channels of each state; float64, on `device`."""

    def __init__(self, channels: int, device: str | torch.device = "cpu"):
        self.layers: OrderedDict[str, nn.Module] = OrderedDict()
        self.channels, self.device = [channels], device

    @property
    def newest(self) -> int:
        return len(self.channels) - 1

    def part(self, start: int, count: int, positive: bool = False) -> Affine:
        """The channels [start, start + count) of the newest state."""
        like = {"dtype": torch.float64, "device": self.device}
        kernel = torch.zeros(count, self.channels[-1], 1, 1, **like)
        kernel[:, start : start + count, 0, 0].copy_(torch.eye(count, **like))
        return Affine(self.newest, kernel, positive=positive, selects=start)

    def append(self, kind: str, layer: nn.Module, channels: int | None = None) -> None:
        """Append a layer; `channels` of the state that it makes, None if it makes none of its own."""
        self.layers[f"{kind}{len(self.layers)}"] = layer
        if channels is not None:
            self.channels.append(channels)

    def emit(self, value: Affine) -> None:
        """Append `value`, a map of the newest state, as a Conv2d."""
        if value.state != self.newest:
            raise UsageError("a value from before the last activation is read after it; use the structured form")
        bias = value.kernel.new_zeros(value.channels) if value.bias is None else value.bias
        geometry: dict[str, Any] = {"dilation": value.dilation, "padding_mode": value.padding_mode}
        padding = value.dilation * (value.kernel.shape[-1] - 1) // 2
        self.append("conv", conv_of(value.kernel, bias, stride=value.stride, padding=padding, **geometry))

    def activated(self, parts: list[Affine], act: nn.Module, where: str, positive: bool = False) -> list[Affine]:
        """Append one convolution that makes all `parts`, then `act`; returns the parts of the new state."""
        self.emit(stacked(parts, where))
        self.append("act", act, sum(part.channels for part in parts))
        starts = [sum(part.channels for part in parts[:index]) for index in range(len(parts))]
        return [self.part(start, part.channels, positive) for start, part in zip(starts, parts, strict=True)]

    def whole(self, value: Affine) -> None:
        """Make `value` itself the newest state: a map that is not the identity becomes a Conv2d without activation."""
        if (value.state, value.selects, value.channels) != (self.newest, 0, self.channels[-1]):
            self.emit(value)
            self.channels.append(value.channels)
