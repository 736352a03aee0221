"""What a run will measure, what it will not and why, and about how long it takes; decided before anything starts."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from impls import models
from impls.implementation import TRAINING_PRECISIONS, CannotError, Device, Manifest, Mode, check_training
from impls.precision import PRECISIONS
from impls.spec import ModelSpec, macs, tap_shapes
from results.record import Cell
from suites.harness import energy

Scope = Literal["device", "transfer"]
SCOPES: tuple[Scope, ...] = ("device", "transfer")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What is measured on a device unless something else is asked for."""

    models: tuple[str, ...]
    precisions: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    scopes: tuple[Scope, ...]


DEFAULTS: Mapping[str, Defaults] = {
    "cpu": Defaults(("resnet50", "cifar_resnet20"), ("fp32",), (1, 8), ("transfer",)),
    # The latency, and the throughput, which grows little above a batch of 256 on any card: each size costs all modes three builds.
    "cuda": Defaults(("resnet50",), ("bf16", "tf32"), (1, 256), ("device", "transfer")),
}


TRAINING_DEFAULTS: Mapping[str, Defaults] = {
    "cpu": Defaults(("cifar_resnet20",), ("fp32",), (32,), ("device",)),
    # A step of a batch of 256 is what published throughputs are of; smaller ones fit where it does not.
    "cuda": Defaults(("resnet50",), ("bf16", "tf32"), (64, 256), ("device",)),
}
"""The same of training steps, whose batches stay on the device."""


class UsageError(ValueError):
    """A request that means nothing here; the message names the word and the nearest that would do."""


@dataclass(frozen=True, slots=True)
class EnergyEffort:
    """How each cell's energy is measured: in ``processes`` fresh processes, an idle and a busy window in each.

    A window is of at least ``window_s`` seconds, and begins at least ``lead_s`` seconds after its state did.
    """

    processes: int
    window_s: float
    lead_s: float


@dataclass(frozen=True, slots=True)
class Effort:
    """How much each cell is measured; fixed before the run, never by what the samples look like.

    ``processes`` fresh processes per implementation (K), in each ``blocks`` visits per cell of about ``visit_s`` seconds and
    at least ``samples`` samples, after a warm-up of ``warmup_s`` seconds and a few calls. ``energy`` is None where none is measured.
    """

    processes: int
    blocks: int
    visit_s: float
    samples: int
    warmup_s: float
    rewarm_calls: int
    energy: EnergyEffort | None = None


STANDARD = Effort(processes=3, blocks=2, visit_s=0.25, samples=3, warmup_s=0.5, rewarm_calls=3)
ON_GPU = dataclasses.replace(STANDARD, warmup_s=1.0)
"""Clocks rise in the first second of work."""
SMOKE = Effort(processes=1, blocks=1, visit_s=0.0, samples=2, warmup_s=0.0, rewarm_calls=0)

# A sensor that sees a quarter of the time wants long windows and several phases (Yang et al., SC'24).
STANDARD_ENERGY = EnergyEffort(processes=3, window_s=10.0, lead_s=2.0)
SMOKE_ENERGY = EnergyEffort(processes=1, window_s=0.1, lead_s=0.5)


def standard(device: str) -> Effort:
    """What a cell of this device is measured with, unless it is told otherwise."""
    return ON_GPU if device == "cuda" else STANDARD


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for. None means the default; ``("all",)`` means everything there is.

    ``cold`` asks for starts with empty caches of compilers too.
    ``doubling`` goes on from the largest of ``batch_sizes``, twice as large each time, until a mode has no memory for more.
    """

    models: tuple[str, ...] | None = None
    implementations: tuple[str, ...] | None = None
    modes: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    batch_sizes: tuple[int, ...] | None = None
    doubling: bool = False
    cold: bool = False
    scopes: tuple[str, ...] | None = None
    device: str = "cpu"
    threads: int | None = None
    processes: int | None = None
    smoke: bool = False
    budget_s: float | None = None
    zoo: bool = False
    second_clock: bool = False
    energy: bool = False
    training: bool = False

    @property
    def defaults(self) -> Defaults:
        """What is measured where the request names nothing."""
        return (TRAINING_DEFAULTS if self.training else DEFAULTS)[self.device]


@dataclass(frozen=True, slots=True)
class Skip:
    """Cells that will not be measured: the first coordinates, the reason, and whether they were asked for by name."""

    implementation: str
    mode: str
    model: str
    precision: str
    device: str
    reason: str
    by_name: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The cells in the order of the report, the skips, the effort, and what the budget made smaller.

    ``clocked`` are the cells that the second clock times too. ``energy_absent`` says why energy that was asked for will not be
    measured. ``cold`` are the arms that are also started with empty caches of their compilers.

    Cells of more than ``doubled_from`` images are measured as long as those before them fitted, and are no row otherwise.
    """

    cells: tuple[Cell, ...]
    skips: tuple[Skip, ...]
    effort: Effort
    estimated_s: float
    reductions: tuple[str, ...]
    smoke: bool
    clocked: tuple[Cell, ...] = ()
    energy_absent: str | None = None
    doubled_from: int | None = None
    cold: tuple[Cell, ...] = ()

    def is_doubled(self, cell: Cell) -> bool:
        """Whether a cell is of a size that nobody named."""
        return self.doubled_from is not None and cell.batch_size is not None and cell.batch_size > self.doubled_from

    def arms(self) -> tuple[Cell, ...]:
        """The distinct (implementation, mode, model, precision, device), each needing one certificate."""
        return tuple(dict.fromkeys(cell.certificate_cell for cell in self.cells))


def choose(what: str, asked: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """The words asked for, ``all`` expanded.

    Raises:
        UsageError: a word that is not known, with the nearest that is.
    """
    names = tuple(known)
    chosen: list[str] = []
    for word in asked:
        if word == "all":
            chosen += names
        elif word in names:
            chosen.append(word)
        else:
            raise _unknown(what, word, names)
    return tuple(dict.fromkeys(chosen))


def _unknown(what: str, word: str, names: tuple[str, ...]) -> UsageError:
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UsageError(f"there is no {what} {word!r}{hint} (known: {', '.join(names)})")


def chosen_models(asked: tuple[str, ...]) -> tuple[ModelSpec, ...]:
    """The models asked for; also those whose names are built on demand.

    Raises:
        UsageError: a name that no family knows.
    """
    found: list[ModelSpec] = []
    for name in asked:
        try:
            found += [models.get(each) for each in models.NAMES] if name == "all" else [models.get(name)]
        except models.UnknownModelError as error:
            raise UsageError(str(error)) from None
    return tuple(dict.fromkeys(found))


def available_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def mode_reason(mode: Mode) -> str | None:
    """Why a mode cannot run on this machine, before any framework is asked."""
    if mode.needs and not any(shutil.which(program) for program in mode.needs):
        return f"{mode.title} needs {' or '.join(mode.needs)} on the PATH"
    return None


def precision_reason(manifest: Manifest, device: Device, precision: str, *, timed: bool) -> str | None:
    """Why a precision is not run (or, where ``timed``, not measured) on this device."""
    if precision in device.cannot:
        return device.cannot[precision]
    if precision not in device.precisions:
        return f"{manifest.title} does not offer {precision} on {device.name}"
    return device.untimed.get(precision) if timed else None


def arms(request: Request, manifests: Mapping[str, Manifest], *, timed: bool) -> tuple[tuple[Cell, ...], tuple[Skip, ...]]:
    """Every (implementation, mode, model, precision) asked for, split into those that can run and those that cannot.

    Raises:
        UsageError: a word of the request is not known.
    """
    if request.device not in DEVICES:
        raise _unknown("device", request.device, DEVICES)
    defaults = request.defaults
    chosen = choose("implementation", request.implementations or ("all",), manifests)
    all_modes = tuple(dict.fromkeys(mode for name in manifests for mode in manifests[name].modes_on(request.device)))
    modes = choose("mode", request.modes or ("all",), all_modes)
    precisions = choose("precision", request.precisions or defaults.precisions, PRECISIONS)
    named = {
        "implementation": request.implementations is not None and "all" not in request.implementations,
        "mode": request.modes is not None and "all" not in request.modes,
        "precision": request.precisions is not None and "all" not in request.precisions,
        "model": request.models is not None and "all" not in request.models,
    }
    cells: list[Cell] = []
    skips: list[Skip] = []
    for model in chosen_models(request.models or defaults.models):
        for precision in precisions:
            for name in chosen:
                manifest = manifests[name]
                its_modes = manifest.modes_on(request.device)
                own = tuple(mode for mode in modes if mode in its_modes)
                if not own and named["implementation"]:
                    reason = f"{manifest.title} has no mode {' or '.join(modes)}; it has {', '.join(its_modes)}"
                    skips.append(Skip(name, modes[0], model.name, precision, request.device, reason, by_name=True))
                for mode in own:
                    device = manifest.devices.get(request.device)
                    if device is None:
                        reason, cause = f"{manifest.title} does not offer {request.device}", "mode"
                    elif manifest.models is not None and model.name not in manifest.models:
                        reason, cause = f"{manifest.title} has no {model.name}; it has {', '.join(manifest.models)}", "model"
                    elif why := precision_reason(manifest, device, precision, timed=timed):
                        reason, cause = why, "precision"
                    elif request.training and (found := training_reason(manifest, model, precision)):
                        reason, cause = found
                    elif why := _cannot(its_modes[mode], precision, training=request.training) or mode_reason(its_modes[mode]):
                        reason, cause = why, "mode"
                    else:
                        cells.append(Cell(name, mode, model.name, precision, request.device, None, None, None, None))  # type: ignore[arg-type]
                        continue
                    by_name = named["implementation"] and named[cause]
                    skips.append(Skip(name, mode, model.name, precision, request.device, reason, by_name))
    return tuple(cells), tuple(skips)


def _cannot(mode: Mode, precision: str, *, training: bool) -> str | None:
    """Why nothing runs in a mode in this precision, or nothing is trained in it."""
    return mode.cannot.get(precision) or (mode.untrained if training else None)


def scenario(batch_size: int, *, training: bool = False) -> Literal["single_stream", "offline", "training"]:
    """Batch 1 is measured as latency, larger batches as throughput; training always as throughput."""
    if training:
        return "training"
    return "single_stream" if batch_size == 1 else "offline"


def make(request: Request, manifests: Mapping[str, Manifest]) -> Plan:
    """The plan for a request.

    Raises:
        UsageError: a word of the request is not known, or a number makes no sense.
    """
    threads = available_threads() if request.threads is None else request.threads
    if not 1 <= threads <= available_threads():
        raise UsageError(f"--threads {threads}: this process may use 1 to {available_threads()} cores")
    _check_training(request)
    able, skips = arms(request, manifests, timed=True)
    defaults = request.defaults
    batch_sizes = request.batch_sizes or defaults.batch_sizes
    if min(batch_sizes) < 1:
        raise UsageError(f"--batch-sizes {min(batch_sizes)}: a batch holds at least one image")
    doubled_from = max(batch_sizes) if request.doubling else None
    if doubled_from is not None:
        if request.device != "cuda":
            raise UsageError("--batch-sizes with ... is for a GPU: a CPU's memory has no end that a process could be told of")
        batch_sizes = (*batch_sizes, *_doubled(doubled_from))
    scopes = choose("scope", request.scopes or defaults.scopes, SCOPES)
    names = [model.name for model in chosen_models(request.models or defaults.models)]
    effort = SMOKE if request.smoke else standard(request.device)
    if request.processes is not None:
        if request.processes < 1:
            raise UsageError("--processes: at least 1")
        effort = dataclasses.replace(effort, processes=request.processes)
    cells = tuple(
        dataclasses.replace(arm, batch_size=size, scope=scope, scenario=scenario(size, training=request.training), threads=threads)  # type: ignore[arg-type]
        for arm in sorted(able, key=lambda arm: names.index(arm.model))
        for size in dict.fromkeys(batch_sizes)
        for scope in scopes
    )
    energy_absent = energy.missing(request.device) if request.energy else None
    if request.energy and energy_absent is None:
        effort = dataclasses.replace(effort, energy=SMOKE_ENERGY if request.smoke else STANDARD_ENERGY)
    clocked = _clocked(cells, manifests) if request.second_clock else ()
    cold = tuple(arm for arm in able if request.cold and manifests[arm.implementation].caches(arm.mode, arm.device))
    plan = Plan(cells, skips, effort, 0.0, (), request.smoke, clocked, energy_absent, doubled_from, cold)
    return _within_budget(plan, manifests, request.budget_s)


LARGEST_BATCH = 65_536
"""Where doubling ends although there is memory for more: two batches of ImageNet's images are 79 GB of the host's by then."""


def _doubled(size: int) -> tuple[int, ...]:
    """Twice as large each time, up to ``LARGEST_BATCH``."""
    return tuple(size << n for n in range(1, LARGEST_BATCH.bit_length()) if size << n <= LARGEST_BATCH)


def _check_training(request: Request) -> None:
    """Refuse what is not measured of training steps.

    Raises:
        UsageError: a second clock, energy, model zoos, or copies between host and device.
    """
    asked = {"--second-clock": request.second_clock, "--energy": request.energy, "--zoo": request.zoo}
    asked["--scopes"] = request.scopes is not None and request.scopes != ("device",)
    if request.training and (given := [name for name, value in asked.items() if value]):
        raise UsageError(f"{given[0]} is for inference: steps are timed with batches that lie on the device; leave it out with --training")


def training_reason(manifest: Manifest, model: ModelSpec, precision: str) -> tuple[str, str] | None:
    """Why a model is not trained in a precision by this implementation, or by none, and which word of a request asked for that."""
    if not manifest.trains:
        return f"{manifest.title} has no training", "implementation"
    for tried, cause in ((TRAINING_PRECISIONS[0], "model"), (precision, "precision")):
        try:
            check_training(models.in_training(model), tried, (2, *model.input_chw))
        except CannotError as error:
            return str(error), cause
    return None


def _clocked(cells: tuple[Cell, ...], manifests: Mapping[str, Manifest]) -> tuple[Cell, ...]:
    """One cell of each implementation, model and precision: its default mode's smallest batch, else its first mode's."""
    found: dict[tuple[str, str, str], Cell] = {}
    for cell in sorted(cells, key=lambda cell: (cell.mode != manifests[cell.implementation].default_mode, cell.batch_size)):
        found.setdefault((cell.implementation, cell.model, cell.precision), cell)
    return tuple(found.values())


def _within_budget(plan: Plan, manifests: Mapping[str, Manifest], budget_s: float | None) -> Plan:
    """Make a plan smaller until its estimate fits, and say so."""
    reductions: list[str] = []
    while True:
        plan = dataclasses.replace(plan, estimated_s=estimate_s(plan, manifests), reductions=tuple(reductions))
        if budget_s is None or plan.estimated_s <= budget_s:
            return plan
        on_gpu = any(cell.device == "cuda" for cell in plan.cells)
        smaller = _smaller_on_gpu(plan, manifests) if on_gpu else _smaller(plan)
        if smaller is None:
            reductions.append(
                f"the least that can be measured takes about {plan.estimated_s:.0f} s, more than the budget of {budget_s:.0f} s"
            )
            return dataclasses.replace(plan, reductions=tuple(reductions))
        plan, line, replaced = smaller
        reductions = [each for each in reductions if replaced is None or replaced not in each] + [line]


Smaller = tuple[Plan, str, str | None]
"""A plan with less in it, the sentence that says so, and what marks the sentence whose place it takes."""


def _smaller(plan: Plan) -> Smaller | None:
    """On a CPU: no energy, no cold starts, then fewer visits, fewer processes, fewer batch sizes; None where nothing can be left out."""
    beside = _without_energy(plan) or _without_cold(plan)
    return beside or _fewer_visits(plan) or _fewer_processes(plan, 1) or _without_largest(plan, _sizes(plan)[1:])


def _smaller_on_gpu(plan: Plan, manifests: Mapping[str, Manifest]) -> Smaller | None:
    """On a GPU a process costs more than its measurements, and of fewer than three hardly any can be told apart.

    So first what is beside the answer: energy, cold starts, host to host, and batch sizes but the smallest, which is the latency, and
    one that fills the card; then precisions but the first; then visits, processes down to three, and modes but the likely best.
    """
    sizes, precisions = _sizes(plan), tuple(dict.fromkeys(cell.precision for cell in plan.cells))
    scopes = {cell.scope for cell in plan.cells}
    if less := _without_energy(plan) or _without_cold(plan):
        return less
    if len(scopes) > 1:
        return _kept(plan, lambda cell: cell.scope == "device"), "scope transfer is left out", None
    filling = min((size for size in sizes if size >= FILLING_BATCH), default=sizes[-1])
    if less := _without_largest(plan, tuple(size for size in sizes[1:] if size != filling)):
        return less
    if len(precisions) > 1:
        return _kept(plan, lambda cell: cell.precision != precisions[-1]), f"precision {precisions[-1]} is left out", None
    return _fewer_visits(plan) or _fewer_processes(plan, 3) or _fewer_modes(plan, manifests)


FILLING_BATCH = 128
"""From here on a ResNet's roofline hardly depends on the batch; with fewer images a data-centre GPU may have idle cores."""


def _sizes(plan: Plan) -> list[int]:
    return sorted({cell.batch_size for cell in plan.cells if cell.batch_size is not None})


def _kept(plan: Plan, wanted: Callable[[Cell], bool]) -> Plan:
    chosen = tuple(cell for cell in plan.cells if wanted(cell))
    arms = {cell.certificate_cell for cell in chosen}
    clocked, cold = (tuple(cell for cell in plan.clocked if cell in chosen), tuple(arm for arm in plan.cold if arm in arms))
    return dataclasses.replace(plan, cells=chosen, clocked=clocked, cold=cold)


def _without_energy(plan: Plan) -> Smaller | None:
    if plan.effort.energy is None:  # it cannot be had with less
        return None
    effort = dataclasses.replace(plan.effort, energy=None)
    return dataclasses.replace(plan, effort=effort, energy_absent="left out to keep within the budget"), "energy is left out", None


def _without_cold(plan: Plan) -> Smaller | None:
    return (dataclasses.replace(plan, cold=()), "start-up with empty caches is left out", None) if plan.cold else None


def _fewer_visits(plan: Plan) -> Smaller | None:
    if plan.effort.blocks == 1:
        return None
    effort = dataclasses.replace(plan.effort, blocks=plan.effort.blocks - 1)
    return dataclasses.replace(plan, effort=effort), f"{effort.blocks} visit(s) per cell and process", "visit"


def _fewer_processes(plan: Plan, least: int) -> Smaller | None:
    if plan.effort.processes <= least:
        return None
    effort = dataclasses.replace(plan.effort, processes=plan.effort.processes - 1)
    without = ", so no interval and no ratio" if effort.processes == 1 else ""
    return dataclasses.replace(plan, effort=effort), f"{effort.processes} process(es) per implementation{without}", "process(es) per"


def _fewer_modes(plan: Plan, manifests: Mapping[str, Manifest]) -> Smaller | None:
    """Of each implementation the planned modes that it keeps for a short budget; all of them where none of those is planned."""
    modes = {(cell.implementation, cell.mode) for cell in plan.cells}
    short = {(name, mode) for name, mode in modes if mode in manifests[name].devices[plan.cells[0].device].short}
    gone = {(name, mode) for name, mode in modes - short if name in dict(short)}
    if not gone:
        return None
    line = f"modes {', '.join(f'{name}/{mode}' for name, mode in sorted(gone))} are left out"
    return _kept(plan, lambda cell: (cell.implementation, cell.mode) not in gone), line, None


def _without_largest(plan: Plan, sizes: Sequence[int]) -> Smaller | None:
    if not sizes:
        return None
    less = _kept(plan, lambda cell: cell.batch_size != max(sizes))
    if plan.doubled_from is not None and max(sizes) > plan.doubled_from:
        return less, f"batch sizes are doubled to {_sizes(less)[-1]} at most", "are doubled to"
    return less, f"batch size {max(sizes)} is left out", None


# What the estimate assumes; it decides nothing but the printed figure and what a budget leaves out. About half of a current
# server core's fp32 peak, the overhead of a small network's call, and the start of a process with its framework.
ASSUMED_FLOPS_PER_CORE = 1.5e11
ASSUMED_CALL_OVERHEAD_S = 1e-3
ASSUMED_START_S = 3.0
# What a build takes with empty caches of the compiler: 2.5 to 3.4 times in PyTorch on a CPU (docs/measuring.md).
ASSUMED_COLD_BUILD = 3.0


# Of the second clock: twenty visits of a cell, and what LoadGen takes to start and to write its log.
SECOND_CLOCK_VISITS = 20
ASSUMED_LOADGEN_S = 0.05

# Of a GPU, where nothing was measured yet: an older data-centre card in bf16, eager; a process with its framework, a CUDA context and
# its libraries; an offline sample; the audits of a cell; and the share of its first time that a build takes again in a mode that keeps
# files (a driver's, which all of TensorFlow's modes leave, spare nobody the search for the fastest kernels).
ASSUMED_GPU_FLOPS = 1.5e14
ASSUMED_GPU_START_S = 8.0
ASSUMED_OFFLINE_S = 0.1
ASSUMED_AUDITS_S = 0.5
ASSUMED_CACHED_BUILD = 0.25
# Of what doubling finds room for: a current data-centre card, and so many of the network's largest activations at once.
ASSUMED_GPU_BYTES = 80e9
ASSUMED_ACTIVATIONS = 4


def estimate_s(plan: Plan, manifests: Mapping[str, Manifest]) -> float:
    """About how long a plan takes with its environments built and its certificates kept, in seconds."""
    if any(cell.device == "cuda" for cell in plan.cells):
        return _estimate_on_gpu_s(plan, manifests)
    return _estimate_on_cpu_s(plan, manifests)


def _flops(cell: Cell) -> float:
    """Of a call; a step also goes backward, by weights and by inputs."""
    assert cell.batch_size is not None
    return 2 * macs(models.get(cell.model)) * cell.batch_size * (3 if cell.scenario == "training" else 1)


def _estimate_on_gpu_s(plan: Plan, manifests: Mapping[str, Manifest]) -> float:
    """Every batch size has processes of its own; those of a round start at the same time and build one after the other."""
    effort, measuring = plan.effort, 0.0
    first: dict[Cell, float] = {}
    again: dict[Cell, float] = {}
    rooms: dict[tuple[object, ...], set[Cell]] = {}
    for cell in plan.cells:
        assert cell.batch_size is not None
        if plan.is_doubled(cell) and not _assumed_to_fit(cell, cell.batch_size // 2):
            continue  # the first that does not fit counts as if it did, larger ones are not tried
        call_s = _flops(cell) / ASSUMED_GPU_FLOPS + ASSUMED_CALL_OVERHEAD_S
        visit_s = max(effort.visit_s, effort.samples * max(ASSUMED_OFFLINE_S if cell.batch_size > 1 else 0.0, call_s))
        measuring += effort.processes * (max(effort.warmup_s, 3 * call_s) + effort.blocks * visit_s + ASSUMED_AUDITS_S)
        mode, arm = manifests[cell.implementation].modes_on(cell.device)[cell.mode], cell.certificate_cell
        first[arm], again[arm] = mode.build_s, mode.build_s * (ASSUMED_CACHED_BUILD if mode.caches else 1)
        rooms.setdefault((cell.model, cell.precision, cell.batch_size), set()).add(arm)
        if effort.energy is not None:
            windows_s = 2 * (1.25 * effort.energy.lead_s + effort.energy.window_s) + 3 * energy.TICK_TIMEOUT_S
            measuring += effort.energy.processes * (ASSUMED_GPU_START_S + again[arm] + windows_s)
    starting = len(rooms) * effort.processes * ASSUMED_GPU_START_S
    building = sum(first[arm] + (effort.processes - 1) * again[arm] for room in rooms.values() for arm in room)
    fresh = sum(ASSUMED_GPU_START_S + build_s for build_s in again.values())
    fresh += sum(ASSUMED_GPU_START_S + first[arm] for arm in plan.cold)
    clocking = len(plan.clocked) * SECOND_CLOCK_VISITS * (effort.visit_s + ASSUMED_LOADGEN_S)
    return measuring + starting + building + fresh + clocking


def _assumed_to_fit(cell: Cell, batch_size: int) -> bool:
    each = ASSUMED_ACTIVATIONS * _largest_activation(cell.model) * PRECISIONS[cell.precision].storage_bytes
    return batch_size * each <= ASSUMED_GPU_BYTES


@functools.cache
def _largest_activation(model: str) -> int:
    """Elements of the largest tap for one image."""
    spec = models.get(model)
    return max(map(math.prod, tap_shapes(spec, 1, *spec.input_chw[1:]).values()))


def _estimate_on_cpu_s(plan: Plan, manifests: Mapping[str, Manifest]) -> float:
    effort = plan.effort
    measuring = fresh = once = drawing = 0.0
    building: dict[str, dict[Cell, float]] = {}
    for cell in plan.cells:
        assert cell.batch_size is not None
        assert cell.threads is not None
        call_s = _flops(cell) / (ASSUMED_FLOPS_PER_CORE * cell.threads) + ASSUMED_CALL_OVERHEAD_S
        build_s = manifests[cell.implementation].modes_on(cell.device)[cell.mode].build_s
        visit_s = max(effort.visit_s, 2 * effort.samples * call_s)
        measuring += max(effort.warmup_s, 3 * call_s) + effort.blocks * visit_s + 8 * call_s
        if cell in plan.clocked:
            once += SECOND_CLOCK_VISITS * (visit_s + ASSUMED_LOADGEN_S)
        fresh += ASSUMED_START_S + build_s
        if effort.energy is not None:
            windows_s = 2 * (1.25 * effort.energy.lead_s + effort.energy.window_s) + 3 * energy.TICK_TIMEOUT_S
            drawing += effort.energy.processes * (ASSUMED_START_S + build_s + windows_s)
        arm = building.setdefault(cell.model, {})
        arm[cell.certificate_cell] = arm.get(cell.certificate_cell, 0.0) + build_s
    # The processes of a round build at the same time: the slowest decides.
    starting = sum(ASSUMED_START_S + max(arms.values()) for arms in building.values())
    for cold in plan.cold:
        fresh += ASSUMED_START_S + ASSUMED_COLD_BUILD * manifests[cold.implementation].modes_on(cold.device)[cold.mode].build_s
    return effort.processes * (starting + measuring) + fresh + once + drawing
