"""Which of the decisions near their edge a step took otherwise, from what each does to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from impls.oracle.backward_masks import Edge
from suites.equivalence.timed_masks import UNLIKELY, inferred, plausible

Vector = npt.NDArray[np.float64]
TENSORS = 100


def near(margins: list[float]) -> list[Edge]:
    return [Edge("relu", (place,), margin, "relu", (place,), 0.0) for place, margin in enumerate(margins)]


def effects(seed: int, count: int) -> Vector:
    """What each decision does to every tensor, in deviations: of a hundred to ten thousand, with a common part."""
    generator = np.random.default_rng(seed)
    size = 10 ** generator.uniform(2, 4, (count, 1))
    return size * (generator.standard_normal((count, TENSORS)) + 0.3 * generator.standard_normal(TENSORS))


def judging(off: Vector, moves: Vector) -> Callable[[tuple[Edge, ...]], tuple[float, bool]]:
    """A step that is off by this, given nothing."""

    def judge(taken: tuple[Edge, ...]) -> tuple[float, bool]:
        error = off - sum((moves[edge.index[0]] for edge in taken), np.zeros(TENSORS))
        return float(np.linalg.norm(error)), float(np.abs(error).max()) <= 5

    return judge


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 3))
def test_what_was_taken_is_found(seed: int, count: int) -> None:
    """Up to three of twelve, below noise of one deviation."""
    edges, moves = near([0.5] * 12), effects(seed, 12)
    true = set(np.random.default_rng(seed + 1).choice(12, count, replace=False).tolist())
    noise = 0.9 * np.random.default_rng(seed + 2).uniform(-1, 1, TENSORS)
    found = inferred(edges, judging(noise + moves[sorted(true)].sum(axis=0), moves))
    assert {edge.index[0] for edge in found} == true


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, TENSORS - 1), st.sampled_from([-1, 1]), st.floats(20, 1e5))
def test_a_fault_is_not_excused(seed: int, tensor: int, sign: int, size: float) -> None:
    """One tensor that is off by twenty deviations or more, alone or beside a decision that was taken otherwise."""
    edges, moves = near([0.5] * 12), effects(seed, 12)
    fault = np.zeros(TENSORS)
    fault[tensor] = sign * size
    assert inferred(edges, judging(fault, moves)) == ()
    assert inferred(edges, judging(fault + moves[4], moves)) == ()


def test_no_more_than_rounding_makes_plausible() -> None:
    """All twelve that lie five deviations off: each alone is excused, three together are not."""
    edges, moves = near([5.0] * 12), effects(0, 12)
    assert plausible(edges) == 1
    assert inferred(edges, judging(moves[3], moves)) == (edges[3],)
    assert inferred(edges, judging(moves[3] + moves[5] + moves[7], moves)) == ()


def test_nothing_near_and_nothing_finite_explain_nothing() -> None:
    """No decision to blame, or an error that no decision lessens."""
    assert inferred([], judging(np.full(TENSORS, 9.0), effects(0, 1))) == ()
    assert inferred(near([0.5]), judging(np.full(TENSORS, np.inf), effects(0, 1))) == ()


def test_plausible_is_the_tail_of_two_noisy_runs() -> None:
    """Simulated: in 200,000 pairs hardly one differs in more than that many decisions, and some in one or two less."""
    generator = np.random.default_rng(0)
    margins = generator.uniform(0, 8, 15)
    first, second = (margins + generator.standard_normal((200_000, 15)) > 0 for _ in range(2))
    differing = np.count_nonzero(first != second, axis=1)
    most = plausible(near(margins.tolist()))
    assert np.mean(differing > most) <= 10 * UNLIKELY
    assert differing.max() >= most - 2
    assert plausible([]) == 0
    assert plausible(near([8.0])) == 0
