"""The main job, from request to report: plan, environments, certificates, measurements, records, comparison."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from impls import models
from impls.implementation import ROOT, Manifest, find
from impls.spec import macs
from impls.weights import file
from results import provenance
from results.certificate import Purpose
from results.record import Cell, Record
from results.store import Run, Store
from suites import accuracy, energy, inference, startup
from suites.equivalence import clean
from suites.equivalence.certificate import SUITES, certificates_for
from suites.harness import environments, gpu, plan, probe
from suites.harness.context import Context, subject, uncounted
from suites.harness.process import WorkerProcess
from suites.harness.revisions import Revision

LOCAL = ROOT / "results" / "local"
"""Where runs are stored unless told otherwise; git ignores it."""

REPORTS = ROOT / "reports" / "local"

STARTUP_PROCESSES = 1


class NothingToRunError(RuntimeError):
    """Nothing of what was asked for can run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is not part of the request: where things lie and how to talk."""

    store: Path
    named_interpreters: tuple[str, ...]
    fresh: bool
    say: Callable[[str], None]
    show: Callable[[Path], None]
    count: Callable[[str, int, int], None] = uncounted


def interpreters(
    manifests: Mapping[str, Manifest], names: Iterable[str], device: str, named: Mapping[str, Path], say: Callable[[str], None]
) -> environments.Interpreters:
    """The Python of every implementation in ``names``; what is missing is being built, and that is said."""
    found = environments.Interpreters(manifests, names, device, named)
    if found.missing:
        titles = ", ".join(manifests[name].title for name in found.missing)
        size = {
            "cpu": "about 1.2 GB to download, and several GB more where PyTorch's default build brings CUDA libraries",
            "cuda": "about 18 GB on disk",
        }[device]
        say(f"installing {titles} once, each in an environment of its own below {environments.cache_root()}: all four are {size}")
    return found


def interpreter(name: str, device: str, named: tuple[str, ...], say: Callable[[str], None]) -> Path:
    """The Python of one implementation, built where missing; ``named`` are the values of ``--env``.

    Raises:
        EnvironmentBuildError: it cannot be had.
    """
    manifests = find()
    return interpreters(manifests, [name], device, environments.parse_named(named, manifests), say)[name]


@contextmanager
def opened(
    request: plan.Request,
    planned: plan.Plan | None,
    options: Options,
    cells: tuple[Cell, ...],
    weights: Mapping[str, Path] | None = None,
    asked: Sequence[object] = (),
) -> Iterator[Context]:
    """A run to write into: the unfinished one of the same plan, code and machine where there is one, else a new one.

    ``asked`` is what else the records of the run depend on.
    """
    manifests = find(zoo=request.zoo)
    named = environments.parse_named(options.named_interpreters, manifests)
    pythons = interpreters(manifests, dict.fromkeys(cell.implementation for cell in cells), request.device, named, options.say)
    store = Store(options.store)
    card = gpu.card() if request.device == "cuda" else None
    machine = provenance.machine()
    if card is not None:
        facts = gpu.facts(card)
        machine = gpu.of_machine(machine, facts)
        for caution in gpu.cautions(facts):
            options.say(caution)
    code = provenance.code(ROOT)
    details = {
        "code": {name: getattr(code, name) for name in code.__slots__},
        "plan_sha256": _plan_sha256(planned, cells, weights, asked),
        "command": [provenance.anonymous(word) for word in sys.argv[1:]],
    }
    run = None if options.fresh else _unfinished(store, machine, details)
    if run is not None:
        options.say(f"going on with the unfinished run {run.run_id}")
    else:
        run = store.create_run(machine, details)
    threads = request.threads or plan.available_threads()
    context = Context(
        manifests, pythons, store, run, threads, request.smoke, options.say, weights=weights or {}, card=card, count=options.count
    )
    try:
        with threadpool_limits(1):  # the oracle's products are small: a second BLAS thread mostly waits for the first
            yield context
    finally:
        shutil.rmtree(context.folder / "scratch", ignore_errors=True)


def of_revision(
    context: Context, revision: Revision, manifests: Mapping[str, Manifest], cells: tuple[Cell, ...], options: Options
) -> Context:
    """The run with the implementations of a revision, in the environments that its pins name, or that were named to the command."""
    if revision.root == ROOT:
        return context
    names = [name for name in dict.fromkeys(cell.implementation for cell in cells) if name in manifests]
    named = environments.parse_named(options.named_interpreters, manifests)
    pythons = interpreters(manifests, names, cells[0].device, named, context.say)
    return dataclasses.replace(context, manifests=manifests, interpreters=pythons, root=revision.root)


def _plan_sha256(planned: plan.Plan | None, cells: tuple[Cell, ...], weights: Mapping[str, Path] | None, asked: Sequence[object]) -> str:
    content: list[object] = [[cell.key for cell in cells], repr(planned.effort) if planned else None, bool(planned and planned.smoke)]
    content += [planned.energy_absent] if planned and planned.energy_absent else []
    content += asked
    if weights is not None:
        content.append({model: subject(model, path).weights_sha256 for model, path in weights.items()})
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


FINISHED = "finished"
"""The file in a run's folder that says that its plan was measured to the end."""


def _unfinished(store: Store, machine: Mapping[str, object], details: Mapping[str, Any]) -> Run | None:
    run = store.latest_run()
    if run is None or (store.root / run.run_id / FINISHED).exists() or run.machine["machine_id"] != machine["machine_id"]:
        return None
    same = all(run.details.get(name) == details[name] for name in ("code", "plan_sha256"))
    return run if same else None


def bench(request: plan.Request, options: Options, weights: Sequence[Path] = ()) -> tuple[Path, plan.Plan]:
    """Certify, measure and store; returns the run's folder. ``options.show`` is called whenever there is more to see.

    ``weights`` are the user's own files, each for the model that it names.

    Raises:
        UsageError, WeightFileError, EnvironmentBuildError, NothingToRunError, StoreError.
    """
    request, brought = _with_weights_of_models(request, weights)
    manifests = find(zoo=request.zoo)
    planned = plan.make(request, manifests)
    if not planned.cells:
        raise NothingToRunError(planned.skips[0].reason if planned.skips else "the request names no cell")
    for line in planned.reductions:
        options.say(f"to keep within the budget: {line}")
    most = "" if planned.doubled_from is None else "at most "
    options.say(
        f"{most}{len(planned.cells)} cells, {planned.effort.processes} processes each, about {planned.estimated_s / 60:.0f} minutes"
    )
    purpose: Purpose = "training" if request.training else "inference"
    asked: list[object] = [[cell.key for cell in planned.clocked], planned.doubled_from, [arm.key for arm in planned.cold]]
    with opened(request, planned, options, planned.cells, brought or None, asked=asked) as context:
        _record_skips(context, planned.skips, purpose)
        sizes = proved_sizes(request.device, (cell.batch_size for cell in planned.cells))
        certificates: dict[Cell, Record] = {}

        def measured() -> None:
            options.show(context.folder)

        left_s = planned.estimated_s
        for chapter in chapters(planned.cells):
            certificates |= certificates_of(context, tuple(dict.fromkeys(cell.certificate_cell for cell in chapter)), sizes, purpose)
            for cell in chapter:
                certificate = certificates[cell.certificate_cell]
                if (
                    certificate.status != "ok"
                    and not planned.is_doubled(cell)
                    and not context.store.has(context.run.run_id, cell.timed_by, cell, None)
                ):
                    context.store.append(
                        context.record(cell.timed_by, cell, certificate.status, certificate.reason, certificate_id=certificate.record_id)
                    )
            sound = tuple(cell for cell in chapter if certificates[cell.certificate_cell].status == "ok")
            options.say(f"measuring; about {max(1, round(left_s / 60))} minutes are left")
            began = time.monotonic()
            clocks = {cell: environments.second_clock(context.python(cell.implementation)) for cell in sound if cell in planned.clocked}
            inference.run(context, sound, planned.effort, certificates, measured, clocks, planned.doubled_from)
            left_s -= time.monotonic() - began
        certified = tuple(cell for cell in _with_room(context, planned) if certificates[cell.certificate_cell].status == "ok")
        probing, classified = _probing(certified, manifests), () if request.training else certified
        classifying = accuracy.largest(classified)

        def afterwards(cell: Cell, worker: WorkerProcess, hello: Mapping[str, Any], handle: str) -> None:
            if cell.certificate_cell in probing and not request.smoke:
                probe.run(context, cell.certificate_cell, worker, hello["packages"])
            if cell in classifying:
                accuracy.of_process(context, cell, worker, hello, handle, certificates[cell.certificate_cell].record_id)

        what = "start-up and memory" if request.training else "start-up, memory and accuracy"
        options.say(f"{what}, one process at a time; about {max(1, round(left_s / 60))} minutes are left")
        startup.run(context, certified, STARTUP_PROCESSES, certificates, afterwards, measured, planned.cold)
        accuracy.run(context, classified, certificates)  # those whose start-up process failed
        if planned.energy_absent is not None:
            energy.skip(context, certified, planned.energy_absent)
        elif planned.effort.energy is not None:
            energy.run(context, certified, planned.effort.energy, certificates, measured)
        (context.folder / FINISHED).touch()
    return context.folder, planned


def _with_room(context: Context, planned: plan.Plan) -> tuple[Cell, ...]:
    """The cells that did not run out of memory when they were timed; those that doubling did not come to have no record."""
    timed = [record for record in context.store.read(context.run.run_id)[0] if record.suite == record.cell.timed_by]
    known, full = {record.cell for record in timed}, {record.cell for record in timed if record.status == "out_of_memory"}
    return tuple(cell for cell in planned.cells if cell not in full and (cell in known or not planned.is_doubled(cell)))


def certify(
    request: plan.Request, purpose: Purpose, options: Options, *, thorough: bool = False, weights: Path | None = None
) -> tuple[Path, dict[Cell, Record], tuple[plan.Skip, ...]]:
    """The certificates alone, of timed and untimed arms; the run's folder comes first.

    ``weights`` are the user's own for the one model of the request, or for the model that the file names.

    Raises:
        UsageError, WeightFileError, EnvironmentBuildError, NothingToRunError, StoreError.
    """
    request, brought = with_own_weights(request, weights)
    manifests = find(zoo=request.zoo)
    arms, skips = plan.arms(request, manifests, timed=False)
    if not arms:
        raise NothingToRunError(skips[0].reason if skips else "the request names no cell")
    sizes = proved_sizes(request.device, request.batch_sizes or request.defaults.batch_sizes)
    with opened(request, None, options, arms, brought or None, asked=(purpose, sizes, thorough)) as context:
        _record_skips(context, skips, purpose)
        certificates = certificates_of(context, arms, sizes, purpose, thorough=thorough)
        (context.folder / FINISHED).touch()
    return context.folder, certificates, skips


def with_own_weights(request: plan.Request, weights: Path | None) -> tuple[plan.Request, dict[str, Path]]:
    """The request for the one model that the file holds weights for, and the file by that model's name.

    Raises:
        UsageError, WeightFileError.
    """
    if weights is None:
        return request, {}
    if request.models is not None and len(request.models) != 1:
        raise plan.UsageError("--weights FILE holds one model's weights: name one model, or none")
    name = plan.chosen_models(request.models or (file.load(weights).model.name,))[0].name
    subject(name, weights)  # refuses another network's
    return dataclasses.replace(request, models=(name,)), {name: weights}


def _with_weights_of_models(request: plan.Request, paths: Sequence[Path]) -> tuple[plan.Request, dict[str, Path]]:
    """The request for the models that the files are for, or for those that it names, and each file by its model's name.

    Raises:
        UsageError, WeightFileError.
    """
    brought: dict[str, Path] = {}
    for path in paths:
        _, own = with_own_weights(dataclasses.replace(request, models=None), path)
        (name,) = own
        if name in brought:
            raise plan.UsageError(f"--weights {path} and {brought[name]} are both for {name}: a run measures one of them")
        if request.models is not None and name not in {model.name for model in plan.chosen_models(request.models)}:
            raise plan.UsageError(f"--weights {path} is for {name}, which --models does not name")
        brought |= own
    return dataclasses.replace(request, models=request.models or tuple(brought) or None), brought


def clean_seeds(request: plan.Request, seeds: int, options: Options) -> tuple[Path, dict[Cell, Record]]:
    """How many of ``seeds`` clean seeds of a small network are refused, in every arm that shows its taps; the run's folder comes first.

    Raises:
        UsageError, EnvironmentBuildError, NothingToRunError, StoreError.
    """
    manifests = find(zoo=request.zoo)
    request = dataclasses.replace(request, models=(clean.MODEL,))
    arms = tuple(arm for arm in plan.arms(request, manifests, timed=True)[0] if manifests[arm.implementation].taps)
    if not arms:
        raise NothingToRunError("the request names no arm that shows its taps")
    with opened(request, None, options, arms) as context:
        records = clean.run(context, arms, seeds)
        (context.folder / FINISHED).touch()
    return context.folder, records


def proved_sizes(device: str, batch_sizes: Iterable[int | None]) -> tuple[int, ...]:
    """The batch sizes that certificates of timed cells are made at.

    On a GPU the smallest alone, for one that does not fit would cost an arm all its figures: every timed process has the outputs of its
    own batch size judged by the same tier (``audits.outputs``).
    """
    sizes = sorted({size for size in batch_sizes if size is not None})
    return tuple(sizes[:1] if device == "cuda" else sizes)


def certificates_of(
    context: Context, arms: tuple[Cell, ...], batch_sizes: tuple[int, ...], purpose: Purpose = "inference", *, thorough: bool = False
) -> dict[Cell, Record]:
    """Certificates of this run, those that it holds already of the same weights included."""
    held = {arm: accuracy.of_weights(context, context.store.find(context.run.run_id, SUITES[purpose], arm, None)) for arm in arms}
    missing = tuple(arm for arm in arms if not held[arm])
    began = time.monotonic()
    made = certificates_for(context, missing, batch_sizes, purpose, thorough=thorough)
    if made:
        context.say(f"certified in {time.monotonic() - began:.0f} s")
    return {arm: made[arm] if arm in made else held[arm][-1] for arm in arms}


def chapters(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """The cells by model, the cheapest first, so that the first answer is on the screen soon."""
    names = sorted({cell.model for cell in cells}, key=lambda name: macs(models.get(name)))
    return [tuple(cell for cell in cells if cell.model == name) for name in names]


def _record_skips(context: Context, skips: tuple[plan.Skip, ...], purpose: Purpose) -> None:
    suite = SUITES[purpose]
    for skip in skips:
        cell = Cell(skip.implementation, skip.mode, skip.model, skip.precision, skip.device, None, None, None, None)  # type: ignore[arg-type]
        if not context.store.has(context.run.run_id, suite, cell, None):
            context.store.append(context.record(suite, cell, "skipped", skip.reason))


def _probing(cells: tuple[Cell, ...], manifests: Mapping[str, Manifest]) -> tuple[Cell, ...]:
    """One arm per precision of each implementation that can build the probe's networks, in its default mode if that is there."""
    found: dict[tuple[str, str], Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.mode != manifests[cell.implementation].default_mode):
        if manifests[cell.implementation].models is None:
            found.setdefault((cell.implementation, cell.precision), cell.certificate_cell)
    return tuple(found.values())
