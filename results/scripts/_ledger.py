"""Every operator that a work runs: what it is, the bytes it must move, its floating-point operations, its seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

KINDS = {  # the first kind whose word is part of the operator's name
    "loss": ("log_softmax", "nll_loss", "cross_entropy"),
    "conv": ("convolution",),
    "attention": ("scaled_dot_product", "softmax"),
    "matmul": ("mm", "linear"),
    "norm": ("norm",),
    "activation": ("relu", "threshold", "gelu", "silu", "clamp", "sigmoid", "tanh"),
    "pool": ("mean", "pool"),
    "add": ("add",),
}


@dataclass(frozen=True)
class Op:
    """One call. bytes: inputs read and outputs written, each once. flops: of convolutions and matrix products only."""

    name: str
    kind: str
    phase: str
    bytes: int
    flops: int
    seconds: float


class Ledger(TorchDispatchMode):
    """Within the block, `.ops` collects the operators, also of backward; views and bare allocations move nothing."""

    def __init__(self):
        super().__init__()
        self.ops: list[Op] = []
        self._updating = 0
        self._hooks = ()

    def __enter__(self):
        def updating(change: int):
            return lambda *_: setattr(self, "_updating", self._updating + change)

        pre, post = register_optimizer_step_pre_hook, register_optimizer_step_post_hook
        self._hooks = (pre(updating(1)), post(updating(-1)))
        return super().__enter__()

    def __exit__(self, *raised):
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*raised)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        backward = torch._C._current_graph_task_id() != -1
        phase = "update" if self._updating else ("backward" if backward else "forward")
        before = _now(args)
        result = func(*args, **kwargs)
        seconds = _now(args) - before
        read, written = _traffic(func, args, kwargs, result)
        name = func._schema.name.removeprefix("aten::")
        if written and not name.startswith(("empty", "new_empty")):
            count = flop_registry.get(func._overloadpacket)
            flops = int(count(*args, **kwargs, out_val=result)) if count else 0
            self.ops.append(Op(name, kind_of(name), phase, read + written, flops, seconds))
        return result


def ledger(work: Callable[[], object], *, repeats: int = 3) -> list[Op]:
    """The operators of one call of `work`; the seconds of each are the least of `repeats` calls.

    On CUDA every operator is waited for, so that small ones show the cost of their launch.
    """
    runs = []
    for _ in range(repeats):
        with Ledger() as book:
            work()
        runs.append(book.ops)
    same = [run for run in runs if [op.name for op in run] == [op.name for op in runs[-1]]]
    return [replace(calls[0], seconds=min(op.seconds for op in calls)) for calls in zip(*same, strict=True)]


def kind_of(name: str) -> str:
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")


def _traffic(func, args, kwargs, result) -> tuple[int, int]:
    """Bytes read and written; a result that only looks at an argument's storage is neither."""
    specs = {spec.name: spec for spec in func._schema.arguments}
    given = dict(zip(specs, args, strict=False)) | kwargs
    inputs = _tensors([value for name, value in given.items() if not specs[name].is_out])
    changed = _tensors([value for name, value in given.items() if _is_written(specs[name])])
    known = {tensor.untyped_storage()._cdata for tensor in (*inputs, *changed)}
    made = [tensor for tensor in _tensors(result) if tensor.untyped_storage()._cdata not in known]
    return sum(map(_bytes, inputs)), sum(map(_bytes, made)) + sum(map(_bytes, changed))


def _is_written(spec) -> bool:
    return spec.alias_info is not None and spec.alias_info.is_write


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _now(args) -> float:
    """Seconds on the clock; on CUDA once the queue is empty."""
    if any(tensor.is_cuda for tensor in _tensors(args)):
        torch.cuda.synchronize()
    return time.perf_counter()
