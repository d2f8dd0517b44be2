"""Each plain layer as what it is: one convolution [f; c] -> [f'; c'] of concatenated channels, then one activation.

    Transition   W = [F; G]                      Learn   W = [learner; Dirac],  b += shift
    Write        W = [K, Dirac]                  PlainConv   W = [0, learner; K, Dirac]

with every norm folded into the rows it follows. Pure functions of the layer: nothing is changed, the result is in the
dtype it is computed in (float64). Shapes: kernels [O, I, k, k] dense (groups written out), biases [O]. Source: derived.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from pnnh._errors import UsageError
from pnnh.layers.conv import Learn, PlainConv, Write
from pnnh.layers.stage import AlternatingStage, PipelinedStage, Transition

Map = tuple[Tensor, Tensor]  # kernel [O, I, k, k], bias [O]


def dense(weight: Tensor, groups: int) -> Tensor:
    """[O, I / groups, k, k] -> [O, I, k, k] with zeros between groups, in float64."""
    weight = weight.detach().double()
    blocks = weight.chunk(groups)
    full = weight.new_zeros(weight.shape[0], weight.shape[1] * groups, *weight.shape[2:])
    for group, block in enumerate(blocks):
        rows = slice(group * len(block), (group + 1) * len(block))
        full[rows, group * weight.shape[1] : (group + 1) * weight.shape[1]] = block
    return full


def dirac(channels: int, like: Tensor) -> Tensor:
    """The kernel [C, C, k, k] that hands its input on, with the size of `like`."""
    kernel = like.new_zeros(channels, channels, *like.shape[2:])
    kernel[:, :, like.shape[2] // 2, like.shape[3] // 2] = torch.eye(channels, dtype=like.dtype, device=like.device)
    return kernel


def fold_norm(kernel: Tensor, bias: Tensor | None, norm: nn.Module) -> Map:
    """norm(conv(x)) as one convolution; `norm` is a BatchNorm2d with running statistics, or an Identity."""
    bias = kernel.new_zeros(len(kernel)) if bias is None else bias.detach().double()
    if isinstance(norm, nn.Identity):
        return kernel, bias
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
        raise UsageError(f"{type(norm).__name__} cannot be folded: only BatchNorm2d with running statistics is linear")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = bias - norm.running_mean.double()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
        return kernel * scale[:, None, None, None], shift * scale + norm.bias.detach().double()
    return kernel * scale[:, None, None, None], shift * scale


def fold_conv(conv: nn.Conv2d, norm: nn.Module, weight: Tensor | None = None) -> Map:
    """Convolution and norm as one dense map; `weight` stands in for a kernel that the layer does not own."""
    return fold_norm(dense(conv.weight if weight is None else weight, conv.groups), conv.bias, norm)


def transition_map(layer: Transition) -> Map:
    """x -> [f; c]."""
    kernels, biases = zip(*(fold_conv(half[0], half[1]) for half in (layer.learner, layer.stream)), strict=True)
    return torch.cat(kernels), torch.cat(biases)


def learn_map(layer: Learn) -> Map:
    """c -> [f'; c']."""
    kernel, bias = fold_conv(layer.conv, layer.norm)
    return torch.cat([kernel, dirac(len(layer.shift), kernel)]), torch.cat([bias, layer.shift.detach().double()])


def write_map(layer: Write, coder: Tensor) -> Map:
    """[f; c] -> c'."""
    kernel, bias = fold_conv(layer.conv, layer.norm, coder)
    return torch.cat([kernel, dirac(len(kernel), kernel)], dim=1), bias


def plain_conv_map(layer: PlainConv, coder: Tensor) -> Map:
    """[f; c] -> [f'; c']."""
    read, read_bias = fold_conv(layer.conv, layer.norm)
    write, write_bias = write_map(layer.write, coder)
    blind = read.new_zeros(len(read), write.shape[1] - read.shape[1], *read.shape[2:])  # the learner does not read f
    return torch.cat([torch.cat([blind, read], dim=1), write]), torch.cat([read_bias, write_bias])


def as_conv(folded: Map, geometry: nn.Conv2d) -> nn.Conv2d:
    """A Conv2d with these float64 weights and the stride, padding and dilation of `geometry`."""
    kernel, bias = folded
    out, inner, *size = kernel.shape
    shape = {name: getattr(geometry, name) for name in ("stride", "padding", "dilation", "padding_mode")}
    conv = nn.Conv2d(inner, out, tuple(size), device="meta", dtype=torch.float64, **shape)
    conv.weight, conv.bias = nn.Parameter(kernel), nn.Parameter(bias)
    return conv


def fold_stage(stage: AlternatingStage | PipelinedStage) -> nn.Sequential:
    """A stage as a bare chain of Conv2d and activation, float64: [B, in, H, W] -> [B, C, H / stride, W / stride]."""
    kernels = stage.kernels()
    first = stage.transition
    chain = [as_conv(transition_map(first), first.learner[0]), _act(first.learner[2], first.stream[2])]
    if isinstance(stage, AlternatingStage):
        learns = [None, *stage.learns]
        for learn, write in zip(learns, stage.writes, strict=True):
            if learn is not None:
                chain += [as_conv(learn_map(learn), learn.conv), _act(learn.act)]
            chain += [as_conv(write_map(write, next(kernels)), write.conv), _act(write.act)]
    else:
        for layer in stage.layers:
            chain += [as_conv(plain_conv_map(layer, next(kernels)), layer.conv), _act(layer.act, layer.write.act)]
        chain += [as_conv(write_map(stage.write, next(kernels)), stage.write.conv), _act(stage.write.act)]
    return nn.Sequential(*chain)


def fold_chain(chain: nn.Sequential) -> nn.Sequential | None:
    """A Sequential with each BatchNorm2d that follows a Conv2d folded into it, float64; None if there is none."""
    pairs = [(a, b) for a, b in pairwise(chain) if isinstance(a, nn.Conv2d) and isinstance(b, nn.BatchNorm2d)]
    if not pairs or any(conv.weight is None for conv, _ in pairs):
        return None
    norms = dict(pairs)
    folded = []
    for module in chain:
        if module in norms:
            kernel, bias = fold_norm(module.weight.detach().double(), module.bias, norms[module])
            conv = as_conv((kernel, bias), module)
            conv.groups, conv.in_channels = module.groups, module.in_channels
            folded.append(conv)
        elif not any(module is norm for norm in norms.values()):
            folded.append(module)
    return nn.Sequential(*folded)


def fold(module: nn.Module) -> nn.Module | None:
    """What `module` folds to, or None if it is none of our stages and no chain with a norm."""
    if isinstance(module, (AlternatingStage, PipelinedStage)):
        return fold_stage(module)
    if isinstance(module, nn.Sequential):
        return fold_chain(module)
    return None


def _act(*acts: nn.Module) -> nn.Module:
    """The one activation of a layer."""
    if len({repr(act) for act in acts}) > 1 or any(list(act.parameters()) for act in acts):
        raise UsageError(f"a layer with the activations {', '.join(map(repr, acts))} does not fold to one convolution")
    return copy.deepcopy(acts[0])
