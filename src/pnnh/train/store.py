"""The folder of a run: events as they happen, states to go on from, and the trained model at the end.

OUT/events.jsonl               one line an epoch
OUT/state/step-00001200/       state.safetensors, state.json, manifest.json; the last two are kept
OUT/model.safetensors, record.json, manifest.json
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

from pnnh._errors import UsageError
from pnnh.train import checkpoint, record
from pnnh.train.run import Run

KEPT_STATES = 2
_log = logging.getLogger("pnnh")


class Store:
    """Opens `out` (made if needed, checked for writing) and, if `resume`, puts `run` where an earlier one stopped."""

    def __init__(self, out: str | PathLike[str], run: Run, spec: dict[str, Any] | None, *, resume: bool) -> None:
        self.folder, self.run = Path(out), run
        self.spec = spec or {"name": type(run.model).__qualname__, "kwargs": {}}
        self.history: list[dict[str, Any]] = []
        checkpoint.check_writable(self.folder)
        for left in (*self.folder.glob(".*.partial"), *(self.folder / "state").glob(".*.partial")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()  # of a run that was killed while writing
        if resume:
            self._resume()
        else:
            shutil.rmtree(self.folder / "state", ignore_errors=True)
        lines = "".join(json.dumps(event) + "\n" for event in self.history)
        checkpoint.write_bytes(self.folder / "events.jsonl", lines.encode())

    def epoch_done(self, event: dict[str, Any]) -> None:
        self.history.append(event)
        with open(self.folder / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
        self.save()

    def save(self) -> None:
        """Write the state of the run now, then drop the oldest states."""
        place = self.folder / "state" / f"step-{self.run.step:08d}"
        value = {"step": self.run.step, "history": self.history} | self._settings()
        checkpoint.write_folder(place, {"state.safetensors": self.run.state()}, {"state.json": value})
        for old in self._states()[:-KEPT_STATES]:
            shutil.rmtree(old, ignore_errors=True)

    def finish(self) -> None:
        """The trained model and its record, where every command can read them."""
        value = record.build(self.run, spec=self.spec, history=self.history)
        checkpoint.save(self.folder, self.run.model, value)

    def _states(self) -> list[Path]:
        return sorted(path for path in (self.folder / "state").glob("step-*") if path.is_dir())

    def _resume(self) -> None:
        """Take the newest state that is whole; say which ones are not and why."""
        for place in reversed(self._states()):
            try:
                tensors, values = checkpoint.read_folder(place)
            except checkpoint.Damaged as error:
                _log.warning("not used: %s", error)
                continue
            value = values["state.json"]
            self._compare(value)
            self.run.restore(tensors["state.safetensors"], value["step"])
            self.history = value["history"]
            return

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
                key = next(key for key in ours if ours[key] != theirs.get(key))
                what = f"recipe ({key} {theirs.get(key)!r} there, {ours[key]!r} now)"
            way_out = "take another folder, the same settings, or start anew with resume off"
            raise UsageError(f"{self.folder} holds a run with another {what}; {way_out}")
