"""A round of processes that take turns, with workers that are only told of."""

from __future__ import annotations

from typing import Any

import pytest

from results.record import Cell
from suites.harness import plan, turns
from suites.harness.turns import Entrant, Round, Turn

CELL = Cell("card", "eager", "resnet18", "fp32", "cuda", 1, "device", "single_stream", 1)
NOBODY: Any = None


class Timed:
    """A worker whose first calls take ``slow_s`` and all others ``call_s``."""

    def __init__(self, slow_s: float, call_s: float) -> None:
        self.slow_s, self.call_s = slow_s, call_s
        self.taken_s: list[float] = []

    def call(self, operation: str, timeout_s: float, *, samples: int, calls: int, **_: Any) -> dict[str, Any]:
        assert (operation, calls) == ("visit", 1)
        took = [self.slow_s if len(self.taken_s) + place < turns.WARMUP_CALLS else self.call_s for place in range(samples)]
        self.taken_s += took
        ns = [round(each * 1e9) for each in took]
        return {"start_ns": ns, "duration_ns": ns, "calls": [1] * samples, "compilations": 0}


@pytest.mark.parametrize("effort", [plan.STANDARD, plan.ON_GPU], ids=["cpu", "cuda"])
@pytest.mark.parametrize(("slow_s", "call_s"), [(0.02, 0.0003), (0.0003, 0.0003), (0.01, 0.004), (2.0, 0.2), (0.1, 0.1)])
def test_a_warm_up_lasts_as_long_as_it_should(effort: plan.Effort, slow_s: float, call_s: float) -> None:
    """However slow the first calls were, calls follow until the time is over and not for long after it; the last ones set the sizes."""
    worker: Any = Timed(slow_s, call_s)
    turn = Turn(Entrant(CELL, NOBODY), worker, {}, {}, {})
    Round([[turn.entrant]], effort, 0, NOBODY, audited=False)._warm_up(turn)
    assert len(worker.taken_s) >= turns.WARMUP_CALLS
    assert sum(worker.taken_s) >= effort.warmup_s - 1e-9
    assert sum(worker.taken_s[: -turns.WARMUP_CALLS - 1]) < effort.warmup_s
    last_s = worker.taken_s[-1]
    assert effort.visit_s <= turn.samples * last_s * 1.001 or turn.samples == 1000
    assert turn.samples * last_s < max(effort.visit_s, effort.samples * last_s) + 2 * last_s


def test_without_a_warm_up_a_few_calls_are_made() -> None:
    """A smoke run's."""
    worker: Any = Timed(0.001, 0.001)
    turn = Turn(Entrant(CELL, NOBODY), worker, {}, {}, {})
    Round([[turn.entrant]], plan.SMOKE, 0, NOBODY, audited=False)._warm_up(turn)
    assert len(worker.taken_s) == turns.WARMUP_CALLS
