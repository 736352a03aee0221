"""What can be read off a tap that nothing in the catalogue explains: moved, turned, reordered or rescaled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

FARTHEST = 3
"""Rows or columns by which a map is looked for elsewhere: the padding of the largest kernel (7x7)."""

LEFT = 0.05
"""A reading is one if it leaves at most this part of the difference; all are tried on whole maps, where chance explains none of it."""


def read(found: Array, expected: Array) -> str | None:
    """A sentence's predicate about ``found``, or None where none of the readings fits; (N, C, H, W) or (N, C), of equal shapes."""
    if found.shape != expected.shape:
        return None
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    difference = _rms(found - expected)
    for text, moved in _readings(found, expected):
        one, other = moved
        if one.size and _rms(one - other) <= LEFT * difference:
            return text
    return _permutation(found, expected) or _scale(found, expected, difference)


def _readings(found: Array, expected: Array) -> Iterator[tuple[str, tuple[Array, Array]]]:
    if found.ndim != 4:
        return
    plain: tuple[tuple[str, Callable[[Array], Array]], ...] = (
        ("has rows and columns exchanged", lambda x: x.swapaxes(2, 3)),
        ("is turned by 180 degrees", lambda x: x[:, :, ::-1, ::-1]),
        ("is mirrored left to right", lambda x: x[..., ::-1]),
        ("is mirrored top to bottom", lambda x: x[:, :, ::-1]),
    )
    for text, change in plain:
        if (changed := change(expected)).shape == found.shape:
            yield text, (found, changed)
    height, width = found.shape[2:]
    steps = sorted(range(-FARTHEST, FARTHEST + 1), key=abs)
    for dy in steps:
        for dx in steps:
            if (dy or dx) and height > 2 * FARTHEST and width > 2 * FARTHEST:
                # Edges are made of padding, so only what lies inside in both is compared.
                inside = found[:, :, FARTHEST : height - FARTHEST, FARTHEST : width - FARTHEST]
                there = expected[:, :, FARTHEST - dy : height - FARTHEST - dy, FARTHEST - dx : width - FARTHEST - dx]
                yield f"is shifted by {dy} rows and {dx} columns", (inside, there)


def _permutation(found: Array, expected: Array) -> str | None:
    """Whether every channel is another one of the expected."""
    one, other = (np.moveaxis(x, 1, 0).reshape(x.shape[1], -1) for x in (found, expected))
    distance = np.sum(one**2, 1)[:, None] + np.sum(other**2, 1)[None, :] - 2 * one @ other.T
    nearest = np.argmin(distance, axis=1)
    channels = len(nearest)
    moved = np.flatnonzero(nearest != np.arange(channels))
    if not len(moved) or len(set(nearest.tolist())) < channels or _rms(one - other[nearest]) > LEFT * _rms(one - other):
        return None
    shown = ", ".join(f"{channel} holds {nearest[channel]}" for channel in moved[:3])
    return f"has its channels in another order: {shown}{', ...' if len(moved) > 3 else ''}"


def _scale(found: Array, expected: Array, difference: float) -> str | None:
    """One factor and offset for the whole tap, else one for each channel."""
    factor, offset = _line(expected.ravel(), found.ravel())
    if _rms(found - factor * expected - offset) <= LEFT * difference:
        return f"is {factor:.6g} times what it should be" + (f" plus {offset:.3g}" if abs(offset) > LEFT * difference else "")
    if found.ndim != 4:  # a line through the few logits of one class fits whatever they are
        return None
    one, other = (np.moveaxis(x, 1, 0).reshape(x.shape[1], -1) for x in (found, expected))
    lines = [_line(right, given) for right, given in zip(other, one, strict=True)]
    left = np.stack([given - a * right - b for right, given, (a, b) in zip(other, one, lines, strict=True)])
    if _rms(left) > LEFT * difference:
        return None
    moves = (one - other).mean(1, keepdims=True)
    if _rms(one - other - moves) <= LEFT * difference:
        return f"has every channel moved by a constant, {moves.min():.3g} to {moves.max():.3g}"
    factors = [line[0] for line in lines]
    return f"has every channel rescaled, by {min(factors):.6g} to {max(factors):.6g}, and moved by a constant"


def _line(x: Array, y: Array) -> tuple[float, float]:
    variance = float(np.var(x))
    factor = float(np.mean((x - x.mean()) * (y - y.mean()))) / variance if variance else 1.0
    return factor, float(y.mean() - factor * x.mean())


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))
