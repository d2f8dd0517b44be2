"""`export`: a network as one .onnx or .pt2 file that is checked where it will run, with its metadata beside it."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pnnh._errors import RunError, UsageError
from pnnh._modules import copied, eval_mode, left_as_found, paths, refuse_lazy, unwrap
from pnnh._quiet import quiet
from pnnh.certify.certificate import certify_trace
from pnnh.certify.trace import Example, Trace, as_arguments, trace
from pnnh.certify.values import values_of
from pnnh.convert.equivalence import LIMITS, Agreement, agreement, first_line, joined, outputs_of
from pnnh.convert.fold import Form
from pnnh.convert.fuse import fuse

BATCHES = (1, 3, 8)
NOT_IN_A_CHAIN = ("Add", "Sum", "BatchNormalization", "Concat")


@dataclass(frozen=True, repr=False)
class Exported:
    """A written file. op_types: how many of each operator (.onnx). worst: largest disagreement over the batch sizes.

    fused: what `fuse` did, or why the net was written as it is. plain: of the net. chain: the net is a bare chain, and
    the file was asserted to have no Add, BatchNormalization or Concat.
    """

    path: Path
    sha256: str
    bytes: int
    opset: int | None
    op_types: dict[str, int]
    fused: str
    plain: bool
    chain: bool
    worst: Agreement

    def rows(self) -> list[dict]:
        ops = " ".join(f"{name}:{count}" for name, count in sorted(self.op_types.items()))
        row = {"file": self.path.name, "bytes": self.bytes, "plain": self.plain, "chain": self.chain}
        error = {"relative_error": self.worst.relative_error, "argmax": self.worst.argmax}
        return [{**row, **error, "operators": ops, "fused": self.fused}]

    def __repr__(self) -> str:
        return f"Exported({self.path.name}, {self.bytes} bytes, {self.fused}, error {self.worst.relative_error:.1e})"


def export(
    model: nn.Module,
    example: Example,
    path: str | Path,
    *,
    form: Form = "structured",
    labels: Sequence[str] = (),
    preprocessing: dict | None = None,
) -> Exported:
    """Fuse `model` if there is something to fuse, write it to `path`, run the file and compare all its outputs.

    Args:
        model: in eval mode; float64, float32 or float16, whatever the format and its runtime take.
        example: one input tensor, batch of 2 or more; the first dimension is free in the file.
        form: of what is fused, as in `fuse`: `structured` (fewer MACs, an Add per write) or `chain` (a bare chain).
        path: ends in .onnx or .pt2; `<path>.json` gets the metadata (opset, sha256, preprocessing, labels, agreement).
        labels: class names, in the order of the outputs.
        preprocessing: what to do to an image; default: the model's own timm configuration.

    Raises:
        UsageError: unknown suffix, train mode, a net that cannot be traced or whose precision the runtime does not
            have. RunError: the file disagrees by more than the precision explains, or has operators a chain must not.
    """
    path, arguments = Path(path), tuple(item.contiguous() for item in as_arguments(example))
    if path.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"{path.name} ends in {path.suffix or 'nothing'}; give a file that ends in .onnx or .pt2")
    if len(arguments) != 1 or len(arguments[0]) < 2:
        raise UsageError("export takes one example tensor with a batch of 2 or more, so that the batch size stays free")
    net, fused = fused_if_possible(model, arguments[0], form)
    with left_as_found(net):
        outputs = _called(net, arguments[0])
        traced = trace(net, arguments, dynamic_batch=True)
        plain, chain = certify_trace(traced).plain, is_chain(traced)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".onnx":
            opset, op_types = _write_onnx(net, arguments[0], list(outputs), path)
        else:
            opset, op_types = None, {}
            torch.export.save(traced.program, path)
        unwanted = [name for name in NOT_IN_A_CHAIN if chain and name in op_types]
        if unwanted:
            raise RunError(
                f"{path.name} has {', '.join(unwanted)} although the network is a bare chain; the exporter broke it"
            )
        worst = check(net, path, arguments[0])
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    done = Exported(path, sha256, len(data), opset, op_types, fused, plain, chain, worst)
    write_metadata(done, model, arguments[0], labels, preprocessing)
    return done


def fused_if_possible(model: nn.Module, example: Tensor, form: Form = "structured") -> tuple[nn.Module, str]:
    """A fused copy, or a copy as it is, with ordinary strides; and what was done, or why not.

    From channels_last weights (usual after training) the ONNX exporter would write gathers.
    """
    source = unwrap(model)
    refuse_lazy(source)
    if any(module.training for module in paths(source)):
        raise UsageError(f"{type(source).__name__} is in train mode; call .eval() first")
    try:
        net = fuse(source, example, form=form)
        done = f"fused ({form}): {len(net.fusion.folded)} parts"
    except (UsageError, RunError) as reason:
        net, done = copied(source), f"not fused: {reason}"
    return net.to(memory_format=torch.contiguous_format), done


def is_chain(traced: Trace) -> bool:
    """No operator of the graph has two data-dependent operands: one thing after the other."""
    return not any(value.kind in ("join", "gate", "affine_gate") for value in values_of(traced).values())


def check(net: nn.Module, path: Path, example: Tensor) -> Agreement:
    """Run the file at batch 1, 3 and 8 and compare all outputs with those of `net`; the largest disagreement.

    Raises:
        RunError: relative error above the limit of the precision, 1e-5 in float32.
    """
    run = _reader(path, example.dtype)
    generator, results = torch.Generator().manual_seed(0), []
    for batch in BATCHES:
        if example.is_floating_point():
            images = torch.randn(batch, *example.shape[1:], generator=generator).to(example.dtype)
        else:
            images = example[:1].expand(batch, *example.shape[1:]).contiguous()
        expected, read = outputs_of(_called(net, images)), run(images)
        results.append(agreement(list(expected.values()), list(outputs_of(read).values())))
    worst, limit = joined(results), LIMITS.get(example.dtype, LIMITS[torch.float32])
    if not worst.relative_error <= limit:
        raise RunError(f"{path.name} disagrees: relative error {worst.relative_error:.1e} (limit {limit:.0e})")
    return worst


def _called(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """All outputs of `net` on a batch, by name."""
    try:
        with torch.no_grad():
            return outputs_of(net(images))
    except UsageError:
        raise
    except Exception as error:  # a user's model may raise anything
        dtype = _name(images.dtype)
        raise UsageError(
            f"{type(net).__name__} does not run on {dtype} images {tuple(images.shape)}: {first_line(error)}"
        ) from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _reader(path: Path, dtype: torch.dtype) -> Callable[[Tensor], object]:
    """A function from images to outputs that runs the file."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    try:
        return onnx_runner(path)
    except UsageError:
        raise
    except Exception as error:  # onnxruntime raises classes of its own
        raise UsageError(
            f"onnxruntime cannot run this net in {_name(dtype)}: {first_line(error)}; export model.float(), or "
            "write a .pt2 file"
        ) from error


def _write_onnx(net: nn.Module, example: Tensor, names: list[str], path: Path) -> tuple[int, dict[str, int]]:
    """Write the file; returns its opset and operator counts."""
    onnx = required("onnx", "onnxscript")[0]
    try:
        with quiet(), eval_mode(net):
            program = torch.onnx.export(
                net,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["input"],
                output_names=names,
                external_data=False,
                verbose=False,
            )
            program.save(str(path))
    except Exception as error:  # torch.onnx.export raises anything
        dtype = _name(example.dtype)
        raise UsageError(
            f"{type(net).__name__} ({dtype}) has no ONNX form: {first_line(error)}; write a .pt2 file instead"
        ) from error
    graph = onnx.load(str(path))
    return graph.opset_import[0].version, dict(Counter(node.op_type for node in graph.graph.node))


def onnx_runner(path: str | Path) -> Callable[[Tensor], Tensor | tuple[Tensor, ...]]:
    """A function from images to the output (or the outputs) that runs the .onnx file on the CPU."""
    session = required("onnxruntime")[0].InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = tuple(torch.from_numpy(item) for item in session.run(None, {name: images.numpy()}))
        return outputs[0] if len(outputs) == 1 else outputs

    return run


def required(*names: str) -> list:
    """Import the packages of the `export` extra, or say how to get them."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise UsageError(f"{error.name or names[0]} is not installed; pip install 'pnnh[export]'") from error


def write_metadata(done: Exported, model: nn.Module, example: Tensor, labels, preprocessing) -> Path:
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
