"""The live table of `pnnh compare`, its arguments, and what it writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from pnnh import recipes, report
from pnnh._errors import UsageError
from pnnh.report.comparison import comparison_page
from pnnh.train import record


def words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in words(text)))
    except ValueError:
        raise UsageError(f"{name} {text!r} must be whole numbers separated by commas, like 20,56") from None


def usual_jobs(place) -> int:
    return 1 if place.type != "cpu" else min(4, os.cpu_count() or 1)


class Board:
    """One line per net: waiting, the epoch it is in, or its result. Without a terminal, a line per event instead."""

    def __init__(self, plan: recipes.Comparison):
        self.plan, self.rows, self.console = plan, [], Console()
        self.status: dict[str, str] = {cell.name: "waiting" for cell in plan.cells()}
        self.live = Live(console=self.console, get_renderable=self.table, refresh_per_second=2)

    def table(self):
        cells = [
            {"method": c.method, "depth": c.depth, "seed": c.seed, "state": self.status[c.name]}
            for c in self.plan.cells()
        ]
        return report.terminal(cells, f"{self.plan.data}: {self.plan.recipe.epochs} epochs each")

    def tell(self, cell: recipes.Cell, event) -> None:
        self.status[cell.name] = f"epoch {event.epoch}/{self.plan.recipe.epochs}  {event}"
        if not self.console.is_terminal:
            print(f"{cell.name}  {self.status[cell.name]}", flush=True)

    def done(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        cell = recipes.Cell(row["method"], row["depth"], row["seed"])
        self.status[cell.name] = f"done: test {100 * row['test_accuracy']:.2f} %, {row['images_per_second']:.0f} img/s"

    def __enter__(self) -> Board:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error) -> None:
        if self.console.is_terminal:
            self.live.stop()


def write(plan: recipes.Comparison, rows: list[dict[str, Any]], images, out: Path, place) -> None:
    """results.json, report.html, and the table on the terminal."""
    order = {cell.name: index for index, cell in enumerate(plan.cells())}
    rows = sorted(rows, key=lambda row: order[recipes.Cell(row["method"], row["depth"], row["seed"]).name])
    table = recipes.summary(rows)
    results = {"rows": rows, "summary": table, "settings": plan.settings(), "data": images.to_dict()}
    results |= record.environment(place)
    report.write_text(out / "results.json", report.json_text(results))
    report.write_text(out / "report.html", report.html(comparison_page(results)))
    Console().print(report.terminal(table))
    print(f"results: {out / 'results.json'}\nreport:  {out / 'report.html'}")
