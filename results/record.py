"""The record: what one process measured of one cell, or why it did not.

A record is immutable, complete in itself but for the machine (described once per run), and named by its content:
``record_id`` is the first 16 hexadecimal digits of the SHA-256 of its canonical JSON. README.md tabulates the fields.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from results.schema import RecordError, canonical, decode, encode, parse

SCHEMA_VERSION = 1

Suite = Literal[
    "inference",
    "training",
    "startup",
    "cold_startup",
    "memory",
    "copies",
    "energy",
    "accuracy",
    "equivalence",
    "training_equivalence",
    "clean_seeds",
    "probe",
    "aa",
    "regression",
]
Status = Literal["ok", "skipped", "failed", "timed_out", "out_of_memory", "not_certified", "audit_failed"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
UNITS = ("_s", "_bytes", "_j", "_w", "_hz", "_celsius", "_per_s", "_per_image", "_count", "_fraction")
COUNTS_AND_FRACTIONS = ("images", "top1", "top5")
"""The measurements whose names carry no unit: a number of images, and fractions between 0 and 1."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One choice of what is measured. A certificate is for the first five coordinates; its other four are null.

    ``threads`` is the number asked for; the settings say what the framework made of it.
    """

    implementation: str
    mode: str
    model: str
    precision: Literal["fp64", "fp32", "tf32", "bf16", "fp16", "int8"]
    device: Literal["cpu", "cuda"]
    batch_size: int | None
    scope: Literal["device", "transfer", "pipeline"] | None
    scenario: Literal["single_stream", "offline", "training"] | None
    threads: int | None

    def __post_init__(self) -> None:
        for field in ("implementation", "mode", "model"):
            if not NAME.fullmatch(getattr(self, field)):
                raise RecordError(f"{field}: {getattr(self, field)!r} is not a name of letters, digits and _.+-")
        for field in ("batch_size", "threads"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise RecordError(f"{field}: {value} is not at least 1")

    @property
    def key(self) -> str:
        """The nine coordinates in order, ``-`` for null: the same string wherever and whenever it is made."""
        parts = (getattr(self, field) for field in self.__slots__)
        return "/".join("-" if part is None else str(part) for part in parts)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that stand for ``key`` in file names."""
        return hashlib.sha256(self.key.encode("ascii")).hexdigest()[:12]

    @property
    def timed_by(self) -> Literal["inference", "training"]:
        """The suite that times it."""
        return "training" if self.scenario == "training" else "inference"

    @property
    def certificate_cell(self) -> Cell:
        """The cell that a certificate for this one is for."""
        return Cell(self.implementation, self.mode, self.model, self.precision, self.device, None, None, None, None)


@dataclass(frozen=True, slots=True)
class Process:
    """A fresh worker and what was randomised in it; ``index`` is the round, which pairs it with the others of its round."""

    index: int
    hash_seed: int
    pad_bytes: int
    order_seed: int
    pid: int | None

    def __post_init__(self) -> None:
        for field in ("index", "hash_seed", "pad_bytes"):
            if getattr(self, field) < 0:
                raise RecordError(f"{field}: {getattr(self, field)} is negative")


@dataclass(frozen=True, slots=True)
class Model:
    """The network and weights that ran; the counts are of one image, ``bytes_moved`` of one batch."""

    weights_sha256: str
    spec_sha256: str
    parameters: int
    macs: int
    bytes_moved: int | None

    def __post_init__(self) -> None:
        _check_sha256(self, "weights_sha256", "spec_sha256")


@dataclass(frozen=True, slots=True)
class Inputs:
    """The ring of input batches; ``shape`` is one batch, (N, C, H, W)."""

    sha256: str
    source: str
    ring_size: int
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_sha256(self, "sha256")
        if self.ring_size < 1 or min(self.shape, default=0) < 1:
            raise RecordError(f"shape: {self.ring_size} batches of shape {self.shape} hold no image")


@dataclass(frozen=True, slots=True)
class Code:
    """The project's code; null where it cannot be told (no git). ``diff_sha256`` covers what differs from the commit."""

    version: str | None
    commit: str | None
    dirty: bool | None
    diff_sha256: str | None


@dataclass(frozen=True, slots=True)
class Timer:
    """The clock of the samples."""

    clock: str
    resolution_ns: int
    overhead_ns: int


@dataclass(frozen=True, slots=True)
class Samples:
    """Every reading of the clock, in order, warm-up too: five columns of equal length.

    ``visit`` counts turns of the process, ``start_ns`` is the clock's own, ``calls`` is how many calls a sample covers.
    """

    visit: tuple[int, ...]
    start_ns: tuple[int, ...]
    duration_ns: tuple[int, ...]
    calls: tuple[int, ...]
    warmup: tuple[bool, ...]

    def __post_init__(self) -> None:
        lengths = {field: len(getattr(self, field)) for field in self.__slots__}
        if len(set(lengths.values())) != 1 or not self.visit:
            raise RecordError(f"columns must be of one length and not empty, found {lengths}")
        if min(self.duration_ns) < 1 or min(self.calls) < 1:
            raise RecordError("duration_ns and calls: every value must be at least 1")
        if any(later < earlier for earlier, later in zip(self.visit, self.visit[1:], strict=False)):
            raise RecordError("visit: not in order")
        ends = (start + duration for start, duration in zip(self.start_ns, self.duration_ns, strict=True))
        if any(start < end for end, start in zip(ends, self.start_ns[1:], strict=False)):
            raise RecordError("start_ns: a sample begins before the one before it ended")


@dataclass(frozen=True, slots=True)
class Record:
    """What one process measured of one cell; a failure is a record with its ``reason``.

    ``measurement`` is false where the numbers are none (``--smoke``). ``measurements`` are single numbers by name with
    unit, null where they cannot be had here. ``data`` is the suite's own document. ``settings`` are read back from the
    framework; ``software`` maps a package to its version; both are empty where the worker never came so far.
    """

    protocol_version: str
    run_id: str
    created_utc: str
    suite: Suite
    cell: Cell
    status: Status
    reason: str | None
    measurement: bool
    process: Process | None
    certificate_id: str | None
    settings: Mapping[str, object]
    model: Model | None
    inputs: Inputs | None
    software: Mapping[str, str]
    code: Code
    machine_id: str
    env_vars: Mapping[str, str]
    timer: Timer | None
    samples: Samples | None
    measurements: Mapping[str, float | None]
    data: Mapping[str, object] | None
    log_tail: tuple[str, ...] | None

    def __post_init__(self) -> None:
        check_created_utc(self.created_utc)
        check_run_id(self.run_id)
        if (self.reason is None) != (self.status == "ok") or self.reason == "":
            raise RecordError(f"reason: status {self.status} with the reason {self.reason!r}; every status but ok has one, ok has none")
        coordinates = (self.cell.batch_size, self.cell.scope, self.cell.scenario, self.cell.threads)
        if self.suite in ("equivalence", "training_equivalence", "clean_seeds") and any(part is not None for part in coordinates):
            raise RecordError("cell: a certificate's batch_size, scope, scenario and threads are null")
        timed = self.suite in ("inference", "training", "aa", "regression")
        if timed and any(part is None for part in coordinates):
            raise RecordError("cell: a timed cell has a batch_size, scope, scenario and threads")
        if timed and self.status == "ok":
            if self.samples is None or self.timer is None or self.process is None:
                raise RecordError("samples: a timed record that is ok has samples, a timer and a process")
            if all(self.samples.warmup):
                raise RecordError("samples.warmup: every sample is warm-up, nothing was measured")
        for name in self.measurements:
            if name not in COUNTS_AND_FRACTIONS and not name.endswith(UNITS):
                raise RecordError(f"measurements.{name}: its unit is not in its name; names end with one of {', '.join(UNITS)}")

    @property
    def record_id(self) -> str:
        """Sixteen hexadecimal digits of the content's SHA-256."""
        return _identity(_content(self))

    @property
    def file_name(self) -> str:
        """Suite, cell, round and content: equal names mean equal records."""
        return f"{file_prefix(self.suite, self.cell, self.process.index if self.process else None)}{self.record_id}.json"


def file_prefix(suite: str, cell: Cell, index: int | None) -> str:
    """How the file names of all records of this suite, cell and process index begin."""
    return f"{suite}-{cell.digest}-{'none' if index is None else index}-"


def build(fields: Mapping[str, object], where: str = "record") -> Record:
    """A record from plain JSON values, one for each field of ``Record``, nested ones as objects and lists.

    Raises:
        RecordError: the message names ``where`` and the field.
    """
    return decode(Record, dict(fields), where)


def to_json(record: Record) -> str:
    """The record as a JSON document, one field a line; what could not be read back is refused here.

    Raises:
        RecordError: a value is not of its field's type; the message names the field.
    """
    build(encode(record))
    content = _content(record)
    document = {"record_id": _identity(content), **content}
    lines = (f"{json.dumps(name)}: {json.dumps(value, allow_nan=False, sort_keys=True)}" for name, value in document.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def from_json(text: str, where: str = "record") -> Record:
    """The record that ``to_json`` wrote; ``where`` is the file that errors name.

    Raises:
        RecordError: not JSON, another schema version, a field missing, unknown or of a wrong type, or a ``record_id`` that is
            not the content's.
    """
    document = parse(text, where)
    if not isinstance(document, dict):
        raise RecordError(f"{where}: the document: expected an object, found {type(document).__name__}")
    for field in ("schema_version", "record_id"):
        if field not in document:
            raise RecordError(f"{where}: {field}: missing")
    version = document["schema_version"]
    if type(version) is not int or version != SCHEMA_VERSION:
        raise RecordError(f"{where}: schema_version: {str(version)[:20]!r}; this code reads version {SCHEMA_VERSION}")
    claimed = document.pop("record_id")
    fields = {name: value for name, value in document.items() if name != "schema_version"}
    record = build(fields, where)
    if claimed != _identity(document):
        raise RecordError(f"{where}: record_id: {str(claimed)[:20]!r} is not the content's {_identity(document)!r}; it was altered")
    return record


def utc_now() -> str:
    """The time as records hold it, to the microsecond."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def check_created_utc(value: str) -> None:
    """Refuse what is not ISO 8601 in UTC with a final Z.

    Raises:
        RecordError: always with the field's name.
    """
    try:
        if datetime.datetime.fromisoformat(value).tzinfo is datetime.UTC and value.endswith("Z"):
            return
    except ValueError:
        pass
    raise RecordError(f"created_utc: {value!r} is not a time like 2026-01-31T12:00:00Z")


def check_run_id(value: str) -> None:
    """Refuse what could not be a folder's name, so that no run lies outside its store.

    Raises:
        RecordError: always with the field's name.
    """
    if not NAME.fullmatch(value):
        raise RecordError(f"run_id: {value!r} is not a name of letters, digits and _.+-")


def _content(record: Record) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, **encode(record)}


def _identity(content: Mapping[str, object]) -> str:
    try:
        return hashlib.sha256(canonical(content)).hexdigest()[:16]
    except (ValueError, TypeError) as error:
        raise RecordError(f"record: no JSON form: {error}") from None


def _check_sha256(holder: object, *fields: str) -> None:
    for field in fields:
        if not re.fullmatch(r"[0-9a-f]{64}", getattr(holder, field)):
            raise RecordError(f"{field}: not a SHA-256 in 64 hexadecimal digits")
