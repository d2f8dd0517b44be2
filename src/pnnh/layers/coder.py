"""The coder: the kernels with which layers write what they learned into the stream, owned once for all of them.

Which kernels those are, and whether the layers share them, is a type:

    LearnedCoder     shared by the layers of a stage (the blocks of a net) and learned: the paper's coder, the default
    FrozenDirac      shared and never trained: features are copied as they are
    FrozenOrthogonal shared and never trained: a random orthogonal mixing
    PerLayerCoder    one learned coder per layer: no sharing (the ablation)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LearnedCoder:
    """One learned coder for all layers, not decayed.

    lr_scale: multiplies its learning rate. None is the layers' own default: 1 / n^2 for n convolutions that write
        (derived, for SGD: its gradient sums n terms and each of its steps changes n layers, so that the stage moves as
        if one layer had moved its own kernel), `BlockOptions.coder_rate` / depth for blocks.
    start: initial kernels: "dirac", "he" or "orthogonal" for convolutions, "dirac" or "orthogonal" for blocks. None is
        the layers' own default: "dirac" for convolutions (chosen), "orthogonal" for blocks.
    """

    lr_scale: float | None = None
    start: str | None = None


@dataclass(frozen=True)
class FrozenDirac:
    """Stream channel o receives feature o mod L, unmixed; a buffer, not a parameter."""


@dataclass(frozen=True)
class FrozenOrthogonal:
    """A random orthogonal kernel drawn at construction; a buffer, not a parameter."""


@dataclass(frozen=True)
class PerLayerCoder:
    """Every layer has its own learned kernels, at the learner's learning rate."""


CoderChoice = LearnedCoder | FrozenDirac | FrozenOrthogonal | PerLayerCoder
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Starts:
    """Initial values by name: functions that fill a coder's kernels, given in the order of their shapes.

    shared, apart: names of the default for a coder that is shared, and for one per layer.
    """

    by_name: Mapping[str, Callable[..., object]]
    shared: str
    apart: str

    def named(self, name: str | None) -> Callable[..., object]:
        if name is not None and name not in self.by_name:
            raise ValueError(f"start {name!r} of the coder must be one of {', '.join(self.by_name)}")
        return self.by_name[name or self.shared]


class Coder(nn.Module):
    """Owns kernels by name (`weight` for convolutions; `value`, `output`, `encode`, `decode` for Transformer blocks).

    Layers get the kernels as arguments. `lr_scale` multiplies their learning rate (`pnnh.train` reads it); no decay.
    """

    def __init__(
        self, shapes: Shapes, start: Callable[..., object], *, lr_scale: float | None = None, frozen: bool = False
    ):
        super().__init__()
        self.start, self.names = start, tuple(shapes)
        if lr_scale is not None:
            self.lr_scale = lr_scale
        for name, shape in shapes.items():
            if frozen:
                self.register_buffer(name, torch.empty(shape))
            else:
                self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.reset_parameters()

    def kernels(self) -> Iterator[Tensor]:
        return (getattr(self, name) for name in self.names)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.start(*self.kernels())

    def extra_repr(self) -> str:
        kind = "learned" if list(self.parameters()) else "frozen"
        shapes = ", ".join(f"{name}={tuple(getattr(self, name).shape)}" for name in self.names)
        return f"{kind}, {shapes}" + (f", lr_scale={self.lr_scale:.3g}" if hasattr(self, "lr_scale") else "")


def coders(choice: CoderChoice, shapes: Shapes, num_layers: int, *, starts: Starts, rate: float) -> nn.ModuleList:
    """One coder with kernels of these shapes or, for `PerLayerCoder`, one for each of `num_layers` layers.

    rate: `lr_scale` of a learned coder that does not name its own.
    """
    match choice:
        case LearnedCoder(lr_scale, start):
            return nn.ModuleList([Coder(shapes, starts.named(start), lr_scale=rate if lr_scale is None else lr_scale)])
        case FrozenDirac():
            return nn.ModuleList([Coder(shapes, starts.named("dirac"), frozen=True)])
        case FrozenOrthogonal():
            return nn.ModuleList([Coder(shapes, starts.named("orthogonal"), frozen=True)])
        case PerLayerCoder():
            return nn.ModuleList(Coder(shapes, starts.named(starts.apart)) for _ in range(num_layers))
    raise ValueError(f"coder {choice!r} is none of LearnedCoder, FrozenDirac, FrozenOrthogonal, PerLayerCoder")
