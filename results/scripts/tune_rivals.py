"""The same small tuning budget for every method, on held-out training images. Writes results/rivals-tuned*.json.

    python results/scripts/tune_rivals.py                     every run the record lacks
    python results/scripts/tune_rivals.py --methods tat isonet
    python results/scripts/tune_rivals.py --rates-only        the first half of the budget, for all methods alike
    python results/scripts/tune_rivals.py --recipe muon       rates of Muon, the knobs as chosen for SGD

Learning rates 0.03, 0.1, 0.3 (of Muon 0.006, 0.02, 0.06; and further where an end is the best), then two other values
of the method's own knob at the best rate. CIFAR-10 at 16 px, 10,000 training images of which one in five is held out,
depth 56, 4 epochs with one cycle, seed 0. The test images are never looked at. `pnnh.recipes.METHODS` holds what was
chosen.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _evidence import evidence

from pnnh import recipes
from pnnh.train import NotFinite, load_data, train

RESULTS = Path(__file__).resolve().parents[1]
SETTING = {"data": "cifar10", "image_size": 16, "limit": 10_000, "held_out": 0.2, "depth": 56, "epochs": 4, "seed": 0}


@dataclass(frozen=True)
class Rates:
    """What is tried of a recipe. further: the next rate where one is the best. knobs: whether they are tuned, too."""

    record: str
    knobs: bool
    first: tuple[float, ...]
    further: dict[float, float]


RATES = {
    "default": Rates(
        "rivals-tuned",
        True,
        (0.03, 0.1, 0.3),
        {0.03: 0.01, 0.01: 0.003, 0.003: 0.001, 0.001: 0.0003, 0.3: 1.0, 1.0: 3.0},
    ),
    "muon": Rates(
        "rivals-tuned-muon",
        False,
        (0.006, 0.02, 0.06),
        {0.006: 0.002, 0.002: 0.0006, 0.0006: 0.0002, 0.06: 0.2, 0.2: 0.6},
    ),
}


@dataclass(frozen=True)
class Knob:
    """A method's own setting: the paper's (or our) value first, then the two others tried."""

    name: str
    values: tuple[float, ...]


KNOBS = {
    "residual": None,
    "plain": None,
    "pnnh": None,
    "diracnet": Knob("beta", (0.1, 0.3, 1.0)),
    "repvgg": Knob("gain", (1.0, 0.3, 0.1)),
    "isonet": Knob("gamma", (1e-4, 1e-3, 1e-2)),
    "tat": Knob("eta", (0.9, 0.8, 0.95)),
}


def read(recipe: str) -> list[dict[str, Any]]:
    place = RESULTS / f"{RATES[recipe].record}.json"
    return json.loads(place.read_text())["rows"] if place.exists() else []


def write(recipe: str, rows: list[dict[str, Any]]) -> None:
    order = list(KNOBS)
    rows = sorted(rows, key=lambda row: (order.index(row["method"]), str(row["options"]), row["lr"]))
    defaults = {method: {} if knob is None else {knob.name: knob.values[0]} for method, knob in KNOBS.items()}
    setting = SETTING if recipe == "default" else SETTING | {"recipe": recipe}
    record = {"setting": setting, "defaults": defaults, "chosen": chosen(rows), "rows": rows, "evidence": evidence()}
    (RESULTS / f"{RATES[recipe].record}.json").write_text(json.dumps(record, indent=1) + "\n")


def score(recipe: str, method: str, lr: float, options: dict[str, float]) -> float:
    """Share of the held-out images got right; 0 if the loss left the numbers. A run in the record is not done again."""
    for row in read(recipe):
        if (row["method"], row["lr"], row["options"]) == (method, lr, options):
            return row["held_out_accuracy"]
    data = load_data(SETTING["data"], image_size=SETTING["image_size"], limit=SETTING["limit"])
    data = data.split(SETTING["held_out"])
    plan = recipes.RECIPES[recipe](data, epochs=SETTING["epochs"], batch_size=128).with_lr(lr)
    torch.manual_seed(SETTING["seed"])
    model, _ = recipes.build(method, SETTING["depth"], num_classes=10, in_chans=3, **options)
    row = {"method": method, "lr": lr, "options": options, "diverged": False}
    try:
        for epoch in train(model, data, plan, seed=SETTING["seed"], evaluate_every=plan.epochs):
            print(method, lr, options, epoch, flush=True)
        row |= {"held_out_accuracy": epoch.test_accuracy, "train_accuracy": epoch.train_accuracy}
    except NotFinite as error:
        print(method, lr, options, error, flush=True)
        row |= {"diverged": True, "held_out_accuracy": 0.0, "train_accuracy": 0.0}
    write(recipe, [*read(recipe), row])
    return row["held_out_accuracy"]


def tune(recipe: str, method: str, *, rates_only: bool) -> None:
    """The rates, then (unless `rates_only`) the knob's other values at the best one, where knobs are tuned.

    While rates are tried the knob has its first value; where knobs are not tuned, what was chosen for SGD.
    """
    knob, rates = KNOBS[method], RATES[recipe]
    first = {} if knob is None else {knob.name: knob.values[0]}
    first |= {} if rates.knobs else recipes.METHODS[method].options
    scores = {lr: score(recipe, method, lr, first) for lr in rates.first}
    best = max(scores, key=scores.__getitem__)
    while best in rates.further and rates.further[best] not in scores:
        lr = rates.further[best]
        scores[lr] = score(recipe, method, lr, first)
        best = lr if scores[lr] == 0 else max(scores, key=scores.__getitem__)  # a diverged run: further down
    best = max(scores, key=scores.__getitem__)
    for value in () if knob is None or rates_only or not rates.knobs else knob.values[1:]:
        score(recipe, method, best, {knob.name: value})


def chosen(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The best run of each method."""
    best: dict[str, dict[str, Any]] = {}
    for row in (row for row in rows if not row["diverged"]):
        if row["held_out_accuracy"] > best.get(row["method"], {"held_out_accuracy": -1.0})["held_out_accuracy"]:
            best[row["method"]] = {key: row[key] for key in ("lr", "options", "held_out_accuracy")}
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(KNOBS), default=list(KNOBS))
    parser.add_argument("--recipe", choices=list(RATES), default="default")
    parser.add_argument("--rates-only", action="store_true")
    asked = parser.parse_args()
    for method in asked.methods:
        tune(asked.recipe, method, rates_only=asked.rates_only)


if __name__ == "__main__":
    main()
