"""A plain stage: x [B, in, H, W] -> stream [B, C, H / stride, W / stride] in `num_layers` layers that share a coder.

The first layer is the transition, an ordinary plain convolution that makes f and c (and takes stride and widening);
the last one writes, so that a stage hands on its stream only. In between, by form:

    AlternatingStage   write, (learn, write), (learn, write), ...    the activations of a residual net
    PipelinedStage     plain, plain, ..., write                      twice the writes at that depth, more memory
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle

from torch import Tensor, nn

from pnnh.layers.coder import CoderChoice, LearnedCoder, coders
from pnnh.layers.conv import Learn, LearnerConv, PlainConv, Write


@dataclass(frozen=True)
class PlainOptions:
    """What the layers of a stage are made of.

    coder: which kernel writes, and whether it is shared. gain: its initial scale, how loudly a layer writes.
    shift: the initial bias of the learners' norms (see `pnnh.theory.solve_shift` for one that fits a depth).
    coder_kernel_size: 1 by default, so that the learners look around and the coder mixes channels (chosen).
    kernel_size: of the learners. dilation, groups, padding_mode: of learners and coder, as in `nn.Conv2d`.
    """

    coder: CoderChoice = field(default_factory=LearnedCoder)
    gain: float = 0.3
    shift: float = 0.0
    coder_kernel_size: int = 1
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

    def writing(self) -> dict:
        """Keyword arguments of `Write`."""
        names = ("dilation", "groups", "padding_mode", "act")
        return {"kernel_size": self.coder_kernel_size} | {name: getattr(self, name) for name in names}


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


class PlainStage(nn.Module):
    """What both forms have: a transition, the coders, and `num_layers` plain layers in all.

    Subclasses say how many of the layers write (`count_writes`) and build them (`fill`).
    """

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
        super().__init__()
        if stream % options.groups or learner % options.groups:
            raise ValueError(
                f"groups {options.groups} must divide the stream ({stream}) and the learner ({learner}) channels"
            )
        num_writes = self.count_writes(num_layers)
        shape = (stream, learner // options.groups, options.coder_kernel_size, options.coder_kernel_size)
        self.transition = Transition(in_chans, stream, learner, stride=stride, **options.layer())
        self.coders = coders(options.coder, shape, num_writes, gain=options.gain)
        self.fill(stream, learner, num_writes, options)
        for module in self.modules():
            if isinstance(module, (Learn, PlainConv)):
                nn.init.constant_(module.norm.bias, options.shift)

    @staticmethod
    def count_writes(num_layers: int) -> int:
        raise NotImplementedError

    def fill(self, stream: int, learner: int, num_writes: int, options: PlainOptions) -> None:
        raise NotImplementedError

    def kernels(self) -> Iterator[Tensor]:
        """The coder kernel of each write in turn: the same tensor every time unless the coder is per layer."""
        return cycle([coder.weight for coder in self.coders])


class AlternatingStage(PlainStage):
    """transition, write, then pairs of learn and write; `num_layers` is even."""

    @staticmethod
    def count_writes(num_layers: int) -> int:
        if num_layers < 2 or num_layers % 2:
            raise ValueError(
                f"num_layers {num_layers} must be even, at least 2: transition, write, then pairs of learn and write"
            )
        return num_layers // 2

    def fill(self, stream: int, learner: int, num_writes: int, options: PlainOptions) -> None:
        self.learns = nn.ModuleList(Learn(stream, learner, **options.layer()) for _ in range(num_writes - 1))
        self.writes = nn.ModuleList(Write(stream, learner, **options.writing()) for _ in range(num_writes))

    def forward(self, x: Tensor) -> Tensor:
        first, *writes = self.writes
        kernels = self.kernels()
        f, c = self.transition(x)
        c = first(f, c, next(kernels))
        for learn, write in zip(self.learns, writes, strict=True):
            f, c = learn(c)
            c = write(f, c, next(kernels))
        return c


class PipelinedStage(PlainStage):
    """transition, PlainConvs, one last write; `num_layers` is at least 2."""

    @staticmethod
    def count_writes(num_layers: int) -> int:
        if num_layers < 2:
            raise ValueError(f"num_layers {num_layers} must be at least 2: a transition and a write")
        return num_layers - 1

    def fill(self, stream: int, learner: int, num_writes: int, options: PlainOptions) -> None:
        layer = {"coder_kernel_size": options.coder_kernel_size, **options.layer()}
        self.layers = nn.ModuleList(PlainConv(stream, learner, **layer) for _ in range(num_writes - 1))
        self.write = Write(stream, learner, **options.writing())

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.kernels()
        f, c = self.transition(x)
        for layer in self.layers:
            f, c = layer(f, c, next(kernels))
        return self.write(f, c, next(kernels))
