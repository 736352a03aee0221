"""What a rerun says of a result: the fields that differ, and whether the times are the same, as one document in the folder of its run.

REPRODUCED, DIFFERS, CANNOT-TELL   as ``results.comparison.reproduced`` says
not certified                      what was rebuilt does not compute the model, so it has no time
invalid                            it could not be measured: a process that failed, disturbed blocks, an arm that does not run here

One run is compared with one other, unpaired: what a day and a boot add is in neither interval.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from results import comparison, timing
from results.comparison import OTHER_MACHINE, SAME_MACHINE, Unpaired, reproduced, unpaired
from results.record import Cell, Record
from results.schema import canonical, encode
from results.statistics import StatisticsError
from results.store import Run

DOCUMENT = "rerun.json"
"""The file in a run's folder."""

Outcome = Literal[comparison.Answer, "not certified", "invalid"]

GROUPS = ("protocol_version", "implementations", "machine", "code", "software", "settings", "env_vars", "inputs", "model")
"""What is compared, in the order in which differences are listed."""

NOT_THE_SAME_MEASUREMENT = "records of different protocols are not the same measurement"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a rerun says of one cell. ``ratio`` is the rerun's time over the record's, None where there is none."""

    cell: Cell
    outcome: Outcome
    reason: str
    ratio: Unpaired | None
    band: float

    @classmethod
    def without(cls, cell: Cell, outcome: Outcome, reason: str, band: float) -> Answer:
        """Without a number."""
        return cls(cell, outcome, reason, None, band)


@dataclass(frozen=True, slots=True)
class Difference:
    """A field that is not what it was, and the cells of which this holds; None stands for null and for a field that is not there."""

    field: str
    was: object
    now: object
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Rerun:
    """A run and its rerun: their names, what was measured, what differs, and the answers.

    ``implementations_commit`` is the commit that the measured implementations are of; None where they are of no commit.
    """

    source: str
    run_id: str
    rerun_id: str
    implementations_commit: str | None
    processes: int
    same_machine: bool
    differences: tuple[Difference, ...]
    answers: tuple[Answer, ...]

    @property
    def outcome(self) -> Outcome:
        """Of all cells: one that differs or lost its certificate decides; reproduced they must all be, or it cannot be told."""
        said = {each.outcome for each in self.answers}
        for alone in ("DIFFERS", "not certified"):
            if alone in said:
                return alone
        return said.pop() if len(said) == 1 else "CANNOT-TELL"


def write(folder: Path, found: Rerun) -> None:
    """Write the document."""
    (folder / DOCUMENT).write_text(json.dumps(encode(found), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def refused(record: Record) -> str | None:
    """Why a record holds no time that a rerun could reproduce; None where it does."""
    if record.suite != record.cell.timed_by:
        return f"it is of the suite {record.suite}, and a rerun takes the suites inference and training, whose records hold times"
    if record.status != "ok":
        return f"it was not measured: {record.status}: {record.reason}"
    return None if record.measurement else "it is marked as no measurement (--smoke)"


def no_result(records: Sequence[Record]) -> str | None:
    """Why the processes of one cell, all that its run holds, are no result that a rerun could reproduce; None where they are."""
    for record in records:
        if why := refused(record):
            return why
    if len(records) < 2:
        return "its run holds one process of this cell, and one alone has no interval"
    return timing.disturbed(records)


def answer(old: Sequence[Record], new: Sequence[Record]) -> Answer:
    """What the processes of a rerun (``new``) say of those of a record's run, of one cell; at least one of each.

    The band is that of ``results.comparison`` for a rerun on the same machine or on another.
    """
    cell, band = old[0].cell, SAME_MACHINE if old[0].machine_id == new[0].machine_id else OTHER_MACHINE
    for record in new:
        if record.status != "ok":
            outcome: Outcome = "not certified" if record.status == "not_certified" else "invalid"
            return Answer.without(cell, outcome, f"{record.status}: {record.reason}", band)
    if disturbed := timing.disturbed(new):
        return Answer.without(cell, "invalid", disturbed, band)
    try:
        found = unpaired([timing.call_s(record) for record in old], [timing.call_s(record) for record in new])
    except StatisticsError as error:
        return Answer.without(cell, "invalid", str(error), band)
    told = f"time {found.value - 1:+.1%} [{found.low - 1:+.1%}, {found.high - 1:+.1%}]"
    if old[0].protocol_version != new[0].protocol_version:
        return Answer(cell, "CANNOT-TELL", f"{told}, but {NOT_THE_SAME_MEASUREMENT}", found, band)
    where = {
        "REPRODUCED": "lies within",
        "DIFFERS": "lies wholly outside",
        "CANNOT-TELL": "lies neither within nor outside",
    }
    said = reproduced(found, band)
    return Answer(cell, said, f"{told} {where[said]} the band of {band:.0%}", found, band)


def differences(
    runs: tuple[Run, Run], records: Sequence[tuple[Record, Record]], implementations: Sequence[Difference] = ()
) -> tuple[Difference, ...]:
    """Every field that differs between a run and its rerun, and between a record and the rerun's of the same cell.

    ``implementations`` are differences of what was rebuilt. A difference of protocols comes first. What the new record lacks because
    its process never came so far is no difference.
    """
    machines = [dict(_flat("machine", run.machine)) for run in runs]
    found: dict[tuple[str, bytes, bytes], Difference] = {}
    for old, new in records:
        lacking = _lacking(old, new)
        was, now = (machine | dict(_fields(record, lacking)) for machine, record in zip(machines, (old, new), strict=True))
        for field in was | now:
            then, since = was.get(field), now.get(field)
            key = (field, canonical(then), canonical(since))
            if key[1] != key[2]:
                known = found.get(key, Difference(field, then, since, ()))
                found[key] = dataclasses.replace(known, cells=(*known.cells, old.cell))
    every = [*implementations, *found.values()]
    return tuple(sorted(every, key=lambda each: (GROUPS.index(each.field.partition(".")[0]), each.field)))


def _lacking(old: Record, new: Record) -> tuple[str, ...]:
    """The groups of fields that the new record cannot have; a certificate's settings are not those of a timed process."""
    return (
        *(() if new.software else ("software",)),
        *(() if new.settings and new.suite == old.suite else ("settings",)),
        *(() if new.inputs else ("inputs",)),
        *(() if new.model else ("model",)),
    )


def _fields(record: Record, lacking: Sequence[str]) -> Iterator[tuple[str, object]]:
    yield "protocol_version", record.protocol_version
    model = {name: getattr(record.model, name) for name in ("weights_sha256", "spec_sha256")} if record.model else {}
    groups = {group: encode(getattr(record, group)) for group in ("code", "software", "settings", "env_vars", "inputs")}
    for group, fields in (groups | {"model": model}).items():
        if group not in lacking:
            yield from _flat(group, fields or {})


def _flat(group: str, fields: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in fields.items():
        yield f"{group}.{name}", value
