"""The decisions that a timed step took otherwise than the derivatives that are shown, inferred from what it changed.

Derivatives are shown operation by operation, and a fused step rounds otherwise: a ReLU or pool within rounding of its edge may go the other
way, which moves gradients by a thousand times their noise. Such elements are few and known, and each moves hundreds of tensors in one way
that the oracle can compute. A step whose tensors are all within their noise given a few of them took these; a fault is none of their sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import special

from impls.oracle.backward_masks import Edge

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


def inferred(near: Sequence[Edge], judge: Callable[[tuple[Edge, ...]], tuple[float, bool]]) -> tuple[Edge, ...]:
    """The decisions that the step took otherwise; none where it needs none, or where no plausible number of them explains it.

    Each is tried alone, and then on top of those already taken (or without it, where it is one of them), first that which left least; what
    leaves less is kept, until nothing does.

    Args:
        near: the decisions within rounding of their edge.
        judge: how far the step is off, in deviations, given that it took these otherwise, and whether that is within its noise.
    """
    taken: tuple[Edge, ...] = ()
    left, explained = judge(taken)
    if explained:
        return taken
    most, alone = plausible(near), [judge((edge,))[0] for edge in near]
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
