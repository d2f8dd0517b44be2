"""Signs of life: a bar inside the epoch on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

if TYPE_CHECKING:
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
