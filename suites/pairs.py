"""Two sides of the same cells, measured in pairs of fresh processes that take turns, and judged in two stages.

The sides are two revisions (``suites.regression``) or a thing and itself (``suites.aa``): the same path, so that the second tells the
error rates of the first. Each implementation, mode and precision is measured apart from the others: two processes at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from impls.implementation import Manifest
from results import gate, statistics, timing
from results.gate import Judgement
from results.record import Cell, Record, Suite
from results.statistics import Ratio
from suites import inference
from suites.harness import plan
from suites.harness.context import Context, Seeds
from suites.harness.plan import Effort
from suites.harness.process import WorkerError
from suites.harness.runner import NothingToRunError
from suites.harness.turns import Entrant, Round, Taken

BASE, HEAD = "base", "head"

EFFORT = Effort(processes=1, blocks=5, visit_s=0.05, samples=3, warmup_s=0.25, rewarm_calls=3)
"""Of one pair: five blocks, in each two visits a side."""

STARTUP = gate.Rule(tolerance=0.10, margin=0.20, screen_level=0.005)
"""Of start-up, which two processes have at the same time: it varies by a tenth between equal ones."""


Certificates = Mapping[Cell, Record]
"""By arm."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side: where its workers come from, its certificates, and how much its timed calls are held up."""

    context: Context
    certificates: Certificates
    slowdown: float = 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the pairs said of one cell: the speed of head over base in the screen, the judgement of each stage, and why, where invalid."""

    cell: Cell
    ratio: Ratio
    screen: Judgement
    confirmation: Judgement | None

    @property
    def judgement(self) -> Judgement:
        """The one that counts."""
        return self.confirmation or self.screen


@dataclass(frozen=True, slots=True)
class ArmComparison:
    """What the processes of one arm said beside their times, with all its cells: peak memory, and seconds until the first answers."""

    arm: Cell
    memory: Judgement
    startup: Judgement


@dataclass(slots=True)
class _Measured:
    """Records of one stage by side and round."""

    records: dict[tuple[Cell, str], dict[int, Record]] = dataclasses.field(default_factory=dict)

    def times(self, cell: Cell, side: str) -> dict[int, float]:
        """Seconds of one call by round, of the processes that are ok."""
        found = self.records.get((cell, side), {})
        return {index: timing.call_s(record) for index, record in found.items() if record.status == "ok"}

    def invalid(self, cell: Cell) -> str | None:
        """Why the cell cannot be judged; None where it can."""
        records = [record for side in (BASE, HEAD) for record in self.records.get((cell, side), {}).values()]
        for record in records:
            if record.status != "ok":
                return str(record.reason)
        return timing.disturbed(records)

    def judged(self, cell: Cell, stage: str) -> Judgement:
        """The gate's answer to this stage's pairs."""
        if why := self.invalid(cell):
            return Judgement("invalid", why, 0, None, None, None, None, None, None)
        base, head = self.times(cell, BASE), self.times(cell, HEAD)
        logs = [math.log(head[index] / base[index]) for index in sorted(base.keys() & head.keys())]
        return gate.screen(logs) if stage == "screen" else gate.confirm(logs)


def planned(request: plan.Request, manifests: Mapping[str, Manifest], models: tuple[str, ...]) -> plan.Plan:
    """The plan of a request; by default of these models, in each implementation's default mode, at batch 1.

    Raises:
        UsageError: a word or number of the request makes no sense, or a cell was named that cannot run here.
        NothingToRunError: no cell can run here.
    """
    filled = dataclasses.replace(request, models=request.models or models, batch_sizes=request.batch_sizes or (1,))
    made = plan.make(filled, manifests)
    if vain := [skip.reason for skip in made.skips if skip.by_name]:
        raise plan.UsageError(f"{vain[0]}: a gate judges all that it was asked for, or nothing")
    if request.modes is None:
        cells = tuple(cell for cell in made.cells if cell.mode == manifests[cell.implementation].default_mode)
        made = dataclasses.replace(made, cells=cells)
    if not made.cells:
        raise NothingToRunError(made.skips[0].reason if made.skips else "the request names no cell")
    return made


def compare(base: Side, head: Side, cells: Sequence[Cell], suite: Suite) -> Iterator[tuple[tuple[Comparison, ...], ArmComparison]]:
    """Judge every cell of one implementation, mode and precision after the other; records go to head's store."""
    arms: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        arms.setdefault((cell.implementation, cell.mode, cell.precision), []).append(cell)
    for own in arms.values():
        screened = _stage(base, head, own, suite, "screen", gate.TIME.screen_pairs)
        first = {cell: screened.judged(cell, "screen") for cell in own}
        candidates = [cell for cell in own if first[cell].outcome == "candidate"]
        confirmed = _stage(base, head, candidates, suite, "confirm", gate.TIME.confirm_pairs) if candidates else None
        yield (
            tuple(
                Comparison(
                    cell,
                    statistics.ratio(screened.times(cell, BASE), screened.times(cell, HEAD)),
                    first[cell],
                    confirmed.judged(cell, "confirm") if confirmed and cell in candidates else None,
                )
                for cell in own
            ),
            _beside(own, screened),
        )


def _stage(base: Side, head: Side, cells: Sequence[Cell], suite: Suite, stage: str, pairs: int) -> _Measured:
    context, found = head.context, _Measured()
    effort = dataclasses.replace(EFFORT, warmup_s=plan.ON_GPU.warmup_s) if cells[0].device == "cuda" else EFFORT
    sides = {BASE: base, HEAD: head}

    def store(entrant: Entrant, seeds: Seeds, outcome: Taken | WorkerError) -> None:
        certificate = sides[entrant.side].certificates[entrant.cell.certificate_cell].record_id
        record = inference.record_of(context, suite, entrant, seeds, outcome, certificate, side=entrant.side, stage=stage)
        context.store.append(record)
        found.records.setdefault((entrant.cell, entrant.side), {})[seeds.index] = record

    for index in range(pairs):
        first = cells[0]
        context.say(f"{stage} of {first.implementation} {first.mode} {first.precision}: pair {index + 1} of {pairs}")
        groups = [[Entrant(cell, side.context, name, side.slowdown) for name, side in sides.items()] for cell in cells]
        Round(groups, effort, index, store, audited=stage == "screen" and index == 0).run(lambda: None, stage)
    return found


def _beside(cells: Sequence[Cell], measured: _Measured) -> ArmComparison:
    """Peak memory of the processes, which held all cells, and the seconds that they took to import, build and answer first."""
    records = {side: [list(measured.records.get((cell, side), {}).values()) for cell in cells] for side in (BASE, HEAD)}
    startups: dict[str, dict[int, float]] = {BASE: {}, HEAD: {}}
    for side, by_cell in records.items():
        for one in zip(*by_cell, strict=False):
            parts = [record.measurements.get(name) for record in one for name in ("load_s", "first_call_s")]
            total = sum(part for part in [one[0].measurements.get("import_s"), *parts] if part is not None)
            if one[0].process is not None and total:
                startups[side][one[0].process.index] = total
    both = sorted(startups[BASE].keys() & startups[HEAD].keys())
    logs = [math.log(startups[HEAD][index] / startups[BASE][index]) for index in both]
    return ArmComparison(cells[0].certificate_cell, _memory(records), gate.screen(logs, STARTUP))


def _memory(records: Mapping[str, Sequence[Sequence[Record]]]) -> gate.Judgement:
    """By the allocator's own count where every process tells it, which is exact; else by the peak of the whole process."""

    def peaks(name: str) -> tuple[list[int], list[int]]:
        base, head = (
            [int(max(one.measurements.get(name) or 0 for one in process)) for process in zip(*records[side], strict=False)]
            for side in (BASE, HEAD)
        )
        return base, head

    allocated = peaks("peak_allocated_bytes")
    if all(map(all, allocated)) and all(allocated):
        return gate.allocated_memory(*allocated)
    return gate.peak_memory(*peaks("peak_memory_bytes"))
