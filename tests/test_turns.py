"""A round of processes that take turns, with workers that are only told of."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from impls.implementation import find
from results.record import Cell
from suites.harness import plan, turns
from suites.harness.process import WorkerError
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


class Scribe:
    """A worker that writes down what it is asked, and what its process was told; it knows every answer, unless its name is ``faulty``."""

    def __init__(self, name: str, written: list[tuple[str, str]]) -> None:
        self.name, self.written = name, written
        self.lost: WorkerError | None = None

    def __enter__(self) -> Scribe:
        return self

    def __exit__(self, *_: object) -> None:
        self.written.append((self.name, "end"))

    def send(self, operation: str, **_: object) -> None:
        if self.lost:
            raise self.lost
        self.written.append((self.name, operation))

    def receive(self, timeout_s: float) -> dict[str, Any]:
        if self.written[-1] == ("faulty", "put"):
            raise WorkerError("failed", "no engine")
        self.written.append((self.name, "answer"))
        return {"import_s": 0.0, "load_s": 0.0, "first_call_s": 0.0, "settings": {}}

    def pause(self) -> None:
        self.written.append((self.name, "pause"))

    def resume(self) -> None:
        self.written.append((self.name, "resume"))

    def give_up(self, error: WorkerError) -> None:
        self.written.append((self.name, "give up"))
        self.lost = error


BUILD = ["resume", "prepare", "answer", "put", "answer", "pause"]


Lines = list[tuple[str, str]]


def prepared(
    monkeypatch: pytest.MonkeyPatch, device: str, names: Sequence[str], *, makes_room: bool = False
) -> tuple[dict[Entrant, Turn], Lines, list[Entrant]]:
    """Two scopes of a network of each worker: those that are built, what workers were asked and told until then, and those that failed."""
    lines: Lines = []
    failed: list[Entrant] = []
    context: Any = SimpleNamespace(launch=lambda cell, *_, **__: Scribe(cell.mode, lines), manifests=find(), card=None)
    monkeypatch.setattr(turns, "_prepare_request", lambda entrant: ("prepare", {}))
    monkeypatch.setattr(turns, "_put_request", lambda entrant: ("put", {}))
    cells = [dataclasses.replace(CELL, device=device, mode=name) for name in names]
    groups = [[Entrant(dataclasses.replace(cell, scope=scope), context) for cell in cells] for scope in plan.SCOPES]
    taken = Round(groups, plan.SMOKE, 0, lambda entrant, *_: failed.append(entrant), audited=False, makes_room=makes_room)
    with contextlib.ExitStack() as stack:
        made = taken._prepare(stack, "time")
        kept = list(lines)
    assert {*made, *failed} == {entrant for group in groups for entrant in group}
    return made, kept, failed


def test_networks_are_built_in_turn_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are stopped first; then one after the other is woken, builds, makes its first call and is stopped again."""
    names = ("one", "two", "three")
    _, lines, _ = prepared(monkeypatch, "cuda", names)
    stopped = [place for place, (_, what) in enumerate(lines) if what == "pause"][2] + 1
    assert Counter(lines[:stopped]) == {(name, what): 1 for name in names for what in ("start", "answer", "pause")}
    built = lines[stopped:]
    assert [what for _, what in built] == 3 * BUILD
    assert [len({name for name, _ in built[place : place + len(BUILD)]}) for place in range(0, len(built), len(BUILD))] == [1, 1, 1]


def test_networks_are_built_together_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose cores are enough, or the same for all; each step is asked of all before anyone is waited for."""
    _, lines, _ = prepared(monkeypatch, "cpu", ("one", "two", "three"))
    asked = [what for _, what in lines if what in ("start", "prepare", "put", "answer")]
    assert asked == [each for what in ("start", "prepare", "put") for each in (*3 * [what], *3 * ["answer"])]


@pytest.mark.parametrize("makes_room", [True, False])
def test_a_process_that_failed_makes_room(monkeypatch: pytest.MonkeyPatch, makes_room: bool) -> None:
    """Where it will be tried again it ends before anyone else builds; neither of its scopes is measured, and the others' are."""
    made, lines, failed = prepared(monkeypatch, "cuda", ("one", "faulty", "two"), makes_room=makes_room)
    assert [entrant.cell.mode for entrant in failed] == ["faulty", "faulty"]
    assert {entrant.cell.mode for entrant in made} == {"one", "two"}
    after = lines[lines.index(("faulty", "put")) + 1]
    assert (after == ("faulty", "give up")) == makes_room


def test_what_stays_on_a_card_is_measured_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, whose processes tell no allocator's peak, groups come as they fall."""
    orders: dict[str, set[tuple[str, ...]]] = {"cpu": set(), "cuda": set()}
    for device in (*20 * ["cpu"], *20 * ["cuda"]):
        cells = [dataclasses.replace(CELL, device=device, scope=scope) for scope in reversed(plan.SCOPES)]
        taken = Round([[Entrant(cell, NOBODY)] for cell in cells], plan.SMOKE, 0, NOBODY, audited=False)
        met: list[str] = []
        everyone = {group[0]: SimpleNamespace(entrant=group[0]) for group in taken.groups}
        monkeypatch.setattr(taken, "_prepare", lambda *_, everyone=everyone: everyone)
        monkeypatch.setattr(taken, "_measure", lambda those, met=met: met.append(those[0].entrant.cell.scope))
        taken.run(lambda: None, "time")
        orders[device].add(tuple(met))
    assert orders == {"cpu": {("device", "transfer"), ("transfer", "device")}, "cuda": {("device", "transfer")}}
