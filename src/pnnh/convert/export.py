"""`export`: a network as one .onnx or .pt2 file that is checked where it will run, with its metadata beside it."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from pnnh._errors import RunError, UsageError
from pnnh.certify.certificate import certify_trace
from pnnh.certify.trace import Example, Trace, as_arguments, trace
from pnnh.certify.values import values_of
from pnnh.convert.equivalence import Agreement, agreement
from pnnh.convert.fuse import fold_all, fuse
from pnnh.layers.fold import Form

TOLERANCE = 1e-5
BATCHES = (1, 3, 8)
NOT_IN_A_CHAIN = ("Add", "Sum", "BatchNormalization", "Concat")


@dataclass(frozen=True)
class Exported:
    """A written file. op_types: how many of each operator (.onnx). worst: largest disagreement over the batch sizes.

    chain: the network is a bare chain, and the file was asserted to have no Add, BatchNormalization or Concat.
    """

    path: Path
    sha256: str
    bytes: int
    opset: int | None
    op_types: dict[str, int]
    plain: bool
    chain: bool
    worst: Agreement

    def rows(self) -> list[dict]:
        ops = " ".join(f"{name}:{count}" for name, count in sorted(self.op_types.items()))
        error = self.worst.relative_error
        row = {"file": self.path.name, "bytes": self.bytes, "plain": self.plain, "chain": self.chain}
        return [{**row, "relative_error": error, "argmax": self.worst.argmax, "operators": ops}]


def export(
    model: nn.Module,
    example: Example,
    path: str | Path,
    *,
    form: Form = "dense",
    labels: Sequence[str] = (),
    preprocessing: dict | None = None,
) -> Exported:
    """Fuse `model` if there is something to fuse, write it to `path`, run the file and compare.

    Args:
        model: in eval mode.
        example: one input tensor, batch of 2 or more; the first dimension is free in the file.
        form: of what is fused, as in `fuse`: `dense` (a bare chain) or `structured` (fewer MACs, an Add per write).
        path: ends in .onnx or .pt2; `<path>.json` gets the metadata (opset, sha256, preprocessing, labels, agreement).
        labels: class names, in the order of the outputs.
        preprocessing: what to do to an image; default: the model's own timm configuration.

    Raises:
        UsageError: unknown suffix, train mode. RunError: the file disagrees, or has operators a chain must not have.
    """
    path, arguments = Path(path), as_arguments(example)
    if path.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"{path.name} ends in {path.suffix or 'nothing'}; give a file that ends in .onnx or .pt2")
    if len(arguments) != 1 or len(arguments[0]) < 2:
        raise UsageError("export takes one example tensor with a batch of 2 or more, so that the batch size stays free")
    net = contiguous(fused_if_possible(model, arguments[0], form))
    traced = trace(net, arguments, dynamic_batch=True)
    plain, chain = certify_trace(traced).plain, is_chain(traced)
    path.parent.mkdir(parents=True, exist_ok=True)
    opset, op_types = _write_onnx(net, arguments[0], path) if path.suffix == ".onnx" else (None, {})
    if path.suffix == ".pt2":
        torch.export.save(traced.program, path)
    unwanted = [name for name in NOT_IN_A_CHAIN if chain and name in op_types]
    if unwanted:
        raise RunError(
            f"{path.name} has {', '.join(unwanted)} although the network is a bare chain; the exporter broke it"
        )
    worst = check(net, path, arguments[0])
    data = path.read_bytes()
    done = Exported(path, hashlib.sha256(data).hexdigest(), len(data), opset, op_types, plain, chain, worst)
    write_metadata(done, model, arguments[0], labels, preprocessing)
    return done


def fused_if_possible(model: nn.Module, example: torch.Tensor, form: Form = "dense") -> nn.Module:
    """`fuse(model)`, or the model itself where nothing folds; train mode is refused either way."""
    if any(module.training for module in model.modules()):
        raise UsageError(f"{type(model).__name__} is in train mode; call .eval() first")
    _, folded = fold_all(copy.deepcopy(model).double())
    return fuse(model, example, form=form) if folded else model


def contiguous(net: nn.Module) -> nn.Module:
    """A copy with ordinary strides: from channels_last weights (usual after training) the exporter writes gathers."""
    return copy.deepcopy(net).to(memory_format=torch.contiguous_format)


def is_chain(traced: Trace) -> bool:
    """No operator of the graph has two data-dependent operands: one thing after the other."""
    return not any(value.kind in ("join", "gate", "affine_gate") for value in values_of(traced).values())


def check(net: nn.Module, path: Path, example: torch.Tensor) -> Agreement:
    """Run the file at batch 1, 3 and 8 and compare with `net`; the largest disagreement.

    Raises:
        RunError: relative error above 1e-5 (float32).
    """
    run = onnx_runner(path) if path.suffix == ".onnx" else torch.export.load(path).module()
    generator, found = torch.Generator().manual_seed(0), []
    for batch in BATCHES:
        images = torch.randn(batch, *example.shape[1:], generator=generator).to(example.dtype)
        with torch.no_grad():
            found.append(agreement(net(images), run(images)))
    worst = max(found, key=lambda item: item.relative_error)
    if not worst.relative_error <= TOLERANCE:
        raise RunError(f"{path.name} disagrees: relative error {worst.relative_error:.1e} (limit {TOLERANCE:.0e})")
    return worst


def _write_onnx(net: nn.Module, example: torch.Tensor, path: Path) -> tuple[int, dict[str, int]]:
    """Write the file; returns its opset and operator counts."""
    onnx = required("onnx", "onnxscript")[0]
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                net,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["input"],
                output_names=["output"],
                external_data=False,
                verbose=False,
            )
            program.save(str(path))
    finally:
        logging.disable(level)
    graph = onnx.load(str(path))
    return graph.opset_import[0].version, dict(Counter(node.op_type for node in graph.graph.node))


def onnx_runner(path: Path):
    """A function from images to outputs that runs the .onnx file on the CPU."""
    session = required("onnxruntime")[0].InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def required(*names: str) -> list:
    """Import the packages of the `export` extra, or say how to get them."""
    import importlib

    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise UsageError(f"{error.name or names[0]} is not installed; pip install 'pnnh[export]'") from error


def write_metadata(done: Exported, model: nn.Module, example, labels, preprocessing) -> Path:
    """`<path>.json`: what a user of the file must know."""
    from pnnh import __version__

    config = getattr(model, "pretrained_cfg", None) or {}
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct")
    facts = asdict(done) | {
        "path": done.path.name,
        "input": {"name": "input", "shape": ["batch", *example.shape[1:]], "dtype": str(example.dtype)},
        "preprocessing": preprocessing or {key: config[key] for key in keys if key in config},
        "labels": list(labels),
        "versions": {"pnnh": __version__, "torch": torch.__version__},
    }
    target = done.path.with_name(done.path.name + ".json")
    target.write_text(json.dumps(facts, indent=1) + "\n")
    return target
