"""One suite that every implementation that trains must pass, in every mode: what it computes in float64 is the oracle's, to 1e-10.

Each step is teacher-forced: the oracle takes it from the implementation's own state, so nothing adds up. Changes are compared, not
values, so that a step is seen however small it is beside what it changes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from impls import models
from impls.implementation import TRAINING_PRECISIONS, Derivatives, Sgd
from impls.oracle import training as oracle
from impls.spec import (
    NO_PADDING,
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Block,
    Concat,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    ModelSpec,
    Padding,
    Relu,
    as_json,
    from_json,
    parameter_names,
)
from impls.weights import synthesis
from suites.equivalence.tiers import Tier, meaning
from suites.equivalence.trainer import Batch, LiveTrainer
from suites.equivalence.training import SGD, beside_magnitudes, local
from suites.harness import inputs
from suites.harness.process import WorkerError
from tests.frameworks import ARMS, DEVICE, MANIFESTS, Arm, Frameworks, live_frameworks  # noqa: F401 - the fixture

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

TRAINING = tuple(arm for arm in ARMS if MANIFESTS[arm.implementation].trains and arm.precision == "fp64")
EAGER = tuple(arm for arm in TRAINING if not MANIFESTS[arm.implementation].modes[arm.mode].needs and arm.mode != "xla")
"""One quick arm of each implementation; the other modes differ from it in the step alone."""

NESTEROV = Sgd(momentum=0.9, nesterov=True, weight_decay=5e-4, label_smoothing=0.1)
HEAVY_BALL = Sgd(momentum=0.8, nesterov=False, weight_decay=0.02, label_smoothing=0.0)
RATES = (0.1, 0.03)


def each(*arms: Arm) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("arm", arms, ids=str)


def edited(model: ModelSpec, change: Callable[[str, Any], Any]) -> ModelSpec:
    """The model with ``change(field, value)`` for every value of every layer, under a name that no catalogue has."""

    def edit(value: Any, field: str = "") -> Any:
        if isinstance(value, dict):
            return {name: edit(item, name) for name, item in value.items()}
        return [edit(item) for item in value] if isinstance(value, list) else change(field, value)

    document = as_json(model)
    return from_json({**document, "name": f"edited {model.name}", "body": edit(document["body"])})


def with_field(model: ModelSpec, field: str, value: Any) -> ModelSpec:
    """The model with ``field`` set in every layer that has it."""
    return edited(model, lambda name, old: value if name == field else old)


WIDTHS = ("in_channels", "out_channels", "channels", "in_features")


def _conv(name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[Layer, ...]:
    """A convolution with a bias, batch norm and ReLU, as VGG has them."""
    padding = Padding.same_on_all_sides(kernel // 2)
    conv = Conv2d(f"{name}.conv", inputs, outputs, kernel, stride, padding, bias=True)
    return conv, BatchNorm2d(f"{name}.bn", outputs, 1e-3, 0.1, "unbiased"), Relu(f"{name}.relu")


def _head(name: str, channels: int) -> tuple[Layer, ...]:
    """GoogLeNet's auxiliary head, narrower."""
    return (
        AdaptiveAvgPool2d(f"{name}.pool", 4),
        *_conv(f"{name}.conv", channels, 6, 1),
        Flatten(f"{name}.flatten", 6, 4, 4),
        Linear(f"{name}.fc1", 96, 16),
        Relu(f"{name}.relu"),
        Linear(f"{name}.fc2", 16, 10),
    )


_MIXED = (
    _conv("mixed.a", 12, 5, 1),
    (*_conv("mixed.b", 12, 4, 1), *_conv("mixed.c", 4, 7, 3)),
    (MaxPool2d("mixed.pool", 3, 1, Padding.same_on_all_sides(1)), *_conv("mixed.d", 12, 3, 1)),
)
_MAIN = (GlobalAvgPool2d("avgpool"), Linear("fc", 15, 10))
_BEHIND = (
    MaxPool2d("pool", 3, 2, Padding(0, 1, 0, 1)),
    Block("mixed", _MIXED, Concat("mixed.cat"), ()),
    Block("aux2", (_MAIN, _head("aux2", 15)), Concat("aux2.logits"), ()),
)
HAND_MADE = {
    # GoogLeNet in small: a pool in ceil mode, branches side by side, and heads behind adaptive pools of 14 x 14 and of 7 x 7.
    "heads": (*_conv("conv1", 3, 12, 5, 2), Block("aux1", (_BEHIND, _head("aux1", 12)), Concat("aux1.logits"), ())),
    # AlexNet and VGG in small: pools whose windows overlap and whose do not, maps that are flattened, linear layers.
    "flattened": (
        Conv2d("conv1", 3, 8, 5, 2, Padding.same_on_all_sides(2), bias=True),
        Relu("relu1"),
        MaxPool2d("pool1", 3, 2, NO_PADDING),
        *_conv("conv2", 8, 12, 3),
        MaxPool2d("pool2", 2, 2, NO_PADDING),
        Flatten("flatten", 12, 3, 3),
        Linear("fc1", 108, 32),
        Relu("relu2"),
        Linear("fc2", 32, 10),
    ),
}


@functools.cache
def net(name: str) -> ModelSpec:
    """A model, or one of ``HAND_MADE``; "thin NAME" has an eighth of its channels."""
    if name in HAND_MADE:
        return ModelSpec(name, (3, 28, 28), 10, HAND_MADE[name], "the conformance tests", (0.3, 0.3) if name == "heads" else ())
    model = models.get(name.removeprefix("thin "))
    return edited(model, lambda field, value: value // 8 if field in WIDTHS and value > 3 else value) if name != model.name else model


@dataclass(frozen=True, slots=True)
class Case:
    """A network, where its training stands, and a batch for every one of ``RATES``: images (2, N, 3, H, W) and labels (2, N)."""

    model: ModelSpec
    state: oracle.State
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def batch(self, index: int) -> Batch:
        """What is trained on at a rate of ``RATES``."""
        return Batch(self.images[index], self.labels[index])


@functools.cache
def case(name: str, batch: int, size: int) -> Case:
    """Weights in generic position with momentum buffers, in doubles that no float32 holds."""
    model, generator = net(name), np.random.default_rng(7)
    weights = {key: tensor * (1 + 1e-9 * generator.random(tensor.shape)) for key, tensor in synthesis.synthesize(model, 0).items()}
    momentum = {key: 0.1 * generator.standard_normal(weights[key].shape) for key in parameter_names(model)}
    images = generator.standard_normal((len(RATES), batch, 3, size, size)).astype(np.float32)
    return Case(model, oracle.State(weights, momentum), images, generator.integers(0, model.classes, (len(RATES), batch)))


SMALL = ("cifar_resnet8", 4, 32)
# 64 x 64 leaves 2 x 2 of an ImageNet net's images: its last batch norms see 8 values a channel, and 8/7 between the variances.
IMAGENET = ("thin resnet18", 2, 64)
HEADS, FLATTENED = ("heads", 2, 28), ("flattened", 2, 28)


def training(frameworks: Frameworks, arm: Arm, given: Case, sgd: Sgd) -> LiveTrainer:
    """A trainer of the case in the arm's worker."""
    worker = frameworks.worker(arm.implementation, arm.precision)
    return LiveTrainer(worker, frameworks.folder, given.model, given.state, sgd, arm.mode, given.images.shape[1:])


def passed(tier: Tier) -> None:
    assert tier.passed, tier.reason
    assert tier.elements > 0


def as_array(loss: float) -> Arrays:
    return {"loss": np.array([loss])}


def changes(before: oracle.State, after: oracle.State) -> dict[str, Arrays]:
    """What a step changed, by kind."""
    new, kinds = dict(after.weights), {}
    for kind in ("running_mean", "running_var", ""):
        names = [name for name in new if name.endswith(kind)]
        kinds[kind or "parameters"] = {name: new.pop(name) - before.weights[name] for name in names}
    return kinds | {"momentum": after.momentum}


def judged(given: Case, found: oracle.State, loss: float, index: int, sgd: Sgd) -> dict[str, Tier]:
    """E2 of one step from the state of ``given``, by kind."""
    expected, derivatives = oracle.step(given.model, given.state, given.images[index], given.labels[index], sgd, RATES[index])
    right, seen = changes(given.state, expected), changes(given.state, found)
    return {"loss": meaning(as_array(derivatives.loss), as_array(loss)), **{kind: meaning(right[kind], seen[kind]) for kind in right}}


def assert_steps(frameworks: Frameworks, arm: Arm, given: Case, sgd: Sgd) -> None:
    """Every step of ``RATES``, each judged from where the one before it left the implementation."""
    trainer = training(frameworks, arm, given, sgd)
    for index, rate in enumerate(RATES):
        before = dataclasses.replace(given, state=trainer.state())
        (loss,) = trainer.steps([given.batch(index)], [rate])
        for tier in judged(before, trainer.state(), loss, index, sgd).values():
            passed(tier)


@each(*TRAINING)
def test_steps(frameworks: Frameworks, arm: Arm) -> None:
    """Loss, parameters, momentum buffers and running statistics of two steps at two rates, in every mode."""
    assert_steps(frameworks, arm, case(*SMALL), NESTEROV)


@each(*EAGER)
def test_steps_of_an_imagenet_net(frameworks: Frameworks, arm: Arm) -> None:
    """The same with a max-pool, projections, eight values of each channel in the last batch norms, and another ``Sgd``."""
    assert_steps(frameworks, arm, case(*IMAGENET), HEAVY_BALL)


@each(*EAGER)
def test_steps_with_auxiliary_heads(frameworks: Frameworks, arm: Arm) -> None:
    """The same with three heads, whose losses are weighted."""
    assert_steps(frameworks, arm, case(*HEADS), HEAVY_BALL)


@each(*EAGER)
def test_biased_running_variance(frameworks: Frameworks, arm: Arm) -> None:
    """A spec that keeps the biased variance is trained so, or refused in a sentence."""
    given = case(*SMALL)
    biased = dataclasses.replace(given, model=with_field(given.model, "running_variance", "biased"))
    if arm.implementation == "pytorch":
        with pytest.raises(WorkerError, match=r"^bn1: nn\.BatchNorm2d keeps the unbiased running variance only$") as caught:
            training(frameworks, arm, biased, NESTEROV)
        assert caught.value.kind == "cannot"
    else:
        assert_steps(frameworks, arm, biased, NESTEROV)


def same(first: oracle.State, second: oracle.State) -> bool:
    """Whether two states hold the same bytes under the same names."""
    pairs = ((first.weights, second.weights), (first.momentum, second.momentum))
    return all(
        one.keys() == other.keys()
        and all((one[name].dtype, one[name].tobytes()) == (other[name].dtype, other[name].tobytes()) for name in one)
        for one, other in pairs
    )


def derivatives_of(frameworks: Frameworks, arm: Arm, given: Case) -> Derivatives:
    """The derivatives at the first batch, judged, of a trainer that is afterwards as it was."""
    trainer = training(frameworks, arm, given, NESTEROV)
    assert same(trainer.state(), given.state)
    found = trainer.differentiate(given.batch(0))
    assert same(trainer.state(), given.state)
    right = oracle.differentiate(given.model, given.state.weights, given.images[0], given.labels[0], NESTEROV.label_smoothing)
    passed(meaning(as_array(right.loss), as_array(found.loss)))
    passed(meaning(right.taps, found.taps))
    passed(meaning(right.cotangents, found.cotangents))
    passed(meaning(*(beside_magnitudes(given.model, right.cotangents, each.gradients) for each in (right, found))))
    return found


@each(*EAGER)
@pytest.mark.parametrize("net", [SMALL, IMAGENET, HEADS, FLATTENED], ids=lambda net: net[0])
def test_derivatives(frameworks: Frameworks, arm: Arm, net: tuple[str, int, int]) -> None:
    """Loss, every tap, every cotangent and every gradient; the state goes in and comes out to the bit, and is left alone."""
    derivatives_of(frameworks, arm, case(*net))


@each(*(dataclasses.replace(arm, precision=precision) for arm in EAGER for precision in ("fp32", "bf16")))
@pytest.mark.parametrize("net", [HEADS, FLATTENED, IMAGENET], ids=lambda net: net[0])
def test_rounding_of_derivatives(frameworks: Frameworks, arm: Arm, net: tuple[str, int, int]) -> None:
    """E3 of the same in fp32 and mixed precision: every layer forward and backward, and the loss of several heads, on photographs.

    In bf16 TensorFlow rounds a convolution before its bias is added and again behind it, JAX does where XLA does not leave it out, and the
    tier says so.
    """
    given = case(*net)
    state = oracle.State(
        *({name: np.float32(array) for name, array in kind.items()} for kind in (given.state.weights, given.state.momentum))
    )
    batch = Batch(inputs.photographs(*given.images.shape[3:]).pool[: given.images.shape[1]], given.labels[0])
    found = training(frameworks, arm, dataclasses.replace(given, state=state), SGD).differentiate(batch)
    tier = local(given.model, state, batch, found, arm.precision)
    passed(tier)
    apart = "are added once the sum is rounded" in str(tier.note)
    twice = arm.implementation != "pytorch" and arm.precision == "bf16" and net is not IMAGENET
    assert apart == twice or (arm.implementation == "jax" and twice)


@each(*EAGER)
def test_derivative_of_relu_at_zero(frameworks: Frameworks, arm: Arm) -> None:
    """It is 0: branches that add nothing give ReLUs exact zeros, and the oracle with a derivative of 1 there does not agree."""
    given = case(*SMALL)
    silent = {name: tensor * (not name.endswith(("bn2.weight", "bn2.bias"))) for name, tensor in given.state.weights.items()}
    zero_gamma = dataclasses.replace(given, state=oracle.State(silent, given.state.momentum))
    found = derivatives_of(frameworks, arm, zero_gamma)
    zeros = {
        node.layer.name: np.where(found.taps[node.inputs[0]] == 0, 1.0, found.taps[node.layer.name])
        for node in oracle.wiring(given.model)
        if isinstance(node.layer, Relu) and node.inputs[0] is not None
    }
    smoothing = NESTEROV.label_smoothing
    other = oracle.differentiate(given.model, silent, given.images[0], given.labels[0], smoothing, masks={**found.taps, **zeros})
    assert not meaning(other.gradients, found.gradients).passed


@dataclass(frozen=True, slots=True)
class Fault:
    """What one implementation does instead, and the kinds in which it must show; in no other may it."""

    shows: tuple[str, ...]
    model: Callable[[ModelSpec], ModelSpec] = lambda model: model
    sgd: Sgd = NESTEROV
    state: Callable[[oracle.State], oracle.State] = lambda state: state
    after: Callable[[oracle.State, oracle.State], oracle.State] = lambda before, after: after
    rate: float = RATES[1]


EVERYTHING = ("loss", "running_mean", "running_var", "parameters", "momentum")


def decoupled(before: oracle.State, after: oracle.State) -> oracle.State:
    """The parameters with the decay taken off beside a step that knew none."""
    decay = NESTEROV.weight_decay * RATES[1]
    return oracle.State(
        after.weights | {name: after.weights[name] - decay * before.weights[name] for name in after.momentum}, after.momentum
    )


def rate_in_velocity(state: oracle.State) -> oracle.State:
    """Buffers as they act where they hold the learning rate of the step before, as Keras's do."""
    return oracle.State(state.weights, {name: RATES[0] / RATES[1] * velocity for name, velocity in state.momentum.items()})


FAULTS = {
    "none": Fault(()),
    "batch-norm momentum of the old value": Fault(("running_mean", "running_var"), model=lambda model: with_field(model, "momentum", 0.9)),
    "biased running variance": Fault(("running_var",), model=lambda model: with_field(model, "running_variance", "biased")),
    "epsilon 1.001e-5": Fault(EVERYTHING, model=lambda model: with_field(model, "eps", 1.001e-5)),
    "heavy ball": Fault(("parameters",), sgd=dataclasses.replace(NESTEROV, nesterov=False)),
    "momentum 0.91": Fault(("parameters", "momentum"), sgd=dataclasses.replace(NESTEROV, momentum=0.91)),
    "no weight decay": Fault(("parameters", "momentum"), sgd=dataclasses.replace(NESTEROV, weight_decay=0.0)),
    "decoupled weight decay": Fault(("parameters", "momentum"), sgd=dataclasses.replace(NESTEROV, weight_decay=0.0), after=decoupled),
    "no label smoothing": Fault(("loss", "parameters", "momentum"), sgd=dataclasses.replace(NESTEROV, label_smoothing=0.0)),
    "learning rate of the step before": Fault(("parameters",), rate=RATES[0]),
    "learning rate in the velocity": Fault(("parameters", "momentum"), state=rate_in_velocity),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(frameworks: Frameworks, fault: str) -> None:
    """Each fault fails the comparison in the kinds in which it must show, and in no other."""
    given, faulty = case(*SMALL), FAULTS[fault]
    changed = dataclasses.replace(given, model=faulty.model(given.model), state=faulty.state(given.state))
    trainer = training(frameworks, Arm("tensorflow", "graph", "fp64"), changed, faulty.sgd)
    (loss,) = trainer.steps([given.batch(1)], [faulty.rate])
    tiers = judged(given, faulty.after(given.state, trainer.state()), loss, 1, NESTEROV)
    assert {kind for kind, tier in tiers.items() if not tier.passed} == set(faulty.shows)


MEAN, DEVIATION, VALUES = 100.0, 0.01, 8 * 4 * 4
R6_BOUND = (VALUES**0.5 + 4) * 2.0**-24
"""Of the mean, relative: a sum of n terms in any order is off by sqrt(n) roundings (Higham and Mary, doi 10.1137/18M1226312), and
four more are of numbers as large as it: of the mean, of mean and input in deviations, and of their difference."""


def r6() -> Case:
    """Batch norm of images whose deviation is a ten-thousandth of their mean, in float32."""
    model = ModelSpec("r6", (3, 4, 4), 5, (BatchNorm2d("n", 3, 1e-9, 0.1, "unbiased"), GlobalAvgPool2d("p"), Linear("fc", 3, 5)), "R6")
    generator = np.random.default_rng(3)
    images = (MEAN + DEVIATION * generator.standard_normal((2, 8, 3, 4, 4))).astype(np.float32)
    weights = {name: tensor.astype(np.float32) for name, tensor in synthesis.synthesize(with_field(model, "eps", 1e-5), 0).items()}
    weights |= {f"n.{leaf}": np.full(3, value, np.float32) for leaf, value in (("running_mean", 0.0), ("running_var", 0.0))}
    weights |= {f"n.{leaf}": np.full(3, value, np.float32) for leaf, value in (("weight", 1.0), ("bias", 0.0))}
    momentum = {name: np.zeros_like(weights[name]) for name in parameter_names(model)}
    return Case(model, oracle.State(weights, momentum), images, generator.integers(0, 5, (2, 8)))


def largest(found: Array, right: Array) -> float:
    return float(np.max(np.abs(found - right)))


@each(*(dataclasses.replace(arm, precision="fp32") for arm in TRAINING))
def test_a_mean_far_from_zero_in_float32(frameworks: Frameworks, arm: Arm) -> None:
    """R6: the batch's variance is not lost in the square of its mean, as it is where the one is taken from the other."""
    given = r6()
    images, labels = given.images[0], given.labels[0]
    trainer = training(frameworks, arm, given, NESTEROV)
    right = oracle.differentiate(given.model, given.state.weights, images, labels, NESTEROV.label_smoothing)
    found = trainer.differentiate(given.batch(0))
    assert {array.dtype for array in (*found.taps.values(), *found.cotangents.values(), *found.gradients.values())} == {np.dtype("float32")}
    of_deviation = R6_BOUND * MEAN / DEVIATION
    assert largest(found.taps["n"], right.taps["n"]) < of_deviation
    trainer.steps([given.batch(0)], [0.1])
    running, after = oracle.statistics_after(given.model, given.state.weights, images, right.taps), trainer.state().weights
    assert {array.dtype for array in after.values()} == {np.dtype("float32")}
    assert largest(after["n.running_mean"] / running["n.running_mean"], np.ones(3)) < R6_BOUND
    assert largest(after["n.running_var"] / running["n.running_var"], np.ones(3)) < of_deviation
    squares = np.mean(images * images, axis=(0, 2, 3)) - np.mean(images, axis=(0, 2, 3)) ** 2
    assert largest(squares / (DEVIATION * DEVIATION), np.ones(3)) > 100 * of_deviation


@each(*EAGER)
def test_divergence_is_reported(frameworks: Frameworks, arm: Arm) -> None:
    """A step of infinite length leaves a loss that is no number, and the loss is reported as that."""
    given = case(*SMALL)
    trainer = training(frameworks, arm, given, NESTEROV)
    assert np.isfinite(trainer.steps([given.batch(0)], [np.inf]))
    assert np.isnan(trainer.steps([given.batch(1)], [0.1]))


def refused(frameworks: Frameworks, arm: Arm, given: Case, sgd: Sgd, message: str) -> None:
    with pytest.raises(WorkerError, match=message) as caught:
        training(frameworks, arm, given, sgd)
    assert caught.value.kind == "cannot"
    assert frameworks.worker(arm.implementation, arm.precision).alive


@each(*EAGER)
def test_refusals(frameworks: Frameworks, arm: Arm) -> None:
    """An unknown mode, a narrow precision and a batch without a variance are refused in a sentence, and the worker lives on."""
    given = case(*SMALL)
    known = " and ".join(MANIFESTS[arm.implementation].modes)
    refused(frameworks, dataclasses.replace(arm, mode="warp"), given, NESTEROV, f"has no mode 'warp'; it has {known}$")
    message = f"^training is done in {', '.join(TRAINING_PRECISIONS)}, not in fp16$"
    refused(frameworks, dataclasses.replace(arm, precision="fp16"), given, NESTEROV, message)
    single = dataclasses.replace(given, images=given.images[:, :1, :, :4, :4], labels=given.labels[:, :1])
    refused(frameworks, arm, single, NESTEROV, r"^layer3\.0\.bn1: one value of each channel has no variance")


def test_no_momentum_in_pytorch(frameworks: Frameworks) -> None:
    """torch.optim.SGD has no buffer to show then, and it says so."""
    still = Sgd(0.0, False, 0.0, 0.0)
    refused(frameworks, Arm("pytorch", "eager", "fp64"), case(*SMALL), still, r"torch\.optim\.SGD keeps no buffers")


@each(*(Arm(name, found.default_mode, "fp64") for name, found in MANIFESTS.items() if not found.trains))
def test_no_training(frameworks: Frameworks, arm: Arm) -> None:
    """An implementation whose manifest promises no training refuses it with the reason."""
    refused(frameworks, arm, case(*SMALL), NESTEROV, "^this implementation has no training$")


def test_every_implementation_is_here() -> None:
    """The suite trains in every implementation on disk, in every mode, but those whose manifests say that they do not train."""
    assert {(arm.implementation, arm.mode) for arm in TRAINING} == {
        (name, mode) for name, found in MANIFESTS.items() if found.trains for mode in found.modes
    }
    assert {arm.implementation for arm in EAGER} == {arm.implementation for arm in TRAINING}
    assert all("fp32" in MANIFESTS[arm.implementation].devices[DEVICE].precisions for arm in TRAINING)
