"""What the trained nets of a comparison lose and gain when deployed: results/deploy-DATA-PIXELS-DEPTH.json.

    python results/scripts/deploy.py --runs runs/compare --depth 56 [--only nets | --only latency] [--rounds 40]

Every net of that depth in the output folder of `pnnh compare` (first seed), a PNNH net in both fused forms.

nets     fusing on all test images (argmax agreement), parameters and MACs, float32 and int8 accuracy of the ONNX files,
         signal-to-quantisation-noise ratio per layer, planned and measured peak memory at batch 1 and 32
latency  of the ONNX files in onnxruntime, one thread, batch 1 and 32: every round runs every file once, the order turns
         from round to round; ratios to the residual net are medians over rounds with bootstrap intervals, and a second
         session of the residual file is the control. Give it a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import torch
from _evidence import evidence, show_in

from pnnh._errors import UsageError
from pnnh.bench.clock import ratio_of
from pnnh.certify import certify
from pnnh.cli._deploy import _accuracy
from pnnh.cli._model import load_model
from pnnh.convert import export, fuse, plan_memory, quantise
from pnnh.convert.export import onnx_runner
from pnnh.train import load_data
from pnnh.train.evaluate import Normalise

OUT = Path(__file__).parents[1]
BATCHES = (1, 32)


def nets(runs: Path, depth: int) -> Iterator[tuple[str, str, Path]]:
    """(name, form, checkpoint folder): the first seed of every method at this depth."""
    rows = [json.loads(file.read_text()) for file in sorted((runs / "rows").glob("*.json"))]
    rows = sorted((row for row in rows if row["depth"] == depth), key=lambda row: (row["seed"], row["method"]))
    seen: set[str] = set()
    for row in rows:
        if row["method"] not in seen:
            seen.add(row["method"])
            forms = ("dense", "structured") if row["method"].startswith("pnnh") else ("dense",)
            for form in forms:
                name = f"{row['method']}, {form}" if len(forms) > 1 else row["method"]
                yield name, form, runs / row["model"]


def examine(name: str, form: str, folder: Path, data, normalise, file: Path) -> dict:
    model, shape = load_model(str(folder))
    example = normalise(data.test.images[:8])
    net = fuse(model, example, form=form)
    row = {"net": name, "model": type(model).__name__, "form": form, "plain": certify(model, example[:2]).plain}
    row |= {key: value for key, value in vars(net.fusion).items() if key not in ("folded", "form")}
    with torch.no_grad():
        parts = [normalise(part) for part in data.test.images.split(500)]
        same = sum(int((model(part).argmax(1) == net(part).argmax(1)).sum()) for part in parts)
    row |= {"test_images": len(data.test), "argmax_agreement_fused": same / len(data.test)}
    done = export(model, example, file, form=form)
    row |= {"operators": done.op_types, "chain": done.chain, "onnxruntime_error": done.worst.relative_error}
    chosen, _ = data.train.stratified(min(512, len(data.train)), seed=0)
    small = quantise(file, int8(file), normalise(data.train.images[chosen]))
    before, after = (_accuracy(onnx_runner(path), normalise, data.test) for path in (file, small.path))
    row |= {"accuracy_float32": before, "accuracy_int8": after, "int8_drop_points": 100 * (before - after)}
    row |= {"bytes_float32": small.bytes_before, "bytes_int8": small.bytes_after}
    row |= {"worst_layer_sqnr_db": small.worst_db, "layers_sqnr_db": [round(value, 2) for _, value in small.layers]}
    for batch in BATCHES:
        plan = plan_memory(net, torch.zeros(batch, *shape))
        row[f"planned_peak_bytes_batch_{batch}"] = plan.peak_bytes
        row[f"measured_peak_bytes_batch_{batch}"] = resident_bytes(file, batch, shape)
    return row | {"planned_peak_buffers": plan.peak_buffers}


def int8(file: Path) -> Path:
    return file.with_suffix(".int8.onnx")


RESIDENT = """
import ctypes, sys, numpy, onnxruntime
file, *shape = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.enable_cpu_mem_arena = 1, False
session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
images = numpy.zeros([int(side) for side in shape], numpy.float32)
session.run(None, {"input": images[:1]})
def kilobytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
ctypes.CDLL("libc.so.6").malloc_trim(0)
before = kilobytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
session.run(None, {"input": images})
print(1024 * (kilobytes("VmHWM") - before))
"""


def resident_bytes(file: Path, batch: int, shape) -> int:
    """How far one run raises the resident memory of a fresh process (Linux, glibc), without onnxruntime's arena."""
    command = [sys.executable, "-c", RESIDENT, str(file), str(batch), *map(str, shape)]
    pages = os.environ | {"MALLOC_MMAP_THRESHOLD_": "4096"}  # every buffer its own pages, given back when freed
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=pages).stdout)


def latencies(files: dict[str, Path], shape, rounds: int) -> list[dict]:
    """One row per file and batch; the first file is the reference, `control` the same file again."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    first, reference = next(iter(files.items()))
    files = files | {f"{first} (control)": reference}
    sessions = {name: onnxruntime.InferenceSession(str(path), options) for name, path in files.items()}
    rows = []
    for batch in BATCHES:
        images = torch.randn(batch, *shape).numpy()
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for turn in range(rounds + 3):
            for name in list(sessions)[:: 1 if turn % 2 else -1]:
                start = time.perf_counter()
                sessions[name].run(None, {"input": images})
                times[name].append(time.perf_counter() - start)
        for name, found in times.items():
            pair = ratio_of(list(zip(times[first][3:], found[3:], strict=True)))
            row = {"file": name, "batch": batch, "ratio": pair.ratio, "low": pair.low, "high": pair.high}
            rows.append(row | {"median_ms": 1000 * pair.median_b, "min_ms": 1000 * min(found), "rounds": rounds})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="output folder of `pnnh compare`")
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--only", choices=["nets", "latency"])
    parser.add_argument("--rounds", type=int, default=40)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    cells = list(nets(chosen.runs, chosen.depth))
    if not cells:
        raise SystemExit(f"{chosen.runs}/rows has no net of depth {chosen.depth}")
    settings = json.loads((chosen.runs / "results.json").read_text())["settings"]
    data = load_data(settings["data"], image_size=settings["image_size"])
    shape = (data.channels, data.image_size, data.image_size)
    folder = chosen.runs / "deploy"
    folder.mkdir(exist_ok=True)
    files = {name: folder / f"{name.replace(', ', '-')}-{chosen.depth}.onnx" for name, _, _ in cells}
    name = Path(settings["data"].rpartition(":")[2]).name
    target = OUT / f"deploy-{name}-{data.image_size}px-{chosen.depth}.json"
    record = json.loads(target.read_text()) if target.exists() else {}
    record |= evidence() | {"data": data.to_dict(), "depth": chosen.depth}
    record["command"] = f"python results/scripts/deploy.py --runs RUNS --depth {chosen.depth}"
    record["versions"]["onnxruntime"] = onnxruntime.__version__
    if chosen.only != "latency":
        record["nets"] = []
        for (label, form, place), file in zip(cells, files.values(), strict=True):
            try:
                row = examine(label, form, place, data, Normalise(data, "cpu"), file)
            except UsageError as refusal:  # nothing to fold, or not by one linear map
                row = {"net": label, "refused": str(refusal)}
            record["nets"].append(row)
            print(json.dumps(row), flush=True)
    if chosen.only != "nets":
        ordered = sorted((item for item in files.items() if item[1].exists()), key=lambda item: item[0] != "residual")
        record["latency"] = latencies(dict(ordered) | {f"{n}, int8": int8(f) for n, f in ordered}, shape, chosen.rounds)
    target.write_text(json.dumps(record, indent=1) + "\n")
    show_in("deploying-a-plain-net.md", "deploy", table(record))


def table(record: dict) -> str:
    data = f"{record['data']['name']}, {record['data']['image_size']} pixels"
    lines = [f"Trained nets of depth {record['depth']}, {data}. Regenerate: `{record['command']}`."]
    if "nets" in record:
        lines += ["", "| net | parameters | MMAC | test % | int8 drop, points | worst layer, dB | argmax kept"]
        lines[-1] += " | planned peak at 1 / 32, kB | measured peak at 32, kB |"
        lines += ["|---|---|---|---|---|---|---|---|---|"]
    for row in record.get("nets", []):
        if "refused" in row:
            lines.append(f"| {row['net']} | not fused: {row['refused']} | | | | | | | |")
            continue
        cells = [row["net"], f"{row['parameters_after'] / 1e6:.2f}M", f"{row['macs_after'] / 1e6:.1f}"]
        cells += [f"{100 * row['accuracy_float32']:.2f}", f"{row['int8_drop_points']:.2f}"]
        cells += [f"{row['worst_layer_sqnr_db']:.1f}", f"{100 * row['argmax_agreement_fused']:.2f} %"]
        cells += [" / ".join(f"{row[f'planned_peak_bytes_batch_{batch}'] / 1000:.0f}" for batch in BATCHES)]
        cells += [f"{row['measured_peak_bytes_batch_32'] / 1000:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    if "latency" in record:
        lines += ["", "Latency in onnxruntime, one thread, as a ratio to the residual net (95 % interval):", ""]
        lines += ["| file | batch 1 | batch 32 |", "|---|---|---|"]
        found = {(row["file"], row["batch"]): row for row in record["latency"]}
        for name in dict.fromkeys(row["file"] for row in record["latency"]):
            pair = [found[name, batch] for batch in BATCHES]
            cells = [
                f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f}), {row['median_ms']:.2f} ms" for row in pair
            ]
            lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
