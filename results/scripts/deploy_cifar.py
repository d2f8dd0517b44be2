"""What trained nets lose and gain when they are deployed: results/deploy_cifar.json.

    python results/scripts/deploy_cifar.py CHECKPOINT ... [--data cifar10] [--rounds 20]

For each checkpoint folder: fusing on all test images (argmax agreement), float32 and int8 accuracy of the ONNX files,
the worst signal-to-quantisation-noise ratio, planned peak activation memory, and the latency of the fused ONNX file in
onnxruntime (one thread, batch 1 and 32, files interleaved round by round; median of the rounds).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import onnxruntime
import torch

from pnnh._errors import UsageError
from pnnh.certify import certify
from pnnh.cli._deploy import _accuracy
from pnnh.cli._model import load_model
from pnnh.convert import export, fuse, plan_memory, quantise
from pnnh.convert.export import onnx_runner
from pnnh.train import load_data
from pnnh.train.evaluate import Normalise

OUT = Path(__file__).parents[1]


def examine(spec: str, data, normalise, folder: Path) -> dict:
    model, shape = load_model(spec)
    example = normalise(data.test.images[:8])
    row = {"checkpoint": Path(spec).name, "model": type(model).__name__, "plain": certify(model, example[:2]).plain}
    try:
        net = fuse(model, example)
        row["fuse_relative_error_float64"] = net.fusion.relative_error
        row["fused_parameters"] = net.fusion.parameters_after
    except UsageError:
        net = model
    parts = [normalise(part) for part in data.test.images.split(500)]
    with torch.no_grad():
        same = sum(int((model(part).argmax(1) == net(part).argmax(1)).sum()) for part in parts)
    row |= {"test_images": len(data.test), "argmax_agreement_fused": same / len(data.test)}
    name = Path(spec).name
    done = export(model, example, folder / f"{name}.onnx")
    row |= {"operators": done.op_types, "onnxruntime_relative_error": done.worst.relative_error}
    chosen, _ = data.train.stratified(512, seed=0)
    small = quantise(done.path, folder / f"{name}.int8.onnx", normalise(data.train.images[chosen]))
    accuracies = [_accuracy(onnx_runner(path), normalise, data.test) for path in (done.path, small.path)]
    row |= {"accuracy_float32": accuracies[0], "accuracy_int8": accuracies[1]}
    row["int8_drop_points"] = 100 * (accuracies[0] - accuracies[1])
    row |= {"worst_layer_sqnr_db": small.worst_db, "layers_sqnr_db": [value for _, value in small.layers]}
    plan = plan_memory(net, torch.zeros(1, *shape))
    return row | {"peak_activation_bytes": plan.peak_bytes, "peak_buffers": plan.peak_buffers}


def latencies(files: dict[str, Path], shape, rounds: int) -> list[dict]:
    """Interleaved: in each round every file runs once; the order turns from round to round."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = {name: onnxruntime.InferenceSession(str(path), options) for name, path in files.items()}
    rows = []
    for batch in (1, 32):
        images = torch.randn(batch, *shape).numpy()
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for turn in range(rounds + 2):
            order = list(sessions) if turn % 2 == 0 else list(sessions)[::-1]
            for name in order:
                start = time.perf_counter()
                sessions[name].run(None, {"input": images})
                times[name].append(1000 * (time.perf_counter() - start))
        for name, found in times.items():
            kept = sorted(found[2:])
            quartiles = statistics.quantiles(kept, n=4)
            rows.append(
                {"file": name, "batch": batch, "median_ms": quartiles[1], "quartiles_ms": quartiles[::2], "n": rounds}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    first_shape = load_model(arguments.checkpoints[0])[1]
    data = load_data(arguments.data, image_size=first_shape[-1], channels=first_shape[0])
    normalise = Normalise(data, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for spec in arguments.checkpoints:
            rows.append(examine(spec, data, normalise, Path(folder)))
            print(json.dumps(rows[-1]), flush=True)
        files = {path.stem: path for path in sorted(Path(folder).glob("*.onnx"))}
        timed = latencies(files, first_shape, arguments.rounds)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=OUT)
    record = {
        "command": "python results/scripts/deploy_cifar.py CHECKPOINT ... --data " + arguments.data,
        "date": datetime.now(UTC).date().isoformat(),
        "code": commit.stdout.strip(),
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "device": "cpu, 1 thread",
        "data": data.to_dict(),
        "rows": rows,
        "latency": timed,
    }
    (OUT / "deploy_cifar.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
