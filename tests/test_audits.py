"""Every audit of the timed path catches its villain, passes what is honest, and is not fooled by noise."""

from __future__ import annotations

import dataclasses
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from impls import models
from impls.oracle.rounding import round_to
from impls.precision import PRECISIONS
from results.record import Cell
from results.timing import SecondClock, of
from suites.harness import audits, environments
from tests.checkouts import BRIEF, Checkout, bench, records

CAUGHT = {
    "unfenced": ("unfinished_work", "the clock stops too early: an output is there "),
    "caches": ("caching", "of the time of new ones: results come from a cache"),
    "recompiles": ("recompilation", "compilations between timed calls"),
    "more_threads": ("threads", "by the framework's own word"),
    "elsewhere": ("placement", "it ran on cuda, by the framework's own word; cpu was declared"),
    "narrow": ("precision", "fp32 was declared, but its convolution computes as tf32 or fp16 does"),
}
"""The villain's mode, the audit that fails first, and what the row says."""


@pytest.fixture(scope="module")
def timed(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], Any]:
    """Exit code, document and store of a bench of the honest one and of every villain, inputs and outputs on the device."""
    store = tmp_path_factory.mktemp("audits")
    modes = ",".join(("eager", *CAUGHT))
    arguments = (*bench("villain", "honest", modes=modes, store=store), "--scopes", "device", "--processes", "1")
    return *checkout.document(*arguments, before=BRIEF), store


@pytest.mark.parametrize("mode", CAUGHT)
def test_an_audit_catches_its_villain(timed: tuple[int, dict[str, Any], Any], mode: str) -> None:
    """The certificate passed; the row says which audit failed and by how much, and holds no figure."""
    (villain,) = (row for row in timed[1]["rows"] if row["mode"] == mode)
    assert villain["certified"]
    assert villain["status"] == "audit_failed"
    assert CAUGHT[mode][1] in villain["reason"]
    assert villain["latency_s"]["value"] is None
    (record,) = (each for each in records(timed[2]) if each.suite == "inference" and each.cell.mode == mode)
    beside = of(record)
    assert beside is not None
    assert beside.failed_audits[0].name == CAUGHT[mode][0]


def test_the_honest_one_passes_every_audit(timed: tuple[int, dict[str, Any], Any]) -> None:
    (record,) = (each for each in records(timed[2]) if each.suite == "inference" and each.cell.implementation == "honest")
    beside = of(record)
    assert beside is not None
    assert [audit.name for audit in beside.audits if audit.passed] == [
        *("threads", "placement", "recompilation", "outputs", "precision"),
        *("unfinished_work", "linearity", "caching", "timer"),
    ]


@pytest.fixture(scope="module")
def clocked(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], Any]:
    """The same of a villain whose clock runs slow, with the second clock, which the tests' own environment holds."""
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed: it is of the dependency group tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEVELFIELD_CACHE", str(checkout.cache))
        place = environments.second_clock_folder(Path(sys.executable))
    place.mkdir(parents=True, exist_ok=True)
    (place / environments.COMPLETE).touch()
    store = tmp_path_factory.mktemp("clocked")
    arguments = bench("villain", "honest", modes="eager,slow_clock", batch_sizes="1,2", store=store)
    return *checkout.document(*arguments, "--processes", "2", "--second-clock", before=BRIEF), store


def test_a_clock_that_runs_slow_is_seen_by_the_second_alone(clocked: tuple[int, dict[str, Any], Any]) -> None:
    (villain,) = (row for row in clocked[1]["rows"] if row["mode"] == "slow_clock" and row["batch_size"] == 1)
    assert villain["certified"]
    assert villain["status"] == "audit_failed"
    assert re.search(r"the clocks disagree: a call takes [\d.]+ us by ours and [\d.]+ us by MLCommons LoadGen 6", villain["reason"])
    assert villain["latency_s"]["value"] is None
    found = [each for each in map(of, records(clocked[2])) if each is not None and each.failed_audits]
    assert [[audit.name for audit in each.failed_audits] for each in found] == [["second_clock"]]


def test_the_second_clock_stands_beside_ours(clocked: tuple[int, dict[str, Any], Any]) -> None:
    """Of the honest one's smallest batch, in the first round alone, and it is no reason against it."""
    honest = [each for each in records(clocked[2]) if each.suite == "inference" and each.cell.implementation == "honest"]
    found = {(each.cell.batch_size, each.process.index): beside for each in honest if each.process and (beside := of(each))}
    assert {key for key, beside in found.items() if beside.second_clock} == {(1, 0)}
    assert {key for key, beside in found.items() if "second_clock" in [audit.name for audit in beside.audits]} == {(1, 0)}
    assert all(each.status == "ok" for each in honest)
    row, other = sorted((row for row in clocked[1]["rows"] if row["implementation"] == "honest"), key=lambda row: row["batch_size"])
    assert row["second_clock"].startswith("MLCommons LoadGen 6")
    assert row["second_clock_ratio_low"] < row["second_clock_ratio"] < row["second_clock_ratio_high"]
    assert other["second_clock_s"] is None


def test_the_timed_calls_are_in_the_record_with_their_blocks(timed: tuple[int, dict[str, Any], Any]) -> None:
    """Every visit after the warm-up is of a block, and only re-warming calls in it are warm-up."""
    (record,) = (each for each in records(timed[2]) if each.suite == "inference" and each.cell.implementation == "honest")
    beside = of(record)
    assert beside is not None
    assert record.samples is not None
    assert set(record.samples.visit) == set(range(len(beside.blocks) + 1))
    timed_visits = {visit for visit, warmup in zip(record.samples.visit, record.samples.warmup, strict=True) if not warmup}
    assert timed_visits == set(range(1, len(beside.blocks) + 1))


def test_a_clock_that_is_not_fine_enough_fails() -> None:
    columns = {"duration_ns": [10**9, 10_000, 11_000, 12_000], "warmup": [True, False, False, False]}
    assert audits.timer({"overhead_ns": 11}, columns).passed
    assert not audits.timer({"overhead_ns": 12}, columns).passed


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_probe_tells_the_precisions_apart(name: str) -> None:
    """What each precision gives is its own; only tf32 and fp16, whose significands are equal, give the same."""
    for other in PRECISIONS:
        alike = name == other or {name, other} == {"tf32", "fp16"}
        assert audits.judge_precision(audits.expected(other).reshape(-1), name).passed == alike


def test_the_probe_of_a_gpu_must_hold_everywhere() -> None:
    """It is larger, and one product of it that lost bits is enough."""
    assert audits.probe(64)[0].input_chw == (64, 2, 2)
    logits = np.concatenate([np.tile(half, (16, 8)) for half in audits.expected("fp32")], axis=1)
    assert audits.judge_precision(logits, "fp32").passed
    logits[9, 36:40] = audits.expected("tf32")[1]
    audit = audits.judge_precision(logits, "fp32")
    assert not audit.passed
    assert audit.reason is not None
    assert audit.reason.startswith("fp32 was declared, but its product gives 1, 1, 1.00")


def rounded(array: Any, precision: str) -> Any:
    return round_to(np.asarray(array, np.float32), precision).astype(np.float64)


@pytest.mark.parametrize("second", PRECISIONS)
@pytest.mark.parametrize("first", PRECISIONS)
def test_the_probe_tells_each_of_its_layers(first: str, second: str) -> None:
    """A convolution in one precision before a product in another: the audit of each says which of them is not what was declared."""
    model, weights = audits.probe(8)
    pixels = np.full((3, model.input_chw[0]), audits.FACTOR)

    def product(x: Any, name: str, precision: str) -> Any:
        matrix = np.asarray(weights[name], np.float64).reshape(8, 8)
        return x @ matrix.T if precision == "fp64" else rounded(x, precision) @ rounded(matrix, precision).T

    logits = product(product(pixels, "conv.weight", first), "fc.weight", second)
    if "fp64" not in (first, second):
        for declared, other in ((first, second), (second, first)):
            audit = audits.judge_precision(logits, declared)
            alike = declared == other or {declared, other} == {"tf32", "fp16"}
            assert audit.passed == alike
            if not alike:
                which = "product" if declared == first else "convolution"
                assert audit.reason is not None
                assert re.match(f"{declared} was declared, but its {which} computes as .*{other}", audit.reason)
    elif first == second:
        assert audits.judge_precision(logits, "fp64").passed
    else:
        assert not audits.judge_precision(logits, "fp64").passed


def test_a_probe_that_is_no_number_fails() -> None:
    audit = audits.judge_precision(np.full(8, np.nan), "fp32")
    assert not audit.passed
    assert audit.reason == "fp32 was declared, but it gives nan, nan, nan, nan"


@given(st.integers(0, 10**6))
def test_work_that_is_left_for_the_reader_is_found(seed: int) -> None:
    """A read at once that takes 10 % of a call longer than again, or than of a rested one, fails, whatever single reads are disturbed."""
    generator = random.Random(seed)

    def taken(behind: float, put_off: float) -> list[tuple[int, int, int, int]]:
        rested = int(2_000 + put_off * 1_000_000)
        at_once = int(rested + behind * 1_000_000)
        reads = [(1_000_000, at_once, 2_000, rested) for _ in range(5)]
        reads[generator.randrange(5)] = (1_000_000, at_once + 5_000_000, 2_000, rested)
        return reads

    assert audits.judge_reads(taken(0.0, 0.0)).passed
    assert not audits.judge_reads(taken(0.1, 0.0)).passed
    assert not audits.judge_reads(taken(0.0, 0.1)).passed
    assert audits.judge_reads(taken(0.0, 0.1), copy_s=1e-4).passed
    assert not audits.judge_reads(taken(0.1, 0.1), copy_s=1e-4).passed
    assert not audits.judge_reads(taken(0.0, 0.3), copy_s=1e-4).passed


def test_a_copy_is_of_what_is_read() -> None:
    """Nothing on a CPU; on a card the logits, or the loss and the first parameter of a step."""
    model = models.get("cifar_resnet8")
    cell = Cell("jax", "jit", model.name, "fp32", "cuda", 256, "device", "offline", 1)
    step = dataclasses.replace(cell, scenario="training")
    assert audits.longest_copy(model, dataclasses.replace(cell, device="cpu")) == 0
    assert audits.longest_copy(model, cell) == pytest.approx(100e-6 + 256 * 10 * 4e-9)
    assert audits.longest_copy(model, step) == pytest.approx(100e-6 + (1 + 16 * 27) * 4e-9)


def simulated(generator: np.random.Generator, truth: float, noise: float, repeats: int) -> list[float]:
    return list(truth * np.exp(noise * generator.standard_normal(repeats)))


@pytest.mark.parametrize("judge", [audits.judge_linearity, audits.judge_caching])
def test_noise_is_no_failure_and_half_the_work_is(judge: Any) -> None:
    """With 10 % noise in five repeats: no alarm in 2,000 sound paths, and one that misses half the work fails nine times in ten."""
    generator = np.random.Generator(np.random.PCG64(1))
    repeats = audits.WINDOW_REPEATS
    assert sum(not judge(simulated(generator, 1.0, 0.1, repeats)).passed for _ in range(2000)) == 0
    assert sum(not judge(simulated(generator, 0.5, 0.1, repeats)).passed for _ in range(200)) >= 180


def test_windows_that_noise_turned_round_say_nothing() -> None:
    assert audits.judge_linearity([-1.0, -2.0, 0.5]).passed


def second(ours: list[float], theirs: list[float], overhead_s: float = 0.0) -> SecondClock:
    return SecondClock("another clock", {}, 100, overhead_s, tuple(ours), tuple(theirs))


def test_noise_between_clocks_is_no_failure_and_a_tenth_is() -> None:
    """No alarm in 2,000 sound paths at 2 % and at 10 % noise; a clock 10 % off, either way, is seen nine times in ten at 2 %.

    The noise is of the ratio of a pair; 2 % in each of its two visits, 2.8 % in their ratio, leaves eight times in ten.
    """
    generator = np.random.Generator(np.random.PCG64(2))
    pairs = 2 * audits.SECOND_CLOCK_BLOCKS

    def failures(truth: float, noise: float, runs: int) -> int:
        simulations = (second(simulated(generator, truth, noise, pairs), [1.0] * pairs) for _ in range(runs))
        return sum(not audits.judge_second_clock(each).passed for each in simulations)

    assert failures(1.0, 0.02, 2000) == failures(1.0, 0.1, 2000) == 0
    assert failures(0.9, 0.02, 200) >= 180
    assert failures(1.1, 0.02, 200) >= 180


def test_the_second_clocks_own_overhead_is_taken_off() -> None:
    """10 us of its own on calls of 40 us are no disagreement; without being told of them it would be one."""
    ours, theirs = [40e-6, 40.1e-6, 39.9e-6], [50e-6, 50.1e-6, 49.9e-6]
    assert audits.judge_second_clock(second(ours, theirs, 10e-6)).passed
    failed = audits.judge_second_clock(second(ours, theirs))
    assert failed.reason == (
        "the clocks disagree: a call takes 40 us by ours and 50 us by another clock, less its own 0 us: 0.800 [0.793,0.807] of it"
    )


def test_of_calls_that_do_less_than_the_second_clock_nothing_is_said() -> None:
    assert audits.judge_second_clock(second([1e-6] * 3, [2e-6] * 3, 2e-6)).passed
