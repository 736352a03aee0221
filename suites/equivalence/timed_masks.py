"""The decisions that a timed step took otherwise than the derivatives that are shown, inferred from what it changed.

Derivatives are shown operation by operation, and a fused step rounds otherwise: a ReLU or pool within rounding of its edge may go the other
way, which moves gradients by a thousand times their noise. Such elements are few and known, and each moves hundreds of tensors in one way
that the oracle can compute. A step whose tensors are all within their noise given a few of them took these; a fault is none of their sums.

Which they are can mostly be read off. The gradient of the bias in front of a ReLU is the sum of the cotangents that pass it, channel by
channel, so in the last layer an element that passes in one of two runs shows as its own cotangent; and a pool that takes another element
exchanges two patches in the gradient of the kernel in front of it. Given those of the last layer, the one before is read, and so on: one
backward pass for each layer that has some, and not one for each element that is near.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
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
    """Of a layer: gradients in front of it that show which of its decisions were taken otherwise, in deviations of their noise.

    ``off`` is by channel how far they are off, a vector, and ``moved`` by decision what it alone moves of them. Channels and decisions of
    which nothing shows are left out.
    """

    off: Mapping[int, Array]
    moved: Mapping[Edge, Array]


Look = Callable[[str, tuple[Edge, ...]], Sums]
"""What shows of a layer's near decisions, given that these behind it were taken otherwise."""

READ = 5.0
"""Deviations to which a channel's sums must be explained, as every tensor of a step."""

MOST_READ = 4
"""Decisions of one channel of one layer that are tried together."""


def read_off(near: Sequence[Edge], look: Look) -> tuple[Edge, ...]:
    """The fewest decisions of every channel that explain its sums, the last layer's first; arguments as of ``inferred``."""
    taken: tuple[Edge, ...] = ()
    for layer in reversed(dict.fromkeys(edge.layer for edge in near)):
        sums = look(layer, taken)
        for channel, off in sums.off.items():
            taken += _fewest([edge for edge in sums.moved if edge.index[1] == channel], sums.moved, off)
    return taken


def _fewest(near: Sequence[Edge], moved: Mapping[Edge, Array], off: Array) -> tuple[Edge, ...]:
    def left(edges: tuple[Edge, ...]) -> float:
        return float(np.sqrt(np.mean((off - sum(moved[edge] for edge in edges)) ** 2)))

    for count in range(min(len(near), MOST_READ) + 1):
        best = min(itertools.combinations(near, count), key=left)
        if left(best) <= READ:
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
