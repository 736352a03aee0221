from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from results.comparison import (
    OTHER_MACHINE,
    SAME_MACHINE,
    Unpaired,
    geometric_mean,
    reproduced,
    unlike,
    unpaired,
)
from results.statistics import StatisticsError, ratio

Floats = npt.NDArray[np.float64]
TIMES = st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=8)


def found(low: float, high: float) -> Unpaired:
    return Unpaired(math.sqrt(low * high), low, high, (5, 5))


@given(first=TIMES, second=TIMES)
def test_unpaired_is_welch(first: list[float], second: list[float]) -> None:
    """The interval is scipy's of Welch's test on the logarithm."""
    logs = np.log(first), np.log(second)
    if min(np.std(logs[0]), np.std(logs[1])) < 1e-6:
        return
    result = unpaired(first, second)
    interval = stats.ttest_ind(logs[1], logs[0], equal_var=False).confidence_interval(0.95)
    assert [math.log(result.low), math.log(result.high)] == pytest.approx([interval.low, interval.high], rel=1e-6, abs=1e-9)
    assert math.log(result.value) == pytest.approx(float(np.mean(logs[1]) - np.mean(logs[0])), abs=1e-9)
    assert result.units == (len(first), len(second))


@given(first=TIMES, second=TIMES)
def test_exchanged_sides(first: list[float], second: list[float]) -> None:
    """The other way round the ratio and its interval are the reciprocals."""
    here, there = unpaired(first, second), unpaired(second, first)
    assert [math.log(here.value), math.log(here.low), math.log(here.high)] == pytest.approx(
        [-math.log(there.value), -math.log(there.high), -math.log(there.low)], rel=1e-9, abs=1e-9
    )


def test_unpaired_without_variance() -> None:
    """Units that agree have an interval of no width."""
    assert unpaired([1.0, 1.0], [2.0, 2.0, 2.0]) == Unpaired(2.0, 2.0, 2.0, (2, 3))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1.0], [1.0, 2.0], "1 and 2 values"),
        ([1.0, 2.0], [], "no times"),
        ([1.0, math.nan], [1.0, 2.0], "finite"),
        ([1.0, 2.0], [1.0, 0.0], "positive"),
    ],
)
def test_unpaired_without_an_interval(first: list[float], second: list[float], message: str) -> None:
    """One value has no interval; what is no time is refused."""
    with pytest.raises(StatisticsError, match=message):
        unpaired(first, second)


def test_wild_units() -> None:
    """Two wild sides have finite bounds, as JSON has no infinity."""
    assert math.isfinite(unpaired([1e-300, 1e300], [1e300, 1e-300]).high)


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (0.99, 1.01, "REPRODUCED"),
        (1.005, 1.015, "REPRODUCED"),  # differs from 1, but not by what matters
        (1 / 1.02, 1.02, "REPRODUCED"),
        (0.99, 1.021, "CANNOT-TELL"),
        (1.01, 1.03, "CANNOT-TELL"),
        (0.9, 1.1, "CANNOT-TELL"),
        (1.021, 1.1, "DIFFERS"),
        (0.9, 0.98, "DIFFERS"),
    ],
)
def test_reproduced(low: float, high: float, answer: str) -> None:
    """Within the band, outside it, or across an end of it."""
    assert reproduced(found(low, high), SAME_MACHINE) == answer


@given(st.floats(0.5, 2), st.floats(1, 1.5))
def test_reproduced_either_way(low: float, width: float) -> None:
    """It is of no matter which of two results was the rerun; a wider band never turns REPRODUCED into another answer."""
    here, there = found(low, low * width), found(1 / (low * width), 1 / low)
    tight = reproduced(here, SAME_MACHINE)
    if min(abs(math.log(each) - sign * math.log1p(SAME_MACHINE)) for each in (low, low * width) for sign in (1, -1)) > 1e-9:
        assert reproduced(there, SAME_MACHINE) == tight
    if tight == "REPRODUCED":
        assert reproduced(here, OTHER_MACHINE) == "REPRODUCED"


@pytest.mark.parametrize(
    ("change", "wrong", "level"),
    [(1.0, "DIFFERS", 0.05), (1.02, "DIFFERS", 0.025), (1.02, "REPRODUCED", 0.025), (1 / 1.02, "REPRODUCED", 0.025)],
)
@pytest.mark.parametrize("noise", [0.002, 0.01, 0.05])
def test_errors_of_reproduced(change: float, wrong: str, level: float, noise: float) -> None:
    """A change just at the end of the band is called reproduced, or different, in no more than 2.5 % of reruns."""
    rng, trials = np.random.default_rng(4), 1000
    first, second = np.exp(rng.normal(0, noise, (trials, 5))), change * np.exp(rng.normal(0, noise, (trials, 5)))
    hits = sum(reproduced(unpaired(one, other), SAME_MACHINE) == wrong for one, other in zip(first.tolist(), second.tolist(), strict=True))
    assert stats.binom.sf(hits - 1, trials, level) > 1e-3


def coverage(interval: Callable[[int], tuple[float, float]], trials: int, truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in map(interval, range(trials))]))


def test_geometric_mean_by_hand() -> None:
    """Of 2 and 8 it is 4; the interval is that of the rounds' means."""
    result = geometric_mean({"a": {0: 2.0, 1: 2.0, 2: 2.0}, "b": {0: 8.0, 1: 8.0, 2: 8.0}})
    assert [result.value, result.low, result.high, result.pairs] == pytest.approx([4.0, 4.0, 4.0, 3])
    cells = {"a": {0: 2.0, 1: 1.0, 2: 1.5}, "b": {0: 1.0, 1: 3.0, 2: 1.5}}
    expected = ratio(dict.fromkeys(range(3), 1.0), {index: 1 / math.sqrt(cells["a"][index] * cells["b"][index]) for index in range(3)})
    result = geometric_mean(cells)
    assert [result.value, result.low, result.high] == pytest.approx([expected.value, expected.low, expected.high])


def test_rounds_that_lack_a_cell() -> None:
    """Only rounds with every cell count; one such round has no interval, and then there is no mean."""
    assert geometric_mean({"a": {0: 2.0, 1: 2.0, 2: 2.0}, "b": {0: 8.0, 1: 8.0}}).pairs == 2
    assert geometric_mean({"a": {0: 2.0, 1: 2.0}, "b": {1: 8.0, 2: 8.0}}).value is None


@pytest.mark.parametrize("ratios", [{}, {"a": {0: math.nan, 1: 1.0}}, {"a": {0: 0.0, 1: 1.0}}])
def test_no_mean(ratios: dict[str, dict[int, float]]) -> None:
    """No cells, and what is no ratio, are refused."""
    with pytest.raises(StatisticsError):
        geometric_mean(ratios)


def test_coverage_of_a_geometric_mean() -> None:
    """The figures of the docstring: rounds as units cover in 95 % of simulations, cells in 62 %, the bootstrap over rounds in 83 %.

    Six cells in five rounds; a round's processes have luck of 1 %, and so has each cell in each.
    """
    rng, trials = np.random.default_rng(8), 2000
    logs = rng.normal(0, 0.01, (trials, 1, 5)) + rng.normal(0, 0.01, (trials, 6, 5))

    def rounds(trial: int) -> tuple[float, float]:
        result = geometric_mean({str(index): dict(enumerate(np.exp(cell).tolist())) for index, cell in enumerate(logs[trial])})
        assert result.low is not None
        assert result.high is not None
        return result.low, result.high

    def cells(trial: int) -> tuple[float, float]:
        means = logs[trial].mean(1)
        half = stats.t.ppf(0.975, 5) * means.std(ddof=1) / math.sqrt(6)
        return math.exp(means.mean() - half), math.exp(means.mean() + half)

    def bootstrap(trial: int) -> tuple[float, float]:
        means = logs[trial].mean(0)
        low, high = np.quantile(means[rng.integers(0, 5, (500, 5))].mean(1), [0.025, 0.975])
        return math.exp(low), math.exp(high)

    assert coverage(rounds, trials, 1.0) == pytest.approx(0.95, abs=0.015)
    assert coverage(cells, trials, 1.0) == pytest.approx(0.62, abs=0.03)
    assert coverage(bootstrap, trials, 1.0) == pytest.approx(0.83, abs=0.03)


KEYS = ("threads", "precision", "layout", "tf32")
ROW: dict[str, object] = {"precision": "fp32", "tf32": False, "threads": 2, "layout": None, "implementation": "jax"}


def test_like_rows() -> None:
    """Rows that differ in no key are comparable, whatever else they hold."""
    assert unlike(ROW, {**ROW, "implementation": "onnx"}, KEYS) == ()


@pytest.mark.parametrize("key", KEYS)
def test_unlike_rows(key: str) -> None:
    """Every key counts; one that a row lacks is unlike everything, even where both do."""
    other = {**ROW, key: "other"}
    lacking = {name: value for name, value in ROW.items() if name != key}
    assert unlike(ROW, other, KEYS) == unlike(other, ROW, KEYS) == (key,)
    assert unlike(ROW, lacking, KEYS) == unlike(lacking, ROW, KEYS) == unlike(lacking, lacking, KEYS) == (key,)


def test_values_are_compared_as_json() -> None:
    """True is not 1 and null is not false; the order of names is of no matter."""
    assert unlike(ROW, {**ROW, "tf32": 0}, KEYS) == ("tf32",)
    assert unlike(ROW, {**ROW, "tf32": None, "threads": 2.0}, KEYS) == ("threads", "tf32")
    assert unlike({"a": {"x": 1, "y": [2]}}, {"a": {"y": [2], "x": 1}}, ["a"]) == ()


def test_all_differences_are_named() -> None:
    """In the keys' order."""
    assert unlike(ROW, {**ROW, "layout": "NHWC", "precision": "bf16", "threads": 1}, KEYS) == ("threads", "precision", "layout")
