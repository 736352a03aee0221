"""Comparisons beyond a pair of cells in one run: two runs, a set of cells, and rows that must not be compared at all.

What was not measured in turns is labelled unpaired and speaks of these runs. Pure functions; times in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from results.schema import canonical
from results.statistics import CONFIDENCE, Ratio, StatisticsError, bounded_exp, log_times, ratio

Answer = Literal["REPRODUCED", "DIFFERS", "CANNOT-TELL"]

SAME_MACHINE = 0.02
OTHER_MACHINE = 0.05
"""How far a ratio may lie from 1 and still be the same result, on the machine of the record and on another."""


@dataclass(frozen=True, slots=True)
class Unpaired:
    """The second's time over the first's, with Welch's interval over ``units`` (of the first, of the second) that are independent."""

    value: float
    low: float
    high: float
    units: tuple[int, int]


def unpaired(first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE) -> Unpaired:
    """Welch's interval on the logarithm; each value is one independent unit, such as a process of a run.

    Raises:
        StatisticsError: fewer than two values on a side, or one that is not positive and finite.
    """
    logs = log_times(first), log_times(second)
    if min(each.size for each in logs) < 2:
        raise StatisticsError(f"{logs[0].size} and {logs[1].size} values have no interval: two of each are the least")
    centre = float(np.mean(logs[1]) - np.mean(logs[0]))
    shares = [float(np.var(each, ddof=1)) / each.size for each in logs]
    if (variance := sum(shares)) == 0:
        return Unpaired(bounded_exp(centre), bounded_exp(centre), bounded_exp(centre), (logs[0].size, logs[1].size))
    # Welch 1947, with Satterthwaite's degrees of freedom.
    freedom = variance**2 / sum(share**2 / (each.size - 1) for share, each in zip(shares, logs, strict=True))
    half = float(special.stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(variance)
    return Unpaired(bounded_exp(centre), bounded_exp(centre - half), bounded_exp(centre + half), (logs[0].size, logs[1].size))


def reproduced(found: Unpaired, band: float) -> Answer:
    """What a rerun says of a result, ``found`` being the rerun's time over the result's, with a 95 % interval.

    With the band from 1 / (1 + band) to 1 + band: REPRODUCED if the interval lies within it, DIFFERS if it lies wholly outside,
    else CANNOT-TELL. Both claims are about the same band: whatever the truth, REPRODUCED is wrong in at most 2.5 % of reruns and
    DIFFERS in at most 5 %. An interval that excludes 1 and reaches into the band is CANNOT-TELL: a difference there is, but
    perhaps one that does not matter.
    """
    if 1 / (1 + band) <= found.low and found.high <= 1 + band:
        return "REPRODUCED"
    return "DIFFERS" if found.low > 1 + band or found.high < 1 / (1 + band) else "CANNOT-TELL"


def geometric_mean(ratios: Mapping[str, Mapping[int, float]], confidence: float = CONFIDENCE) -> Ratio:
    """The geometric mean over cells of speed ratios, each given by round, with Student's interval over rounds.

    It speaks of this set of cells. A round's cells share its processes, so the rounds are the units: the cells are averaged
    within each, and rounds that lack a cell are left out. For 6 cells in 5 rounds, with luck of 1 % in the process and in the cell, the
    interval covered the truth in 95 % of simulations, cells taken as units in 62 %, the percentile bootstrap over rounds in 83 %.

    Raises:
        StatisticsError: no cells, or a ratio that is not positive and finite.
    """
    if not ratios:
        raise StatisticsError("a mean of no ratios")
    rounds = sorted(set.intersection(*(set(each) for each in ratios.values())))
    means = {index: math.exp(-float(np.mean(log_times([each[index] for each in ratios.values()])))) for index in rounds}
    return ratio(dict.fromkeys(rounds, 1.0), means, confidence)


def unlike(first: Mapping[str, object], second: Mapping[str, object], keys: Sequence[str]) -> tuple[str, ...]:
    """The ``keys`` in which two rows differ; only rows without any may be compared.

    A key that a row lacks is unknown there, and unlike everything; one that does not apply is null. Values are compared as JSON:
    true is not 1.
    """

    def alike(key: str) -> bool:
        return key in first and key in second and canonical(first[key]) == canonical(second[key])

    return tuple(key for key in keys if not alike(key))
