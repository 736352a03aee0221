"""The decisions that a timed step took otherwise than the derivatives that are shown, inferred from what it changed.

Derivatives are shown operation by operation, and a fused step rounds otherwise: a ReLU or pool within rounding of its edge may go the other
way, which moves gradients by a thousand times their noise. Such elements are few and known, and each moves hundreds of tensors in one way
that the oracle can compute. A step whose tensors are all within their noise given a few of them took these; a fault is none of their sums.

Which they are can mostly be read off. The gradient of the bias in front of a ReLU is the sum of the cotangents that pass it, channel by
channel, so in the last layer an element that passes in one of two runs shows as its own cotangent. Given those of the last layer, the one
before is read, and so on: one backward pass for each layer that has some, and not one for each element that is near.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from impls.oracle.backward_masks import Edge
from impls.oracle.forward import Array

UNLIKELY = 1e-6
"""Probability of a correct step that takes more decisions otherwise than are accepted."""


def plausible(near: Sequence[Edge]) -> int:
    """The largest number of these decisions that rounding makes two runs take differently; more have a probability of ``UNLIKELY``.

    Two runs that err independently by normal noise differ at a margin of m deviations with 2 Phi(m) Phi(-m), each element for itself.
    """
    margins = np.array([edge.margin for edge in near])
    numbers = np.ones(1)
    for chance in 2 * special.ndtr(margins) * special.ndtr(-margins):
        numbers = np.convolve(numbers, [1 - chance, chance])
    return next(most for most in range(len(numbers)) if numbers[most + 1 :].sum() <= UNLIKELY)


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Of a ReLU: how far the gradient of the bias in front of it is off (C,), its noise's deviation, and the cotangents (N, C, ...)."""

    off: Array
    deviation: float
    cotangents: Array


Look = Callable[[str, tuple[Edge, ...]], Sums | None]
"""The sums of a layer given that these decisions were taken otherwise; None where it has no such bias in front of it."""

READ = 5.0
"""Deviations to which a channel's sum must be explained, as every tensor of a step."""

MOST_READ = 4
"""Decisions of one channel of one layer that are tried together."""


def read_off(near: Sequence[Edge], look: Look) -> tuple[Edge, ...]:
    """The fewest ReLUs of every channel whose cotangents explain its sum, the last layer's first; arguments as of ``inferred``."""
    taken: tuple[Edge, ...] = ()
    for layer in reversed(dict.fromkeys(edge.layer for edge in near)):
        sums = look(layer, taken)
        if sums is None:
            continue
        by_channel: dict[int, list[Edge]] = {}
        for edge in near:
            if edge.layer == layer:
                by_channel.setdefault(edge.index[1], []).append(edge)
        taken += tuple(edge for channel, own in by_channel.items() for edge in _fewest(own, sums, float(sums.off[channel])))
    return taken


def _fewest(near: Sequence[Edge], sums: Sums, off: float) -> tuple[Edge, ...]:
    def left(edges: tuple[Edge, ...]) -> float:
        return abs(off - sum(float(sums.cotangents[edge.index]) * (1 if edge.value > 0 else -1) for edge in edges))

    for count in range(min(len(near), MOST_READ) + 1):
        best = min(itertools.combinations(near, count), key=left)
        if left(best) <= READ * sums.deviation:
            return best
    return ()


def inferred(near: Sequence[Edge], judge: Callable[[tuple[Edge, ...]], tuple[float, bool]], look: Look) -> tuple[Edge, ...]:
    """The decisions that the step took otherwise; none where it needs none, or where no plausible number of them explains it.

    They are read off, where they can be. Else each is tried alone, and then on top of those already taken (or without it, where it is one
    of them), first that which left least; what leaves less is kept, until nothing does.

    Args:
        near: the decisions within rounding of their edge, in topological order.
        judge: how far the step is off, in deviations, given that it took these otherwise, and whether that is within its noise.
        look: where they can be read off.
    """
    taken: tuple[Edge, ...] = ()
    left, explained = judge(taken)
    if explained:
        return taken
    most, read = plausible(near), read_off(near, look)
    if 0 < len(read) <= most:
        error, explained = judge(read)
        if explained:
            return read
        if error < left:
            taken, left = read, error
    alone = [judge((edge,))[0] for edge in near]
    order = [near[place] for place in np.argsort(alone, kind="stable")]
    before = math.inf
    while left < before:
        before = left
        for edge in order:
            tried = tuple(each for each in taken if each != edge) if edge in taken else (*taken, edge)
            error, explained = judge(tried) if len(tried) <= most else (math.inf, False)
            if explained:
                return tried
            if error < left:
                taken, left = tried, error
    return ()
