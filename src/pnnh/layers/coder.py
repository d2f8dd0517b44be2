"""The coder: the kernel with which a stage's layers write their learner features into the stream, owned exactly once.

Which kernel that is, and whether the layers share it, is a type:

    LearnedCoder     shared by the layers of a stage and learned (the paper's coder; default)
    FrozenDirac      shared, features are copied into the stream as they are, never trained
    FrozenOrthogonal shared, a fixed random orthogonal mixing, never trained
    PerLayerCoder    one learned kernel per layer: no sharing (the ablation)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pnnh.layers.init import dirac_, he_normal_, orthogonal_


@dataclass(frozen=True)
class LearnedCoder:
    """One learned kernel for all layers of a stage, not decayed.

    lr_scale: multiplies its learning rate. None is 1 / n^2 for n layers (derived, for SGD): its gradient sums n terms
        and each of its steps changes n layers, so that the stage moves as if one layer had moved its own kernel.
    start: a convolution's initial kernel: "dirac" (features are copied into the stream; chosen), "he" or "orthogonal".
    A Transformer's coder has its own start, and its rate from `BlockOptions`.
    """

    lr_scale: float | None = None
    start: str = "dirac"


@dataclass(frozen=True)
class FrozenDirac:
    """Stream channel o receives feature o mod L, unmixed; a buffer, not a parameter."""


@dataclass(frozen=True)
class FrozenOrthogonal:
    """A random orthogonal kernel drawn at construction; a buffer, not a parameter."""


@dataclass(frozen=True)
class PerLayerCoder:
    """Every layer has its own learned kernel, at the learner's learning rate."""


STARTS = {"he": he_normal_, "dirac": dirac_, "orthogonal": orthogonal_}
CoderChoice = LearnedCoder | FrozenDirac | FrozenOrthogonal | PerLayerCoder


class Coder(nn.Module):
    """Owns one coder kernel `weight` [O, I, k, k]; the layers get it as an argument.

    `lr_scale` multiplies the learning rate of `weight`; `pnnh.train.param_groups` reads it; no decay.
    """

    weight: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        init: partial[Tensor],
        lr_scale: float | None = None,
        frozen: bool = False,
    ):
        super().__init__()
        self.init = init
        if lr_scale is not None:
            self.lr_scale = lr_scale
        if frozen:
            self.register_buffer("weight", torch.empty(shape))
        else:
            self.weight = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.init(self.weight)

    def extra_repr(self) -> str:
        kind = "learned" if isinstance(self.weight, nn.Parameter) else "frozen"
        name, gain = self.init.func.__name__, self.init.keywords["gain"]
        rate = f", lr_scale={self.lr_scale:.3g}" if hasattr(self, "lr_scale") else ""
        return f"{kind}, shape={tuple(self.weight.shape)}, init={name}, gain={gain}{rate}"


def coders(choice: CoderChoice, shape: tuple[int, ...], num_layers: int, *, gain: float = 1.0) -> nn.ModuleList:
    """The coders of a stage whose kernels have `shape` and the initial scale `gain`.

    One coder or, for `PerLayerCoder`, one per layer of `num_layers`.
    """
    match choice:
        case LearnedCoder(lr_scale, start):
            if start not in STARTS:
                raise ValueError(f"start {start!r} of the coder must be one of {', '.join(STARTS)}")
            rate = 1 / num_layers**2 if lr_scale is None else lr_scale
            return nn.ModuleList([Coder(shape, init=partial(STARTS[start], gain=gain), lr_scale=rate)])
        case FrozenDirac():
            return nn.ModuleList([Coder(shape, init=partial(dirac_, gain=gain), frozen=True)])
        case FrozenOrthogonal():
            return nn.ModuleList([Coder(shape, init=partial(orthogonal_, gain=gain), frozen=True)])
        case PerLayerCoder():
            return nn.ModuleList(Coder(shape, init=partial(he_normal_, gain=gain)) for _ in range(num_layers))
    raise ValueError(f"coder {choice!r} is none of LearnedCoder, FrozenDirac, FrozenOrthogonal, PerLayerCoder")
