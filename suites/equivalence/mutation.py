"""How much the certificate sees: every fault of the catalogue put into one implementation and examined by the certificate's own tiers.

The implementation is PyTorch, eager, which gets the faulty network and weights; TF32, which no CPU has, faults of arithmetic and
layers that the spec does not have run in ``suites.equivalence.simulation``. The oracle never hears of a fault: it answers for the
sound network. E0 to E4 are the certificate's; R5 is the epsilon probe: the same function with running variances below epsilon, so
that epsilon decides every scale, judged in float64 as E2 and in the other precisions as E3.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

from impls.implementation import OURS
from impls.oracle import forward, lattice
from impls.oracle.rounding import Envelope, rho
from impls.spec import ModelSpec, layers
from impls.weights import file, folding
from suites.equivalence import probes, simulation
from suites.equivalence.faults import families
from suites.equivalence.faults.arithmetic import ARITHMETIC, ArithmeticFault
from suites.equivalence.faults.families import CATALOGUE, FAMILIES
from suites.equivalence.faults.fault import Array, Case, Citation, Fault, Function, Images, Site, Weights, computed, without_helpers
from suites.equivalence.faults.inference import INFERENCE, POOL, photographs
from suites.equivalence.rules import RULES, Outputs
from suites.equivalence.tiers import Tier, exact, identity, local_rounding, meaning, rounding_noise
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, START_TIMEOUT_S, subject
from suites.harness.process import Launch, WorkerProcess
from suites.harness.reference import held, reference

IMPLEMENTATION, MODE = "pytorch", "eager"
FRAMEWORK_PRECISIONS = ("fp64", "fp32", "bf16", "fp16")
SIMULATED_PRECISIONS = ("tf32",)
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
"""Those that a fault must be seen in; fp64 is the precision of E2."""

SOUND = "-"
"""The id of no fault."""

SIGNAL = 5.0
"""A fault must be seen in a precision where it moves the logits by this many deviations of the predicted noise."""

LATTICE_SEED = 1
MEANING_IMAGES = 2
TINT = np.array([1.0, 0.75, 0.5], np.float32)[:, None, None]
"""The digits are grey, which would hide an exchange of channels."""


@dataclass(frozen=True, slots=True)
class Net:
    """A network, the size of its images in pixels, on how many E3 looks, the faults that it is given, None for all it can have, and where.

    ``simulated`` says whether it is also examined in the precisions that only ``simulation`` has, and without a list of faults with those
    of arithmetic.
    """

    model: str
    size: int
    local_images: int
    faults: tuple[str, ...] | None
    simulated: bool
    precisions: tuple[str, ...] = FRAMEWORK_PRECISIONS

    def takes(self, fault: Fault) -> bool:
        """Whether the fault is examined on it: without a list, whatever it can have but the families."""
        return fault.id in self.faults if self.faults is not None else fault in INFERENCE


PIXELS = tuple(fault.id for fault in FAMILIES if fault.find is photographs)
POOLS = tuple(fault.id for fault in FAMILIES if fault.find is POOL)

FLATTENINGS = tuple(fault.id for fault in families.FLATTENINGS)

NETS: tuple[Net, ...] = (
    Net("cifar_resnet20", 32, 2, None, True),
    Net(
        "resnet18",
        64,
        1,
        (
            "conv-same",
            "stem-same",
            "pool-same",
            "pool-valid",
            "pool-2x2",
            "pool-average",
            "pool-zero",
            "eps-1.001e-5",
            "shortcut-odd",
            "images-bgr",
            "images-256",
            "images-255-twice",
            "images-255-never",
            "images-minus-one-to-one",
            "images-mean-order",
            "images-no-deviation",
            *PIXELS,
            *POOLS,
        ),
        False,
    ),
    Net("resnet50", 64, 1, ("conv-same", "stride-v1", "eps-1e-3", "kernel-transposed", "blocks-swapped"), False),
    Net("resnet50_v1", 64, 1, ("stride-v1.5",), False),
    Net("googlenet", 64, 1, ("pool-floor", "pool-ceil-before", "concat-reversed"), False, ("fp64", "fp32", "bf16")),
    Net("alexnet", 224, 1, FLATTENINGS, False),
    Net("cifar_resnet8", 32, 2, tuple(fault.id for fault in FAMILIES if fault.id not in (*PIXELS, *POOLS)), True),
)
"""Trained weights with every single fault that a CIFAR net can have; synthesised weights with the families, and with those that need an
ImageNet net or a bottleneck, branches that are concatenated, or a map that is flattened. GoogLeNet's epsilon has no exact probe in fp16."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one tier says: whether it fails, the first tap that it names, and why."""

    killed: bool
    tap: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One fault at one site of one network, and what became of it.

    ``signals`` holds, by precision, how far the oracle's logits move in deviations of the predicted noise; ``verdicts`` what each
    tier says, by precision and tier; ``passes`` which of the others' rules let the fp32 logits pass. ``clean`` rows have no fault.
    """

    net: str
    fault: str
    sentence: str
    kind: str
    tap: str | None
    single: bool
    citation: Citation | None = None
    equivalent: str | None = None
    signals: dict[str, float] = field(default_factory=dict)
    verdicts: dict[str, dict[str, Verdict]] = field(default_factory=dict)
    passes: dict[str, bool] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether nothing may be reported: there is no fault, or one that is no fault."""
        return self.kind == "clean" or self.equivalent is not None

    def killed_in(self, precision: str) -> tuple[str, ...]:
        """The tiers that fail in a run of this precision."""
        return tuple(tier for tier, verdict in self.verdicts.get(precision, {}).items() if verdict.killed)

    @property
    def killed(self) -> bool:
        """Whether any tier fails anywhere."""
        return any(self.killed_in(precision) for precision in self.verdicts)


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What a network's rows are examined with: the sound case and what the oracle says to it."""

    net: Net
    case: Case
    folded: tuple[ModelSpec, Weights]
    threads: int

    @functools.cache  # noqa: B019 - lives as long as the run
    def probe(self, precision: str) -> lattice.Lattice:
        """The probe of E1."""
        return lattice.lattice(self.case.model, precision, batch=2, height=self.net.size, width=self.net.size, seed=LATTICE_SEED)

    @functools.cache  # noqa: B019
    def meant(self, probe: bool) -> dict[str, Array]:
        """The taps that E2 asks for, of the weights or of the epsilon probe."""
        case = epsilon_probe(self.case) if probe else self.case
        return forward.taps(case.model, case.weights, case.images[:MEANING_IMAGES])

    @functools.cache  # noqa: B019
    def held(self, precision: str, probe: bool) -> dict[str, Array]:
        """The sound weights, or those of the epsilon probe, as a precision holds them."""
        return dict(held((epsilon_probe(self.case) if probe else self.case).weights, precision))

    def held_of(self, mutant: Case, precision: str) -> dict[str, Array]:
        """A mutant's weights as a precision holds them; what the fault left alone is not rounded again."""
        sound = self.held(precision, probe=False)
        mine = {name: tensor for name, tensor in mutant.weights.items() if tensor is not self.case.weights.get(name)}
        return sound | dict(held(mine, precision))

    @functools.cache  # noqa: B019
    def logits(self, precision: str) -> Array:
        """The oracle's, for weights and images as the precision holds them."""
        images = held({"images": self.case.images}, precision)["images"]
        return forward.forward(self.case.model, self.held(precision, probe=False), images)

    @functools.cache  # noqa: B019
    def noise(self, precision: str, folded: bool) -> Envelope:
        """Where the logits lie."""
        model, weights = self.folded if folded else (self.case.model, self.case.weights)
        return reference(model, weights, self.case.images, precision, self.threads)


def forget() -> None:
    """Let go of what the oracle said to networks that are done with."""
    for kept in (Subject.probe, Subject.meant, Subject.held, Subject.logits, Subject.noise):
        kept.cache_clear()


def prepare(net: Net, threads: int) -> Subject:
    """The sound case of a network: eight images of its own kind, with all three channels different."""
    about = subject(net.model)
    own = about.model.input_chw[1:] == (net.size, net.size)
    images = about.inputs.pool * TINT if own else about.inputs.photographs(net.size, net.size)
    return Subject(net, Case(about.model, about.weights, images), (about.folded_model, about.folded_weights), threads)


def epsilon_probe(case: Case) -> Case:
    """The same function with running variances below epsilon, so that epsilon decides every scale."""
    return dataclasses.replace(case, weights=probes.small_variances(case.model, case.weights))


@dataclass(frozen=True, slots=True)
class Mutation:
    """A fault at a site; ``fault`` None is the sound network."""

    fault: Fault | None
    site: Site | None

    def of(self, case: Case) -> Case:
        """What is run in place of ``case``."""
        return case if self.fault is None or self.site is None else self.fault.of(case, self.site)

    def simulated(self, case: Case, precision: str) -> Simulated:
        """What runs it where no framework can."""
        return Simulated(precision, instead=self.of(case).instead)

    def output(self, logits: Array) -> Array:
        """What the implementation gives for its logits."""
        return logits if self.fault is None or self.fault.output is None else self.fault.output(logits)


def mutations(net: Net, model: ModelSpec) -> list[Mutation]:
    """The sound network, then each fault everywhere at once and in one layer from the middle."""
    found = [Mutation(None, None)]
    for fault in CATALOGUE:
        if net.takes(fault):
            sites = fault.sites(model)
            single = [site for site in sites if site.single]
            chosen = [site for site in sites if not site.single] + single[len(single) // 2 :][:1]
            found += [Mutation(fault, site) for site in chosen]
    return found


class RefusedError(Exception):
    """The weight file's reader does not take these weights; no certificate can come of it."""


class Framework:
    """An implementation in one precision, in a process of its own."""

    def __init__(self, python: Path, precision: str, folder: Path, implementation: str = IMPLEMENTATION, mode: str = MODE) -> None:
        self.folder = folder
        self.mode = mode
        log = folder / f"{implementation}-{precision}.log"
        launch = Launch(python, f"{OURS}.{implementation}", "cpu", precision, 1, False, log, {"OMP_NUM_THREADS": "1"})
        self.worker = WorkerProcess(launch)
        self.worker.call("start", START_TIMEOUT_S)
        self.precision = precision

    def taps(self, model: ModelSpec, weights: Weights, images: Images) -> dict[str, Array]:
        """Every tap, of the unfused and unfolded network."""
        out = self.folder / f"{self.precision}-taps.safetensors"
        self._prepare(model, weights, images, fold=False)
        batch = self.folder / f"{self.precision}-batch.safetensors"
        save({"images": images}, batch)
        self.worker.call("taps", BUILD_TIMEOUT_S, handle="mutant", images=str(batch), out=str(out))
        found: dict[str, Array] = load_file(out)
        return found

    def logits(self, model: ModelSpec, weights: Weights, images: Images, *, fold: bool = True) -> Array:
        """The logits through the mode, folded as it is timed unless told otherwise."""
        out = self.folder / f"{self.precision}-logits.safetensors"
        self._prepare(model, weights, images, fold=fold)
        ring = self.folder / f"{self.precision}-ring.safetensors"
        save({"images": images[None]}, ring)
        self.worker.call("put", BUILD_TIMEOUT_S, handle="mutant", images=str(ring))
        self.worker.call("outputs", CALL_TIMEOUT_S, handle="mutant", out=str(out))
        result: Array = load_file(out)["logits"][0]
        return result

    def end(self) -> None:
        """End the process."""
        self.worker.end()

    def _prepare(self, model: ModelSpec, weights: Weights, images: Images, *, fold: bool) -> None:
        path = self.folder / f"{self.precision}.safetensors"
        try:
            file.save(path, model, weights, source="a fault of the catalogue", preprocess={}, licence="CC0-1.0")
        except file.WeightFileError as error:
            raise RefusedError(str(error).partition(": ")[2]) from None
        shape = list(images.shape)
        self.worker.call("prepare", BUILD_TIMEOUT_S, handle="mutant", weights=str(path), mode=self.mode, input_shape=shape, fold=fold)


class Simulated:
    """The same in NumPy, for the precisions that no CPU has and the functions that no implementation is told."""

    def __init__(
        self, precision: str, deviating: Mapping[str, simulation.Steps] | None = None, instead: Mapping[str, Function] | None = None
    ) -> None:
        self.precision = precision
        self.deviating = deviating
        self.instead = instead

    def taps(self, model: ModelSpec, weights: Weights, images: Images) -> dict[str, Array]:
        """See ``Framework``."""
        return simulation.taps(model, weights, images, self.precision, self.deviating, self.instead)

    def logits(self, model: ModelSpec, weights: Weights, images: Images) -> Array:
        """See ``Framework``; always folded."""
        with np.errstate(all="ignore"):
            folded = folding.fold_batch_norm(model, weights)
        return list(self.taps(*folded, images).values())[-1]

    def end(self) -> None:
        """Nothing."""


def verdict(tier: Tier) -> Verdict:
    """A tier's answer; the first word of its reason is the tap."""
    tap = None if tier.passed or tier.reason is None else tier.reason.split()[0].removesuffix(":")
    return Verdict(not tier.passed, tap, tier.reason)


def examine(about: Subject, mutation: Mutation, implementation: Framework | Simulated) -> tuple[dict[str, Verdict], Array | None]:
    """What every tier of a precision says to a mutation, and the folded logits (None in fp64, or where there are none)."""
    precision, sound = implementation.precision, about.case
    found: dict[str, Verdict] = {}
    logits: Array | None = None
    last = list(layers(sound.model.body))[-1].name
    few, some = (dataclasses.replace(sound, images=sound.images[:count]) for count in (MEANING_IMAGES, about.net.local_images))

    def shown(case: Case) -> dict[str, Array]:
        mutant = mutation.of(case)
        taps = without_helpers(implementation.taps(mutant.model, mutant.weights, mutant.images))
        return {**taps, last: mutation.output(taps[last])} if last in taps else taps

    def ask(tier: str, question: Callable[[], Verdict]) -> None:
        try:
            found[tier] = question()
        except RefusedError as refused:
            found[tier] = Verdict(True, str(refused).partition(": ")[0].rpartition(".")[0], f"refused: {refused}")

    def rounding(case: Case, *, probe: bool) -> Verdict:
        images = held({"images": case.images}, precision)["images"]
        with np.errstate(all="ignore"):  # a faulty network may overflow
            return verdict(local_rounding(case.model, about.held(precision, probe), images, shown(case), precision))

    def structure() -> Verdict:
        probe = about.probe(precision)
        return verdict(exact(probe.expected, shown(Case(sound.model, probe.weights, probe.images))))

    def noise() -> Verdict:
        nonlocal logits
        mutant = mutation.of(sound)
        logits = mutation.output(implementation.logits(mutant.model, mutant.weights, mutant.images))
        return verdict(rounding_noise(logits, about.noise(precision, folded=True), precision))

    if precision == "fp64":
        ask("E2", lambda: verdict(meaning(about.meant(False), shown(few))))
        ask("R5", lambda: verdict(meaning(about.meant(True), shown(epsilon_probe(few)))))
        return found, None
    if mutation.fault is not None and mutation.fault.kind == "weights":
        found["E0"] = verdict(_identity(about.held(precision, probe=False), about.held_of(mutation.of(sound), precision)))
    ask("E1", structure)
    ask("E3", lambda: rounding(some, probe=False))
    ask("R5", lambda: rounding(epsilon_probe(some), probe=True))
    ask("E4", noise)
    return found, logits


def _identity(expected: Mapping[str, Array], found: Mapping[str, Array]) -> Tier:
    """E0 of the tensors that a framework would read back; those that are the very same array need no hash."""
    expected = {name: tensor for name, tensor in expected.items() if tensor is not found[name]}
    return identity(
        expected,
        {
            name: {
                "dtype": str(tensor.dtype),
                "shape": tensor.shape,
                "sha256": hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).hexdigest(),
            }
            for name, tensor in found.items()
            if name in expected
        },
    )


def signals(about: Subject, mutation: Mutation) -> dict[str, float]:
    """How far the oracle's logits move, in deviations of each precision's noise; infinite where they are not finite."""
    mutant = mutation.of(about.case)
    found: dict[str, float] = {}
    moved: Array = np.zeros(0)
    for precision in PRECISIONS:
        if precision != "tf32":  # which holds what fp32 holds, and comes after it
            images = held({"images": mutant.images}, precision)["images"]
            with np.errstate(all="ignore"):
                taps = computed(dataclasses.replace(mutant, weights=about.held_of(mutant, precision), images=images))
                moved = mutation.output(list(taps.values())[-1])
        distance = rho(moved, Envelope(about.logits(precision), about.noise(precision, folded=False).deviation))
        found[precision] = distance if math.isfinite(distance) else math.inf
    return found


def labels(about: Subject) -> npt.NDArray[np.int64]:
    """Labels for the rules that ask for a loss: the classes that the sound network puts the images in."""
    result: npt.NDArray[np.int64] = about.noise("fp32", folded=True).logits.argmax(axis=1).astype(np.int64)
    return result


def row_of(net: Net, mutation: Mutation) -> Row:
    """A row with nothing examined yet."""
    fault, site = mutation.fault, mutation.site
    if fault is None or site is None:
        return Row(net.model, SOUND, "the sound network", "clean", None, False)
    return Row(net.model, fault.id, fault.say(site), fault.kind, site.tap, site.single, fault.citation, fault.equivalent)


def run(
    python: Path,
    threads: int,
    say: Callable[[str], None],
    nets: Sequence[Net] = NETS,
    precisions: Sequence[str] = FRAMEWORK_PRECISIONS,
) -> list[Row]:
    """The matrix of inference; without ``nets`` and ``precisions`` the whole of it.

    Raises:
        WorkerError: the implementation did not answer.
    """
    rows: list[Row] = []
    with TemporaryDirectory(prefix="levelfield-") as folder, threadpool_limits(1):  # the products are small, and run side by side
        for net in nets:
            about = prepare(net, threads)
            planned = mutations(net, about.case.model)
            made = [row_of(net, mutation) for mutation in planned]
            simulated = SIMULATED_PRECISIONS if net.simulated else ()
            here = [precision for precision in precisions if precision in net.precisions]
            say(f"{net.model}: {len(planned) - 1} mutants in {', '.join((*here, *simulated))}")
            tasks: list[Callable[[], None]] = [
                *(functools.partial(_in_framework, python, Path(folder), precision, about, planned, made) for precision in here),
                *(functools.partial(_simulated, precision, about, planned, made) for precision in simulated),
                functools.partial(_signals, about, planned, made),
            ]
            with ThreadPoolExecutor(threads) as executor:
                for done in [executor.submit(task) for task in tasks]:
                    done.result()
            rows += made
            if net.simulated and net.faults is None:
                rows += arithmetic(about, threads)
            forget()
    return rows


@dataclass(frozen=True, slots=True)
class CorrectRun:
    """A sound fp32 run of some implementation, and which of the others' rules let it pass against ``IMPLEMENTATION``'s."""

    net: str
    implementation: str
    folded: bool
    passes: dict[str, bool]


def correct_runs(pythons: Mapping[str, tuple[Path, str]], threads: int, nets: Sequence[Net] = NETS[:2]) -> list[CorrectRun]:
    """Sound fp32 runs of several implementations (interpreter and mode by name), folded and not, held to the others' rules."""
    runs: list[CorrectRun] = []
    with TemporaryDirectory(prefix="levelfield-") as name:
        for net in nets:
            about, found = prepare(net, threads), {}
            for implementation, (python, mode) in pythons.items():
                framework = Framework(python, "fp32", Path(name), implementation, mode)
                try:
                    for fold in (True, False):
                        logits = framework.logits(about.case.model, about.case.weights, about.case.images, fold=fold)
                        found[implementation, fold] = Outputs(logits, labels(about))
                finally:
                    framework.end()
            start = found[IMPLEMENTATION, True]
            runs += [
                CorrectRun(net.model, implementation, fold, {rule.id: rule.passes(start, outputs) for rule in RULES})
                for (implementation, fold), outputs in found.items()
                if outputs is not start
            ]
    return runs


def _in_framework(python: Path, folder: Path, precision: str, about: Subject, planned: Sequence[Mutation], rows: Sequence[Row]) -> None:
    framework = Framework(python, precision, folder)
    references: dict[str, Outputs] = {}  # the sound logits, by kind, of who runs the mutant
    try:
        for mutation, row in zip(planned, rows, strict=True):
            runner: Framework | Simulated = mutation.simulated(about.case, precision) if row.kind == "function" else framework
            row.verdicts[precision], logits = examine(about, mutation, runner)
            if precision == "fp32" and logits is not None:
                if row.kind not in references:
                    sound = framework if runner is framework else Simulated(precision)
                    references[row.kind] = Outputs(sound.logits(about.case.model, about.case.weights, about.case.images), labels(about))
                outputs = Outputs(logits, labels(about))
                row.passes.update({rule.id: rule.passes(references[row.kind], outputs) for rule in RULES})
    finally:
        framework.end()


def _simulated(precision: str, about: Subject, planned: Sequence[Mutation], rows: Sequence[Row]) -> None:
    for mutation, row in zip(planned, rows, strict=True):
        row.verdicts[precision], _ = examine(about, mutation, mutation.simulated(about.case, precision))


def _signals(about: Subject, planned: Sequence[Mutation], rows: Sequence[Row]) -> None:
    for mutation, row in zip(planned, rows, strict=True):
        row.signals.update(signals(about, mutation))


def arithmetic(about: Subject, threads: int, faults: Sequence[ArithmeticFault] = ARITHMETIC) -> list[Row]:
    """The faults of arithmetic, and a sound simulated run of every precision."""
    model, sound = about.case.model, about.case

    def one(precision: str, row: Row, deviating: Mapping[str, simulation.Steps]) -> Row:
        row.verdicts[precision], _ = examine(about, Mutation(None, None), Simulated(precision, deviating))
        taps = simulation.taps(model, sound.weights, sound.images, precision, deviating)
        row.signals[precision] = rho(list(taps.values())[-1], about.noise(precision, folded=False))
        return row

    jobs: list[tuple[str, Row, dict[str, simulation.Steps]]] = [
        (precision, Row(about.net.model, SOUND, f"the sound network, simulated in {precision}", "clean", None, False), {})
        for precision in PRECISIONS
    ]
    for fault in faults:
        sites = fault.sites(model)
        single = [site for site in sites if site.single]
        for site in [site for site in sites if not site.single] + single[len(single) // 2 :][:1]:
            row = Row(about.net.model, fault.id, fault.say(site), "arithmetic", site.tap, site.single, fault.citation)
            jobs.append((fault.precision, row, dict.fromkeys(site.layers, fault.steps)))
    with ThreadPoolExecutor(threads) as executor, threadpool_limits(1):
        return list(executor.map(lambda job: one(*job), jobs))


@dataclass(frozen=True, slots=True)
class Score:
    """What the matrix says as a whole; every list holds rows that need an explanation."""

    faults: int
    cited: int
    mutants: int
    killed: int
    alive: tuple[Row, ...]
    unseen: tuple[tuple[Row, str], ...]
    located: int
    locatable: int
    mislocated: tuple[Row, ...]
    clean: int
    alarms: tuple[Row, ...]
    equivalent: int
    not_equivalent: tuple[Row, ...]


def named(row: Row) -> Iterator[tuple[str, str, str]]:
    """Precision, tier and tap of every tier that looks at taps and fails."""
    for precision, tiers in row.verdicts.items():
        for tier, found in tiers.items():
            if found.killed and tier in ("E1", "E2", "E3", "R5") and found.tap is not None:
                yield precision, tier, found.tap


def score(rows: Sequence[Row]) -> Score:
    """Count what was seen.

    A mutant is alive if no tier fails anywhere, and unseen in a precision if its signal there is ``SIGNAL`` or more and no tier of that
    precision fails. A single-layer fault is located if every tier that looks at taps and fails names the right one first.
    """
    mutants = [row for row in rows if not row.clean]
    single = [row for row in mutants if row.single and any(named(row))]
    mislocated = tuple(row for row in single if any(tap != row.tap for _, _, tap in named(row)))
    return Score(
        faults=len({row.fault for row in rows if row.kind != "clean"}),
        cited=len({row.fault for row in rows if row.citation}),
        mutants=len(mutants),
        killed=sum(row.killed for row in mutants),
        alive=tuple(row for row in mutants if not row.killed),
        unseen=tuple(
            (row, precision)
            for row in mutants
            for precision in row.verdicts
            if row.signals.get(precision, 0.0) >= SIGNAL and not row.killed_in(precision)
        ),
        located=len(single) - len(mislocated),
        locatable=len(single),
        mislocated=mislocated,
        clean=sum(row.kind == "clean" for row in rows),
        alarms=tuple(row for row in rows if row.clean and row.killed),
        equivalent=sum(row.equivalent is not None for row in rows),
        not_equivalent=tuple(row for row in rows if row.equivalent is not None and any(row.signals.values())),
    )
