"""What stands beside the samples of a timed process: its blocks, the machine's noise in each visit, and the audits of its timed path.

It is the ``data`` of records that hold samples (suites inference, training, aa, regression). Blocks that the machine disturbed are left
out of every figure as a whole, in every process of the round, by rules that were written down before; a process whose audits
failed has no figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from results import statistics
from results.record import Record
from results.schema import RecordError, decode, encode

NOISY_FRACTION = 0.2
"""With more of its blocks left out a cell has no figure: INVALID-NOISY."""


@dataclass(frozen=True, slots=True)
class Audit:
    """One check of a timed path: what was found, what is allowed, and, where it failed, by how much in a sentence."""

    name: str
    passed: bool
    found: float | None
    allowed: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Excluded:
    """A block that is left out in every process of its round, and the flags of its visits (``suites/harness/noise.py``)."""

    block: int
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SecondClock:
    """What another clock says of the same calls: seconds of a call in visits taken next to each other, one of ours and one of theirs.

    ``overhead_s`` is what ``theirs_s`` holds per call that does nothing, ``calls`` how many a visit makes, ``seeds`` those of the
    other clock's generators.
    """

    name: str
    seeds: Mapping[str, int]
    calls: int
    overhead_s: float
    ours_s: tuple[float, ...]
    theirs_s: tuple[float, ...]

    def net_s(self) -> tuple[float, ...]:
        """``theirs_s`` less the overhead; of a call that takes no longer than it nothing is left."""
        return tuple(each - self.overhead_s for each in self.theirs_s)

    def ratio(self, confidence: float = statistics.CONFIDENCE) -> statistics.Estimate | None:
        """Ours over theirs less the overhead, with an interval over the pairs; None with fewer than two of which something is left."""
        ratios = [ours / theirs for ours, theirs in zip(self.ours_s, self.net_s(), strict=True) if theirs > 0]
        return statistics.estimate(ratios, confidence) if len(ratios) > 1 else None


@dataclass(frozen=True, slots=True)
class Timing:
    """``blocks`` says of each visit, from the first after the warm-up (which is visit 0), of which block it was a part.

    ``second_clock`` is there where one was asked for, in the first round.
    """

    blocks: tuple[int, ...]
    noise: tuple[Mapping[str, object], ...]
    excluded: tuple[Excluded, ...]
    audits: tuple[Audit, ...]
    second_clock: SecondClock | None = None

    def as_data(self) -> dict[str, object]:
        """The fields of a record's ``data``."""
        return dict(encode(self))

    @property
    def failed_audits(self) -> tuple[Audit, ...]:
        """The audits that were not passed."""
        return tuple(audit for audit in self.audits if not audit.passed)


def of(record: Record) -> Timing | None:
    """What stands beside a record's samples; None where there is nothing (records of before there were blocks).

    Raises:
        RecordError: its ``data`` is not what this module wrote.
    """
    if record.data is None or "blocks" not in record.data:
        return None
    fields = {name: record.data.get(name) for name in Timing.__slots__}
    try:
        return decode(Timing, fields, "data")
    except RecordError as error:
        raise RecordError(f"record {record.record_id}: {error}") from None


def left_out(record: Record) -> npt.NDArray[np.bool_]:
    """Which of a record's samples no figure may use: warm-up, and those of excluded blocks."""
    assert record.samples is not None
    out = np.array(record.samples.warmup, dtype=bool)
    beside = of(record)
    if beside is not None:
        excluded = {each.block for each in beside.excluded}
        visits = [number for number, block in enumerate(beside.blocks, start=1) if block in excluded]
        out |= np.isin(record.samples.visit, visits)
    return out


def disturbed(records: Iterable[Record]) -> str | None:
    """Why the processes of a cell are no sample of it: too many of their blocks were left out; None where they are."""
    besides = [beside for beside in map(of, records) if beside is not None]
    blocks = sum(len(set(beside.blocks)) for beside in besides)
    dropped = sum(len(beside.excluded) for beside in besides)
    if dropped <= NOISY_FRACTION * blocks:
        return None
    flags = sorted({flag for beside in besides for each in beside.excluded for flag in each.flags})
    return f"INVALID-NOISY: {dropped} of {blocks} blocks were disturbed ({', '.join(flags)}), more than {NOISY_FRACTION:.0%}"


def held_fraction(records: Iterable[Record], counter: str) -> float | None:
    """How much of the time of all visits, also of blocks left out, the card's clocks were held down, by one of its counters.

    ``counter`` is a field of ``CardNoise`` (``suites/harness/noise.py``). None where any visit lacks it.
    """
    visits = [seen for record in records if (beside := of(record)) is not None for seen in beside.noise]
    cards = [card if isinstance(card := seen.get("card"), Mapping) else {} for seen in visits]
    held_s, wall_s = [card.get(counter) for card in cards], [seen.get("wall_s") for seen in visits]
    return sum(held_s) / sum(wall_s) if visits and None not in (*held_s, *wall_s) else None  # type: ignore[arg-type]


def call_s(record: Record) -> float:
    """Seconds of one call in one process, of a record with samples.

    In single_stream it is ``statistics.process_time``; else wall time over calls, all windows together, since a throughput is images
    per wall time.

    Raises:
        StatisticsError: no sample is left.
    """
    samples, out = record.samples, left_out(record)
    assert samples is not None
    if record.cell.scenario == "single_stream":
        return statistics.process_time(samples.visit, samples.duration_ns, samples.calls, list(out))
    if out.all():
        raise statistics.StatisticsError("every sample is left out")
    return float(np.sum(np.asarray(samples.duration_ns)[~out]) * 1e-9 / np.sum(np.asarray(samples.calls)[~out]))


def latencies_s(record: Record) -> list[float]:
    """Seconds of every call that a figure may use, of one process in single_stream, where a sample is a call."""
    samples, out = record.samples, left_out(record)
    assert samples is not None
    seconds: list[float] = (np.asarray(samples.duration_ns)[~out] * 1e-9).tolist()
    return seconds
