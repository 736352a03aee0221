"""The certificate of training: a float32 trainer in NumPy passes, and every wrong convention fails in its tier, by its name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from impls import models
from impls.implementation import Sgd
from impls.oracle import training as oracle
from impls.oracle.backward import Pullback
from impls.oracle.rounding import round_to
from impls.oracle.training import EXACT, Derivatives, Operations, State
from impls.spec import NO_PADDING, BatchNorm2d, Block, Conv2d, GlobalAvgPool2d, Layer, Linear, ModelSpec, Node, Relu, tensor_shapes
from suites.equivalence import training, training_probes
from suites.equivalence.examination import forget
from suites.equivalence.tiers import meaning
from suites.equivalence.trainer import Batch
from suites.equivalence.training import TrainingExamination
from suites.harness.context import subject
from tests import float32_training

MODEL = "cifar_resnet8"
SINGLE = float32_training.operations(float32_training.pairwise)
MIXED = float32_training.mixed(float32_training.pairwise)


@dataclasses.dataclass(frozen=True)
class Fault:
    """How a trainer departs from what it was asked for."""

    sgd: Callable[[Sgd], Sgd] = lambda sgd: sgd
    model: Callable[[ModelSpec], ModelSpec] = lambda model: model
    rate: Callable[[float], float] = lambda rate: rate
    single: Operations = SINGLE
    mixed: Operations = MIXED
    step: Callable[[State], State] = lambda state: state
    late: Callable[[State], State] = lambda state: state
    """What becomes of a float32 state after the third step and every one that follows."""
    masks: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """By which float32 taps a timed step decides instead of its own."""


class NumpyTrainer:
    """A trainer that computes in float64, float32 or mixed precision, as the contract has it, but for its fault."""

    def __init__(self, precision: str, model: ModelSpec, state: State, sgd: Sgd, fault: Fault) -> None:
        self.operations = EXACT if precision == "fp64" else fault.mixed if precision == "bf16" else fault.single
        self.stored = float32_training.to_bf16 if precision == "bf16" and fault.mixed is not SINGLE else np.asarray
        self.dtype = np.float64 if precision == "fp64" else np.float32
        self.model, self.sgd, self.fault, self.now, self.taken = fault.model(model), fault.sgd(sgd), fault, state, 0

    def differentiate(self, batch: Batch, masks: dict[str, Any] | None = None) -> Derivatives:
        images, smoothing = self.stored(batch.images), self.sgd.label_smoothing
        found = oracle.differentiate(self.model, self.now.weights, images, batch.labels, smoothing, masks=masks, operations=self.operations)
        cotangents = {name: self.stored(array).astype(self.dtype) for name, array in found.cotangents.items()}
        return dataclasses.replace(found, cotangents=cotangents)

    def steps(self, batches: list[Batch], rates: list[float]) -> list[float]:
        losses = []
        for batch, rate in zip(batches, rates, strict=True):
            found = self.differentiate(batch)
            if self.fault.masks and self.dtype == np.float32:
                found = self.differentiate(batch, self.fault.masks(found.taps))
            weights = dict(oracle.statistics_after(self.model, self.now.weights, self.stored(batch.images), found.taps))
            momentum = {}
            for name, gradient in found.gradients.items():
                values = (np.asarray(array, np.float64) for array in (self.now.weights[name], gradient, self.now.momentum[name]))
                weights[name], momentum[name] = oracle.descend(self.sgd, self.fault.rate(rate), *values)
            held = {
                kind: {name: array.astype(self.dtype) for name, array in each.items()} for kind, each in (("w", weights), ("m", momentum))
            }
            self.now = self.fault.step(State(held["w"], held["m"]))
            self.taken += 1
            if self.taken >= 3 and self.dtype == np.float32:
                self.now = self.fault.late(self.now)
            losses.append(found.loss)
        return losses

    def state(self) -> State:
        return self.now


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEVELFIELD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(training, "training_size", lambda model: (16, 16))  # a quarter of the time
        patch.setattr(training, "COARSE_RUNS", 4)  # half of it
        subject.cache_clear()
        yield
        subject.cache_clear()


def examination(fault: Fault, precision: str = "fp32") -> TrainingExamination:
    """Of a trainer with a fault."""

    def trainer(precision: str, model: ModelSpec, state: State, sgd: Sgd, batch: Batch) -> NumpyTrainer:
        return NumpyTrainer(precision, model, state, sgd, fault)

    return TrainingExamination(subject(MODEL), precision, trainer)


def test_a_sound_trainer_passes() -> None:
    """All three tiers, each over every parameter, tap and mask, and the free run to its end."""
    tiers = examination(Fault()).run()
    assert {name: (tier.passed, tier.reason) for name, tier in tiers.items()} == dict.fromkeys(("E2", "E3", "E5"), (True, None))
    assert all(tier.elements > 50_000 for tier in tiers.values())
    assert tiers["E3"].taps[0].tap == "conv1"
    assert "masks differ" in str(tiers["E5"].note)
    assert "a free run was followed for 8 of 8 steps" in str(tiers["E5"].note), tiers["E5"].note


def test_mixed_precision_passes() -> None:
    """The same in bf16: E3 where bf16 has the numbers to look at, and E5 in noise that holds what decisions change."""
    tiers = examination(Fault(), "bf16").run()
    assert {name: (tier.passed, tier.reason) for name, tier in tiers.items()} == dict.fromkeys(("E2", "E3", "E5"), (True, None))
    assert training_probes.places("bf16") == ("zero gamma", "epsilon")
    assert re.search(r"explain errors of \d+% of a gradient, up to \d+%", str(tiers["E5"].note))


def narrow(state: State) -> State:
    """Everything that a step changes in bf16."""
    weights, momentum = (
        {name: np.float32(float32_training.to_bf16(array)) for name, array in held.items()} for held in dataclasses.astuple(state)
    )
    return State(weights, momentum)


@pytest.mark.parametrize(
    "mixed", [SINGLE, float32_training.mixed(float32_training.pairwise, taken=np.asarray)], ids=["float32", "weights as they are held"]
)
def test_another_precision_is_no_mixed_precision(mixed: Operations) -> None:
    """E3 refuses finer arithmetic than was declared."""
    tiers = examination(Fault(mixed=mixed), "bf16").run()
    assert {name: tier.passed for name, tier in tiers.items()} == {"E2": True, "E3": False}
    assert str(tiers["E3"].reason).startswith("conv1: errs by more than rounding")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(step=narrow), "after a step it errs by"),
        (Fault(step=lambda s: State({n: w * (1 + 1e-2 * (n == "fc.weight")) for n, w in s.weights.items()}, s.momentum)), "fc.weight"),
        (
            Fault(step=lambda s: State(s.weights, {n: v * (n != "layer2.0.bn1.weight") for n, v in s.momentum.items()})),
            "layer2.0.bn1.weight",
        ),
    ],
    ids=["parameters in bf16", "a parameter", "a buffer"],
)
def test_steps_that_are_wrong_beyond_the_noise_of_mixed_precision(fault: Fault, says: str) -> None:
    """E5, though the derivatives are right: also where all that is trained is bf16, and not the products alone."""
    held = examination(fault, "bf16")
    own, found = held.local()
    assert own.passed
    tier = held.steps(found)
    assert not tier.passed
    assert says in str(tier.reason)


def test_what_is_trained_of_googlenet() -> None:
    """Its heads have synthesised weights, its other tensors are those of inference; a network without either is itself."""
    about = subject("googlenet")
    trained = training.in_training(about)
    assert trained is training.in_training(about)
    assert trained.weights.keys() == tensor_shapes(trained.model).keys()
    assert all(trained.weights[name] is tensor for name, tensor in about.weights.items())
    assert trained.weights["aux1.fc1.weight"].std() > 0
    assert (trained.spec_sha256, trained.weights_sha256) != (about.spec_sha256, about.weights_sha256)
    assert training.in_training(subject(MODEL)) is subject(MODEL)


def test_the_certificate_says_what_was_left_out() -> None:
    """Dropout that is off, and the weights of auxiliary heads, where the model asked for has them."""
    said = {name: training.settings(models.get(name)) for name in ("googlenet", "alexnet", MODEL)}
    assert {name: (found.get("dropout"), found.get("auxiliary_weights")) for name, found in said.items()} == {
        "googlenet": ("off", [0.3, 0.3]),
        "alexnet": ("off", None),
        MODEL: (None, None),
    }


def test_no_free_run_of_a_large_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its states do not fit into memory; the certificate says so, and the other steps are judged as ever."""
    monkeypatch.setattr(training, "FREE_RUN_PARAMETERS", 1000)
    tiers = examination(Fault()).run()
    assert all(tier.passed for tier in tiers.values())
    assert str(tiers["E5"].note).endswith("no free run was followed: those of so large a network do not fit into memory")


def test_a_bias_before_a_batch_norm_is_compared_beside_what_cancels() -> None:
    """Two roundings of its gradient of 0 agree, a thousandth of what cancels in it does not; other gradients are compared as they are."""
    body = (
        Conv2d("c", 3, 4, 3, 1, NO_PADDING, bias=True),
        BatchNorm2d("b", 4, 1e-5, 0.1, "unbiased"),
        GlobalAvgPool2d("p"),
        Linear("l", 4, 5),
    )
    model, generator = ModelSpec("m", (3, 8, 8), 5, body, "test"), np.random.default_rng(0)
    cotangents = {"c": generator.normal(size=(2, 4, 6, 6))}
    gradients = {"c.bias": 1e-16 * generator.normal(size=4), "l.bias": np.ones(5)}

    def agree(change: float) -> bool:
        found = gradients | {"c.bias": 1e-16 * generator.normal(size=4) + change}
        return meaning(*(training.beside_magnitudes(model, cotangents, each) for each in (gradients, found))).passed

    assert agree(0.0)
    assert not agree(1e-3 * float(np.abs(cotangents["c"]).sum()) / 4)
    assert training.beside_magnitudes(model, cotangents, gradients)["l.bias"] is gradients["l.bias"]


def normed(change: Callable[[BatchNorm2d], BatchNorm2d]) -> Callable[[ModelSpec], ModelSpec]:
    """Change every batch norm of a model."""

    def edit(node: Node) -> Node:
        if isinstance(node, Block):
            return dataclasses.replace(node, branches=tuple(tuple(edit(each) for each in branch) for branch in node.branches))
        return change(node) if isinstance(node, BatchNorm2d) else node

    return lambda model: dataclasses.replace(model, body=tuple(edit(node) for node in model.body))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(sgd=lambda sgd: dataclasses.replace(sgd, label_smoothing=0.0)), "loss"),
        (Fault(sgd=lambda sgd: dataclasses.replace(sgd, nesterov=False)), "change of conv1.weight"),
        (Fault(sgd=lambda sgd: dataclasses.replace(sgd, weight_decay=0.0)), "change of"),
        (Fault(sgd=lambda sgd: dataclasses.replace(sgd, momentum=0.91)), "change of"),
        (Fault(model=normed(lambda norm: dataclasses.replace(norm, momentum=0.9))), "change of bn1.running_mean"),
        (Fault(model=normed(lambda norm: dataclasses.replace(norm, running_variance="biased"))), "change of bn1.running_var"),
        (Fault(model=normed(lambda norm: dataclasses.replace(norm, eps=1.001e-5))), "bn1"),
        (Fault(rate=lambda rate: 0.1), "change of"),
        (Fault(step=lambda state: State(state.weights, {n: 0.99 * v for n, v in state.momentum.items()})), "change of the momentum of"),
    ],
    ids=["smoothing", "nesterov", "decay", "momentum", "swapped", "biased", "epsilon", "rate", "dampened"],
)
def test_a_wrong_convention_fails_in_float64(fault: Fault, says: str) -> None:
    """E2 fails, names what is wrong, and nothing else is examined."""
    tiers = examination(fault).run()
    assert list(tiers) == ["E2"]
    assert not tiers["E2"].passed
    assert says in str(tiers["E2"].reason)


def test_hidden_tf32_fails_locally() -> None:
    """A run declared fp32 whose matrix products round their operands to TF32: E3, at the first convolution."""
    rounded = float32_training.operations(float32_training.pairwise, lambda x: round_to(x, "tf32"))
    tiers = examination(Fault(single=rounded)).run()
    assert (tiers["E2"].passed, tiers["E3"].passed) == (True, False)
    assert str(tiers["E3"].reason).startswith("conv1: errs by more than rounding")


def half_at_zero(layer: Layer, inputs: tuple[Any, ...], output: Any, cotangent: Any, tensors: Any) -> Pullback:
    """ReLU has a derivative of 0.5 at 0."""
    pulled = SINGLE.vjp(layer, inputs, output, cotangent, tensors)
    if not isinstance(layer, Relu):
        return pulled
    return Pullback((pulled.inputs[0] + np.float32(0.5) * np.asarray(cotangent, np.float32) * (inputs[0] == 0),), {})


def other_epsilon(layer: Layer, inputs: tuple[Any, ...], tensors: Any) -> Any:
    """Keras's epsilon for PyTorch's."""
    return SINGLE.evaluate(dataclasses.replace(layer, eps=1.001e-5) if isinstance(layer, BatchNorm2d) else layer, inputs, tensors)


def cancelling(layer: Layer, inputs: tuple[Any, ...], tensors: Any) -> Any:
    """The variance as E[x^2] - E[x]^2."""
    if not isinstance(layer, BatchNorm2d):
        return SINGLE.evaluate(layer, inputs, tensors)
    x = inputs[0].astype(np.float32)
    mean = x.mean((0, 2, 3), keepdims=True)
    variance = np.maximum((x * x).mean((0, 2, 3), keepdims=True) - mean * mean, 0)
    gamma, beta = (tensors[leaf].astype(np.float32)[:, None, None] for leaf in ("weight", "bias"))
    return (x - mean) * (gamma / np.sqrt(variance + np.float32(layer.eps))) + beta


@pytest.mark.parametrize(
    ("single", "where"),
    [
        (dataclasses.replace(SINGLE, vjp=half_at_zero), "zero gamma"),
        (dataclasses.replace(SINGLE, evaluate=other_epsilon), "epsilon"),
        (dataclasses.replace(SINGLE, evaluate=cancelling), "magnitude"),
    ],
    ids=["ReLU at 0", "epsilon", "variance"],
)
def test_what_only_a_probe_sees_is_refused(single: Operations, where: str) -> None:
    """A convention that is wrong in float32 alone and below its rounding on the certified network."""
    held = examination(Fault(single=single))
    own, _ = held.local()
    assert own.passed
    tiers = held.run()
    assert {name: tier.passed for name, tier in tiers.items()} == {"E2": True, "E3": False}
    assert str(tiers["E3"].reason).startswith(f"{training_probes.WHERE[where]}: ")
    assert tiers["E3"].taps == own.taps


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(step=lambda s: State(s.weights, {n: v + 1e-3 * (n == "fc.bias") for n, v in s.momentum.items()})), "momentum of fc.bias"),
        (
            Fault(step=lambda s: State({n: w * (1 + 1e-3 * n.endswith("running_var")) for n, w in s.weights.items()}, s.momentum)),
            "running_var",
        ),
        (
            Fault(step=lambda s: State({n: w * (1 + 1e-4 * (n == "conv1.weight")) for n, w in s.weights.items()}, s.momentum)),
            "conv1.weight",
        ),
        (Fault(step=lambda s: State({n: w * np.float32("nan") for n, w in s.weights.items()}, s.momentum)), "after a step it errs by inf"),
    ],
    ids=["buffer", "statistics", "parameter", "NaN"],
)
def test_a_step_that_leaves_its_noise_fails(fault: Fault, says: str) -> None:
    """E5 sees a thousandth in one tensor and names it, though the derivatives are right."""
    held = examination(fault)
    _, found = held.local()
    tier = held.steps(found)
    assert not tier.passed
    assert says in str(tier.reason)


@pytest.fixture
def forgetful() -> Iterator[None]:
    """What is kept of the oracle's runs is of one beginning."""
    forget()
    yield
    forget()


@pytest.fixture
def edge(monkeypatch: pytest.MonkeyPatch, forgetful: None) -> tuple[int, ...]:
    """A place in the first ReLU where the first step begins at the edge: a bias is put so that float64 has there what its rounding left."""
    about, start = subject(MODEL), training.begin(subject(MODEL))
    batch, place = training.batches(about)[0], (1, 3, 5, 7)
    taps = oracle.differentiate(about.model, start.weights, batch.images, batch.labels, 0.1).taps
    weights = {name: np.array(tensor) for name, tensor in start.weights.items()}
    weights["bn1.bias"][place[1]] -= taps["bn1"][place]
    monkeypatch.setattr(training, "begin", lambda about: State(weights, start.momentum))
    return place


def deciding_otherwise(*places: tuple[int, ...], within: float = 1e-5) -> Fault:
    """Places of the first ReLU that the timed mode alone lets pass where the derivatives do not, or the reverse, where as near to 0."""

    def masks(taps: dict[str, Any]) -> dict[str, Any]:
        output = taps["relu"].copy()
        for place in places:
            if abs(taps["bn1"][place]) <= within:
                output[place] = 0.0 if output[place] > 0 else 1.0
        return {**taps, "relu": output}

    return Fault(masks=masks)


def test_a_relu_at_the_edge_that_the_timed_mode_flips_is_inferred(edge: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The step passes given that it took this decision otherwise, and the certificate names it; not without."""
    held = examination(deciding_otherwise(edge))
    _, found = held.local()
    tier = held.steps(found)
    assert tier.passed, tier.reason
    assert f"decides otherwise than the derivatives shown at relu[{', '.join(map(str, edge))}], " in str(tier.note)
    judged: list[object] = []
    monkeypatch.setattr(training, "step_errors", lambda *arguments, real=training.step_errors: judged.append(1) or real(*arguments))
    held.steps(found)
    assert len(judged) == 3 * 2  # of two optimizers: with none, with what was read off, and once more for the verdict
    monkeypatch.setattr(training, "edges", lambda *arguments: ())
    assert "after a step it errs by" in str(held.steps(found).reason)


def test_biases_of_relus() -> None:
    """The batch norm in front, or of the branch in front of a sum; a convolution's own where it has one."""
    found = training.biases_of_relus(models.get("resnet18"))
    assert found["relu"] == "bn1.bias"
    assert found["layer1.0.relu1"] == "layer1.0.bn1.bias"
    assert found["layer1.0.out"] == "layer1.0.bn2.bias"
    assert len(found) == 17
    assert training.biases_of_relus(models.get("vgg16"))["features.1"] == "features.0.bias"


def test_a_relu_off_the_edge_is_not_excused(edge: tuple[int, ...]) -> None:
    """One that rounding cannot carry across, flipped in the timed mode alone, beside one that it can."""
    held = examination(deciding_otherwise(edge, (0, 3, 5, 7), within=np.inf))
    _, found = held.local()
    tier = held.steps(found)
    assert not tier.passed
    assert "after a step it errs by" in str(tier.reason)


@pytest.mark.parametrize("name", ["conv1.weight", "bn1.bias", "layer1.0.conv2.weight", "layer3.0.bn2.weight", "fc.weight"])
def test_one_wrong_gradient_of_the_timed_mode_is_not_excused(edge: tuple[int, ...], name: str) -> None:
    """A thousandth of one tensor's gradient, with a decision at its edge that might be blamed and that differs as well."""

    def scaled(state: State) -> State:
        return State(state.weights, {each: v * np.float32(1 + 1e-3 * (each == name)) for each, v in state.momentum.items()})

    for fault in (Fault(), deciding_otherwise(edge)):
        held = examination(dataclasses.replace(fault, step=scaled))
        _, found = held.local()
        tier = held.steps(found)
        assert not tier.passed
        assert "after a step it errs by" in str(tier.reason)


@pytest.mark.parametrize(
    "late",
    [
        lambda s: State(s.weights, {n: 0 * v for n, v in s.momentum.items()}),
        lambda s: State(s.weights, {n: 1.25 * v for n, v in s.momentum.items()}),
        lambda s: State({n: w * (1 + 1e-3 * (n == "conv1.weight")) for n, w in s.weights.items()}, s.momentum),
        lambda s: State({n: w * np.float32("nan") for n, w in s.weights.items()}, s.momentum),
    ],
    ids=["emptied", "grown", "parameter", "NaN"],
)
def test_what_goes_wrong_after_the_second_step_is_seen_by_the_free_run_alone(late: Callable[[State], State]) -> None:
    """In float32 from the third step on: every other tier has nothing to object to."""
    tiers = examination(Fault(late=late)).run()
    assert {name: tier.passed for name, tier in tiers.items()} == {"E2": True, "E3": True, "E5": False}
    assert " free steps the parameters are " in str(tiers["E5"].reason)


def test_a_sound_run_stays_within_reach() -> None:
    """Eight runs with the precision's own noise; the first of them would leave a reach of a tenth."""
    about = subject(MODEL)
    limits, start = training.reach(about, "fp32", training.ROUNDS), training.at_rest(training.begin(about))
    generator = np.random.Generator(np.random.PCG64(1))
    runs, before = [start] * 8, start
    distances: list[list[float]] = [[] for _ in runs]
    for step, batch in enumerate(training.batches(about)[: len(limits)]):
        right = training.sound_run(about, "fp64").after(step)
        _, noise = training.step_noise(about.model, before.weights, batch.images, batch.labels, 0.1, training.arithmetic("fp32"))
        runs = [training.noisy_step(about.model, each, batch, noise, generator, "fp64") for each in runs]
        for far, each in zip(distances, runs, strict=True):
            far.append(training.distance(start, right, each))
        before = right
    assert len(limits) > 2
    assert all(training.followed(each, limits, 1).passed for each in distances)
    assert not training.followed(distances[0], [limit / 10 for limit in limits], 1).passed


def test_hardly_a_flip_is_missed_by_all_coarse_runs() -> None:
    """Over margins m that are spread evenly, as those near zero are: P(flip) = Phi(-m), in a coarse run Phi(-m / COARSER)."""
    margin = np.linspace(-12, 12, 4801)
    flips, coarse = norm.sf(np.abs(margin)), norm.sf(np.abs(margin) / training.COARSER)

    def missed(runs: int) -> float:
        return float(np.sum(flips * (1 - coarse) ** runs) / np.sum(flips))

    assert missed(8 * training.ROUNDS) == pytest.approx(1.7e-6, rel=0.05)
    assert missed(8) == pytest.approx(0.013, rel=0.05)


def test_more_rounds_reach_farther() -> None:
    """The farthest of more runs is as far or farther, and the horizon as near or nearer."""
    about = subject(MODEL)
    one, all_rounds = training.reach(about, "fp32", 1), training.reach(about, "fp32", training.ROUNDS)
    assert 0 < len(all_rounds) <= len(one)
    assert all(far >= near > 0 for near, far in zip(one, all_rounds, strict=False))
    assert max(all_rounds) < training.GROWN
    assert training.astray(about, "fp32", 0) != training.astray(about, "fp32", 1)


def test_a_free_run_is_followed_as_far_as_its_limits_go() -> None:
    """The first step over its limit is named; beyond the limits nothing is asserted, and the note says so."""
    within = training.followed([0.01, 0.02], [0.01, 0.05], 10)
    assert (within.passed, within.elements) == (True, 20)
    assert within.note == "a free run was followed for 2 of 8 steps, to 0.02 of its way from the oracle's, where rounding goes to 0.05"
    outside = training.followed([0.01, 0.06, 0.9], [0.01, 0.05, 0.05], 10)
    assert (outside.passed, outside.elements) == (False, 20)
    assert outside.reason == "after 2 free steps the parameters are 0.06 of their way apart, rounding explains 0.05"
    assert training.followed([0.01, 0.9], [0.01], 10).passed
    assert not training.followed([np.nan], [0.01], 10).passed
    assert not training.followed([np.inf], [0.01], 10).passed
    assert training.followed([], [], 10).note == "rounding takes over a free run within its first step"


def test_a_mask_that_rounding_cannot_explain_fails() -> None:
    """A ReLU that lets a clearly negative value pass."""
    about, batch = subject(MODEL), training.batches(subject(MODEL))[0]
    state = training.begin(about)
    predicted = training.envelope(
        about.model, state.weights, batch.images, batch.labels, 0.1, training.arithmetic("fp32"), runs=training.NOISY_RUNS
    )
    taps = dict(predicted.exact.taps)
    sound = training.explained(about.model, batch.images, predicted, taps)
    assert (sound.passed, sound.note) == (True, f"0 of {sound.elements:,} masks differ from the oracle's, all explained")
    place = np.unravel_index(np.argmin(taps["bn1"]), taps["bn1"].shape)
    relu = next(name for name in taps if name.endswith("relu") or name == "relu1")
    taps[relu] = taps[relu].copy()
    taps[relu][place] = 1.0
    tier = training.explained(about.model, batch.images, predicted, taps)
    assert not tier.passed
    assert str(tier.reason).startswith(f"{relu}: 1 of ")


def test_distance_is_relative_to_the_way() -> None:
    """Twice as far as the sound run went is 1; what is not finite is infinitely far."""
    start, right = State({"w": np.zeros(4)}, {"w": np.zeros(4)}), State({"w": np.ones(4)}, {"w": np.zeros(4)})
    assert training.distance(start, right, State({"w": np.full(4, 2.0)}, {})) == 1.0
    assert training.distance(start, right, right) == 0.0
    assert training.distance(start, right, State({"w": np.full(4, np.nan)}, {})) == np.inf
    assert training.distance(start, start, right) == np.inf


def test_zero_gamma_is_at_the_end_of_every_branch() -> None:
    """Only the last batch norm before each sum is zero, and all else is as it was."""
    about = subject(MODEL)
    state = training.begin(about)
    zeroed = training_probes.zero_gamma(about.model, state)
    changed = {name for name in state.weights if not np.array_equal(state.weights[name], zeroed.weights[name])}
    assert changed == {f"layer{stage}.0.bn2.{leaf}" for stage in (1, 2, 3) for leaf in ("weight", "bias")}
    assert not any(np.any(zeroed.weights[name]) for name in changed)


def test_batches_do_not_repeat(tmp_path: Path) -> None:
    """Each step sees other images, and all momentum buffers start away from zero."""
    about = subject(MODEL)
    given = training.batches(about)
    assert len({each.images.tobytes() for each in given}) == len(given) == training.TRAJECTORY_STEPS
    assert all(np.all(buffer.std() > 0.01) for buffer in training.begin(about).momentum.values() if buffer.size > 8)
