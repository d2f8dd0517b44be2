"""A plain stage: x [B, in, H, W] -> stream [B, C, H / stride, W / stride] in `num_layers` layers that share a coder.

The first layer is the transition, an ordinary plain convolution that makes f and c (and takes stride and widening);
the last one writes, so that a stage hands on its stream only. In between, by form:

    AlternatingStage   deepen, write, (learn, deepen, write), ...    the transition is the first group's learn
    PipelinedStage     plain, plain, ..., write                      a write in every layer, more memory
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle

from torch import Tensor, nn

from pnnh.layers.coder import CoderChoice, LearnedCoder, coders
from pnnh.layers.conv import Deepen, Learn, LearnerConv, PlainConv, Write


@dataclass(frozen=True)
class PlainOptions:
    """What the layers of a stage are made of.

    coder: which kernel writes, and whether it is shared. gain: its initial scale, how loudly a layer writes.
    learns: how many layers of an `AlternatingStage` learn between two writes, each from the one before (chosen: 2).
    shift: the initial bias of the learners' norms (see `pnnh.theory.solve_shift` for one that fits a depth).
    coder_kernel_size: 1 by default, so that the learners look around and the coder mixes channels (chosen).
    kernel_size: of the learners. dilation, groups, padding_mode: of learners and coder, as in `nn.Conv2d`.
    """

    coder: CoderChoice = field(default_factory=LearnedCoder)
    gain: float = 0.3
    learns: int = 2
    shift: float = 0.0
    coder_kernel_size: int = 1
    kernel_size: int = 3
    dilation: int = 1
    groups: int = 1
    padding_mode: str = "zeros"
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    act: Callable[..., nn.Module] = nn.ReLU

    def layer(self) -> dict:
        """Keyword arguments of `Learn` and `Deepen`."""
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

    Subclasses say which of the layers write (`grouped`) and build them (`fill`).
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
        groups = self.grouped(num_layers, options)
        shape = (stream, learner // options.groups, options.coder_kernel_size, options.coder_kernel_size)
        self.transition = Transition(in_chans, stream, learner, stride=stride, **options.layer())
        self.coders = coders(options.coder, shape, len(groups), gain=options.gain)
        self.fill(stream, learner, groups, options)
        for module in self.modules():
            if isinstance(module, (Learn, PlainConv)):
                nn.init.constant_(module.norm.bias, options.shift)

    @staticmethod
    def grouped(num_layers: int, options: PlainOptions) -> list[int]:
        """How many layers belong to each write, itself among them."""
        raise NotImplementedError

    def fill(self, stream: int, learner: int, groups: list[int], options: PlainOptions) -> None:
        raise NotImplementedError

    def kernels(self) -> Iterator[Tensor]:
        """The coder kernel of each write in turn: the same tensor every time unless the coder is per layer."""
        return cycle([coder.weight for coder in self.coders])


class AlternatingStage(PlainStage):
    """Layers learn, one from another, then one writes: learn, deepen, write, with `options.learns` 2 (chosen).

    Groups are as even as `num_layers` allows, the longer ones first: 6 = 3 + 3, 10 = 3 + 3 + 2 + 2.
    """

    @staticmethod
    def grouped(num_layers: int, options: PlainOptions) -> list[int]:
        if options.learns < 1:
            raise ValueError(f"learns {options.learns} must be at least 1: what is written has to be learned")
        count = -(-num_layers // (options.learns + 1))
        least, longer = divmod(num_layers, count) if num_layers > 0 else (0, 0)
        if least < 2:
            raise ValueError(
                f"num_layers {num_layers} cannot be split into groups of 2 to {options.learns + 1}: layers that learn, "
                "then one that writes"
            )
        return [least + 1] * longer + [least] * (count - longer)

    def fill(self, stream: int, learner: int, groups: list[int], options: PlainOptions) -> None:
        self.layers = nn.ModuleList()
        for index, size in enumerate(groups):
            if index > 0:  # the transition is the learn of the first
                self.layers.append(Learn(stream, learner, **options.layer()))
            self.layers.extend(Deepen(stream, learner, **options.layer()) for _ in range(size - 2))
            self.layers.append(Write(stream, learner, **options.writing()))

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.kernels()
        f, c = self.transition(x)
        for layer in self.layers:
            if isinstance(layer, Write):
                c = layer(f, c, next(kernels))
            else:
                f, c = layer(f, c) if isinstance(layer, Deepen) else layer(c)
        return c


class PipelinedStage(PlainStage):
    """transition, PlainConvs, one last write; `num_layers` is at least 2."""

    @staticmethod
    def grouped(num_layers: int, options: PlainOptions) -> list[int]:
        if num_layers < 2:
            raise ValueError(f"num_layers {num_layers} must be at least 2: a transition and a write")
        return [2] + [1] * (num_layers - 2)

    def fill(self, stream: int, learner: int, groups: list[int], options: PlainOptions) -> None:
        layer = {"coder_kernel_size": options.coder_kernel_size, **options.layer()}
        self.layers = nn.ModuleList(PlainConv(stream, learner, **layer) for _ in groups[1:])
        self.write = Write(stream, learner, **options.writing())

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.kernels()
        f, c = self.transition(x)
        for layer in self.layers:
            f, c = layer(f, c, next(kernels))
        return self.write(f, c, next(kernels))
