"""Where E3 of training looks once more: at values where faults show that are below a step's rounding elsewhere.

Each is a network, a state and a batch. The derivative of ReLU at 0 shows behind branches that end in gamma 0, epsilon where the variances
of a batch lie below it, and a variance that cancels at a mean far from zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from impls.oracle.backward import batch_statistics
from impls.oracle.rounding import arithmetic
from impls.oracle.training import State, differentiate, taken, wiring
from impls.spec import Add, BatchNorm2d, GlobalAvgPool2d, Linear, ModelSpec, layers, parameter_names
from suites.equivalence.trainer import Batch

MODEL = "cifar_resnet8"
"""Small, whatever is certified: what is looked at is the arithmetic of batch norm and ReLU, which all models share."""

WHERE: Mapping[str, str] = {
    "zero gamma": "behind branches of gamma 0",
    "epsilon": "at variances below epsilon",
    "magnitude": "at a mean of 10,000 deviations",
}
"""The probes, in words."""


def places(precision: str) -> tuple[str, ...]:
    """Those of ``WHERE`` that a precision can be looked at in: bf16 has no two numbers that are a ten-thousandth apart."""
    return tuple(name for name in WHERE if name != "magnitude" or not arithmetic(precision).store)


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """What is trained, from where, and on what."""

    model: ModelSpec
    state: State
    batch: Batch


def probes(model: ModelSpec, state: State, batch: Batch) -> dict[str, Probe]:
    """All of ``WHERE``; the first two are made of this network."""
    return {
        "zero gamma": Probe(model, zero_gamma(model, state), batch),
        "epsilon": Probe(model, small_variances(model, state, batch), batch),
        "magnitude": batch_norm_alone(100, 0.01),
    }


def zero_gamma(model: ModelSpec, state: State) -> State:
    """The state with the last batch norm before every sum at gamma 0 and beta 0, so that exact zeros reach the ReLUs behind.

    There the derivative of ReLU at 0 shows, in up to half of the gradient.
    """
    norms = {layer.name for layer in layers(model.body) if isinstance(layer, BatchNorm2d)}
    last = {node.inputs[0] for node in wiring(model) if isinstance(node.layer, Add)} & norms
    zeroed = {f"{name}.{leaf}" for name in last for leaf in ("weight", "bias")}
    return State({name: np.zeros_like(tensor) if name in zeroed else tensor for name, tensor in state.weights.items()}, state.momentum)


def small_variances(model: ModelSpec, state: State, batch: Batch) -> State:
    """The state with smaller kernels before every batch norm, so that its input's variances lie below epsilon, which decides every scale.

    They are spread evenly: were all the same, all channels would share one rounding of the root, where E3 takes them as different draws.
    """
    found = differentiate(model, state.weights, batch.images, batch.labels, label_smoothing=0.0)
    weights = dict(state.weights)
    for node in wiring(model):
        if isinstance(layer := node.layer, BatchNorm2d):
            _, variance = batch_statistics(*taken(node, found.taps, batch.images))
            small = layer.eps * np.arange(1, layer.channels + 1) / layer.channels
            name = f"{node.inputs[0]}.weight"
            weights[name] = (weights[name] * np.sqrt(small / variance)[:, None, None, None]).astype(np.float32)
    return State(weights, state.momentum)


def batch_norm_alone(mean: float, deviation: float) -> Probe:
    """A batch norm of 512 values a channel that no other layer made. At a mean of 10,000 deviations E[x^2] - E[x]^2 cancels."""
    body = (BatchNorm2d("bn", 3, 1e-5, 0.1, "unbiased"), GlobalAvgPool2d("avgpool"), Linear("fc", 3, 10))
    model = ModelSpec("batch_norm_alone", (3, 8, 8), 10, body, "a probe of batch norm")
    generator = np.random.Generator(np.random.PCG64(4))
    weights = {f"bn.{leaf}": np.full(3, value, np.float32) for leaf, value in (("weight", 1), ("bias", 0), ("running_mean", 0))}
    weights |= {"bn.running_var": np.ones(3, np.float32), "fc.bias": np.zeros(10, np.float32)}
    weights["fc.weight"] = generator.standard_normal((10, 3)).astype(np.float32)
    images = (mean + deviation * generator.standard_normal((8, 3, 8, 8))).astype(np.float32)
    momentum = {name: np.zeros_like(weights[name]) for name in parameter_names(model)}
    return Probe(model, State(weights, momentum), Batch(images, generator.integers(0, 10, 8)))
