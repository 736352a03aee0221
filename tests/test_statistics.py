from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from results import statistics
from results.statistics import Rank, StatisticsError

Floats = npt.NDArray[np.float64]
TIMES = st.floats(1e-6, 1e3)
ROUNDS = st.dictionaries(st.integers(0, 20), TIMES, max_size=12)


def below(hits: int, trials: int, rate: float) -> bool:
    """Whether so few hits would be chance in at most 1 of 1000 tests if the true rate were ``rate``."""
    return float(stats.binom.cdf(hits, trials, rate)) < 1e-3


def by_round(times: Floats) -> dict[int, float]:
    return dict(enumerate(times.tolist()))


def test_process_time_by_hand() -> None:
    """Median within a visit, geometric mean over visits, warm-up left out, a window's time shared by its calls."""
    found = statistics.process_time(
        visit=[0, 0, 0, 0, 1, 1],
        duration_ns=[900_000, 100, 200, 400, 1600, 800],
        calls=[1, 1, 1, 1, 2, 1],
        warmup=[True, False, False, False, False, False],
    )
    assert found == pytest.approx(math.sqrt(200e-9 * 800e-9), rel=1e-12)


def test_an_outlier_in_a_visit_does_not_move_its_time() -> None:
    """A single interrupted call is no part of the typical time."""
    quiet, hit = ([1000] * 9, [1000] * 8 + [10**9])
    assert statistics.process_time([0] * 9, quiet, [1] * 9, [False] * 9) == statistics.process_time([0] * 9, hit, [1] * 9, [False] * 9)


def test_visits_count_alike() -> None:
    """A visit with more samples has no more weight."""
    found = statistics.process_time([0] * 9 + [1], [100] * 9 + [400], [1] * 10, [False] * 10)
    assert found == pytest.approx(200e-9)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([0, 0], [1, 1], [1, 1], [False]), "columns of 2, 2, 2 and 1"),
        (([0], [1], [1], [True]), "every sample is warm-up"),
        (([], [], [], []), "every sample is warm-up"),
        (([0, 0], [1, 0], [1, 1], [False, False]), "positive"),
        (([0, 0], [1, math.nan], [1, 1], [False, False]), "positive"),
    ],
)
def test_samples_without_a_time(columns: tuple[list[int], list[int], list[int], list[bool]], message: str) -> None:
    """Samples that have no time are refused, never turned into NaN."""
    with pytest.raises(StatisticsError, match=message):
        statistics.process_time(*columns)


@pytest.mark.parametrize("times", [[], [math.nan, 1.0], [0.0, 1.0], [-1.0, 1.0], [math.inf]])
def test_times_that_are_none(times: list[float]) -> None:
    """No times, NaN, infinite and negative times are refused by every estimator."""
    with pytest.raises(StatisticsError):
        statistics.estimate(times)
    with pytest.raises(StatisticsError):
        statistics.percentile_bound([*times, *[1.0] * 1000] if times else [0.0] * 1000, 50)
    if len(times) > 1:
        with pytest.raises(StatisticsError):
            statistics.ratio(dict(enumerate(times)), {0: 1.0, 1: 1.0})


def test_one_process_has_no_interval() -> None:
    """One process gives a time and no interval."""
    found = statistics.estimate([0.02])
    assert (found.value, found.low, found.high, found.processes) == (pytest.approx(0.02), None, None, 1)


def test_interval_by_hand() -> None:
    """The interval is Student's on the logarithm."""
    found = statistics.estimate([1.0, math.e, math.e**2])
    half = 4.302652729911275 / math.sqrt(3)  # t[0.975] with 2 degrees of freedom, standard tables; deviation 1
    assert found.low is not None
    assert found.high is not None
    assert (found.value, found.low, found.high) == pytest.approx((math.e, math.exp(1 - half), math.exp(1 + half)))


def test_two_wild_processes() -> None:
    """An interval beyond the largest number stays finite, as JSON needs it."""
    found = statistics.ratio({0: 1e-6, 1: 1e3}, {0: 1e3, 1: 1e-6})
    assert found.low is not None
    assert found.high is not None
    assert found.mde is not None
    assert found.tie is True
    assert 0 <= found.low < 1 < found.high < math.inf
    assert found.mde < math.inf


def test_no_variance() -> None:
    """Equal times give the point as interval: a tie where the ratio is 1, none where it is not."""
    found = statistics.estimate([0.5, 0.5, 0.5])
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert statistics.ratio({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}).tie is True
    doubled = statistics.ratio({0: 0.5, 1: 0.5}, {0: 0.25, 1: 0.25})
    assert (doubled.value, doubled.low, doubled.high, doubled.mde) == pytest.approx((2, 2, 2, 0))
    assert doubled.tie is False


def test_direction() -> None:
    """Above 1 means that the other takes less time than the baseline."""
    slow, fast = {0: 0.2, 1: 0.21, 2: 0.2}, {0: 0.1, 1: 0.1, 2: 0.101}
    gain, loss = statistics.ratio(slow, fast), statistics.ratio(fast, slow)
    assert gain.low is not None
    assert loss.high is not None
    assert gain.low > 1 > loss.high


@pytest.mark.parametrize(("other", "pairs"), [({}, 0), ({7: 1.0, 8: 1.0}, 0), ({0: 1.0, 7: 1.0}, 1)])
def test_too_few_pairs(other: dict[int, float], pairs: int) -> None:
    """Fewer than two common rounds give no ratio at all, however many processes there are."""
    assert statistics.ratio({0: 1.0, 1: 1.0, 2: 1.0}, other) == statistics.Ratio(None, None, None, pairs, None)
    assert statistics.ratio({0: 1.0, 1: 1.0, 2: 1.0}, other).tie is None


def test_pairs_are_of_the_same_round() -> None:
    """Rounds of one side alone change nothing, and what a round does to both sides cancels."""
    drift = np.array([1.0, 3.0, 0.5, 7.0])
    found = statistics.ratio(by_round(0.1 * drift), by_round(0.05 * drift) | {9: 1000.0})
    assert found.pairs == 4
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))


@given(ROUNDS, ROUNDS)
def test_reversed_comparison(first: dict[int, float], second: dict[int, float]) -> None:
    """Swapping the sides inverts the ratio and its interval and keeps the verdict."""
    there, back = statistics.ratio(first, second), statistics.ratio(second, first)
    assert there.tie is back.tie
    assert (there.pairs, there.mde) == (back.pairs, back.mde if back.mde is None else pytest.approx(back.mde))
    if there.value and there.low and there.high and back.value and back.low and back.high and back.high < 1e300 and there.high < 1e300:
        assert (there.value, there.low, there.high) == pytest.approx((1 / back.value, 1 / back.high, 1 / back.low), rel=1e-9)


@given(ROUNDS.filter(lambda times: len(times) > 1), st.floats(0.01, 100))
def test_scale(times: dict[int, float], factor: float) -> None:
    """Times multiplied by a factor have their estimate multiplied, and a ratio to it of exactly that factor."""
    scaled = {index: time * factor for index, time in times.items()}
    one, other = statistics.estimate(list(times.values())), statistics.estimate(list(scaled.values()))
    assert other.value == pytest.approx(one.value * factor)
    assert statistics.ratio(scaled, times).value == pytest.approx(factor)


@pytest.mark.parametrize(("percent", "pairs", "expected"), [(0.3, 5, 1.0), (0.6, 8, 1.3), (1.2, 5, 4.0), (2.0, 13, 3.2), (1.2, 10, 2.3)])
def test_minimum_detectable_effect(percent: float, pairs: int, expected: float) -> None:
    """The smallest visible slowdown, for processes that vary by so many per cent, is the tabulated one."""
    assert statistics.minimum_detectable_effect(math.sqrt(2) * percent, pairs) == pytest.approx(expected, abs=0.05)


def test_power_at_the_minimum_detectable_effect() -> None:
    """A slowdown of the size that is called detectable is detected, one-sided at 1 %, as often as the docstring says."""
    rng = np.random.default_rng(20)
    pairs, deviation = 5, 0.01
    effect = statistics.minimum_detectable_effect(deviation, pairs)
    differences = rng.normal(effect, deviation, (4000, pairs))
    detected = differences.mean(1) > stats.t.ppf(0.99, pairs - 1) * differences.std(1, ddof=1) / math.sqrt(pairs)
    assert detected.mean() == pytest.approx(0.859, abs=4 * math.sqrt(0.859 * 0.141 / 4000))


def test_minimum_detectable_effect_of_a_ratio() -> None:
    """A ratio's own smallest visible slowdown is made from the spread of its pairs."""
    found = statistics.ratio(by_round(np.exp([0.0, 0.02, 0.04])), by_round(np.ones(3)))
    assert found.mde == pytest.approx(math.expm1(statistics.minimum_detectable_effect(0.02, 3)))


def normal_effects(rng: np.random.Generator, count: int) -> Floats:
    return rng.normal(0, 0.012, count)


def two_modes(rng: np.random.Generator, count: int) -> Floats:
    """An autotuner that settles on one of two kernels, 4 % apart; the mean is taken out."""
    return rng.choice([-0.02, 0.02], count) + rng.normal(0, 0.003, count)


@pytest.mark.parametrize("processes", [3, 5, 10, 20])
def test_coverage_of_a_time(processes: int) -> None:
    """The 95 % interval over processes holds the true time in 95 % of runs, with luck of the process and noise of the call."""
    rng = np.random.default_rng(processes)
    hits, trials = 0, 1000
    for _ in range(trials):
        luck = normal_effects(rng, processes)
        calls = rng.normal(0, 0.01, (processes, 15))
        found = statistics.estimate(np.exp(np.median(luck[:, None] + calls, axis=1)).tolist())
        hits += found.low is not None and found.high is not None and found.low <= 1 <= found.high
    assert not below(hits, trials, 0.95)
    assert not below(trials - hits, trials, 0.05)


@pytest.mark.parametrize("effects", [normal_effects, two_modes])
@pytest.mark.parametrize("pairs", [3, 5, 10])
def test_coverage_of_a_ratio(pairs: int, effects: Callable[[np.random.Generator, int], Floats]) -> None:
    """The 95 % interval of a ratio holds the truth in at least 95 % of runs, while the machine drifts between rounds."""
    rng = np.random.default_rng(pairs)
    hits, trials, truth = 0, 1000, 1.07
    for _ in range(trials):
        drift = rng.normal(0, 0.1, pairs)
        found = statistics.ratio(
            by_round(truth * np.exp(drift + effects(rng, pairs))),
            by_round(np.exp(drift + effects(rng, pairs))),
        )
        hits += found.low is not None and found.high is not None and found.low <= truth <= found.high
    assert not below(hits, trials, 0.95)


def test_pooled_calls_would_cover_too_seldom() -> None:
    """Why calls are not pooled: their 95 % interval misses the truth in most runs, in those where the interval over processes holds it."""
    rng = np.random.default_rng(5)
    trials, pooled_hits, hits = 500, 0, 0
    for _ in range(trials):
        logs = normal_effects(rng, 5)[:, None] + rng.normal(0, 0.003, (5, 100))
        pooled = stats.ttest_1samp(logs.ravel(), 0).confidence_interval(0.95)
        pooled_hits += pooled.low <= 0 <= pooled.high
        found = statistics.estimate(np.exp(np.median(logs, axis=1)).tolist())
        hits += found.low is not None and found.high is not None and found.low <= 1 <= found.high
    assert pooled_hits < 0.5 * trials
    assert not below(hits, trials, 0.95)


def cells(rng: np.random.Generator, truth: dict[str, float], rounds: int) -> dict[str, dict[int, float]]:
    """Times of cells measured in the same rounds, with drift between rounds and luck of each process."""
    drift = rng.normal(0, 0.1, rounds)
    return {name: by_round(time * np.exp(drift + rng.normal(0, 0.01, rounds))) for name, time in truth.items()}


def test_ranks_are_apart_where_times_are() -> None:
    """Cells far apart have one place each, and cells of equal speed share theirs."""
    found = statistics.ranks(cells(np.random.default_rng(0), {"slow": 4.0, "fast": 1.0, "twin": 1.0, "slower": 8.0}, 10))
    assert found == {"fast": Rank(1, 2), "twin": Rank(1, 2), "slow": Rank(3, 3), "slower": Rank(4, 4)}


def test_ranks_without_evidence() -> None:
    """Cells without two common rounds are not told apart; a cell alone is first."""
    assert statistics.ranks({"a": {0: 1.0}, "b": {0: 9.0}, "c": {}}) == dict.fromkeys("abc", Rank(1, 3))
    assert statistics.ranks({"a": {0: 1.0}}) == {"a": Rank(1, 1)}
    assert statistics.ranks({}) == {}


def test_ranks_hold_the_true_ones() -> None:
    """In at least 95 % of runs every cell's true place is among its places; equal cells may hold any of theirs."""
    rng = np.random.default_rng(1)
    truth = {"a": 1.0, "b": 1.0, "c": 1.005, "d": 1.03, "e": 1.03}
    places = {"a": (1, 2), "b": (1, 2), "c": (3, 3), "d": (4, 5), "e": (4, 5)}
    trials, hits = 400, 0
    for _ in range(trials):
        found = statistics.ranks(cells(rng, truth, 5))
        hits += all(found[name].low <= low and found[name].high >= high for name, (low, high) in places.items())
    assert not below(hits, trials, 0.95)


def test_equal_cells_are_seldom_ranked() -> None:
    """Among six equal cells any difference at all is claimed in at most 5 % of runs; unadjusted intervals would claim more."""
    rng = np.random.default_rng(2)
    trials, claimed, unadjusted = 400, 0, 0
    for _ in range(trials):
        times = cells(rng, dict.fromkeys("abcdef", 1.0), 5)
        claimed += any(found.tie is False for found in statistics.all_ratios(times).values())
        unadjusted += any(statistics.ratio(*couple).tie is False for couple in itertools.combinations(times.values(), 2))
    assert not below(trials - claimed, trials, 0.95)
    assert unadjusted > 0.1 * trials


@given(st.dictionaries(st.sampled_from("abcdef"), ROUNDS))
def test_ranks_are_places(times: dict[str, dict[int, float]]) -> None:
    """Places lie between 1 and the number of cells, in order, and every place can be held by some cell."""
    found = statistics.ranks(times)
    assert set(found) == set(times)
    for rank in found.values():
        assert 1 <= rank.low <= rank.high <= len(times)
    assert all(any(rank.low <= place <= rank.high for rank in found.values()) for place in range(1, len(times) + 1))


@pytest.mark.parametrize(("hits", "trials"), [(0, 3000), (2, 3000), (1, 20), (5, 5)])
def test_upper_bound(hits: int, trials: int) -> None:
    """At the bound, so few hits have a probability of 5 %; where all are hits the bound is 1."""
    bound = statistics.upper_bound(hits, trials)
    assert bound == 1.0 if hits == trials else stats.binom.cdf(hits, trials, bound) == pytest.approx(0.05)
    assert statistics.upper_bound(0, 3000) < 0.001


def test_mcnemar_by_hand() -> None:
    """Of 8 images that one alone has right, 1 or none is the other's in 2 * 9 of 256 cases; nothing to tell apart is 1."""
    assert statistics.mcnemar(1, 7) == statistics.mcnemar(7, 1) == pytest.approx(18 / 256)
    assert statistics.mcnemar(0, 0) == statistics.mcnemar(4, 4) == 1
    with pytest.raises(StatisticsError, match="-1 and 2 images"):
        statistics.mcnemar(-1, 2)


@pytest.mark.parametrize("differing", [1, 5, 6, 20, 101])
def test_mcnemar_holds_its_level(differing: int) -> None:
    """Classifiers that are equally often right are told apart at 5 % with a probability of at most 5 %, as an exact test must."""
    alarms = sum(
        stats.binom.pmf(first, differing, 0.5) for first in range(differing + 1) if statistics.mcnemar(first, differing - first) < 0.05
    )
    assert alarms <= 0.05
    assert (alarms > 0) == (differing >= 6)


def test_wilson_by_hand() -> None:
    """The interval of a proportion is Wilson's, from its formula, and stays within 0 and 1."""
    z, n, p = 1.959963984540054, 50, 0.9
    centre, half = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    assert statistics.wilson(45, 50) == pytest.approx((centre - half, centre + half))
    assert statistics.wilson(0, 10)[0] == 0
    assert statistics.wilson(10, 10)[1] == 1


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_proportion_of_nothing(successes: int, trials: int) -> None:
    """A proportion of no trials, or of more than all, is refused."""
    with pytest.raises(StatisticsError):
        statistics.wilson(successes, trials)
    with pytest.raises(StatisticsError):
        statistics.upper_bound(successes, trials)


@pytest.mark.parametrize(("percentile", "needed"), [(50, 11), (90, 64), (95, 130), (99, 662), (99.9, 6636)])
def test_percentile_needs(percentile: float, needed: int) -> None:
    """A percentile is not reportable below MLPerf's number of calls, and is at it: there it is the largest latency."""
    few = statistics.percentile_bound([1.0] * (needed - 1), percentile)
    assert (few.value, few.samples, few.needed) == (None, needed - 1, needed)
    assert statistics.percentile_bound(list(range(1, needed + 1)), percentile).value == needed


def test_percentile_of_many() -> None:
    """Of 1000 calls the bound of the 99th percentile is the second largest latency."""
    shuffled = np.random.default_rng(3).permutation(np.arange(1, 1001)).tolist()
    assert statistics.percentile_bound(shuffled, 99).value == 999


@pytest.mark.parametrize("percentile", [0, 100, -1, math.nan])
def test_no_such_percentile(percentile: float) -> None:
    """Percentiles outside 0 and 100 are refused."""
    with pytest.raises(StatisticsError, match="is not between"):
        statistics.percentile_bound([1.0] * 100, percentile)


@pytest.mark.parametrize(("percentile", "count"), [(50, 11), (50, 40), (90, 64), (90, 300)])
def test_percentile_bound_holds(percentile: float, count: int) -> None:
    """The bound is below the true percentile in at most 1 % of runs of independent calls."""
    rng = np.random.default_rng(count)
    truth = -math.log(1 - percentile / 100)
    trials = 1000
    held = sum((statistics.percentile_bound(rng.exponential(1, count).tolist(), percentile).value or 0) >= truth for _ in range(trials))
    assert not below(held, trials, 0.99)
