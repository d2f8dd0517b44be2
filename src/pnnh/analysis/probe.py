"""See every activation of any model while it runs, module or function, with the path of the module it is in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from pnnh._modules import paths
from pnnh.certify import ops


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an activation function.

    path: dotted path of the innermost module being run ('' is the model itself); nth: its nth activation in this
    forward pass, from 1; op: the function's name; before, after: its input (as it was) and output.
    """

    path: str
    nth: int
    op: str
    before: Tensor
    after: Tensor

    @property
    def name(self) -> str:
        """What a person calls this layer: the path, `#2` and so on for further activations of the same module."""
        return (self.path or "(model)") + (f"#{self.nth}" if self.nth > 1 else "")


@contextmanager
def probe(
    model: nn.Module,
    see: Callable[[Call], None],
    note: Callable[[Callable, tuple, dict, object], None] | None = None,
    miss: Callable[[str], object] | None = None,
) -> Iterator[list[str]]:
    """Within the block, call `see` on every activation that runs inside `model`, in order of execution.

    Nothing is attached to the model: a torch function mode watches the calls, two process-wide module hooks follow the
    path, and all of them leave with the block, also when the model raises. Compiled models run eagerly meanwhile.
    `note(function, args, kwargs, result)` is called for every other torch call, for whoever follows the computation;
    `miss(name)` for those that are non-linear and yet no function of each value by itself (sort, max over channels).
    Yields a list whose last element is the path of the module entered last: the place, when something raises.
    Not seen: code inside ScriptModules and custom kernels.
    """
    names = paths(model)
    stack: list[str] = []
    entered: list[str] = []

    def enter(module, _args):
        stack.append(names.get(module, f"{stack[-1] if stack else ''}.{type(module).__name__}".lstrip(".")))
        entered[:] = stack[-1:]

    def leave(_module, _args, _output):
        if stack:  # empty for a module that was entered before the block
            stack.pop()

    handles = [
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        with torch.compiler.set_stance("force_eager"), _Watch(see, note, miss, stack):
            yield entered
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchFunctionMode):
    def __init__(self, see, note, miss, stack: list[str]):
        super().__init__()
        self.see, self.note, self.miss, self.stack, self.counts = see, note, miss, stack, Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        op = activation(func, args, kwargs)
        if op is None:
            result = func(*args, **kwargs)
            if self.note is not None:
                self.note(func, args, kwargs, result)
            if self.miss is not None and _is_missed(func, args):
                self.miss(_TABLE[func])
            return result
        before = args[0] if args else kwargs["input"]
        kept = before.detach().clone() if _in_place(func, args, kwargs) else before
        result = func(*args, **kwargs)
        path = self.stack[-1] if self.stack else ""
        self.counts[path] += 1
        self.see(Call(path, self.counts[path], op, kept, result))
        return result


def activation(func: Callable, args: tuple, kwargs: dict) -> str | None:
    """The name of the activation that this torch call computes, or None. A clamp from 0 is a relu, h * h a square."""
    op = _TABLE.get(func)
    first = args[0] if args else kwargs.get("input")
    if not isinstance(first, Tensor) or isinstance(first, nn.Parameter) or not first.is_floating_point():
        return None
    second = args[1] if len(args) > 1 else kwargs.get("other", kwargs.get("exponent"))
    if func in _PRODUCTS:
        return "square" if second is first else None
    if op in ("clamp", "clamp_min", "clip"):
        low = kwargs.get("min", second)
        high = kwargs.get("max", args[2] if len(args) > 2 else None)
        return "relu" if isinstance(low, (int, float)) and low == 0 and high is None else "clamp"
    if op in ("max", "min"):  # of two tensors; over one it is a reduction
        return op if isinstance(second, Tensor) and second.dim() <= first.dim() else None
    return None if op in _NOT_MEASURED or (op == "pow" and second == 1) else op


def _is_missed(func: Callable, args: tuple) -> bool:
    """A call that the certificate counts as an activation of the data, and that no row measures."""
    data = bool(args) and isinstance(args[0], Tensor) and args[0].is_floating_point() and args[0].dim() > 1
    return data and func in _TABLE and _TABLE[func] in _NAMED_WHEN_MISSED and not isinstance(args[0], nn.Parameter)


# Results of another shape or type, which no row describes.
_OF_SEVERAL = (  # noqa: SIM905
    "gt ge lt le eq ne amax amin aminmax argmax argmin sort argsort msort topk kthvalue median mode quantile cummax "
    "cummin cumprod prod logsumexp logcumsumexp count_nonzero bernoulli floor_divide bucketize isin"
).split()
_ARITHMETIC = [
    "sqrt",
    "rsqrt",
    "reciprocal",
    "var",
    "var_mean",
    "std",
    "std_mean",
    "norm",
    "isnan",
    "isinf",
    "isfinite",
    "log",
    "any",
    "all",
]
_NOT_MEASURED = frozenset([*_OF_SEVERAL, *_ARITHMETIC, *ops.LOG_SOFTMAX]) | {
    name for name in ops.ACTIVATIONS if name.startswith(("is", "logical_", "bitwise_", "linalg_", "special_bessel"))
}
_NAMED_WHEN_MISSED = frozenset([*_OF_SEVERAL, "max", "min"])


def _functions() -> dict[Callable, str]:
    """Every spelling in torch, Tensor and torch.nn.functional of what the certificate counts, in place ones too."""
    table = {}
    for name in {*ops.ACTIVATIONS, *ops.NAMED_ACTIVATIONS, *ops.POWERS}:
        op = name.removeprefix("special_")
        spellings = [name, name + "_", f"__{name}__"]
        homes = (torch, Tensor, F, torch._C._nn, torch.special)
        for home in homes:
            for spelling in [*spellings, op]:
                if callable(getattr(home, spelling, None)):
                    table.setdefault(getattr(home, spelling), op)
    return table


_TABLE = _functions()
_PRODUCTS = {torch.mul, torch.multiply, Tensor.mul, Tensor.mul_, Tensor.multiply, Tensor.__mul__, Tensor.__imul__}
_INPLACE_AT = {F.relu: 1, F.relu6: 1, F.silu: 1, F.mish: 1, F.hardswish: 1, F.hardsigmoid: 1, F.selu: 1}
_INPLACE_AT |= {F.elu: 2, F.celu: 2, F.leaky_relu: 2, F.hardtanh: 3, F.threshold: 3, F.rrelu: 4}


def _in_place(func: Callable, args: tuple, kwargs: dict) -> bool:
    place = _INPLACE_AT.get(func, len(args))
    return bool(
        kwargs.get("inplace") or getattr(func, "__name__", "").endswith("_") or (place < len(args) and args[place])
    )
