"""Statistics of every activation while a model trains, in any training loop: survival, dead units, gradient norm."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pnnh._errors import UsageError
from pnnh.analysis.probe import Call, probe

COLUMNS = ("step", "depth", "layer", "op", "survival", "dead", "gradient")


@dataclass(frozen=True)
class Watched:
    """One activation in one watched pass. `step` counts training passes from 0, `depth` activations from 1.

    survival: share of positive outputs; dead: share of units (channels; features of vectors and tokens) that are
    positive nowhere in the batch; gradient: norm of the loss's gradient at the outputs, NaN if none arrived.
    """

    step: int
    depth: int
    layer: str
    op: str
    survival: float
    dead: float
    gradient: float


def watch(
    model: nn.Module,
    every: int = 100,
    *,
    out: str | Path | None = None,
    log: Callable[..., Any] | None = None,
) -> Watch:
    """Look at every activation of `model` in every `every`-th training pass, until the Watch is closed.

    A training pass is a call of the model in train mode with gradients on; all others are let alone. The model is not
    changed, and between watched passes nothing is computed.

        with pnnh.watch(model, every=100, out="watch.csv"):
            ...  # a training loop as it is

    Args:
        out: a .csv or .jsonl file, a line an activation; written anew.
        log: called as `log(values, step=step)` with {"survival/LAYER": ..., "dead/LAYER": ..., "gradient/LAYER": ...}:
            a W&B run's `log`, or for TensorBoard a function that calls `add_scalar` for each item.

    Raises:
        UsageError: `every` is below 1, `out` has another ending or cannot be written.
    """
    return Watch(model, every, out, log)


class Watch:
    """The handle that `watch` returns: a context manager with `rows()` and `close()`."""

    def __init__(self, model: nn.Module, every: int, out: str | Path | None, log: Callable[..., Any] | None) -> None:
        if every < 1:
            raise UsageError(f"every {every} must be at least 1")
        self.every, self.log, self.step = every, log, 0
        self.out = None if out is None else _open(Path(out))
        self._model, self._rows, self._passes = model, [], ExitStack()
        self._calls: list[tuple[str, str, Tensor]] = []  # layer, op, [survival, dead, gradient] of the pass under way
        self._hooks = [
            model.register_forward_pre_hook(self._before),
            model.register_forward_hook(self._after, always_call=True),
        ]

    def rows(self) -> list[dict[str, Any]]:
        """One dict per activation and watched pass so far."""
        self._flush()
        return [asdict(row) for row in self._rows]

    def close(self) -> None:
        """Write what is left and leave the model."""
        self._flush()
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _before(self, model: nn.Module, _inputs: Any) -> None:
        if model is not self._model or not model.training or not torch.is_grad_enabled():  # or a copy of the model
            return
        self._flush()
        if self.step % self.every == 0:
            self._passes.enter_context(probe(model, self._see))
        self.step += 1

    def _after(self, model: nn.Module, _inputs: Any, _output: Any) -> None:
        if model is self._model:
            self._passes.close()

    def _see(self, call: Call) -> None:
        with torch.no_grad():
            features = call.after.movedim(1, -1) if call.after.ndim >= 4 else call.after
            alive = features.reshape(-1, features.shape[-1]) > 0
            values = torch.full((3,), math.nan, device=alive.device)
            values[0], values[1] = alive.float().mean(), 1 - alive.any(0).float().mean()

        def arrived(gradient: Tensor) -> None:
            values[2] = gradient.detach().float().norm()

        self._calls.append((call.name, call.op, values))
        if call.after.requires_grad:
            call.after.register_hook(arrived)

    def _flush(self) -> None:
        """Turn the last watched pass into rows; waits for the device."""
        if not self._calls:
            return
        measured = torch.stack([values.detach() for *_, values in self._calls]).tolist()
        done = (self.step - 1) // self.every * self.every
        rows = [
            Watched(done, depth, layer, op, *values)
            for depth, ((layer, op, _), values) in enumerate(zip(self._calls, measured, strict=True), start=1)
        ]
        self._calls = []
        self._rows += rows
        if self.out is not None:
            _write(self.out, rows)
        if self.log is not None:
            names = ("survival", "dead", "gradient")
            self.log({f"{name}/{row.layer}": getattr(row, name) for row in rows for name in names}, step=done)


def _open(path: Path) -> Path:
    if path.suffix not in (".csv", ".jsonl"):
        raise UsageError(f"out {path.name!r} must end in .csv or .jsonl")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(",".join(COLUMNS) + "\n" if path.suffix == ".csv" else "")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}; choose another file") from None
    return path


def _write(path: Path, rows: list[Watched]) -> None:
    with open(path, "a", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file, lineterminator="\n").writerows(asdict(row).values() for row in rows)
        else:
            values = ({k: None if v != v else v for k, v in asdict(row).items()} for row in rows)  # NaN is no JSON
            file.writelines(json.dumps(value) + "\n" for value in values)
