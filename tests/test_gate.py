from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from impls.implementation import ROOT
from results import gate
from results.gate import PEAK, TIME, Judgement, Rule, allocated_memory, confirm, pairs_needed, peak_memory, screen
from results.statistics import minimum_detectable_effect
from tests import gate_simulation as simulation

LOGS = st.floats(-0.2, 0.2)
FIVE = st.lists(LOGS, min_size=5, max_size=5)
EIGHT = st.lists(LOGS, min_size=8, max_size=8)
GIGABYTE = 10**9


def p_above(logs: Sequence[float], limit: float) -> float:
    return float(stats.ttest_1samp(logs, limit, alternative="greater").pvalue)


def p_below(logs: Sequence[float], limit: float) -> float:
    return float(stats.ttest_1samp(logs, limit, alternative="less").pvalue)


@given(logs=FIVE.filter(lambda logs: np.std(logs) > 1e-6))
def test_screen_is_the_t_test(logs: list[float]) -> None:
    """A candidate is significantly above the tolerance at 5 %, a pass significantly below tolerance + margin."""
    above, below = p_above(logs, math.log(1.02)), p_below(logs, math.log(1.05))
    assert screen(logs).outcome == ("candidate" if above < 0.05 else "pass" if below < 0.05 else "inconclusive")


@given(logs=EIGHT.filter(lambda logs: np.std(logs) > 1e-6))
def test_confirmation_is_the_t_test(logs: list[float]) -> None:
    """Regressed at 1 %; what is not confirmed passes or is inconclusive by the screen's rule."""
    above, below = p_above(logs, math.log(1.02)), p_below(logs, math.log(1.05))
    assert confirm(logs).outcome == ("regressed" if above < 0.01 else "pass" if below < 0.05 else "inconclusive")


def test_bounds_by_hand() -> None:
    """The change is the geometric mean, its bounds Student's, one-sided."""
    found = screen([-0.01, 0.01, 0.03, 0.05, 0.07])
    # sd = sqrt(0.001), t[95 %, 4] = 2.131847.
    half = 2.131847 * math.sqrt(0.001 / 5)
    assert found.outcome == "inconclusive"
    assert [found.change, found.low, found.high] == pytest.approx([math.exp(0.03 + each) for each in (0, -half, half)], rel=1e-6)
    assert found.mde == pytest.approx(math.expm1((3.746947 + 1.533206) * math.sqrt(0.001 / 5)), rel=1e-6)
    assert found.improved is False
    assert "neither above 2.0% nor below 5.0%" in found.reason


@pytest.mark.parametrize(
    ("slowdown", "screened", "confirmed"),
    [
        (-0.5, "pass", "pass"),
        (0.0, "pass", "pass"),
        (0.0199, "pass", "pass"),
        (0.0201, "candidate", "regressed"),
        (9.0, "candidate", "regressed"),
    ],
)
def test_no_variance(slowdown: float, screened: str, confirmed: str) -> None:
    """Pairs that all say the same are judged by what they say."""
    first, second = screen([math.log1p(slowdown)] * 5), confirm([math.log1p(slowdown)] * 8)
    assert (first.outcome, second.outcome) == (screened, confirmed)
    assert first.mde == pytest.approx(0, abs=1e-12)
    assert first.improved is second.improved is (slowdown < -0.02)


@pytest.mark.parametrize("logs", [[], [0.0], [0.0] * 4, [0.0] * 6, [math.nan] + [0.0] * 4, [math.inf] + [0.0] * 4, [-math.inf] + [0.0] * 4])
def test_what_cannot_be_judged(logs: list[float]) -> None:
    """Fewer or more pairs than were fixed, and pairs without a ratio, are invalid: never a pass."""
    for judged in (screen(logs), confirm([*logs, 0.0, 0.0, 0.0] if len(logs) != 5 else [*logs[:1], *[0.0] * 7])):
        assert judged.outcome == "invalid"
        assert judged.reason
        assert [judged.change, judged.low, judged.high, judged.mde, judged.needed, judged.improved] == [None] * 6


@given(st.lists(st.floats(-740, 740), min_size=5, max_size=5))
def test_wild_pairs(logs: list[float]) -> None:
    """Numbers stay finite, as JSON has no infinity."""
    found = screen(logs)
    assert all(math.isfinite(each) for each in (found.change, found.low, found.high, found.mde) if each is not None)


@given(FIVE, st.floats(0, 0.1))
def test_slower_is_never_better(logs: list[float], more: float) -> None:
    """A head that is slower in every pair by the same factor has no better outcome."""
    order = ("pass", "inconclusive", "candidate")
    assert order.index(screen([log + more for log in logs]).outcome) >= order.index(screen(logs).outcome)


@given(FIVE.flatmap(lambda logs: st.tuples(st.just(logs), st.permutations(logs))))
def test_order_of_pairs(both: tuple[list[float], list[float]]) -> None:
    """The order of the pairs is of no matter."""
    first, second = (screen(logs) for logs in both)
    assert first.change == pytest.approx(second.change, rel=1e-12)
    assert first.high == pytest.approx(second.high, rel=1e-9)


def test_improvement() -> None:
    """Faster than the tolerance is told, and is no failure."""
    rng = np.random.default_rng(1)
    assert screen((math.log(0.9) + rng.normal(0, 0.003, 5)).tolist()).improved is True
    assert screen(rng.normal(0, 0.003, 5).tolist()).improved is False
    assert screen((math.log(0.985) + rng.normal(0, 0.001, 5)).tolist()).improved is False  # within the tolerance
    assert screen([-0.2, -0.1, -0.05, 0.05, 0.1]).improved is False  # faster, but perhaps not


@given(st.floats(1e-4, 0.2))
def test_pairs_needed(deviation: float) -> None:
    """The fewest for which tolerance + margin stands out from the tolerance."""
    found, gap = pairs_needed(deviation), math.log(1.05 / 1.02)
    assert minimum_detectable_effect(deviation, found, 0.05) <= gap
    assert found == 2 or minimum_detectable_effect(deviation, found - 1, 0.05) > gap


def test_pairs_needed_ends() -> None:
    """Two pairs are the least that have a deviation, and the search has an end."""
    assert pairs_needed(0.0) == 2
    assert pairs_needed(100.0) == gate.MOST_PAIRS


def test_pairs_needed_are_named() -> None:
    """So many pairs are told where it is inconclusive, and nowhere else."""
    noisy = [-0.05, 0.1, 0.0, 0.02, 0.08]
    found = screen(noisy)
    assert (found.outcome, found.needed) == ("inconclusive", pairs_needed(float(np.std(noisy, ddof=1))))
    assert screen([0.0] * 5).needed is None


def flagged(model: simulation.Model, slowdown: float, trials: int, rule: Rule = TIME) -> int:
    rng = np.random.default_rng(7)
    draws = simulation.pairs(model, rng, trials, rule.screen_pairs), simulation.pairs(model, rng, trials, rule.confirm_pairs)
    return sum(judged.outcome == "regressed" for judged in simulation.ours(*draws, slowdown, rule))


def rate(hits: int, trials: int) -> tuple[float, float]:
    """Clopper and Pearson's 98 % interval: each end is a one-sided 99 % bound."""
    interval = stats.binomtest(hits, trials).proportion_ci(0.98, method="exact")
    return float(interval.low), float(interval.high)


@pytest.mark.parametrize("model", simulation.MODELS, ids=lambda model: model.name.partition(":")[0])
def test_false_alarms(model: simulation.Model) -> None:
    """With 99 % confidence at most 0.2 % where nothing changed and 0.5 % at the tolerance, in every noise model."""
    trials = 3000
    assert rate(flagged(model, 0.0, trials), trials)[1] <= 0.002
    assert rate(flagged(model, TIME.tolerance, trials), trials)[1] <= 0.005


def test_power_on_a_quiet_machine() -> None:
    """With 99 % confidence at least 85 % of slowdowns of tolerance + 3 % are found."""
    trials = 1000
    assert rate(flagged(simulation.MODELS[0], TIME.tolerance + 0.03, trials), trials)[0] >= 0.85


def test_published_rates() -> None:
    """The first row of docs/gate.md is what the simulation finds."""
    assert simulation.own_row(simulation.MODELS[0]) in (ROOT / "docs" / "gate.md").read_text(encoding="utf-8").splitlines()


def test_the_simulation_sees_a_bad_gate() -> None:
    """One that flags whatever lies above the tolerance by its mean fails the same bound."""
    trials = 1000
    bad = dataclasses.replace(TIME, screen_level=0.5, confirm_level=0.5)
    assert rate(flagged(simulation.MODELS[0], TIME.tolerance, trials, bad), trials)[0] > 0.005


def test_levels_of_the_stages() -> None:
    """At the tolerance each stage flags as often as its level says: 5 % and 1 % of pairs with normal luck."""
    rng, trials = np.random.default_rng(2), 4000
    shift = math.log1p(TIME.tolerance)
    first = sum(screen(logs).outcome == "candidate" for logs in (shift + rng.normal(0, 0.01, (trials, 5))).tolist())
    second = sum(confirm(logs).outcome == "regressed" for logs in (shift + rng.normal(0, 0.01, (trials, 8))).tolist())
    for hits, level in ((first, 0.05), (second, 0.01)):
        low, high = rate(hits, trials)
        assert low <= level <= high


@given(st.integers(1, 6), st.integers(1, 6))
def test_orders_of_two_samples(first: int, second: int) -> None:
    """The counts of Mann and Whitney's U are those of all orders, listed."""
    listed = [0] * (first * second + 1)
    for places in itertools.combinations(range(first + second), first):
        listed[sum(places) - first * (first - 1) // 2] += 1
    assert [gate._orders(first, second, u) for u in range(first * second + 1)] == listed


def test_rank_by_table() -> None:
    """The ranks are those of Mann and Whitney's tables: critical U at one-sided 5 % is 4 for 5 and 5, 15 for 8 and 8, at 0.5 % 0 and 7."""
    assert [gate._rank(5, 5, 0.05), gate._rank(8, 8, 0.05), gate._rank(5, 5, 0.005), gate._rank(8, 8, 0.005)] == [4, 15, 0, 7]
    assert gate._rank(2, 2, 0.05) is None


@pytest.mark.parametrize(
    ("head", "outcome", "improved"),
    [
        ([1.00, 1.00, 1.00, 1.00, 1.00], "pass", False),
        ([1.03, 1.03, 1.04, 1.03, 1.03], "regressed", False),
        ([1.005, 1.005, 1.005, 1.005, 1.005], "pass", False),
        ([1.03, 1.03, 1.03, 1.03, 1.00], "inconclusive", False),
        ([0.90, 0.90, 0.91, 0.90, 0.90], "pass", True),
    ],
)
def test_peak_memory(head: list[float], outcome: str, improved: bool) -> None:
    """With five a side all of head must lie above all of base by more than 1 %."""
    found = peak_memory([GIGABYTE] * 5, [round(GIGABYTE * each) for each in head])
    assert (found.outcome, found.improved) == (outcome, improved)
    assert found.change == pytest.approx(float(np.median(head)))


def test_bounds_of_peak_memory_by_hand() -> None:
    """Of the 25 ratios of 5 and 5 processes the least bounds from below, the fifth greatest from above, the median is the change."""
    base, head = [100, 101, 103, 107, 111], [120, 123, 127, 131, 137]
    found = peak_memory(base, head)
    ratios = sorted(one / other for one in head for other in base)
    assert [found.low, found.change, found.high] == pytest.approx([ratios[0], ratios[12], ratios[-5]])


@pytest.mark.parametrize(
    ("base", "head", "message"),
    [
        ([1] * 5, [1] * 4 + [0], "no peak memory"),
        ([], [], "no peak memory"),
        ([1] * 5, [], "0 processes are too few"),
        ([1] * 3, [1] * 3, "too few"),
    ],
)
def test_peak_memory_that_cannot_be_judged(base: list[int], head: list[int], message: str) -> None:
    """A process without a peak, and too few processes, are invalid."""
    found = peak_memory(base, head)
    assert found.outcome == "invalid"
    assert message in found.reason


def test_false_alarms_of_peak_memory() -> None:
    """At the tolerance at most 0.5 % of comparisons are flagged, with peaks of two sizes as with normal ones."""
    rng, trials = np.random.default_rng(3), 3000
    for draw in (lambda: rng.normal(0, 0.01, 5), lambda: rng.choice([0.0, 0.02], 5)):
        hits = 0
        for _ in range(trials):
            # A hair below it, so that no tie at the tolerance itself hangs on the last bit.
            base, head = np.exp(draw()) * GIGABYTE, np.exp(draw()) * GIGABYTE * (1 + PEAK.tolerance - 1e-6)
            hits += peak_memory([round(each) for each in base], [round(each) for each in head]).outcome == "regressed"
        assert rate(hits, trials)[0] <= 0.005


@pytest.mark.parametrize(
    ("base", "head", "outcome", "improved"),
    [
        ([1000] * 5, [1000] * 5, "pass", False),
        ([GIGABYTE] * 5, [GIGABYTE + 1] * 5, "regressed", False),
        ([1000] * 5, [999] * 5, "pass", True),
        ([1000] * 5, [1000] * 4 + [1001], "inconclusive", None),
        ([1000] * 4 + [1002], [1001] * 5, "inconclusive", None),
        ([1000] * 5, [0] * 5, "invalid", None),
        ([1000], [], "invalid", None),
        ([], [1000], "invalid", None),
        ([], [], "invalid", None),
    ],
)
def test_allocated_memory(base: list[int], head: list[int], outcome: str, improved: bool | None) -> None:
    """One byte more is a regression; counts that vary are not compared, and none is not nought."""
    found = allocated_memory(base, head)
    assert (found.outcome, found.improved) == (outcome, improved)


@given(st.lists(LOGS, max_size=9))
def test_every_outcome_is_told(logs: list[float]) -> None:
    """Whatever comes in, each stage has an outcome of its own, and a reason."""
    for stage, outcomes in ((screen, {"candidate"}), (confirm, {"regressed"})):
        found: Judgement = stage(logs)
        assert found.outcome in outcomes | {"pass", "inconclusive", "invalid"}
        assert found.reason
