"""What a network predicts of somebody's outputs, and whether they lie within rounding noise of it.

Every tap that is given is predicted from the nearest given taps before it (teacher forcing), so no error travels further than to
the next of them. Where a layer's own inputs are given, E3's tests judge it; where the oracle had to go through
several layers, noise of the predicted size is carried through them, as in E4. With logits alone this is E4; in float64 it is E2.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from impls import spec
from impls.oracle import local
from impls.oracle.rounding import EXACT_LAYERS, NO_POWER, RHO_MAX, Arithmetic, arithmetic, plausible, sigma, spacing
from impls.spec import Add, Layer, ModelSpec, SpecError
from suites.equivalence.faults.fault import Case, Fault, Function, Site
from suites.equivalence.outputs import Outputs
from suites.equivalence.tiers import MEANING_BOUND
from suites.harness.reference import RUNS_IN_ALL, held

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Hypothesis:
    """What somebody may have computed: a case with faults in it, and what became of its logits. None: what the spec says."""

    case: Case
    causes: tuple[tuple[Fault, Site], ...] = ()

    def with_fault(self, fault: Fault, site: Site) -> Hypothesis:
        """This one with one more fault.

        Raises:
            SpecError: the network would not fit together.
        """
        return Hypothesis(fault.of(self.case, site), (*self.causes, (fault, site)))

    def shown(self, logits: Array) -> Array:
        """The logits as they are given out."""
        for fault, _ in self.causes:
            logits = fault.output(logits) if fault.output else logits
        return logits

    @property
    def shows_logits(self) -> bool:
        """Whether the logits are given out as they are."""
        return all(fault.output is None for fault, _ in self.causes)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One layer's evaluation. ``direct`` says that all its inputs were given; ``held`` are the tensors before the cast.

    ``function`` is what stood in the layer's place; E3 judges only the spec's own layers.
    """

    layer: Layer
    function: Function | None
    held: tuple[Array, ...]
    tensors: Mapping[str, Array]
    inputs: tuple[Array, ...]
    output: Array
    direct: bool

    @property
    def is_local(self) -> bool:
        """Whether E3 can judge it."""
        return self.direct and self.function is None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One tap's judgement.

    ``error`` is the rms difference over the rms of what was predicted, ``noise`` the difference in units of the bound or, where the
    noise was carried through several layers, of that noise, whose rms is ``carried`` of the tap's; None where infinite or not carried.
    ``fault`` says what is wrong, None where the tap lies within the noise.
    """

    tap: str
    error: float | None
    noise: float | None
    fault: str | None
    carried: float | None = None

    @property
    def has_power(self) -> bool:
        """Whether the noise is small enough for passing to mean something."""
        return self.carried is None or self.carried <= NO_POWER


@dataclass(frozen=True, slots=True, eq=False)
class _Value:
    array: Array
    given: bool


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A hypothesis held against what was found: its steps and every given tap's residual (mean square, relative) and verdict."""

    hypothesis: Hypothesis
    steps: Mapping[str, Step]
    residuals: Mapping[str, float]
    verdicts: Mapping[str, Verdict]

    @property
    def failing(self) -> tuple[str, ...]:
        """The taps outside the noise, in topological order."""
        return tuple(name for name, verdict in self.verdicts.items() if verdict.fault is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What was found for some of a case's images, in a run declared to be of ``precision``; ``which`` are the images' numbers."""

    case: Case
    found: Outputs
    precision: str
    which: tuple[int, ...]
    threads: int
    images: Array = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", self._held(self.case.images))

    def _held(self, images: Array) -> Array:
        return held({"images": images[list(self.which)]}, self.precision)["images"]

    @property
    def count(self) -> int:
        """How many images they are."""
        return len(self.which)

    def farthest(self, trial: Trial, count: int) -> Evidence:
        """The same of those images in which the failing taps are the farthest off."""
        distance = np.zeros(self.count)
        for name in trial.failing:
            tap = self.found[name]
            if name in trial.steps and (predicted := self._predicted(trial.hypothesis, trial.steps[name])).shape == tap.shape:
                squares = np.square(tap - predicted).reshape(self.count, -1).mean(1)
                distance += squares / (np.mean(np.square(tap, dtype=np.float64)) or 1.0)
        chosen = sorted(np.argsort(-distance, kind="stable")[:count].tolist())
        found = {name: self.found[name][chosen] for name in self.found}
        return replace(self, found=found, which=tuple(self.which[number] for number in chosen))

    def images_of(self, hypothesis: Hypothesis) -> Array:
        """The images as the hypothesis has them; the very same array where they are not changed."""
        images = hypothesis.case.images
        return self.images if images is self.case.images else self._held(images)

    def region(self, tap: str) -> frozenset[str]:
        """The layers between the given taps and ``tap``, which is one of them itself: where its fault must lie."""
        regions: dict[str, frozenset[str]] = {}

        def apply(layer: Layer, *inputs: frozenset[str]) -> frozenset[str]:
            regions[layer.name] = frozenset().union(*inputs) | {layer.name}
            return frozenset() if layer.name in self.found else regions[layer.name]

        nothing: frozenset[str] = frozenset()
        spec.walk(self.case.model.body, apply, nothing)
        return regions[tap]

    def follow(self, hypothesis: Hypothesis, known: Mapping[str, Step] | None = None) -> list[Step]:
        """Every layer's step in topological order; one of ``known`` where nothing that it depends on has changed.

        The steps end early where the network does not fit what was found.
        """
        steps: list[Step] = []

        def apply(layer: Layer, *inputs: _Value) -> _Value:
            arrays = tuple(value.array for value in inputs)
            before = known.get(layer.name) if known else None
            raw = tuple(hypothesis.case.weights[f"{layer.name}.{leaf}"] for leaf in layer.tensors())
            function = hypothesis.case.instead.get(layer.name)
            same = before is not None and before.layer == layer and before.function is function and _identical(before.held, raw)
            if before is not None and same and _identical(before.inputs, arrays):
                step = before
            else:
                spec.output_shape(layer, *(array.shape for array in arrays))
                tensors = before.tensors if before is not None and same else self._tensors(layer, hypothesis)
                output = hypothesis.case.evaluate(layer, tuple(np.asarray(array, np.float64) for array in arrays), tensors)
                step = Step(layer, function, raw, tensors, arrays, output, all(value.given for value in inputs))
            steps.append(step)
            return _Value(self.found[layer.name], True) if layer.name in self.found else _Value(step.output, False)

        with contextlib.suppress(SpecError), np.errstate(all="ignore"):  # a wrong hypothesis may overflow, and says so by its values
            spec.walk(hypothesis.case.model.body, apply, _Value(self.images_of(hypothesis), True))
        return steps

    def _tensors(self, layer: Layer, hypothesis: Hypothesis) -> dict[str, Array]:
        own = {leaf: hypothesis.case.weights[f"{layer.name}.{leaf}"] for leaf in layer.tensors()}
        return {leaf: tensor.astype(np.float64) for leaf, tensor in held(own, self.precision).items()}

    def _predicted(self, hypothesis: Hypothesis, step: Step) -> Array:
        return hypothesis.shown(step.output) if step.layer.name == _last(self.case.model) else step.output

    def residuals(self, hypothesis: Hypothesis, base: Trial) -> dict[str, float]:
        """Of every given tap, the mean square of what the hypothesis leaves unexplained over that of what was found."""
        result = dict.fromkeys(self.found, 1.0)
        for step in self.follow(hypothesis, base.steps):
            name = step.layer.name
            if name in self.found:
                unchanged = step is base.steps.get(name) and hypothesis.shows_logits
                result[name] = base.residuals[name] if unchanged else self._residual(hypothesis, step)
        return result

    def measure(self, hypothesis: Hypothesis) -> Trial:
        """Steps and residuals without verdicts, for ranking against."""
        steps = {step.layer.name: step for step in self.follow(hypothesis)}
        reached = [name for name in self.found if name in steps]
        residuals = dict.fromkeys(self.found, 1.0) | {name: self._residual(hypothesis, steps[name]) for name in reached}
        return Trial(hypothesis, steps, residuals, {})

    def _residual(self, hypothesis: Hypothesis, step: Step) -> float:
        """A value that was stored in few bits is explained by all that round to it."""
        predicted, found = self._predicted(hypothesis, step), self.found[step.layer.name]
        if predicted.shape != found.shape:
            return 1.0
        with np.errstate(all="ignore"):
            residual = np.abs(found - predicted)
            if arithmetic(self.precision).store and step.direct:
                residual = np.maximum(residual - spacing(found, self.precision) / 2, 0)
            share = float(np.mean(residual**2) / (np.mean(np.square(found, dtype=np.float64)) or 1.0))
        return share if math.isfinite(share) else math.inf

    def trial(self, hypothesis: Hypothesis, base: Trial | None = None, *, two_sided: bool = True) -> Trial:
        """Judge every given tap; what ``base`` judged already is taken from it.

        ``two_sided`` also fails what was computed in a finer precision. Faults are said with float32 tensors, so in
        float64 a hypothesis with faults is judged as a run in fp32.
        """
        steps = {step.layer.name: step for step in self.follow(hypothesis, base.steps if base else None)}
        precision = "fp32" if hypothesis.causes and self.precision == "fp64" else self.precision
        last = _last(self.case.model)

        def is_known(name: str) -> bool:
            unchanged = base is not None and steps[name] is base.steps.get(name) and precision == self.precision
            return unchanged and (name != last or hypothesis.shows_logits)

        fresh = [name for name in self.found if name in steps and not is_known(name)]
        free = [name for name in fresh if not steps[name].is_local or (name == last and not hypothesis.shows_logits)]
        deviations = {} if precision == "fp64" else self._deviations(hypothesis, precision, frozenset(free))
        residuals, verdicts = {}, {}
        for name, found in self.found.items():
            if name not in steps:
                residuals[name], verdicts[name] = 1.0, Verdict(name, None, None, "the maps before it have sizes that do not fit")
            elif base is not None and name not in fresh:
                residuals[name], verdicts[name] = base.residuals[name], base.verdicts[name]
            else:
                residuals[name] = self._residual(hypothesis, steps[name])
                predicted = self._predicted(hypothesis, steps[name])
                verdicts[name] = self._verdict(steps[name], predicted, found, precision, deviations.get(name), two_sided=two_sided)
        return Trial(hypothesis, steps, residuals, verdicts)

    def _verdict(self, step: Step, predicted: Array, found: Array, precision: str, deviation: Array | None, *, two_sided: bool) -> Verdict:
        name = step.layer.name
        if predicted.shape != found.shape:
            return Verdict(name, None, None, f"has the shape {found.shape}, not {predicted.shape}")
        difference = found - predicted
        scale = _rms(predicted)
        error = _finite(_over(_rms(difference), scale))
        if precision == "fp64":
            largest = _over(float(np.max(np.abs(difference))), scale)
            fault = f"differs by {largest:.3g} of its rms" if largest > MEANING_BOUND else None
            return Verdict(name, error, _finite(largest / MEANING_BOUND), fault)
        if deviation is None:
            chance = local.FALSE_ALARM / (local.TESTS * len(self.found))
            inputs = tuple(np.asarray(array, np.float64) for array in step.inputs)
            judged = local.judge(step.layer, inputs, np.asarray(found, np.float64), step.tensors, precision, chance)
            figures = (judged.rms, judged.gauge, judged.slope)
            return Verdict(name, error, None if None in figures else max(figure or 0.0 for figure in figures), judged.fault)
        rho = _over(_rms(difference), _rms(deviation))
        passed = plausible(rho, precision) if two_sided else rho <= RHO_MAX
        fault = None if passed else f"differs by {rho:.3g} times the noise that {precision} explains"
        return Verdict(name, error, _finite(rho), fault, _over(_rms(deviation), scale))

    def _deviations(self, hypothesis: Hypothesis, precision: str, names: frozenset[str]) -> dict[str, Array]:
        """Rms effect of the predicted rounding noise on some of the given taps, by Monte Carlo (``rounding.envelope``)."""
        if not names:
            return {}
        images, rules = self.images_of(hypothesis), arithmetic(precision)
        tensors = {layer.name: self._tensors(layer, hypothesis) for layer in spec.layers(hypothesis.case.model.body)}
        runs, last = max(1, RUNS_IN_ALL // len(images)), _last(self.case.model)

        def of_image(index: int) -> dict[str, Array]:
            generator = np.random.Generator(np.random.PCG64((0, index)))
            sigmas: dict[str, npt.NDArray[np.float32]] = {}

            def run(noisy: bool) -> dict[str, Array]:
                seen: dict[str, Array] = {}

                def apply(layer: Layer, *inputs: _Value) -> _Value:
                    name = layer.name
                    given = self.found[name][index : index + 1] if name in self.found else None
                    if given is not None and name not in names and all(value.given for value in inputs):
                        return _Value(given, True)
                    arrays = tuple(np.asarray(value.array, np.float64) for value in inputs)
                    spec.output_shape(layer, *(array.shape for array in arrays))
                    output = hypothesis.case.evaluate(layer, arrays, tensors[name])
                    if name in hypothesis.case.instead or not isinstance(layer, EXACT_LAYERS):
                        if noisy:
                            output = output + generator.standard_normal(output.shape, dtype=np.float32) * sigmas[name]
                        else:
                            sigmas[name] = _sigma(layer, arrays, output, tensors[name], rules).astype(np.float32)
                    if name in names:
                        seen[name] = hypothesis.shown(output) if name == last else output
                    return _Value(output, False) if given is None else _Value(given, True)

                with contextlib.suppress(SpecError), np.errstate(all="ignore"):
                    spec.walk(hypothesis.case.model.body, apply, _Value(images[index : index + 1], True))
                return seen

            quiet = run(False)
            squares = dict.fromkeys(quiet, np.zeros(1))
            for _ in range(runs):
                for name, output in run(True).items():
                    squares[name] = squares[name] + (output - quiet[name]) ** 2
            return {name: np.sqrt(square / runs) for name, square in squares.items()}

        with ThreadPoolExecutor(self.threads) as executor:
            parts = list(executor.map(of_image, range(len(images))))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _sigma(layer: Layer, inputs: tuple[Array, ...], output: Array, tensors: Mapping[str, Array], rules: Arithmetic) -> Array:
    """``rounding.sigma``; a function in the place of a layer that rounds nothing errs as a sum of the sizes of what enters and leaves."""
    if isinstance(layer, EXACT_LAYERS):
        size = np.abs(output)
        entering = np.abs(inputs[0]) if inputs[0].shape == output.shape else size
        return sigma(Add(layer.name), (entering, size), size, {}, rules)
    return sigma(layer, inputs, output, tensors, rules)


def _identical(some: tuple[Array, ...], others: tuple[Array, ...]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def _last(model: ModelSpec) -> str:
    return list(spec.layers(model.body))[-1].name


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else (math.inf if numerator else 0.0)


def _finite(figure: float) -> float | None:
    return figure if math.isfinite(figure) else None
