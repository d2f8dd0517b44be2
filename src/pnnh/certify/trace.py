"""Any model and one example -> a functional graph of ATen operators, with module paths and source lines."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pnnh._errors import UsageError

Example = torch.Tensor | Sequence[torch.Tensor]


@dataclass(frozen=True)
class Trace:
    """A functional graph (no operator writes to its operands).

    graph: the torch.fx graph. inputs: names of its user inputs; every other placeholder or attribute is a constant.
    how: `export` (torch.export, valid for every input of this shape) or `make_fx` (the operators that ran on the
    example; a model whose Python branches on values may run others elsewhere). program: the ExportedProgram, if any.
    """

    graph: torch.fx.Graph
    inputs: frozenset[str]
    how: str
    program: torch.export.ExportedProgram | None = None


def as_arguments(example: Example) -> tuple[torch.Tensor, ...]:
    """One tensor or a sequence of them -> the positional arguments of the model."""
    arguments = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    if not arguments or not all(isinstance(item, torch.Tensor) for item in arguments):
        raise UsageError(f"example must be a tensor or a sequence of tensors, not {type(example).__name__}")
    return arguments


def trace(model: nn.Module, example: Example, *, dynamic_batch: bool = False) -> Trace:
    """Trace `model` in eval mode (its own mode is left as it is).

    Args:
        dynamic_batch: mark the first dimension of every example tensor as free (its size must be 2 or more).

    Raises:
        UsageError: neither torch.export nor make_fx can follow the model.
    """
    arguments = as_arguments(example)
    model = model if not model.training else copy.deepcopy(model).eval()
    try:
        return _by_export(model, arguments, dynamic_batch)
    except Exception as first:  # torch.export raises anything, from ValueError to its own internals
        if dynamic_batch:
            raise UsageError(f"torch.export cannot trace {type(model).__name__}: {_first_line(first)}") from first
        try:
            return _by_make_fx(model, arguments)
        except UsageError:
            raise
        except Exception as second:
            raise UsageError(
                f"cannot trace {type(model).__name__} on an example of shape {tuple(arguments[0].shape)}: "
                f"{_first_line(second)} (torch.export: {_first_line(first)}); check that model(example) runs"
            ) from second


def _by_export(model: nn.Module, arguments: tuple, dynamic_batch: bool) -> Trace:
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in arguments) if dynamic_batch else None
    with _quiet():
        program = torch.export.export(model, arguments, dynamic_shapes=shapes).run_decompositions({})
    if _control_flow(program.graph):
        raise NotImplementedError("control flow with sub-graphs")
    return Trace(program.graph, frozenset(program.graph_signature.user_inputs), "export", program)


def _by_make_fx(model: nn.Module, arguments: tuple) -> Trace:
    from torch.fx.experimental.proxy_tensor import make_fx

    with _quiet():
        functional = torch.func.functionalize(lambda *values: model(*values))
        tracer = make_fx(functional, record_stack_traces=True, _error_on_data_dependent_ops=False)
        module = tracer(*arguments)
    inside = _control_flow(module.graph)
    if inside:
        raise UsageError(
            f"{type(model).__name__} runs {', '.join(inside)}: the activations inside are in graphs of their own, "
            "which are not followed; write it with Python's if and for"
        )
    inputs = frozenset(node.name for node in module.graph.nodes if node.op == "placeholder")
    return Trace(module.graph, inputs, "make_fx")


def _control_flow(graph: torch.fx.Graph) -> list[str]:
    """Names of the operators of `graph` that run sub-graphs (cond, while_loop, scan, ...)."""
    found = [node.target for node in graph.nodes if isinstance(node.target, torch._ops.HigherOrderOperator)]
    return list(dict.fromkeys(target.name() for target in found))


@contextlib.contextmanager
def _quiet():
    """No gradients, and none of the tracers' warnings and dumps of half a graph: what matters is raised."""
    level = logging.root.manager.disable
    silence = io.StringIO()
    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        contextlib.redirect_stdout(silence),
        contextlib.redirect_stderr(silence),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(level)


def module_path(node: torch.fx.Node) -> str:
    """Dotted path of the innermost module that ran `node` ('' at the top, or if the tracer did not say)."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return re.sub(r"^L\['self'\]\.?", "", path)


def source_line(node: torch.fx.Node) -> str:
    """`timm/models/resnet.py:163 x += shortcut`, or '' if the tracer did not say."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in \S+\n\s*(.*)', node.meta.get("stack_trace") or "")
    if not frames:
        return ""
    file, line, code = frames[-1]
    _, found, inside = file.rpartition("site-packages/")
    return f"{inside if found else Path(file).name}:{line} {code.strip()}".strip()


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:160] if text else type(error).__name__
