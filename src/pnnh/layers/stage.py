"""A plain stage: x [B, in, H, W] -> stream [B, C, H / stride, W / stride] in `num_layers` layers that share a coder.

The first layer is the transition, an ordinary convolution that makes features f and stream c (and takes stride and
widening); the last one writes, so that a stage returns its stream only. In between, by form:

    AlternatingStage   deepen, write, (learn, deepen, write), ...    the transition is the first group's learn
    PipelinedStage     plain, plain, ..., write                      a write in every layer, more memory
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from pnnh.layers.coder import CoderChoice, LearnedCoder, Starts, coders
from pnnh.layers.conv import Deepen, Learn, LearnerConv, PlainConv, Write
from pnnh.layers.init import dirac_, he_normal_, orthogonal_


@dataclass(frozen=True)
class PlainOptions:
    """What the layers of a stage are made of.

    coder: which kernel writes, and whether it is shared. gain: its initial scale.
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

    def starts(self) -> Starts:
        """Initial kernels of the coder."""
        rules = {"he": he_normal_, "dirac": dirac_, "orthogonal": orthogonal_}
        return Starts({name: partial(rule, gain=self.gain) for name, rule in rules.items()}, "dirac", "he")


DEFAULT = PlainOptions()


class Transition(nn.Module):
    """x -> (f, c): two ordinary convolutions of x, f = act(norm(F * x)), c = act(norm(G * x)); takes the stride."""

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
    """What both forms have: a transition, the coders, and `num_layers` plain layers, the transition among them.

    Subclasses say which of the layers write (`grouped`) and make them (`built`).
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
        self.group_sizes = self.grouped(num_layers, options)
        num_writes = len(self.group_sizes)
        shape = (stream, learner // options.groups, options.coder_kernel_size, options.coder_kernel_size)
        self.transition = Transition(in_chans, stream, learner, stride=stride, **options.layer())
        choices = {"starts": options.starts(), "rate": 1 / num_writes**2}
        self.coders = coders(options.coder, {"weight": shape}, num_writes, **choices)
        self.layers = nn.ModuleList(self.built(stream, learner, options))
        for module in self.modules():
            if isinstance(module, (Learn, PlainConv)):
                nn.init.constant_(module.norm.bias, options.shift)

    @staticmethod
    def grouped(num_layers: int, options: PlainOptions) -> list[int]:
        """How many layers belong to each write, itself among them."""
        raise NotImplementedError

    def built(self, stream: int, learner: int, options: PlainOptions) -> list[nn.Module]:
        """The layers after the transition."""
        raise NotImplementedError

    def kernels(self) -> list[Tensor]:
        """One coder kernel for each of `layers`: that of the write which ends its group."""
        owners = [index for index, size in enumerate(self.group_sizes) for _ in range(size)]
        return [self.coders[index % len(self.coders)].weight for index in owners[1:]]

    def forward(self, x: Tensor) -> Tensor:
        f, c = self.transition(x)
        for layer, kernel in zip(self.layers, self.kernels(), strict=True):
            f, c = layer(f, c, kernel)
        return c


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

    def built(self, stream: int, learner: int, options: PlainOptions) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for index, size in enumerate(self.group_sizes):
            if index > 0:  # the transition is the learn of the first
                layers.append(Learn(stream, learner, **options.layer()))
            layers += [Deepen(stream, learner, **options.layer()) for _ in range(size - 2)]
            layers.append(Write(stream, learner, **options.writing()))
        return layers


class PipelinedStage(PlainStage):
    """transition, PlainConvs, one last write; `num_layers` is at least 2."""

    @staticmethod
    def grouped(num_layers: int, options: PlainOptions) -> list[int]:
        if num_layers < 2:
            raise ValueError(f"num_layers {num_layers} must be at least 2: a transition and a write")
        return [2] + [1] * (num_layers - 2)  # the transition learns for the first write

    def built(self, stream: int, learner: int, options: PlainOptions) -> list[nn.Module]:
        layer = {"coder_kernel_size": options.coder_kernel_size, **options.layer()}
        both = [PlainConv(stream, learner, **layer) for _ in self.group_sizes[1:]]
        return [*both, Write(stream, learner, **options.writing())]
