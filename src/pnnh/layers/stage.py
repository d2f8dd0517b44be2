"""A plain stage: x [B, in, H, W] -> stream [B, C, H / stride, W / stride] in `num_layers` layers that share a coder.

The first layer is the transition, an ordinary plain convolution that makes f and c (and takes stride and widening);
the last one writes, so that a stage hands on its stream only. In between, by form:

    Alternating   write, (learn, write), (learn, write), ...    the activations of a residual net, one wide tensor alive
    Pipelined     learn-write, learn-write, ..., write          twice the writes at the same depth, 1 + L/C the memory
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle

from torch import Tensor, nn

from pnnh.layers.coder import Coder, CoderChoice, LearnedCoder, coders
from pnnh.layers.conv import Learn, LearnerConv, LearnWrite, Write


@dataclass(frozen=True)
class PlainOptions:
    """What the layers of a stage are made of.

    coder: which kernel writes, and whether it is shared. gain: the initial scale of a write's norm.
    shift: the initial bias of the learners' norms (see `pnnh.theory.solve_shift` for one that fits a depth).
    kernel_size, dilation, groups, padding_mode: of every convolution inside the stage, as in `nn.Conv2d`.
    """

    coder: CoderChoice = field(default_factory=LearnedCoder)
    gain: float = 0.3
    shift: float = 0.0
    kernel_size: int = 3
    dilation: int = 1
    groups: int = 1
    padding_mode: str = "zeros"
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    act: Callable[..., nn.Module] = nn.ReLU

    def layer(self) -> dict:
        """Keyword arguments of `Learn`."""
        names = ("kernel_size", "dilation", "groups", "padding_mode", "norm", "act")
        return {name: getattr(self, name) for name in names}


DEFAULT = PlainOptions()


class Transition(nn.Module):
    """x -> f, c: an ordinary plain layer, f = act(norm(F * x)), c = act(norm(G * x)); takes stride and widening."""

    def __init__(self, in_chans: int, stream: int, learner: int, *, stride: int, norm, act, **geometry):
        super().__init__()
        geometry |= {"groups": 1}
        self.learner = nn.Sequential(
            LearnerConv(in_chans, learner, stride=stride, **geometry), norm(learner), act(inplace=True)
        )
        self.stream = nn.Sequential(
            LearnerConv(in_chans, stream, stride=stride, **geometry), norm(stream), act(inplace=True)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.learner(x), self.stream(x)


class _Stage(nn.Module):
    def __init__(
        self,
        in_chans: int,
        stream: int,
        learner: int,
        num_layers: int,
        *,
        stride: int,
        options: PlainOptions,
        num_writes: int,
    ):
        super().__init__()
        if stream % options.groups or learner % options.groups:
            raise ValueError(
                f"groups {options.groups} must divide the stream ({stream}) and the learner ({learner}) channels"
            )
        shape = (stream, learner // options.groups, options.kernel_size, options.kernel_size)
        self.transition = Transition(in_chans, stream, learner, stride=stride, **options.layer())
        self.coders = coders(options.coder, shape, num_writes)

    def kernels(self):
        """The coder kernel of each write in turn: the same tensor every time unless the coder is per layer."""
        return cycle([coder.weight for coder in self.coders])

    def shift_learners(self, shift: float) -> None:
        for module in self.modules():
            if isinstance(module, (Learn, LearnWrite)):
                nn.init.constant_(module.norm.bias, shift)


class AlternatingStage(_Stage):
    """transition, write, then pairs of learn and write; `num_layers` is even."""

    def __init__(
        self,
        in_chans: int,
        stream: int,
        learner: int,
        num_layers: int,
        *,
        stride: int = 1,
        options: PlainOptions = DEFAULT,
    ):
        if num_layers < 2 or num_layers % 2:
            raise ValueError(
                f"num_layers {num_layers} must be even, at least 2: transition, write, then pairs of learn and write"
            )
        num_writes = num_layers // 2
        super().__init__(in_chans, stream, learner, num_layers, stride=stride, options=options, num_writes=num_writes)
        self.learns = nn.ModuleList(Learn(stream, learner, **options.layer()) for _ in range(num_writes - 1))
        self.writes = nn.ModuleList(
            Write(stream, learner, gain=options.gain, **options.layer()) for _ in range(num_writes)
        )
        self.shift_learners(options.shift)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = zip(self.writes, self.kernels(), strict=False)
        f, c = self.transition(x)
        write, kernel = first
        c = write(f, c, kernel)
        for learn, (write, kernel) in zip(self.learns, rest, strict=True):
            f, c = learn(c)
            c = write(f, c, kernel)
        return c


class PipelinedStage(_Stage):
    """transition, learn-writes, one last write; `num_layers` is at least 2."""

    def __init__(
        self,
        in_chans: int,
        stream: int,
        learner: int,
        num_layers: int,
        *,
        stride: int = 1,
        options: PlainOptions = DEFAULT,
    ):
        if num_layers < 2:
            raise ValueError(f"num_layers {num_layers} must be at least 2: a transition and a write")
        super().__init__(
            in_chans, stream, learner, num_layers, stride=stride, options=options, num_writes=num_layers - 1
        )
        layer = {"gain": options.gain, **options.layer()}
        self.layers = nn.ModuleList(LearnWrite(stream, learner, **layer) for _ in range(num_layers - 2))
        self.write = Write(stream, learner, **layer)
        self.shift_learners(options.shift)

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.kernels()
        f, c = self.transition(x)
        for layer in self.layers:
            f, c = layer(f, c, next(kernels))
        return self.write(f, c, next(kernels))


@dataclass(frozen=True)
class Alternating:
    """Layers learn and write in turn."""

    stage = AlternatingStage


@dataclass(frozen=True)
class Pipelined:
    """Every layer learns, and writes what the layer before it learned."""

    stage = PipelinedStage


Form = Alternating | Pipelined

__all__ = [
    "Alternating",
    "AlternatingStage",
    "Coder",
    "Form",
    "Pipelined",
    "PipelinedStage",
    "PlainOptions",
    "Transition",
]
