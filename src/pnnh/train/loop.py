"""The training loop: a generator that yields one event an epoch, over any nn.Module."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import torch
from torch import nn

from pnnh._errors import RunError, UsageError
from pnnh.data import Dataset
from pnnh.train.evaluate import Evaluation, evaluate
from pnnh.train.execution import Execution
from pnnh.train.processes import join
from pnnh.train.recipe import Recipe
from pnnh.train.run import Run
from pnnh.train.store import Store


@dataclass(frozen=True)
class Epoch:
    """One epoch, as it was. Accuracies are shares in [0, 1]; train_accuracy is on augmented images, while learning.

    test_accuracy and test_loss are of the averaged weights where the recipe has an `ema_decay`; None if not measured
    (a test_loss also where it overflows).
    images_per_second counts training only, seconds training and evaluation.
    """

    epoch: int
    step: int
    loss: float
    train_accuracy: float
    test_accuracy: float | None
    test_loss: float | None
    lr: float
    images_per_second: float
    seconds: float
    eta_seconds: float

    def __str__(self) -> str:
        test = "" if self.test_accuracy is None else f"  test {100 * self.test_accuracy:5.2f} %"
        minutes, seconds = divmod(round(self.eta_seconds), 60)
        learnt = f"loss {self.loss:.4f}  train {100 * self.train_accuracy:5.2f} %{test}"
        return f"{learnt}  lr {self.lr:.4f}  {self.images_per_second:.0f} img/s  {minutes}:{seconds:02d} left"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(self)]


class Stopped(RunError):
    """Training was asked to stop and did, after saving its state where it has an `out`."""


def train(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    out: str | PathLike[str] | None = None,
    resume: bool = True,
    spec: dict[str, Any] | None = None,
    evaluate_every: int = 1,
    stop: Callable[[], bool] = lambda: False,
    execution: Execution | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place: an iterator that yields an Epoch after each epoch.

    When it is exhausted `model` is in eval mode and holds the final (averaged) weights. Under `torchrun` or
    `accelerate launch` all processes call this alike and train one model together; the recipe's batch size is the
    number of images of one update, whatever their number.

    out: folder for `events.jsonl`, the resumable state after every epoch, and at the end model.safetensors, record.json
        and manifest.json. A run found there goes on where it stopped, its earlier epochs yielded first; on a CPU the
        result is bitwise that of an uninterrupted run. `resume=False` starts anew.
    seed: of the order of the images and the augmentation. device: "auto", "cpu", "cuda", "cuda:1", ...
    spec: {"name", "kwargs"} for the record, so that other commands can rebuild the model.
    evaluate_every: epochs between looks at data.test; 0 never. The last epoch is always looked at otherwise.
    stop: asked after every step and between batches of an evaluation; when true the state is saved, Stopped raised.
    execution: how several processes hold the model, passes per batch, checkpointing; see `Execution`.
    Raises UsageError at once, before any step (device, shapes, classes, `out`); NotFinite when the loss is not.
    """
    device = pick_device(device)
    check_fit(model, data)
    run = Run(model, data, recipe, seed, device, execution=execution, processes=join(device.type))
    store = None if out is None else Store(out, run, spec, resume=resume)
    return _epochs(run, store, evaluate_every, stop)


def _epochs(run: Run, store: Store | None, evaluate_every: int, stop: Callable[[], bool]) -> Iterator[Epoch]:
    try:
        yield from _trained(run, store, evaluate_every, lambda: _stop_if(stop, run, store))
    finally:
        if store is not None:
            store.close()


def _trained(run: Run, store: Store | None, evaluate_every: int, between: Callable[[], None]) -> Iterator[Epoch]:
    history = [] if store is None else store.history
    yield from [Epoch(**event) for event in history]
    spent: list[float] = []
    for number in range(len(history) + 1, run.recipe.epochs + 1):
        start, first = time.perf_counter(), run.step
        _updates(run, number * run.steps_per_epoch, between)
        seconds = time.perf_counter() - start
        look = evaluate_every and (number % evaluate_every == 0 or number == run.recipe.epochs)
        seen = _look(run, between) if look else None
        spent.append(time.perf_counter() - start)
        loss, correct = run.sums()
        event = Epoch(
            epoch=number,
            step=run.step,
            loss=loss / run.steps_per_epoch,
            train_accuracy=correct / (run.steps_per_epoch * run.recipe.batch_size),
            test_accuracy=seen.accuracy if seen else None,
            test_loss=seen.loss if seen and math.isfinite(seen.loss) else None,
            lr=run.lr,
            images_per_second=(run.step - first) * run.recipe.batch_size / seconds,
            seconds=spent[-1],
            eta_seconds=sum(spent) / len(spent) * (run.recipe.epochs - number),
        )
        if store is not None:
            store.epoch_done(event.to_dict())
        yield event
    if run.ema is not None:
        run.model.load_state_dict(run.averaged.state_dict())
    run.model.eval()
    if store is not None:
        store.finish()


def _look(run: Run, between: Callable[[], None]) -> Evaluation:
    choices = {"device": run.device, "amp": run.recipe.amp, "processes": run.processes}
    return evaluate(run.averaged, run.data, between=between, **choices)


def _updates(run: Run, end: int, between: Callable[[], None]) -> None:
    """Train up to step `end`; the device has finished when this returns. Raises Stopped, NotFinite."""
    run.model.train()
    while run.step < end:
        run.advance()
        between()
    if run.processes.any(run.watch.was_bad()):
        run.refuse()


def _stop_if(stop: Callable[[], bool], run: Run, store: Store | None) -> None:
    """Save and raise Stopped, in all processes, if one of them is asked to stop."""
    if not run.processes.any(stop()):
        return
    if store is not None:
        store.save()
    saved = f"; the same command goes on from {store.folder}" if store else ", nothing saved (no out folder)"
    raise Stopped(f"stopped at step {run.step} of {run.steps}{saved}")


def pick_device(name: str | torch.device) -> torch.device:
    """ "auto" is CUDA where there is one (for each process of a machine its own), else the CPU.

    Raises UsageError for a device this machine has not.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"device {str(name)!r} is not available to this PyTorch here; use --device cpu") from None
    return device


@torch.no_grad()
def check_fit(model: nn.Module, data: Dataset) -> None:
    """Run two images through the model on its own device: channels, size and number of classes must agree."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise UsageError("the model has no parameter to train")
    shape = f"{data.channels}x{data.image_size}x{data.image_size}"
    conv = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if conv is not None and conv.in_channels != data.channels:
        wanted = conv.in_channels
        way_out = f"use channels={wanted} (--channels {wanted})" if wanted in (1, 3) else "change in_chans"
        raise UsageError(f"images have {data.channels} channel(s), the model takes {wanted}; {way_out}")
    training = {module: module.training for module in model.modules()}
    try:
        side = data.image_size
        logits = model.eval()(torch.zeros(2, data.channels, side, side, device=parameter.device))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UsageError(f"the model refuses images of {shape}: {reason}; change image_size or the model") from None
    finally:
        for module, was in training.items():
            module.training = was
    expected = (2, data.num_classes)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != expected:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UsageError(f"the model's output for 2 images is {got}, the data needs {expected}; set num_classes")
