"""The folder of a run: one line an epoch, states to go on from, and at the end the trained model.

OUT/events.jsonl               one line an epoch
OUT/state/step-00001200/       state.safetensors, state.json, manifest.json; the last two are kept
OUT/model.safetensors, record.json, manifest.json
OUT/.lock                      held by the process that writes here

Of several processes the first one reads and writes; all of them get the result or the error.
"""

from __future__ import annotations

import json
import logging
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from pnnh import checkpoint
from pnnh._errors import UsageError
from pnnh._files import check_writable, write_bytes
from pnnh.train import record
from pnnh.train.run import Run
from pnnh.train.state import restore, state

KEPT_STATES = 2
_log = logging.getLogger("pnnh")


class Store:
    """Opens `out` (made if needed, checked for writing) and, if `resume`, puts `run` where an earlier one stopped."""

    def __init__(self, out: str | PathLike[str], run: Run, spec: dict[str, Any] | None, *, resume: bool) -> None:
        self.folder, self.run = Path(out), run
        self.spec = spec or {"name": type(run.model).__qualname__, "kwargs": {}}
        self.history: list[dict[str, Any]] = []
        self._lock = FileLock(self.folder / ".lock", thread_local=False)
        try:
            newest = run.processes.first(lambda: self._open(resume))
            if newest is not None:
                tensors, value = newest
                restore(run, tensors, value["step"])
                self.history = value["history"]
            run.processes.first(self._write_events)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others write to the folder."""
        self._lock.release()

    def epoch_done(self, event: dict[str, Any]) -> None:
        """Write the line of an epoch and the state after it."""
        self.history.append(event)
        self.run.processes.first(self._write_events)
        self.save()

    def save(self) -> None:
        """Write the state of the run now, then drop the oldest states."""
        tensors = state(self.run)
        self.run.processes.first(lambda: self._write(tensors))

    def finish(self) -> None:
        """Write the trained model and its record."""
        value = record.build(self.run, spec=self.spec, history=self.history)
        self.run.processes.first(lambda: checkpoint.save(self.folder, self.run.model, value))

    def _open(self, resume: bool) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Lock and tidy the folder; the state to go on from, if there is one."""
        check_writable(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            way_out = "wait for it or choose another --out"
            raise UsageError(f"{self.folder} is being written by another run; {way_out}") from None
        for left in (*self.folder.glob(".*.partial"), *(self.folder / "state").glob(".*.partial")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()  # of a run that was killed while writing
        if resume:
            return self._newest()
        shutil.rmtree(self.folder / "state", ignore_errors=True)
        return None

    def _write_events(self) -> None:
        lines = "".join(json.dumps(event) + "\n" for event in self.history)
        write_bytes(self.folder / "events.jsonl", lines.encode())

    def _write(self, tensors: dict[str, Tensor]) -> None:
        folder = self.folder / "state" / f"step-{self.run.step:08d}"
        value = {"step": self.run.step, "history": self.history} | self._settings()
        checkpoint.write_folder(folder, {"state.safetensors": tensors}, {"state.json": value})
        for old in self._states()[:-KEPT_STATES]:
            shutil.rmtree(old, ignore_errors=True)

    def _states(self) -> list[Path]:
        return sorted(path for path in (self.folder / "state").glob("step-*") if path.is_dir())

    def _newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest state that is whole; says which ones are not and why."""
        for folder in reversed(self._states()):
            try:
                tensors, values = checkpoint.read_folder(folder)
            except checkpoint.Outdated as error:
                raise UsageError(f"{error}; another folder, or resume=False (--no-resume), starts anew") from None
            except checkpoint.Damaged as error:
                _log.warning("not used: %s", error)
                continue
            self._compare(values["state.json"])
            return tensors["state.safetensors"], values["state.json"]
        return None

    def _settings(self) -> dict[str, Any]:
        """What must be the same in a run that goes on from a state of this one."""
        run = self.run
        shapes = [f"{name} {tuple(value.shape)}" for name, value in run.model.state_dict().items()]
        model = {str(number): line.strip() for number, line in enumerate([*run.printed.splitlines(), *shapes])}
        return {"model": model, "recipe": run.recipe.to_dict(), "seed": run.seed, "data": run.data.sha256}

    def _compare(self, value: dict[str, Any]) -> None:
        """Raises UsageError with the first entry of the settings that differs."""
        for name, ours in self._settings().items():
            theirs = value.get(name)
            if ours == theirs:
                continue
            what = f"another {name}"
            if isinstance(ours, dict) and isinstance(theirs, dict):
                key = next(key for key in theirs | ours if theirs.get(key, "unknown") != ours.get(key, "unknown"))
                there, now = theirs.get(key, "unknown"), ours.get(key, "unknown")
                what += f" ({'' if name == 'model' else f'{key} '}{there!r} there, {now!r} now)"
            way_out = "take another folder, the same settings, or start anew with resume=False (--no-resume)"
            raise UsageError(f"{self.folder} holds a run with {what}; {way_out}")
