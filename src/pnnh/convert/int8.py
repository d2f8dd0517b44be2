"""int8 by onnxruntime's static quantization: calibrated on real inputs, with the damage per layer and in accuracy."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from pnnh._errors import UsageError
from pnnh._quiet import quiet
from pnnh.convert.write import onnx_runner, required

Batches = Iterable[tuple[Tensor, Tensor]]  # (preprocessed images [B, ...], labels [B])


@dataclass(frozen=True, repr=False)
class Quantized:
    """An int8 file. layers: (name of the layer's output, signal-to-quantization-noise ratio in dB), in order.

    accuracy_before, accuracy_after: share of right answers of the float32 and the int8 file; None without test images.
    """

    path: Path
    bytes_before: int
    bytes_after: int
    layers: tuple[tuple[str, float], ...]
    accuracy_before: float | None = None
    accuracy_after: float | None = None

    @property
    def worst_db(self) -> float:
        return min((value for _, value in self.layers), default=math.nan)

    def rows(self) -> list[dict]:
        return [{"layer": name, "sqnr_db": value} for name, value in self.layers]

    def files(self) -> list[dict]:
        """One row per file: its size and accuracy."""
        pairs = (("float32", self.bytes_before, self.accuracy_before), ("int8", self.bytes_after, self.accuracy_after))
        return [{"file": name, "bytes": size, "test_accuracy": accuracy} for name, size, accuracy in pairs]

    def __repr__(self) -> str:
        sizes = f"{self.bytes_before} -> {self.bytes_after} bytes"
        return f"Quantized({self.path.name}, {sizes}, worst layer {self.worst_db:.1f} dB)"


def quantize(
    source: str | Path, target: str | Path, images: Tensor, *, test: Batches | None = None, batch_size: int = 32
) -> Quantized:
    """Write an int8 (QDQ, weights per channel) twin of the .onnx file `source` to `target`.

    Args:
        images: real, preprocessed inputs [N, ...] of the network, N >= 16: they set the ranges of the activations.
        test: labelled, preprocessed batches on which both files are run.

    Raises:
        UsageError: too few images.
    """
    if len(images) < 16:
        raise UsageError(
            f"{len(images)} calibration images are too few; give 16 or more real ones (a few hundred is good)"
        )
    required("onnx", "onnxruntime")
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, target = Path(source), Path(target)
    batches = [part.numpy().astype(np.float32) for part in images.split(batch_size)]
    with quiet(), tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        choices = {"quant_format": QuantFormat.QDQ, "calibrate_method": CalibrationMethod.MinMax}
        kinds = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "per_channel": True}
        quantize_static(str(prepared), str(target), _Reader(batches), **choices, **kinds)
        layers = _layer_sqnr(prepared, target, batches[:4])
    sizes = source.stat().st_size, target.stat().st_size
    return Quantized(target, *sizes, layers, *(_accuracies((source, target), test) if test is not None else ()))


def _accuracies(files: tuple[Path, ...], test: Batches) -> list[float]:
    runs, right, count = [onnx_runner(file) for file in files], [0] * len(files), 0
    for images, labels in test:
        count += len(labels)
        for index, run in enumerate(runs):
            right[index] += right_answers(run, images, labels)
    return [number / count for number in right]


def right_answers(run: Callable[[Tensor], object], images: Tensor, labels: Tensor) -> int:
    """How many images [B, ...] get the largest output at their label [B]; of several outputs the first counts."""
    output = run(images)
    output = output[0] if isinstance(output, tuple) else output
    return int((output.argmax(1) == labels).sum())


class _Reader:
    """onnxruntime's calibration interface over a list of batches."""

    def __init__(self, batches: Iterable[np.ndarray], name: str = "input"):
        self.waiting = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict | None:
        return next(self.waiting, None)


def _layer_sqnr(before: Path, after: Path, batches: list[np.ndarray]) -> tuple[tuple[str, float], ...]:
    """SQNR of every Conv and Gemm output (of its Relu, if one follows), as the next layer reads it."""
    onnx = required("onnx")[0]
    graph = onnx.load(str(before)).graph
    following = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "Relu"}
    wanted = [following.get(node.output[0], node.output[0]) for node in graph.node if node.op_type in ("Conv", "Gemm")]
    read = _dequantized(onnx.load(str(after)).graph)
    first, second = (
        _outputs(before, wanted, batches),
        _outputs(after, [read.get(name, name) for name in wanted], batches),
    )
    return tuple((name, sqnr(first[name], second[read.get(name, name)])) for name in wanted)


def _dequantized(graph) -> dict[str, str]:
    """Value -> the value after its QuantizeLinear and DequantizeLinear (where a Relu may have become the clipping)."""
    quantized = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    return {
        quantized[node.input[0]]: node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantized
    }


def sqnr(signal: np.ndarray, noisy: np.ndarray) -> float:
    """Signal-to-quantization-noise ratio in dB; infinite where nothing changed."""
    noise = float(np.square(signal - noisy, dtype=np.float64).sum())
    return 10 * math.log10(float(np.square(signal, dtype=np.float64).sum()) / noise) if noise else math.inf


def _outputs(path: Path, names: list[str], batches: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Values of inner tensors, by making them outputs of a copy of the model."""
    onnx, runtime = required("onnx", "onnxruntime")
    model = onnx.load(str(path))
    made = {output for node in model.graph.node for output in node.output}
    present = {output.name for output in model.graph.output}
    names = [name for name in names if name in made]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    runs = [session.run(names, {session.get_inputs()[0].name: batch}) for batch in batches]
    return {name: np.concatenate([run[index] for run in runs]) for index, name in enumerate(names)}
