"""Measure stored cells again and hold the new times against the stored ones.

The implementations of the record's commit are rebuilt out of git in the environments that their pins name; clock, statistics and oracle
are those of the checkout that asks. Every cell is certified again before it is measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from impls import models
from impls.implementation import ROOT, ZOO, Manifest, ManifestError, find
from results import provenance, rerun
from results.record import Cell, Code, Record
from results.rerun import Answer, Difference, Rerun
from results.schema import RecordError
from results.store import Corrupt, Run, Store
from suites import inference
from suites.equivalence.training import in_training
from suites.harness import gpu, plan, revisions
from suites.harness.context import Context, subject
from suites.harness.revisions import Revision, RevisionError
from suites.harness.runner import FINISHED, NothingToRunError, Options, certificates_of, chapters, of_revision, opened, proved_sizes

FEWEST_PROCESSES = 3

OLDER = "the record's commit may not meet the contract of this checkout: check that commit out, and run `levelfield bench` there"
"""What to do where an implementation that was rebuilt fails under this checkout's harness."""


@dataclass(frozen=True, slots=True)
class Source:
    """Stored cells that can be measured again: their run, and the records of all its processes of each cell."""

    name: str
    run: Run
    records: Mapping[Cell, tuple[Record, ...]]

    @property
    def first(self) -> Record:
        """One of the records: what is said of the code and of the device holds for all."""
        return next(iter(self.records.values()))[0]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The implementations that are measured in the place of the record's, and why they are not those of its commit, where they are not."""

    revision: Revision
    manifests: Mapping[str, Manifest]
    instead: str | None


def read(path: Path, options: Options) -> Source:
    """The cell of a record's file, or every timed cell of a run's folder that is a result.

    Raises:
        RecordError: neither a record nor a run, or nothing in it that a rerun could reproduce; the message says why.
    """
    path = path.resolve()
    folder = path if path.is_dir() else path.parent.parent
    if not (folder / "run.json").is_file():
        need = "it has no run.json" if path.is_dir() else "a record lies in its run's folder records, for a rerun needs the whole run"
        raise RecordError(f"{path}: neither a record of a run nor a run's folder: {need}")
    store = Store(folder.parent)
    run = store.run(folder.name)
    by_cell: dict[Cell, list[Record]] = {}
    asked: Record | None = None
    for found in store.scan(folder.name):
        if isinstance(found, Corrupt):
            if found.path == path:
                raise RecordError(found.reason)
            options.say(f"left out: {found.reason}")
            continue
        if found.suite == found.cell.timed_by:
            by_cell.setdefault(found.cell, []).append(found)
        if path == folder / "records" / found.file_name:
            asked = found
    if path.is_dir():
        return Source(str(path), run, _results(path, by_cell, options))
    if asked is None:
        raise RecordError(f"{path}: not a record: records lie in their run's folder records")
    records = by_cell.get(asked.cell, [])
    if why := rerun.refused(asked) or rerun.no_result(records):
        raise RecordError(f"{path}: this record cannot be rerun: {why}")
    return Source(str(path), run, {asked.cell: tuple(records)})


def _results(path: Path, by_cell: Mapping[Cell, list[Record]], options: Options) -> dict[Cell, tuple[Record, ...]]:
    refused = {cell: why for cell, records in by_cell.items() if (why := rerun.no_result(records))}
    if len(refused) == len(by_cell):
        raise RecordError(f"{path}: nothing in this run can be rerun: {next(iter(refused.values()), 'it holds nothing timed')}")
    for cell, why in refused.items():
        options.say(f"left out: {cell.key}: {why}")
    # As tables show them: cells that are compared with each other stand together.
    order = sorted(by_cell, key=lambda cell: (cell.model, cell.precision, cell.batch_size or 0, str(cell.scope), cell.key))
    return {cell: tuple(by_cell[cell]) for cell in order if cell not in refused}


def run(source: Source, options: Options) -> tuple[Path, Rerun]:
    """Rebuild, certify, measure and compare; the run's folder comes first.

    All cells are measured in the same rounds, in as many processes as the cell of the source that had most, and at least three.

    Raises:
        UsageError, EnvironmentBuildError, NothingToRunError, StoreError.
        RecordError: what stands beside a record's samples is not valid.
    """
    request = _request(source)
    rebuilt = _rebuild(source.first.code)
    impossible = {cell: why for cell, records in source.records.items() if (why := _impossible(cell, records[0], rebuilt.manifests))}
    cells = tuple(cell for cell in source.records if cell not in impossible)
    if not cells:
        raise NothingToRunError(next(iter(impossible.values())))
    if rebuilt.instead:
        options.say(f"measuring the working tree: {rebuilt.instead}")
    processes = max(FEWEST_PROCESSES, *(len(records) for records in source.records.values()))
    # The working tree's own environments are built only where it is what runs.
    ours = cells if rebuilt.revision.root == ROOT else ()
    with opened(request, None, options, ours, asked=[source.run.run_id, *(cell.key for cell in cells), processes]) as opening:
        context = of_revision(opening, rebuilt.revision, rebuilt.manifests, cells, options)
        commit = _commit(rebuilt, source.first.code)
        about = {"rerun_of": source.run.run_id, "implementations_commit": commit}
        certificates = _measure(context, cells, processes, about)
        for cell, why in impossible.items():
            context.store.append(context.record(cell.timed_by, cell, "skipped", why, data=about))
        found = _compare(source, rebuilt, context, certificates, processes, commit)
        rerun.write(context.folder, found)
        (context.folder / FINISHED).touch()
    return context.folder, found


def _request(source: Source) -> plan.Request:
    threads = {cell.threads for cell in source.records}
    devices = {cell.device for cell in source.records}
    suites = {cell.timed_by for cell in source.records}
    if len(threads) != 1 or len(devices) != 1 or len(suites) != 1:
        raise plan.UsageError(f"{source.name}: its cells differ in threads or device, or some are of training; name one record of it")
    (count,), (device,), (suite,) = threads, devices, suites
    assert count is not None
    if count > plan.available_threads():
        raise plan.UsageError(
            f"{source.name}: it was measured with {count} threads, and this process may use {plan.available_threads()} cores"
        )
    if device == "cuda" and (why := gpu.missing()):
        raise plan.UsageError(why)
    return plan.Request(device=device, threads=count, zoo=suite == "inference", training=suite == "training")


def _rebuild(code: Code) -> Rebuilt:
    """The implementations of the record's commit; the zoos' are always the working tree's."""
    here = Rebuilt(revisions.working_tree(), find(zoo=True), None)
    if code.commit is None:
        return dataclasses.replace(here, instead="the record names no commit")
    if code == provenance.code(ROOT):
        return here
    if code.dirty:
        return dataclasses.replace(here, instead="the record's checkout held changes that are in no commit")
    try:
        revision = revisions.revision(code.commit)
        return Rebuilt(revision, find(revision.root) | _zoo(), None)
    except (RevisionError, ManifestError) as error:
        return dataclasses.replace(here, instead=str(error))


def _commit(rebuilt: Rebuilt, code: Code) -> str | None:
    """The commit that what runs is equal to; None where it is of no commit."""
    return None if rebuilt.instead or code.dirty else code.commit


def _impossible(cell: Cell, record: Record, manifests: Mapping[str, Manifest]) -> str | None:
    """Why a cell cannot be measured again here; None where it can be tried."""
    if cell.scope not in plan.SCOPES:
        return f"{cell.key}: times of scope {cell.scope} are not measured here"
    if cell.implementation not in manifests:
        return f"{cell.key}: there is no implementation {cell.implementation} in what was rebuilt"
    manifest = manifests[cell.implementation]
    if cell.mode not in manifest.modes_on(cell.device):
        return f"{cell.key}: {manifest.title} has no mode {cell.mode}"
    if cell.device not in manifest.devices:
        return f"{cell.key}: {manifest.title} does not offer {cell.device}"
    why = plan.precision_reason(manifest, manifest.devices[cell.device], cell.precision, timed=True)
    if why := why or plan.mode_reason(manifest.modes_on(cell.device)[cell.mode]):
        return f"{cell.key}: {why}"
    try:
        own = subject(cell.model)
        ours = (in_training(own) if cell.scenario == "training" else own).weights_sha256
    except models.UnknownModelError as error:
        return f"{cell.key}: {error}"
    if record.model is None or record.model.weights_sha256 != ours:
        return f"{cell.key}: its weights are not the project's own for {cell.model}, and a record does not hold them"
    return None


def _measure(context: Context, cells: tuple[Cell, ...], processes: int, about: Mapping[str, object]) -> dict[Cell, Record]:
    """Certificates of all arms first; what has one is timed."""
    device = cells[0].device
    sizes = proved_sizes(device, (cell.batch_size for cell in cells))
    certificates = certificates_of(context, tuple(dict.fromkeys(cell.certificate_cell for cell in cells)), sizes, cells[0].timed_by)
    effort = dataclasses.replace(plan.standard(device), processes=processes)
    for chapter in chapters(cells):
        for cell in chapter:
            certificate = certificates[cell.certificate_cell]
            if certificate.status != "ok":
                given = {"certificate_id": certificate.record_id, "data": about}
                context.store.append(context.record(cell.timed_by, cell, certificate.status, certificate.reason, **given))
        sound = tuple(cell for cell in chapter if certificates[cell.certificate_cell].status == "ok")
        inference.run(context, sound, effort, certificates, lambda: None, {}, None, **about)
    return certificates


def _compare(
    source: Source, rebuilt: Rebuilt, context: Context, certificates: Mapping[Cell, Record], processes: int, commit: str | None
) -> Rerun:
    measured: dict[Cell, list[Record]] = {}
    for record in context.store.read(context.run.run_id)[0]:
        if record.suite == record.cell.timed_by:
            measured.setdefault(record.cell, []).append(record)
    answers: list[Answer] = []
    compared: list[tuple[Record, Record]] = []
    for cell, records in source.records.items():
        new = measured[cell]
        found = rerun.answer(records, new)
        if rebuilt.revision.root != ROOT and any(record.status == "failed" for record in new):
            found = dataclasses.replace(found, reason=f"{found.reason}; {OLDER}")
        answers.append(found)
        timed = next((record for record in new if record.settings), None)
        compared.append((records[0], timed or certificates.get(cell.certificate_cell, new[0])))
    return Rerun(
        source=provenance.anonymous(source.name),
        run_id=source.run.run_id,
        rerun_id=context.run.run_id,
        implementations_commit=commit,
        processes=processes,
        same_machine=source.first.machine_id == context.run.machine["machine_id"],
        differences=rerun.differences((source.run, context.run), compared, not_rebuilt(source, rebuilt)),
        answers=tuple(answers),
    )


def not_rebuilt(source: Source, rebuilt: Rebuilt) -> tuple[Difference, ...]:
    """The cells whose implementation is the working tree's and not that of the record's commit."""
    commit = source.first.code.commit
    was = None if commit is None else f"commit {commit}"
    if rebuilt.instead:
        return (Difference("implementations", was, f"the working tree: {rebuilt.instead}", tuple(source.records)),)
    zoo = tuple(cell for cell in source.records if rebuilt.revision.root != ROOT and cell.implementation in _zoo())
    return (Difference("implementations", was, "the working tree: model zoos are not rebuilt", zoo),) if zoo else ()


def _zoo() -> dict[str, Manifest]:
    return {name: manifest for name, manifest in find(zoo=True).items() if manifest.package.startswith(f"{ZOO}.")}
