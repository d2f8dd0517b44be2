"""The commands of docs/scaling.md at the size of two CPU processes. Writes results/scaling.json.

    python results/scripts/scaling.py

Two processes under torchrun (DDP), stopped by SIGTERM in their second epoch and finished by one process; two under
accelerate launch (two passes, checkpointing). The same recipe and images; batch norm sees other shares.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pnnh import checkpoint, provenance
from pnnh._files import write_bytes

RESULTS = Path(__file__).resolve().parents[1]
TRAIN = "pnnh train pnnh_resnet_tiny --data digits --limit 192 --device cpu --batch-size 64 --epochs 3"
TORCHRUN = "torchrun --nproc-per-node 2 -m"
ACCELERATE = "accelerate launch --multi_gpu --num_processes 2 -m"  # --cpu would ask for MPI
SPREAD = "--accumulate 2 --checkpointing"


def ran(name: str, line: str, out: Path, stop: bool = False) -> dict:
    """Run a command line with its programs from this Python's folder; what came of it."""
    words = shlex.split(line)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    start = time.perf_counter()
    work = subprocess.Popen([*words, "--out", str(out)], env=environment, stdout=subprocess.DEVNULL)
    if stop:
        while not (out / "events.jsonl").exists() or not (out / "events.jsonl").read_text():
            time.sleep(0.05)
        asked = time.perf_counter()
        work.terminate()
    row = {"name": name, "command": line, "exit_code": work.wait(), "seconds": time.perf_counter() - start}
    if stop:
        return row | {"seconds_to_stop": time.perf_counter() - asked}
    told = checkpoint.load(out).record
    losses = [event["loss"] for event in told["epochs"]]
    return (
        row | {"execution": told["execution"], "losses": losses, "num_test": told["data"]["num_test"]} | told["result"]
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        cut, apart = Path(place) / "cut", Path(place) / "apart"
        rows = [
            ran("torchrun, DDP, stopped by SIGTERM in its second epoch", f"{TORCHRUN} {TRAIN}", cut, stop=True),
            ran("the same, finished by one process", TRAIN, cut),
            ran("accelerate launch, two passes, checkpointing", f"{ACCELERATE} {TRAIN} {SPREAD}", apart),
        ]
    result = {"rows": rows} | provenance.environment("cpu") | {"command": "python results/scripts/scaling.py"}
    write_bytes(RESULTS / "scaling.json", (json.dumps(result, indent=1) + "\n").encode())
    for row in rows:
        print(row["name"], row["exit_code"], row.get("test_accuracy"), row.get("losses"), row.get("seconds_to_stop"))


if __name__ == "__main__":
    main()
