"""LoadGen over a timed path: the calls that it makes, its own log as the only source, and what goes wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from suites.harness import clock, loadgen

pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed: it is of the dependency group tests")


class Spy:
    """A network that writes down its calls; each takes ``sleep_s``, and the batch named in ``fails`` raises."""

    host_layout = "NCHW"

    def __init__(self, sleep_s: float = 0.0, fails: str | None = None) -> None:
        self.calls: list[tuple[str, str]] = []
        self.sleep_s, self.fails = sleep_s, fails

    def put(self, host: str) -> str:
        self.calls.append(("put", host))
        return host

    def run(self, batch: str) -> str:
        self.calls.append(("run", batch))
        if batch == self.fails:
            raise ValueError(f"no {batch}")
        return batch

    def wait(self, output: str) -> None:
        self.calls.append(("wait", output))
        time.sleep(self.sleep_s)

    def get(self, output: str) -> str:
        self.calls.append(("get", output))
        time.sleep(self.sleep_s)
        return output


def driven(spy: Spy, logs: Path, scenario: str, **arguments: Any) -> loadgen.Reading:
    path = clock.TimedPath(spy, ["a", "b", "c"])  # type: ignore[arg-type]
    spy.calls.clear()
    sizes: dict[str, Any] = {"scope": "device", "samples": 4, "calls": 1, "rewarm": 0, **arguments}
    return loadgen.visit(path, scenario=scenario, logs=logs, **sizes)


def test_each_query_is_one_call_that_is_waited_for(tmp_path: Path) -> None:
    """After the re-warming ones, which go round the ring from its start."""
    spy = Spy()
    driven(spy, tmp_path, "single_stream", rewarm=4)
    assert [what for what, _ in spy.calls] == ["run", "wait"] * 8
    assert [batch for what, batch in spy.calls if what == "run"][:4] == ["a", "b", "c", "a"]
    spy = Spy()
    driven(spy, tmp_path, "single_stream", scope="transfer")
    assert [what for what, _ in spy.calls] == ["put", "run", "get"] * 4


def test_a_window_is_enqueued_before_it_is_waited_for(tmp_path: Path) -> None:
    spy = Spy()
    driven(spy, tmp_path, "offline", samples=2, calls=3)
    assert [what for what, _ in spy.calls] == [*["run"] * 3, *["wait"] * 3] * 2


def test_the_seeds_decide_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def order() -> list[tuple[str, str]]:
        spy = Spy()
        driven(spy, tmp_path, "single_stream", samples=50)
        return spy.calls

    first = order()
    assert order() == first
    monkeypatch.setattr(loadgen, "SEEDS", dict.fromkeys(loadgen.SEEDS, 99))
    assert order() != first


@pytest.mark.parametrize("scenario", ["single_stream", "offline"])
def test_the_figure_is_loadgens_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: str) -> None:
    """Our clock is not read; a call that takes 2 ms at least is said to take that."""

    def refuse() -> int:
        raise AssertionError("our clock was read")

    monkeypatch.setattr(time, "perf_counter_ns", refuse)
    reading = driven(Spy(sleep_s=2e-3), tmp_path, scenario, samples=5)
    assert reading.call_s >= 2e-3
    assert reading.version.startswith("MLCommons LoadGen 6.")
    assert reading == loadgen.read(tmp_path / "mlperf_log_detail.txt", scenario)


def test_what_loadgen_takes_itself(tmp_path: Path) -> None:
    """The network is not called."""
    spy = Spy()
    path = clock.TimedPath(spy, ["a", "b"])  # type: ignore[arg-type]
    spy.calls.clear()
    reading = loadgen.idle(path, scope="device", scenario="single_stream", samples=10, calls=1, rewarm=1, logs=tmp_path)
    assert reading.call_s > 0
    assert spy.calls == []


def test_a_call_that_fails_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no b"):
        driven(Spy(fails="b"), tmp_path, "single_stream", samples=50)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("loadgen_version", "6", False)], "LoadGen's log has no result_50.00_percentile_latency_ns"),
        ([("result_50.00_percentile_latency_ns", 1, False), ("error_runtime", "it broke", True)], "LoadGen's log reports it broke"),
    ],
)
def test_a_log_without_a_sound_result_is_refused(tmp_path: Path, entries: list[tuple[str, Any, bool]], message: str) -> None:
    log = tmp_path / "log"
    lines = [loadgen.MARK + json.dumps({"key": key, "value": value, "metadata": {"is_error": error}}) for key, value, error in entries]
    log.write_text("\n".join(lines))
    with pytest.raises(RuntimeError, match=message):
        loadgen.read(log, "single_stream")
