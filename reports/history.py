"""Stored records as a history: what each commit measured on each machine.

The quantities are those of which less is better, because asv, which archives and shows them, knows no other kind: a gain in
images per second would be a regression to it, and a loss none. Rows come from ``reports.frame``, so the rule "no certificate,
no number" holds here as everywhere, and what is left out is named.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reports import frame, labels
from results.record import Cell, Record

QUANTITIES: Mapping[str, str] = {
    "time_per_image_s": "seconds",
    "peak_memory_bytes": "bytes",
    "import_s": "seconds",
    "load_s": "seconds",
    "first_call_s": "seconds",
}
"""What is followed over commits, with asv's word for its unit; each has one value per process."""

PARAMETERS = ("implementation", "model", "precision", "device", "batch", "scope", "threads")
"""The cell's coordinates, of which asv wants all combinations. Those that come together are one, so that few are empty: mode and
version with the implementation, so that two versions of a framework are never one line, and the scenario with the batch size."""

ABSENT = "none"
"""Of a fact that a machine does not have, a GPU for instance: asv's selectors need a value."""


@dataclass(frozen=True, slots=True)
class Point:
    """A cell as one run measured it: by quantity, one sample per process; no sample where it was not measured.

    ``ratio`` is the speed over the baseline's, paired in the same run; None for the baseline itself and without pairs.
    """

    machine_id: str
    commit: str
    run_id: str
    measured_utc: str
    protocol_version: str
    cell: Cell
    version: str
    python: str
    env_vars: tuple[tuple[str, str], ...]
    samples: Mapping[str, tuple[float, ...]]
    baseline: str
    ratio: float | None

    @property
    def environment(self) -> str:
        """Its name for asv, like "pytorch-2.13.0-cpu-py3.11", with a hash of the variables that change how frameworks compute."""
        name = f"{self.cell.implementation}-{self.version}-{self.cell.device}-py{self.python}"
        return f"{name}-env{hashlib.sha256(repr(self.env_vars).encode()).hexdigest()[:8]}" if self.env_vars else name

    @property
    def parameters(self) -> tuple[str, ...]:
        """The values of ``PARAMETERS``, like "pytorch/eager 2.13.0" and "8 offline"."""
        cell = self.cell
        implementation, batch = f"{cell.implementation}/{cell.mode} {self.version}", f"{cell.batch_size} {cell.scenario}"
        return implementation, cell.model, cell.precision, cell.device, batch, str(cell.scope), str(cell.threads)


@dataclass(frozen=True, slots=True)
class History:
    """Points in the order of their runs, the machines by their id, and one sentence for every reason to leave something out."""

    points: tuple[Point, ...]
    machines: Mapping[str, Mapping[str, str]]
    left_out: tuple[str, ...]


def collect(stores: Iterable[Path], baseline: str = frame.BASELINE) -> History:
    """The points of all rows of the stores that have a right to figures and a commit; a run that lies in two stores counts once.

    Raises:
        NoRecordsError: a store that is none.
        BaselineError: ``baseline`` is not "implementation/mode".
    """
    points: list[Point] = []
    machines: dict[str, Mapping[str, str]] = {}
    rows_by_reason: Counter[str] = Counter()
    unreadable: list[str] = []
    seen: set[str] = set()
    for store in stores:
        loaded = frame.read(store)
        unreadable += [f"not readable: {each}" for each in loaded.unreadable]
        of_run: dict[str, list[Record]] = defaultdict(list)
        for record in loaded.records:
            of_run[record.run_id].append(record)
        records = {run_id: frame.latest(each) for run_id, each in of_run.items()}
        for row in frame.tidy(loaded, baseline).to_dict("records"):
            run_id = row["run_id"]
            if run_id in seen:
                continue
            if run_id not in loaded.runs:
                rows_by_reason[f"run {run_id} does not say which machine it ran on"] += 1
            elif why := _without_right(row) or _of_other_images(row) or _without_commit(records[run_id][0]):
                rows_by_reason[why] += 1
            else:
                facts = loaded.runs[run_id].machine
                points.append(_point(row, records[run_id], facts))
                machines[row["machine_id"]] = machine(row["machine_id"], facts)
        seen |= set(of_run)
    left_out = [f"{count} row{'s' if count > 1 else ''}: {why}" for why, count in rows_by_reason.items()]
    return History(tuple(sorted(points, key=lambda point: point.run_id)), machines, (*left_out, *unreadable))


def _without_right(row: Mapping[Any, Any]) -> str | None:
    """Why a row has no figure."""
    if not pd.isna(row["time_per_batch_s"]):
        return None
    return "a certificate or an accuracy alone, not timed" if pd.isna(row["reason"]) else str(row["reason"])


def _of_other_images(row: Mapping[Any, Any]) -> str | None:
    """Why a row is in no line with others of its model: it was timed on images of a weight file's own size."""
    return next(
        (f"timed on images of {size}, another size than {row['model']} is for" for size in labels.images(row["model"], row["image_size"])),
        None,
    )


def _without_commit(record: Record) -> str | None:
    """Why no commit names the code of a run; all its records are of the same code."""
    if record.code.commit is None:
        return f"run {record.run_id} was made outside git, so no commit names its code"
    if record.code.dirty:
        return f"run {record.run_id} was made with uncommitted changes, so no commit names its code"
    return None


def _point(row: Mapping[Any, Any], records: list[Record], facts: Mapping[str, object]) -> Point:
    timed = [record for record in records if record.suite == "inference" and record.cell == Cell(*(row[name] for name in frame.CELL))]
    record = timed[-1]
    cell = record.cell
    assert record.code.commit is not None
    assert cell.batch_size is not None
    times = frame.process_times(timed)
    samples = {"time_per_image_s": tuple(times[index] / cell.batch_size for index in sorted(times))}
    for suite, names in (("memory", ("peak_memory_bytes",)), ("startup", frame.STARTUP)):
        own = [each for each in records if each.suite == suite]
        samples |= {name: tuple(frame.measured(own, cell, name)) for name in names}
    return Point(
        machine_id=row["machine_id"],
        commit=record.code.commit,
        run_id=row["run_id"],
        measured_utc=row["created_utc"],
        protocol_version=record.protocol_version,
        cell=cell,
        version=labels.version(cell.implementation, record.software) or "unknown",
        # Where a worker's Python was not recorded it is the command's, of which environments are made unless others are named.
        python=".".join(str(record.software.get("python") or facts.get("python") or "unknown").split(".")[:2]),
        env_vars=tuple(sorted(record.env_vars.items())),
        samples=samples,
        baseline=row["baseline"],
        ratio=None if pd.isna(row["ratio"]) else float(row["ratio"]),
    )


def machine(machine_id: str, facts: Mapping[str, object]) -> dict[str, str]:
    """A machine as asv describes one, and what asv leaves out: ``cores``, ``gpu`` and ``driver``."""
    memory = facts.get("memory_gib")
    known = {
        "os": facts.get("distribution"),
        "arch": facts.get("architecture"),
        "cpu": facts.get("cpu_model"),
        "num_cpu": facts.get("logical_cpus"),
        "cores": facts.get("cores"),
        "ram": f"{memory} GiB" if memory else None,
        "gpu": facts.get("gpu_model"),
        "driver": facts.get("gpu_driver"),
    }
    return {"machine": machine_id, **{name: ABSENT if value is None else str(value) for name, value in known.items()}}
