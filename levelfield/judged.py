"""What ``levelfield aa`` and ``levelfield regress`` show, and the exit codes that follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from levelfield.cli import INCONCLUSIVE, INVALID, NO, YES
from reports import calibration, labels, regressions
from results.ledger import Entry, summarise
from results.record import Cell
from results.regression import Regressions, Verdict
from results.schema import encode

CODES = {"pass": YES, "regressed": NO, "inconclusive": INCONCLUSIVE, "invalid": INVALID}


def compared(entry: Entry) -> str:
    """One comparison of a thing with itself, as it comes."""
    what = f"{_name(entry.cell)}: {entry.ratio - 1:+.2%} [{entry.low - 1:+.2%}, {entry.high - 1:+.2%}]"
    return f"{what}{', which excludes 0' if entry.differs else ''}; {entry.verdict}"


def aa(entries: Sequence[Entry], path: Path | None) -> str:
    """What these comparisons say together, and what the ledger does that they were added to, at ``path`` or the project's."""
    if not entries:
        return "Nothing could be compared; the lines above say why."
    machine = calibration.of_machine(entries[0].machine_id, entries[0].protocol_version, path)
    return f"These: {calibration.line(tuple(entries))}.\nThe ledger: {machine}."


def aa_document(entries: Sequence[Entry]) -> dict[str, Any]:
    """``{"entries": [...], "summary": {...}}``, of these comparisons."""
    return {"entries": [encode(entry) for entry in entries], "summary": encode(summarise(entries))}


def verdict(found: Verdict) -> str:
    """One verdict, as it comes."""
    return f"{found.outcome}: {_name(found.cell)}, {regressions.QUANTITIES[found.quantity]}: {found.reason}"


def document(found: Regressions) -> dict[str, Any]:
    """The stored document, and the outcome."""
    return {"outcome": found.outcome, **encode(found)}


def show(found: Regressions, written: Sequence[Path]) -> None:
    """The list of regressions, and where it was written."""
    console = Console(width=max(100, min(140, Console().width)))
    console.print(regressions.terminal(found))
    for path in written:
        console.print(Text(str(path)), soft_wrap=True)


def code(found: Regressions) -> int:
    """0 pass, 1 regressed, 4 inconclusive, 3 invalid."""
    return CODES[found.outcome]


def _name(cell: Cell) -> str:
    batch = "" if cell.batch_size is None else f" batch {cell.batch_size} {labels.SCOPES[str(cell.scope)]}"
    return f"{labels.implementation(cell.implementation, cell.mode)}, {labels.model(cell.model)} {cell.precision}{batch}"
