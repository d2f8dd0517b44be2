"""Which row of the theory a pre-activation falls under, followed from call to call."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pnnh import theory
from pnnh.analysis.probe import Call


@dataclass(frozen=True)
class Prediction:
    """What theory says of a response. `row`: plain, residual, normalised; `caveat`: an assumption seen not to hold."""

    row: str
    response: theory.Response
    survival: float
    bound: float
    caveat: str = ""


_WEIGHTED = {F.linear: 0, F.conv1d: 1, F.conv2d: 2, F.conv3d: 3, torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_NORMS = {F.batch_norm: "per channel", F.instance_norm: "per sample", F.group_norm: "per sample"}
_NORMS |= {F.layer_norm: "per sample", torch.batch_norm: "per channel", torch.layer_norm: "per sample"}
_SUMS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__}
_SAME = {F.dropout, Tensor.contiguous, Tensor.view, Tensor.reshape, Tensor.permute, Tensor.transpose, Tensor.flatten}
_SAME |= {torch.permute, torch.transpose, torch.flatten, torch.reshape, Tensor.float, Tensor.to, Tensor.clone}


class Lineage:
    """Remembers, for living tensors only, the theory of how they were made. `note` is what `probe` reports calls to."""

    def __init__(self):
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.channels_last = False  # as the last weight-carrying call wrote them

    def of(self, tensor: Tensor) -> Prediction | None:
        return self._known.get(tensor)

    def before(self, call: Call) -> Prediction | None:
        """Of an activation's input; one computed in place is no longer what it was."""
        known = self._known.get(call.before)
        return self._known.pop(call.after, None) if known is None else known

    def note(self, func: Callable, args: tuple, kwargs: dict, result: object) -> None:
        if not isinstance(result, Tensor) or not args or not isinstance(args[0], Tensor):
            return
        if func in _WEIGHTED:
            self.note_layout(func, args, kwargs, result)
            prediction = _linear(_WEIGHTED[func], *args, **kwargs)
        elif func in _NORMS:
            prediction = _normalised(func, args, kwargs)
        elif func in _SUMS:
            prediction = self._sum(args[0], args[1] if len(args) > 1 else None, result)
        elif func in _SAME:
            prediction = self.of(args[0])
        else:
            return
        if prediction is not None:
            self._known[result] = prediction
        elif func in _SUMS:  # an in-place sum is no longer what it was
            self._known.pop(result, None)

    def note_layout(self, func: Callable, args: tuple, kwargs: dict, result: object) -> None:
        """Only what `channels_last` needs."""
        if func in _WEIGHTED:
            self.channels_last = _WEIGHTED[func] == 0

    def _sum(self, x: Tensor, y: object, result: Tensor) -> Prediction | None:
        if not isinstance(y, Tensor) or x.shape != y.shape:
            return None
        known = [self.of(x), self.of(y)]
        if known == [None, None] or (x is result and known[0] is None):
            return None
        parts = [_moments(t) if k is None else k.response for t, k in zip((x, y), known, strict=True)]
        total = parts[0] + parts[1]
        caveat = "; ".join(sorted({k.caveat for k in known if k and k.caveat}))
        return Prediction("residual", total, total.survival, total.bound, caveat)


def _moments(x: Tensor) -> theory.Response:
    variance, mean = torch.var_mean(x.float(), correction=0)
    return _response(mean.item(), variance.item())


def _response(mean: float, variance: float) -> theory.Response:
    """A response from measured numbers; an overflow is left for the probe to name the layer."""
    finite = math.isfinite(mean) and math.isfinite(variance)
    return theory.Response(mean, max(variance, 0.0)) if finite else theory.Response(0.0, 0.0)


@torch.no_grad()
def _linear(
    dims: int, input: Tensor, weight: Tensor, bias=None, stride=1, padding=0, dilation=1, groups=1
) -> Prediction:
    """The plain row: independent weights of this variance on an input of this second moment, padding counted."""
    square = input.float().square()
    if dims == 0:
        q = square.mean().item()
    else:  # mean square of what the kernel sees, zeros of the padding included: one channel, a kernel of ones
        window = weight.shape[2:]
        conv = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
        ones = torch.ones(1, 1, *window, device=weight.device) / math.prod(window)
        over_channels = square.mean(-1 - dims, keepdim=True)
        q = conv(over_channels, ones, None, stride, padding, dilation).mean().item()
    fan_in = math.prod(weight.shape[1:])
    values = weight.float()
    gain = fan_in * values.square().mean().item()
    response = theory.plain(0.0, q, gain) if math.isfinite(q * gain) else theory.Response(0.0, 0.0)
    if bias is not None:
        response = response + _moments(bias)
    centred = values.mean().abs() <= 4 * values.std(correction=0) / math.sqrt(values.numel()) + 1e-12
    return Prediction("plain", response, response.survival, response.bound, "" if centred else "weights not centred")


@torch.no_grad()
def _normalised(func: Callable, args: tuple, kwargs: dict) -> Prediction:
    """The normalised and shifted row, averaged over channels that have their own scale and shift."""
    at = {F.batch_norm: (3, 4), F.instance_norm: (3, 4), torch.batch_norm: (1, 2)}.get(func, (2, 3))
    weight, bias = (
        kwargs.get(k, args[i] if len(args) > i else None) for k, i in zip(("weight", "bias"), at, strict=True)
    )
    one = torch.ones(1, device=args[0].device)
    scale = one if weight is None else weight.float().flatten()
    shift = torch.zeros_like(one) if bias is None else bias.float().flatten()
    scale, shift = torch.broadcast_tensors(scale.abs(), shift)
    square = scale.square().mean() + shift.var(correction=0)
    response = _response(shift.mean().item(), square.item())
    survival = torch.special.ndtr(shift / scale.clamp(min=1e-12)).mean().item()
    bound = torch.where(shift > 0, shift**2 / (shift**2 + scale**2).clamp(min=1e-30), 0.0).mean().item()
    caveat = "normalised per sample, not per channel" if _NORMS[func] == "per sample" else ""
    if func is F.batch_norm and not kwargs.get("training", args[5] if len(args) > 5 else False):
        caveat = "running statistics, not the batch's"
    return Prediction("normalised", response, survival, bound, caveat)
