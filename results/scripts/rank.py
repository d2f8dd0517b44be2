"""Rank prototype nets near convergence: 45,000 training images of CIFAR-10 at 16 px, scored on 5,000 held-out ones.

    python results/scripts/rank.py DATA [--nets NAME ...] [--seeds 0 ...] [--epochs 16]

DATA is a folder train/<class>/ of image strips, the original pixels. Each net is one run in RUNS (--runs), which the
same command resumes; results/ranking.json lists all finished runs and is written again after each. The test images are
not read.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from _evidence import evidence
from PIL import Image
from prototypes import NETS
from torch.utils.flop_counter import FlopCounterMode

from pnnh.train import SGD, Augment, Dataset, OneCycle, Recipe, Split, train
from pnnh.train.data import pixel_statistics, resize

ROOT = Path(__file__).resolve().parents[2]


def load(folder: Path) -> Dataset:
    """The training images at 16 px; 5,000 of them, stratified, stand where test images would."""
    classes = sorted(path.name for path in (folder / "train").iterdir())
    images, labels = [], []
    for label, name in enumerate(classes):
        for file in sorted((folder / "train" / name).glob("*.webp")):
            tiles = np.asarray(Image.open(file)).reshape(-1, 32, 32, 3)
            images.append(torch.from_numpy(tiles).permute(0, 3, 1, 2))
            labels += [label] * len(tiles)
    train_split = Split(resize(torch.cat(images), 16), torch.tensor(labels))
    mean, std = pixel_statistics(train_split.images)
    return Dataset("cifar10", tuple(classes), train_split, train_split, mean, std).split(0.1)


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
        **{key: value for key, value in evidence().items() if key != "command"},
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
    data = load(given.data)
    schedule = OneCycle(warmup=0.15)
    recipe = Recipe(epochs=given.epochs, optimizer=SGD(0.3), schedule=schedule, augment=Augment(pad=2))
    for seed in given.seeds:
        for name in given.nets:
            file = given.runs / f"{name}-{seed}.json"
            if not file.exists():
                finished = row(name, seed, data, recipe, given.runs)
                file.write_text(json.dumps(finished))
            rows = [json.loads(path.read_text()) for path in sorted(given.runs.glob("*.json"))]
            record = {"data": data.to_dict(), "recipe": recipe.to_dict(), "rows": rows, **evidence()}
            given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
