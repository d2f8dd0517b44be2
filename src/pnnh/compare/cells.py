"""Train the cells of a comparison, one after another or several at a time; a finished cell is never trained again.

A net whose loss is not finite has a row as well: `diverged` says where, and it has no accuracy.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pnnh._errors import RunError
from pnnh._files import write_bytes
from pnnh._modules import left_as_found
from pnnh.analysis.probe import probe
from pnnh.analysis.readback import read_back
from pnnh.compare.comparison import Cell, Comparison
from pnnh.cost import cost
from pnnh.data import Dataset, Split
from pnnh.train import Epoch, Normalise, NotFinite, Progress, train


class Observer:
    """Is told how a comparison goes on; this one does nothing."""

    def loading(self, data: str) -> None:
        """The data are about to be loaded."""

    def begin(self, plan: Comparison, data: Dataset) -> None:
        """The cells of `plan` are about to be trained on `data`."""

    def epoch(self, cell: Cell, event: Epoch) -> None:
        """An epoch of `cell` is over."""

    def step(self, cell: Cell, now: Progress) -> None:
        """An update of `cell` is done; called about once a second."""

    def done(self, cell: Cell, row: dict[str, Any]) -> None:
        """`cell` is trained, or was found trained."""


def run(
    plan: Comparison, data: Dataset, *, device: str, out: Path, jobs: int = 1, observer: Observer | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of `plan` as they finish; rows that `out` has come at once.

    jobs: processes at a time; each gets an equal share of the CPU's threads, and all see one copy of the images.
    """
    observer = observer or Observer()
    if jobs <= 1:
        for cell in plan.cells():
            yield run_cell(plan, cell, data, device=device, out=out, observer=observer)
        return
    context = multiprocessing.get_context("spawn")  # a process whose autograd has worked cannot be forked
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with tempfile.TemporaryDirectory(prefix="pnnh-") as folder, context.Manager() as manager:
        start = (_on_disk(data, Path(folder)), threads)
        events = manager.Queue()
        with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=start) as pool:
            pending: set[Future] = {pool.submit(_work, plan, cell, device, out, events) for cell in plan.cells()}
            try:
                while pending:
                    done, pending = wait(pending, timeout=0.3, return_when=FIRST_COMPLETED)
                    _pass_on(events, observer)
                    yield from (future.result() for future in done)
            finally:
                for future in pending:
                    future.cancel()


def _on_disk(data: Dataset, folder: Path) -> tuple[Dataset, dict[str, Any]]:
    """`data` without its images in memory, and where those lie: processes that map one file share its pages."""
    places: dict[str, Any] = {}
    for name in ("train", "test"):
        split = getattr(data, name)
        if isinstance(split, Split):
            file = folder / name
            split.images.contiguous().numpy().tofile(file)
            places[name] = (str(file), tuple(split.images.shape), split.labels)
            data = replace(data, **{name: split.take(torch.arange(0))})
    return data, places


_data: list[Dataset] = []  # of a process that works


def _start(shared: tuple[Dataset, dict[str, Any]], threads: int) -> None:
    torch.set_num_threads(threads)
    data, places = shared
    for name, (file, shape, labels) in places.items():
        count = torch.Size(shape).numel()
        images = torch.from_file(file, shared=False, size=count, dtype=torch.uint8).view(shape)
        data = replace(data, **{name: replace(getattr(data, name), images=images, labels=labels)})
    _data[:] = [data]


class _Teller(Observer):
    """Passes epochs and steps on to the first process."""

    def __init__(self, events):
        self.events = events

    def epoch(self, cell: Cell, event: Epoch) -> None:
        self.events.put(("epoch", cell, event))

    def step(self, cell: Cell, now: Progress) -> None:
        self.events.put(("step", cell, now))


def _work(plan: Comparison, cell: Cell, device: str, out: Path, events) -> dict[str, Any]:
    return run_cell(plan, cell, _data[0], device=device, out=out, observer=_Teller(events))


def _pass_on(events, observer: Observer) -> None:
    while True:
        try:
            kind, cell, event = events.get_nowait()
            getattr(observer, kind)(cell, event)
        except queue.Empty:
            return


def run_cell(
    plan: Comparison, cell: Cell, data: Dataset, *, device: str, out: Path, observer: Observer
) -> dict[str, Any]:
    """Train one cell; write its row and return it, or the row that `out` has of the same net, recipe and data."""
    torch.manual_seed(cell.seed)
    model, spec = plan.family.build(cell.method, cell.depth, data)
    recipe, key = plan.recipe_of(cell), plan.key(cell, model, data)
    file = out / "rows" / f"{cell.name}.json"
    if (row := finished(file, key)) is not None:
        return row
    sizes = cost(model, (data.channels, data.image_size, data.image_size))
    at_init = survival(model, data)
    views = {"untrained": view(model, data)} if plan.shows(cell) else {}
    folder = out / "models" / f"{cell.name}-{key}"
    events: list[Epoch] = []
    diverged = None
    try:
        choices = {"seed": cell.seed, "device": device, "out": folder, "spec": spec, "execution": plan.execution}
        for event in train(model, data, recipe, **choices, on_step=_seldom(partial(observer.step, cell))):
            events.append(event)
            observer.epoch(cell, event)
    except NotFinite as error:
        diverged = str(error)
    row = asdict(cell) | asdict(sizes) | {"layers": getattr(model, "depth", cell.depth), "diverged": diverged}
    row |= outcome(events, diverged is None, recipe.batch_size)
    row |= {"model": None if diverged else str(folder.relative_to(out)), "survival_at_init": at_init}
    row |= {"survival_trained": [] if diverged else survival(model, data), "key": key}
    views |= {"trained": view(model, data)} if views and not diverged else {}
    row |= {"views": {state: found for state, found in views.items() if found}}
    row |= {"lr": recipe.optimizer.lr, "options": plan.family.methods[cell.method].options}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, json.dumps(row).encode())
    except OSError as error:
        raise RunError(f"cannot write {file}: {error.strerror}; free some space or choose another --out") from None
    return row


def _seldom(tell: Callable[[Progress], None], seconds: float = 1.0) -> Callable[[Progress], None]:
    """`tell`, but not again before `seconds` have passed."""
    last = time.monotonic()

    def step(now: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            tell(now)

    return step


def outcome(events: list[Epoch], whole: bool, batch_size: int) -> dict[str, Any]:
    """What a row says of its epochs; accuracies only of a training that went through.

    step_ms: milliseconds of one update, the median over epochs.
    """
    last = events[-1] if whole else None
    speed = statistics.median_high(e.images_per_second for e in events) if events else None
    return {
        "test_accuracy": last and last.test_accuracy,
        "train_accuracy": last and last.train_accuracy,
        "images_per_second": speed,
        "step_ms": 1000 * batch_size / speed if speed else None,
        "seconds": sum(event.seconds for event in events),
        "curve": [asdict(event) for event in events],
    }


def finished(file: Path, key: str) -> dict[str, Any] | None:
    """The row in `file` if it is whole and has this `key`, else None."""
    try:
        row = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return row if row.get("key") == key else None


@torch.no_grad()
def survival(model: nn.Module, data: Dataset, num_images: int = 128) -> list[float]:
    """Share of positive units after each ReLU, in call order, on test images with the norms' batch statistics."""
    device = next(model.parameters()).device
    count = min(num_images, len(data.test))
    images = Normalise(data, device)(data.test.pixels(torch.arange(count)).to(device))
    alive: list[torch.Tensor] = []
    with left_as_found(model, training=True), probe(model, lambda call: alive.append((call.after > 0).float().mean())):
        model(images)
    return torch.stack(alive).tolist() if alive else []


def view(model: nn.Module, data: Dataset, num_images: int = 64) -> dict[str, Any] | None:
    """A test image read back along the net, with the norms' batch statistics; None if there are too few images."""
    count = min(num_images, len(data.test))
    if count < 16:
        return None
    device = next(model.parameters()).device
    images = Normalise(data, device)(data.test.pixels(torch.arange(count)).to(device))
    return read_back(model, images, training=True)
