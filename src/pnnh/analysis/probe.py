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

ACTIVATIONS = (
    *("relu", "relu6", "hardtanh", "gelu", "silu", "mish", "hardswish", "elu", "selu", "celu", "leaky_relu", "prelu"),
    *("rrelu", "threshold", "sigmoid", "hardsigmoid", "tanh", "softplus", "logsigmoid", "softsign", "tanhshrink"),
    *("hardshrink", "softshrink", "glu"),
)


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
    model: nn.Module, see: Callable[[Call], None], note: Callable[[Callable, tuple, dict, object], None] | None = None
) -> Iterator[list[str]]:
    """Within the block, call `see` on every activation that runs inside `model`, in order of execution.

    Nothing is attached to the model: a torch function mode watches the calls, two process-wide module hooks follow the
    path, and all of them leave with the block, also when the model raises. Compiled models run eagerly meanwhile.
    `note(function, args, kwargs, result)` is told of every other torch call, for whoever follows the computation.
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
        with torch.compiler.set_stance("force_eager"), _Watch(see, note, stack):
            yield entered
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchFunctionMode):
    def __init__(self, see, note, stack: list[str]):
        super().__init__()
        self.see, self.note, self.stack, self.counts = see, note, stack, Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        op = activation(func, args, kwargs)
        if op is None:
            result = func(*args, **kwargs)
            if self.note is not None:
                self.note(func, args, kwargs, result)
            return result
        before = args[0] if args else kwargs["input"]
        kept = before.detach().clone() if _in_place(func, args, kwargs) else before
        result = func(*args, **kwargs)
        path = self.stack[-1] if self.stack else ""
        self.counts[path] += 1
        self.see(Call(path, self.counts[path], op, kept, result))
        return result


def activation(func: Callable, args: tuple, kwargs: dict) -> str | None:
    """The name of the activation that this torch call computes, or None. A clamp from 0 is a relu."""
    op = _TABLE.get(func)
    first = args[0] if args else kwargs.get("input")
    if op is None or not isinstance(first, Tensor) or isinstance(first, nn.Parameter) or not first.is_floating_point():
        return None
    if op == "clamp":
        low = kwargs.get("min", args[1] if len(args) > 1 else None)
        return "relu" if isinstance(low, (int, float)) and low == 0 else None
    return op


def _functions() -> dict[Callable, str]:
    """Every spelling in torch, torch.Tensor and torch.nn.functional of each activation, in place ones too."""
    table = {}
    spellings = {name: name for name in ACTIVATIONS} | {"clamp": "clamp", "clamp_min": "clamp", "clip": "clamp"}
    for name, op in spellings.items():
        for home in (torch, Tensor, F, torch._C._nn):
            for spelling in (name, name + "_"):
                if hasattr(home, spelling):
                    table[getattr(home, spelling)] = op
    return table


_TABLE = _functions()
_INPLACE_AT = {F.relu: 1, F.relu6: 1, F.silu: 1, F.mish: 1, F.hardswish: 1, F.hardsigmoid: 1, F.selu: 1}
_INPLACE_AT |= {F.elu: 2, F.celu: 2, F.leaky_relu: 2, F.hardtanh: 3, F.threshold: 3, F.rrelu: 4}


def _in_place(func: Callable, args: tuple, kwargs: dict) -> bool:
    place = _INPLACE_AT.get(func, len(args))
    return bool(
        kwargs.get("inplace") or getattr(func, "__name__", "").endswith("_") or (place < len(args) and args[place])
    )
