"""The folder of a run: events as they happen, states to go on from, and the trained model at the end.

OUT/events.jsonl               one line an epoch
OUT/state/step-00001200/       state.safetensors, state.json, manifest.json; the last two are kept
OUT/model.safetensors, record.json, manifest.json
OUT/.lock                      held by the process that writes here

With several processes the first one reads and writes; all of them learn what came of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import defaultdict
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from pnnh import checkpoint
from pnnh._errors import UsageError
from pnnh._files import check_writable, write_bytes
from pnnh.train import record
from pnnh.train.execution import whole
from pnnh.train.lock import Lock
from pnnh.train.run import Run

KEPT_STATES = 2
_log = logging.getLogger("pnnh")


class Store:
    """Opens `out` (made if needed, checked for writing) and, if `resume`, puts `run` where an earlier one stopped."""

    def __init__(self, out: str | PathLike[str], run: Run, spec: dict[str, Any] | None, *, resume: bool) -> None:
        self.folder, self.run = Path(out), run
        self.spec = spec or {"name": type(run.model).__qualname__, "kwargs": {}}
        self.history: list[dict[str, Any]] = []
        self._lock = Lock(self.folder / ".lock")
        found = run.processes.first(lambda: self._open(resume))
        if found is not None:
            tensors, value = found
            self.run.restore(tensors, value["step"])
            self.history = value["history"]
        run.processes.first(self._write_events)

    def close(self) -> None:
        """Let others write to the folder."""
        self._lock.release()

    def epoch_done(self, event: dict[str, Any]) -> None:
        self.history.append(event)
        self.run.processes.first(lambda: self._append(event))
        self.save()

    def save(self) -> None:
        """Write the state of the run now, then drop the oldest states."""
        tensors = self.run.state()
        self.run.processes.first(lambda: self._write(tensors))

    def finish(self) -> None:
        """The trained model and its record, where every command can read them."""
        tensors = {name: whole(value) for name, value in self.run.model.state_dict().items()}
        value = record.build(self.run, spec=self.spec, history=self.history)
        self.run.processes.first(lambda: checkpoint.save(self.folder, tensors, value))

    def _open(self, resume: bool) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Make the folder ours and tidy; the state to go on from, if there is one."""
        check_writable(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock.take()
        for left in (*self.folder.glob(".*.partial"), *(self.folder / "state").glob(".*.partial")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()  # of a run that was killed while writing
        if resume:
            return self._newest()
        shutil.rmtree(self.folder / "state", ignore_errors=True)
        return None

    def _write_events(self) -> None:
        lines = "".join(json.dumps(event) + "\n" for event in self.history)
        write_bytes(self.folder / "events.jsonl", lines.encode())

    def _append(self, event: dict[str, Any]) -> None:
        with open(self.folder / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def _write(self, tensors: dict[str, Tensor]) -> None:
        place = self.folder / "state" / f"step-{self.run.step:08d}"
        value = {"step": self.run.step, "history": self.history} | self._settings()
        checkpoint.write_folder(place, {"state.safetensors": tensors}, {"state.json": value})
        for old in self._states()[:-KEPT_STATES]:
            shutil.rmtree(old, ignore_errors=True)

    def _states(self) -> list[Path]:
        return sorted(path for path in (self.folder / "state").glob("step-*") if path.is_dir())

    def _newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest state that is whole; says which ones are not and why."""
        for place in reversed(self._states()):
            try:
                tensors, values = checkpoint.read_folder(place)
            except checkpoint.Damaged as error:
                _log.warning("not used: %s", error)
                continue
            value = values["state.json"]
            self._compare(value)
            return tensors["state.safetensors"], value
        return None

    def _settings(self) -> dict[str, Any]:
        shapes = [(name, tuple(value.shape)) for name, value in self.run.model.state_dict().items()]
        return {
            "model": hashlib.sha256(repr(shapes).encode()).hexdigest(),
            "recipe": self.run.recipe.to_dict(),
            "seed": self.run.seed,
            "data": self.run.data.sha256,
        }

    def _compare(self, value: dict[str, Any]) -> None:
        for name, ours in self._settings().items():
            theirs = value.get(name)
            if ours == theirs:
                continue
            what = name
            if name == "recipe" and isinstance(theirs, dict):
                there, now = (defaultdict(lambda: "unknown", recipe) for recipe in (theirs, ours))
                key = next(key for key in theirs | ours if there[key] != now[key])
                what = f"recipe ({key} {there[key]!r} there, {now[key]!r} now)"
            way_out = "take another folder, the same settings, or start anew with resume off"
            raise UsageError(f"{self.folder} holds a run with another {what}; {way_out}")
