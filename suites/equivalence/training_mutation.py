"""How much the certificate of training sees: every fault of training, in float64 quantity by quantity, in fp32 and bf16 tier by tier.

Faults that the spec and ``Sgd`` can express are given to the framework's trainer; the others to ``suites.equivalence.practice``. In
float64 each is judged by what a certificate of training compares, from a state in which every momentum buffer and running statistic
is non-zero. In fp32 and bf16 it goes through the certificate's own E3 and E5, and through E3 in the places where a fault shows that is
small elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from threadpoolctl import threadpool_limits

from impls import models
from impls.implementation import OURS, Sgd
from impls.oracle.backward_envelope import Envelope, envelope
from impls.oracle.forward import Array
from impls.oracle.rounding import arithmetic, as_taken
from impls.oracle.training import State
from impls.spec import BatchNorm2d, ModelSpec, layers, parameter_names
from impls.weights.initial import initialize
from suites.equivalence import training
from suites.equivalence.faults.fault import Citation
from suites.equivalence.faults.training import TRAINING, Practice, TrainingFault
from suites.equivalence.mutation import SIGNAL, SOUND
from suites.equivalence.practice import PracticeTrainer
from suites.equivalence.tiers import MEANING_BOUND, meaning
from suites.equivalence.trainer import Batch, LiveTrainer, Trainer
from suites.equivalence.training import SGD, TrainingExamination, as_held
from suites.equivalence.training_probes import WHERE, places
from suites.harness.context import START_TIMEOUT_S, Subject, subject
from suites.harness.process import Launch, WorkerProcess

MODEL = "cifar_resnet8"
BATCH = 4
SIZE = 16
"""Of the images, in pixels: rows and columns halve twice, and the smallest maps still have 4."""
RATES = (0.1, 0.1, 0.01, 0.01)
"""The learning rate changes between the second step and the third."""

TRAJECTORY_BOUND = 1e-6
"""Of the distance between the parameters after all steps, over the distance they went: a change of 1e-12 grows to 2e-8 in 8 steps
at this learning rate, and every fault that touches a parameter moves them by 1e-3 or more."""

TIERS = ("loss", "gradients", "statistics", "step", "rate change", "trajectory", "zero gamma")
"""What is compared in float64: of one step loss, gradients, running statistics, and parameters with momentum; the same over a change of
the learning rate; parameters after all steps; gradients of a net whose residual branches end in gamma 0."""

ROUNDED_TIERS = ("E3", "E5", *WHERE)
"""What is compared where rounding shows: the certificate's E3 and E5, and the probes of its E3."""

IMPLEMENTATION, MODE = "pytorch", "eager"
ROUNDED = ("fp32", "bf16")
PRECISIONS = ("fp64", *ROUNDED)

Change = Callable[[Practice], Practice]
Begin = Callable[[State], Trainer]


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A fault, who ran it, how far each quantity moved in float64 (relative) and which of them fail, and the losses of all steps.

    ``noticed`` is, by precision of ``ROUNDED``, how far a step is off in deviations of its noise, computed in float64, and ``refused``
    which tiers fail there. ``hidden`` says why the first is little in fp32.
    """

    fault: str
    sentence: str
    run_by: str
    citation: Citation | None
    equivalent: str | None
    hidden: str | None = None
    signals: dict[str, float] = field(default_factory=dict)
    killed: dict[str, bool] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    noticed: dict[str, float] = field(default_factory=dict)
    refused: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether nothing may be reported: there is no fault, or one that is no fault."""
        return self.fault == SOUND or self.equivalent is not None

    @property
    def seen(self) -> bool:
        """Whether anything fails in any precision."""
        return any(self.killed.values()) or any(self.refused.values())

    @property
    def unseen(self) -> tuple[str, ...]:
        """Where nothing fails though the fault shows, or, in fp32, no reason is given why it does not."""
        missed = [precision for precision in ROUNDED if not (self.clean or self.refused.get(precision))]
        unexplained = {"fp32"} if self.hidden is None else set()
        return tuple(precision for precision in missed if self.noticed.get(precision, 0.0) >= SIGNAL or precision in unexplained)


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


def found_by(begin: Begin, practice: Practice, about: Course) -> Found:
    """Train in float64; ``begin`` gives a trainer, and the practice says at which rates."""
    zero = begin(about.zero_gamma).differentiate(about.batches[0])
    trainer = begin(about.state)
    start = trainer.differentiate(about.batches[0])
    states, losses = [], []
    for first, last in ((0, 1), (1, 3), (3, len(RATES))):
        losses += trainer.steps(about.batches[first:last], [practice.rate(RATES, k) for k in range(first, last)])
        states.append(trainer.state())
    return Found(start.loss, start.gradients, zero.gradients, (states[0], states[1], states[2]), tuple(losses))


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


def is_declarative(practice: Practice, sound: Practice) -> bool:
    """Whether a framework can be told it: only the network, the numbers of ``Sgd`` and the rates differ.

    PyTorch has no biased running variance.
    """
    unbiased = all(layer.running_variance == "unbiased" for layer in layers(practice.model.body) if isinstance(layer, BatchNorm2d))
    return unbiased and dataclasses.replace(practice, model=sound.model, sgd=sound.sgd, rate=sound.rate) == sound


class Misled:
    """A trainer with a practice's schedule in E5, where each rate occurs once."""

    def __init__(self, trainer: Trainer, practice: Practice) -> None:
        given = training.NOISE_RATES
        self._trainer, self._rates = trainer, {rate: practice.rate(given, k) for k, rate in enumerate(given)}
        self.differentiate, self.state = trainer.differentiate, trainer.state

    def steps(self, batches: Sequence[Batch], learning_rates: Sequence[float]) -> list[float]:
        """See ``Trainer``."""
        return self._trainer.steps(batches, [self._rates.get(rate, rate) for rate in learning_rates])


@dataclass(frozen=True, slots=True)
class Mutant:
    """Training with a fault, by the framework's workers (one a precision) if it can be told the fault, else in NumPy."""

    change: Change
    workers: Mapping[str, WorkerProcess]
    folder: Path

    def practice(self, model: ModelSpec, sgd: Sgd) -> Practice:
        """What becomes of the sound practice."""
        return self.change(Practice(model, sgd))

    @property
    def told(self) -> bool:
        """Whether the framework trains."""
        sound = Practice(models.get(MODEL), SGD)
        return is_declarative(self.change(sound), sound)

    def begin(self, precision: str, model: ModelSpec, state: State, sgd: Sgd, batch: Batch) -> Trainer:
        """A trainer of batches like this."""
        practice = self.practice(model, sgd)
        if self.told:
            network = dataclasses.replace(practice.model, name="mutant")
            return LiveTrainer(self.workers[precision], self.folder, network, state, practice.sgd, MODE, batch.images.shape)
        return PracticeTrainer(practice, state, precision)


def refused(mutant: Mutant, rounded: str) -> tuple[str, ...]:
    """The tiers of a precision of ``ROUNDED`` that fail."""

    def trainer(precision: str, model: ModelSpec, state: State, sgd: Sgd, batch: Batch) -> Trainer:
        return Misled(mutant.begin(precision, model, state, sgd, batch), mutant.practice(model, sgd))

    examination = TrainingExamination(subject(MODEL), rounded, trainer)
    tiers = {name: examination.look(name) for name in places(rounded)}
    tiers["E3"], found = examination.local()
    tiers["E5"] = examination.steps(found)
    return tuple(name for name in ROUNDED_TIERS if name in tiers and not tiers[name].passed)


def _taken(about: Subject, precision: str) -> tuple[State, Batch]:
    """What the first step of E5 computes from: weights and images as the precision has them."""
    start, batch = training.begin(about), training.batches(about)[0]
    weights = {name: np.asarray(tensor, np.float64) for name, tensor in as_taken(about.model, start.weights, precision).items()}
    return State(weights, start.momentum), Batch(as_held(batch.images, precision), batch.labels)


@functools.cache
def noise(about: Subject, precision: str) -> Envelope:
    """Of the first step of E5, decisions that rounding carries over an edge counted where E5 counts them."""
    (start, batch), rules = _taken(about, precision), arithmetic(precision)
    runs = training.MIXED_RUNS if rules.store else training.NOISY_RUNS
    smoothing = SGD.label_smoothing
    return envelope(about.model, start.weights, batch.images, batch.labels, smoothing, rules, free=rules.store > 0, runs=runs)


def signal(change: Change, precision: str) -> float:
    """How far the steps of E5 are off, in deviations of the noise: the largest error of loss, statistics, parameters and buffers."""
    about = subject(MODEL)
    start, batch = _taken(about, precision)
    found: list[training.Errors] = []
    for sgd in training.NOISE_SGDS:
        practice = change(Practice(about.model, sgd))
        steps = training.take_steps(Misled(PracticeTrainer(practice, start), practice), start, batch)
        found += training.step_errors(steps, sgd, noise(about, precision), precision)
    return max(max(errors.deviations.values()) for errors in found)


def run(python: Path, threads: int, say: Callable[[str], None], faults: Sequence[TrainingFault] = TRAINING) -> list[TrainingRow]:
    """The matrix of training, the sound trainer first.

    Raises:
        WorkerError: the implementation did not answer.
    """
    about = course()
    sound = found_by(lambda state: PracticeTrainer(about.practice, state), about.practice, about)
    say(f"{MODEL}: {len(faults)} faults of training in {', '.join(PRECISIONS)}")
    workers: dict[str, WorkerProcess] = {}
    with ExitStack() as stack, threadpool_limits(1):  # the products are small
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="levelfield-")))
        for precision in PRECISIONS:
            log, variables = folder / f"{precision}.log", {"OMP_NUM_THREADS": str(threads)}
            launch = Launch(python, f"{OURS}.{IMPLEMENTATION}", "cpu", precision, threads, True, log, variables)
            workers[precision] = stack.enter_context(WorkerProcess(launch))
            workers[precision].call("start", START_TIMEOUT_S)
        nothing = TrainingFault(SOUND, "the sound trainer", lambda practice: practice)
        return [_row(fault, Mutant(fault.change, workers, folder), sound, about) for fault in (nothing, *faults)]


def _row(fault: TrainingFault, mutant: Mutant, sound: Found, about: Course) -> TrainingRow:
    model, sgd = about.practice.model, about.practice.sgd
    found = found_by(lambda state: mutant.begin("fp64", model, state, sgd, about.batches[0]), mutant.practice(model, sgd), about)
    signals, killed = judge(sound, found, about)
    return TrainingRow(
        fault=fault.id,
        sentence=fault.sentence,
        run_by=IMPLEMENTATION if mutant.told else "NumPy",
        citation=fault.citation,
        equivalent=fault.equivalent,
        hidden=fault.hidden,
        signals=signals,
        killed=killed,
        losses=found.losses,
        noticed={precision: signal(fault.change, precision) for precision in ROUNDED},
        refused={precision: refused(mutant, precision) for precision in ROUNDED},
    )
