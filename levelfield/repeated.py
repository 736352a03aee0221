"""What ``levelfield rerun`` shows, and the exit codes that follow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from levelfield.cli import INCONCLUSIVE, INVALID, NO, YES
from reports import labels
from results.record import Cell
from results.rerun import NOT_THE_SAME_MEASUREMENT, Difference, Rerun
from results.schema import encode

CODES = {"REPRODUCED": YES, "DIFFERS": NO, "not certified": NO, "CANNOT-TELL": INCONCLUSIVE, "invalid": INVALID}

HEADINGS = ("answer", "implementation", "model", "precision", "batch", "the rerun's time over the record's, and why")

UNPAIRED = "One run of each is compared, unpaired: what differs from day to day and from boot to boot is in neither interval."


def document(found: Rerun) -> dict[str, Any]:
    """The stored document, and the outcome."""
    return {"outcome": found.outcome, **encode(found), "note": UNPAIRED}


def show(found: Rerun, folder: Path) -> None:
    """The differences, the answer for each cell, the answer for all, and where it is stored."""
    console = Console(width=max(100, min(140, Console().width)))
    for line in differences(found):
        console.print(Text(line))
    console.print()
    shown = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        shown.add_column(heading, overflow="fold")
    for each in found.answers:
        shown.add_row(*map(Text, (each.outcome, *_names(each.cell), each.reason)))
    console.print(shown)
    console.print(Text(summary(found)))
    console.print(Text(str(folder)), soft_wrap=True)


def code(found: Rerun) -> int:
    """0 all reproduced; 1 one differs or is not certified; 4 it cannot be told of all; 3 nothing valid."""
    return CODES[found.outcome]


def summary(found: Rerun) -> str:
    """The answer in two sentences."""
    outcomes = [each.outcome for each in found.answers]
    said = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in CODES if outcome in outcomes)
    commit = found.implementations_commit
    what = "implementations of the working tree" if commit is None else f"implementations of commit {labels.short(commit)}"
    where = "the same machine" if found.same_machine else "another machine"
    return f"{found.outcome}: {said}; {what}, {found.processes} processes each, on {where}. {UNPAIRED}"


def differences(found: Rerun) -> Iterator[str]:
    """A line for each field that differs."""
    if not found.differences:
        yield "No difference that is recorded."
    for each in found.differences:
        of = "" if len(each.cells) == len(found.answers) else f" ({', '.join(dict.fromkeys(_name(cell) for cell in each.cells))})"
        more = f"; {NOT_THE_SAME_MEASUREMENT}" if each.field == "protocol_version" else ""
        yield f"{each.field}: {_change(each)}{more}{of}"


def _change(each: Difference) -> str:
    """From what to what; of two lists only the items that one of them lacks."""
    if isinstance(each.was, list) and isinstance(each.now, list):
        gone = [f"no longer {_value(item)}" for item in each.was if item not in each.now]
        come = [f"now also {_value(item)}" for item in each.now if item not in each.was]
        if gone or come:
            return ", ".join(gone + come)
    return f"{_value(each.was)}, now {_value(each.now)}"


def _value(value: object) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)


def _name(cell: Cell) -> str:
    return labels.implementation(cell.implementation, cell.mode)


def _names(cell: Cell) -> tuple[str, str, str, str]:
    return _name(cell), labels.model(cell.model), cell.precision, f"{cell.batch_size} {labels.SCOPES[str(cell.scope)]}"
