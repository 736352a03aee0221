"""The store: an append-only folder of records, one small file each.

    ROOT/RUN_ID/run.json                                            the run: machine, settings
    ROOT/RUN_ID/records/SUITE-CELL-PROCESS-RECORD_ID.json           one record

A file appears under its name only when it is whole and on the disk, so a killed run loses the record in the making and no
other. Nothing is ever changed or deleted: a file that cannot be read is named, skipped and kept. No locks are needed, because
names come from contents.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from results.record import SCHEMA_VERSION, Cell, Record, check_created_utc, check_run_id, file_prefix, from_json, to_json
from results.schema import RecordError, decode, encode, parse

MAX_FILE_BYTES = 64 << 20
"""Larger files are not read: a million samples take about 40 MiB."""


class StoreError(RuntimeError):
    """Something could not be stored or found; what was stored before is untouched."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run: the machine it ran on and whatever else holds for all its records."""

    schema_version: int
    run_id: str
    created_utc: str
    machine: Mapping[str, object]
    details: Mapping[str, object]

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise RecordError(f"schema_version: {self.schema_version}; this code reads version {SCHEMA_VERSION}")
        check_run_id(self.run_id)
        check_created_utc(self.created_utc)


@dataclass(frozen=True, slots=True)
class Corrupt:
    """A file that is not the record or run that it should be; it stays where it is."""

    path: Path
    reason: str


class Store:
    """Runs and their records below ``root``, which is made when the first run is."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # of this process; workers run in a folder of their own

    def create_run(self, machine: Mapping[str, object], details: Mapping[str, object]) -> Run:
        """Open a run; later runs sort after earlier ones.

        Raises:
            RecordError: ``machine`` or ``details`` are not JSON values.
            StoreError: the folder cannot be made.
        """
        moment = datetime.datetime.now(datetime.UTC)
        run = Run(
            SCHEMA_VERSION,
            f"{moment:%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(3)}",
            f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}",
            machine,
            details,
        )
        decode(Run, encode(run), "run.json")
        text = json.dumps(encode(run), indent=1, sort_keys=True, allow_nan=False) + "\n"
        unfinished = self.root / f".{run.run_id}"
        try:
            (unfinished / "records").mkdir(parents=True)
            _write(unfinished / "run.json", text.encode())
            unfinished.rename(self.root / run.run_id)
            _sync_folder(self.root)
        except OSError as error:
            raise StoreError(f"no run could be made in {self.root}: {error.strerror}") from error
        return run

    def append(self, record: Record) -> Path:
        """Store a record; storing the same one again changes nothing.

        Raises:
            RecordError: the record is not valid; nothing was written.
            StoreError: no such run, a full disk, or another file in its place; nothing of the record is visible.
        """
        folder = self.root / record.run_id / "records"
        path = folder / record.file_name
        data = to_json(record).encode()
        if not folder.is_dir():
            raise StoreError(f"{record.run_id} is not a run of {self.root}; make it first")
        try:
            if path.exists():
                if path.read_bytes() != data:
                    raise StoreError(f"{path} holds something else and is kept; move it away and store the record again")
                return path
            _write(path, data)
        except OSError as error:
            raise StoreError(
                f"{path} ({len(data)} bytes) was not stored: {error.strerror}. All records before it are; "
                "free the disk and start the run again to measure what is missing"
            ) from error
        return path

    def runs(self) -> tuple[str, ...]:
        """The names of all runs, oldest first."""
        if not self.root.is_dir():
            return ()
        return tuple(sorted(entry.name for entry in self.root.iterdir() if entry.is_dir() and not entry.name.startswith(".")))

    def run(self, run_id: str) -> Run:
        """The description of a run.

        Raises:
            RecordError: its ``run.json`` is missing or not valid, or is another run's.
        """
        check_run_id(run_id)
        path = self.root / run_id / "run.json"
        run = decode(Run, parse(_read(path), str(path)), str(path))
        if run.run_id != run_id:
            raise RecordError(f"{path}: run_id: {run.run_id!r} lies in the folder of {run_id!r}")
        return run

    def latest_run(self) -> Run | None:
        """The youngest run whose description can be read; None where there is none."""
        for run_id in reversed(self.runs()):
            with contextlib.suppress(RecordError):
                return self.run(run_id)
        return None

    def scan(self, run_id: str | None = None) -> Iterator[Record | Corrupt]:
        """Every record of the run (of all runs), in order of run and file name, and in its place every file that is none."""
        for name in self.runs() if run_id is None else (run_id,):
            try:
                self.run(name)
            except RecordError as error:
                yield Corrupt(self.root / name / "run.json", str(error))
            folder = self.root / name / "records"
            if folder.is_dir():
                for path in sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".")):
                    yield _load(path, name)

    def read(self, run_id: str | None = None) -> tuple[list[Record], list[Corrupt]]:
        """All that ``scan`` finds, the records and the files that are none."""
        records: list[Record] = []
        corrupt: list[Corrupt] = []
        for found in self.scan(run_id):
            if isinstance(found, Record):
                records.append(found)
            else:
                corrupt.append(found)
        return records, corrupt

    def find(self, run_id: str, suite: str, cell: Cell, index: int | None) -> list[Record]:
        """The valid records of one suite, cell and process index (None: no process) in a run."""
        check_run_id(run_id)
        folder = self.root / run_id / "records"
        prefix = file_prefix(suite, cell, index)
        paths = sorted(entry for entry in folder.iterdir() if entry.name.startswith(prefix)) if folder.is_dir() else []
        return [found for path in paths if isinstance(found := _load(path, run_id), Record)]

    def has(self, run_id: str, suite: str, cell: Cell, index: int | None) -> bool:
        """Whether this was recorded, a failure included; what is corrupt was not."""
        return bool(self.find(run_id, suite, cell, index))


def _load(path: Path, run_id: str) -> Record | Corrupt:
    try:
        record = from_json(_read(path), str(path))
    except RecordError as error:
        return Corrupt(path, str(error))
    if record.run_id != run_id:
        return Corrupt(path, f"{path}: run_id: a record of {record.run_id} in the folder of {run_id}")
    if record.file_name != path.name:
        # A copy under another name would count one process twice.
        return Corrupt(path, f"{path}: its content belongs to the name {record.file_name}")
    return record


def _read(path: Path) -> str:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise RecordError(f"{path}: not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise RecordError(f"{path}: {status.st_size} bytes, more than the {MAX_FILE_BYTES} that a record can have")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not valid UTF-8: {error}") from None


def _write(path: Path, data: bytes) -> None:
    """Make the file whole or not at all, and lasting."""
    unfinished = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
