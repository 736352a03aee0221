"""The timed loop: what is inside the clock, in which order, and nothing else."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suites.harness import audits, clock


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """What a visit froze is the collector's again."""
    yield
    gc.unfreeze()


class Spy:
    """A network that writes down every call and every reading of the clock."""

    host_layout = "NCHW"

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.collects: list[bool] = []

    def put(self, host: str) -> str:
        self.calls.append(("put", host))
        return f"{host} on device"

    def run(self, batch: str) -> str:
        self.calls.append(("run", batch))
        self.collects.append(gc.isenabled())
        return f"output of {batch}"

    def wait(self, output: str) -> None:
        self.calls.append(("wait", output))

    def get(self, output: str) -> str:
        self.calls.append(("get", output))
        return output


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> tuple[Spy, clock.TimedPath]:
    """A path over a ring of two batches, built, with a clock that ticks 1 ns a reading and is written down too."""
    spy = Spy()
    path = clock.TimedPath(spy, ["a", "b"])
    ticks = itertools.count(1)

    def read() -> int:
        spy.calls.append(("clock", None))
        return next(ticks)

    monkeypatch.setattr(clock.time, "perf_counter_ns", read)
    return spy, path


def verbs(spy: Spy) -> list[str]:
    return [verb for verb, _ in spy.calls]


def test_device_scope_times_run_and_wait(spied: tuple[Spy, clock.TimedPath]) -> None:
    """With the inputs on the device, only ``run`` and ``wait`` are inside; putting happened once, before."""
    spy, path = spied
    assert verbs(spy) == ["put", "put"]
    spy.calls.clear()
    (sample,) = path.visit(scope="device", samples=1, calls=1)
    assert verbs(spy) == ["clock", "run", "wait", "clock"]
    assert sample == clock.Sample(1, 1, 1)


def test_transfer_scope_times_put_and_get(spied: tuple[Spy, clock.TimedPath]) -> None:
    """Host to host, the transfer in and the transfer out are inside too."""
    spy, path = spied
    spy.calls.clear()
    path.visit(scope="transfer", samples=1, calls=1)
    assert verbs(spy) == ["clock", "put", "run", "get", "clock"]


def test_a_window_enqueues_all_before_it_waits(spied: tuple[Spy, clock.TimedPath]) -> None:
    """Offline, all calls of a sample are submitted before the first is waited for, and one reading covers them."""
    spy, path = spied
    spy.calls.clear()
    (sample,) = path.visit(scope="device", samples=1, calls=3)
    assert verbs(spy) == ["clock", "run", "run", "run", "wait", "wait", "wait", "clock"]
    assert sample.calls == 3


def test_sustained_calls_follow_each_other(spied: tuple[Spy, clock.TimedPath]) -> None:
    """Samples come one after the other, through the ring, until the time is over; the last ends after it, and no other does."""
    spy, path = spied
    spy.calls.clear()
    taken = path.sustained(scope="device", calls=1, seconds=10e-9)
    assert verbs(spy) == ["clock", *["clock", "run", "wait", "clock"] * len(taken)]
    ends = [sample.start_ns + sample.duration_ns for sample in taken]
    assert ends[-2] < 1 + 10 <= ends[-1]
    assert [item for verb, item in spy.calls if verb == "run"] == [f"{'ab'[call % 2]} on device" for call in range(len(taken))]
    assert not spy.collects[-1]


@settings(max_examples=20)  # each visit collects the garbage of the whole test session
@given(ring=st.integers(1, 5), visits=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4))
def test_the_ring_goes_on_where_it_stopped(ring: int, visits: list[tuple[int, int]]) -> None:
    """Over samples and visits the inputs come in the ring's order, none left out and none twice in a row."""
    spy = Spy()
    path = clock.TimedPath(spy, [str(number) for number in range(ring)])
    for samples, calls in visits:
        path.visit(scope="device", samples=samples, calls=calls)
    seen = [batch for verb, batch in spy.calls if verb == "run"]
    assert seen == [f"{number % ring} on device" for number in range(sum(samples * calls for samples, calls in visits))]


def test_no_garbage_is_collected_inside(spied: tuple[Spy, clock.TimedPath]) -> None:
    """The collector rests during samples and is back afterwards, also when a call fails; a second visit does not look through all again."""
    spy, path = spied
    path.visit(scope="device", samples=2, calls=1)
    assert spy.collects == [False, False]
    assert gc.isenabled()
    assert gc.get_freeze_count() > 10 * len(gc.get_objects())

    def fail(output: str) -> None:
        raise ValueError("no output")

    spy.wait = fail  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="no output"):
        path.visit(scope="device", samples=1, calls=1)
    assert gc.isenabled()


def test_overhead_of_a_known_clock() -> None:
    """The smallest step and the median gap of a clock whose steps are known."""
    readings = itertools.accumulate(itertools.cycle([0, 30, 0, 40]))
    resolution, overhead = clock.overhead_ns(lambda: next(readings), repeats=100)
    assert resolution == 30
    assert overhead == 40
    assert clock.overhead_ns(lambda: 7, repeats=10) == (0, 0)


class Late:
    """A network in simulated time, whose outputs are there ``left`` seconds after a call of 1 ms and take 0.1 ms to be copied to the host.

    What was copied once is kept there, as JAX and TensorFlow do.
    """

    host_layout = "NCHW"

    def __init__(self, left: float) -> None:
        self.now, self.left = 0.0, left

    def put(self, host: str) -> str:
        return host

    def run(self, batch: str) -> dict[str, Any]:
        self.now += 1e-3
        return {"there": self.now + self.left}

    def wait(self, output: dict[str, Any]) -> None:
        pass

    def get(self, output: dict[str, Any]) -> int:
        if not output.get("copied"):
            self.now = max(self.now, output["there"]) + 1e-4
        output["copied"] = True
        return 0

    def sleep(self, duration: float) -> None:
        self.now += duration


@pytest.mark.parametrize(("left", "sound"), [(0.0, True), (2e-3, False), (1.0, False)])
def test_a_copy_is_no_unfinished_work(monkeypatch: pytest.MonkeyPatch, left: float, sound: bool) -> None:
    """A copy that is kept on the host afterwards passes; work that goes on after the call shows, however long it takes."""
    network = Late(left)
    path = clock.TimedPath(network, ["a", "b"])
    monkeypatch.setattr(clock.time, "perf_counter_ns", lambda: round(network.now * 1e9))
    monkeypatch.setattr(clock.time, "sleep", network.sleep)
    assert audits.judge_reads(path.reads(scope="device", calls=5), copy_s=1e-4).passed is sound
