"""Folding: every norm into the convolution before it, the coder into the layers, in one of two forms.

    structured   learner and coder stay thin convolutions and the stream is added: no zeros are stored or multiplied
    chain        each plain layer becomes one dense convolution of [f; c] and its activation: a bare chain

A plain layer is its own equation (`pnnh.layers.conv`) in either form: on thin convolutions, or on affine maps of the
state [f; c]. Only what is what it seems is folded: exact classes, without hooks, called as they are written. What is
left keeps its class, names and numbers, and the reason is returned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pnnh._errors import UsageError
from pnnh._modules import paths, replace
from pnnh.convert.affine import Affine, Chain, composed, conv_of, dense, norm_map
from pnnh.convert.thin import FoldedBlock, ThinBoth, ThinDeepen, ThinLearn, ThinStage, ThinWrite
from pnnh.layers.block import PlainBlock
from pnnh.layers.conv import CoderConv, Deepen, Learn, PlainConv, Write
from pnnh.layers.head import NormHead
from pnnh.layers.stage import AlternatingStage, PipelinedStage, PlainStage

Form = Literal["structured", "chain"]
KINDS = (Learn, Deepen, Write, PlainConv)


@dataclass(frozen=True)
class Pair:
    """Paths of a Conv2d, of the BatchNorm2d after it and of their Sequential; why they cannot be folded, or None."""

    chain: str
    conv: str
    norm: str
    reason: str | None = None


@dataclass
class Folded:
    """parts: paths of what was folded. left: path -> why something that looks foldable was left as it is."""

    net: nn.Module
    parts: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def fold_all(net: nn.Module, form: Form, pairs: frozenset[Pair] = frozenset()) -> Folded:
    """Fold our stages, blocks and heads, timm's own blocks, and the given pairs in `net`, in place, in float64."""
    done = Folded(net)
    modules = {path: module for module, path in paths(net).items()}
    news = {modules[pair.conv]: fold_pair(modules[pair.conv], modules[pair.norm]) for pair in pairs}
    news |= {modules[pair.norm]: nn.Identity() for pair in pairs}
    done.parts += {pair.chain for pair in pairs}
    done.parts += [path for path, module in modules.items() if fold_blocks(path, module, done)]

    def swap(path: str, module: nn.Module) -> nn.Module | None:
        if module in news:
            return news[module]
        try:
            new = folded_by_timm(module) or folded(module, form)
        except UsageError as reason:
            done.left[path or type(module).__name__] = str(reason)
            return None
        done.parts += [path] if new is not None else []
        return new

    done.net = replace(net, swap)
    done.parts.sort(key=list(modules).index)
    return done


def folded(module: nn.Module, form: Form) -> nn.Module | None:
    """What one of our stages or heads folds to, float64; None if `module` is neither, or has nothing to fold."""
    if type(module) in (AlternatingStage, PipelinedStage):
        refuse_strangers(module)
        return chain_of(module) if form == "chain" else thin_of(module)
    if type(module) is NormHead and isinstance(module.norm, nn.modules.batchnorm._BatchNorm):
        refuse_hooks(module)
        new = copy.copy(module)  # the classifier and pooling are its own; only the norm is another
        new._modules = dict(module._modules)
        new.norm = per_channel(torch.zeros(module.in_features), module.norm)
        return new
    return None


def refuse_hooks(module: nn.Module) -> None:
    for inner in module.modules():
        if hooked(inner):
            raise UsageError(f"{type(inner).__name__} has hooks, which folding would take away")


def refuse_strangers(stage: PlainStage) -> None:
    """Refuse a stage with hooks, or with layers or convolutions that are not ours."""
    refuse_hooks(stage)
    own = (nn.Conv2d.forward, CoderConv.forward)
    foreign = [layer for layer in stage.layers if type(layer) not in KINDS]
    foreign += [conv for conv in stage.modules() if isinstance(conv, nn.Conv2d) and type(conv).forward not in own]
    if foreign:
        raise UsageError(f"{type(foreign[0]).__name__} is no layer of a plain stage")


def hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


# One convolution and one norm


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(scale, shift) [C] of a norm in eval mode; only a BatchNorm2d with running statistics is linear."""
    if type(norm).forward is not nn.BatchNorm2d.forward or norm.running_mean is None:
        raise UsageError(f"{type(norm).__name__} cannot be folded: only BatchNorm2d with running statistics is linear")
    return norm_map(norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)


def why_not(conv: nn.Module, norm: nn.Module) -> str | None:
    """Why this pair cannot be folded into one convolution; None if it can."""
    own = type(conv).forward is not nn.Conv2d.forward or type(conv)._conv_forward is not nn.Conv2d._conv_forward
    if own or type(norm).forward is not nn.BatchNorm2d.forward:
        return f"{type(conv).__name__} and {type(norm).__name__} have a forward of their own"
    if hooked(conv) or hooked(norm) or parametrize.is_parametrized(norm):
        return "its weights are computed by hooks"
    if not parametrize.is_parametrized(conv, "weight") and conv._parameters.get("weight") is None:
        return "its weight is not a parameter of its own"
    return "the norm has no running statistics" if norm.running_mean is None else None


def fold_pair(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """What computes norm(conv(x)): `conv` itself, changed in place, or a plain Conv2d where it is parametrized.

    A parametrized module has a class of its own, which its copies share, so it is never changed.
    """
    if parametrize.is_parametrized(conv):
        return thin(conv, norm)
    scale, shift = scale_and_shift(norm)
    bias = shift if conv.bias is None else shift + conv.bias.detach().double() * scale
    conv.weight = nn.Parameter(conv.weight.detach().double() * scale[:, None, None, None], conv.weight.requires_grad)
    conv.bias = nn.Parameter(bias)
    return conv


def pairs_of(net: nn.Module) -> Iterator[Pair]:
    """Every Conv2d with a BatchNorm2d right after it in a Sequential of `net`, whether it can be folded or not."""
    names = paths(net)
    whole = [module for module in names if folds_itself(module) or type(module) in (AlternatingStage, PipelinedStage)]
    inside = {inner for module in whole for inner in module.modules()}
    for module in names:
        if not isinstance(module, nn.Sequential) or module in inside:
            continue
        for conv, norm in pairwise(module):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                own = type(module).forward is not nn.Sequential.forward
                reason = f"{type(module).__name__} has a forward of its own" if own else why_not(conv, norm)
                yield Pair(names[module], names[conv], names[norm], reason)


# A stage


def _act(*acts: nn.Module) -> nn.Module:
    """A copy of the one activation of a layer."""
    if len({repr(act) for act in acts}) > 1 or any(list(act.parameters()) for act in acts):
        raise UsageError(f"a layer with the activations {', '.join(map(repr, acts))} does not fold to one convolution")
    return copy.deepcopy(acts[0])


def thin(conv: nn.Conv2d, norm: nn.Module | None, weight: Tensor | None = None) -> nn.Conv2d:
    """Convolution and norm as one Conv2d of the same groups, float64; `weight` stands in for one it does not own."""
    kernel = (conv.weight if weight is None else weight).detach().double()
    bias = kernel.new_zeros(len(kernel)) if conv.bias is None else conv.bias.detach().double()
    if norm is not None:
        scale, shift = scale_and_shift(norm)
        kernel, bias = kernel * scale[:, None, None, None], bias * scale + shift
    geometry = {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "padding_mode")}
    return conv_of(kernel, bias, conv.groups, **geometry)


def per_channel(shift: Tensor, norm: nn.Module | None = None) -> nn.Conv2d:
    """c + shift, or norm(c), as a 1 x 1 convolution per channel, float64."""
    scale = torch.ones(len(shift))
    if norm is not None:
        scale, shift = scale_and_shift(norm)
    kernel = scale.detach().double().view(-1, 1, 1, 1).to(shift.device)
    return conv_of(kernel, shift.detach().double(), len(kernel))


def thin_of(stage: PlainStage) -> ThinStage:
    """A stage with thin convolutions, float64."""
    first, layers = stage.transition, []
    halves = [nn.Sequential(thin(half[0], half[1]), _act(half[2])) for half in (first.learner, first.stream)]
    for layer, kernel in zip(stage.layers, stage.kernels(), strict=True):
        match layer:
            case PlainConv():
                both = thin(layer.conv, layer.norm), thin(layer.write.conv, None, kernel)
                layers.append(ThinBoth(*both, _act(layer.act, layer.write.act)))
            case Write():
                layers.append(ThinWrite(thin(layer.conv, None, kernel), _act(layer.act)))
            case Learn():
                kind = ThinDeepen if isinstance(layer, Deepen) else ThinLearn
                layers.append(kind(thin(layer.conv, layer.norm), per_channel(layer.shift), _act(layer.act)))
    _act(first.learner[2], first.stream[2])
    return ThinStage(*halves, layers)


def chain_of(stage: PlainStage) -> nn.Sequential:
    """A stage as a bare chain of Conv2d and activation, float64: its equations, on affine maps of the state [f; c]."""
    first = stage.transition
    chain = Chain(first.learner[0].in_channels, first.learner[0].weight.device)
    x = chain.part(0, chain.channels[0])
    parts = [convolved(x, half[0], half[1]) for half in (first.learner, first.stream)]
    f, c = chain.activated(parts, _act(first.learner[2], first.stream[2]), "transition")
    for layer, kernel in zip(stage.layers, stage.kernels(), strict=True):
        match layer:
            case PlainConv():
                parts = [convolved(c, layer.conv, layer.norm), written(f, c, layer.write, kernel)]
                f, c = chain.activated(parts, _act(layer.act, layer.write.act), "layer")
            case Write():
                (c,) = chain.activated([written(f, c, layer, kernel)], _act(layer.act), "write")
            case Learn():
                read = f if isinstance(layer, Deepen) else c
                parts = [convolved(read, layer.conv, layer.norm), c.shifted(layer.shift.detach().double())]
                f, c = chain.activated(parts, _act(layer.act), "learn")
    return nn.Sequential(*chain.layers.values())


def convolved(value: Affine, conv: nn.Conv2d, norm: nn.Module | None, weight: Tensor | None = None) -> Affine:
    """norm(conv(value)) as an affine map; `weight` stands in for one that the convolution does not own."""
    kernel = dense((conv.weight if weight is None else weight).detach().double(), conv.groups)
    bias = None if conv.bias is None else conv.bias.detach().double()
    taps = (conv.dilation[0], conv.padding_mode)
    made = composed(value, kernel, bias, conv.stride[0], type(conv).__name__, taps)
    return made if norm is None else made.scaled(*scale_and_shift(norm))


def written(f: Affine, c: Affine, write: Write, kernel: Tensor) -> Affine:
    """c + K * f + bias as an affine map."""
    return c.plus(convolved(f, write.conv, None, kernel), "write")


# Blocks, and what timm folds itself


def fold_blocks(path: str, net: nn.Module, done: Folded) -> bool:
    """Fold, in place, the blocks of a net that has `blocks`, `coders` and says by `coded()` which uses which.

    Returns whether there was one. The coders leave the net: every block has its own copy.
    """
    if not hasattr(net, "coded") or not all(type(block) is PlainBlock for block in net.blocks):
        return False
    try:
        refuse_hooks(net.blocks), refuse_hooks(net.coders)
        made = [FoldedBlock(block, coder) for block, coder in net.coded()]
    except UsageError as reason:
        done.left[path or type(net).__name__] = str(reason)
        return False
    for index, block in enumerate(made):
        net.blocks[index] = block
    net.coders = nn.ModuleList([nn.Identity()])
    return True


def folds_itself(module: nn.Module) -> bool:
    """Is this one of timm's re-parameterisable blocks? Whole timm models are walked into instead."""
    of_timm = type(module).__module__.startswith("timm.") and not hasattr(module, "forward_features")
    return of_timm and (hasattr(module, "fuse") or hasattr(module, "reparameterize"))


def folded_by_timm(module: nn.Module) -> nn.Module | None:
    """A timm block folded by its own `fuse` or `reparameterize`; None if it is none, or folded already."""
    if not folds_itself(module):
        return None
    refuse_hooks(module)
    before, default = set(module.state_dict()), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # timm's blocks build what they fold to in the default dtype
    try:
        new = module.fuse() if hasattr(module, "fuse") else (module.reparameterize(), module)[1]
    finally:
        torch.set_default_dtype(default)
    return None if new is module and set(new.state_dict()) == before else new
