"""`fuse`: a new model without norms and coders, in one of two forms, and the proof that it is equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, nn

from pnnh._errors import RunError, UsageError
from pnnh._modules import copied, left_as_found, paths, refuse_lazy, unwrap
from pnnh.certify.trace import Example, as_arguments
from pnnh.convert.equivalence import Agreement, agreement, run_in_float64
from pnnh.convert.fold import Folded, Form, Pair, fold_all, pairs_of
from pnnh.cost import measure_cost

TOLERANCE = 1e-9


@dataclass(frozen=True, repr=False)
class Fusion:
    """What `fuse` did, kept as `.fusion` on its result.

    form: structured or chain. folded: paths of what was folded. left: (path, reason) of what looks foldable and was
    left as it is. macs: multiply-accumulates of one input. relative_error: of the folded net against the source, both
    in float64, over all outputs. rounding: of the fused and of the unfused net in the source's dtype, against the
    source in float64. argmax: share of samples with the same largest output.
    """

    form: Form
    folded: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    relative_error: float
    rounding_fused: float
    rounding_unfused: float
    argmax: float

    def rows(self) -> list[dict]:
        return [
            {"figure": name, "value": value} for name, value in vars(self).items() if name not in ("folded", "left")
        ]

    def __str__(self) -> str:
        left = f"; {len(self.left)} left as they are" if self.left else ""
        return (
            f"{len(self.folded)} parts folded ({self.form}){left}, "
            f"relative error {self.relative_error:.1e} in float64; "
            f"rounding {self.rounding_fused:.1e} fused, {self.rounding_unfused:.1e} before"
        )

    def __repr__(self) -> str:
        return f"Fusion({self})"


def fuse(model: nn.Module, example: Example | None = None, *, form: Form = "structured") -> nn.Module:
    """Fold norms and coders; between two activations one linear map is left.

    Folds our stages and Transformer blocks wherever they are, Conv2d and BatchNorm2d in a row in a `Sequential`, and
    timm's re-parameterisable blocks (RepVGG, MobileOne, FastViT, RepViT, LeViT, ...) through their own `fuse` or
    `reparameterize`. What is not exactly that (classes with a forward of their own, hooks, parts called out of order)
    is left as it is and named in `.fusion.left`. The source is not changed. Folding is done in float64, then cast to
    the source's dtype, on its device. The result is in eval mode and carries `.fusion`.

    Args:
        model: in eval mode, with norms that have seen data; may be wrapped by torch.compile or DataParallel.
        example: inputs for the proof; default: noise of the size in the model's own timm configuration.
        form: `structured`: learner and coder stay thin convolutions and the stream is added, not multiplied: the
            fewest parameters and MACs, for runtimes that have an Add (CPUs, GPUs). `chain`: each plain layer is one
            dense Conv2d and its activation, a bare chain for hardware and compilers that run only chains.

    Raises:
        UsageError: unknown form, train mode, uncalibrated norms, nothing to fold. RunError: the proof failed.
    """
    if form not in get_args(Form):
        raise UsageError(f"form {form!r} is not known; choose {' or '.join(get_args(Form))}")
    source = unwrap(model)
    refuse_lazy(source)
    if any(module.training for module in paths(source)):
        raise UsageError(f"{type(source).__name__} is in train mode; call .eval() first: folding freezes the norms")
    arguments = as_arguments(example) if example is not None else _noise(source)
    refuse_uncalibrated(source)
    reference = copied(source, dtype=torch.float64)
    pairs = list(pairs_of(reference))
    truth, called = _observed(reference, arguments, pairs)
    done, exact = _proven(source, truth, arguments, form, called)
    left = done.left | {pair.chain: pair.reason for pair in called.values() if pair.reason}
    if not done.parts:
        why = "".join(f"; {path or 'the top module'} is left: {reason}" for path, reason in sorted(left.items())[:3])
        raise UsageError(
            f"{type(source).__name__} has nothing to fold: no plain stage, no Sequential with Conv2d and BatchNorm2d "
            f"in a row, no re-parameterisable block{why}"
        )
    fused = done.net.to(_dtype(source)).eval()
    with torch.no_grad(), left_as_found(source), left_as_found(fused):
        torch.manual_seed(0)
        before = agreement(truth, source(*arguments))
        torch.manual_seed(0)
        after = agreement(truth, fused(*arguments))
    costs = [measure_cost(net, arguments) for net in (source, fused)]
    sizes, macs = [item.num_params for item in costs], [item.macs for item in costs]
    errors = (exact.relative_error, after.relative_error, before.relative_error)
    fused.fusion = Fusion(form, tuple(done.parts), tuple(sorted(left.items())), *sizes, *macs, *errors, after.argmax)
    return fused


def as_fused(model: nn.Module, form: Form) -> nn.Module:
    """A copy of a fresh `model` in the fused form, for weights that a fused net saved; nothing is proven."""
    net = copied(model, dtype=torch.float64)
    pairs = frozenset(pair for pair in pairs_of(net) if not pair.reason)
    return fold_all(net, form, pairs).net.to(_dtype(model)).eval()


def _observed(reference: nn.Module, arguments: Sequence[Tensor], pairs: list[Pair]) -> tuple[object, dict[Pair, Pair]]:
    """What the reference returns, and the pairs, each with a reason if it did not run as one convolution and norm."""
    made: dict[str, list[int]] = {}
    modules = {path: module for module, path in paths(reference).items()}
    kept, handles = [], []  # outputs are kept, so that no number is used twice

    def watch(path: str, after: bool):
        def see(module, inputs, output=None):
            tensor = output if after else inputs[0]
            kept.append(tensor)
            made.setdefault(path, []).append(id(tensor))

        module = modules[path]
        return module.register_forward_hook(see) if after else module.register_forward_pre_hook(see)

    for path in {pair.conv for pair in pairs if not pair.reason}:
        handles.append(watch(path, after=True))
    for path in {pair.norm for pair in pairs if not pair.reason}:
        handles.append(watch(path, after=False))
    try:
        truth = run_in_float64(reference, arguments)
    finally:
        for handle in handles:
            handle.remove()

    def judged(pair: Pair) -> Pair:
        if pair.reason or (made.get(pair.conv) and made.get(pair.conv) == made.get(pair.norm)):
            return pair
        return replace(pair, reason="the norm is not what reads the convolution, each time and alone")

    return truth, {pair: judged(pair) for pair in pairs}


def _proven(source, truth, arguments, form: Form, called: dict[Pair, Pair]) -> tuple[Folded, Agreement]:
    """A folded copy and its agreement; where the pairs of a Sequential break the proof, they are left as they are."""
    pairs = frozenset(pair for pair, judged in called.items() if judged.reason is None)
    done = fold_all(copied(source, dtype=torch.float64), form, pairs)
    if not done.parts:
        return done, Agreement(0.0, 1.0, 0)
    problem, exact = None, None
    try:
        exact = agreement(truth, run_in_float64(done.net, arguments))
    except (UsageError, RunError) as error:
        problem = error
    if exact is not None and exact.relative_error <= TOLERANCE:
        return done, exact
    if pairs:
        for pair in pairs:
            called[pair] = replace(pair, reason="its layers are also read from outside the Sequential")
        return _proven(source, truth, arguments, form, called)
    error = f"relative error {exact.relative_error:.1e} in float64 (limit {TOLERANCE:.0e})" if exact else str(problem)
    raise RunError(f"fusing changed the function: {error}")


def refuse_uncalibrated(model: nn.Module) -> None:
    for module, path in paths(model).items():
        if not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) or module.num_batches_tracked is None:
            continue
        untouched = not module.running_mean.any() and bool((module.running_var == 1).all())
        if untouched and module.num_batches_tracked == 0:
            raise UsageError(
                f"{path}: this norm has never seen data, its statistics are still the initial ones; train the model or "
                "run some batches through it in train mode before fusing"
            )


def _noise(model: nn.Module) -> tuple[Tensor, ...]:
    """A batch of Gaussian noise of the model's own input size."""
    config = getattr(model, "pretrained_cfg", None) or {}
    if not config.get("input_size"):
        raise UsageError(f"{type(model).__name__} does not tell its input size; give an example input")
    first = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(4, *config["input_size"], generator=generator).to(first.device, first.dtype),)


def _dtype(model: nn.Module) -> torch.dtype:
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floats, torch.get_default_dtype())
