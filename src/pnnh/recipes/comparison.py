"""The main job: methods x depths x seeds under one recipe; a cell is a row, and a finished row is never run again.

A net whose loss leaves the numbers has a row as well: `diverged` says where, and it has no accuracy.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from torch import nn

from pnnh._errors import RunError, UsageError
from pnnh._modules import left_as_found
from pnnh.analysis.probe import probe
from pnnh.cost import cost
from pnnh.data import Dataset, load_data
from pnnh.models import layers_per_stage, registry
from pnnh.train import SGD, Epoch, Muon, Normalise, NotFinite, Recipe, train


@dataclass(frozen=True)
class Method:
    """A family in timm's registry, and what it needs in place of the common recipe and its own defaults.

    lr: the learning rate tuned for it, by optimiser; without one it has the recipe's. options: its nets' keyword
    arguments. Chosen on held-out training images.
    """

    family: str
    lr: dict[type, float] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


METHODS = {
    "plain": Method("plain_resnet{}", lr={SGD: 0.3}),
    "residual": Method("cifar_resnet{}", lr={SGD: 0.3}),
    "residual_2015": Method("cifar_resnet{}_2015"),
    "residual_same_block": Method("cifar_resnet{}_same_block", lr={SGD: 0.3}),
    "residual_narrow": Method("cifar_resnet{}_narrow", lr={SGD: 0.3}),
    "residual_short": Method("cifar_resnet{}_short", lr={SGD: 0.3}),
    "residual_shared": Method("cifar_resnet{}_shared", lr={SGD: 0.3}),
    "pnnh": Method("pnnh_resnet{}", lr={SGD: 0.3}),
    "pnnh_wide": Method("pnnh_resnet{}", lr={SGD: 0.3}, options={"widths": (16, 48, 80)}),  # 0.78 to 0.88 of the twin's
    "diracnet": Method("cifar_diracnet{}", lr={SGD: 1.0, Muon: 0.06}),
    "repvgg": Method("cifar_repvgg{}", lr={SGD: 1.0}, options={"gain": 0.1}),
    "isonet": Method("cifar_isonet{}", lr={SGD: 0.01, Muon: 6e-4}, options={"gamma": 0.01}),
    "tat": Method("cifar_tatnet{}", lr={SGD: 0.001, Muon: 6e-4}),
}


@dataclass(frozen=True)
class Cell:
    """One net of the comparison."""

    method: str
    depth: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.depth}-{self.seed}"


@dataclass(frozen=True)
class Comparison:
    """What is compared with what. Raises UsageError for unknown methods and impossible depths.

    own_lr: methods that need a learning rate of their own have it; otherwise the recipe's holds for all.
    holdout: share of the training images to test on in place of the test images, for tuning; None is off.
    """

    data: str
    recipe: Recipe
    methods: tuple[str, ...] = ("plain", "residual", "pnnh")
    depths: tuple[int, ...] = (20, 56)
    seeds: tuple[int, ...] = (0,)
    image_size: int | None = None
    limit: int | None = None
    own_lr: bool = True
    holdout: float | None = None

    table: ClassVar[dict[str, Method]] = METHODS

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in self.table:
                raise UsageError(f"unknown method {method!r}; choose from {', '.join(self.table)}")
        for depth in self.depths:
            self.check(depth)
        if not (self.methods and self.depths and self.seeds):
            raise UsageError("methods, depths and seeds must each name at least one")

    def check(self, depth: int) -> None:
        """Raises UsageError for a depth that no net of this family has."""
        try:
            layers_per_stage(depth)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def build(self, cell: Cell, data: Dataset) -> tuple[nn.Module, dict[str, Any]]:
        """The net of a cell and what a record says to build it again."""
        return build(cell.method, cell.depth, num_classes=data.num_classes, in_chans=data.channels)

    def cells(self) -> list[Cell]:
        """Depth by depth, seed by seed, the methods next to each other."""
        return [Cell(m, d, s) for d in self.depths for s in self.seeds for m in self.methods]

    def load(self) -> Dataset:
        data = load_data(self.data, image_size=self.image_size, limit=self.limit)
        return data if self.holdout is None else data.split(self.holdout)

    def recipe_of(self, cell: Cell) -> Recipe:
        lr = self.table[cell.method].lr.get(type(self.recipe.optimizer)) if self.own_lr else None
        return self.recipe if lr is None else self.recipe.with_lr(lr)

    def settings(self) -> dict[str, Any]:
        """What the rows have in common; each row carries its own learning rate and options."""
        settings = {"data": self.data, "image_size": self.image_size, "limit": self.limit}
        settings |= {} if self.holdout is None else {"holdout": self.holdout}
        return settings | {"recipe": self.recipe.to_dict()}

    def key(self, cell: Cell, net: nn.Module) -> str:
        """What the row of `cell` depends on beside its name: rows of other settings are not reused.

        The net counts as it prints itself, so that rows do not outlive a change of defaults that one can see there,
        and a method's options count because not every one can be seen.
        """
        own = {"recipe": self.recipe_of(cell).to_dict(), "net": str(net), "options": self.table[cell.method].options}
        return hashlib.sha256(json.dumps(self.settings() | own, sort_keys=True).encode()).hexdigest()[:12]


def build(method: str, depth: int, **kwargs: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The net of a method and what a record says to build it again. `kwargs` go to the net."""
    family, kwargs = METHODS[method].family, METHODS[method].options | kwargs
    name = family.format(depth)
    if depth not in registry.DEPTHS:  # a depth of 50 means a CIFAR net here, not an ImageNet-shaped one
        name, kwargs = family.format(20), {"depth": depth, **kwargs}
    return timm.create_model(name, **kwargs), {"name": name, "kwargs": kwargs}


def run_cell(plan: Comparison, cell: Cell, data: Dataset, *, device: str, out: Path, tell: Callable) -> dict[str, Any]:
    """Train one cell; `tell(cell, event)` after every epoch. Writes and returns its row, or the row found in `out`."""
    torch.manual_seed(cell.seed)
    model, spec = plan.build(cell, data)
    recipe, key = plan.recipe_of(cell), plan.key(cell, model)
    place = out / "rows" / f"{cell.name}.json"
    found = finished(place, key)
    if found is not None:
        return found
    counted = cost(model, (data.channels, data.image_size, data.image_size))
    before = survival(model, data)
    folder = out / "models" / f"{cell.name}-{key}"
    events: list[Epoch] = []
    diverged = None
    try:
        for event in train(model, data, recipe, seed=cell.seed, device=device, out=folder, spec=spec):
            events.append(event)
            tell(cell, event)
    except NotFinite as error:
        diverged = str(error)
    row = (
        asdict(cell)
        | {"num_params": counted.num_params, "macs": counted.macs}
        | {"diverged": diverged}
        | outcome(events, diverged is None)
    )
    row |= {"model": None if diverged else str(folder.relative_to(out)), "survival_at_init": before}
    row |= {"survival_trained": [] if diverged else survival(model, data), "key": key}
    row |= {"lr": recipe.optimizer.lr, "options": plan.table[cell.method].options}
    _write(place, row)
    return row


def outcome(events: list[Epoch], whole: bool) -> dict[str, Any]:
    """What a row says of its epochs; accuracies only of a training that went through."""
    last = events[-1] if whole else None
    return {
        "test_accuracy": last and last.test_accuracy,
        "train_accuracy": last and last.train_accuracy,
        "images_per_second": statistics.median_high(e.images_per_second for e in events) if events else None,
        "seconds": sum(event.seconds for event in events),
        "curve": [asdict(event) for event in events],
    }


def finished(place: Path, key: str) -> dict[str, Any] | None:
    """The row at `place` if it is whole and of the settings with this `key`, else None."""
    try:
        row = json.loads(place.read_text())
    except (OSError, ValueError):
        return None
    return row if row.get("key") == key else None


def _write(place: Path, row: dict[str, Any]) -> None:
    partial = place.with_suffix(".partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(row))
        partial.replace(place)
    except OSError as error:
        raise RunError(f"cannot write {place}: {error.strerror}; free some space or choose another --out") from None


@torch.no_grad()
def survival(model: nn.Module, data: Dataset, num_images: int = 128) -> list[float]:
    """Share of positive units after each ReLU, in call order, on test images with the norms' batch statistics."""
    device = next(model.parameters()).device
    images = Normalise(data, device)(data.test.pixels(torch.arange(num_images)[: len(data.test)]).to(device))
    alive: list[torch.Tensor] = []
    with left_as_found(model, training=True), probe(model, lambda call: alive.append((call.after > 0).float().mean())):
        model(images)
    return torch.stack(alive).tolist() if alive else []


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per method and depth: mean and sample standard deviation over the `n` seeds that trained, in %.

    Where nets diverged each row counts its own; test_% is None if none of them trained. Where learning rates
    differ each row has its own.
    """
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["method"], row["depth"]), []).append(row)
    some_diverged = any(row.get("diverged") for row in rows)
    several_rates = len({row.get("lr") for row in rows}) > 1
    table = []
    for (method, depth), group in sorted(cells.items(), key=lambda item: item[0][1]):
        trained = [row for row in group if not row.get("diverged")]
        test = [100 * row["test_accuracy"] for row in trained]
        speed = [row["images_per_second"] for row in group if row["images_per_second"] is not None]
        table.append(
            {"method": method, "depth": depth, "params": group[0]["num_params"], "macs": group[0]["macs"]}
            | ({"lr": group[0].get("lr")} if several_rates else {})
            | {"test_%": round(statistics.mean(test), 2) if test else None}
            | {"std": round(statistics.stdev(test), 2) if len(test) > 1 else None, "n": len(test)}
            | ({"diverged": len(group) - len(trained)} if some_diverged else {})
            | {"img/s": round(statistics.median_low(speed)) if speed else None}
        )
    return table
