"""Whether somebody's outputs are those of a network, and if not, in one sentence, why.

Outputs that lie outside the rounding noise of the oracle (``trial``) are explained by running the fault catalogue on the oracle:
every fault, everywhere at once and at every single layer, restricted to the layers between the first tap that fails and the given
taps before it. A fault is an explanation only if it leaves nothing but rounding noise, the very test that a sound run must pass,
and takes away nearly all of the difference; else other precisions and wires are tried, and then two faults together. What passes
none of this is said to be unexplained, with what was not tried because it would take too long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from impls import spec
from impls.oracle import local
from impls.oracle.forward import check
from impls.oracle.rounding import arithmetic, round_to
from impls.precision import PRECISIONS
from impls.spec import Layer, ModelSpec, SpecError, tap_shapes
from suites.equivalence import outputs, signature
from suites.equivalence.faults.families import CATALOGUE
from suites.equivalence.faults.fault import Case, Fault, Group, Site
from suites.equivalence.faults.surgery import blocks
from suites.equivalence.trial import Evidence, Hypothesis, Step, Trial, Verdict
from suites.harness.reference import held

LEAST_SHARE = 0.9
"""Part of the difference that an explanation takes away. An unrelated change of D numbers lies within 0.1 of the difference's length of
it with a chance of about 0.1^(D - 1)."""

LEAST_NUMBERS = 10
"""Fewer numbers are explained by chance: of 2,000 faults and sites, 2,000 * 0.1^9 = 2e-6 would be."""

MUCH = 0.5
"""A fault that takes away this part of the difference may be one of two, and is worth telling where none explains it."""

APART = 6.2
"""Of two explanations so many deviations of noise apart the wrong one fits better with a chance of 1e-3, Phi(-6.2 / 2). The numbers of an
image err as one draw at worst, so on n images it leaves sqrt(1 + 6.2^2 / n) times what the right one leaves; the nearer are named
together."""

COARSEST = max(precision.unit_roundoff for precision in PRECISIONS.values())
"""Relative error of one rounding in the coarsest precision."""

JUDGED = 8
"""Explanations, best first, that are held to the noise."""

SCORED_NUMBERS = 32
"""The faults are ranked on as few images as have so many given numbers: three times ``LEAST_NUMBERS``."""

WORK = 11 * 10**11
"""Multiply-accumulates that a ranking may take: one to two minutes on two cores, enough for every fault of ResNet-50 at 64 x 64 by its
logits alone. What it leaves out is said."""

MEMORY_BYTES = 1 << 30
"""For the oracle's taps: only as many images are judged as fit."""

Say = Callable[[str], None]
Weights = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What may be wrong: a sentence, the ids and sites of the faults in the catalogue, and the share of the difference explained."""

    sentence: str
    faults: tuple[str, ...]
    sites: tuple[str, ...]
    share: float | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The answer.

    Attributes:
        verdict: whether the outputs are equal up to the precision's rounding; "unclear" where that noise drowns the logits.
        sentence: all of it, for people.
        elements: numbers compared.
        taps: given taps.
        images: images of the batch that were judged.
        first_tap: the first tap outside the noise, in topological order.
        error: its rms difference over its rms; where all agree, that of the last tap. None where the shape differs.
        noise: that difference in units of the bound or the noise.
        explanations: equally good ones; empty where nothing explains it.
        untried: faults and places that were left out because they would have taken too long; 0 where something explains it.
    """

    verdict: Literal["equal", "different", "unclear"]
    sentence: str
    elements: int
    taps: int
    images: int
    first_tap: str | None
    error: float | None
    noise: float | None
    explanations: tuple[Explanation, ...] = ()
    untried: int = 0


def diagnose(
    model: ModelSpec,
    weights: Weights,
    images: npt.NDArray[np.float32],
    found: Mapping[str, npt.NDArray[Any]],
    precision: str = "fp32",
    *,
    threads: int = 1,
    say: Say = lambda message: None,
) -> Diagnosis:
    """Judge outputs, and explain them where they differ.

    Args:
        model: the network that was meant.
        weights: its tensors, float32, as the weight file has them.
        images: (N, C, H, W), float32.
        found: arrays by tap, or "logits": (N, C, H, W), (N, H, W, C) or (N, C), of any of the types in ``outputs.canonical``.
        precision: in which they were computed.
        threads: for the oracle.
        say: told what is being tried.

    Raises:
        OutputsError: outputs that cannot be judged.
        SpecError, WeightsError: images or weights that do not belong to the model.
        ValueError: an unknown precision.
    """
    evidence = _evidence(model, weights, images, found, precision, threads)
    with threadpool_limits(1):  # hypotheses are tried side by side
        return _Search(evidence, say).run()


def agrees(
    model: ModelSpec, weights: Weights, images: npt.NDArray[np.float32], found: Mapping[str, npt.NDArray[Any]], *, threads: int = 1
) -> bool:
    """Whether outputs in fp32 are the network's up to rounding, of noise small enough for that to mean something; nothing is explained.

    Arguments and errors are those of ``diagnose``.
    """
    evidence = _evidence(model, weights, images, found, "fp32", threads)
    with threadpool_limits(1):
        trial = evidence.trial(Hypothesis(evidence.case))
    return not trial.failing and all(verdict.has_power for verdict in trial.verdicts.values())


def _evidence(
    model: ModelSpec,
    weights: Weights,
    images: npt.NDArray[np.float32],
    found: Mapping[str, npt.NDArray[Any]],
    precision: str,
    threads: int,
) -> Evidence:
    """The outputs of as many images as fit."""
    if precision not in PRECISIONS:
        raise ValueError(f"there is no precision {precision!r}; known: {', '.join(PRECISIONS)}")
    check(model, weights, images)
    taps = outputs.canonical(model, images.shape, found)
    per_image = sum(8 * math.prod(shape) for shape in tap_shapes(model, 1, *images.shape[2:]).values())
    count = min(len(images), max(1, MEMORY_BYTES // per_image))
    return Evidence(
        Case(model, weights, images), {name: tap[:count] for name, tap in taps.items()}, precision, tuple(range(count)), threads
    )


Candidate = tuple[Fault, Site]


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """Faults to be tried, group by group, those left out, and how many times ``WORK`` all would take."""

    groups: tuple[tuple[Candidate, ...], ...]
    left_out: tuple[Candidate, ...]
    times: float

    @property
    def size(self) -> int:
        """How many faults and places there are, those left out among them."""
        return len(self.left_out) + sum(len(group) for group in self.groups)


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    evidence: Evidence
    say: Say

    def run(self) -> Diagnosis:
        evidence, sound = self.evidence, Hypothesis(self.evidence.case)
        self.say("comparing with the oracle")
        clean = evidence.trial(sound)
        if not clean.failing:
            return self._equal(clean)
        if sum(tap.size for tap in evidence.found.values()) < LEAST_NUMBERS:
            return self._different(clean, (), f"{LEAST_NUMBERS} numbers are the fewest that tell faults apart")
        plan = self._plan(clean)
        if plan.left_out:
            self.say(self._untried(clean, plan))
        best: list[_Scored] = []
        for number, sites in enumerate(plan.groups):
            scored = self._ranked(clean, clean, sites)
            if explained := self._explained(clean, clean, scored):
                # What is everywhere may do nothing but at one layer, and then that layer explains it as well.
                ids = {name for each in explained for name in each.faults}
                alone = [site for group in plan.groups[number + 1 :] for site in group if site[0].id in ids]
                if alone:
                    explained = self._explained(clean, clean, _best_first((*scored, *self._ranked(clean, clean, alone))))
                return self._different(clean, explained)
            best = _best_first((*best, *scored))
        if named := self._other_precision(clean) or self._other_wire(clean):
            return self._different(clean, (named,))
        if explained := self._in_pairs(clean, best):
            return self._different(clean, explained)
        return replace(self._different(clean, (), self._hint(clean, plan, best)), untried=len(plan.left_out))

    def _plan(self, trial: Trial) -> _Plan:
        """Faults that touch the layers before the first failing tap; with the logits alone in three groups, the likely ones first.

        Whoever errs errs everywhere: of every fault the first site is that of all layers at once, or the only one. Then come single
        layers, and last what was taken from another layer. Where all would take too long, those that the fewest layers follow are tried.
        """
        region = self.evidence.region(trial.failing[0])
        groups: tuple[list[Candidate], ...] = ([], [], [])
        for fault in CATALOGUE:
            for number, site in enumerate(fault.sites(self.evidence.case.model)):
                if region & set(site.layers):
                    groups[(1 if number else 0) if not fault.reads else 2].append((fault, site))
        if len(self.evidence.found) > 1:
            groups = ([each for group in groups for each in group],)
        macs = spec.macs_of_layers(self.evidence.case.model, *self.evidence.images.shape[2:])
        left, total = WORK, 0
        tried: list[tuple[Candidate, ...]] = []
        left_out: list[Candidate] = []
        for group in groups:
            costs = {changed: self._cost(changed, macs) for changed in {site.layers for _, site in group}}
            chosen: list[Candidate] = []
            for candidate in sorted(group, key=lambda each: costs[each[1].layers]):
                cost = costs[candidate[1].layers]
                left, total = left - cost, total + cost
                (chosen if left >= 0 else left_out).append(candidate)
            tried.append(tuple(chosen))
        return _Plan(tuple(tried), tuple(left_out), total / WORK)

    def _cost(self, changed: Group, macs: Mapping[str, int]) -> int:
        """Multiply-accumulates of ranking a fault in some layers: of those between them and the given taps behind them."""
        found, total = self.evidence.found, 0

        def apply(layer: Layer, *inputs: bool) -> bool:
            nonlocal total
            here = layer.name in changed or any(inputs)
            total += here * macs[layer.name]
            return here and layer.name not in found

        spec.walk(self.evidence.case.model.body, apply, False)
        return total * self._scored_images

    @property
    def _scored_images(self) -> int:
        numbers = sum(tap.size for tap in self.evidence.found.values()) / self.evidence.count
        return min(self.evidence.count, math.ceil(SCORED_NUMBERS / numbers))

    def _untried(self, trial: Trial, plan: _Plan) -> str:
        """What was left out, and what would make it short."""
        region = self.evidence.region(trial.failing[0])
        ends = [(*block.then, block.merge)[0].name for block in blocks(self.evidence.case.model)]
        between = [name for name in ends if name in region and name not in self.evidence.found]
        tap = f"the tap {between[len(between) // 2]}, or " if between else ""
        return (
            f"{len(plan.left_out):,} of {plan.size:,} faults and places are not tried, since all would take "
            f"{plan.times:.2g} times as long: give {tap}smaller images"
        )

    def _hint(self, clean: Trial, plan: _Plan, best: Sequence[_Scored]) -> str | None:
        """The nearest fault, if taps say where it must lie; by the logits alone many faults come half as near as the right one."""
        if plan.left_out:
            return self._untried(clean, plan)
        if len(self.evidence.found) == 1:
            return "give outputs of layers too, and the first that is wrong is named"
        if not best or best[0].share < MUCH:
            return None
        return f"nearest comes that {best[0].sentence}, which explains only {_percent(best[0].share)}"

    def _ranked(self, clean: Trial, base: Trial, sites: Sequence[Candidate]) -> list[_Scored]:
        """Every fault on top of ``base``, best first, by the share of the clean difference that they explain together."""
        evidence = self.evidence.farthest(clean, self._scored_images)
        start, first = (evidence.measure(trial.hypothesis) for trial in (base, clean))
        taken = {name for _, site in base.hypothesis.causes for name in site.layers}
        untaken = [(fault, site) for fault, site in sites if not taken & set(site.layers)]

        def score(number: int) -> _Scored | None:
            fault, site = untaken[number]
            if number % 50 == 0:
                self.say(f"trying {len(untaken)} faults, {number} done")
            try:
                hypothesis = base.hypothesis.with_fault(fault, site)
            except SpecError:
                return None
            left = evidence.residuals(hypothesis, start)
            shares = (_share(taps, first.residuals, left) for taps in (clean.failing, clean.failing[:1]))
            return _Scored(base.hypothesis, fault, site, *shares)

        with ThreadPoolExecutor(self.evidence.threads) as executor:
            scored = [each for each in executor.map(score, range(len(untaken))) if each is not None]
        return _best_first(scored)

    def _explained(self, clean: Trial, base: Trial, scored: Sequence[_Scored]) -> tuple[Explanation, ...]:
        """The best of those that leave only noise, and its equals."""
        passed: list[tuple[float, _Scored]] = []
        for each in [each for each in scored if each.share >= LEAST_SHARE][:JUDGED]:
            self.say(f"is it that {each.sentence}?")
            trial = self.evidence.trial(each.hypothesis, base, two_sided=False)
            share = _share(clean.failing, clean.residuals, trial.residuals)
            if not trial.failing and share >= LEAST_SHARE:
                passed.append((share, each))
        passed.sort(key=lambda pair: -pair[0])
        nearest = math.sqrt(1 + APART**2 / self.evidence.count)
        tied = [(share, each) for share, each in passed if 1 - share <= nearest * (1 - passed[0][0]) + 1e-12]
        return tuple(each.explanation(share) for share, each in tied)

    def _in_pairs(self, clean: Trial, scored: Sequence[_Scored]) -> tuple[Explanation, ...]:
        """One more fault on top of the best that explains some failing taps whole and breaks none, or much of the one that fails."""
        whole = [each for each in scored if each.first >= LEAST_SHARE][:JUDGED]
        for each in whole or [each for each in scored[:1] if each.share >= MUCH]:
            base = self.evidence.trial(each.hypothesis, clean, two_sided=False)
            if set(base.failing) < set(clean.failing) or (base.failing == clean.failing and each.share >= MUCH):
                break
        else:
            return ()
        for sites in self._plan(base).groups:
            if explained := self._explained(clean, base, self._ranked(clean, base, sites)):
                return explained
        return ()

    def _other_precision(self, clean: Trial) -> Explanation | None:
        """Another precision in which every failing tap is sound."""
        declared, found = self.evidence.precision, self.evidence.found
        for precision in ("fp32", "tf32", "fp16", "bf16"):
            proves = (_proves(clean.steps.get(name), found[name], precision, declared) for name in clean.failing)
            if precision == declared or not all(proves):
                continue
            self.say(f"is it {precision}?")
            other = replace(self.evidence, precision=precision).trial(Hypothesis(self.evidence.case), two_sided=False)
            if all(other.verdicts[name].fault is None for name in clean.failing):
                sentence = f"{_listed(clean.failing)} rounds as {precision} does, in a run declared {declared}"
                return Explanation(sentence, (f"{declared}-as-{precision}",), clean.failing, None)
        return None

    def _other_wire(self, clean: Trial) -> Explanation | None:
        """Another tap that the one failing layer reads."""
        first, evidence = clean.failing[0], self.evidence
        if len(clean.failing) > 1 or not clean.steps[first].direct or evidence.precision == "fp64":
            return None
        model, weights = evidence.case.model, held(evidence.case.weights, evidence.precision)
        sentence = local.misread(model, weights, evidence.images, evidence.found, evidence.precision, first)
        return Explanation(sentence, ("misread",), (first,), None) if sentence else None

    def _equal(self, clean: Trial) -> Diagnosis:
        last = list(clean.verdicts.values())[-1]
        precision = self.evidence.precision
        if weak := [verdict for verdict in clean.verdicts.values() if not verdict.has_power]:
            part = _percent(weak[0].carried or 0.0)
            sentence = f"cannot tell: rounding in {precision} alone changes {weak[0].tap} by {part} of its size; give taps before it too"
            return self._answer("unclear", sentence, last, None)
        sentence = f"agrees: {self._counted()} lie within the rounding noise of {precision} (rms error {last.error:.2g} of {last.tap})"
        return self._answer("equal", sentence, last, None)

    def _different(self, clean: Trial, explained: tuple[Explanation, ...], why: str | None = None) -> Diagnosis:
        first = clean.verdicts[clean.failing[0]]
        if explained:
            sentence = "differs: " + ", or ".join(each.sentence for each in explained)
            if (share := explained[0].share) is not None:
                sentence += f"; explains {_percent(share)} of the difference" + (", each of them" if len(explained) > 1 else "")
            return self._answer("different", sentence, first, first.tap, explained)
        sentence = "differs, and nothing in the catalogue explains it: "
        sentence += (
            first.tap if len(clean.verdicts) == 1 else f"of {len(clean.verdicts)} given taps the first to fail is {first.tap}, which"
        )
        step = clean.steps.get(first.tap)
        sentence += f" {_what_fails(first, step, self.evidence.precision)}"
        if first.error is not None:
            sentence += f", by {_percent(first.error)} of its rms"
        reading = signature.read(self.evidence.found[first.tap], step.output) if step else None
        for part in (f"it {reading}" if reading else None, why):
            sentence += f"; {part}" if part else ""
        return self._answer("different", sentence, first, first.tap)

    def _answer(
        self,
        verdict: Literal["equal", "different", "unclear"],
        sentence: str,
        shown: Verdict,
        first: str | None,
        explained: tuple[Explanation, ...] = (),
    ) -> Diagnosis:
        found = self.evidence.found
        elements = sum(tap.size for tap in found.values())
        return Diagnosis(verdict, sentence, elements, len(found), self.evidence.count, first, shown.error, shown.noise, explained)

    def _counted(self) -> str:
        found = self.evidence.found
        taps = "the logits" if len(found) == 1 else f"{len(found)} taps"
        return f"{sum(tap.size for tap in found.values()):,} numbers of {taps} for {self.evidence.count} images"


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """A fault on top of others, and the shares of all failing taps' difference and of the first one's that they explain together."""

    base: Hypothesis
    fault: Fault
    site: Site
    share: float
    first: float

    @property
    def hypothesis(self) -> Hypothesis:
        """Made when it is asked for: the tensors of all would fill the memory."""
        return self.base.with_fault(self.fault, self.site)

    @property
    def causes(self) -> tuple[Candidate, ...]:
        return (*self.base.causes, (self.fault, self.site))

    @property
    def sentence(self) -> str:
        return ", and ".join(fault.say(site) for fault, site in self.causes)

    def explanation(self, share: float) -> Explanation:
        """It, with the share of the difference that it explains on all images."""
        ids, sites = tuple(fault.id for fault, _ in self.causes), tuple(site.name for _, site in self.causes)
        return Explanation(self.sentence, ids, sites, share)


def _best_first(scored: Iterable[_Scored]) -> list[_Scored]:
    return sorted(scored, key=lambda each: -each.share)


def _share(taps: Sequence[str], before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """1 - rms(found - faulty) / rms(found - clean) over the failing taps, each in units of its own rms.

    What the fault does to other taps counts against it, or a fault of every layer would explain that of one.
    """
    left = sum(after[tap] for tap in taps) + sum(max(0.0, after[tap] - before[tap]) for tap in after if tap not in taps)
    return 1 - math.sqrt(left / sum(before[tap] for tap in taps))


def _proves(step: Step | None, found: npt.NDArray[Any], precision: str, declared: str) -> bool:
    """Whether a tap that is sound in another precision is so for a reason: the size of an error proves nothing about a coarser one.

    Where E3 judges it, or where the precision is the finer one, being sound is proof. Else the stored numbers must be the precision's own.
    """
    if step is None or step.is_local:
        return step is not None
    if PRECISIONS[precision].significand_bits > PRECISIONS[declared].significand_bits:
        return True
    return bool(arithmetic(precision).store) and np.array_equal(round_to(found, precision), found)


def _what_fails(verdict: Verdict, step: Step | None, precision: str) -> str:
    """What is wrong with a tap; an error beyond the coarsest roundoff is not said to be one of rounding."""
    if step is None or not step.is_local or verdict.error is None:
        return (verdict.fault or "").partition(":")[0]
    if verdict.error > COARSEST:
        return f"is not the {type(step.layer).__name__} of its inputs"
    return f"does not round as {precision} does"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _percent(share: float) -> str:
    """A share with as many decimals as it takes to tell it from 100 %; never rounded up to it."""
    percent = 100 * share
    if percent >= 99:
        return f"{math.floor(percent * 100) / 100:.2f} %"
    return f"{percent:.3g} %"
