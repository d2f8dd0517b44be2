"""Do two networks compute the same function? All that they return is compared, in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from pnnh._errors import RunError, UsageError
from pnnh._modules import copied, eval_mode
from pnnh.certify.trace import Example, as_arguments

LIMITS = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}  # chosen: 50-100 roundings
_LOW = frozenset([torch.float32, torch.float16, torch.bfloat16])


@dataclass(frozen=True)
class Agreement:
    """relative_error: the largest, over all outputs, of max |a - b| / max |a|; 0 is bitwise equality.

    argmax: share of samples whose first output has the same largest entry. samples: how many were compared.
    """

    relative_error: float
    argmax: float
    samples: int

    def rows(self) -> list[dict]:
        return [dataclasses.asdict(self)]


def outputs_of(value: object, name: str = "output") -> dict[str, Tensor]:
    """Every tensor that a network returns, by name: of tuples, lists, mappings and dataclasses, however nested.

    Raises:
        UsageError: the output holds something else, which cannot be compared.
    """
    if isinstance(value, Tensor):
        return {name: value}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {}
    items: Iterable[tuple[object, object]]
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (tuple, list)):
        items = enumerate(value)
    elif dataclasses.is_dataclass(value):
        items = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    else:
        raise UsageError(f"{name} is a {type(value).__name__}; return tensors, or tuples, lists, dicts or dataclasses")
    return {path: tensor for key, item in items for path, tensor in outputs_of(item, f"{name}.{key}").items()}


def agreement(reference: object, other: object) -> Agreement:
    """Compare all that two networks returned for the same batch; each reference output sets its own scale.

    Raises:
        RunError: they return other outputs, or outputs of other shapes.
    """
    first, second = outputs_of(reference), outputs_of(other)
    shapes = [{name: tuple(tensor.shape) for name, tensor in outputs.items()} for outputs in (first, second)]
    if shapes[0] != shapes[1] or not first:
        raise RunError(f"outputs have shapes {shapes[0]} and {shapes[1]}")
    errors = [_error(tensor, second[name]) for name, tensor in first.items()]
    error = next((item for item in errors if item != item), max(errors))  # NaN is the largest
    one, two = next(iter(first.values())), next(iter(second.values()))
    if one.ndim < 2 or not one[0].numel():
        return Agreement(error, float(error == 0 or one.ndim < 2), len(one) if one.ndim else 1)
    same = (one.flatten(1).argmax(1) == two.flatten(1).argmax(1)).double().mean()
    return Agreement(error, float(same), len(one))


def _error(a: Tensor, b: Tensor) -> float:
    if torch.equal(a, b) or not a.numel():
        return 0.0
    kind = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    a, b = a.detach().to(kind), b.detach().to(kind)
    return float((a - b).abs().max() / a.abs().max().clamp_min(torch.finfo(torch.float64).tiny))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for a message of ours."""
    return (str(error).splitlines() or [""])[0][:160] or type(error).__name__


class _Doubled(TorchFunctionMode):
    """Every cast to a lower precision that a network writes down becomes one to float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            return args[0].double()
        double = lambda item: torch.float64 if isinstance(item, torch.dtype) and item in _LOW else item  # noqa: E731
        return func(*tree_map(double, args), **tree_map(double, kwargs or {}))


@contextmanager
def _float64() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Doubled(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a net that draws numbers draws the same ones as the other
            yield
    finally:
        torch.set_default_dtype(default)


def run_in_float64(model: nn.Module, arguments: Iterable[Tensor]) -> object:
    """What `model`, a copy in float64 and eval mode, returns; casts inside of it stay in float64.

    Raises:
        UsageError: the net cannot run in float64, in which equality is proven.
    """
    wide = [item.double() if item.is_floating_point() else item for item in arguments]
    try:
        with _float64(), eval_mode(model):
            return model(*wide)
    except UsageError:
        raise
    except Exception as error:  # a user's model may raise anything
        raise UsageError(
            f"{type(model).__name__} does not run in float64, in which equality is proven: {first_line(error)}; "
            "give a net and an example that run, without quantized layers or kernels for one precision only"
        ) from error


def compare(reference: nn.Module, other: nn.Module, example: Example, *, noise: bool = True) -> Agreement:
    """Run copies of both nets in float64 on `example`, on one image of it, and on Gaussian noise, and compare.

    Noise on which the reference itself is not finite is left out. The nets stay as they are.
    """
    arguments = as_arguments(example)
    batches = [arguments, tuple(item[:1] for item in arguments)]
    floats = all(item.is_floating_point() for item in arguments)
    if noise and floats:
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(item.shape, generator=generator, dtype=torch.float64) for item in arguments]
        batches.append(tuple(item.to(like.device) for item, like in zip(drawn, arguments, strict=True)))
    first, second = copied(reference, dtype=torch.float64), copied(other, dtype=torch.float64)
    results = []
    for index, batch in enumerate(batches):
        truth = run_in_float64(first, batch)
        finite = all(tensor.isfinite().all() for tensor in outputs_of(truth).values())
        if index < 2 or finite:
            results.append(agreement(truth, run_in_float64(second, batch)))
    return joined(results)


def joined(results: list[Agreement]) -> Agreement:
    """One verdict of several batches: the largest error, and the share over all samples."""
    samples = sum(item.samples for item in results)
    same = sum(item.argmax * item.samples for item in results) / max(samples, 1)
    errors = [item.relative_error for item in results]
    return Agreement(next((item for item in errors if item != item), max(errors)), same, samples)
