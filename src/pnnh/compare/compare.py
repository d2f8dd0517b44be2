"""`compare`: several methods trained on the same data under the same recipe, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pnnh._errors import UsageError
from pnnh._files import check_writable
from pnnh.compare.cells import Observer, run
from pnnh.compare.comparison import Cell, Comparison, check_cells
from pnnh.compare.methods import Cnn, Vit
from pnnh.compare.recipes import CNN_RECIPES, VIT_RECIPES
from pnnh.compare.results import Results
from pnnh.data import Dataset, load_data
from pnnh.provenance import environment
from pnnh.train import Execution, Recipe, pick_device


def compare(
    data: str | Dataset = "digits",
    *,
    methods: Sequence[str] | None = None,
    depths: Sequence[int] | None = None,
    seeds: Sequence[int] = (0,),
    recipe: str | Recipe = "default",
    family: Cnn | Vit | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    held_out: int | None = None,
    lr: float | None = None,
    choices: dict[str, Any] | None = None,
    execution: Execution | None = None,
    device: str = "auto",
    jobs: int = 1,
    out: str | Path = "runs/compare",
    observer: Observer | None = None,
) -> Results:
    """Train methods x depths x seeds on `data` under one recipe and say what came out.

    Args:
        data: what `pnnh.load_data` reads, or a data set that is already loaded; it is loaded once for all nets.
        methods: names from the family's table; default plain, residual and pnnh, or all for ViTs.
        depths: of the PNNH nets and their twins; default 20 and 56, or 12 for ViTs.
        seeds: of the weights, the order of the images and their augmentation.
        recipe: the name of one of the family's recipes ("default", "fast", "long", "muon", ...), with which every
            method has its own tuned rate, or a Recipe, which holds as it is.
        family: `Cnn()` (default), `Imagenet()`, or `Vit(width, patch)`.
        image_size, limit, held_out: as for `pnnh.load_data`.
        lr: one peak of the learning rate for all methods, in place of their own.
        choices: entries of `Recipe` that replace those of the named recipe, e.g. {"epochs": 3, "amp": "bf16"}.
        execution: how the nets are trained apart from the recipe: compiled, in several passes, ...
        device: "auto", "cpu", "cuda", ...
        jobs: nets trained at the same time, each on its share of the CPU's threads.
        out: folder for finished rows and trained models; the same call goes on where an earlier one was interrupted.
        observer: is told of the cells, of every epoch and of every finished row.

    Returns:
        The results, with `.rows()` a line per method and depth and `.cells` a row per net.

    Raises:
        UsageError: a request that cannot be meant, before anything is trained. RunError: data that cannot be read.
        A net whose loss is not finite is no error: its row says so.
    """
    family, observer, device, out = family or Cnn(), observer or Observer(), str(pick_device(device)), Path(out)
    cells = {
        "methods": family.usual if methods is None else tuple(methods),
        "depths": family.depths if depths is None else tuple(depths),
        "seeds": tuple(seeds),
        "family": family,
    }
    check_cells(**cells)
    make = _recipe_maker(family, recipe)
    check_writable(out)
    observer.loading(data if isinstance(data, str) else data.name)
    images = _loaded(data, {"image_size": image_size, "limit": limit, "held_out": held_out})
    common = make(images, choices or {})
    named = recipe if isinstance(recipe, str) and lr is None else ""
    common = common if lr is None else common.with_lr(lr)
    plan = Comparison(common, **cells, recipe_name=named, execution=execution or Execution())
    observer.begin(plan, images)
    rows = []
    for row in run(plan, images, device=device, out=out, jobs=jobs, observer=observer):
        rows.append(row)
        observer.done(Cell(row["method"], row["depth"], row["seed"]), row)
    order = {cell: index for index, cell in enumerate(plan.cells())}
    rows.sort(key=lambda row: order[Cell(row["method"], row["depth"], row["seed"])])
    return Results(tuple(rows), plan.settings() | {"jobs": jobs}, environment(device, data=images.to_dict()))


def _recipe_maker(family: Cnn | Vit, recipe: str | Recipe) -> Callable[[Dataset, dict[str, Any]], Recipe]:
    """A function (data, choices) -> Recipe. Raises UsageError for a name that the family does not have."""
    if isinstance(recipe, Recipe):
        return lambda data, choices: replace(recipe, **choices)
    table, kind = (VIT_RECIPES, "ViTs") if isinstance(family, Vit) else (CNN_RECIPES, "convolutional nets")
    if recipe not in table:
        raise UsageError(f"recipe {recipe!r} is not one for {kind}; choose from {', '.join(table)}")
    return lambda data, choices: table[recipe](data, **choices)


def _loaded(data: str | Dataset, shape: dict[str, int | None]) -> Dataset:
    if isinstance(data, str):
        return load_data(data, **shape)
    if given := [name for name, value in shape.items() if value is not None]:
        raise UsageError(f"{', '.join(given)} is for data given by name; change the data set itself")
    return data
