"""Each plain layer as what it is: one convolution [f; c] -> [f'; c'] of concatenated channels, then one activation.

    Transition   W = [F; G]             Learn       W = [learner; Dirac],          b += shift
    Write        W = [K, Dirac]         Deepen      W = [learner, 0; 0, Dirac],    b += shift
                                        PlainConv   W = [0, learner; K, Dirac]

with every norm folded into the rows it follows. Pure functions of the layer: nothing is changed, the result is in the
dtype it is computed in (float64). Shapes: kernels [O, I, k, k] dense (groups written out), biases [O]. Source: derived.

Two forms: `dense` is that, a bare chain of single convolutions; `structured` (`pnnh.layers.folded`) neither stores nor
multiplies the zeros and Diracs of W.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnnh._errors import UsageError
from pnnh.layers.conv import Deepen, Learn, PlainConv, Write
from pnnh.layers.folded import FoldedDeepen, FoldedLearn, FoldedPlainConv, FoldedStage, FoldedTransition, FoldedWrite
from pnnh.layers.head import NormHead
from pnnh.layers.stage import AlternatingStage, PipelinedStage, Transition

Form = Literal["dense", "structured"]
Map = tuple[Tensor, Tensor]  # kernel [O, I, k, k], bias [O]
GEOMETRY = ("stride", "padding", "dilation", "padding_mode")


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
    centre = [side // 2 for side in kernel.shape[2:]]
    kernel[:, :, *centre] = torch.eye(channels, dtype=like.dtype, device=like.device)
    return kernel


def embed(kernel: Tensor, size: tuple[int, ...]) -> Tensor:
    """The kernel at the centre of a larger one of `size`, zeros around: the same convolution."""
    around = [(large - small) // 2 for large, small in zip(size, kernel.shape[2:], strict=True)]
    return F.pad(kernel, (around[1], around[1], around[0], around[0]))


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


def fold_conv(conv: nn.Conv2d, norm: nn.Module) -> Map:
    """Convolution and norm as one dense map."""
    return fold_norm(dense(conv.weight, conv.groups), conv.bias, norm)


def transition_map(layer: Transition) -> Map:
    """x -> [f; c]."""
    kernels, biases = zip(*(fold_conv(half[0], half[1]) for half in (layer.learner, layer.stream)), strict=True)
    return torch.cat(kernels), torch.cat(biases)


def learn_map(layer: Learn) -> Map:
    """c -> [f'; c']."""
    kernel, bias = fold_conv(layer.conv, layer.norm)
    return torch.cat([kernel, dirac(len(layer.shift), kernel)]), torch.cat([bias, layer.shift.detach().double()])


def deepen_map(layer: Deepen) -> Map:
    """[f; c] -> [f'; c']."""
    kernel, bias = fold_conv(layer.conv, layer.norm)
    stream = dirac(len(layer.shift), kernel)
    apart = [F.pad(kernel, (0, 0, 0, 0, 0, len(stream))), F.pad(stream, (0, 0, 0, 0, len(kernel), 0))]
    return torch.cat(apart), torch.cat([bias, layer.shift.detach().double()])


def write_map(layer: Write, coder: Tensor) -> Map:
    """[f; c] -> c'."""
    kernel = dense(coder, layer.conv.groups)
    return torch.cat([kernel, dirac(len(kernel), kernel)], dim=1), layer.conv.bias.detach().double()


def plain_conv_map(layer: PlainConv, coder: Tensor) -> Map:
    """[f; c] -> [f'; c']."""
    read, read_bias = fold_conv(layer.conv, layer.norm)
    write, write_bias = write_map(layer.write, coder)
    size = max(read.shape[2:], write.shape[2:])
    read, write = embed(read, size), embed(write, size)
    blind = read.new_zeros(len(read), write.shape[1] - read.shape[1], *read.shape[2:])  # the learner does not read f
    return torch.cat([torch.cat([blind, read], dim=1), write]), torch.cat([read_bias, write_bias])


def as_conv(folded: Map, geometry: nn.Conv2d | None = None, groups: int = 1) -> nn.Conv2d:
    """A Conv2d with these float64 weights [O, I / groups, k, k] and the stride, padding and dilation of `geometry`."""
    kernel, bias = folded
    out, inner, *size = kernel.shape
    shape = {name: getattr(geometry, name) for name in GEOMETRY} if geometry else {}
    conv = nn.Conv2d(inner * groups, out, tuple(size), groups=groups, device="meta", dtype=torch.float64, **shape)
    conv.weight, conv.bias = nn.Parameter(kernel), nn.Parameter(bias)
    return conv


def thin(conv: nn.Conv2d, norm: nn.Module, weight: Tensor | None = None) -> nn.Conv2d:
    """Convolution and norm as one Conv2d of the same groups, float64; `weight` stands in for one it does not own."""
    kernel = (conv.weight if weight is None else weight).detach().double()
    return as_conv(fold_norm(kernel, conv.bias, norm), conv, conv.groups)


def per_channel(shift: Tensor, norm: nn.Module | None = None) -> nn.Conv2d:
    """norm(c + shift) as a 1 x 1 convolution per channel, float64."""
    shift = shift.detach().double()
    return as_conv(fold_norm(shift.new_ones(len(shift), 1, 1, 1), shift, norm or nn.Identity()), groups=len(shift))


def dense_stage(stage: AlternatingStage | PipelinedStage) -> nn.Sequential:
    """A stage as a bare chain of Conv2d and activation, float64: [B, in, H, W] -> [B, C, H / stride, W / stride]."""
    kernels = stage.kernels()
    first = stage.transition
    chain = [as_conv(transition_map(first), first.learner[0]), _act(first.learner[2], first.stream[2])]
    for layer in stage.layers:
        match layer:
            case Deepen():
                chain += [as_conv(deepen_map(layer), layer.conv), _act(layer.act)]
            case Learn():
                chain += [as_conv(learn_map(layer), layer.conv), _act(layer.act)]
            case Write():
                chain += [as_conv(write_map(layer, next(kernels)), layer.conv), _act(layer.act)]
            case PlainConv():
                wider = max(layer.conv, layer.write.conv, key=lambda conv: conv.kernel_size)
                chain += [as_conv(plain_conv_map(layer, next(kernels)), wider), _act(layer.act, layer.write.act)]
    if isinstance(stage, PipelinedStage):
        chain += [as_conv(write_map(stage.write, next(kernels)), stage.write.conv), _act(stage.write.act)]
    return nn.Sequential(*chain)


def structured_stage(stage: AlternatingStage | PipelinedStage) -> FoldedStage:
    """The same stage with thin convolutions, float64."""
    kernels = stage.kernels()
    learner, stream = stage.transition.learner, stage.transition.stream
    start = FoldedTransition(thin(*learner[:2]), thin(*stream[:2]), _act(learner[2], stream[2]))

    def write_of(write: Write) -> nn.Conv2d:
        return thin(write.conv, nn.Identity(), next(kernels))

    layers: list[nn.Module] = []
    for layer in stage.layers:
        match layer:
            case Learn():
                folded = FoldedDeepen if isinstance(layer, Deepen) else FoldedLearn
                layers.append(folded(thin(layer.conv, layer.norm), per_channel(layer.shift), _act(layer.act)))
            case Write():
                layers.append(FoldedWrite(write_of(layer), _act(layer.act)))
            case PlainConv():
                act = _act(layer.act, layer.write.act)
                layers.append(FoldedPlainConv(thin(layer.conv, layer.norm), write_of(layer.write), act))
    if isinstance(stage, PipelinedStage):
        layers.append(FoldedWrite(write_of(stage.write), _act(stage.write.act)))
    return FoldedStage(start, layers)


def fold_head(head: NormHead) -> NormHead | None:
    """The head with its norm as a 1 x 1 convolution per channel, float64; None if it has none, or has it folded.

    Not folded into the classifier: so it is right for any pooling, and for the features of a net without a classifier.
    """
    if isinstance(head.norm, (nn.Identity, nn.Conv2d)):
        return None
    folded = copy.deepcopy(head)
    state = next(iter(head.norm.state_dict().values()))
    folded.norm = per_channel(state.new_zeros(head.in_features), head.norm)
    return folded


def fold_chain(chain: nn.Sequential) -> nn.Sequential | None:
    """A Sequential with each BatchNorm2d that follows a Conv2d folded into it, float64; None if there is none."""
    pairs = [(a, b) for a, b in pairwise(chain) if isinstance(a, nn.Conv2d) and isinstance(b, nn.BatchNorm2d)]
    if not pairs or any(conv.weight is None for conv, _ in pairs):
        return None
    norms = dict(pairs)
    folded = []
    for module in chain:
        if module in norms:
            folded.append(thin(module, norms[module]))
        elif not any(module is norm for norm in norms.values()):
            folded.append(module)
    return nn.Sequential(*folded)


def fold(module: nn.Module, form: Form = "dense") -> nn.Module | None:
    """What `module` folds to, or None if it is none of our stages or heads and no chain with a norm."""
    if isinstance(module, (AlternatingStage, PipelinedStage)):
        return dense_stage(module) if form == "dense" else structured_stage(module)
    if isinstance(module, NormHead):
        return fold_head(module)
    if isinstance(module, nn.Sequential):
        return fold_chain(module)
    return None


def _act(*acts: nn.Module) -> nn.Module:
    """The one activation of a layer."""
    if len({repr(act) for act in acts}) > 1 or any(list(act.parameters()) for act in acts):
        raise UsageError(f"a layer with the activations {', '.join(map(repr, acts))} does not fold to one convolution")
    return copy.deepcopy(acts[0])
