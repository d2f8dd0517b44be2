"""Walking, copying and restoring models. A module shared by several parents is one node with several edges."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from pnnh._errors import UsageError


class Edge(NamedTuple):
    """`parent._modules[name] is child`; `path` is the child's dotted name along this edge."""

    parent: nn.Module
    name: str
    child: nn.Module
    path: str


def edges(root: nn.Module) -> Iterator[Edge]:
    """Every (parent, name, child) edge below `root` exactly once, parents before children, in registration order.

    A shared child appears once per edge, and its own children once. `path` of edges below a shared module uses the
    first way there, as `named_modules` does.
    """
    seen = {root}
    stack = [iter(_edges_of(root, ""))]
    while stack:
        edge = next(stack[-1], None)
        if edge is None:
            stack.pop()
            continue
        yield edge
        if edge.child not in seen:
            seen.add(edge.child)
            stack.append(iter(_edges_of(edge.child, edge.path)))


def _edges_of(parent: nn.Module, path: str) -> list[Edge]:
    prefix = f"{path}." if path else ""
    return [Edge(parent, name, child, prefix + name) for name, child in parent._modules.items() if child is not None]


def paths(root: nn.Module) -> dict[nn.Module, str]:
    """Every module once, with its first dotted path; the root's is ''."""
    first = {root: ""}
    for edge in edges(root):
        first.setdefault(edge.child, edge.path)
    return first


def replace(root: nn.Module, swap: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """Put `swap(path, module)` in the place of every module for which it is not None, in place; returns the (new) root.

    `swap` is asked once per module, parents first; a shared module is replaced once and written on all its edges.
    The inside of a replaced module is not visited.
    """
    answers: dict[nn.Module, nn.Module] = {}

    def visit(path: str, module: nn.Module) -> nn.Module:
        if module not in answers:
            new = swap(path, module)
            answers[module] = module if new is None else new
            if new is None:
                for edge in _edges_of(module, path):
                    module._modules[edge.name] = visit(edge.path, edge.child)
        return answers[module]

    return visit("", root)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside torch.compile, DataParallel and DistributedDataParallel wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def refuse_lazy(model: nn.Module) -> None:
    """Raise UsageError if a lazy layer of `model` has not run yet, so that its weights have no shape."""
    for module, path in paths(model).items():
        held = (*module._parameters.values(), *module._buffers.values())
        if any(nn.parameter.is_lazy(tensor) for tensor in held):
            raise UsageError(
                f"{path or type(model).__name__} is a lazy layer without weights yet ({type(module).__name__}); "
                "run the model once on a batch, then call this again"
            )


def copied(model: nn.Module, *, device: Any = None, dtype: torch.dtype | None = None) -> nn.Module:
    """A deep copy on `device`, floating point tensors in `dtype` (None: as they are); each tensor is copied once.

    Weights that old-style weight norms, spectral norms and pruning compute before each call are copied as values.
    """

    def moved(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, dtype if tensor.is_floating_point() else None, copy=True)

    memo: dict[int, Any] = {}
    for module in paths(model):
        for tensor in module._parameters.values():
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = nn.Parameter(moved(tensor), tensor.requires_grad)
        others = [*module._buffers.values(), *(v for v in vars(module).values() if isinstance(v, Tensor))]
        memo |= {id(tensor): moved(tensor) for tensor in others if tensor is not None and id(tensor) not in memo}
    return copy.deepcopy(model, memo).to(device=device, dtype=dtype)


@contextmanager
def eval_mode(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Within the block every module of `model` is in eval (or train) mode; afterwards each is in its own mode again."""
    modes = [(module, module.training) for module in paths(model)]
    try:
        model.train(training)
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def left_as_found(model: nn.Module, training: bool | None = None) -> Iterator[None]:
    """Run the block with `model` in the given mode (None: each module in its own); put everything back afterwards.

    Restored, also when the block raises: the values of parameters and buffers, every attribute of every module (modes,
    hooks, counters, computed weights; lists and dicts by their items), gradients, and torch's and Python's random
    state. Raises UsageError for lazy layers that never ran.
    """
    refuse_lazy(model)
    modules = list(paths(model))
    restores = [_attributes(module) for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    modes = [(module, module.training) for module in modules]
    tensors = [*model.parameters(), *model.buffers()]
    values = [(tensor, tensor.detach().clone(), tensor.grad) for tensor in tensors]
    state = random.getstate()
    devices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            if training is not None:
                model.train(training)
            yield
        finally:
            random.setstate(state)
            for restore in restores:
                restore()
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for tensor, value, grad in values:
                    if not tensor.is_meta and not torch.equal(tensor, value):
                        tensor.copy_(value)
                    tensor.grad = grad


def _attributes(module: nn.Module) -> Callable[[], None]:
    """A function that gives `module` the attributes it has now; the items of its own lists and dicts too."""
    known = dict(vars(module))
    containers = [value for value in known.values() if isinstance(value, (list, dict, set))]
    held = [
        (value, copy.copy(value)) for value in containers if not isinstance(value, (immutable_list, immutable_dict))
    ]

    def restore() -> None:
        vars(module).clear()
        vars(module).update(known)
        for value, items in held:
            value.clear()
            value.extend(items) if isinstance(value, list) else value.update(items)

    return restore
