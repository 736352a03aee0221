"""What is compared in each tier of a certificate, and what counts as equal.

Every comparison counts its elements and fails at zero of them, and at any missing, extra, misshapen or non-finite tap.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.oracle import local, rounding
from impls.oracle.local import TapError, TapRounding, check_shapes
from impls.oracle.rounding import Envelope
from impls.spec import ModelSpec

Arrays = Mapping[str, npt.NDArray[Any]]

MEANING_BOUND = 1e-10
"""Six decades above float64 rounding in these nets (5e-14) and, in float64, two below the smallest known fault (4e-8)."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier's answer. ``worst`` is the worst tap and its error in the tier's unit; the first that fails is in ``reason``.

    ``note`` restricts what passing says. ``taps`` holds E3's figures of every tap.
    """

    passed: bool
    elements: int
    bound: float
    worst_tap: str
    worst_error: float | None
    reason: str | None
    note: str | None = None
    taps: tuple[TapRounding, ...] = ()


def _failed(reason: str, bound: float, tap: str = "", elements: int = 0) -> Tier:
    return Tier(False, elements, bound, tap, None, reason)


def _finite(number: float) -> float | None:
    """The number, or None where JSON has none for it."""
    return number if math.isfinite(number) else None


def compare(expected: Arrays, found: Arrays, bound: float, error: Callable[[npt.NDArray[Any], npt.NDArray[Any]], float]) -> Tier:
    """Compare taps in the order of ``expected``; ``error`` gives one number a tap, which must not exceed ``bound``."""
    try:
        check_shapes({name: right.shape for name, right in expected.items()}, found)
    except TapError as unfit:
        return _failed(str(unfit), bound, unfit.tap)
    elements, worst_tap, worst, reason = 0, "", -1.0, None
    for name, right in expected.items():
        given = found[name]
        is_finite = bool(np.isfinite(given).all() and np.isfinite(right).all())
        here = error(given, right) if is_finite else math.inf
        here = math.inf if math.isnan(here) else here
        elements += right.size
        if here > worst:
            worst_tap, worst = name, here
        if not here <= bound and reason is None:
            how = f"the first tap that differs, by {here:.3g} (bound {bound:.3g})" if is_finite else "holds values that are not finite"
            reason = f"{name}: {how}"
    if elements == 0:
        return _failed("nothing was compared", bound)
    return Tier(reason is None, elements, bound, worst_tap, _finite(worst), reason)


def exact(expected: Arrays, found: Arrays) -> Tier:
    """E1: the number of elements that are not equal must be 0 at every tap."""
    return compare(expected, found, 0.0, lambda given, right: float(np.count_nonzero(given.astype(np.float64) != right)))


def meaning(expected: Arrays, found: Arrays) -> Tier:
    """E2: largest difference over the tap's rms, at most ``MEANING_BOUND``; taps of zeros must be equal."""

    def error(given: npt.NDArray[Any], right: npt.NDArray[Any]) -> float:
        difference = float(np.max(np.abs(given.astype(np.float64) - right), initial=0.0))
        scale = float(np.sqrt(np.mean(right**2)))
        return difference / scale if scale else (0.0 if difference == 0 else np.inf)

    return compare(expected, found, MEANING_BOUND, error)


def meaning_of_layers(model: ModelSpec, weights: Arrays, images: npt.NDArray[Any], taps: Arrays) -> Tier:
    """E2 where a network enlarges float64's own rounding: every tap against the oracle's layer on the implementation's own inputs."""
    try:
        expected = local.forced(model, weights, images, taps)
    except TapError as unfit:
        return _failed(str(unfit), MEANING_BOUND, unfit.tap)
    return meaning(expected, taps)


def identity(expected: Arrays, found: Mapping[str, Mapping[str, Any]]) -> Tier:
    """E0: type, shape and SHA-256 of every tensor that the framework holds, against the tensors it was given."""
    if missing := [name for name in expected if name not in found]:
        return _failed(f"{missing[0]}: the framework does not hold it", 0.0, missing[0])
    if extra := [name for name in found if name not in expected]:
        return _failed(f"{extra[0]}: the framework holds it, the file does not", 0.0, extra[0])
    for name, right in expected.items():
        given = found[name]
        if (given["dtype"], tuple(given["shape"])) != (str(right.dtype), right.shape):
            return _failed(f"{name}: held as {given['dtype']} {tuple(given['shape'])}, not {right.dtype} {right.shape}", 0.0, name)
        if given["sha256"] != hashlib.sha256(np.ascontiguousarray(right).tobytes()).hexdigest():
            return _failed(f"{name}: its bytes are not the file's", 0.0, name)
    elements = sum(right.size for right in expected.values())
    return Tier(True, elements, 0.0, "", 0.0, None) if elements else _failed("nothing was compared", 0.0)


NOTED = {
    local.BIAS_APART: "the biases of {} convolutions are added once the sum is rounded",
    local.IN_FLOAT32: "{} linear layers are multiplied in float32",
}
"""What a certificate says of layers that compute in another way that is theirs to choose."""


def judged_locally(judge: Callable[[], tuple[TapRounding, ...]]) -> Tier:
    """E3 from the judgement of every tap, which may raise TapError; errors are in units of their bounds."""
    try:
        judged = judge()
    except TapError as unfit:
        return _failed(str(unfit), 1.0, unfit.tap)
    errors = [max(math.inf if error is None else error for error in (tap.rms, tap.gauge, tap.slope)) for tap in judged]
    worst = max(errors)
    failed = next((f"{tap.tap}: {tap.fault}" for tap in judged if tap.fault is not None), None)
    elements = sum(tap.elements for tap in judged)
    counts = {kind: sum(tap.kind == kind for tap in judged) for kind in NOTED}
    note = "; ".join(NOTED[kind].format(count) for kind, count in counts.items() if count) or None
    return Tier(failed is None, elements, 1.0, judged[errors.index(worst)].tap, _finite(worst), failed, taps=judged, note=note)


def local_rounding(model: ModelSpec, weights: Arrays, images: npt.NDArray[Any], taps: Arrays, precision: str) -> Tier:
    """E3: every tap on the implementation's own inputs, within the bounds of ``impls.oracle.local``."""
    tier = judged_locally(lambda: local.local_rounding(model, weights, images, taps, precision))
    first = next((tap.tap for tap in tier.taps if tap.fault is not None), None)
    wire = local.misread(model, weights, images, taps, precision, first) if first else None
    return dataclasses.replace(tier, reason=wire) if wire else tier


def rounding_noise(logits: npt.NDArray[Any], predicted: Envelope, precision: str) -> Tier:
    """E4: rho = rms error over rms predicted noise, within the precision's bounds; where these are too wide to say anything it passes."""
    if logits.shape != predicted.logits.shape:
        return _failed(f"logits: shape {logits.shape}, not {predicted.logits.shape}", rounding.RHO_MAX, "logits")
    if logits.size == 0:
        return _failed("nothing was compared", rounding.RHO_MAX)
    if not np.isfinite(logits).all():
        return _failed("logits: hold values that are not finite", rounding.RHO_MAX, "logits")
    rho = rounding.rho(logits, predicted)
    if (noise := rounding.relative_noise(predicted)) > rounding.NO_POWER:
        note = f"no power: {precision} explains errors of {noise:.0%} of the logits' rms, E3 decides"
        return Tier(True, logits.size, rounding.RHO_MAX, "logits", _finite(rho), None, note)
    passed = rounding.plausible(rho, precision)
    low = rounding.RHO_MIN.get(precision, 0.0)
    reason = None if passed else f"logits: {rho:.3g} times the noise that {precision} explains (must be {low:g} to {rounding.RHO_MAX:g})"
    return Tier(passed, logits.size, rounding.RHO_MAX, "logits", _finite(rho), reason)


def all_of(tiers: Sequence[Tier]) -> Tier:
    """Several comparisons of one tier as one: the first failure, else the worst, with the first note that any has."""
    for tier in tiers:
        if not tier.passed:
            return tier
    if not tiers:
        return _failed("nothing was compared", 0.0)
    worst = max(tiers, key=lambda tier: tier.worst_error or 0.0)
    note = next((tier.note for tier in tiers if tier.note), None)
    return dataclasses.replace(worst, elements=sum(tier.elements for tier in tiers), note=note)


def check_ring(logits: npt.NDArray[Any], members: npt.NDArray[np.intp], predicted: Envelope, precision: str) -> Tier:
    """E4 for the outputs of a whole ring, (ring, N, classes); ``members`` says which image of the pool stands where."""
    expected = Envelope(predicted.logits[members], predicted.deviation[members])
    return rounding_noise(logits, expected, precision)
