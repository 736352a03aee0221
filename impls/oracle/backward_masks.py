"""Where an implementation's ReLUs and max-pools decide otherwise than the oracle's, and whether rounding explains it.

Gradients are compared given the implementation's own decisions (``training.differentiate``), so each that differs needs a reason of
its own: the oracle's value must be so near the edge that the noise predicted there can have carried it across. Those that are so near are
also the only ones that another run of the same implementation may decide otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.oracle.backward import views, winners
from impls.oracle.forward import Array, evaluate, pad
from impls.oracle.training import Arrays, taken, wiring
from impls.spec import MaxPool2d, ModelSpec, Relu

EXPLAINED = 8.0
"""Deviations that rounding may carry a value: a normal one passes 8 with a probability of 1e-15. As deviations are
pooled over channels, an element may have twice the one named; 4 are passed with 6e-5, and by few of the few that lie there."""

SMALLEST = float(np.finfo(np.float32).tiny)
"""What a ReLU that passes gives at least: no pool behind it takes that for a maximum."""


@dataclass(frozen=True, slots=True)
class MaskDifferences:
    """One ReLU's or max-pool's ``elements`` compared, and those that differ.

    ``indices`` is (k, 4) or (k, 2), the place of each of the k in the layer's output. ``margins`` (k,) says how far the oracle was
    from deciding otherwise, in deviations of the predicted noise: of ReLU the distance of its input from 0, of max-pool that between the
    oracle's maximum and its value where the implementation found one.
    """

    layer: str
    elements: int
    indices: npt.NDArray[np.intp]
    margins: Array

    @property
    def worst(self) -> float:
        """The largest margin, 0 if none differs."""
        return float(self.margins.max(initial=0.0))

    @property
    def unexplained(self) -> npt.NDArray[np.intp]:
        """The indices whose margin is larger than ``EXPLAINED``."""
        return self.indices[~(self.margins <= EXPLAINED)]


@dataclass(frozen=True, slots=True)
class Edge:
    """A decision that rounding can carry across its edge: whose, where in the layer's output, and its margin in deviations.

    It is taken otherwise where ``element`` of the tap ``mask`` is ``value``.
    """

    layer: str
    index: tuple[int, ...]
    margin: float
    mask: str
    element: tuple[int, ...]
    value: float


def mask_differences(
    model: ModelSpec, images: npt.NDArray[Any], own: Arrays, found: Arrays, deviations: Arrays
) -> tuple[MaskDifferences, ...]:
    """Compare every decision, in topological order.

    Args:
        model: the network.
        images: (N, C, H, W).
        own: the oracle's taps in training mode.
        found: the implementation's.
        deviations: predicted noise of every tap, of channels or of elements, as ``backward_envelope.envelope`` gives it.
    """
    compared = []
    for node in wiring(model):
        layer, (name, *_) = node.layer, node.inputs
        if isinstance(layer, Relu | MaxPool2d):
            deviation = np.zeros(1) if name is None else deviations[name]
            (before,), (theirs,) = taken(node, own, images), taken(node, found, images)
            compared.append(_differences(layer, before, theirs, found[layer.name], np.broadcast_to(deviation, before.shape)))
    return tuple(compared)


def edges(model: ModelSpec, images: npt.NDArray[Any], own: Arrays, found: Arrays, deviations: Arrays) -> tuple[Edge, ...]:
    """Every decision of ``found`` whose margin is at most ``EXPLAINED``, in topological order; arguments as of ``mask_differences``.

    A ReLU of exactly 0 is left out: there a convention decides, not rounding. So is a 0 that a pool might take, for behind a ReLU it
    passes nothing on, and a value equal to the one that it takes, for behind another pool they are one element.
    """
    near: list[Edge] = []
    for node in wiring(model):
        layer, (name, *_) = node.layer, node.inputs
        if name is None:
            continue
        if isinstance(layer, Relu):
            near += _relu_edges(layer.name, np.asarray(own[name], np.float64), found[layer.name], deviations[name])
        elif isinstance(layer, MaxPool2d):
            near += _pool_edges(layer, name, np.asarray(own[name], np.float64), np.asarray(found[name], np.float64), deviations[name])
    return tuple(near)


def flipped(masks: Arrays, taken: Iterable[Edge]) -> dict[str, npt.NDArray[Any]]:
    """Masks for ``training.differentiate`` in which these decisions are taken otherwise."""
    result = dict(masks)
    for edge in taken:
        result[edge.mask] = np.array(result[edge.mask], np.float64)
        result[edge.mask][edge.element] = edge.value
    return result


def _relu_edges(name: str, own: Array, output: npt.NDArray[Any], deviation: Array) -> Iterator[Edge]:
    margins = _over(np.abs(own), deviation)
    for place in np.argwhere((own != 0) & (margins <= EXPLAINED)):
        index = tuple(map(int, place))
        yield Edge(name, index, float(margins[index]), name, index, 0.0 if output[index] > 0 else SMALLEST)


def _pool_edges(layer: MaxPool2d, name: str, own: Array, found: Array, deviation: Array) -> Iterator[Edge]:
    """Every element that a window might take instead, raised above the maximum.

    It must come past the oracle's maximum, or be it, and past what is taken.
    """
    (best, highest), chosen = (evaluate(layer, (x,), {}) for x in (own, found)), winners(layer, found)
    reached = list(views(pad(own, layer.padding, -np.inf), layer, *best.shape[2:]))
    took = np.empty_like(best)
    for position, view in enumerate(reached):
        np.copyto(took, view, where=chosen == position)
    for position, view in enumerate(reached):
        margins = _over(np.maximum(best - view, np.abs(took - view)), np.sqrt(2.0) * deviation)
        for place in np.argwhere((chosen != position) & (view != 0) & (view != took) & (margins <= EXPLAINED)):
            index = tuple(map(int, place))
            row, column = (int(each[0]) for each in _reached(layer, place[None], np.array([position])))
            yield Edge(
                layer.name, index, float(margins[index]), name, (*index[:2], row, column), float(np.nextafter(highest[index], np.inf))
            )


def _differences(layer: Relu | MaxPool2d, own: Array, found: Array, output: npt.NDArray[Any], deviation: Array) -> MaskDifferences:
    """``own`` and ``found`` are the layer's inputs, ``deviation`` is of them; ``output`` is what the implementation made of its own."""
    if isinstance(layer, Relu):
        differ = (own > 0) != (output > 0)
        return MaskDifferences(layer.name, differ.size, np.argwhere(differ), _over(np.abs(own[differ]), deviation[differ]))
    ours, theirs = winners(layer, own), winners(layer, found)
    differ = ours != theirs
    indices = np.argwhere(differ)
    places = ours[differ], theirs[differ]
    best, taken_instead = (_at(layer, own, indices, place) for place in places)
    noise = np.hypot(*(_at(layer, deviation, indices, place) for place in places))  # the two values move independently
    return MaskDifferences(layer.name, differ.size, indices, _over(best - taken_instead, noise))


def _at(layer: MaxPool2d, x: Array, windows: npt.NDArray[np.intp], position: npt.NDArray[np.intp]) -> Array:
    """The values at a position of each of the windows; neither is in the padding."""
    values: Array = x[windows[:, 0], windows[:, 1], *_reached(layer, windows, position)]
    return values


def _reached(
    layer: MaxPool2d, windows: npt.NDArray[np.intp], position: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Row and column of the input at a position of each of the windows (k, 4)."""
    row, column = np.divmod(position, layer.kernel)
    return windows[:, 2] * layer.stride - layer.padding.top + row, windows[:, 3] * layer.stride - layer.padding.left + column


def _over(distance: Array, deviation: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance == 0, 0.0, distance / deviation)
