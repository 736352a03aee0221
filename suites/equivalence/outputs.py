"""Somebody's outputs as the spec names them: taps by layer name, NCHW, in types that hold every number exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.spec import ModelSpec, Shape, tap_shapes

Array = npt.NDArray[Any]
Outputs = dict[str, Array]

LOGITS = "logits"
"""Another name for the last layer's tap."""

LARGER = 16
"""A tap may have this many times the elements that the spec says: a port that forgot two strides of 2 still gets its answer."""


class OutputsError(ValueError):
    """Outputs that cannot be judged; the message names the array, what was expected and what was found."""


class NotFiniteError(OutputsError):
    """Outputs that hold NaN or infinity: no port of a ResNet is right that gives these."""


def canonical(model: ModelSpec, images_shape: Shape, arrays: Mapping[str, Array]) -> Outputs:
    """The arrays by tap, in topological order, NCHW.

    A tap may be larger or smaller than the spec says, since a fault may have made it so; batch and channels must be right.

    Raises:
        OutputsError: no array, an unknown name, a type that holds no numbers, a shape that is no tap's, or a layout that the shapes
            do not tell.
        NotFiniteError: NaN or infinity.
    """
    shapes = tap_shapes(model, images_shape[0], *images_shape[2:])
    layouts = check_shapes(shapes, {name: array.shape for name, array in arrays.items()})
    given = {tap_of(shapes, name): (name, array) for name, array in arrays.items()}
    found: Outputs = {}
    for tap in shapes:
        if tap in given:
            name, array = given[tap]
            values = _numbers(name, array)
            found[tap] = values.transpose(0, 3, 1, 2) if layouts[name] == "NHWC" else values
    return found


def tap_of(shapes: Iterable[str], name: str) -> str:
    """The tap that an array's name means."""
    return list(shapes)[-1] if name == LOGITS else name


def check_shapes(shapes: Mapping[str, Shape], found: Mapping[str, Shape]) -> dict[str, str]:
    """The layout of every array, "NCHW", "NHWC" or "NC", from names and shapes alone; raises as :func:`canonical`."""
    if not found:
        raise OutputsError("there are no outputs: name them as the taps of the model, or 'logits'")
    for name in found:
        if name != LOGITS and name not in shapes:
            raise OutputsError(
                f"{name[:80]}: the model has no such tap; its taps are {', '.join(list(shapes)[:3])}, ... {list(shapes)[-1]}"
            )
    if LOGITS in found and tap_of(shapes, LOGITS) in found:
        raise OutputsError(f"{LOGITS} and {tap_of(shapes, LOGITS)} are one tap: give one of them")
    possible = {name: _layouts(name, shapes[tap_of(shapes, name)], shape) for name, shape in found.items()}
    certain = {each[0]: name for name, each in possible.items() if len(each) == 1 and each[0] != "NC"}
    if len(certain) == 2:
        raise OutputsError(f"{certain['NCHW']} is NCHW and {certain['NHWC']} is NHWC: give all taps in one layout")
    for name, layouts in possible.items():
        if len(layouts) == 2 and not certain:
            raise OutputsError(
                f"{name}: the shape {found[name]} is NCHW as well as NHWC: add a tap whose shape tells, or other image sizes"
            )
    return {name: each[0] if len(each) == 1 else next(iter(certain)) for name, each in possible.items()}


def _layouts(name: str, right: Shape, found: Shape) -> tuple[str, ...]:
    """The layouts that a shape can be in."""
    fits = len(found) == len(right) and found[0] == right[0] and 0 < math.prod(found) <= LARGER * math.prod(right)
    if fits and len(right) == 2 and found == right:
        return ("NC",)
    if fits and len(right) == 4:
        exact = tuple(layout for layout, shape in (("NCHW", right), ("NHWC", (right[0], *right[2:], right[1]))) if found == shape)
        if layouts := exact or tuple(layout for layout, axis in (("NCHW", 1), ("NHWC", 3)) if found[axis] == right[1]):
            return layouts
    raise OutputsError(f"{name}: has the shape {found}; the tap is {right}" + (" in NCHW" if len(right) == 4 else ""))


def _numbers(name: str, array: Array) -> Array:
    """The array's numbers, float32 or float64: 16-bit ones are widened, and two-byte records are taken for bfloat16."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2 and array.dtype.names is None:  # what np.save makes of bfloat16
        array = (np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif array.dtype.name in ("float16", "bfloat16"):
        array = array.astype(np.float32)
    elif array.dtype.name not in ("float32", "float64"):
        raise OutputsError(f"{name}: is of type {array.dtype}; give float16, bfloat16, float32 or float64")
    if bad := int(np.count_nonzero(~np.isfinite(array))):
        raise NotFiniteError(f"{name}: {bad} of {array.size} values are NaN or infinite")
    return array
