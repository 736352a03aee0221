"""Decisions that differ from the oracle's: found, counted and explained by noise or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from impls.oracle.backward_masks import EXPLAINED, MaskDifferences, edges, flipped, mask_differences
from impls.oracle.training import differentiate
from impls.spec import MaxPool2d, Relu, layers
from tests.float32_training import operations, pairwise
from tests.test_oracle_training import BOTTLENECK, SMOOTHING, batch, generic

Array = npt.NDArray[Any]


@pytest.fixture
def own() -> dict[str, Array]:
    """The oracle's taps, fresh for each test."""
    return differentiate(BOTTLENECK, generic(BOTTLENECK), *batch(BOTTLENECK), SMOOTHING).taps


def differences(own: dict[str, Array], found: dict[str, Array], deviation: float = 1e-6) -> dict[str, MaskDifferences]:
    """By layer, with the same noise everywhere."""
    deviations = {name: np.full((1, tap.shape[1]) + (1,) * (tap.ndim - 2), deviation) for name, tap in own.items()}
    return {part.layer: part for part in mask_differences(BOTTLENECK, batch(BOTTLENECK)[0], own, found, deviations)}


def test_every_decision_is_compared(own: dict[str, Array]) -> None:
    """All ReLUs and pools in topological order, with their sizes; the oracle agrees with itself."""
    found = differences(own, own)
    deciding = [layer.name for layer in layers(BOTTLENECK.body) if isinstance(layer, Relu | MaxPool2d)]
    assert list(found) == deciding
    assert all(part.elements == own[name].size and part.margins.size == 0 and part.worst == 0 for name, part in found.items())


def test_a_flipped_relu(own: dict[str, Array]) -> None:
    """Its margin is the oracle's distance from zero; within 8 deviations it is explained, beyond not."""
    places = np.argwhere(own["relu1"] > 0)[:2]
    found = {name: tap.copy() for name, tap in own.items()}
    for place in places:
        found["relu1"][tuple(place)] = 0.0
    distances = np.array([own["bn1"][tuple(place)] for place in places])
    near, far = sorted(distances)
    part = differences(own, found, deviation=near / (EXPLAINED - 0.1))["relu1"]
    np.testing.assert_array_equal(part.indices, places)
    np.testing.assert_allclose(part.margins, distances / near * (EXPLAINED - 0.1))
    assert part.worst == pytest.approx(far / near * (EXPLAINED - 0.1))
    np.testing.assert_array_equal(part.unexplained, places[distances == far])


def test_a_pool_that_took_another(own: dict[str, Array]) -> None:
    """Its margin is the difference of the oracle's two values over the deviation of a difference."""
    found = {name: tap.copy() for name, tap in own.items()}
    plane = own["relu1"][1, 2]
    row, column = np.unravel_index(np.argmax(plane), plane.shape)
    neighbour = (row, column + 1) if column + 1 < plane.shape[1] else (row, column - 1)
    found["relu1"][1, 2, *neighbour] = plane[row, column] * 2
    parts = differences(own, found, deviation=0.5)
    part = parts["maxpool"]
    assert len(part.indices) > 0
    assert all(tuple(index[:2]) == (1, 2) for index in part.indices)
    gap = plane[row, column] - plane[neighbour]
    assert np.any(np.isclose(part.margins, gap / (0.5 * np.sqrt(2))))
    assert np.all(part.margins >= 0)


def test_edges_are_the_decisions_that_explained_differences_may_change(own: dict[str, Array]) -> None:
    """Each flips its own decision by its own margin, all near elements of ReLUs are found, and some of pools."""
    deviation = 2e-3
    deviations = {name: np.full((1, tap.shape[1]) + (1,) * (tap.ndim - 2), deviation) for name, tap in own.items()}
    near = edges(BOTTLENECK, batch(BOTTLENECK)[0], own, own, deviations)
    assert {edge.layer for edge in near} > {"relu1", "maxpool"}
    assert sum(edge.layer == "relu1" for edge in near) == np.count_nonzero(np.abs(own["bn1"]) <= EXPLAINED * deviation)
    for edge in near:
        part = differences(own, flipped(own, [edge]), deviation)[edge.layer]
        here = [tuple(index) for index in part.indices].index(edge.index)
        assert part.margins[here] == pytest.approx(edge.margin)
        assert len(part.unexplained) == 0
        if not edge.layer.endswith("pool"):  # windows overlap
            assert len(part.indices) == 1
    everything = differences(own, flipped(own, [edge for edge in near if edge.layer == "relu1"]), deviation)["relu1"]
    assert len(everything.indices) == sum(edge.layer == "relu1" for edge in near)


def test_what_the_oracle_takes_is_an_edge_where_another_was_shown(own: dict[str, Array]) -> None:
    """A step may decide as the oracle does where the derivatives that are shown do not; the margin is the same from either side."""
    deviation = 2e-3
    deviations = {name: np.full((1, tap.shape[1]) + (1,) * (tap.ndim - 2), deviation) for name, tap in own.items()}
    near = edges(BOTTLENECK, batch(BOTTLENECK)[0], own, own, deviations)
    pools = [edge for edge in near if edge.layer == "maxpool"]
    assert pools
    for edge in pools:
        shown = flipped(own, [edge])
        back = [each for each in edges(BOTTLENECK, batch(BOTTLENECK)[0], own, shown, deviations) if each.index == edge.index]
        (other,) = [
            each for each in back if each.margin == pytest.approx(edge.margin) and own["relu1"][each.element] > own["relu1"][edge.element]
        ]
        assert other.layer == "maxpool"
        for _, decided in ((edge, shown), (other, flipped(shown, [other]))):
            parts = {part.layer: part for part in mask_differences(BOTTLENECK, batch(BOTTLENECK)[0], own, decided, deviations)}
            otherwise = edge.index in {tuple(index) for index in parts["maxpool"].indices}
            assert otherwise == (decided is shown)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_convention_is_no_edge(own: dict[str, Array], value: float) -> None:
    """A ReLU of exactly 0, and what a pool might take: a 0, or an equal of what it takes, as a pool behind a pool has them."""
    equal = {**own, "bn1": np.zeros_like(own["bn1"]), "relu1": np.full_like(own["relu1"], value)}
    deviations = {name: np.full((1, tap.shape[1]) + (1,) * (tap.ndim - 2), 1e-6) for name, tap in own.items()}
    layers_near = {edge.layer for edge in edges(BOTTLENECK, batch(BOTTLENECK)[0], equal, equal, deviations)}
    assert not layers_near & {"relu1", "maxpool"}


def test_not_a_number_is_not_explained(own: dict[str, Array]) -> None:
    """Where the deviation is zero or no number, no distance is small."""
    found = {name: tap.copy() for name, tap in own.items()}
    place = tuple(np.argwhere(own["relu1"] > 0)[0])
    found["relu1"][place] = np.nan
    for deviation in (0.0, np.nan):
        np.testing.assert_array_equal(differences(own, found, deviation)["relu1"].unexplained, [place])


def test_a_run_in_float32_agrees(own: dict[str, Array]) -> None:
    """Simulated float32 flips nothing that a noise of 1e-6 does not explain."""
    found = differentiate(BOTTLENECK, generic(BOTTLENECK), *batch(BOTTLENECK), SMOOTHING, operations=operations(pairwise)).taps
    assert all(len(part.unexplained) == 0 for part in differences(own, found).values())
