"""What a machine's A/A ledger says, in a line: how often equal things were called different there, and how often a slowdown was found."""

from __future__ import annotations

from pathlib import Path

from results import ledger
from results.ledger import Entry, Power, Summary


def of_machine(machine_id: str, protocol_version: str, path: Path | None = None) -> str:
    """The line for a machine, from the ledger at ``path`` or the one that is kept with the project; too few entries are advisory.

    Raises:
        RecordError: the ledger was altered.
    """
    kept = ledger.read(path or ledger.path_of(machine_id)).entries
    entries = ledger.of_machine(kept, machine_id, protocol_version)
    if not entries:
        return "equal things were not yet compared on this machine; `levelfield aa` does so"
    return "; ".join(filter(None, (line(entries), ledger.summarise(entries).advisory)))


def line(entries: tuple[Entry, ...]) -> str:
    """What these entries, at least one, of one machine and protocol, say."""
    parts = [_equal(name, summary) for name, summary in ledger.by(entries, ledger.condition).items() if summary.comparisons]
    whole = ledger.summarise(entries)
    if whole.comparisons:
        parts.append(f"the gate called {whole.false_alarms} of {whole.comparisons} equal ones regressed (at most {whole.alarm_bound:.1%})")
    return "; ".join(parts + [_power(power) for power in whole.power])


def _equal(condition: str, summary: Summary) -> str:
    """Of one condition: how many intervals of equal things excluded 1, and how wide they were."""
    assert summary.coverage is not None
    assert summary.median_half_width is not None
    around = "" if condition == "quiet" else " beside another process that burns a core half of the time"
    return (
        f"{summary.comparisons} comparisons of equal things{around}: {summary.false_differences} called different "
        f"({1 - summary.coverage:.1%}, at most {summary.false_bound:.1%}; 5 % is nominal), half-width {summary.median_half_width:.1%}"
    )


def _power(power: Power) -> str:
    return (
        f"a planted slowdown of {power.planted_slowdown:.0%} found in {power.regressed} of {power.comparisons} "
        f"({power.low:.0%} to {power.high:.0%})"
    )
