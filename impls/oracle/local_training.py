"""Whether every layer of a training step rounds as its precision allows, forward and backward, on the implementation's own values.

As ``impls.oracle.local`` for inference: the oracle gets each layer's own inputs and cotangents, so no error travels, and ReLU's masks and
the maxima of pooling are the implementation's. Errors are counted in the deviations that ``backward_rounding`` predicts, which
bound a correct run from above, so the tests are one-sided. What is stored in bf16 must hold its numbers, and is judged as in ``local``:
by the least error before that rounding which explains what was stored.

rms    The rms of z. What a channel shares is one draw, so C channels are C draws, bounded as in ``local``.
gauge  The largest z. A rounding errs by at most u, 1 / kappa of the deviation that it is counted with, so a sum of them passes
       lambda / kappa deviations with a probability of at most 2 exp(-lambda^2 / 2) (Hoeffding).

Where the oracle predicts no error (ReLU, pads, the passing on of a cotangent) only equality will do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from impls import spec
from impls.oracle import backward_rounding
from impls.oracle.backward_forced import Expected, forced
from impls.oracle.forward import Array, check, tensors_of
from impls.oracle.local import (
    BIAS_APART,
    EDGES,
    FALSE_ALARM,
    WORST_SIGNIFICAND,
    TapRounding,
    check_taps,
    finite,
    over,
    residual_of_sum,
    rms_of_draws,
)
from impls.oracle.rounding import EXACT_LAYERS, KAPPA, arithmetic, round_to
from impls.oracle.training import Arrays, evaluate, taken, wiring
from impls.spec import Conv2d, ModelSpec


class Derivatives(Protocol):
    """What an implementation shows of one loss; ``impls.implementation.Derivatives`` has it."""

    @property
    def loss(self) -> float:
        """Of the batch."""

    @property
    def taps(self) -> Mapping[str, Any]:
        """Every layer's output in training mode, by layer name."""

    @property
    def cotangents(self) -> Mapping[str, Any]:
        """The derivative of the loss by each of them."""

    @property
    def gradients(self) -> Mapping[str, Any]:
        """The derivative of the loss by every parameter, by tensor name."""


def local_training(
    model: ModelSpec,
    weights: Arrays,
    images: npt.NDArray[Any],
    labels: npt.NDArray[np.integer[Any]],
    label_smoothing: float,
    found: Derivatives,
    precision: str,
) -> tuple[TapRounding, ...]:
    """Judge every output, the loss, and every cotangent and gradient; the latter are called "d tap" and "d tensor".

    Args:
        model: the network.
        weights: its tensors as the implementation's operations take them (``rounding.as_taken``).
        images: (N, C, H, W) as the implementation holds them.
        labels: (N,), integers from 0 to classes - 1.
        label_smoothing: of the loss.
        found: what the implementation showed.
        precision: in which it is said to compute.

    Raises:
        SpecError, WeightsError: as :func:`impls.oracle.forward.forward`.
        TapError: an array is missing, one too many, of another shape than the spec says, or holds values that are not finite.
        ValueError: the labels are not one class for each image.
    """
    check(model, weights, images)
    shapes = spec.tap_shapes(model, images.shape[0], *images.shape[2:])
    tensors = spec.tensor_shapes(model)
    check_taps(shapes, found.taps)
    check_taps(shapes, found.cotangents)
    check_taps({name: tensors[name] for name in spec.parameter_names(model)}, found.gradients)
    rules = arithmetic(precision)
    # In fp64 the oracle rounds as much as the implementation, and neither is the reference for the other.
    rounds = math.sqrt(2) if precision == "fp64" else 1.0
    expected = forced(model, weights, images, labels, label_smoothing, found.taps, found.cotangents, precision)
    chance = FALSE_ALARM / (2 * (2 * len(shapes) + len(found.gradients) + 1))
    judged = []

    def stored(answer: TapRounding, values: npt.NDArray[Any]) -> TapRounding:
        """An output or cotangent, which must hold the numbers of the precision where that is narrower than float32."""
        if rules.store and answer.fault is None and (strange := int(np.count_nonzero(round_to(values, precision) != values))):
            return replace(answer, fault=f"{strange} of {values.size} elements are no {precision} numbers")
        return answer

    kinds = {layer.name: type(layer).__name__ for layer in spec.layers(model.body)}
    for node in wiring(model):
        layer = node.layer
        inputs, own = taken(node, found.taps, images), tensors_of(layer, weights)
        output = evaluate(layer, inputs, own)
        sigma = np.zeros(()) if isinstance(layer, EXACT_LAYERS) else backward_rounding.noise(layer, inputs, output, own, rules).sigma
        kept = precision if rules.store and not isinstance(layer, EXACT_LAYERS) else None
        tap = found.taps[layer.name]
        answer = _judge(
            layer.name, kinds[layer.name], Expected(output, np.broadcast_to(sigma, output.shape), None, kept), tap, rounds, chance
        )
        if answer.fault is not None and kept is not None and isinstance(layer, Conv2d) and layer.bias:
            answer = _bias_apart(layer, inputs, own, tap, precision, chance) or answer
        judged.append(stored(answer, tap))
    judged.append(_judge("loss", "loss", expected.loss, np.array(found.loss), rounds, chance))
    for name, wanted in reversed(expected.cotangents.items()):
        judged.append(stored(_judge(f"d {name}", kinds[name], wanted, found.cotangents[name], rounds, chance), found.cotangents[name]))
        judged += [
            _judge(f"d {tensor}", kinds[name], gradient, found.gradients[tensor], rounds, chance)
            for tensor, gradient in expected.gradients.items()
            if tensor.rpartition(".")[0] == name
        ]
    return tuple(judged)


def _bias_apart(
    layer: Conv2d, inputs: tuple[Array, ...], tensors: Arrays, found: npt.NDArray[Any], precision: str, chance: float
) -> TapRounding | None:
    """A convolution that adds its bias to the sum as it was stored, as ``local.judge`` knows it; None where that explains nothing."""
    alone = replace(layer, bias=False)
    product = evaluate(alone, inputs, tensors)
    sigma = backward_rounding.noise(alone, inputs, product, tensors, arithmetic(precision)).sigma
    residual = residual_of_sum(found.astype(np.float64), product, tensors["bias"][:, None, None].astype(np.float64), precision)
    answer = _judge_errors(layer.name, BIAS_APART, over(residual, sigma), chance, exact=False)
    return answer if answer.fault is None else None


def _judge(tap: str, kind: str, expected: Expected, found: npt.NDArray[Any], rounds: float, chance: float) -> TapRounding:
    return _judge_errors(tap, kind, np.atleast_1d(expected.z(found)) / rounds, chance, exact=not np.any(expected.sigma))


def _judge_errors(tap: str, kind: str, z: Array, chance: float, *, exact: bool) -> TapRounding:
    """Errors in units of their deviations; where nothing is rounded (``exact``) any is one too many."""
    exponent = -math.log(chance)
    if exact:
        unequal = int(np.count_nonzero(z))
        fault = f"{unequal} of {z.size} elements differ where nothing is rounded" if unequal else None
        return TapRounding(tap, kind, z.size, 0.0, 0.0, float(unequal), 0.0, (), fault)
    rms_z = float(np.sqrt(np.mean(z**2)))
    rms = rms_z / (WORST_SIGNIFICAND * rms_of_draws(z.shape[1] if z.ndim > 1 else z.shape[0], exponent))
    gauge = float(np.max(np.abs(z))) * KAPPA / math.sqrt(2 * (exponent + math.log(2 * z.size)))
    fault = None
    if not (rms <= 1 and gauge <= 1):
        fault = f"errs by more than rounding: rms {rms:.3g} and gauge {gauge:.3g} times their bounds; rms z {rms_z:.3g}"
    return TapRounding(
        tap=tap,
        kind=kind,
        elements=z.size,
        rms_z=finite(rms_z),
        rms=finite(rms),
        gauge=finite(gauge),
        slope=0.0,
        histogram=tuple(int(count) for count in np.histogram(z, (-np.inf, *EDGES, np.inf))[0]),
        fault=fault,
    )
