"""The A/A ledger: every comparison of a thing with itself that a machine made, so that its error rates are counted, not claimed.

One JSON object a line, appended and never changed. Each line holds the hash of the line before and its own, so that a line
that was altered, moved or taken out is named; lines taken from the end are not seen. Entries with a planted slowdown measure
the power. Several processes may append at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from results.record import Cell, check_created_utc, check_run_id
from results.schema import RecordError, canonical, decode, encode, parse
from results.statistics import upper_bound
from results.store import StoreError

FOLDER = Path(__file__).parent / "ledgers"
"""The ledgers that are kept with the project, one a machine, so that two machines never write to one chain."""

FORMAT = 1

ENOUGH = 60
"""A gate's verdict on a machine with fewer A/A comparisons is advisory: 0 false of 60 bound their rate by 4.9 %."""

FIRST = "0" * 64
"""What stands for the hash of the line before the first."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One comparison of two equal arms.

    ``ratio`` is the second arm's time over the first's, ``low`` and ``high`` its 95 % interval, ``verdict`` the gate's; what was
    invalid is no comparison. ``planted_slowdown`` is the fraction by which the second arm was held up on purpose, 0 for A/A.
    ``condition``: "burner" where other work was made to disturb it.
    """

    created_utc: str
    machine_id: str
    run_id: str
    commit: str | None
    protocol_version: str
    condition: Literal["quiet", "burner"]
    cell: Cell
    pairs: int
    ratio: float
    low: float
    high: float
    planted_slowdown: float
    verdict: Literal["pass", "regressed", "inconclusive"]

    def __post_init__(self) -> None:
        check_created_utc(self.created_utc)
        check_run_id(self.run_id)
        if self.pairs < 2:
            raise RecordError(f"pairs: {self.pairs} have no interval")
        if not 0 < self.low <= self.ratio <= self.high < math.inf:
            raise RecordError(f"ratio: {self.ratio} with the interval {self.low} to {self.high}")
        if not 0 <= self.planted_slowdown < math.inf:
            raise RecordError(f"planted_slowdown: {self.planted_slowdown} is not 0 or more")

    @property
    def half_width(self) -> float:
        """Half the interval's width on the logarithm."""
        return math.log(self.high / self.low) / 2

    @property
    def differs(self) -> bool:
        """Whether the interval excludes 1, which for A/A is false."""
        return not self.low <= 1 <= self.high


@dataclass(frozen=True, slots=True)
class Ledger:
    """A ledger as read; ``torn`` is what a write that was cut short left at the end, kept by the next append in a file beside it."""

    entries: tuple[Entry, ...]
    torn: bytes


@dataclass(frozen=True, slots=True)
class Power:
    """How many comparisons with this planted slowdown the gate called regressed, with Clopper and Pearson's 95 % interval."""

    planted_slowdown: float
    comparisons: int
    regressed: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What some entries say together; None where there is no comparison to say it.

    ``false_bound`` is the exact one-sided 95 % upper bound (Clopper and Pearson 1934) of the rate of false differences, nominally
    5 %; ``alarm_bound`` that of the rate at which the gate called two equal arms regressed.
    """

    comparisons: int
    false_differences: int
    coverage: float | None
    false_bound: float | None
    median_half_width: float | None
    false_alarms: int
    alarm_bound: float | None
    power: tuple[Power, ...]

    @property
    def advisory(self) -> str | None:
        """Why a gate's verdict here does not bind, in one sentence; None where it does."""
        if self.comparisons >= ENOUGH:
            return None
        return f"ADVISORY: this machine has {self.comparisons} of the {ENOUGH} A/A comparisons that a binding verdict rests on"


def path_of(machine_id: str) -> Path:
    """Where a machine's ledger is kept unless told otherwise."""
    return FOLDER / f"{machine_id}.jsonl"


def of_machine(entries: Iterable[Entry], machine_id: str, protocol_version: str) -> tuple[Entry, ...]:
    """Those that may be counted together: of one machine, measured by one protocol."""
    return tuple(each for each in entries if (each.machine_id, each.protocol_version) == (machine_id, protocol_version))


def append(path: Path, entry: Entry) -> bytes:
    """Add an entry; returns what a write cut short had left at the end, empty as a rule, now in PATH.torn-HASH.

    Raises:
        RecordError: the entry or the ledger's last line is not valid; nothing was written.
        StoreError: it could not be written, as on a full disk; what was cut short is set aside by the next append.
    """
    decode(Entry, encode(entry), "entry")
    try:
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            lines, torn = _lines(file.read(), path)
            previous = _verified(lines[-1], None, path, len(lines))["hash"] if lines else FIRST
            if torn:
                _set_aside(file, torn, path)
            content = {"format": FORMAT, "previous": previous, **encode(entry)}
            line = canonical({**content, "hash": _hash(content)}) + b"\n"
            file.write(line if torn or _ends(file) else b"\n" + line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"{path}: the comparison was not added: {error.strerror}. All entries before it are there") from error
    return torn


def read(path: Path) -> Ledger:
    """All entries, in order; a ledger that is not there is empty.

    Raises:
        RecordError: a line that was altered, or does not follow the one before it; the message names file and line.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
        except FileNotFoundError:
            return Ledger((), b"")
        fcntl.flock(file, fcntl.LOCK_SH)
        lines, torn = _lines(file.read(), path)
    previous, entries = FIRST, []
    for number, line in enumerate(lines, 1):
        document = _verified(line, previous, path, number)
        previous = document["hash"]
        fields = {name: value for name, value in document.items() if name not in ("format", "previous", "hash")}
        entries.append(decode(Entry, fields, f"{path}: line {number}"))
    return Ledger(tuple(entries), torn)


def summarise(entries: Iterable[Entry]) -> Summary:
    """What these entries say; choose those of one machine and protocol version first."""
    found = list(entries)
    equal = [entry for entry in found if entry.planted_slowdown == 0]
    false, alarms = sum(entry.differs for entry in equal), sum(entry.verdict == "regressed" for entry in equal)
    planted = sorted((entry for entry in found if entry.planted_slowdown), key=_planted)
    return Summary(
        len(equal),
        false,
        1 - false / len(equal) if equal else None,
        upper_bound(false, len(equal)) if equal else None,
        float(np.median([entry.half_width for entry in equal])) if equal else None,
        alarms,
        upper_bound(alarms, len(equal)) if equal else None,
        tuple(_power(slowdown, list(group)) for slowdown, group in itertools.groupby(planted, _planted)),
    )


def by(entries: Iterable[Entry], key: Callable[[Entry], str]) -> dict[str, Summary]:
    """A summary for each value of ``key``, as of ``condition``."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return {name: summarise(groups[name]) for name in sorted(groups)}


def condition(entry: Entry) -> str:
    """Quiet or burner."""
    return entry.condition


def _planted(entry: Entry) -> float:
    return entry.planted_slowdown


def _power(slowdown: float, entries: list[Entry]) -> Power:
    regressed = sum(entry.verdict == "regressed" for entry in entries)
    count = len(entries)
    low, high = 1 - upper_bound(count - regressed, count, 0.975), upper_bound(regressed, count, 0.975)
    return Power(slowdown, count, regressed, low, high)


def _lines(data: bytes, path: Path) -> tuple[list[bytes], bytes]:
    """The whole lines, and what a write that was cut short left behind them; a line that lacks but its end is whole."""
    *lines, torn = data.split(b"\n")
    if torn:
        with contextlib.suppress(RecordError):
            _verified(torn, None, path, len(lines) + 1)
            return [*lines, torn], b""
    return lines, torn


def _ends(file: IO[bytes]) -> bool:
    """Whether the file is empty or ends with a line's end."""
    if not (size := file.seek(0, os.SEEK_END)):
        return True
    file.seek(size - 1)
    return file.read(1) == b"\n"


def _verified(line: bytes, previous: str | None, path: Path, number: int) -> Mapping[str, Any]:
    """The line's document, if it is what was written, behind the line that was before it (None: not looked at)."""
    where = f"{path}: line {number}"
    try:
        document = parse(line.decode("ascii"), where)
    except UnicodeDecodeError:
        raise RecordError(f"{where}: not a line of a ledger") from None
    if not isinstance(document, dict) or not {"format", "previous", "hash"} <= document.keys():
        raise RecordError(f"{where}: not a line of a ledger")
    if document["format"] != FORMAT:
        raise RecordError(f"{where}: format {str(document['format'])[:20]}; this code reads format {FORMAT}")
    content = {name: value for name, value in document.items() if name != "hash"}
    if document["hash"] != _hash(content):
        raise RecordError(f"{where}: its content is not what was written; restore the ledger from a copy, or begin a new one")
    if previous is not None and document["previous"] != previous:
        raise RecordError(f"{where}: it does not follow the line before it; restore the ledger from a copy, or begin a new one")
    return document


def _set_aside(file: IO[bytes], torn: bytes, path: Path) -> None:
    """Keep the torn end in a file of its own and take it off the ledger."""
    keep = path.with_name(f"{path.name}.torn-{hashlib.sha256(torn).hexdigest()[:8]}")
    with keep.open("wb") as kept:
        kept.write(torn)
        kept.flush()
        os.fsync(kept.fileno())
    file.truncate(file.seek(0, os.SEEK_END) - len(torn))


def _hash(content: Mapping[str, object]) -> str:
    return hashlib.sha256(canonical(content)).hexdigest()
