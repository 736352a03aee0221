"""The list of regressions: as a frame, as text for a terminal and as Markdown for a pull request. The worst stands first."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from reports import labels, publish
from results.regression import WORST_FIRST, Regressions, Verdict, read

QUANTITIES = {"time": "time", "certificate": "certificate", "peak_memory": "peak memory", "startup": "start-up"}
HEADINGS = ("verdict", "implementation", "model", "precision", "batch", "quantity", "head over base, and why")


def frame(found: Regressions) -> pd.DataFrame:
    """A row per verdict: the cell's coordinates, quantity, outcome, change - 1 with its bounds, mde, pairs, improved, reason."""
    rows = []
    for each in _sorted(found):
        cell = {name: getattr(each.cell, name) for name in each.cell.__slots__}
        changes = {name: None if value is None else value - 1 for name, value in _bounds(each).items()}
        rows.append(
            cell
            | {"quantity": each.quantity, "outcome": each.outcome, **changes, "mde": each.mde, "pairs": each.pairs}
            | {"improved": each.improved, "reason": each.reason, "base": found.base, "head": found.head}
        )
    return pd.DataFrame(rows)


def write(folder: Path, out: Path) -> tuple[Path, ...]:
    """Write ``regressions.md`` and ``regressions.csv`` of a run of the gate.

    Raises:
        RecordError: the folder holds no such run.
        OSError: ``out`` cannot be written.
    """
    found = read(folder)
    documents = {"regressions.md": markdown(found), "regressions.csv": frame(found).to_csv(index=False)}
    for name, text in documents.items():
        publish.replace(out / name, text.encode())
    return tuple(out / name for name in documents)


def summary(found: Regressions) -> str:
    """The answer in one sentence."""
    counts = {outcome: sum(each.outcome == outcome for each in found.verdicts) for outcome in WORST_FIRST}
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    planted = f" with {found.planted_slowdown:.1%} planted" if found.planted_slowdown else ""
    return f"{found.outcome.upper()}: {found.head}{planted} against {found.base}: {said}."


def markdown(found: Regressions) -> str:
    """The list for a pull request's summary."""
    lines = [f"**{summary(found)}**", "", *([found.advisory, ""] if found.advisory else [])]
    lines += [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    lines += [f"| {' | '.join(part.replace('|', '/') for part in _line(each))} |" for each in _sorted(found)]
    return "\n".join([*lines, ""])


def terminal(found: Regressions) -> Group:
    """The list for rich, then the answer."""
    shown = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        shown.add_column(heading, overflow="fold")
    for each in _sorted(found):
        shown.add_row(*map(Text, _line(each)))
    notes = [Text(found.advisory)] if found.advisory else []
    return Group(shown, *notes, Text(summary(found)))


def _sorted(found: Regressions) -> list[Verdict]:
    return sorted(found.verdicts, key=lambda each: WORST_FIRST.index(each.outcome))


def _bounds(each: Verdict) -> dict[str, float | None]:
    return {"change": each.change, "low": each.low, "high": each.high}


def _line(each: Verdict) -> tuple[str, ...]:
    cell = each.cell
    batch = "-" if cell.batch_size is None else str(cell.batch_size)
    outcome = "improved" if each.improved and each.outcome == "pass" else each.outcome
    name = labels.implementation(cell.implementation, cell.mode)
    return (outcome, name, labels.model(cell.model), cell.precision, batch, QUANTITIES[each.quantity], each.reason)
