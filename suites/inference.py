"""Latency and throughput, and the throughput of training steps, measured in turns (``suites.harness.turns``).

In every round each arm (implementation, mode, precision) gets one fresh process; round k of one arm is paired with round k of another.
On a CPU that process holds all its cells. A GPU's memory is smaller than what they would take, so there each batch size has
processes of its own, from the smallest on, and a process that fails beside the others, or finds them in half of the memory, is tried
again with the card to itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from results.record import Cell, Record, Suite
from suites.harness import requests
from suites.harness.context import Context, Seeds
from suites.harness.inputs import ring_size
from suites.harness.plan import Effort
from suites.harness.process import WorkerError
from suites.harness.turns import Entrant, Round, Taken

CROWDED_OUT = ("memory", "failed", "died")
"""What a process may say that had too little of a GPU's memory beside others; not every library calls that by its name."""


def groups(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Cells that are compared with each other: equal but for implementation and mode."""
    found: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.model, cell.precision, cell.device, cell.batch_size, cell.scope, cell.scenario), []).append(cell)
    return [tuple(group) for group in found.values()]


def rooms(waiting: Sequence[tuple[Cell, ...]]) -> list[list[tuple[Cell, ...]]]:
    """Groups whose cells share processes: all on a CPU, those of one batch size on a GPU, smaller ones first."""
    found: dict[tuple[object, ...], list[tuple[Cell, ...]]] = {}
    for group in waiting:
        cell = group[0]
        found.setdefault((cell.model, cell.batch_size) if cell.device == "cuda" else (), []).append(group)
    return [found[key] for key in sorted(found, key=lambda key: key[1:])]


def run(
    context: Context,
    cells: Sequence[Cell],
    effort: Effort,
    certificates: Mapping[Cell, Record],
    measured: Callable[[], None],
    second_clocks: Mapping[Cell, Path],
    doubled_from: int | None = None,
    **data: object,
) -> None:
    """Measure certified cells until each group has ``effort.processes`` whole rounds; ``measured`` is called after each group.

    ``data`` joins what stands beside the samples of every record.

    Rounds that the store already holds are not measured again. A cell of which a process failed takes no further part: its row
    holds no figure, and one that hangs would hang in every round. ``second_clocks`` are the folders of
    LoadGen for the cells that it times too. Above ``doubled_from`` images a mode is tried until one size ends without a figure.
    """
    crowded_out: list[Entrant] = []

    def store(entrant: Entrant, seeds: Seeds, outcome: Taken | WorkerError) -> None:
        certificate = certificates[entrant.cell.certificate_cell]
        context.store.append(record_of(context, entrant.cell.timed_by, entrant, seeds, outcome, certificate.record_id, **data))
        if isinstance(outcome, Taken) and entrant.cell.device == "cuda":
            # Audits take memory of their own, so where there are other rounds, those tell the peak.
            audited = bool(outcome.copies) and effort.processes > 1
            _beside(context, entrant, seeds, outcome, certificate.record_id, memory=not audited)

    def store_unless_crowded(entrant: Entrant, seeds: Seeds, outcome: Taken | WorkerError) -> None:
        if isinstance(outcome, WorkerError) and outcome.kind in CROWDED_OUT:
            crowded_out.append(entrant)
        else:
            store(entrant, seeds, outcome)

    def take(missing: Sequence[tuple[Cell, ...]], index: int, *, audited: bool) -> None:
        """One round; what does not fit beside the others has one of its own after it."""
        entrants = [tuple(Entrant(cell, context, second_clock=second_clocks.get(cell)) for cell in group) for group in missing]
        in_company = missing[0][0].device == "cuda" and sum(map(len, missing)) > 1
        told = store_unless_crowded if in_company else store
        Round(entrants, effort, index, told, audited=audited, makes_room=in_company).run(measured, "time")
        alone: dict[object, list[Entrant]] = {}
        for entrant in crowded_out:
            alone.setdefault(entrant.arm, []).append(entrant)
        crowded_out.clear()
        for own in alone.values():
            context.say(f"{own[0].cell.implementation} {own[0].cell.mode}: again, with the GPU to itself")
            Round([(entrant,) for entrant in own], effort, index, store, audited=audited).run(measured, "time")

    for precision in dict.fromkeys(cell.precision for cell in cells):
        shared = rooms(groups([cell for cell in cells if cell.precision == precision]))
        for number, room in itertools.product(range(effort.processes), shared):
            done = _Done(context)
            if doubled_from is not None and (room[0][0].batch_size or 0) > doubled_from:
                done.failed |= {cell for group in room for cell in group if done.ended(cell)}
            for cell, smaller in done.hopeless([cell for group in room for cell in group]):
                reason = f"not tried: a batch of {smaller} did not fit into the GPU's memory"
                certificate_id = certificates[cell.certificate_cell].record_id
                context.store.append(context.record(cell.timed_by, cell, "out_of_memory", reason, certificate_id=certificate_id))
                done.failed.add(cell)
            sound = [tuple(cell for cell in group if cell not in done.failed) for group in room]
            missing = [group for group in sound if group and done.whole_rounds(group) <= number]
            if missing:
                batch = f", batch {missing[0][0].batch_size}" if len(shared) > 1 else ""
                context.say(f"round {number + 1} of {effort.processes}, {missing[0][0].model}, {precision}{batch}: starting processes")
                take(missing, done.next_index(missing), audited=number == 0)


def record_of(
    context: Context, suite: Suite, entrant: Entrant, seeds: Seeds, outcome: Taken | WorkerError, certificate_id: str | None, **data: object
) -> Record:
    """The record of what one process gave of one cell; ``data`` joins what stands beside the samples."""
    cell = entrant.cell
    about = requests.subject(entrant.context, cell)
    fields: dict[str, object] = {
        "process": seeds.as_record(),
        "certificate_id": certificate_id,
        "model": about.as_record(cell.precision, cell.batch_size),
        "inputs": {
            "sha256": about.inputs.sha256,
            "source": about.inputs.source,
            "ring_size": ring_size(cell.batch_size or 1),
            "shape": [cell.batch_size, *about.inputs.pool.shape[1:]],
        },
    }
    if isinstance(outcome, WorkerError):
        return context.failure(suite, cell, outcome, **fields, data=dict(data) or None)
    if suite != cell.timed_by:  # whose start-up and memory are measured in processes that do nothing else
        fields["measurements"] = {**outcome.startup, **outcome.memory}
    failed = outcome.timing.failed_audits
    status = "ok" if not failed else "not_certified" if failed[0].name == "outputs" else "audit_failed"
    return context.record(
        suite,
        cell,
        status,
        failed[0].reason if failed else None,
        **fields,
        settings=dict(outcome.settings),
        software=outcome.packages,
        timer=outcome.timer,
        samples=outcome.samples,
        data={**outcome.timing.as_data(), **data},
    )


def _beside(context: Context, entrant: Entrant, seeds: Seeds, taken: Taken, certificate_id: str, *, memory: bool) -> None:
    """What a process that timed one network on a GPU says of memory and of copies, as records of their own."""
    fields: dict[str, Any] = {"process": seeds.as_record(), "certificate_id": certificate_id, "settings": dict(taken.settings)}
    names = ("peak_allocated_bytes", "peak_reserved_bytes") if memory else ()
    allocated = {name: float(value) for name in names if (value := taken.memory.get(name)) is not None}
    found: tuple[tuple[Suite, Mapping[str, float]], ...] = (("memory", allocated), ("copies", taken.copies))
    for suite, measurements in found:
        if measurements and not context.store.has(context.run.run_id, suite, entrant.cell, seeds.index):
            context.store.append(context.record(suite, entrant.cell, measurements=measurements, **fields))


ENDS = ("out_of_memory", "failed", "timed_out")
"""What ends doubling: no memory, or what a library says of tensors that it has no index for."""


class _Done:
    """What the store holds of this run's timed processes."""

    def __init__(self, context: Context) -> None:
        self._rounds: dict[Cell, set[int]] = {}
        self.failed: set[Cell] = set()
        self._full: dict[Cell, int] = {}
        self._ends: dict[Cell, int] = {}
        for record in context.store.read(context.run.run_id)[0]:
            if record.suite not in ("inference", "training"):
                continue
            cell, arm = record.cell, record.cell.certificate_cell
            if record.process is not None:
                self._rounds.setdefault(cell, set()).add(record.process.index)
            if record.status != "ok":
                self.failed.add(cell)
            if record.status in ENDS and cell.batch_size is not None:
                self._ends[arm] = min(cell.batch_size, self._ends.get(arm, cell.batch_size))
            if record.status == "out_of_memory" and cell.batch_size is not None:
                self._full[arm] = min(cell.batch_size, self._full.get(arm, cell.batch_size))

    def ended(self, cell: Cell) -> bool:
        """Whether a smaller batch of the same arm ended without a figure."""
        return cell.batch_size is not None and self._ends.get(cell.certificate_cell, cell.batch_size) < cell.batch_size

    def hopeless(self, cells: Sequence[Cell]) -> list[tuple[Cell, int]]:
        """The cells of a GPU of which no process was tried yet and a smaller batch did not fit, each with the size of that."""
        untried = [cell for cell in cells if cell.device == "cuda" and cell not in self.failed and cell not in self._rounds]
        smaller = [(cell, self._full.get(cell.certificate_cell)) for cell in untried]
        return [(cell, size) for cell, size in smaller if size is not None and cell.batch_size is not None and size < cell.batch_size]

    def whole_rounds(self, group: Sequence[Cell]) -> int:
        """Rounds in which every cell of the group was recorded."""
        return len(set.intersection(*(self._rounds.get(cell, set()) for cell in group)))

    def next_index(self, missing: Sequence[Sequence[Cell]]) -> int:
        """A round that none of these cells had."""
        return max((index for group in missing for cell in group for index in self._rounds.get(cell, set())), default=-1) + 1
