"""MLCommons LoadGen as a second clock: it drives a timed path and times it itself, in C++, without a reading of ours.

LoadGen (MLPerf inference, loadgen/) issues queries, is told when they are complete, and writes what it found into a log of its own.
A query sample is here one batch of the ring, so its latency is a call's. It runs in performance mode with a fixed number of queries,
so its own verdict VALID, which wants ten minutes, says nothing. It is in no environment of a framework: ``environments.second_clock``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suites.harness import clock

SEEDS: Mapping[str, int] = {"qsl_rng_seed": 1, "sample_index_rng_seed": 2, "schedule_rng_seed": 3}
"""Of LoadGen's generators: which batch of the ring each query takes follows from them."""

MARK = ":::MLLOG "
"""Opens each entry of LoadGen's detailed log, which is JSON (MLPerf logging)."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What LoadGen's log says: seconds of a call, and its version with the commit that it was built from.

    In single_stream it is the median latency of a query, in offline the time of all over their number.
    """

    call_s: float
    version: str


def visit(path: clock.TimedPath, *, scope: str, scenario: str, samples: int, calls: int, rewarm: int, logs: Path) -> Reading:
    """``TimedPath.visit`` by LoadGen: as many calls, in windows of ``calls``, after ``rewarm`` calls that it does not see.

    Raises:
        ModuleNotFoundError: LoadGen is not installed.
        RuntimeError: LoadGen reports errors, or issued another number of queries.
        Exception: what a call raised.
    """
    import mlperf_loadgen

    source, submit, finish = path.steps(scope)
    served, failures = 0, []

    def load(_: list[int]) -> None:
        for item in itertools.islice(itertools.cycle(source), rewarm):
            finish(submit(item))

    def issue(queries: list[Any]) -> None:
        nonlocal served
        for first in range(0, len(queries), calls):
            window = queries[first : first + calls]
            try:
                outputs = [submit(source[query.index]) for query in window]
                _answers = [finish(output) for output in outputs]
            except Exception as error:  # it must not cross LoadGen's C++
                failures.append(error)
            served += len(window)
            mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(query.id, 0, 0) for query in window])

    settings = mlperf_loadgen.TestSettings()
    settings.scenario = {
        "single_stream": mlperf_loadgen.TestScenario.SingleStream,
        "offline": mlperf_loadgen.TestScenario.Offline,
    }[scenario]
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = 0
    settings.min_query_count = samples * calls
    settings.max_query_count = samples * calls
    for name, seed in SEEDS.items():
        setattr(settings, name, seed)
    log = mlperf_loadgen.LogSettings()
    log.log_mode = mlperf_loadgen.LoggingMode.EndOfTestOnly  # no thread of its own beside the framework's
    log.enable_trace = False
    log.log_output.outdir = str(logs)
    system = mlperf_loadgen.ConstructSUT(issue, lambda: None)
    library = mlperf_loadgen.ConstructQSL(len(source), len(source), load, lambda _: None)
    try:
        with clock.no_collection():
            mlperf_loadgen.StartTestWithLogSettings(system, library, settings, log, str(logs / "no-audit.config"))
    finally:
        mlperf_loadgen.DestroyQSL(library)
        mlperf_loadgen.DestroySUT(system)
    if failures:
        raise failures[0]
    if served != samples * calls:
        raise RuntimeError(f"LoadGen issued {served} queries, not {samples * calls}")
    return read(logs / "mlperf_log_detail.txt", scenario)


def idle(path: clock.TimedPath, **arguments: Any) -> Reading:
    """``visit`` of a network that does nothing: what LoadGen and its Python binding take themselves, per call."""
    return visit(clock.TimedPath(_Nothing(), [None] * len(path.hosts)), **arguments)  # type: ignore[arg-type]


class _Nothing:
    """As much of a network as a clock calls."""

    def put(self, images: None) -> None: ...

    def run(self, batch: None) -> None: ...

    def wait(self, output: None) -> None: ...

    def get(self, output: None) -> None: ...


def read(log: Path, scenario: str) -> Reading:
    """The reading in a detailed log.

    Raises:
        RuntimeError: it reports errors, or holds no result.
    """
    lines = log.read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line.removeprefix(MARK)) for line in lines if line.startswith(MARK)]
    found = {entry["key"]: entry["value"] for entry in entries}
    errors = [str(entry["value"]) for entry in entries if entry["metadata"]["is_error"]]
    name = "result_50.00_percentile_latency_ns" if scenario == "single_stream" else "result_samples_per_second"
    if errors or name not in found:
        raise RuntimeError(f"LoadGen's log {'reports ' + errors[0] if errors else 'has no ' + name}")
    return Reading(found[name] / 1e9 if scenario == "single_stream" else 1 / found[name], f"MLCommons LoadGen {found['loadgen_version']}")
