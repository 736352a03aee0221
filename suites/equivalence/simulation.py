"""An implementation in NumPy that rounds where a precision rounds: what tensor cores, faulty arithmetic and foreign layers compute.

It shares the oracle's layer functions, which follow the dtype of what they are given, so it judges nothing: it is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from impls import spec
from impls.oracle.forward import evaluate
from impls.oracle.rounding import round_to
from impls.spec import BatchNorm2d, Conv2d, GlobalAvgPool2d, Layer, Linear, ModelSpec
from suites.equivalence.faults.fault import Function

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Steps:
    """Where one layer rounds, by precision.

    ``operand`` is what enters a product, ``accumulate`` a partial sum (fp32 and fp64: as NumPy sums), ``store`` the result, through each
    precision in turn. ``truncate`` cuts off at the last step instead of rounding to nearest.
    """

    operand: str
    accumulate: str
    store: tuple[str, ...]
    truncate: bool = False


STEPS: Mapping[str, Steps] = {
    "fp64": Steps("fp64", "fp64", ("fp64",)),
    "fp32": Steps("fp32", "fp32", ("fp32",)),
    "tf32": Steps("tf32", "fp32", ("fp32",)),
    "bf16": Steps("bf16", "fp32", ("bf16",)),
    "fp16": Steps("fp16", "fp32", ("fp16",)),
}
"""Sound arithmetic, as ``impls.oracle.rounding.arithmetic`` describes it."""

WIDE = {"fp32": np.float32, "fp64": np.float64}
"""What NumPy sums in; the partial sums of another precision are rounded."""

CHANNELS_AT_ONCE = 4
"""Input channels whose products are summed in fp32 before the partial sum is rounded, where it is rounded."""


def taps(
    model: ModelSpec,
    weights: Mapping[str, Array],
    images: Array,
    precision: str,
    deviating: Mapping[str, Steps] | None = None,
    instead: Mapping[str, Function] | None = None,
) -> dict[str, Array]:
    """Every layer's output, float32 (float64 in fp64), with layers in ``deviating`` rounded otherwise and those in ``instead`` replaced.

    ``weights`` are as the file holds them. TF32 rounds what enters a matrix product and stores fp32; the others store what they say.
    """
    storage = STEPS[precision].store[-1]
    held = {name: round_to(tensor, storage) for name, tensor in weights.items()}
    outputs: dict[str, Array] = {}

    def apply(layer: Layer, *inputs: Array) -> Array:
        steps = (deviating or {}).get(layer.name, STEPS[precision])
        tensors = {leaf: held[f"{layer.name}.{leaf}"] for leaf in layer.tensors()}
        outputs[layer.name] = _layer(layer, inputs, tensors, steps, (instead or {}).get(layer.name, evaluate))
        return outputs[layer.name]

    spec.walk(model.body, apply, round_to(images, storage))
    return outputs


def _layer(layer: Layer, inputs: tuple[Array, ...], tensors: dict[str, Array], steps: Steps, function: Function) -> Array:
    if isinstance(layer, (Conv2d, Linear)):
        inputs = tuple(round_to(x, steps.operand) for x in inputs)
        tensors = tensors | {"weight": round_to(tensors["weight"], steps.operand)}
    elif isinstance(layer, BatchNorm2d) and steps.accumulate not in (steps.operand, *WIDE):
        tensors = {leaf: round_to(tensor, steps.operand) for leaf, tensor in tensors.items()}
    with np.errstate(all="ignore"):  # a faulty network may overflow, and says so by its values
        if steps.accumulate in WIDE:
            wide = np.asarray(function(layer, inputs, tensors), WIDE[steps.accumulate])
        else:
            wide = _in_parts(layer, inputs, tensors, steps.accumulate)
        return _stored(wide, steps)


def _stored(wide: Array, steps: Steps) -> Array:
    for precision in steps.store[:-1]:
        wide = round_to(wide, precision)
    last = steps.store[-1]
    rounded = round_to(wide, last)
    if not steps.truncate:
        return rounded
    # One step of the format towards zero wherever rounding went away from it.
    bits = 2.0 ** (np.frexp(wide.astype(np.float64))[1] - {"bf16": 8, "fp16": 11, "tf32": 11, "fp32": 24}[last])
    return np.where(np.abs(rounded) > np.abs(wide), rounded - np.copysign(bits, wide), rounded).astype(np.float32)


def _in_parts(layer: Layer, inputs: tuple[Array, ...], tensors: dict[str, Array], precision: str) -> Array:
    """A sum whose partial sums are rounded."""
    x = inputs[0]
    match layer:
        case Conv2d():
            total: Array = np.zeros(1, np.float32)
            for first in range(0, layer.in_channels, CHANNELS_AT_ONCE):
                part = slice(first, first + CHANNELS_AT_ONCE)
                channels = len(range(*part.indices(layer.in_channels)))
                some = {"weight": tensors["weight"][:, part]}
                total = round_to(total + evaluate(replace(layer, in_channels=channels, bias=False), (x[:, part],), some), precision)
            return round_to(total + tensors["bias"][:, None, None], precision) if layer.bias else total
        case GlobalAvgPool2d():
            rows = x.reshape(*x.shape[:2], -1)
            total = np.zeros(rows.shape[:2], np.float32)
            for place in range(rows.shape[2]):
                total = round_to(total + rows[:, :, place], precision)
            return round_to(total / rows.shape[2], precision)
        case _:
            return round_to(evaluate(layer, inputs, tensors), precision)
