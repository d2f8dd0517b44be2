"""What each linear operator of a traced graph does to an affine map; anything that has no such form is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, fx

from pnnh._errors import UsageError
from pnnh.certify.ops import base_name
from pnnh.certify.trace import module_path
from pnnh.convert.affine import Affine, centred, composed, norm_map

_END = 2**62  # slices that run to the end have this stop or a larger one
Values = Callable[[fx.Node | None], Tensor | None]  # the float64 value of a constant of the graph


def where_of(node: fx.Node) -> str:
    return module_path(node) or "the top module"


def same_precision(node: fx.Node) -> bool:
    """Not a cast (the chain has one precision)."""
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    return not isinstance(before, torch.Tensor) or getattr(after, "dtype", None) in (None, before.dtype)


def conv_map(tensor: Values, node: fx.Node):
    """(dense centred kernel, bias, stride) of a conv2d node; refuses what is not square and symmetric."""
    arguments = [*node.args, *[None, [1, 1], [0, 0], [1, 1], 1][len(node.args) - 2 :]]
    _, weight, bias, stride, padding, dilation, groups = arguments
    pairs = [stride, padding, dilation, list(node.args[1].meta["val"].shape[2:])]
    if isinstance(padding, str) or any(len(set(pair)) > 1 for pair in pairs):
        raise UsageError(f"{where_of(node)}: a convolution that is not square and symmetric; use the structured form")
    kernel = centred(tensor(weight), padding[0], dilation[0], groups)
    _check_size(node, stride[0])
    return kernel, tensor(bias), stride[0]


def _check_size(node: fx.Node, stride: int) -> None:
    """The centred kernel yields ceil(size / stride) outputs; the source must too."""
    before, after = node.args[0].meta["val"].shape[2:], node.meta["val"].shape[2:]
    if any(-(-int(size) // stride) != int(out) for size, out in zip(before, after, strict=True)):
        raise UsageError(
            f"{where_of(node)}: {tuple(before)} -> {tuple(after)} is not a centred stride; use the structured form"
        )


def norm_of(tensor: Values, node: fx.Node, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, shift) of a batch norm with frozen statistics."""
    _, weight, bias, mean, variance, *rest = node.args
    eps = rest[1] if name.startswith("_") else rest[2]
    return norm_map(tensor(mean), tensor(variance), eps, tensor(weight), tensor(bias))


def _window(node: fx.Node) -> tuple[list[int], list[int], list[int]]:
    """(size, stride, padding) of an avg_pool2d node."""
    size, stride, padding, *_ = [*node.args[1:], *[None, [0, 0]][max(len(node.args) - 2, 0) :]]
    return size, stride or size, padding


def covers(node: fx.Node) -> bool:
    """Does one window of this average pooling cover the whole image?"""
    size, _, padding = _window(node)
    return list(size) == [int(side) for side in node.args[0].meta["val"].shape[2:]] and not any(padding)


def averaged(node: fx.Node, value: Affine) -> Affine:
    """An average pooling whose windows never touch the border; with windows of one pixel a subsampling."""
    size, stride, padding = _window(node)
    height, width = (int(item) for item in node.args[0].meta["val"].shape[2:])
    if list(size) == [1, 1] and len(set(stride)) == 1 and not any(padding):
        return value.subsampled(stride[0])
    if size[0] != size[1] or list(stride) != list(size) or any(padding) or height % size[0] or width % size[0]:
        raise UsageError(f"{where_of(node)}: an average pooling that meets the border; use the structured form")
    weight = torch.full((value.channels, 1, *size), 1 / size[0] ** 2, dtype=torch.float64, device=value.kernel.device)
    kernel = centred(weight, 0, 1, value.channels)
    return replace(composed(value, kernel, None, stride[0], where_of(node)), positive=value.positive)


def _slice_of(node: fx.Node) -> tuple[int, int, int, int]:
    """(axis, start, stop, step) of a slice node."""
    axis, start, stop, step = [*node.args[1:], *[0, None, None, 1][len(node.args) - 1 :]]
    return axis % 4, start or 0, _END if stop is None else stop, step


def sliced(node: fx.Node, value: Affine) -> Affine:
    """A slice of channels, or every step-th row and column (the subsampling of an option-A shortcut)."""
    axis, start, stop, step = _slice_of(node)
    size = int(node.args[0].meta["val"].shape[axis])
    if (start, step) == (0, 1) and stop >= size:
        return value
    if axis == 1 and step == 1:
        rows = slice(start, stop if stop < _END else None)
        bias = None if value.bias is None else value.bias[rows]
        return replace(value, kernel=value.kernel[rows], bias=bias, selects=None)
    sides, other = _every(node), (5 - axis, step)
    if sides is not None and _every(node.args[0]) == other:
        return value.subsampled(step)
    if sides is not None and len(node.users) == 1 and _every(next(iter(node.users))) == other:
        return value  # the slice along the other side, which comes next, does both
    raise UsageError(f"{where_of(node)}: a slice that is no even subsampling; use the structured form")


def _every(node: fx.Node) -> tuple[int, int] | None:
    """(axis, step) of a slice that keeps every step-th row (axis 2) or column (3); None for anything else."""
    if base_name(node.target) != "slice":
        return None
    axis, start, stop, step = _slice_of(node)
    whole = start == 0 and stop >= int(node.args[0].meta["val"].shape[axis])
    return (axis, step) if whole and axis in (2, 3) else None


def padded(node: fx.Node, value: Affine) -> Affine:
    """Channels of zeros before and after (an option-A shortcut)."""
    pads, *more = node.args[1:]
    mode, fill = (
        [*more, *["constant", 0][len(more) :]] if base_name(node.target) == "pad" else ["constant", *more, 0][:2]
    )
    if mode != "constant" or fill not in (None, 0) or len(pads) != 6 or any(pads[:4]) or min(pads) < 0:
        raise UsageError(f"{where_of(node)}: only channels of zeros are padded in a chain; use the structured form")
    return value.padded(pads[4], pads[5])
