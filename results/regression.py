"""The verdicts of the regression gate, as one document in the folder of its run.

pass          slower by less than tolerance + margin, with the confidence of ``results.gate``
regressed     slower by more than the tolerance in two stages, or larger, or it has lost its certificate
inconclusive  the machine was too noisy to tell
invalid       it could not be measured: no certificate on either side, a process that failed, disturbed blocks
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from results.gate import Judgement
from results.record import Cell
from results.schema import RecordError, decode, encode, parse

DOCUMENT = "regressions.json"
"""The file in a run's folder."""

Outcome = Literal["pass", "regressed", "inconclusive", "invalid"]
Quantity = Literal["time", "certificate", "peak_memory", "startup"]

WORST_FIRST: tuple[Outcome, ...] = ("regressed", "invalid", "inconclusive", "pass")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer on one quantity of one cell. ``change`` is head over base, with the bounds of ``results.gate.Judgement``."""

    cell: Cell
    quantity: Quantity
    outcome: Outcome
    reason: str
    change: float | None
    low: float | None
    high: float | None
    mde: float | None
    pairs: int
    improved: bool

    @classmethod
    def of(cls, cell: Cell, quantity: Quantity, judged: Judgement) -> Verdict:
        """From a judgement; a candidate that no second stage follows is a regression."""
        outcome: Outcome = "regressed" if judged.outcome == "candidate" else judged.outcome
        numbers = (judged.change, judged.low, judged.high, judged.mde, judged.pairs)
        return cls(cell, quantity, outcome, judged.reason, *numbers, improved=bool(judged.improved))

    @classmethod
    def plain(cls, cell: Cell, quantity: Quantity, outcome: Outcome, reason: str) -> Verdict:
        """Without a number."""
        return cls(cell, quantity, outcome, reason, None, None, None, None, 0, improved=False)


@dataclass(frozen=True, slots=True)
class Regressions:
    """All verdicts, what was compared (commits: None for a working tree), and why the verdicts are advisory, where they are."""

    base: str
    head: str
    base_commit: str | None
    head_commit: str | None
    planted_slowdown: float
    verdicts: tuple[Verdict, ...]
    advisory: str | None

    @property
    def outcome(self) -> Outcome:
        """The worst of what gates; of start-up, which few machines can tell well, only "regressed" counts."""
        gating = {each.outcome for each in self.verdicts if each.quantity != "startup" or each.outcome == "regressed"}
        return next((outcome for outcome in WORST_FIRST if outcome in gating), "invalid")


def write(folder: Path, found: Regressions) -> None:
    """Write the document."""
    (folder / DOCUMENT).write_text(json.dumps(encode(found), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read(folder: Path) -> Regressions:
    """The document of a run.

    Raises:
        RecordError: there is none, or it is not one.
    """
    path = folder / DOCUMENT
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecordError(f"{folder}: not a run of levelfield regress: it has no {DOCUMENT}") from None
    except UnicodeDecodeError:
        raise RecordError(f"{path}: not valid JSON: not UTF-8") from None
    return decode(Regressions, parse(text, str(path)), str(path))
