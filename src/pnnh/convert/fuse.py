"""`fuse`: a new model without norms and coders, in one of two forms, and the proof that it is equal."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import torch
from torch import nn

from pnnh._errors import RunError, UsageError
from pnnh._modules import paths, replace, unwrap
from pnnh.certify.trace import Example, as_arguments
from pnnh.convert.equivalence import agreement, in_float64
from pnnh.cost import measure_cost
from pnnh.layers.fold import Form, fold
from pnnh.layers.folded_block import fold_blocks

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Fusion:
    """What `fuse` did, kept as `.fusion` on its result.

    form: dense or structured. folded: paths of what was folded. macs: multiply-accumulates of one input.
    relative_error: of the folded net against the source, both in float64.
    rounding: of the fused and of the unfused net in the source's dtype, against the source in float64.
    argmax: share of samples with the same largest output.
    """

    form: Form
    folded: tuple[str, ...]
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    relative_error: float
    rounding_fused: float
    rounding_unfused: float
    argmax: float

    def rows(self) -> list[dict]:
        return [{"figure": name, "value": value} for name, value in vars(self).items() if name != "folded"]

    def __str__(self) -> str:
        return (
            f"{len(self.folded)} parts folded ({self.form}), relative error {self.relative_error:.1e} in float64; "
            f"rounding {self.rounding_fused:.1e} fused, {self.rounding_unfused:.1e} before"
        )


def fuse(model: nn.Module, example: Example | None = None, *, form: Form = "dense") -> nn.Module:
    """Fold norms and coders; between two activations one linear map is left.

    Folds our stages and Transformer blocks wherever they are, `Sequential` chains of Conv2d and BatchNorm2d, and timm's
    re-parameterisable blocks (RepVGG, MobileOne, FastViT, RepViT, LeViT, ...) through their own `fuse` or
    `reparameterize`. The source is not changed. Folding is done in float64, then cast to the source's dtype, on its
    device. The result is in eval mode and carries `.fusion`.

    Args:
        model: in eval mode, with norms that have seen data.
        example: inputs for the proof; default: noise of the size in the model's own timm configuration.
        form: `dense`: each plain layer is one Conv2d and its activation, a bare chain for hardware that runs only
            chains. `structured`: learner and coder stay thin convolutions and the stream is added, not multiplied:
            plain as well, fewer parameters and MACs, for runtimes that have an Add (CPUs, GPUs).

    Raises:
        UsageError: unknown form, train mode, uncalibrated norms, nothing to fold. RunError: the proof failed.
    """
    if form not in get_args(Form):
        raise UsageError(f"form {form!r} is not known; choose {' or '.join(get_args(Form))}")
    source = unwrap(model)
    if any(module.training for module in paths(source)):
        raise UsageError(f"{type(source).__name__} is in train mode; call .eval() first: folding freezes the norms")
    arguments = as_arguments(example) if example is not None else _noise(source)
    reference = in_float64(source)
    _refuse_uncalibrated(source)
    folded_net, folded = fold_all(copy.deepcopy(reference), form)
    if not folded:
        raise UsageError(
            f"{type(source).__name__} has nothing to fold: no plain stage, norm chain or re-parameterisable block"
        )
    fused = copy.deepcopy(folded_net).to(_dtype(source)).eval()
    fused.fusion = _prove(source, reference, folded_net, fused, arguments, form, folded)
    return fused


def fold_all(model: nn.Module, form: Form = "dense") -> tuple[nn.Module, tuple[str, ...]]:
    """Fold everything in `model`, in place, in float64; returns (the new root, paths of what was folded)."""
    folded = [path for module, path in paths(model).items() if fold_blocks(module)]

    def swap(path: str, module: nn.Module) -> nn.Module | None:
        try:
            new = _by_timm(module) or fold(module, form)
        except UsageError as error:
            raise UsageError(f"{path or type(module).__name__}: {error}") from error
        if new is None:
            return None
        folded.append(path)
        for name, child in list(new.named_children()):  # a chain may hold a stage
            setattr(new, name, replace(child, lambda below, inner, at=name: swap(_joined(path, at, below), inner)))
        return new

    return replace(model, swap), tuple(folded)


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)


def _by_timm(module: nn.Module) -> nn.Module | None:
    """A timm block folded by its own interface; whole timm models are walked into, so that foreign parts fold too."""
    if not type(module).__module__.startswith("timm.") or hasattr(module, "forward_features"):
        return None
    with _float64_by_default():
        if hasattr(module, "fuse"):
            return module.fuse()
        if hasattr(module, "reparameterize"):
            module.reparameterize()
            return module
    return None


@contextlib.contextmanager
def _float64_by_default() -> Iterator[None]:
    """timm's blocks build what they fold to in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _refuse_uncalibrated(model: nn.Module) -> None:
    for module, path in paths(model).items():
        if not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) or module.num_batches_tracked is None:
            continue
        untouched = not module.running_mean.any() and bool((module.running_var == 1).all())
        if untouched and module.num_batches_tracked == 0:
            raise UsageError(
                f"{path}: this norm has never seen data, its statistics are still the initial ones; train the model or "
                "run some batches through it in train mode before fusing"
            )


def _noise(model: nn.Module) -> tuple[torch.Tensor, ...]:
    """A batch of Gaussian noise of the model's own input size."""
    config = getattr(model, "pretrained_cfg", None) or {}
    if not config.get("input_size"):
        raise UsageError(f"{type(model).__name__} does not tell its input size; give an example input")
    first = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(4, *config["input_size"], generator=generator).to(first.device, first.dtype),)


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _prove(source, reference, folded_net, fused, arguments, form, folded) -> Fusion:
    with torch.no_grad():
        wide = [item.double() if item.is_floating_point() else item for item in arguments]
        truth = reference(*wide)
        exact = agreement(truth, folded_net(*wide))
        after, before = agreement(truth, fused(*arguments)), agreement(truth, source(*arguments))
    if not exact.relative_error <= TOLERANCE:
        raise RunError(
            f"fusing changed the function: relative error {exact.relative_error:.1e} in float64 (limit {TOLERANCE:.0e})"
        )
    costs = [measure_cost(net, arguments) for net in (source, fused)]
    sizes, macs = [item.num_params for item in costs], [item.macs for item in costs]
    errors = (exact.relative_error, after.relative_error, before.relative_error)
    return Fusion(form, folded, *sizes, *macs, *errors, after.argmax)
