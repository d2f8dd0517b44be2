"""The training loop: a generator that yields one `Epoch` an epoch, over any nn.Module."""

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
from pnnh._modules import left_as_found
from pnnh.data.types import Dataset
from pnnh.train.evaluate import wilson
from pnnh.train.execution import Execution
from pnnh.train.processes import join
from pnnh.train.recipe import Recipe
from pnnh.train.run import Run
from pnnh.train.store import Store


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to. Accuracies are shares in [0, 1]; train_accuracy is on augmented images, while learning.

    test_accuracy, test_loss: of the averaged weights where the recipe has an `ema_decay`, with recomputed batch norms
        where it has `recompute_norms`; None if not measured (test_loss also where it overflows).
    test_images: how many they were; chance: the accuracy of always answering their most frequent class.
    norms_recomputed: whether the statistics of batch norms were taken anew before the test.
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
    test_images: int | None = None
    chance: float | None = None
    norms_recomputed: bool = False

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % Wilson interval of the test accuracy."""
        return None if self.test_accuracy is None else wilson(self.test_accuracy, self.test_images or 1)

    def __str__(self) -> str:
        test = "" if self.test_accuracy is None else f"  test {100 * self.test_accuracy:5.2f} %"
        minutes, seconds = divmod(round(self.eta_seconds), 60)
        learnt = f"loss {self.loss:.4f}  train {100 * self.train_accuracy:5.2f} %{test}"
        return f"{learnt}  lr {self.lr:.4f}  {self.images_per_second:.0f} img/s  {minutes}:{seconds:02d} left"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(self)]


@dataclass(frozen=True)
class Progress:
    """Where a run is, told after every step: `step` of `steps` updates are done, in epoch `epoch` of `epochs`.

    images_per_second: of this epoch so far; seconds_left: of training, without evaluations.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    seconds_left: float


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
    on_step: Callable[[Progress], None] | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place: an iterator that yields an Epoch after each epoch.

    When it is exhausted `model` is in eval mode and holds the final (averaged) weights. Under `torchrun` or
    `accelerate launch` all processes call this alike and train one model together; the recipe's batch size is the
    number of images of one update, whatever their number.

    Args:
        model: takes float images [n, C, S, S] of `data`, returns logits [n, num_classes].
        seed: of the order of the images, the augmentation and the model's own draws; at least 0, below 2^63.
        device: "auto" is a GPU where there is one, else the CPU.
        out: folder for `events.jsonl`, the resumable state after every epoch, and at the end model.safetensors,
            record.json and manifest.json. A run found there goes on where it stopped, its earlier epochs yielded
            first; on a CPU the result is bitwise that of an uninterrupted run. `resume=False` starts anew.
        spec: {"name", "kwargs"} for the record, so that other commands can rebuild the model.
        evaluate_every: epochs between looks at data.test; 0 never. The last epoch is always looked at otherwise.
        stop: asked after every step and between batches of an evaluation; when true the state is saved and Stopped
            raised.
        execution: passes per batch, checkpointing, compiling; see `Execution`.
        on_step: called after every step with the Progress so far, without waiting for the device.

    Raises:
        UsageError: at once, before any step (device, shapes, classes, seed, `out`).
        NotFinite: a loss or a weight became NaN or infinite.
        Stopped: `stop` was true.
    """
    device = pick_device(device)
    check_fit(model, data)
    run = Run(model, data, recipe, seed, device, execution=execution, processes=join(device.type))
    store = None if out is None else Store(out, run, spec, resume=resume)
    return _epochs(run, store, evaluate_every, stop, on_step)


def _epochs(
    run: Run,
    store: Store | None,
    evaluate_every: int,
    stop: Callable[[], bool],
    on_step: Callable[[Progress], None] | None,
) -> Iterator[Epoch]:
    def between() -> None:
        _stop_if(stop, run, store)

    history = [] if store is None else store.history
    spent: list[float] = []
    try:
        yield from [Epoch(**event) for event in history]
        for number in range(len(history) + 1, run.recipe.epochs + 1):
            start, first = time.perf_counter(), run.step
            run.model.train()
            while run.step < number * run.steps_per_epoch:
                run.advance()
                if on_step is not None:
                    on_step(_progress(run, number, first, time.perf_counter() - start))
                between()
            run.check_finite()  # waits for the device
            seconds = time.perf_counter() - start
            looked = evaluate_every and (number % evaluate_every == 0 or number == run.recipe.epochs)
            seen = run.evaluate(between) if looked else None
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
                test_images=seen.num_images if seen else None,
                chance=seen.chance if seen else None,
                norms_recomputed=bool(seen) and run.recomputes_norms,
            )
            if store is not None:
                store.epoch_done(event.to_dict())
            yield event
        run.finish()
        if store is not None:
            store.finish()
    finally:
        if store is not None:
            store.close()


def _progress(run: Run, number: int, first: int, seconds: float) -> Progress:
    rate = (run.step - first) / seconds  # steps a second
    speed, left = rate * run.recipe.batch_size, (run.steps - run.step) / rate
    return Progress(number, run.recipe.epochs, run.step, run.steps, speed, left)


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

    Raises UsageError for a device this machine has not, and for devices that compute nothing ("meta").
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()
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
    images = torch.zeros(2, data.channels, data.image_size, data.image_size, device=parameter.device)
    try:
        with left_as_found(model, training=False):
            logits = model(images)
    except UsageError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UsageError(f"the model refuses images of {shape}: {reason}; change image_size or the model") from None
    expected = (2, data.num_classes)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != expected:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UsageError(f"the model's output for 2 images is {got}, the data needs {expected}; set num_classes")
