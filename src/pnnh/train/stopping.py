"""Signals that stop a run: the first SIGTERM or Ctrl-C asks the loop to save and stop, a second one ends it at once."""

from __future__ import annotations

import signal
from types import TracebackType

STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again


class StopOnSignal:
    """The `stop` of `train`: true once a signal came. `with StopOnSignal() as stop: ...`, in the main thread only."""

    def __init__(self) -> None:
        self._asked = False
        self._previous: dict[int, object] = {}

    def __call__(self) -> bool:
        return self._asked

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: object) -> None:
        self._asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()
