"""The main job: methods x depths x seeds under one recipe; a cell is a row, and a finished row is never run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from pnnh._cost import cost
from pnnh._errors import RunError, UsageError
from pnnh.analysis.intact import intact
from pnnh.analysis.probe import probe
from pnnh.models import layers_per_stage
from pnnh.train import Dataset, Normalise, Recipe, load_data, train

METHODS = {"plain": "plain_resnet", "residual": "cifar_resnet", "pnnh": "pnnh_resnet"}


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
    """What is compared with what. Raises UsageError for unknown methods and impossible depths."""

    data: str
    recipe: Recipe
    methods: tuple[str, ...] = ("plain", "residual", "pnnh")
    depths: tuple[int, ...] = (20, 56)
    seeds: tuple[int, ...] = (0,)
    image_size: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise UsageError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
        for depth in self.depths:
            try:
                layers_per_stage(depth)
            except ValueError as error:
                raise UsageError(str(error)) from None
        if not (self.methods and self.depths and self.seeds):
            raise UsageError("methods, depths and seeds must each name at least one")

    def cells(self) -> list[Cell]:
        """Depth by depth, seed by seed, the methods next to each other."""
        return [Cell(m, d, s) for d in self.depths for s in self.seeds for m in self.methods]

    def load(self) -> Dataset:
        return load_data(self.data, image_size=self.image_size, limit=self.limit)

    def settings(self) -> dict[str, Any]:
        """What a row depends on beside its cell: rows of other settings are not reused."""
        return {"data": self.data, "image_size": self.image_size, "limit": self.limit, "recipe": self.recipe.to_dict()}

    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()[:12]


def build(method: str, depth: int, **kwargs: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The net of a method and what a record says to build it again. `kwargs` go to the net."""
    name = f"{METHODS[method]}{depth}"
    if not timm.is_model(name):
        name, kwargs = f"{METHODS[method]}20", {"depth": depth, **kwargs}
    return timm.create_model(name, **kwargs), {"name": name, "kwargs": kwargs}


def run_cell(plan: Comparison, cell: Cell, data: Dataset, *, device: str, out: Path, tell: Callable) -> dict[str, Any]:
    """Train one cell; `tell(cell, event)` after every epoch. Writes and returns its row, or the row found in `out`."""
    place = out / "rows" / f"{cell.name}.json"
    found = finished(place, plan)
    if found is not None:
        return found
    torch.manual_seed(cell.seed)
    model, spec = build(cell.method, cell.depth, num_classes=data.num_classes, in_chans=data.channels)
    counted = cost(model, (data.channels, data.image_size, data.image_size))
    before = survival(model, data)
    events = []
    folder = out / "models" / f"{cell.name}-{plan.key()}"
    for event in train(model, data, plan.recipe, seed=cell.seed, device=device, out=folder, spec=spec):
        events.append(event)
        tell(cell, event)
    speeds = sorted(event.images_per_second for event in events)
    row = asdict(cell) | asdict(counted)
    row |= {"test_accuracy": events[-1].test_accuracy, "train_accuracy": events[-1].train_accuracy}
    row |= {"images_per_second": speeds[len(speeds) // 2], "seconds": sum(event.seconds for event in events)}
    row |= {"curve": [asdict(event) for event in events], "model": str(folder.relative_to(out))}
    row |= {"survival_at_init": before, "survival_trained": survival(model, data), "key": plan.key()}
    _write(place, row)
    return row


def finished(place: Path, plan: Comparison) -> dict[str, Any] | None:
    """The row at `place` if it is whole and of these settings, else None."""
    try:
        row = json.loads(place.read_text())
    except (OSError, ValueError):
        return None
    return row if row.get("key") == plan.key() else None


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
    images = Normalise(data, device)(data.test.images[:num_images].to(device))
    alive: list[torch.Tensor] = []
    with intact(model, training=True), probe(model, lambda call: alive.append((call.after > 0).float().mean())):
        model(images)
    return torch.stack(alive).tolist() if alive else []


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per method and depth: mean and sample standard deviation over seeds, in %."""
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["method"], row["depth"]), []).append(row)
    table = []
    for (method, depth), group in sorted(cells.items(), key=lambda item: item[0][1]):
        test = torch.tensor([100 * row["test_accuracy"] for row in group], dtype=torch.float64)
        speed = torch.tensor([row["images_per_second"] for row in group], dtype=torch.float64)
        table.append(
            {"method": method, "depth": depth, "params": group[0]["num_params"], "macs": group[0]["macs"]}
            | {"test_%": round(test.mean().item(), 2)}
            | {"std": round(test.std().item(), 2) if len(group) > 1 else None, "n": len(group)}
            | {"img/s": round(speed.median().item())}
        )
    return table
