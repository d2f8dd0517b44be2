"""Other runtimes, each behind its own optional package: OpenVINO and ExecuTorch."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import nn

from pnnh._errors import RunError, UsageError
from pnnh._quiet import quiet
from pnnh.convert.equivalence import Agreement, agreement

TOLERANCE = 1e-4


def to_openvino(source: str | Path, target: str | Path, net: nn.Module, example: torch.Tensor) -> Agreement:
    """Convert the .onnx file `source` to OpenVINO's `target` (.xml, weights in .bin beside it) and compare with `net`.

    Weights stay float32, and the comparison asks for float32 arithmetic: on some CPUs OpenVINO picks bfloat16.
    """
    openvino = _package("openvino", "openvino")
    core = openvino.Core()
    openvino.save_model(core.read_model(str(source)), str(target), compress_to_fp16=False)
    compiled = core.compile_model(str(target), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        found = agreement(net(example), torch.from_numpy(compiled(example.numpy())[0]))
    return _checked(found, target)


def to_executorch(target: str | Path, net: nn.Module, example: torch.Tensor) -> Agreement:
    """Write `net` as an ExecuTorch program `target` (.pte, on XNNPACK) for inputs of the shape of `example`."""
    exir = _package("executorch.exir", "executorch")
    xnnpack = _package("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    runtime = _package("executorch.runtime", "executorch")
    with quiet():
        exported = torch.export.export(net, (example,))
        lowered = exir.to_edge_transform_and_lower(exported, partitioner=[xnnpack.XnnpackPartitioner()])
        Path(target).write_bytes(lowered.to_executorch().buffer)
    method = runtime.Runtime.get().load_program(str(target)).load_method("forward")
    with torch.no_grad():
        found = agreement(net(example), method.execute([example])[0])
    return _checked(found, target)


def _checked(found: Agreement, target: str | Path) -> Agreement:
    if not found.relative_error <= TOLERANCE:
        raise RunError(
            f"{Path(target).name} disagrees: relative error {found.relative_error:.1e} (limit {TOLERANCE:.0e})"
        )
    return found


def _package(module: str, extra: str):
    try:
        with quiet():
            return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{extra} is not installed; pip install 'pnnh[{extra}]'") from error
