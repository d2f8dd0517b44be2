"""The live table of `pnnh compare`, its arguments, and what it writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from pnnh import report
from pnnh._errors import RunError, UsageError
from pnnh.compare import Cell, Comparison, Observer, Results
from pnnh.data import Dataset
from pnnh.report.comparison import as_read


def how_many(jobs: int | None, place) -> int:
    """Nets at a time: what was asked for, or what is usual on `place`."""
    if jobs is None:
        return 1 if place.type != "cpu" else min(4, os.cpu_count() or 1)
    if jobs < 1:
        raise UsageError(f"jobs {jobs} must be at least 1; leave it out for what is usual on the device")
    return jobs


class Board(Observer):
    """A line per net: waiting, the epoch it is in, or its result. Without a terminal, a line per event instead."""

    def __init__(self):
        self.title, self.epochs, self.status, self.console = "", 0, {}, Console()
        self.live = Live(console=self.console, get_renderable=self.table, refresh_per_second=2)

    def table(self):
        cells = [
            {"method": cell.method, "depth": cell.depth, "seed": cell.seed, "state": state}
            for cell, state in self.status.items()
        ]
        return report.terminal(cells, self.title)

    def loading(self, data: str) -> None:
        print(f"loading {data}", flush=True)

    def begin(self, plan: Comparison, data: Dataset) -> None:
        self.epochs = plan.recipe.epochs
        self.title = f"{data.name}: {self.epochs} epochs each"
        self.status = dict.fromkeys(plan.cells(), "waiting")
        print(f"{len(self.status)} nets, {len(data.train)} images to train, {len(data.test)} to test", flush=True)
        if self.console.is_terminal:
            self.live.start()

    def epoch(self, cell: Cell, event: Any) -> None:
        self.say(cell, f"epoch {event.epoch}/{self.epochs}  {event}")

    def say(self, cell: Cell, status: str) -> None:
        self.status[cell] = status
        if not self.console.is_terminal:
            print(f"{cell.name}  {status}", flush=True)

    def done(self, cell: Cell, row: dict[str, Any]) -> None:
        if row.get("diverged"):
            self.say(cell, f"diverged: {row['diverged']}")
        else:
            speed = row["images_per_second"]
            self.status[cell] = f"done: test {100 * row['test_accuracy']:.2f} %, {speed:.0f} img/s"

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *error) -> None:
        if self.live.is_started:
            self.live.stop()


def write(results: Results, out: Path) -> None:
    """results.json, report.html, and the table on the terminal. Raises RunError afterwards if no net trained."""
    report.write_text(out / "results.json", report.json_text(results.to_dict()))
    report.write_text(out / "report.html", report.html(results.page()))
    Console().print(report.terminal(as_read(results.rows())))
    print(f"results: {out / 'results.json'}\nreport:  {out / 'report.html'}")
    if all(row.get("diverged") for row in results.cells):
        raise RunError(f"none of the {len(results.cells)} nets trained, all diverged; lower --lr")
