"""Latency and throughput, measured in turns (``suites.harness.turns``).

In every round each arm (implementation, mode, precision) gets one fresh process; round k of one arm is paired with round k of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from results.record import Cell, Record, Suite
from suites.harness.context import Context, Seeds
from suites.harness.inputs import RING
from suites.harness.plan import Effort
from suites.harness.process import WorkerError
from suites.harness.turns import Entrant, Round, Taken


def groups(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Cells that are compared with each other: equal but for implementation and mode."""
    found: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.model, cell.precision, cell.device, cell.batch_size, cell.scope, cell.scenario), []).append(cell)
    return [tuple(group) for group in found.values()]


def run(
    context: Context,
    cells: Sequence[Cell],
    effort: Effort,
    certificates: Mapping[Cell, Record],
    measured: Callable[[], None],
    second_clocks: Mapping[Cell, Path],
    **data: object,
) -> None:
    """Measure certified cells until each group has ``effort.processes`` whole rounds; ``measured`` is called after each group.

    ``data`` joins what stands beside the samples of every record.

    Rounds that the store already holds are not measured again. A cell of which a process failed takes no further part: its row
    holds no figure, and one that hangs would hang in every round. ``second_clocks`` are the folders of
    LoadGen for the cells that it times too.
    """

    def store(entrant: Entrant, seeds: Seeds, outcome: Taken | WorkerError) -> None:
        certificate = certificates[entrant.cell.certificate_cell]
        context.store.append(record_of(context, "inference", entrant, seeds, outcome, certificate.record_id, **data))

    for precision in dict.fromkeys(cell.precision for cell in cells):
        waiting = groups([cell for cell in cells if cell.precision == precision])
        for number in range(effort.processes):
            done = _Done(context)
            sound = [tuple(cell for cell in group if cell not in done.failed) for group in waiting]
            missing = [group for group in sound if group and done.whole_rounds(group) <= number]
            if missing:
                context.say(f"round {number + 1} of {effort.processes}, {missing[0][0].model}, {precision}: starting processes")
                entrants = [tuple(Entrant(cell, context, second_clock=second_clocks.get(cell)) for cell in group) for group in missing]
                index = done.next_index(missing)
                Round(entrants, effort, index, store, audited=number == 0).run(measured, "time")


def record_of(
    context: Context, suite: Suite, entrant: Entrant, seeds: Seeds, outcome: Taken | WorkerError, certificate_id: str | None, **data: object
) -> Record:
    """The record of what one process gave of one cell; ``data`` joins what stands beside the samples."""
    cell = entrant.cell
    about = entrant.context.subject(cell.model)
    fields: dict[str, object] = {
        "process": seeds.as_record(),
        "certificate_id": certificate_id,
        "model": about.as_record(cell.precision, cell.batch_size),
        "inputs": {
            "sha256": about.inputs.sha256,
            "source": about.inputs.source,
            "ring_size": RING,
            "shape": [cell.batch_size, *about.inputs.pool.shape[1:]],
        },
    }
    if isinstance(outcome, WorkerError):
        return context.failure(suite, cell, outcome, **fields, data=dict(data) or None)
    if suite != "inference":  # whose start-up and memory are measured in processes that do nothing else
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


class _Done:
    """What the store holds of this run's timed processes."""

    def __init__(self, context: Context) -> None:
        self._rounds: dict[Cell, set[int]] = {}
        self.failed: set[Cell] = set()
        for record in context.store.read(context.run.run_id)[0]:
            if record.suite == "inference" and record.process is not None:
                self._rounds.setdefault(record.cell, set()).add(record.process.index)
                if record.status != "ok":
                    self.failed.add(record.cell)

    def whole_rounds(self, group: Sequence[Cell]) -> int:
        """Rounds in which every cell of the group was recorded."""
        return len(set.intersection(*(self._rounds.get(cell, set()) for cell in group)))

    def next_index(self, missing: Sequence[Sequence[Cell]]) -> int:
        """A round that none of these cells had."""
        return max((index for group in missing for cell in group for index in self._rounds.get(cell, set())), default=-1) + 1
