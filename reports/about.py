"""What was measured, where, when and with which versions: the strip that every report opens with."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reports import calibration, labels
from results.record import Code, Inputs, Record
from results.schema import RecordError
from results.store import Run


@dataclass(frozen=True, slots=True)
class About:
    """The origin of some records; ``runs`` describes their runs by name, ``unreadable`` names files that are no records."""

    records: tuple[Record, ...]
    runs: Mapping[str, Run]
    unreadable: tuple[str, ...] = ()

    @property
    def run_ids(self) -> list[str]:
        """The runs, in the order in which they began."""
        return list(dict.fromkeys(record.run_id for record in sorted(self.records, key=lambda record: record.created_utc)))

    def machine(self, run_id: str) -> str:
        """ "AMD EPYC 9B45, 2 cores" for a run; "unknown machine" where its facts were not kept."""
        run = self.runs.get(run_id)
        facts = run.machine if run else {}
        cores = facts.get("cores")
        parts = (facts.get("gpu_model"), facts.get("cpu_model"), f"{cores} cores" if cores else None)
        return ", ".join(str(part) for part in parts if part) or "unknown machine"

    def again(self) -> list[str]:
        """The commands that measured, where the runs kept them."""
        commands = [self.runs[run_id].details.get("command") for run_id in self.run_ids if run_id in self.runs]
        return _unique(shlex.join(["levelfield", *map(str, command)]) for command in commands if isinstance(command, list))

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Names and values, in the order of the strip."""
        records = self.records
        if not records:
            return ()
        moments = sorted(record.created_utc for record in records)
        smoke = any(not record.measurement for record in records)
        facts = [
            ("Measured", "; ".join(_unique(_what(record) for record in records if record.suite != "probe"))),
            ("Machine", "; ".join(_unique(self.machine(record.run_id) for record in records))),
            ("GPU", "; ".join(_unique(_gpu(run.machine) for run in self.runs.values()))),
            ("Caution", "; ".join(_unique(str(each) for run in self.runs.values() for each in _cautions(run.machine)))),
            ("Libraries", "; ".join(_unique(_libraries(record) for record in records))),
            ("A/A", "; ".join(_calibrations(records))),
            ("When", _minute(moments[0]) if moments[0][:16] == moments[-1][:16] else f"{_minute(moments[0])} to {_minute(moments[-1])}"),
            ("Versions", ", ".join(_versions(records))),
            ("Commit", "; ".join(_unique(_commit(record.code) for record in records))),
            ("Weights", "; ".join(_unique(_weights(record) for record in records))),
            ("Inputs", "; ".join(_unique(_inputs(record.inputs) for record in records))),
            ("Run", ", ".join(self.run_ids)),
        ]
        if self.unreadable:
            facts.append(("Left out", "; ".join(self.unreadable)))
        if smoke:
            facts.insert(0, ("NOT-A-MEASUREMENT", "a smoke run: every path ran, nothing was measured"))
        return tuple((name, value) for name, value in facts if value)


def _gpu(machine: Mapping[str, object]) -> str:
    """ "driver 580.65.06, CUDA 13.1, 700 W, ECC on": how the card was set up."""
    found = machine.get("gpu")
    if not isinstance(found, Mapping):
        return ""
    parts = (
        f"driver {found['driver']}" if found.get("driver") else None,
        f"CUDA {found['cuda_driver']}" if found.get("cuda_driver") else None,
        f"{found['power_limit_w']:g} W" if found.get("power_limit_w") else None,
        None if found.get("ecc") is None else f"ECC {'on' if found['ecc'] else 'off'}",
        None if found.get("persistence") is None else f"persistence {'on' if found['persistence'] else 'off'}",
        "an instance of it (MIG)" if found.get("instance") else None,
    )
    return ", ".join(part for part in parts if part)


def _cautions(machine: Mapping[str, object]) -> list[object]:
    found = machine.get("cautions")
    return found if isinstance(found, list) else []


def _libraries(record: Record) -> str:
    """ "torch: cublas 13.1.1, cudnn 9.20.0": of a GPU, as they were loaded."""
    found = record.settings.get("libraries")
    if not isinstance(found, Mapping) or not found:
        return ""
    return f"{record.cell.implementation}: {', '.join(f'{name} {version}' for name, version in found.items())}"


def _unique(texts: Iterable[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text]


def _what(record: Record) -> str:
    cell = record.cell
    return f"{labels.model(cell.model)} {cell.precision} on {cell.device}"


def _versions(records: Iterable[Record]) -> list[str]:
    each = (labels.versions(record.cell.implementation, record.software) for record in records)
    return sorted({part for text in each for part in text.split(", ") if part})


def _minute(moment: str) -> str:
    """ "2026-11-20 05:02 UTC" for an ISO 8601 moment."""
    return datetime.datetime.fromisoformat(moment).astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _commit(code: Code) -> str:
    commit = (code.commit or "unknown")[:12]
    return f"{code.version or ''} {commit}{' with uncommitted changes' if code.dirty else ''}".strip()


def _weights(record: Record) -> str:
    return f"{labels.model(record.cell.model)} sha256 {labels.short(record.model.weights_sha256)}" if record.model else ""


def _inputs(inputs: Inputs | None) -> str:
    return f"{inputs.source}, sha256 {labels.short(inputs.sha256)}" if inputs else ""


def _calibrations(records: Iterable[Record]) -> list[str]:
    """What the ledgers of the machines that timed something say; a broken ledger is named, and the report goes on."""
    found = []
    for machine_id, protocol in dict.fromkeys((each.machine_id, each.protocol_version) for each in records if each.samples is not None):
        try:
            found.append(calibration.of_machine(machine_id, protocol))
        except RecordError as error:
            found.append(str(error))
    return _unique(found)
