"""Train every net of the published tables, the most needed first. Writes results/NAME.json after every net.

    git worktree add ../frozen && cd ../frozen && python results/scripts/evidence.py --out /path/to/runs
    python results/scripts/evidence.py --parts anchors main      only some parts
    python results/scripts/evidence.py --list                    what is done, what is missing

Run it from a worktree that does not change: the records name its commit, and a changed checkout is refused. When it was
interrupted, the same command goes on. A record has the rows of all parts with the same data and recipe; all use the
whole test set and the last epoch.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pnnh.compare import Cell, Cnn, Comparison, Imagenet, Observer, Results, compare
from pnnh.data import Dataset, load_data
from pnnh.provenance import environment
from pnnh.report import json_text, write_text
from pnnh.train import Execution

FOLDER = Path(__file__).resolve().parents[1]
MAIN = ("residual", "residual_short", "residual_same_block", "pnnh")
OTHERS = ("residual_shared", "pnnh_wide", "diracnet", "plain")


@dataclass(frozen=True)
class Part:
    """Nets that are trained together. `record`: the file in results/ that they belong to."""

    name: str
    methods: tuple[str, ...]
    depths: tuple[int, ...]
    seeds: tuple[int, ...]
    data: str = "cifar10"
    recipe: str = "fast"
    family: Cnn = field(default_factory=Cnn)

    @property
    def record(self) -> str:
        return f"{self.data.rpartition('/')[2]}-{self.recipe}"


PARTS = (
    Part("anchors", ("residual",), (20,), (0, 1, 2)),
    Part("anchors", ("residual",), (56,), (0,)),
    Part("main", MAIN, (20,), (0, 1, 2)),
    Part("main", MAIN, (56,), (0, 1)),
    Part("sizes", ("residual_narrow",), (20, 56), (0, 1)),
    Part("sizes", ("pnnh",), (38,), (0, 1)),
    Part("others", OTHERS, (20,), (0, 1)),
    Part("others", OTHERS, (56,), (0,)),
    Part("long", ("residual", "pnnh", "residual_short"), (20,), (0,), recipe="long"),
    Part("cifar100", MAIN, (20,), (0, 1), data="cifar100"),
    Part("cifar100", MAIN, (56,), (0,), data="cifar100"),
    Part("imagenette", tuple(Imagenet.methods), (18,), (0, 1), "folder:~/.cache/pnnh/imagenette64", family=Imagenet()),
)


class Keeper(Observer):
    """Prints every epoch and writes the record of the current data and recipe with each finished net."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.made: dict[str, dict[Cell, dict[str, Any]]] = {}
        self.record = ""

    def begin(self, plan: Comparison, data: Dataset) -> None:
        self.settings, self.data = plan.settings(), data.to_dict()

    def epoch(self, cell: Cell, event: Any) -> None:
        print(self.record, cell.name, event, flush=True)

    def done(self, cell: Cell, row: dict[str, Any]) -> None:
        self.made.setdefault(self.record, {})[cell] = row
        rows = sorted(self.made[self.record].values(), key=lambda row: (row["depth"], row["seed"]))
        results = Results(tuple(rows), self.settings, environment() | {"data": self.data})
        write_text(self.folder / f"{self.record}.json", json_text(results.to_dict()))


def wanted(names: list[str]) -> list[Part]:
    return [part for part in PARTS if not names or part.name in names]


def listed(parts: list[Part], folder: Path) -> None:
    """Print which nets the records have."""
    for part in parts:
        file = folder / f"{part.record}.json"
        rows = json.loads(file.read_text())["rows"] if file.is_file() else []
        have = {(row["method"], row["depth"], row["seed"]) for row in rows}
        cells = [(m, d, s) for d in part.depths for s in part.seeds for m in part.methods]
        missing = [f"{m}-{d}-{s}" for m, d, s in cells if (m, d, s) not in have]
        print(f"{part.record} {part.name}: {len(cells) - len(missing)} of {len(cells)}", *missing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=sorted({part.name for part in PARTS}), default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"), help="rows, models and states")
    parser.add_argument("--records", type=Path, default=FOLDER)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--amp", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--changed", action="store_true", help="allow a checkout with changes, for a try")
    for name in ("epochs", "image-size", "limit"):
        parser.add_argument(f"--{name}", type=int, help="for a try")
    asked = parser.parse_args()
    parts = wanted(asked.parts)
    if asked.list:
        listed(parts, asked.records)
        return
    code = environment()["code_version"]
    if code.endswith("-dirty") and not asked.changed:
        raise SystemExit(f"the code is {code}: commit first, or work in a worktree that does not change")
    keeper, loaded = Keeper(asked.records), {}
    choices = {"amp": asked.amp} | ({"epochs": asked.epochs} if asked.epochs else {})
    execution = Execution(compile=True) if asked.compile else Execution()
    for part in parts:
        if part.data not in loaded:
            loaded = {part.data: load_data(part.data, image_size=asked.image_size, limit=asked.limit)}
        data: Dataset = loaded[part.data]
        keeper.record = part.record
        common = {"recipe": part.recipe, "choices": choices, "execution": execution, "jobs": asked.jobs}
        nets = {"family": part.family, "methods": part.methods, "depths": part.depths, "seeds": part.seeds}
        compare(data, **nets, **common, out=asked.out / part.record, observer=keeper)


if __name__ == "__main__":
    main()
