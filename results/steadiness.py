"""Whether one process had settled while it was timed. It is published beside the figure and is never a reason to drop anything.

The classes are those of Barrett et al., "Virtual Machine Warmup Blows Hot and Cold" (OOPSLA 2017), here of the timed samples
alone, as the warm-up before them is fixed beforehand: "warm-up" says that it was too short for this process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from results.record import Samples

Floats = npt.NDArray[np.float64]
Class = Literal["flat", "warm-up", "slowdown", "no steady state", "cannot tell"]

PENALTY = 15.0
"""A changepoint must explain PENALTY * ln(n) in units of the noise: the value of warmup_stats (softdevteam), chosen there to find few."""

SAME = 0.01
"""Levels that differ by less than 1 % are one level: no smaller step is called a change, however clearly it is seen."""

STEADY_FRACTION = 0.5
"""A state that was reached only in the last half of the timed samples is not called steady."""

BLOCK = 3
"""Fewest samples whose median is one point, where the visit has as many."""

MOST_POINTS = 200
FEWEST_POINTS = 12
"""With fewer the noise itself, and how it is correlated, cannot be told from changes."""

CORE = 0.75
"""Of the squared differences the smallest three quarters tell the noise; the others may hold the changes."""

LARGEST_CORRELATION = 0.8
"""Noise is not taken for more correlated from point to point: what wanders more slowly is a change."""


@dataclass(frozen=True, slots=True)
class Steadiness:
    """What a process's timed samples did.

    ``changepoints`` are the rows of the samples at which another level begins. ``levels_s`` are the levels, one more than
    changepoints, in seconds a call. ``steady_fraction`` is the share of the timed samples from the last change of more than
    1 % on. ``visible_step`` is the change of level, as a fraction, that would just be seen were it in the middle: a process is
    flat within that. Where nothing can be told, the tuples are empty and the numbers None.
    """

    verdict: Class
    changepoints: tuple[int, ...]
    levels_s: tuple[float, ...]
    steady_fraction: float | None
    visible_step: float | None


def classify(samples: Samples) -> Steadiness:
    """The class of one process.

    Points are medians of log time over equal parts of a visit. Changepoints minimise the sum of squares around the levels
    over the noise's variance, plus PENALTY ln(n) for each (optimal partitioning: Jackson et al. 2005; PELT prunes the same
    optimum). The variance is the long-run one of AR(1) noise, estimated from differences, few of which a change touches.
    What alternates from point to point is noise to this test.

    - flat: every level lies within 1 % of the last
    - no steady state: the last level, and what lies within 1 % of it, began in the last half
    - warm-up: before it there were slower levels alone
    - slowdown: before it there was a faster one
    - cannot tell: fewer than 12 points
    """
    rows, points = _points(samples)
    if points.size < FEWEST_POINTS:
        return Steadiness("cannot tell", (), (), None, None)
    price = PENALTY * math.log(points.size) * _long_run_variance(points)
    starts = _segments(points, price)
    levels = [float(np.mean(part)) for part in np.split(points, starts[1:])]
    differences = [level - levels[-1] for level in levels]
    last = next(index for index in reversed(range(-1, len(levels))) if index < 0 or abs(differences[index]) >= SAME) + 1
    # The share is of samples, as the points of long visits hold more of them.
    timed = np.flatnonzero(~np.asarray(samples.warmup))
    steady = float(np.mean(timed >= rows[starts[last]]))
    if last == 0:
        verdict: Class = "flat"
    elif steady < STEADY_FRACTION:
        verdict = "no steady state"
    else:
        verdict = "slowdown" if min(differences) <= -SAME else "warm-up"
    # Two halves d apart are worth n d^2 / 4.
    visible = max(SAME, math.expm1(2 * math.sqrt(price / points.size)))
    return Steadiness(verdict, tuple(int(rows[start]) for start in starts[1:]), tuple(map(math.exp, levels)), steady, visible)


def _points(samples: Samples) -> tuple[npt.NDArray[np.int64], Floats]:
    """The first row and the median log time of each part of each visit, in order."""
    timed = np.flatnonzero(~np.asarray(samples.warmup))
    logs = np.log(np.asarray(samples.duration_ns)[timed] / np.asarray(samples.calls)[timed] * 1e-9)
    visits = np.split(np.arange(timed.size), np.flatnonzero(np.diff(np.asarray(samples.visit)[timed])) + 1)
    most = max(1, MOST_POINTS // len(visits))
    parts = [part for visit in visits for part in np.array_split(visit, min(most, max(1, visit.size // BLOCK)))]
    return timed[[part[0] for part in parts]], np.array([np.median(logs[part]) for part in parts])


def _long_run_variance(points: Floats) -> float:
    """The variance of a mean of n points of AR(1) noise, times n, however often its level changes.

    Differences one and two points apart give correlation and variance, after Chakar et al., "A robust approach for estimating
    change-points in the mean of an AR(1) process" (Bernoulli 2017), here by trimmed squares.
    """
    one, two = (_trimmed_variance(points[lag:] - points[:-lag]) for lag in (1, 2))
    one = max(one, 1e-12)  # a coarse clock may show no difference at all
    correlation = min(max(two / one - 1, 0.0), LARGEST_CORRELATION)
    return one / (2 * (1 - correlation)) * (1 + correlation) / (1 - correlation)


def _trimmed_variance(differences: Floats) -> float:
    """The variance of normal values of mean 0, from the CORE that are smallest."""
    kept = np.sort(differences**2)[: math.ceil(CORE * differences.size)]
    return float(np.mean(kept)) * CORE / float(special.chdtr(3, special.chdtri(1, 1 - CORE)))


def _segments(points: Floats, price: float) -> list[int]:
    """The first point of each segment of the partition with the least sum of squares plus ``price`` for each segment."""
    count = points.size
    sums = np.concatenate([[0.0], np.cumsum(points - points.mean())])
    # A segment's sum of squares is a constant less (sum)^2 / length, so only that need be minimised.
    best = np.full(count + 1, 0.0)
    previous = np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        begins = np.arange(end)
        costs = best[:end] - (sums[end] - sums[:end]) ** 2 / (end - begins) + price
        previous[end] = int(np.argmin(costs))
        best[end] = costs[previous[end]]
    starts = [int(previous[count])]
    while starts[-1]:
        starts.append(int(previous[starts[-1]]))
    return starts[::-1]
