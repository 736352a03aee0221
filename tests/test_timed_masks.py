"""Which of the decisions near their edge a step took otherwise, from what each does to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from impls.oracle.backward_masks import Edge
from suites.equivalence.timed_masks import UNLIKELY, Sums, inferred, plausible, read_off

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


def blind(layer: str, taken: tuple[Edge, ...]) -> Sums:
    """Nothing can be read off."""
    return Sums({}, {})


class Chain:
    """Three layers of two channels of eight places; what an element of one passes on changes the cotangents of all before it.

    The element that ``taken`` turns over passes where it did not, or the reverse; a bias's gradient sums up what passes.
    """

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.open = {name: generator.random((1, 2, 8)) < 0.5 for name in "abc"}
        self.last = generator.standard_normal((1, 2, 8))
        self.back = {name: generator.standard_normal((16, 16)) for name in "ab"}
        self.noise = {name: 1e-6 * generator.uniform(-1, 1, 2) for name in "abc"}
        self.looks = 0

    def edges(self, *places: tuple[str, int, int]) -> list[Edge]:
        """In topological order."""
        return [
            Edge(name, (0, channel, place), 0.5, name, (0, channel, place), 0.0 if self.open[name][0, channel, place] else 1e-38)
            for name, channel, place in sorted(places)
        ]

    def backward(self, taken: tuple[Edge, ...]) -> tuple[dict[str, Vector], dict[str, Vector]]:
        """Cotangents of the outputs and gradients of the biases."""
        cotangents, gradients, arriving = {}, {}, self.last
        for name in "cba":
            opened = self.open[name].copy()
            for edge in taken:
                if edge.layer == name:
                    opened[edge.index] = edge.value > 0
            cotangents[name] = arriving
            gradients[name] = np.sum(arriving * opened, axis=(0, 2))
            if name != "a":
                arriving = (self.back["b" if name == "c" else "a"] @ (arriving * opened).ravel()).reshape(arriving.shape)
        return cotangents, gradients

    def looking(self, near: list[Edge], true: tuple[Edge, ...], unread: str = "") -> Callable[[str, tuple[Edge, ...]], Sums]:
        """At a step that took these otherwise."""
        _, observed = self.backward(true)

        def look(layer: str, taken: tuple[Edge, ...]) -> Sums:
            self.looks += 1
            cotangents, gradients = self.backward(taken)
            off = (observed[layer] + self.noise[layer] - gradients[layer]) / 1e-6
            own = [edge for edge in near if edge.layer == layer != unread]
            passing = {edge: cotangents[layer][edge.index] * (1 if edge.value > 0 else -1) / 1e-6 for edge in own}
            return Sums({edge.index[1]: off[edge.index[1], None] for edge in own}, {edge: np.array([passing[edge]]) for edge in own})

        return look


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.data())
def test_layers_are_read_off_one_after_the_other(seed: int, data: st.DataObject) -> None:
    """Each element that a step took otherwise, of those that are near, though what it does depends on those behind it."""
    chain = Chain(seed)
    places = st.tuples(st.sampled_from("abc"), st.integers(0, 1), st.integers(0, 3))
    near = chain.edges(*data.draw(st.sets(places, max_size=8)))
    true = tuple(edge for edge in near if data.draw(st.booleans()))
    assert set(read_off(near, chain.looking(near, true))) == set(true)
    assert chain.looks == len({edge.layer for edge in near})


def test_vectors_are_read_off_as_sums_are() -> None:
    """Of the decisions of a channel those whose vectors add up to what is off; what only adds up in one place does not."""
    generator = np.random.default_rng(5)
    edges = near([0.5] * 6)
    edges = [replace(edge, index=(0, place % 2, place)) for place, edge in enumerate(edges)]
    moved = {edge: 100 * generator.standard_normal(9) for edge in edges}
    true = {edges[0], edges[3], edges[4]}
    off = {channel: sum((moved[edge] for edge in true if edge.index[1] == channel), generator.standard_normal(9)) for channel in (0, 1)}
    assert set(read_off(edges, lambda layer, taken: Sums(off, moved))) == true
    off[0][3] += 90
    assert set(read_off(edges, lambda layer, taken: Sums(off, moved))) == {edges[3]}


def test_what_is_read_off_is_judged_once() -> None:
    """And tried one by one where a layer cannot be read, or what was read does not explain the step."""
    chain = Chain(3)
    near = chain.edges(("a", 0, 1), ("a", 1, 4), ("b", 0, 2), ("b", 0, 6), ("c", 1, 0), ("c", 1, 5))
    asked: list[tuple[Edge, ...]] = []

    def judging_as(true: tuple[Edge, ...], explains: bool = True) -> Callable[[tuple[Edge, ...]], tuple[float, bool]]:
        def judge(taken: tuple[Edge, ...]) -> tuple[float, bool]:
            asked.append(taken)
            wrong = len(set(taken) ^ set(true))
            return float(wrong), explains and wrong == 0

        return judge

    true = (near[1], near[2], near[5])
    assert set(inferred(near, judging_as(true), chain.looking(near, true))) == set(true)
    assert len(asked) == 2
    assert set(inferred(near, judging_as(true), chain.looking(near, true, unread="a"))) == set(true)
    assert inferred(near, judging_as(true, explains=False), chain.looking(near, true)) == ()


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 3))
def test_what_was_taken_is_found(seed: int, count: int) -> None:
    """Up to three of twelve, below noise of one deviation."""
    edges, moves = near([0.5] * 12), effects(seed, 12)
    true = set(np.random.default_rng(seed + 1).choice(12, count, replace=False).tolist())
    noise = 0.9 * np.random.default_rng(seed + 2).uniform(-1, 1, TENSORS)
    found = inferred(edges, judging(noise + moves[sorted(true)].sum(axis=0), moves), blind)
    assert {edge.index[0] for edge in found} == true


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, TENSORS - 1), st.sampled_from([-1, 1]), st.floats(20, 1e5))
def test_a_fault_is_not_excused(seed: int, tensor: int, sign: int, size: float) -> None:
    """One tensor that is off by twenty deviations or more, alone or beside a decision that was taken otherwise."""
    edges, moves = near([0.5] * 12), effects(seed, 12)
    fault = np.zeros(TENSORS)
    fault[tensor] = sign * size
    assert inferred(edges, judging(fault, moves), blind) == ()
    assert inferred(edges, judging(fault + moves[4], moves), blind) == ()


def test_no_more_than_rounding_makes_plausible() -> None:
    """All twelve that lie five deviations off: each alone is excused, three together are not."""
    edges, moves = near([5.0] * 12), effects(0, 12)
    assert plausible(edges) == 1
    assert inferred(edges, judging(moves[3], moves), blind) == (edges[3],)
    assert inferred(edges, judging(moves[3] + moves[5] + moves[7], moves), blind) == ()


def test_nothing_near_and_nothing_finite_explain_nothing() -> None:
    """No decision to blame, or an error that no decision lessens."""
    assert inferred([], judging(np.full(TENSORS, 9.0), effects(0, 1)), blind) == ()
    assert inferred(near([0.5]), judging(np.full(TENSORS, np.inf), effects(0, 1)), blind) == ()


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
