"""Tune what all methods of a comparison are offered, on held-out training images. Writes results/tuned.json as it goes.

    python results/scripts/tune.py                            every run that the record lacks
    python results/scripts/tune.py --methods residual pnnh --depth 56 --epochs 30

The same grid and number of runs for every method: three learning rates (a fourth and fifth where the best is the first
or the last), then, at the best rate, a step of each entry of the recipe that all share and two values of the method's
own start. CIFAR-10 in its original pixels, 45,000 images to train, 5,000 to score; the test images are never looked at.
An interrupted run goes on where it was. What is best is written into `pnnh.compare.methods` and `recipes` by hand.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pnnh.compare import CNN_RECIPES, Cnn
from pnnh.data import Dataset, load_data
from pnnh.layers import PlainOptions
from pnnh.provenance import environment
from pnnh.report import json_text, write_text
from pnnh.train import NotFinite, train

RECORD = Path(__file__).resolve().parents[1] / "tuned.json"
RATES = (0.1, 0.3, 1.0)
FURTHER = {0.1: (0.03, 0.01), 1.0: (3.0,)}  # rates tried where an end is the best
SHARED = ({"label_smoothing": 0.1}, {"weight_decay": 1e-3}, {"weight_decay": 2e-4}, {"ema_decay": 0.999})
GAINS = ({"gain": 0.1}, {"gain": 1.0})
OWN: dict[str, tuple[dict[str, Any], ...]] = {
    "residual": GAINS,
    "residual_short": GAINS,
    "residual_narrow": GAINS,
    "residual_shared": ({"lr_scale": 1 / 3}, {"gain": 0.1}),
    "residual_same_block": GAINS,
    "pnnh": GAINS,
    "plain": ({"head_norm": False}, {}),
    "diracnet": ({"beta": 0.3}, {"beta": 1.0}),
    "repvgg": ({"gain": 0.3}, {"gain": 1.0}),
}


@dataclass(frozen=True)
class Trial:
    """A run: a method at a rate, with entries of the recipe and options of the net that differ from the usual."""

    method: str
    lr: float
    choices: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """The options as the net takes them: the layers of a PNNH net hold their gain."""
        layered = self.method in ("pnnh", "residual_same_block") and "gain" in self.options
        return {"options": PlainOptions(gain=self.options["gain"])} if layered else self.options

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.method, "lr": self.lr, "choices": self.choices, "options": self.options}


class Tuning:
    """All runs in one setting, and the record that holds them."""

    def __init__(self, asked: argparse.Namespace):
        self.asked = asked
        self.record = asked.out
        size = {"image_size": asked.image_size} if asked.image_size else {}
        self.data: Dataset = load_data(asked.data, held_out=asked.held_out, limit=asked.limit, **size)
        names = ("depth", "epochs", "seed", "held_out", "limit", "amp")
        self.setting = {"data": self.data.name} | {name: getattr(asked, name) for name in names}

    def rows(self) -> list[dict[str, Any]]:
        return json.loads(self.record.read_text())["rows"] if self.record.exists() else []

    def score(self, trial: Trial) -> float:
        """Share of the held-out images got right, 0 if the loss was not finite; from the record if that has the run."""
        wanted = trial.to_dict() | {"setting": self.setting}
        for row in self.rows():
            if all(row[name] == value for name, value in wanted.items()):
                return row["held_out_accuracy"] or 0.0
        row = wanted | self.trained(trial)
        rows = [*self.rows(), row]
        record = {"rows": rows, "best": best(rows)} | environment() | {"data": self.data.to_dict()}
        write_text(self.record, json_text(record))
        return row["held_out_accuracy"] or 0.0

    def trained(self, trial: Trial) -> dict[str, Any]:
        """Train one net; what came out."""
        recipe = CNN_RECIPES["fast"](self.data, epochs=self.asked.epochs, amp=self.asked.amp, **trial.choices)
        torch.manual_seed(self.asked.seed)
        model, spec = Cnn().build(trial.method, self.asked.depth, self.data, **trial.arguments())
        spec["kwargs"] |= {"options": trial.options}  # as JSON has them
        changes = [f"{name}={value}" for name, value in (trial.choices | trial.options).items()]
        name = "-".join([trial.method, str(trial.lr), *changes])
        folder = self.asked.runs / f"{self.asked.depth}-{self.asked.epochs}-{self.asked.seed}" / name
        epoch = None
        try:
            for epoch in train(model, self.data, recipe.with_lr(trial.lr), seed=self.asked.seed, out=folder, spec=spec):
                print(name, epoch, flush=True)
        except NotFinite as error:
            return {"held_out_accuracy": None, "train_accuracy": None, "diverged": str(error)}
        return {
            "held_out_accuracy": epoch.test_accuracy,
            "train_accuracy": epoch.train_accuracy,
            "diverged": None,
        }

    def tune(self, method: str) -> None:
        """The rates, then each other entry at the best of them."""
        scores = {lr: self.score(Trial(method, lr)) for lr in RATES}
        top = max(scores, key=scores.__getitem__)
        scores |= {lr: self.score(Trial(method, lr)) for lr in FURTHER.get(top, ())}
        start = Trial(method, max(scores, key=scores.__getitem__))
        for choices in SHARED:
            self.score(replace(start, choices=choices))
        for options in OWN.get(method, ()):
            self.score(replace(start, options=options))


def best(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The best run of each method and depth."""
    tops: dict[str, dict[str, Any]] = {}
    for row in (row for row in rows if row["held_out_accuracy"] is not None):
        name = f"{row['method']}-{row['setting']['depth']}"
        if name not in tops or row["held_out_accuracy"] > tops[name]["held_out_accuracy"]:
            tops[name] = {key: row[key] for key in ("lr", "choices", "options", "held_out_accuracy")}
    return tops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(OWN), default=list(OWN))
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--held-out", type=int, default=5000)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amp", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--runs", type=Path, default=Path("runs/tune"))
    parser.add_argument("--out", type=Path, default=RECORD)
    asked = parser.parse_args()
    tuning = Tuning(asked)
    for method in asked.methods:
        tuning.tune(method)


if __name__ == "__main__":
    main()
