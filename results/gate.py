"""The regression gate's statistics: is head slower, or larger, than base by more than the tolerance?

Times are judged by log ratios of pairs (head's time over base's, of fresh processes that took turns), in two stages whose
sizes and levels are fixed beforehand. The screen names candidates; a candidate is measured again in fresh pairs and only
that second measurement can fail it. So a cell that is slower by just the tolerance fails with probability 0.05 x 0.01.
Start-up times are judged the same way. docs/gate.md has the error rates. Pure functions.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from results.statistics import bounded_exp, minimum_detectable_effect

Outcome = Literal["pass", "candidate", "regressed", "inconclusive", "invalid"]

MOST_PAIRS = 10_000
"""Who would need more pairs than this is told so many."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is fixed before a gate measures.

    Fractions of base: a slowdown up to ``tolerance`` is none; to pass, one of ``tolerance + margin`` must be excluded. The
    default tolerance is what MLPerf calls materially different. ``pass_level`` is the one-sided level of the bound that passes.
    """

    tolerance: float = 0.02
    margin: float = 0.03
    screen_pairs: int = 5
    confirm_pairs: int = 8
    screen_level: float = 0.05
    confirm_level: float = 0.01
    pass_level: float = 0.05


TIME = Rule()

PEAK = Rule(tolerance=0.01, margin=0.01, screen_level=0.005)
"""For the peak memory of processes, in one stage: with five a side the level means that all of head need more than all of base."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a stage found.

    ``change`` is head over base (1.03: 3 % slower or larger), ``low`` the one-sided bound that a regression must show, ``high``
    the one that a pass must. ``mde`` is the smallest slowdown, as a fraction, that such pairs show (one-sided 1 %, power 90 %);
    ``needed`` how many pairs would tell the tolerance from tolerance + margin (one-sided 5 %, power 90 %), where it is
    inconclusive. ``improved``: better by more than the tolerance. All are None where invalid.
    """

    outcome: Outcome
    reason: str
    pairs: int
    change: float | None
    low: float | None
    high: float | None
    mde: float | None
    needed: int | None
    improved: bool | None


def screen(log_ratios: Sequence[float], rule: Rule = TIME) -> Judgement:
    """The first stage: "candidate", "pass", "inconclusive" or "invalid", from natural logs of head's time over base's by pair."""
    return _judge(log_ratios, rule, rule.screen_pairs, rule.screen_level, "candidate")


def confirm(log_ratios: Sequence[float], rule: Rule = TIME) -> Judgement:
    """The second stage, of a candidate, from fresh pairs alone: "regressed", "pass", "inconclusive" or "invalid"."""
    return _judge(log_ratios, rule, rule.confirm_pairs, rule.confirm_level, "regressed")


def peak_memory(base_bytes: Sequence[int], head_bytes: Sequence[int], rule: Rule = PEAK) -> Judgement:
    """The peak memory of processes, not paired: "regressed", "pass", "inconclusive" or "invalid".

    The change and its bounds are Hodges and Lehmann's, from the ranks of all ratios of a process of head to one of base: exact
    for every distribution that both sides share but for a factor. Student's t has no place here, as allocators settle on a few
    sizes each. Peaks do not drift with the machine either, so one stage is enough and pairs would add nothing.
    """
    pairs = min(len(base_bytes), len(head_bytes))
    if min([*base_bytes, *head_bytes], default=0) < 1:
        return _invalid("a process has no peak memory", pairs)
    lower = _rank(len(base_bytes), len(head_bytes), rule.screen_level)
    upper = _rank(len(base_bytes), len(head_bytes), rule.pass_level)
    if lower is None or upper is None:
        return _invalid(f"{len(base_bytes)} and {len(head_bytes)} processes are too few for a level of {rule.screen_level:.1%}", pairs)
    logs = np.sort(np.subtract.outer(np.log(head_bytes), np.log(base_bytes)), axis=None)
    return _decide(float(np.median(logs)), float(logs[lower]), float(logs[-1 - upper]), rule, "regressed", pairs, None)


def allocated_memory(base_bytes: Sequence[int], head_bytes: Sequence[int]) -> Judgement:
    """Bytes that an allocator counts, which do not vary between equal processes: any growth at all is "regressed".

    Where a side does vary, its count is no constant to be compared: "inconclusive".
    """
    pairs = min(len(base_bytes), len(head_bytes))
    if not pairs or min(*base_bytes, *head_bytes) < 1:
        return _invalid("a process has no count of its allocator", pairs)
    sides = {"base": set(base_bytes), "head": set(head_bytes)}
    if varying := [f"{side} between {min(found)} and {max(found)} bytes" for side, found in sides.items() if len(found) > 1]:
        reason = f"the allocator's count varies between processes: {', '.join(varying)}"
        return Judgement("inconclusive", reason, pairs, None, None, None, None, None, None)
    change = head_bytes[0] / base_bytes[0]
    grew = head_bytes[0] > base_bytes[0]
    reason = f"{base_bytes[0]} bytes became {head_bytes[0]}" if change != 1 else f"{head_bytes[0]} bytes on both sides"
    return Judgement("regressed" if grew else "pass", reason, pairs, change, change, change, None, None, change < 1)


def pairs_needed(deviation: float, rule: Rule = TIME) -> int:
    """The fewest pairs that tell a slowdown of the tolerance from one of tolerance + margin; at most ``MOST_PAIRS``.

    ``deviation`` is that of the pairs' log ratios; one-sided at the rule's ``pass_level``, power 90 %.
    """
    gap = math.log1p(rule.tolerance + rule.margin) - math.log1p(rule.tolerance)
    return (
        bisect.bisect_left(
            range(2, MOST_PAIRS), True, key=lambda pairs: minimum_detectable_effect(deviation, pairs, rule.pass_level) <= gap
        )
        + 2
    )


def _judge(log_ratios: Sequence[float], rule: Rule, pairs: int, level: float, found: Outcome) -> Judgement:
    logs = np.asarray(log_ratios, dtype=float)
    if logs.size != pairs:
        return _invalid(f"{logs.size} pairs were measured, not the {pairs} that were fixed beforehand", logs.size)
    if not np.all(np.isfinite(logs)):
        return _invalid("a pair has no ratio", logs.size)
    mean, deviation = float(np.mean(logs)), float(np.std(logs, ddof=1))
    low, high = (special.stdtrit(pairs - 1, 1 - each) * deviation / math.sqrt(pairs) for each in (level, rule.pass_level))
    return _decide(mean, mean - float(low), mean + float(high), rule, found, pairs, deviation)


def _decide(centre: float, low: float, high: float, rule: Rule, found: Outcome, pairs: int, deviation: float | None) -> Judgement:
    tolerance, limit = math.log1p(rule.tolerance), math.log1p(rule.tolerance + rule.margin)
    change = f"{bounded_exp(centre) - 1:+.2%} [{bounded_exp(low) - 1:+.2%}, {bounded_exp(high) - 1:+.2%}]"
    if low > tolerance:
        outcome, reason = found, f"{change}: more than the tolerance of {rule.tolerance:.1%}"
    elif high < limit:
        outcome, reason = "pass", f"{change}: less than {rule.tolerance + rule.margin:.1%}"
    else:
        outcome, reason = "inconclusive", f"{change}: neither above {rule.tolerance:.1%} nor below {rule.tolerance + rule.margin:.1%}"
    mde = None if deviation is None else bounded_exp(minimum_detectable_effect(deviation, pairs)) - 1
    needed = None if deviation is None or outcome != "inconclusive" else pairs_needed(deviation, rule)
    return Judgement(
        outcome, reason, pairs, bounded_exp(centre), bounded_exp(low), bounded_exp(high), mde, needed, improved=high < -tolerance
    )


def _invalid(reason: str, pairs: int) -> Judgement:
    return Judgement("invalid", reason, pairs, None, None, None, None, None, None)


def _rank(first: int, second: int, level: float) -> int | None:
    """Which of the sorted differences, from 0, is the one-sided bound of a shift at this level; None where there are too few.

    The shift lies below the k-th with the probability that Mann and Whitney's U is k or less.
    """
    orders, passed, rank = math.comb(first + second, first), 0, -1
    while (passed := passed + _orders(first, second, rank + 1)) <= level * orders:
        rank += 1
    return rank if rank >= 0 else None


@functools.cache
def _orders(first: int, second: int, u: int) -> int:
    """How many orders of two samples have U = u (Mann and Whitney 1947)."""
    if u < 0:
        return 0
    if first == 0 or second == 0:
        return int(u == 0)
    return _orders(first - 1, second, u - second) + _orders(first, second - 1, u)
