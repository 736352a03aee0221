"""Live workers, one per implementation and precision, for the suites that ask questions and measure no time."""

from __future__ import annotations

from typing import Any

from results.record import Cell
from suites.harness.context import START_TIMEOUT_S, Context
from suites.harness.process import WorkerError, WorkerProcess

LIVE = 2
"""Workers of an implementation that live at a time: the one that is asked, and the one in float64 beside it."""


class Workers:
    """One live worker per implementation and precision, started when first asked for and again after it ended.

    Only the one that was asked for last runs. The others are stopped, which leaves them their memory, so of an implementation no more than
    ``limit`` live: the one that was not asked for the longest ends. ``purpose`` begins the names of their logs.
    """

    def __init__(self, context: Context, purpose: str = "certify") -> None:
        self.context = context
        self.purpose = purpose
        self.limit = LIVE
        self._live: dict[tuple[str, str], tuple[WorkerProcess, dict[str, Any]]] = {}
        self._ended = False

    def get(self, cell: Cell, precision: str) -> tuple[WorkerProcess, dict[str, Any]]:
        """The worker and what it said of itself at its start.

        Raises:
            WorkerError: it cannot be started, or all were ended, maybe by another thread.
        """
        if self._ended:
            raise WorkerError("died", "its workers were ended")
        key = (cell.implementation, precision)
        self._live = {each: live for each, live in self._live.items() if live[0].alive}
        for other, (worker, _) in self._live.items():
            if other != key:
                worker.pause()
        if key not in self._live:
            own = [each for each in self._live if each[0] == cell.implementation]
            for other in own[: len(own) + 1 - self.limit]:
                self._live[other][0].end()
            worker = self.context.launch(cell, precision, purpose=self.purpose)
            try:
                self._live[key] = (worker, worker.call("start", START_TIMEOUT_S))
            except WorkerError:
                worker.end()
                raise
        self._live[key] = self._live.pop(key)  # behind all others: it was asked for last
        self._live[key][0].resume()
        return self._live[key]

    def dismiss(self) -> None:
        """End them all; they are started again when asked for."""
        for worker, _ in list(self._live.values()):
            worker.end()

    def end(self) -> None:
        """End them all, for good."""
        self._ended = True
        self.dismiss()
