"""The only code that walks models. A module shared by several parents is one node with several edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import nn


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
    found = {root: ""}
    for edge in edges(root):
        found.setdefault(edge.child, edge.path)
    return found


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
