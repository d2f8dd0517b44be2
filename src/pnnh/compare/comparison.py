"""A comparison as a value: methods x depths x seeds under one recipe; each combination is a cell."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from pnnh._errors import UsageError
from pnnh.compare.methods import Cnn, Vit
from pnnh.data import Dataset
from pnnh.train import Execution, Recipe


@dataclass(frozen=True)
class Cell:
    """One net of a comparison."""

    method: str
    depth: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.depth}-{self.seed}"


@dataclass(frozen=True)
class Comparison:
    """Which nets are compared, and how they are trained. Raises UsageError for unknown methods, impossible depths.

    recipe_name: whose table of learning rates holds for the methods; "": the recipe's own rate for all of them.
    """

    recipe: Recipe
    methods: tuple[str, ...] = Cnn.usual
    depths: tuple[int, ...] = Cnn.depths
    seeds: tuple[int, ...] = (0,)
    family: Cnn | Vit = field(default_factory=Cnn)
    recipe_name: str = ""
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        check_cells(self.family, self.methods, self.depths, self.seeds)

    def cells(self) -> list[Cell]:
        """Depth by depth, seed by seed, the methods next to each other."""
        return [Cell(m, d, s) for d in self.depths for s in self.seeds for m in self.methods]

    def shows(self, cell: Cell) -> bool:
        """Whether the report shows an image read back along the net of this cell: the deepest, of the first seed."""
        return cell.depth == max(self.depths) and cell.seed == self.seeds[0]

    def recipe_of(self, cell: Cell) -> Recipe:
        """The common recipe with the learning rate of the cell's method."""
        common = self.recipe.optimizer.lr
        rate = self.family.rate(cell.method, cell.depth, self.recipe_name, common) if self.recipe_name else common
        return self.recipe if rate == common else self.recipe.with_lr(rate)

    def settings(self) -> dict[str, Any]:
        """What the nets have in common, ready for JSON; each row has its own learning rate and options."""
        settings = {"recipe_name": self.recipe_name or None, "recipe": self.recipe.to_dict()}
        return settings | self.family.settings() | {"execution": self.execution.to_dict()}

    def key(self, cell: Cell, net: nn.Module, data: Dataset) -> str:
        """A hash of everything that the row of `cell` depends on; rows with another key are not used again.

        The net counts as it prints itself, so that rows do not outlive a change of defaults that shows there, and the
        method's options count because not all of them show.
        """
        options = self.family.methods[cell.method].options
        parts = {"data": data.sha256, "recipe": self.recipe_of(cell).to_dict(), "net": str(net), "options": options}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def check_cells(family: Cnn | Vit, methods: Sequence[str], depths: Sequence[int], seeds: Sequence[int]) -> None:
    """Raises UsageError unless there is at least one cell and each can be built."""
    for method in methods:
        if method not in family.methods:
            raise UsageError(f"unknown method {method!r}; choose from {', '.join(family.methods)}")
    for depth in depths:
        family.check(depth)
    if not (methods and depths and seeds):
        raise UsageError("methods, depths and seeds must each name at least one")
