"""Live workers, one per implementation and precision, for the suites that ask questions and measure no time."""

from __future__ import annotations

from typing import Any

from results.record import Cell
from suites.harness.context import START_TIMEOUT_S, Context
from suites.harness.process import WorkerError, WorkerProcess


class Workers:
    """One live worker per implementation and precision, started when first asked for and again after it died.

    Only the one that was asked for last runs; the others are stopped, or ended where ``alone`` is set: a stopped one keeps its memory.
    ``purpose`` begins the names of their logs.
    """

    def __init__(self, context: Context, purpose: str = "certify") -> None:
        self.context = context
        self.purpose = purpose
        self.alone = False
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
        if key in self._live and not self._live[key][0].alive:
            del self._live[key]
        for other, (worker, _) in self._live.items():
            if other != key:
                (worker.end if self.alone else worker.pause)()
        if key not in self._live:
            worker = self.context.launch(cell, precision, purpose=self.purpose)
            try:
                self._live[key] = (worker, worker.call("start", START_TIMEOUT_S))
            except WorkerError:
                worker.end()
                raise
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
