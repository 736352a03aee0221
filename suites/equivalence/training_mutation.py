"""How much the tests of training see: every fault of training against the oracle's sound training, in float64.

Faults that the spec and ``Sgd`` can express are given to the framework's trainer; the others to ``suites.equivalence.practice``. Each
is judged by what a certificate of training compares, quantity by quantity, from a state in which every momentum buffer and
running statistic is non-zero.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

from impls import models
from impls.implementation import OURS, Sgd
from impls.oracle import training
from impls.oracle.forward import Array
from impls.oracle.training import State
from impls.spec import BatchNorm2d, layers, parameter_names
from impls.weights import file
from impls.weights.initial import initialize
from suites.equivalence.faults.fault import Citation
from suites.equivalence.faults.training import TRAINING, Practice, TrainingFault
from suites.equivalence.practice import Batch, differentiate, train
from suites.equivalence.tiers import MEANING_BOUND, meaning
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, START_TIMEOUT_S
from suites.harness.process import Launch, WorkerProcess

MODEL = "cifar_resnet8"
BATCH = 4
SIZE = 16
"""Of the images, in pixels: rows and columns halve twice, and the smallest maps still have 4."""
SGD = Sgd(momentum=0.9, nesterov=True, weight_decay=5e-4, label_smoothing=0.1)
RATES = (0.1, 0.1, 0.01, 0.01)
"""The learning rate changes between the second step and the third."""

TRAJECTORY_BOUND = 1e-6
"""Of the distance between the parameters after all steps, over the distance they went: a change of 1e-12 grows to 2e-8 in 8 steps
at this learning rate, and every fault that touches a parameter moves them by 1e-3 or more."""

MAGNITUDE_BOUND = 1e-2
"""A float32 mean of 100 errs by up to 100 * 2^-24 = 6e-6, which is 6e-4 of a deviation of 0.01; E[x^2] - E[x]^2 is off by more than it."""

TIERS = ("loss", "gradients", "statistics", "step", "rate change", "trajectory", "zero gamma", "magnitude")
"""What is compared: of one step loss, gradients, running statistics, and parameters with momentum; the same over a change of the
learning rate; parameters after all steps; gradients of a net whose residual branches end in gamma 0; batch norm of a large mean."""

IMPLEMENTATION, PRECISION, MODE = "pytorch", "fp64", "eager"


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A fault, who ran it, how far each quantity moved (relative), which tiers fail, and the losses of all steps."""

    fault: str
    sentence: str
    run_by: str
    citation: Citation | None
    equivalent: str | None
    signals: dict[str, float] = field(default_factory=dict)
    killed: dict[str, bool] = field(default_factory=dict)
    losses: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """The sound training: practice, where it starts, its batches, and a start with zero gamma."""

    practice: Practice
    state: State
    zero_gamma: State
    batches: tuple[Batch, ...]


def course() -> Course:
    """A small residual net from fresh weights, with momentum buffers and running statistics that are not trivial."""
    model = models.get(MODEL)
    generator = np.random.Generator(np.random.PCG64(3))
    weights: dict[str, Array] = {name: tensor.astype(np.float64) for name, tensor in initialize(model, 1).items()}
    for layer in layers(model.body):
        if isinstance(layer, BatchNorm2d):
            weights[f"{layer.name}.running_mean"] = generator.normal(size=layer.channels)
            weights[f"{layer.name}.running_var"] = generator.uniform(0.5, 2, layer.channels)
            weights[f"{layer.name}.bias"] = 0.1 * generator.normal(size=layer.channels)
    weights = {name: tensor.astype(np.float32).astype(np.float64) for name, tensor in weights.items()}
    momentum = {
        name: (0.1 * generator.normal(size=weights[name].shape)).astype(np.float32).astype(np.float64) for name in parameter_names(model)
    }
    zeroed = {
        name: np.zeros_like(tensor) if name.endswith("bn2.weight") or name.endswith(".bias") else tensor for name, tensor in weights.items()
    }
    images = generator.normal(size=(len(RATES), BATCH, model.input_chw[0], SIZE, SIZE)).astype(np.float32)
    labels = generator.integers(0, model.classes, (len(RATES), BATCH))
    batches = tuple(Batch(image, label) for image, label in zip(images, labels, strict=True))
    return Course(Practice(model, SGD), State(weights, momentum), State(zeroed, momentum), batches)


@dataclass(frozen=True, slots=True)
class Found:
    """What one trainer did: derivatives at the start, states after one, three and all steps, zero-gamma gradients, losses.

    The second state is two steps and one beyond a change of the learning rate.
    """

    loss: float
    gradients: Mapping[str, Array]
    zero_gamma: Mapping[str, Array]
    states: tuple[State, State, State]
    losses: tuple[float, ...]


def by_practice(practice: Practice, about: Course) -> Found:
    """Train in NumPy."""
    start = differentiate(practice, about.state.weights, about.batches[0])
    zero = differentiate(practice, about.zero_gamma.weights, about.batches[0])
    one, losses = train(practice, about.state, about.batches[:1], RATES)
    three, more = train(practice, one, about.batches[1:3], RATES, first=1)
    last, rest = train(practice, three, about.batches[3:], RATES, first=3)
    return Found(start.loss, start.gradients, zero.gradients, (one, three, last), (*losses, *more, *rest))


def by_framework(practice: Practice, about: Course, worker: WorkerProcess, folder: Path) -> Found:
    """Train in the framework, which is told the practice's network, numbers and rates."""

    def begin(state: State) -> None:
        path, held = folder / "weights.safetensors", folder / "state.safetensors"
        weights = {name: tensor.astype(np.float32) for name, tensor in state.weights.items()}
        file.save(path, dataclasses.replace(practice.model, name="mutant"), weights, source="a fault", preprocess={}, licence="CC0-1.0")
        save({**{f"weights:{n}": t for n, t in state.weights.items()}, **{f"momentum:{n}": t for n, t in state.momentum.items()}}, held)
        shape = list(about.batches[0].images.shape)
        sgd = dataclasses.asdict(practice.sgd)
        worker.call("prepare_training", BUILD_TIMEOUT_S, weights=str(path), sgd=sgd, mode=MODE, input_shape=shape, state=str(held))

    def derivatives() -> tuple[float, dict[str, Array]]:
        batch, out = folder / "batch.safetensors", folder / "derivatives.safetensors"
        save({"images": about.batches[0].images, "labels": about.batches[0].labels}, batch)
        loss = worker.call("differentiate", CALL_TIMEOUT_S, batch=str(batch), out=str(out))["loss"]
        return loss, _kind(load_file(out), "gradients")

    def steps(first: int, last: int) -> tuple[State, list[float]]:
        batches, out = folder / "batches.safetensors", folder / "trained.safetensors"
        chosen = about.batches[first:last]
        save({"images": np.stack([each.images for each in chosen]), "labels": np.stack([each.labels for each in chosen])}, batches)
        rates = [practice.rate(RATES, k) for k in range(first, last)]
        losses = worker.call("train", CALL_TIMEOUT_S, batches=str(batches), learning_rates=rates)["losses"]
        worker.call("trained", CALL_TIMEOUT_S, out=str(out))
        arrays = load_file(out)
        return State(_kind(arrays, "weights"), _kind(arrays, "momentum")), losses

    begin(about.zero_gamma)
    _, zero = derivatives()
    begin(about.state)
    loss, gradients = derivatives()
    states, losses = [], []
    for first, last in ((0, 1), (1, 3), (3, len(RATES))):
        state, more = steps(first, last)
        states.append(state)
        losses += more
    return Found(loss, gradients, zero, (states[0], states[1], states[2]), tuple(losses))


def _kind(arrays: Mapping[str, Array], kind: str) -> dict[str, Array]:
    return {name.removeprefix(f"{kind}:"): array for name, array in arrays.items() if name.startswith(f"{kind}:")}


def judge(sound: Found, found: Found, about: Course) -> tuple[dict[str, float], dict[str, bool]]:
    """How far each quantity is off, relative to its rms, and which tiers fail."""
    parameters = parameter_names(about.practice.model)
    statistics = [name for name in about.state.weights if name not in parameters]

    def moved(found: Found, place: int) -> dict[str, Array]:
        state = found.states[place]
        return {name: state.weights[name] - about.state.weights[name] for name in parameters}

    def whole(found: Found, place: int) -> dict[str, Array]:
        return moved(found, place) | {f"momentum:{name}": found.states[place].momentum[name] for name in parameters}

    compared = {
        "loss": ({"loss": np.array([sound.loss])}, {"loss": np.array([found.loss])}),
        "gradients": (sound.gradients, found.gradients),
        "statistics": tuple({name: each.states[0].weights[name] for name in statistics} for each in (sound, found)),
        "step": (whole(sound, 0), whole(found, 0)),
        "rate change": (whole(sound, 1), whole(found, 1)),
        "zero gamma": (sound.zero_gamma, found.zero_gamma),
    }
    signals, killed = {}, {}
    for tier, (expected, given) in compared.items():
        answer = meaning(expected, {name: np.asarray(given[name]) for name in expected})
        # Over many steps rounding grows; three steps stay below the trajectory's bound.
        bound = TRAJECTORY_BOUND if tier == "rate change" else MEANING_BOUND
        signals[tier] = math.inf if answer.worst_error is None else answer.worst_error
        killed[tier] = signals[tier] > bound
    far = sum(float(np.sum((moved(sound, 2)[name] - moved(found, 2)[name]) ** 2)) for name in parameters)
    gone = sum(float(np.sum(moved(sound, 2)[name] ** 2)) for name in parameters)
    signals["trajectory"] = math.sqrt(far / gone)
    killed["trajectory"] = not signals["trajectory"] <= TRAJECTORY_BOUND
    return signals, killed


def magnitude(practice: Practice) -> float:
    """Relative error of batch norm's forward pass on values of mean 100 and deviation 0.01, the probe that cancels."""
    layer = next(layer for layer in layers(practice.model.body) if isinstance(layer, BatchNorm2d))
    generator = np.random.Generator(np.random.PCG64(4))
    x = (100 + 0.01 * generator.normal(size=(8, layer.channels, 8, 8))).astype(np.float32).astype(np.float64)
    ones = {"weight": np.ones(layer.channels), "bias": np.zeros(layer.channels)}
    tensors = ones | {"running_mean": np.zeros(layer.channels), "running_var": np.ones(layer.channels)}
    sound = training.evaluate(layer, (x,), tensors)
    return float(np.sqrt(np.mean((practice.evaluate(layer, (x,), tensors) - sound) ** 2) / np.mean(sound**2)))


def is_declarative(practice: Practice, sound: Practice) -> bool:
    """Whether a framework can be told it: only the network, the numbers of ``Sgd`` and the rates differ."""
    return dataclasses.replace(practice, model=sound.model, sgd=sound.sgd, rate=sound.rate) == sound


def run(python: Path, threads: int, say: Callable[[str], None], faults: Sequence[TrainingFault] = TRAINING) -> list[TrainingRow]:
    """The matrix of training, the sound trainers first.

    Raises:
        WorkerError: the implementation did not answer.
    """
    about = course()
    sound = by_practice(about.practice, about)
    say(f"{MODEL}: {len(faults)} faults of training")
    rows: list[TrainingRow] = []
    with TemporaryDirectory(prefix="levelfield-") as name, threadpool_limits(1):  # the products are small
        folder = Path(name)
        launch = Launch(
            python, f"{OURS}.{IMPLEMENTATION}", "cpu", PRECISION, threads, True, folder / "log", {"OMP_NUM_THREADS": str(threads)}
        )
        with WorkerProcess(launch) as worker:
            worker.call("start", START_TIMEOUT_S)
            found = by_framework(about.practice, about, worker, folder)
            signals, killed = judge(sound, found, about)
            rows.append(TrainingRow("-", "the sound trainer", IMPLEMENTATION, None, None, signals, killed, found.losses))
            for fault in faults:
                practice = fault.change(about.practice)
                told = is_declarative(practice, about.practice) and all(
                    layer.running_variance == "unbiased" for layer in layers(practice.model.body) if isinstance(layer, BatchNorm2d)
                )
                found = by_framework(practice, about, worker, folder) if told else by_practice(practice, about)
                signals, killed = judge(sound, found, about)
                signals["magnitude"] = magnitude(practice)
                killed["magnitude"] = signals["magnitude"] > MAGNITUDE_BOUND
                by = IMPLEMENTATION if told else "NumPy"
                rows.append(TrainingRow(fault.id, fault.sentence, by, fault.citation, fault.equivalent, signals, killed, found.losses))
    return rows
