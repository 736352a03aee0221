"""What a max-pool that takes another element than before changes in the kernel of the convolution in front of it.

The window's cotangent goes to another place of the same channel and, through what lies between, into the gradient of that channel's
kernel: the patch of the one place is taken away, that of the other added. A bias in front hardly moves, since it sums up all places.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from impls.oracle.forward import Array, pad
from impls.oracle.training import Arrays, Node
from impls.spec import BatchNorm2d, Concat, Conv2d, MaxPool2d, Relu

Place = tuple[int, ...]
"""Image, channel, row and column."""


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """Of the kernel of one channel: the name of its convolution's weight, which of them it is, and how its gradient moves, (I, K, K)."""

    weight: str
    channel: int
    moved: Array


def winner(layer: MaxPool2d, x: Array, window: Place) -> Place:
    """The place in ``x`` of the first maximum of a window, row by row."""
    image, channel, row, column = window
    top, left = row * layer.stride - layer.padding.top, column * layer.stride - layer.padding.left
    inside = x[image, channel, max(top, 0) : top + layer.kernel, max(left, 0) : left + layer.kernel]
    down, right = np.unravel_index(int(np.argmax(inside)), inside.shape)
    return image, channel, max(top, 0) + int(down), max(left, 0) + int(right)


def moved(layer: MaxPool2d, x: Array, cotangents: Array, element: Place, value: float) -> dict[Place, float]:
    """How the cotangents of a max-pool's input ``x`` change where this element of it has this value; ``cotangents`` are of its output.

    Every window that holds the element and no larger value takes it then.
    """
    image, channel, *place = element
    reached = []
    for position, before, size in zip(place, (layer.padding.top, layer.padding.left), cotangents.shape[2:], strict=True):
        last = (position + before) // layer.stride
        first = -(-(position + before - layer.kernel + 1) // layer.stride)
        reached.append(range(max(first, 0), min(last, size - 1) + 1))
    found: dict[Place, float] = {element: 0.0}
    for window in itertools.product((image,), (channel,), *reached):
        held = winner(layer, x, window)
        if float(x[held]) < value:  # as numbers: a float32 would be compared with the value rounded to one
            cotangent = float(cotangents[window])
            found[held] = found.get(held, 0.0) - cotangent
            found[element] += cotangent
    return found


def kernel_in_front(
    nodes: Mapping[str, Node], images: Array, taps: Arrays, masks: Arrays, weights: Arrays, name: str, cotangents: Mapping[Place, float]
) -> Kernel | None:
    """What cotangents of a tap, all of one channel, add to the gradient of the kernel in front; None where it is no convolution's.

    Of a batch norm in between only the scale is taken: its two means move by the cotangent over the number of values, and that by how far
    apart the values are.

    Args:
        nodes: the network's layers by name, of ``wiring``.
        images: (N, C, H, W).
        taps: every layer's output in training mode.
        masks: of the ReLUs and max-pools, as of ``training.differentiate``.
        weights: by tensor name.
        name: of the tap.
        cotangents: by place.
    """
    after: str | None = name
    while after is not None:
        node = nodes[after]
        layer, before = node.layer, node.inputs[0]
        x = images if before is None else taps[before]
        (channel,) = {place[1] for place in cotangents}
        match layer:
            case Relu():
                cotangents = {place: value * float(masks[after][place] > 0) for place, value in cotangents.items()}
            case BatchNorm2d():
                scale = float(weights[f"{after}.weight"][channel]) / np.sqrt(x[:, channel].var() + layer.eps)
                cotangents = {place: value * float(scale) for place, value in cotangents.items()}
            case MaxPool2d() if before is not None:
                summed: dict[Place, float] = {}
                for place, value in cotangents.items():  # windows that overlap may have taken the same element
                    held = winner(layer, masks[before], place)
                    summed[held] = summed.get(held, 0.0) + value
                cotangents = summed
            case Concat():
                first = 0
                while before is not None and channel >= first + taps[before].shape[1]:
                    first += taps[before].shape[1]
                    before = node.inputs[node.inputs.index(before) + 1]
                cotangents = {(place[0], channel - first, *place[2:]): value for place, value in cotangents.items()}
            case Conv2d():
                return Kernel(f"{after}.weight", channel, _patches(layer, x, cotangents))
            case _:
                return None
        after = before
    return None


def _patches(layer: Conv2d, x: Array, cotangents: Mapping[Place, float]) -> Array:
    padded = pad(x, layer.padding, 0.0)
    moved = np.zeros((layer.in_channels, layer.kernel, layer.kernel))
    for (image, _, row, column), value in cotangents.items():
        top, left = row * layer.stride, column * layer.stride
        moved += value * padded[image, :, top : top + layer.kernel, left : left + layer.kernel]
    return moved
