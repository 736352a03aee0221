"""What a machine's A/A ledger says, in a line: how often equal things were called different there, and how often a slowdown was found."""

from __future__ import annotations

from results import ledger
from results.ledger import Entry, Power, Summary


def of_machine(machine_id: str, protocol_version: str) -> str:
    """The line for a machine, from the ledger that is kept with the project.

    Raises:
        RecordError: the ledger was altered.
    """
    return line(ledger.of_machine(ledger.read(ledger.path_of(machine_id)).entries, machine_id, protocol_version))


def line(entries: tuple[Entry, ...]) -> str:
    """The line for these entries, of one machine and protocol."""
    if not entries:
        return "equal things were not yet compared on this machine; `levelfield aa` does so"
    parts = [_equal(name, summary) for name, summary in ledger.by(entries, ledger.condition).items() if summary.comparisons]
    whole = ledger.summarise(entries)
    if whole.comparisons:
        parts.append(f"the gate called {whole.false_alarms} of {whole.comparisons} equal ones regressed (at most {whole.alarm_bound:.1%})")
    parts += [_power(power) for power in whole.power]
    return "; ".join([*parts, *([whole.advisory] if whole.advisory else [])])


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
