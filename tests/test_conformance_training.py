"""One training step in a framework, against NumPy: loss, head, and the first batch norm's statistics.

Written from the formulas of ``impls.implementation.Sgd`` and ``impls.spec.BatchNorm2d``; the forward pass in training mode is the
oracle's, with each batch norm given the batch's own statistics.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from impls import models
from impls.oracle.forward import taps
from impls.spec import BatchNorm2d, layers
from impls.weights.initial import initialize
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, START_TIMEOUT_S
from suites.harness.process import WorkerError
from tests.frameworks import Frameworks, live_frameworks  # noqa: F401 - the fixture

Array = npt.NDArray[Any]

MODEL = models.get("cifar_resnet8")
RATES = (0.1, 0.03)
SMOOTHING = 0.1
BOUND = 1e-10  # in float64: six decades above its rounding here


def in_training_mode(weights: dict[str, Array], images: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """The taps with every batch norm normalising by the batch's mean and biased variance, and the new running statistics."""
    frozen, running = dict(weights), {}
    names = [layer.name for layer in layers(MODEL.body)]
    for layer in layers(MODEL.body):
        if isinstance(layer, BatchNorm2d):
            x = taps(MODEL, frozen, images)[names[names.index(layer.name) - 1]]
            mean, var, count = x.mean((0, 2, 3)), x.var((0, 2, 3)), x.size // x.shape[1]
            frozen |= {f"{layer.name}.running_mean": mean, f"{layer.name}.running_var": var}
            for leaf, value in (("running_mean", mean), ("running_var", var * count / (count - 1))):
                old = weights[f"{layer.name}.{leaf}"]
                running[f"{layer.name}.{leaf}"] = (1 - layer.momentum) * old + layer.momentum * value
    return taps(MODEL, frozen, images), running


def head_gradient(found: dict[str, Array], labels: Array) -> tuple[float, dict[str, Array]]:
    """Loss and the gradients of fc, by hand."""
    logits = found["fc"]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    target = (1 - SMOOTHING) * np.eye(10)[labels] + SMOOTHING / 10
    delta = (np.exp(log_softmax) - target) / len(labels)
    loss = -(target * log_softmax).sum(axis=1).mean()
    return float(loss), {"fc.weight": delta.T @ found["avgpool"], "fc.bias": delta.sum(axis=0)}


@pytest.fixture
def batches() -> tuple[Array, Array]:
    """Two batches of four images, (2, 4, 3, 32, 32), with labels."""
    generator = np.random.Generator(np.random.PCG64(5))
    return generator.standard_normal((2, 4, 3, 32, 32)).astype(np.float32), generator.integers(0, 10, (2, 4))


@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy ball", "nesterov"])
def test_two_steps_in_float64(frameworks: Frameworks, tmp_path: Path, batches: tuple[Array, Array], nesterov: bool) -> None:
    """Losses, fc after two steps at two learning rates, and running statistics are NumPy's to 1e-10."""
    images, labels = batches
    sgd = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.01, "label_smoothing": SMOOTHING}
    path = frameworks.weight_file(MODEL, initialize(MODEL, 2))
    given, out = tmp_path / "batches.safetensors", tmp_path / "out.safetensors"
    save_file({"images": images, "labels": labels}, given)
    trained: list[dict[str, Array]] = []
    losses: list[list[float]] = []
    with frameworks.start("pytorch", "fp64", deterministic=True) as worker:
        worker.call("start", START_TIMEOUT_S)
        for steps in (1, 2):  # the state after the first step is where NumPy's second begins
            save_file({"images": images[:steps], "labels": labels[:steps]}, given)
            worker.call("prepare_training", BUILD_TIMEOUT_S, weights=str(path), sgd=sgd, input_shape=[4, 3, 32, 32])
            losses.append(worker.call("train", CALL_TIMEOUT_S, batches=str(given), learning_rates=RATES[:steps])["losses"])
            worker.call("trained", CALL_TIMEOUT_S, out=str(out))
            trained.append(load_file(out))
    weights: dict[str, Array] = {name: tensor.astype(np.float64) for name, tensor in initialize(MODEL, 2).items()}
    velocity = {"fc.weight": np.zeros((10, 64)), "fc.bias": np.zeros(10)}
    for step, rate in enumerate(RATES):
        found, running = in_training_mode(weights, images[step])
        loss, gradient = head_gradient(found, labels[step])
        assert losses[1][step] == pytest.approx(loss, rel=BOUND)
        for name, raw in gradient.items():
            g = raw + 0.01 * weights[name]
            velocity[name] = 0.9 * velocity[name] + g
            expected = weights[name] - rate * (g + 0.9 * velocity[name] if nesterov else velocity[name])
            assert np.max(np.abs(trained[step][name] - expected)) < BOUND, name
        for name, statistic in running.items():
            assert np.max(np.abs(trained[step][name] - statistic)) < BOUND, name
        weights = trained[step]


def test_narrow_precision_is_refused(frameworks: Frameworks) -> None:
    """Training in bf16 is refused with a sentence."""
    path = frameworks.weight_file(MODEL, initialize(MODEL, 2))
    sgd = {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0, "label_smoothing": 0.0}
    with frameworks.start("pytorch", "bf16") as worker:
        worker.call("start", START_TIMEOUT_S)
        with pytest.raises(WorkerError, match="trains in fp64, fp32 and tf32") as caught:
            worker.call("prepare_training", BUILD_TIMEOUT_S, weights=str(path), sgd=sgd, input_shape=[4, 3, 32, 32])
    assert caught.value.kind == "cannot"
