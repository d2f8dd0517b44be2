"""Rank prototype nets near convergence: 45,000 training images of CIFAR-10 at 16 px, scored on 5,000 held-out ones.

    python results/scripts/rank.py DATA [--nets NAME ...] [--seeds 0 ...] [--epochs 16]

DATA is a folder with CIFAR-10 in its original pixels. Each net is one run in RUNS (--runs), which the
same command resumes; results/ranking.json lists all finished runs and is written again after each. The test images are
not read.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from prototypes import NETS
from torch.utils.flop_counter import FlopCounterMode

from pnnh.data import Dataset, load_data
from pnnh.provenance import environment
from pnnh.train import SGD, Augment, OneCycle, Recipe, train

ROOT = Path(__file__).resolve().parents[2]


def row(name: str, seed: int, data: Dataset, recipe: Recipe, runs: Path) -> dict:
    torch.manual_seed(seed)
    model = NETS[name](data.num_classes)
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, 16, 16))
    macs = counter.get_total_flops() // 2
    events = []
    for epoch in train(model, data, recipe, seed=seed, device="cpu", out=runs / f"{name}-{seed}", evaluate_every=4):
        events.append(epoch)
        print(f"{name} seed {seed} epoch {epoch.epoch}: {epoch}", flush=True)
    return {
        "net": name,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": macs,
        "train_accuracy": round(100 * events[-1].train_accuracy, 2),
        "held_out_accuracy": round(100 * events[-1].test_accuracy, 2),
        "epochs": recipe.epochs,
        **{key: value for key, value in environment().items() if key != "command"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--runs", type=Path, default=Path.home() / ".cache" / "pnnh" / "ranking")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "ranking.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(f"cifar10:{given.data}", image_size=16, held_out=5000)
    schedule = OneCycle(warmup=0.15)
    recipe = Recipe(epochs=given.epochs, optimizer=SGD(0.3), schedule=schedule, augment=Augment(pad=2))
    for seed in given.seeds:
        for name in given.nets:
            file = given.runs / f"{name}-{seed}.json"
            if not file.exists():
                finished = row(name, seed, data, recipe, given.runs)
                file.write_text(json.dumps(finished))
            rows = [json.loads(path.read_text()) for path in sorted(given.runs.glob("*.json"))]
            record = {"recipe": recipe.to_dict(), "rows": rows, **environment(data=data.to_dict())}
            given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
