"""The certificate of training: derivatives and steps of one arm against the oracle's, each from the arm's own state.

E2  meaning    in float64 loss, taps, cotangents, gradients, running statistics and steps agree with the oracle to 1e-10, and after
               eight steps the parameters do to 1e-6
E3  local      every layer rounds as the precision allows, forward and backward, on the implementation's own values; so do the probes of
               ``suites.equivalence.training_probes``, where faults show that are below rounding elsewhere
E5  steps      what a step of the timed mode changes lies within 2.5 times the noise that rounding theory predicts, also where the
               learning rate has changed; and a free run goes no farther astray than runs of the oracle do that round two bits earlier

Gradients are compared given the implementation's own masks: one activation that rounding puts on the other side of zero would change
them by far more than rounding does. Every mask that differs from the oracle's must be explained by rounding. Those of a timed step are
inferred (``suites.equivalence.timed_masks``). In mixed precision thousands are near their edge: there the noisy runs decide for themselves,
so that E5's noise holds what such decisions change, and a note says how large it is.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from impls import models
from impls.implementation import Sgd
from impls.oracle import rounding
from impls.oracle import training as oracle
from impls.oracle.backward import tied
from impls.oracle.backward_envelope import Envelope, StepNoise, envelope, step_noise
from impls.oracle.backward_forced import settled
from impls.oracle.backward_masks import EXPLAINED, Edge, edges, flipped, mask_differences
from impls.oracle.backward_moved import kernel_in_front
from impls.oracle.backward_moved import moved as pool_moved
from impls.oracle.backward_rounding import descend_sigma
from impls.oracle.forward import Array
from impls.oracle.local import TapRounding
from impls.oracle.local_training import Derivatives, local_training
from impls.oracle.rounding import arithmetic, as_taken, round_to
from impls.oracle.training import Operations, State
from impls.spec import Add, Dropout, MaxPool2d, ModelSpec, Relu, layers, parameter_count, parameter_names, tensor_shapes
from impls.weights import folding
from impls.weights.file import spec_sha256, tensor_sha256
from impls.weights.synthesis import synthesize
from suites.equivalence.examination import shared
from suites.equivalence.probes import PROBE_BATCH, training_size
from suites.equivalence.tiers import MEANING_BOUND, Tier, all_of, judged_locally, meaning
from suites.equivalence.timed_masks import Sums, inferred
from suites.equivalence.trainer import Arrays, Batch, Trainer
from suites.equivalence.training_probes import MODEL as PROBE_MODEL
from suites.equivalence.training_probes import WHERE, Probe, batch_norm_alone, places, probes, zero_gamma
from suites.harness.context import SEED as SEED_OF_WEIGHTS
from suites.harness.context import Subject, subject
from suites.harness.memory import reclaim

SGD = Sgd(momentum=0.9, nesterov=True, weight_decay=5e-4, label_smoothing=0.1)
HEAVY_BALL = Sgd(momentum=0.8, nesterov=False, weight_decay=0.02, label_smoothing=0.0)
RATES = (0.1, 0.01)
"""Of the two steps of each optimizer: a velocity that holds the learning rate shows when it changes."""

NOISE_RATES = (1e-30, 0.1)
"""Of the two steps of E5, on one batch. The first is so short that no parameter moves: the second has its gradients, and so its noise, and
the learning rate changes between them."""

TRAJECTORY_STEPS = 8
TRAJECTORY_RATE = 1e-4
"""So short that what a flipped ReLU does to a step is hardly multiplied by the next: in ResNet-18 rounding takes over in the second step at
0.01, in the third at 0.001, in the sixth here. At 1e-5 a step would be so short that rounding the parameters alone is a hundredth of it."""
TRAJECTORY_BOUND = 1e-6
"""Of the distance between the parameters after all steps, over the distance they went. In CIFAR ResNet-20 a change of 1e-12 grows to 2e-8
in 8 steps at a thousand times this rate, and every fault that touches a parameter moves them by 1e-3 or more."""

GROWN = 0.1
"""A free run is followed while no coarse run of the oracle has come this share of the way from the sound one."""

COARSER = 4.0
COARSE_RUNS = 8
ROUNDS = 4
"""A free run may go as far astray as any of 32 runs of the oracle whose roundings are four times the precision's, two bits.

Not the distance is multiplied but the noise, for most of a distance comes of a few ReLUs that rounding puts on the other side of zero. One
that rounding flips with probability p, at most 1/2, is flipped in a coarse run with q = Phi(Phi^-1(p) / 4), and in none of 32 with
(1 - q)^32. Over all margins that makes 2e-6 flips that no coarse run has for each that rounding makes; 1.3e-2 with 8 coarse runs, and 0.15
with 8 runs of the precision's own noise. Only where 8 runs do not reach as far are there 32.
"""

FREE_RUN_PARAMETERS = 60_000_000
"""From which on E5 follows no free run, and its note says so: the sound states of eight steps and eight coarse runs with their buffers hold
24 float64 numbers of each parameter, 12 GB of AlexNet's 61 million."""

NOISE_BOUND = 5.0
"""Largest error of one tensor, in deviations. As its elements err together it may err like one normal number, which passes 5 with a
probability of 6e-7; the tensors' mean square is held to ``rounding.RHO_MAX``."""

NOISE_SGDS = (SGD, dataclasses.replace(HEAVY_BALL, label_smoothing=SGD.label_smoothing))
"""The optimizers of these steps, which share one prediction."""

NOISY_RUNS = 4

MIXED_BOUND = 8.0
MIXED_RUNS = 16
"""The same in mixed precision, whose noise bounds nothing from above but is what there is, estimated from so many runs: Student's t with 16
degrees of freedom passes 8.0 with the probability that a normal number passes 5. With 4 runs one of nine correct arms was refused for its
loss, a single number."""
SEED = 11


@dataclass(frozen=True, slots=True)
class TrainingExamination:
    """What training is examined with: its model and weights, the precision that is certified, and who trains.

    ``trainer`` takes a precision, a network, a state to begin from, the numbers of ``Sgd``, and a batch of the shape that all will have.
    """

    subject: Subject
    precision: str
    trainer: Callable[[str, ModelSpec, State, Sgd, Batch], Trainer]

    def run(self, meaning: Tier | None = None) -> dict[str, Tier]:
        """All tiers; one that fails ends the examination. ``meaning`` is E2, if it is known of this mode in another precision."""
        tiers = {"E2": meaning or self._meaning()}
        if tiers["E2"].passed:
            own, found = self.local()
            tiers["E3"] = self._probed(own)
            reclaim()
            if tiers["E3"].passed:
                tiers["E5"] = self.steps(found)
        return tiers

    def _trainer(self, precision: str, state: State, sgd: Sgd) -> Trainer:
        return self.trainer(precision, self.subject.model, state, sgd, batches(self.subject)[0])

    def _meaning(self) -> Tier:
        answers = []
        for answer in self._meanings():
            answers.append(answer)
            reclaim()
            if not answer.passed:
                break
        return all_of(answers)

    def _meanings(self) -> Iterator[Tier]:
        model, start, given = self.subject.model, begin(self.subject), batches(self.subject)
        for state in (start, zero_gamma(model, start)):
            yield derivatives(model, state, given[0], self._trainer("fp64", state, SGD).differentiate(given[0]))
        for sgd in (SGD, HEAVY_BALL):
            yield from self._meaning_of_steps(start, sgd, given)
        yield self._trajectory(start)

    def _meaning_of_steps(self, start: State, sgd: Sgd, given: Sequence[Batch]) -> Iterator[Tier]:
        trainer, before = self._trainer("fp64", start, sgd), start
        for rate, batch in zip(RATES, given, strict=False):
            masks = trainer.differentiate(batch).taps
            losses = trainer.steps([batch], [rate])
            after = trainer.state()
            expected, right = oracle.step(self.subject.model, before, batch.images, batch.labels, sgd, rate, masks=masks)
            yield meaning({"loss": np.array([right.loss])}, {"loss": np.array(losses)})
            del masks, right
            yield changed(before, expected, after)
            before = after

    def _trajectory(self, start: State) -> Tier:
        given, fresh = batches(self.subject), at_rest(start)
        trainer = self._trainer("fp64", fresh, SGD)
        trainer.steps(given, [TRAJECTORY_RATE] * len(given))
        far = distance(fresh, sound_end(self.subject), trainer.state())
        elements = sum(buffer.size for buffer in fresh.momentum.values())
        passed = far <= TRAJECTORY_BOUND
        reason = f"after {len(given)} steps the parameters are {far:.3g} of their way apart (bound {TRAJECTORY_BOUND:g})"
        return Tier(passed, elements, MEANING_BOUND, "", 0.0, None if passed else reason)

    def local(self) -> tuple[Tier, Derivatives]:
        """E3 of the subject, and the derivatives that it is of."""
        start, batch = begin(self.subject), batches(self.subject)[0]
        found = self._trainer(self.precision, start, SGD).differentiate(batch)
        return local(self.subject.model, start, batch, found, self.precision), found

    def look(self, name: str) -> Tier:
        """E3 of one of the probes."""
        probe = _probes(subject(PROBE_MODEL))[name]
        found = self.trainer(self.precision, probe.model, probe.state, SGD, probe.batch).differentiate(probe.batch)
        tier = local(probe.model, probe.state, probe.batch, found, self.precision)
        return tier if tier.passed else dataclasses.replace(tier, reason=f"{WHERE[name]}: {tier.reason}")

    def _probed(self, own: Tier) -> Tier:
        """E3, which has the figures of the subject's own taps."""
        answers = [own]
        for name in places(self.precision):
            if not answers[-1].passed:
                break
            answers.append(self.look(name))
        return dataclasses.replace(all_of(answers), taps=own.taps)

    def steps(self, found: Derivatives) -> Tier:
        """E5, given the decisions of these derivatives."""
        single = self._single_steps(found)
        if single.passed and arithmetic(self.precision).store:
            single = dataclasses.replace(all_of([single, self._statistics()]), note=single.note)
        if not single.passed:
            return single
        reclaim()
        run = self._free_run(begin(self.subject))
        return dataclasses.replace(all_of([single, run]), note="; ".join(filter(None, (single.note, run.note))))

    def _single_steps(self, found: Derivatives) -> Tier:
        """E5 without the free run, whose states take the memory of what is predicted here."""
        model, start, batch, precision = self.subject.model, begin(self.subject), batches(self.subject)[0], self.precision
        rules = arithmetic(precision)
        mixed = rules.store > 0
        weights, images = as_taken(model, start.weights, precision), as_held(batch.images, precision)
        predicted = envelope(
            model,
            weights,
            images,
            batch.labels,
            SGD.label_smoothing,
            rules,
            masks=None if mixed else found.taps,
            free=mixed,
            runs=MIXED_RUNS if mixed else NOISY_RUNS,
        )
        masks = explained(model, images, predicted, found.taps)
        near = () if mixed else edges(model, images, predicted.exact.taps, found.taps, predicted.taps)
        answers, otherwise = [masks], dict[Edge, None]()
        for sgd in NOISE_SGDS:
            judged, flips = self._two_steps(sgd, found.taps, predicted, near)
            answers += judged
            otherwise |= dict.fromkeys(flips)
        single = all_of(answers)
        if not single.passed:
            return dataclasses.replace(single, note=masks.note)
        notes = (masks.note, _power(predicted) if mixed else None, *map(_otherwise, otherwise))
        return dataclasses.replace(single, note="; ".join(filter(None, notes)))

    def _statistics(self) -> Tier:
        """E5 of the running statistics of images: those of layers that are stored in few bits err by more than divisors differ."""
        probe, rules = batch_norm_alone(0, 1), arithmetic(self.precision)
        trainer = self.trainer(self.precision, probe.model, probe.state, SGD, probe.batch)
        (loss,) = trainer.steps([probe.batch], NOISE_RATES[:1])
        taken, images = as_taken(probe.model, probe.state.weights, self.precision), as_held(probe.batch.images, self.precision)
        predicted = envelope(probe.model, taken, images, probe.batch.labels, SGD.label_smoothing, rules, free=True, runs=MIXED_RUNS)
        errors = _observed_errors(loss, trainer.state(), predicted)
        tier = within_noise(_errors(errors, 1 + sum(each.size for each in predicted.after.values())), MIXED_BOUND)
        return tier if tier.passed else dataclasses.replace(tier, reason=f"in a batch norm of images alone: {tier.reason}")

    def _two_steps(self, sgd: Sgd, masks: Arrays, predicted: Envelope, near: Sequence[Edge]) -> tuple[tuple[Tier, ...], tuple[Edge, ...]]:
        """E5 of the two steps of one optimizer, and which of the decisions ``near`` their edge they took otherwise than ``masks``."""
        model, start, batch = self.subject.model, begin(self.subject), batches(self.subject)[0]
        taken = take_steps(self._trainer(self.precision, start, sgd), start, batch)

        within = partial(within_noise, bound=MIXED_BOUND if arithmetic(self.precision).store else NOISE_BOUND)
        biases, nodes = biases_of_relus(model), {node.layer.name: node for node in oracle.wiring(model)}
        known: dict[tuple[Edge, ...], Envelope] = {(): predicted}

        def given(flips: tuple[Edge, ...]) -> Envelope:
            if flips not in known:
                known.clear()  # one at a time: each holds the gradients of all parameters
                known[flips] = given_masks(predicted, model, start, batch, flipped(masks, flips)) if flips else predicted
            return known[flips]

        def errors(flips: tuple[Edge, ...]) -> tuple[Errors, Errors]:
            return step_errors(taken, sgd, given(flips), self.precision)

        def off(parameter: str, flips: tuple[Edge, ...]) -> tuple[Array, float]:
            """How far a gradient is off, and its noise's deviation."""
            weight, velocity = (np.asarray(each[parameter], np.float64) for each in (start.weights, start.momentum))
            gradient, noise = given(flips).exact.gradients[parameter], np.asarray(predicted.gradients[parameter])
            _, expected = oracle.descend(sgd, NOISE_RATES[0], weight, gradient, velocity)
            _, deviation = descend_sigma(sgd, NOISE_RATES[0], weight, gradient, velocity, noise, arithmetic(self.precision))
            return taken.between.momentum[parameter] - expected, _rms(deviation)

        def look(layer: str, flips: tuple[Edge, ...]) -> Sums:
            own, exact = [edge for edge in near if edge.layer == layer], given(flips).exact
            if layer in biases:
                sums, deviation = off(biases[layer], flips)
                passing = {edge: exact.cotangents[layer][edge.index] * (1 if edge.value > 0 else -1) for edge in own}
                return Sums(
                    {edge.index[1]: sums[edge.index[1], None] / deviation for edge in own},
                    {edge: np.array([value / deviation]) for edge, value in passing.items()},
                )
            return _of_kernels(nodes, exact, masks, start.weights, batch.images, own, partial(off, flips=flips))

        def judge(flips: tuple[Edge, ...]) -> tuple[float, bool]:
            first, second = errors(flips)
            return math.hypot(first.together, second.together), within(first).passed and within(second).passed

        flips = inferred(near, judge, look)
        return tuple(map(within, errors(flips))), flips

    def _free_run(self, start: State) -> Tier:
        """As long as rounding has not taken over, the run goes no farther astray than coarse runs of the oracle do."""
        if is_large(self.subject.model):
            return Tier(True, 0, 0.0, "", 0.0, None, "no free run was followed: those of so large a network do not fit into memory")
        given, fresh = batches(self.subject), at_rest(start)
        limits = reach(self.subject, self.precision, 1)
        trainer = self._trainer(self.precision, fresh, SGD)
        distances = []
        for step, batch in enumerate(given[: len(limits)]):
            trainer.steps([batch], [TRAJECTORY_RATE])
            distances.append(distance(fresh, sound_run(self.subject, stored(self.precision)).after(step), trainer.state()))
        if _outside(distances, limits) is not None:
            limits = reach(self.subject, self.precision, ROUNDS)
        return followed(distances, limits, sum(buffer.size for buffer in fresh.momentum.values()))


@shared(maxsize=2)
def in_training(about: Subject) -> Subject:
    """What is trained where this is asked for: ``models.in_training``, with synthesised weights for heads that the weights lack."""
    model = models.in_training(about.model)
    if model is about.model:
        return about
    weights = dict(about.weights)
    if tensor_shapes(model).keys() != weights.keys():
        weights = synthesize(model, SEED_OF_WEIGHTS) | weights
    return dataclasses.replace(about, model=model, weights=weights, weights_sha256=tensor_sha256(weights), spec_sha256=spec_sha256(model))


def begin(subject: Subject) -> State:
    """The subject's weights, and momentum buffers that are not zero; float32, as every trainer can hold them."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    momentum = {
        name: (0.1 * generator.standard_normal(subject.weights[name].shape)).astype(np.float32) for name in parameter_names(subject.model)
    }
    return State(subject.weights, momentum)


def at_rest(state: State) -> State:
    """The state with momentum buffers of zero."""
    return State(state.weights, {name: np.zeros_like(buffer) for name, buffer in state.momentum.items()})


def batches(subject: Subject) -> tuple[Batch, ...]:
    """As many batches as a trajectory has steps: photographs, shifted cyclically, and labels from a seed.

    No digits: where half of an image is one value, a sum of a thousand equal terms errs in one direction, not at random.
    """
    generator = np.random.Generator(np.random.PCG64(SEED))
    images = subject.inputs.photographs(*training_size(subject.model))[:PROBE_BATCH]
    labels = generator.integers(0, subject.model.classes, (TRAJECTORY_STEPS, len(images)))
    return tuple(Batch(np.roll(images, step, axis=3), labels[step]) for step in range(TRAJECTORY_STEPS))


@shared(maxsize=2)
def _probes(about: Subject) -> dict[str, Probe]:
    return probes(about.model, begin(about), batches(about)[0])


def local(model: ModelSpec, state: State, batch: Batch, found: Derivatives, precision: str) -> Tier:
    """E3 of one loss: every layer on the implementation's own values."""

    def judge() -> tuple[TapRounding, ...]:
        weights, images = as_taken(model, state.weights, precision), as_held(batch.images, precision)
        return local_training(model, weights, images, batch.labels, SGD.label_smoothing, found, precision)

    return judged_locally(judge)


def as_held(images: Array, precision: str) -> Array:
    """The images as a trainer holds them, rounded where activations are stored narrower than float32."""
    return round_to(images, precision) if arithmetic(precision).store else images


def derivatives(model: ModelSpec, state: State, batch: Batch, found: Derivatives) -> Tier:
    """E2 of one loss: every derivative against the oracle's, given the masks of ``found``, and those explained by its rounding."""
    right = oracle.differentiate(model, state.weights, batch.images, batch.labels, SGD.label_smoothing, masks=found.taps)
    expected, given = (
        {
            **each.taps,
            "loss": np.array([each.loss]),
            **_with_d(_untied(model, batch, right.taps, each.cotangents)),
            **_with_d(beside_magnitudes(model, right.cotangents, each.gradients)),
        }
        for each in (right, found)
    )
    answer = meaning(expected, given)
    if not answer.passed:
        return answer
    edges = {name: np.array([MEANING_BOUND / EXPLAINED * np.sqrt(np.mean(tap**2))]) for name, tap in right.taps.items()}
    unexplained = [each for each in mask_differences(model, batch.images, right.taps, found.taps, edges) if each.unexplained.size]
    if unexplained:
        return dataclasses.replace(
            answer, passed=False, reason=f"{unexplained[0].layer}: decides otherwise than float64's rounding explains"
        )
    return answer


def beside_magnitudes(model: ModelSpec, cotangents: Arrays, gradients: Arrays) -> dict[str, Array]:
    """Gradients as E2 compares them: that of a bias before a batch norm beside the magnitudes that cancel in it, (2, C).

    Batch norm takes any bias off, so its gradient is 0 and what is left are roundings, which are small beside these.
    """
    compared = dict(gradients)
    for conv, _ in folding.followed(model.body):
        if (name := f"{conv}.bias") in compared:
            compared[name] = np.stack([compared[name], np.abs(cotangents[conv]).sum(axis=(0, 2, 3))])
    return compared


def _with_d(arrays: Arrays) -> dict[str, Array]:
    return {f"d {name}": array for name, array in arrays.items()}


def _untied(model: ModelSpec, batch: Batch, taps: Arrays, cotangents: Arrays) -> dict[str, Array]:
    """Cotangents in which elements that share the maximum of a pool's window stand as their sum, which no choice changes."""
    ties = {}
    for node in oracle.wiring(model):
        if isinstance(node.layer, MaxPool2d) and node.inputs[0] is not None:
            ties[node.inputs[0]] = tied(node.layer, np.asarray(taps[node.inputs[0]], np.float64))
    return {name: settled(np.asarray(array, np.float64), ties.get(name)) for name, array in cotangents.items()}


def changed(before: State, expected: State, found: State) -> Tier:
    """E2 of what a step changed: parameters, running statistics and momentum buffers, one at a time as the states are large themselves."""

    def of(kind: str, old: Arrays, right: Arrays, given: Arrays) -> Iterator[Tier]:
        for name, tensor in old.items():
            label, start = f"{kind} {name}", np.asarray(tensor, np.float64)
            yield meaning({label: right[name] - start}, {label: np.asarray(given[name], np.float64) - start})

    weights = of("change of", before.weights, expected.weights, found.weights)
    return all_of([*weights, *of("change of the momentum of", before.momentum, expected.momentum, found.momentum)])


def is_large(model: ModelSpec) -> bool:
    """Whether no free run is followed."""
    return parameter_count(model) >= FREE_RUN_PARAMETERS


def stored(precision: str) -> str:
    """The precision that activations and weights are rounded to where they are stored, fp64 if they are not."""
    return precision if arithmetic(precision).store else "fp64"


def sound_steps(subject: Subject, precision: str) -> Iterator[State]:
    """The oracle's state after every step of the free run, without momentum buffers; ``precision`` is of ``stored``."""
    state = at_rest(begin(subject))
    for batch in batches(subject):
        taken, images = as_taken(subject.model, state.weights, precision), as_held(batch.images, precision)
        state = oracle.step(subject.model, state, images, batch.labels, SGD, TRAJECTORY_RATE, taken=taken)[0]
        yield State(state.weights, {})


@shared(maxsize=2)
def sound_end(subject: Subject) -> State:
    """The last of ``sound_steps``, the same for all arms."""
    (end,) = deque(sound_steps(subject, "fp64"), maxlen=1)
    return end


class SoundRun:
    """``sound_steps`` as far as they were asked for: rounding takes over long before the end where networks are large."""

    def __init__(self, subject: Subject, precision: str) -> None:
        self._steps = sound_steps(subject, precision)
        self._taken: list[State] = []
        self._lock = threading.Lock()

    def after(self, step: int) -> State:
        """The state after the step with this number; the first is 0."""
        with self._lock:
            while len(self._taken) <= step:
                self._taken.append(next(self._steps))
            return self._taken[step]


sound_run = shared(maxsize=2)(SoundRun)
"""The same for all arms."""


def reach(subject: Subject, precision: str, rounds: int) -> tuple[float, ...]:
    """How far the farthest of all runs of these rounds was from the sound run after each step, as long as that is below ``GROWN``."""
    return tuple(max(each) for each in zip(*(astray(subject, precision, seed) for seed in range(rounds)), strict=False))


@shared(maxsize=2 * ROUNDS)
def astray(subject: Subject, precision: str, seed: int) -> tuple[float, ...]:
    """``reach`` of one round of ``COARSE_RUNS``, the same for all arms. One run at a time, for each is two states and their velocities."""
    farthest = [0.0] * TRAJECTORY_STEPS
    for run in range(COARSE_RUNS):
        generator = np.random.Generator(np.random.PCG64([SEED, seed, run]))
        farthest = [max(pair) for pair in zip(farthest, _coarse_run(subject, precision, generator, len(farthest)), strict=False)]
    return tuple(farthest)


def _coarse_run(subject: Subject, precision: str, generator: np.random.Generator, steps: int) -> Iterator[float]:
    """How far a run whose every operation errs is from the sound one after each step, as long as that is below ``GROWN``."""
    start = at_rest(begin(subject))
    state = start
    for step, batch in enumerate(batches(subject)[:steps]):
        state = noisy_step(subject.model, state, batch, _coarse_noise(subject, precision, step), generator, stored(precision))
        far = distance(start, sound_run(subject, stored(precision)).after(step), state)
        if not far < GROWN:
            return
        yield far


@shared(maxsize=TRAJECTORY_STEPS)
def _coarse_noise(subject: Subject, precision: str, step: int) -> StepNoise:
    """The noise of a step, predicted where the sound run is; a coarse run decides at ReLUs and pools as its own noise has it."""
    rules = arithmetic(precision)
    coarse = dataclasses.replace(rules, **{part: COARSER * getattr(rules, part) for part in ("operand", "accumulate", "store")})
    before = sound_run(subject, stored(precision)).after(step - 1) if step else begin(subject)
    batch, taken = batches(subject)[step], as_taken(subject.model, before.weights, precision)
    return step_noise(subject.model, taken, as_held(batch.images, precision), batch.labels, SGD.label_smoothing, coarse)[1]


def noisy_step(model: ModelSpec, state: State, batch: Batch, noise: StepNoise, generator: np.random.Generator, precision: str) -> State:
    """The state after a step of the free run in which every operation errs, those of the descent too; ``precision`` is of ``stored``."""
    taken, images = as_taken(model, state.weights, precision), as_held(batch.images, precision)
    after, found = oracle.step(
        model, state, images, batch.labels, SGD, TRAJECTORY_RATE, taken=taken, operations=noise.operations(generator)
    )
    weights, momentum, gradients = dict(after.weights), dict(after.momentum), found.gradients
    del after, found  # so that every array goes as the next comes: a state of ResNet-50 is 0.4 GB
    for name, gradient in gradients.items():
        parameter, velocity = (np.asarray(each[name], np.float64) for each in (state.weights, state.momentum))
        deviations = descend_sigma(SGD, TRAJECTORY_RATE, parameter, gradient, velocity, np.zeros(()), noise.arithmetic)
        weights[name], momentum[name] = (
            value + deviation * generator.standard_normal(value.shape)
            for value, deviation in zip((weights[name], momentum[name]), deviations, strict=True)
        )
    return State(weights, momentum)


def followed(distances: Sequence[float], limits: Sequence[float], parameters: int) -> Tier:
    """E5's free run: after each step that has a limit the run is no farther from the oracle's than that."""
    place = _outside(distances, limits)
    if place is not None:
        apart = f"after {place + 1} free steps the parameters are {distances[place]:.3g} of their way apart"
        return Tier(False, (place + 1) * parameters, 1.0, "", None, f"{apart}, rounding explains {limits[place]:.3g}")
    if not limits:
        return Tier(True, 0, 0.0, "", 0.0, None, "rounding takes over a free run within its first step")
    steps = len(limits)
    apart = f"to {distances[steps - 1]:.2g} of its way from the oracle's, where rounding goes to {limits[-1]:.2g}"
    return Tier(True, steps * parameters, 0.0, "", 0.0, None, f"a free run was followed for {steps} of {TRAJECTORY_STEPS} steps, {apart}")


def _outside(distances: Sequence[float], limits: Sequence[float]) -> int | None:
    """The first step after which a distance is over its limit."""
    return next((place for place, (far, limit) in enumerate(zip(distances, limits, strict=False)) if not far <= limit), None)


def distance(start: State, right: State, found: State) -> float:
    """Of all parameters, how far the two are from each other over how far the first went; infinite where a value is not finite."""
    apart = sum(float(np.sum((np.asarray(found.weights[name], np.float64) - right.weights[name]) ** 2)) for name in start.momentum)
    gone = sum(float(np.sum((right.weights[name] - start.weights[name]) ** 2)) for name in start.momentum)
    ratio = math.sqrt(apart / gone) if gone else math.inf
    return ratio if math.isfinite(ratio) else math.inf


def explained(model: ModelSpec, images: Array, predicted: Envelope, taps: Mapping[str, Array]) -> Tier:
    """E5's masks: where a ReLU or pool decides otherwise than the oracle's, rounding can have carried it across the edge."""
    compared = mask_differences(model, images, predicted.exact.taps, taps, predicted.taps)
    elements, differing = sum(each.elements for each in compared), sum(len(each.indices) for each in compared)
    worst = max(compared, key=lambda each: each.worst)
    unexplained = [each for each in compared if each.unexplained.size]
    reason = None
    if unexplained:
        each = unexplained[0]
        reason = (
            f"{each.layer}: {len(each.unexplained)} of {each.elements} elements decide otherwise, up to {each.worst:.3g} deviations off"
        )
    note = f"{differing} of {elements:,} masks differ from the oracle's, all explained"
    return Tier(
        not unexplained, elements, EXPLAINED, worst.layer if differing else "", worst.worst / EXPLAINED, reason, None if reason else note
    )


def _power(predicted: Envelope) -> str:
    """How much of a gradient the noise is that E5 counts in."""
    gradients = predicted.exact.gradients
    shares = [deviation / size for name, deviation in predicted.gradients.items() if (size := _rms(gradients[name]))]
    return (
        f"rounding and the decisions that it carries over explain errors of {np.median(shares):.0%} of a gradient, up to {max(shares):.0%}"
    )


def _otherwise(edge: Edge) -> str:
    place = ", ".join(map(str, edge.index))
    return f"a timed step decides otherwise than the derivatives shown at {edge.layer}[{place}], {edge.margin:.2g} deviations from the edge"


@dataclass(frozen=True, slots=True)
class Errors:
    """How far what a step changed is off, by what it is, in deviations of the noise predicted for it; infinite where it is not finite."""

    deviations: Mapping[str, float]
    elements: int

    @property
    def together(self) -> float:
        """The rms of all."""
        return math.sqrt(sum(each**2 for each in self.deviations.values()) / len(self.deviations))


@dataclass(frozen=True, slots=True)
class Steps:
    """The two steps of ``NOISE_RATES`` on one batch: the first's loss, and the states before, between and after them."""

    loss: float
    before: State
    between: State
    after: State


def take_steps(trainer: Trainer, start: State, batch: Batch) -> Steps:
    """The trainer's from ``start``, where it stands."""
    short, long = NOISE_RATES
    (loss,) = trainer.steps([batch], [short])
    between = trainer.state()
    trainer.steps([batch], [long])
    return Steps(loss, start, between, trainer.state())


def given_masks(predicted: Envelope, model: ModelSpec, state: State, batch: Batch, masks: Arrays) -> Envelope:
    """The same noise around the cotangents and gradients that these masks give."""
    exact = predicted.exact
    known = Operations(evaluate=lambda layer, inputs, tensors: exact.taps[layer.name])
    found = oracle.differentiate(model, state.weights, batch.images, batch.labels, SGD.label_smoothing, masks=masks, operations=known)
    return dataclasses.replace(predicted, exact=dataclasses.replace(exact, gradients=found.gradients, cotangents=found.cotangents))


def _of_kernels(
    nodes: Mapping[str, oracle.Node],
    exact: oracle.Derivatives,
    masks: Arrays,
    weights: Arrays,
    images: Array,
    near: Sequence[Edge],
    off: Callable[[str], tuple[Array, float]],
) -> Sums:
    """What decisions of a max-pool move in the kernels in front; ``off`` says how far a tensor's gradient is off, and its deviation."""
    found, moved, each = dict[int, Array](), dict[Edge, Array](), cache(off)
    for edge in near:
        layer = nodes[edge.layer].layer
        if isinstance(layer, MaxPool2d):
            places = pool_moved(layer, masks[edge.mask], exact.cotangents[edge.layer], edge.element, edge.value)
            if kernel := kernel_in_front(nodes, images, exact.taps, masks, weights, edge.mask, places):
                gradients, deviation = each(kernel.weight)
                found[edge.index[1]] = gradients[kernel.channel].ravel() / deviation
                moved[edge] = kernel.moved.ravel() / deviation
    return Sums(found, moved)


def biases_of_relus(model: ModelSpec) -> dict[str, str]:
    """By ReLU, the bias whose gradient is the sum of the cotangents that pass: of the layer in front, or in front of the sum there."""
    nodes = {node.layer.name: node for node in oracle.wiring(model)}

    def bias(name: str | None) -> str | None:
        return f"{name}.bias" if name is not None and "bias" in nodes[name].layer.tensors() else None

    found = {}
    for name, node in nodes.items():
        (before, *_) = node.inputs
        if isinstance(node.layer, Relu) and before is not None:
            terms = nodes[before].inputs if isinstance(nodes[before].layer, Add) else (before,)
            if own := next(filter(None, map(bias, terms)), None):
                found[name] = own
    return found


def step_errors(taken: Steps, sgd: Sgd, predicted: Envelope, precision: str) -> tuple[Errors, Errors]:
    """Of each of the steps; loss and running statistics, which are the first's, stand with the second's."""
    short, long = NOISE_RATES
    start, between = taken.before, taken.between
    first = _descent_errors(start, between, sgd, short, predicted, precision)
    second = _observed_errors(taken.loss, between, predicted) | _descent_errors(between, taken.after, sgd, long, predicted, precision)
    elements = sum(buffer.size for buffer in start.momentum.values())
    return _errors(first, 2 * elements), _errors(second, 1 + elements + sum(tensor.size for tensor in start.weights.values()))


def _observed_errors(loss: float, after: State, predicted: Envelope) -> dict[str, float]:
    """Of what a step makes of its batch alone: the loss and the running statistics."""
    errors = {"loss": abs(loss - predicted.exact.loss) / predicted.loss}
    for name, right in predicted.after.items():
        errors[name] = _rms(after.weights[name] - right) / predicted.statistics[name]
    return errors


def _descent_errors(before: State, after: State, sgd: Sgd, rate: float, predicted: Envelope, precision: str) -> dict[str, float]:
    errors = {}
    for name, gradient in predicted.exact.gradients.items():
        parameter, velocity = before.weights[name].astype(np.float64), before.momentum[name].astype(np.float64)
        noise = np.asarray(predicted.gradients[name])
        descended = oracle.descend(sgd, rate, parameter, gradient, velocity)
        deviations = descend_sigma(sgd, rate, parameter, gradient, velocity, noise, arithmetic(precision))
        given = (after.weights[name], after.momentum[name])
        for label, value, expected, deviation in zip(("", "momentum of "), given, descended, deviations, strict=True):
            errors[f"{label}{name}"] = _rms(value - expected) / _rms(deviation)
    return errors


def _errors(deviations: Mapping[str, float], elements: int) -> Errors:
    return Errors({name: math.inf if math.isnan(each) else each for name, each in deviations.items()}, elements)


def within_noise(errors: Errors, bound: float = NOISE_BOUND) -> Tier:
    """E5 of one step: the largest error, and the rms of all."""
    worst, largest = max(errors.deviations.items(), key=lambda each: each[1])
    together = errors.together
    reason = None
    if largest > bound:
        reason = f"{worst}: after a step it errs by {largest:.3g} times what rounding explains (bound {bound:g})"
    elif together > rounding.RHO_MAX:
        reason = f"a step errs by {together:.3g} times what rounding explains (bound {rounding.RHO_MAX:g})"
    error = max(largest / bound, together / rounding.RHO_MAX)
    return Tier(reason is None, errors.elements, 1.0, worst, error if math.isfinite(error) else None, reason)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.asarray(values, np.float64) ** 2)))


def settings(asked: ModelSpec) -> dict[str, object]:
    """What was trained with where a model was asked for, for the certificate."""
    weights = models.in_training(asked).auxiliary_weights
    return {
        **({"dropout": "off"} if any(isinstance(layer, Dropout) for layer in layers(asked.body)) else {}),
        **({"auxiliary_weights": list(weights)} if weights else {}),
        "optimizers": [dataclasses.asdict(sgd) for sgd in (SGD, HEAVY_BALL)],
        "learning_rates": list(RATES),
        "learning_rates_within_noise": list(NOISE_RATES),
        "free_run": {"steps": TRAJECTORY_STEPS, "learning_rate": TRAJECTORY_RATE, "coarser": COARSER, "runs": COARSE_RUNS * ROUNDS},
    }
