"""Run the cells of a comparison one after another, or several processes at a time."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from pnnh.recipes.comparison import Cell, Comparison, run_cell


def run(
    plan: Comparison, *, device: str, out: Path, jobs: int = 1, tell: Callable = lambda cell, event: None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of `plan` as they finish; `tell(cell, event)` is called here after every epoch of every cell.

    jobs: processes at a time; each gets an equal share of the CPU threads. Rows already in `out` come at once.
    """
    data = plan.load()
    if jobs <= 1:
        for cell in plan.cells():
            yield run_cell(plan, cell, data, device=device, out=out, tell=tell)
        return
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with context.Manager() as manager:
        events = manager.Queue()
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            pending: set[Future] = {
                pool.submit(_work, plan, cell, device, out, threads, events) for cell in plan.cells()
            }
            try:
                while pending:
                    done, pending = wait(pending, timeout=0.3, return_when=FIRST_COMPLETED)
                    _pass_on(events, tell)
                    yield from (future.result() for future in done)
            finally:
                for future in pending:
                    future.cancel()


def _work(plan: Comparison, cell: Cell, device: str, out: Path, threads: int, events) -> dict[str, Any]:
    torch.set_num_threads(threads)
    return run_cell(plan, cell, plan.load(), device=device, out=out, tell=lambda *said: events.put(said))


def _pass_on(events, tell: Callable) -> None:
    while True:
        try:
            tell(*events.get_nowait())
        except queue.Empty:
            return
