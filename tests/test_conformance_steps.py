"""Every implementation that trains, in every mode, on the path on which its steps are timed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from impls import models
from impls.oracle.training import State
from impls.spec import parameter_names
from impls.weights import synthesis
from suites.equivalence.trainer import Batch, LiveTrainer
from suites.equivalence.training import SGD
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S
from suites.harness.requests import LEARNING_RATE
from tests.frameworks import ARMS, DEVICE, MANIFESTS, THREADS, Arm, Frameworks, live_frameworks  # noqa: F401 - the fixture

TRAINING = tuple(arm for arm in ARMS if MANIFESTS[arm.implementation].trains and arm.precision == "fp64")
MODEL = models.get("cifar_resnet8")
WEIGHTS = synthesis.synthesize(MODEL, 0)
FIRST = parameter_names(MODEL)[0]
CALLS = 5
NEEDED = {"threads", "precision", "tf32", "layout", "deterministic", "placed_on", "folded", "sgd", "learning_rate"}


@pytest.fixture(scope="module")
def ring() -> tuple[Batch, ...]:
    generator = np.random.default_rng(5)
    return tuple(
        Batch(generator.standard_normal((4, *MODEL.input_chw)).astype(np.float32), generator.integers(0, MODEL.classes, 4))
        for _ in range(2)
    )


@pytest.mark.parametrize("arm", TRAINING, ids=str)
def test_a_window_of_steps(frameworks: Frameworks, arm: Arm, ring: tuple[Batch, ...]) -> None:
    """Enqueued together they leave what they do one by one; nothing is compiled meanwhile, and all that is held is moved."""
    worker, path = frameworks.worker(arm.implementation, arm.precision), frameworks.weight_file(MODEL, WEIGHTS)
    images, out = frameworks.folder / "steps.safetensors", frameworks.folder / "kept.safetensors"
    save({"images": np.stack([each.images for each in ring]), "labels": np.stack([each.labels for each in ring])}, images)
    shape, asked = list(ring[0].images.shape), {"sgd": dataclasses.asdict(SGD), "learning_rate": LEARNING_RATE}

    def call(operation: str, **arguments: Any) -> dict[str, Any]:
        return worker.call(operation, BUILD_TIMEOUT_S if operation in ("prepare_steps", "put") else CALL_TIMEOUT_S, **arguments)

    call("prepare_steps", handle="steps", weights=str(path), mode=arm.mode, input_shape=shape, **asked)
    settings = call("put", handle="steps", images=str(images))["settings"] | asked
    before = call("visit", handle="steps", scope="device", samples=1, calls=1)["compilations"]
    after = call("visit", handle="steps", scope="device", samples=1, calls=CALLS, keep=True)["compilations"]
    call("kept", handle="steps", out=str(out))
    (kept,) = load_file(out)["logits"]
    learnt = call("learnt", handle="steps", weights=str(path))
    call("release", handle="steps")
    start = State(WEIGHTS, {name: np.zeros_like(WEIGHTS[name]) for name in parameter_names(MODEL)})
    one_by_one = LiveTrainer(worker, frameworks.folder, MODEL, start, SGD, arm.mode, tuple(shape))
    taken = [ring[0], *(ring[place % 2] for place in range(1 + CALLS))]  # the first call, and then round the ring
    losses = one_by_one.steps(taken, [LEARNING_RATE] * len(taken))
    weight = one_by_one.state().weights[FIRST]
    assert np.min(np.abs(np.array(losses[-CALLS:]) - kept[0])) < 1e-10
    assert np.max(np.abs(np.sort(kept[1:]) - np.sort(np.ravel(weight)))) < 1e-12
    assert np.max(np.abs(weight - WEIGHTS[FIRST])) > 1e-6
    assert before == after
    assert learnt == {"unchanged": [], "not_finite": []}
    assert set(settings) >= NEEDED
    assert (settings["placed_on"], settings["threads"], settings["folded"]) == (DEVICE, THREADS, False)
