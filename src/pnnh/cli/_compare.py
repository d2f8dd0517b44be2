"""The live table of `pnnh compare`, its arguments, and what it writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from pnnh import provenance, recipes, report
from pnnh._errors import RunError, UsageError
from pnnh.report.comparison import as_read, comparison_page


def how_many(jobs: int | None, place) -> int:
    """Nets at a time: what was asked for, or what is usual on `place`."""
    if jobs is None:
        return 1 if place.type != "cpu" else min(4, os.cpu_count() or 1)
    if jobs < 1:
        raise UsageError(f"jobs {jobs} must be at least 1; leave it out for what is usual on the device")
    return jobs


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
        self.say(cell, f"epoch {event.epoch}/{self.plan.recipe.epochs}  {event}")

    def say(self, cell: recipes.Cell, status: str) -> None:
        self.status[cell.name] = status
        if not self.console.is_terminal:
            print(f"{cell.name}  {status}", flush=True)

    def done(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        cell = recipes.Cell(row["method"], row["depth"], row["seed"])
        if row.get("diverged"):
            self.say(cell, f"diverged: {row['diverged']}")
        else:
            speed = row["images_per_second"]
            self.status[cell.name] = f"done: test {100 * row['test_accuracy']:.2f} %, {speed:.0f} img/s"

    def __enter__(self) -> Board:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error) -> None:
        if self.console.is_terminal:
            self.live.stop()


def write(plan: recipes.Comparison, rows: list[dict[str, Any]], images, out: Path, place) -> None:
    """results.json, report.html, and the table on the terminal. Raises RunError afterwards if no net trained."""
    order = {cell.name: index for index, cell in enumerate(plan.cells())}
    rows = sorted(rows, key=lambda row: order[recipes.Cell(row["method"], row["depth"], row["seed"]).name])
    table = recipes.summary(rows)
    results = {"rows": rows, "summary": table, "settings": plan.settings(), "data": images.to_dict()}
    results |= provenance.environment(place)
    report.write_text(out / "results.json", report.json_text(results))
    report.write_text(out / "report.html", report.html(comparison_page(results)))
    Console().print(report.terminal(as_read(table)))
    print(f"results: {out / 'results.json'}\nreport:  {out / 'report.html'}")
    if all(row.get("diverged") for row in rows):
        raise RunError(f"none of the {len(rows)} nets trained, all diverged; lower --lr")
