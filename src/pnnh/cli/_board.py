"""Signs of life: how far a training or a comparison is, as a bar or a table on a terminal, elsewhere as lines."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from pnnh import report
from pnnh.compare import Cell, Comparison, Observer
from pnnh.data import Dataset
from pnnh.train import Progress

EVERY_SECONDS = 10.0


class Bar:
    """Shows each Progress of a training. Used in a `with` block, so that the terminal is left as it was."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self.bars = Bars(TextColumn("{task.description}"), BarColumn(), console=self.console, transient=True)
        self.task = self.bars.add_task("", total=None)
        self.last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if self.console.is_terminal:
            done = progress.step / progress.steps
            self.bars.update(self.task, description=line(progress), completed=done, total=1)
        elif time.monotonic() - self.last >= EVERY_SECONDS:
            self.last = time.monotonic()
            print(line(progress), flush=True)

    def __enter__(self) -> Bar:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self.bars.stop()


def line(progress: Progress) -> str:
    """`progress` in words: epoch, step, speed and time left."""
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    place = f"epoch {progress.epoch}/{progress.epochs}  step {progress.step}/{progress.steps}"
    return f"{place}  {progress.images_per_second:.0f} img/s  {minutes}:{seconds:02d} left"


class Board(Observer):
    """A line per net: waiting, the epoch it is in, or its result. Without a terminal, a line per event instead."""

    def __init__(self):
        self.title, self.epochs, self.status, self.told, self.console = "", 0, {}, {}, Console()
        self.start = time.monotonic()
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

    def step(self, cell: Cell, now: Progress) -> None:
        self.status[cell] = line(now)
        if not self.console.is_terminal and time.monotonic() - self.told.get(cell, self.start) >= EVERY_SECONDS:
            self.say(cell, line(now))

    def say(self, cell: Cell, status: str) -> None:
        self.status[cell] = status
        self.told[cell] = time.monotonic()
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
