from __future__ import annotations

import math
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal, stats

from results.record import Samples
from results.steadiness import FEWEST_POINTS, Steadiness, classify

Floats = npt.NDArray[np.float64]


def samples(logs: Floats, per_visit: int, calls: int = 1, warmup: int = 0) -> Samples:
    """A process whose calls take exp(logs) milliseconds; of each visit the first ``warmup`` are warm-up."""
    durations = np.rint(np.exp(logs) * 1e6 * calls).astype(int)
    starts = np.concatenate([[0], np.cumsum(durations)[:-1]])
    rows = range(len(logs))
    return Samples(
        tuple(row // per_visit for row in rows),
        tuple(starts.tolist()),
        tuple(durations.tolist()),
        (calls,) * len(logs),
        tuple(row % per_visit < warmup for row in rows),
    )


def correlated(rng: np.random.Generator, count: int, correlation: float, deviation: float) -> Floats:
    """AR(1) noise, stationary from the first value."""
    innovations = rng.normal(0, deviation * math.sqrt(1 - correlation**2), count + 300)
    found: Floats = signal.lfilter([1.0], [1.0, -correlation], innovations)[300:]
    return found


T = np.arange(300) / 300
PLANTED: dict[str, tuple[Floats, set[str]]] = {
    "settles": (0.1 * np.exp(-15 * T), {"warm-up"}),
    "step down": (0.03 * (T < 0.2), {"warm-up"}),
    "step up": (0.03 * (T >= 0.3), {"slowdown"}),
    "fast for a while": (0.03 * ((T < 0.1) | (T >= 0.3)), {"slowdown"}),
    "slow for a while": (0.03 * ((T >= 0.1) & (T < 0.3)), {"warm-up"}),
    "late step up": (0.03 * (T >= 0.8), {"no steady state"}),
    "late step down": (0.03 * (T < 0.8), {"no steady state"}),
    "oscillation": (0.03 * (np.sin(2 * np.pi * 1.5 * T) > 0), {"no steady state"}),
    "drift": (0.08 * T, {"no steady state", "slowdown"}),
    "flat": (0 * T, {"flat"}),
    "a step too small to matter": (0.005 * (T < 0.3), {"flat"}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_shapes(name: str) -> None:
    """Calls with 0.5 % of noise get the class of the shape that was planted in 95 % of processes, and no wrong one but flat."""
    shape, expected = PLANTED[name]
    rng = np.random.default_rng(len(name))
    found = Counter(classify(samples(shape + rng.normal(0, 0.005, 300), 15)).verdict for _ in range(100))
    assert set(found) <= expected | {"flat"}, found
    assert stats.binom.cdf(sum(found[each] for each in expected), 100, 0.95) > 1e-3, found


def test_a_step_is_found_where_it_is() -> None:
    """The changepoint is the row of the samples, warm-up counted, at which the other level begins; levels are in seconds a call."""
    rng = np.random.default_rng(3)
    logs = 0.05 * (np.arange(400) < 100) + rng.normal(0, 0.003, 400)
    found = classify(samples(logs, 20, calls=4, warmup=2))
    (changepoint,) = found.changepoints
    assert abs(changepoint - 100) <= 3
    assert found.levels_s == pytest.approx((math.exp(0.05) * 1e-3, 1e-3), rel=2e-3)
    assert found.verdict == "warm-up"
    assert found.steady_fraction == pytest.approx(0.75, abs=0.01)


def test_warm_up_samples_are_not_judged() -> None:
    """Samples that are marked as warm-up may be as slow as they like."""
    logs = np.where(np.arange(300) % 15 < 3, 0.5, 0.0) + np.random.default_rng(4).normal(0, 0.003, 300)
    assert classify(samples(logs, 15, warmup=3)).verdict == "flat"


@pytest.mark.parametrize(("visits", "per_visit"), [(1, 3), (FEWEST_POINTS - 1, 3), (1, 35)])
def test_too_short(visits: int, per_visit: int) -> None:
    """A visit of three samples, or too few such visits, tells nothing, whatever the times."""
    logs = np.linspace(0, 3, visits * per_visit)
    assert classify(samples(logs, per_visit)) == Steadiness("cannot tell", (), (), None, None)


@pytest.mark.parametrize(("visits", "per_visit"), [(12, 3), (20, 3), (10, 15), (40, 15), (5, 1000)])
@pytest.mark.parametrize(("correlation", "rate"), [(0.0, 0.005), (0.5, 0.005), (0.9, 0.03), (0.97, 0.06)])
def test_noise_alone_is_flat(visits: int, per_visit: int, correlation: float, rate: float) -> None:
    """White noise is called anything else in at most 0.5 % of processes, AR(1) noise of correlation 0.9 in 3 %, of 0.97 in 6 %."""
    rng = np.random.default_rng(visits)
    trials = 150
    false = sum(
        classify(samples(correlated(rng, visits * per_visit, correlation, 0.03), per_visit)).verdict != "flat" for _ in range(trials)
    )
    assert stats.binom.sf(false - 1, trials, rate) > 1e-3


def test_visible_step() -> None:
    """A step of the size that is called visible is seen in about half of the processes, of one and a half times the size in nearly all."""
    rng = np.random.default_rng(6)
    seen = {1.0: 0, 1.5: 0}
    for factor in seen:
        for _ in range(60):
            noise = rng.normal(0, 0.02, 600)
            visible = classify(samples(noise, 20)).visible_step
            assert visible is not None
            seen[factor] += classify(samples(noise + factor * visible * (np.arange(600) < 300), 20)).verdict != "flat"
    assert 10 <= seen[1.0] <= 50
    assert seen[1.5] >= 58


def test_a_coarse_clock() -> None:
    """Readings without any spread are flat, and a step among them is still found."""
    assert classify(samples(np.zeros(300), 15)).verdict == "flat"
    assert classify(samples(0.02 * (np.arange(300) < 90), 15)).verdict == "warm-up"


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=120), st.integers(1, 20))
def test_what_is_told_fits_together(logs: list[float], per_visit: int) -> None:
    """There is one level more than changepoints, these are in order, and the last level takes a share of the samples."""
    found = classify(samples(np.array(logs), per_visit))
    if found.verdict == "cannot tell":
        return
    assert len(found.levels_s) == len(found.changepoints) + 1
    assert list(found.changepoints) == sorted(set(found.changepoints))
    assert found.steady_fraction is not None
    assert 0 < found.steady_fraction <= 1
    assert (found.verdict == "flat") == (found.steady_fraction == 1)
