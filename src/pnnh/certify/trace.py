"""Any model and one example -> a functional graph of ATen operators, with module paths and source lines."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from pnnh._errors import UsageError
from pnnh._modules import left_as_found, unwrap
from pnnh._quiet import quiet

Example = torch.Tensor | Sequence[torch.Tensor]


@dataclass(frozen=True)
class Trace:
    """A functional graph (no operator writes to its operands) of a model in eval mode.

    graph: the torch.fx graph. inputs: names of its user inputs; every other placeholder or attribute is a constant.
    how: `export` (torch.export, valid for every input of this shape) or `make_fx` (the operators that ran on the
    example; a model whose Python branches on values may run others elsewhere). program: the ExportedProgram, if any.
    module: what runs the graph, if there is no program.
    """

    graph: fx.Graph
    inputs: frozenset[str]
    how: str
    program: torch.export.ExportedProgram | None = None
    module: fx.GraphModule | None = None

    def runnable(self) -> tuple[fx.GraphModule, Trace]:
        """(a module that runs the graph on the user inputs, the trace of that module's own graph)."""
        module = self.program.module(check_guards=False) if self.program is not None else self.module
        assert isinstance(module, fx.GraphModule), "a trace made by hand does not run"
        inputs = frozenset(node.name for node in module.graph.nodes if node.op == "placeholder")
        return module, Trace(module.graph, inputs, self.how)


def as_arguments(example: Example) -> tuple[torch.Tensor, ...]:
    """One tensor or a sequence of them -> the positional arguments of the model."""
    arguments = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    if not arguments or not all(isinstance(item, torch.Tensor) for item in arguments):
        raise UsageError(f"example must be a tensor or a sequence of tensors, not {type(example).__name__}")
    return arguments


def trace(model: nn.Module, example: Example, *, dynamic_batch: bool = False) -> Trace:
    """Trace `model` with every module of it in eval mode; the model is left as found.

    Args:
        dynamic_batch: mark the first dimension of every example tensor as free (its size must be 2 or more).

    Raises:
        UsageError: neither torch.export nor make_fx can follow the model.
    """
    arguments = as_arguments(example)
    inner = unwrap(model)
    name = type(inner).__name__
    with left_as_found(inner, training=False), _as_written():
        try:
            return _by_export(inner, arguments, dynamic_batch)
        except Exception as first:  # torch.export raises anything, from ValueError to its own internals
            if dynamic_batch:
                raise UsageError(f"torch.export cannot trace {name}: {_first_line(first)}") from first
            try:
                return _by_make_fx(inner, arguments)
            except UsageError:
                raise
            except Exception as second:
                raise UsageError(
                    f"cannot trace {name} on an example of shape {tuple(arguments[0].shape)}: "
                    f"{_first_line(second)} (torch.export: {_first_line(first)}); check that model(example) runs"
                ) from second


@contextlib.contextmanager
def _as_written() -> Iterator[None]:
    """No gradients, no compiled code, and no fused encoder layers, whose inner activations no graph shows."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with quiet(), torch.inference_mode(False), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _by_export(model: nn.Module, arguments: tuple, dynamic_batch: bool) -> Trace:
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in arguments) if dynamic_batch else None
    program = torch.export.export(model, arguments, dynamic_shapes=shapes).run_decompositions({})
    if _control_flow(program.graph):
        raise NotImplementedError("control flow with sub-graphs")
    return Trace(program.graph, frozenset(program.graph_signature.user_inputs), "export", program)


def _by_make_fx(model: nn.Module, arguments: tuple) -> Trace:
    from torch.fx.experimental.proxy_tensor import make_fx

    functional = torch.func.functionalize(lambda *values: list(tensors(model(*values))))
    reads = _Reads()
    with reads:
        tracer = make_fx(functional, record_stack_traces=True, _error_on_data_dependent_ops=False)
        module = tracer(*arguments)
    inside = _control_flow(module.graph)
    if inside:
        raise UsageError(
            f"{type(model).__name__} runs {', '.join(inside)}: the activations inside are in graphs of their own, "
            "which are not followed; write it with Python's if and for"
        )
    _refuse_other_routes(model, module, arguments, reads.names)
    inputs = frozenset(node.name for node in module.graph.nodes if node.op == "placeholder")
    return Trace(module.graph, inputs, "make_fx", module=module)


class _Reads(TorchFunctionMode):
    """Notes by which calls numbers leave torch. A number that only decides a branch (`if x.sum() > 0`) is none."""

    calls = ("item", "tolist", "numpy", "__array__", "__float__", "__int__", "__index__", "__complex__", "data_ptr")

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in self.calls:
            self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


def _refuse_other_routes(model: nn.Module, module: fx.GraphModule, arguments: tuple, reads: set[str]) -> None:
    """Raise UsageError if the graph is not what the model computes on inputs near the example: something left torch."""
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 0.3) if reads else (1e-3,):
        noise = [1 + size * torch.rand(item.shape, generator=generator) for item in arguments]
        near = [a * n.to(a) if a.is_floating_point() else a for a, n in zip(arguments, noise, strict=True)]
        random = torch.get_rng_state()
        wanted = list(tensors(model(*near)))
        torch.set_rng_state(random)
        for truth, graph, before in zip(wanted, module(*near), module(*arguments), strict=True):
            moved = (graph.double() - before.double()).abs().max()
            rounding = 1e3 * torch.finfo(truth.dtype).eps * truth.abs().max()
            if truth.shape != graph.shape or not (truth - graph).abs().max() <= 1e-2 * moved + rounding:
                called = f" ({', '.join(sorted(reads))})" if reads else ""
                raise UsageError(
                    f"{type(model).__name__} computes with numbers that left torch{called}, or branches on values "
                    "near the example's, so that no graph shows what it does; keep them tensors"
                )


def tensors(output: object) -> Iterator[torch.Tensor]:
    """Every floating point tensor in tuples, lists, dicts and objects with attributes (dataclasses of outputs)."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (dict, list, tuple)):
        for item in output.values() if isinstance(output, dict) else output:
            yield from tensors(item)
    elif hasattr(output, "__dict__"):
        yield from tensors(vars(output))


def _control_flow(graph: fx.Graph) -> list[str]:
    """Names of the operators of `graph` that run sub-graphs (cond, while_loop, scan, ...)."""
    inside = [node.target for node in graph.nodes if isinstance(node.target, torch._ops.HigherOrderOperator)]
    return list(dict.fromkeys(target.name() for target in inside))


def module_path(node: fx.Node) -> str:
    """Dotted path of the innermost module that ran `node` ('' at the top, or if the tracer did not say)."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return re.sub(r"^L\['self'\]\.?", "", path)


def source_line(node: fx.Node) -> str:
    """`timm/models/resnet.py:163 x += shortcut`, or '' if the tracer did not say."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in \S+\n\s*(.*)', node.meta.get("stack_trace") or "")
    if not frames:
        return ""
    file, line, code = frames[-1]
    _, inside, library = file.rpartition("site-packages/")
    return f"{library if inside else Path(file).name}:{line} {code.strip()}".strip()


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:160] if text else type(error).__name__
