"""The noise of whole training steps against simulated steps, correct and broken."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from impls import models
from impls.oracle import training
from impls.oracle.backward_envelope import Envelope, envelope
from impls.oracle.backward_masks import mask_differences
from impls.oracle.rounding import RHO_MAX, arithmetic, round_to
from impls.oracle.training import Derivatives, Operations, differentiate, statistics_after
from impls.spec import BatchNorm2d, layers
from tests.float32_training import operations, pairwise, sequential
from tests.test_oracle_training import SMOOTHING, batch, generic

Array = npt.NDArray[Any]
MODEL = models.get("cifar_resnet8_b")


def run(how: Operations) -> Derivatives:
    """A simulated run on a batch of four."""
    return differentiate(MODEL, generic(MODEL), *batch(MODEL, 4), SMOOTHING, operations=how)


@cache
def predicted(precision: str) -> Envelope:
    """The noise of a correct run, given the masks of a simulated one."""
    how = operations(pairwise) if precision == "fp32" else operations(pairwise, lambda array: round_to(array, precision))
    return envelope(MODEL, generic(MODEL), *batch(MODEL, 4), SMOOTHING, arithmetic(precision), masks=run(how).taps, runs=4)


def rhos(found: Derivatives, noise: Envelope) -> dict[str, float]:
    """Error over noise of every gradient and running statistic, and of the loss."""
    after = statistics_after(MODEL, generic(MODEL), batch(MODEL, 4)[0], found.taps)
    errors = {name: (gradient - noise.exact.gradients[name], noise.gradients[name]) for name, gradient in found.gradients.items()}
    errors |= {name: (statistic - noise.after[name], noise.statistics[name]) for name, statistic in after.items()}
    errors["loss"] = (np.array(found.loss - noise.exact.loss), noise.loss)
    return {name: float(np.sqrt(np.mean(error**2)) / deviation) for name, (error, deviation) in errors.items()}


@pytest.mark.parametrize("total", [sequential, pairwise])
def test_a_correct_run(total: Any) -> None:
    """Gradients, statistics and loss of a float32 run lie within the noise; so do its taps, and no decision is unexplained."""
    found, noise = run(operations(total)), predicted("fp32")
    values = rhos(found, noise)
    assert 0.05 < np.median(list(values.values())) < 1
    assert max(values.values()) < RHO_MAX, values
    for name, deviation in noise.taps.items():
        assert np.sqrt(np.mean((found.taps[name] - noise.exact.taps[name]) ** 2) / np.mean(deviation**2)) < RHO_MAX
    compared = mask_differences(MODEL, batch(MODEL, 4)[0], noise.exact.taps, found.taps, noise.taps)
    assert sum(part.elements for part in compared) > 10_000
    assert all(len(part.unexplained) == 0 for part in compared)


def test_a_run_in_tf32() -> None:
    """It lies near its own noise and far outside fp32's."""
    found = run(operations(pairwise, lambda array: round_to(array, "tf32")))
    own = rhos(found, predicted("tf32"))
    assert own.pop("loss") < 3  # a single draw
    assert all(0.5 < rho < RHO_MAX for rho in own.values()), own
    gradients = [rho for name, rho in rhos(found, predicted("fp32")).items() if ".running_" not in name and name != "loss"]
    assert min(gradients) > 50


def test_wrong_epsilon() -> None:
    """One batch norm's epsilon of 1e-3 moves gradients far outside the noise."""
    right = operations(pairwise)

    def evaluate(layer: Any, inputs: Any, tensors: Any) -> Array:
        return right.evaluate(replace(layer, eps=1e-3) if layer.name == "layer2.0.bn1" else layer, inputs, tensors)

    assert "layer2.0.bn1" in [layer.name for layer in layers(MODEL.body) if isinstance(layer, BatchNorm2d)]
    values = rhos(run(replace(right, evaluate=evaluate)), predicted("fp32"))
    assert values["layer2.0.conv2.weight"] > 10


def test_it_repeats_and_is_the_oracles() -> None:
    """The same seed gives the same noise, another seed another; without masks the exact part is the free pass."""
    given = (MODEL, generic(MODEL), *batch(MODEL), SMOOTHING, arithmetic("fp32"))
    first, again, other = (envelope(*given, runs=2, seed=seed) for seed in (1, 1, 2))
    assert first.gradients == again.gradients
    assert first.gradients != other.gradients
    free = training.differentiate(MODEL, generic(MODEL), *batch(MODEL), SMOOTHING)
    assert free.loss == first.exact.loss
    for name, gradient in free.gradients.items():
        np.testing.assert_array_equal(first.exact.gradients[name], gradient)
