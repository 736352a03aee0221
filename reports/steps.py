"""Steps in the history of ratios to the baseline, found by asv's step detection.

A ratio is taken between processes of one run, so a machine that was slower on the day moves both its sides; what is left is a
change of the code, of a framework, or of the baseline. asv minimises the absolute deviation from a piecewise constant function
under a penalty for pieces (Potts functional, penalty 4 ln(n) / n). docs/history.md has the rates at which it errs: it is for
looking back, and no gate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from asv.step_detect import detect_steps

from reports.history import Point

FEWEST = 10
"""Runs in a series that is searched. In shorter ones asv takes noise for steps: in up to 48 % of series of four runs, 11 % of six."""


@dataclass(frozen=True, slots=True)
class Step:
    """A change of level in one series: the levels (speed over the baseline's) and how many runs each lasted.

    ``last`` is the last point of the level before, ``first`` the first of the level after.
    """

    before: float
    after: float
    runs_before: int
    runs_after: int
    last: Point
    first: Point


def series(points: Iterable[Point], order: Mapping[str, int]) -> list[list[Point]]:
    """The points with a ratio, by machine, cell and baseline, each in the order of commits and, within one, of measurement.

    Versions of a framework share a series: that a new one is slower is what a step should show.
    """
    found: dict[tuple[object, ...], list[Point]] = defaultdict(list)
    for point in sorted(points, key=lambda point: (order[point.commit], point.measured_utc)):
        if point.ratio is not None:
            found[point.machine_id, point.cell, point.baseline].append(point)
    return list(found.values())


def steps(line: list[Point]) -> list[Step]:
    """The steps of one series; none in one of fewer than ``FEWEST`` points.

    All points weigh alike: an interval over three processes is too uncertain to be a weight.
    """
    if len(line) < FEWEST:
        return []
    pieces = detect_steps([point.ratio for point in line])
    return [
        Step(
            before=float(value),
            after=float(next_value),
            runs_before=right - left,
            runs_after=next_right - next_left,
            last=line[right - 1],
            first=line[next_left],
        )
        for (left, right, value, *_), (next_left, next_right, next_value, *_) in pairwise(pieces)
    ]
