"""Faults on purpose: SIGKILL and SIGTERM at random instants, damaged files, cut points. Writes results/faults.json.

    python results/scripts/faults.py [--kills 100] [--terms 10] [--corruptions 500] [--cuts 25]

Each training run is a forked child on digits with dropout, AdamW and an average of the weights; what it leaves is
compared bit by bit with an uninterrupted run. About three minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pnnh import checkpoint, provenance
from pnnh._errors import RunError
from pnnh._files import write_bytes
from pnnh.train import AdamW, Recipe, StopOnSignal, Stopped, load_data, train

RECIPE = Recipe(8, 50, AdamW(1e-2), ema_decay=0.9)  # 32 steps
HERE = Path(__file__).resolve().parents[1]


def net(width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1),
        nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(16 * width, 10),
    )  # fmt: skip


def trained(data, out: Path, stop=lambda: False) -> None:
    for _ in train(net(), data, RECIPE, device="cpu", out=out, stop=stop):
        pass


def forked(work) -> int:
    """Run `work` in a child; returns its process id. The child's exit code is 0 done, 75 stopped, 3 anything else."""
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        work()
        code = 0
    except Stopped:
        code = 75
    finally:
        os._exit(code)


def waited(child: int, seconds: float | None = None) -> int | None:
    """The child's status, or None if it still runs after `seconds`."""
    if seconds is None:
        return os.waitpid(child, 0)[1]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.003)
    return None


def differs(folder: Path, reference: dict) -> bool:
    found = checkpoint.load(folder).tensors
    return any(not torch.equal(found[name], value) for name, value in reference.items())


def kills(data, root: Path, reference: dict, count: int, whole_seconds: float, draw: random.Random) -> dict:
    """Kill runs at random instants and start them again until they finish; repeat until `count` kills."""
    seen = Counter(kills=0, runs=0, lost_runs=0, results_not_bitwise=0, killed_inside_a_save=0)
    out = root / "killed"
    while seen["kills"] < count:
        shutil.rmtree(out, ignore_errors=True)
        seen["runs"] += 1
        status = None
        while status is None:
            child = forked(lambda: trained(data, out))
            status = waited(child, draw.uniform(0.02, 0.4 * whole_seconds))
            if status is None:
                os.kill(child, 9)
                waited(child)
                seen["kills"] += 1
                seen["killed_inside_a_save"] += any(out.glob("**/.*.partial"))
        seen["lost_runs"] += status != 0
        seen["results_not_bitwise"] += differs(out, reference)
    return dict(seen)


def terms(data, root: Path, reference: dict, count: int, whole_seconds: float, draw: random.Random) -> dict:
    """Ask runs to stop at random instants: saved, code 75, and how long that took; then finish them."""

    def polite(out: Path) -> None:
        with StopOnSignal() as stop:
            trained(data, out, stop)

    codes, longest, differing = Counter(), 0.0, 0
    for number in range(count):
        out = root / f"asked-{number}"
        child = forked(lambda out=out: polite(out))
        while not (out / "events.jsonl").exists():  # it runs
            time.sleep(0.003)
        status = waited(child, draw.uniform(0.02, 0.5 * whole_seconds))
        if status is None:
            asked = time.monotonic()
            os.kill(child, 15)
            status = waited(child)
            longest = max(longest, time.monotonic() - asked)
        codes[os.waitstatus_to_exitcode(status)] += 1
        waited(forked(lambda out=out: polite(out)))
        differing += differs(out, reference)
    return {"asked": count, "exit_codes": dict(codes), "longest_seconds": longest, "results_not_bitwise": differing}


def damage(folder: Path, kind: str, draw: random.Random) -> None:
    path = folder / draw.choice(["model.safetensors", "record.json"])
    weights = folder / "model.safetensors"
    if kind == "bit flip":
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    elif kind == "truncation":
        path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])
    elif kind == "swapped tensors":
        tensors = load_file(weights)
        one, two = draw.choice([("1.weight", "1.bias"), ("1.running_mean", "1.running_var"), ("0.bias", "3.bias")])
        tensors[one], tensors[two] = tensors[two].clone(), tensors[one].clone()
        save_file(tensors, weights)
    elif kind == "NaN weight, manifest rewritten":
        found = checkpoint.load(folder)
        name = draw.choice([name for name, value in found.tensors.items() if value.is_floating_point()])
        found.tensors[name].view(-1)[draw.randrange(found.tensors[name].numel())] = float("nan")
        checkpoint.save(folder, found.load_into(net()), found.record)
    elif kind == "file of another run":
        checkpoint.save(folder / "other", net(width=draw.choice([8, 16])), {})
        shutil.copy(folder / "other" / path.name, path)
    elif kind == "another architecture":
        checkpoint.save(folder, net(width=draw.choice([8, 16])), {})
    elif kind == "file missing":
        (folder / draw.choice([path.name, "manifest.json"])).unlink()


KINDS = (
    "bit flip", "truncation", "swapped tensors", "NaN weight, manifest rewritten", "file of another run",
    "another architecture", "file missing",
)  # fmt: skip


def corruptions(good: Path, root: Path, count: int, draw: random.Random) -> dict:
    """Damage a copy of a good folder; detected means `load` or `load_into` raises RunError."""
    made, detected = Counter(), Counter()
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        folder = root / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder, ignore=shutil.ignore_patterns("state"))
        damage(folder, kind, draw)
        made[kind] += 1
        try:
            checkpoint.load(folder).load_into(net())
        except RunError:
            detected[kind] += 1
    return {kind: {"made": made[kind], "detected": detected[kind]} for kind in KINDS}


def cuts(data, root: Path, reference: dict, count: int) -> dict:
    """Stop after step 1, 2, ... and go on in another process."""
    same, out = 0, root / "cut"
    for cut in range(1, count + 1):
        shutil.rmtree(out, ignore_errors=True)
        asked = iter(range(cut - 1, -1, -1))  # cut - 1, ..., 0: stop
        codes = [
            os.waitstatus_to_exitcode(waited(forked(lambda stop=stop: trained(data, out, stop))))
            for stop in (lambda asked=asked: next(asked) == 0, lambda: False)
        ]
        same += codes == [75, 0] and not differs(out, reference)
    return {"cut_points": count, "resumed_bitwise": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("kills", 100), ("terms", 10), ("corruptions", 500), ("cuts", 25), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # the children are forks
    for name in ("timm.optim", "timm.scheduler", "timm.utils"):
        importlib.import_module(name)  # once, before the forks
    data, draw = load_data("digits", image_size=8, limit=200), random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as name:
        root, start = Path(name), time.monotonic()
        assert waited(forked(lambda: trained(data, root / "whole"))) == 0
        whole_seconds = time.monotonic() - start
        reference = checkpoint.load(root / "whole").tensors
        result = {
            "sigkill": kills(data, root, reference, chosen.kills, whole_seconds, draw),
            "sigterm": terms(data, root, reference, chosen.terms, whole_seconds, draw),
            "corruption": corruptions(root / "whole", root, chosen.corruptions, draw),
            "resume": cuts(data, root, reference, chosen.cuts),
        }
    result |= {"seed": chosen.seed, "recipe": RECIPE.to_dict(), "seconds": time.monotonic() - start}
    result |= provenance.environment("cpu") | {"command": "python results/scripts/faults.py"}
    write_bytes(HERE / "faults.json", (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps({key: result[key] for key in ("sigkill", "sigterm", "corruption", "resume")}, indent=1))


if __name__ == "__main__":
    main()
