"""The mutation score as one job: faults of inference and of training, other rules, and the page that shows them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impls.implementation import ROOT, find
from suites.equivalence import mutation, training_mutation
from suites.equivalence.faults import page
from suites.equivalence.mutation import CorrectRun, Row
from suites.equivalence.training_mutation import TrainingRow
from suites.harness import runner
from suites.harness.process import WorkerError

DEVICE = "cpu"

LOCATED = 0.95
"""Share of single-layer faults whose layer must be named."""

PAGE = ROOT / "docs" / "faults.md"


class ScoringError(RuntimeError):
    """The matrix could not be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Everything that was examined."""

    rows: list[Row]
    trained: list[TrainingRow]
    runs: list[CorrectRun]

    @property
    def holds(self) -> bool:
        """Whether every fault was seen where it can show, single ones located, and nothing sound reported."""
        score = mutation.score(self.rows)
        return (
            not (score.alive or score.unseen or score.alarms or score.not_equivalent)
            and score.located >= LOCATED * score.locatable
            and all(row.seen is not row.clean for row in self.trained)
            and not any(row.unseen for row in self.trained)
        )


def make(env: tuple[str, ...], threads: int, say: Callable[[str], None]) -> Matrix:
    """Make the whole matrix; ``env`` are the values of ``--env``.

    Raises:
        EnvironmentBuildError: an implementation's environment cannot be had.
        ScoringError: a worker failed.
    """
    manifests = find()
    modes = {name: next(mode for mode, about in manifest.modes.items() if not about.needs) for name, manifest in manifests.items()}
    pythons = {name: (runner.interpreter(name, DEVICE, env, say), mode) for name, mode in modes.items()}
    python, _ = pythons[mutation.IMPLEMENTATION]
    try:
        trained = training_mutation.run(python, threads, say)
        runs = mutation.correct_runs(pythons, threads)
        return Matrix(mutation.run(python, threads, say), trained, runs)
    except WorkerError as error:
        raise ScoringError(f"the faults could not be examined: {error}") from None


def write(matrix: Matrix, path: Path = PAGE) -> None:
    """Write the page."""
    path.write_text(page.page(matrix.rows, matrix.trained, matrix.runs), encoding="utf-8")


def summary(matrix: Matrix) -> str:
    """A few lines for people."""
    score = mutation.score(matrix.rows)
    wrong = [row for row in matrix.trained if not row.clean]
    rounded = ", ".join(f"{sum(bool(row.refused[precision]) for row in wrong)} in {precision}" for precision in training_mutation.ROUNDED)
    return "\n".join(
        (
            f"inference: {score.killed} of {score.mutants} mutants of {score.faults} faults refused",
            f"training: {sum(row.seen for row in wrong)} of {len(wrong)} faults refused, {rounded}",
            f"located: {score.located} of {score.locatable} single-layer faults; alarms on sound networks: {len(score.alarms)}",
            f"the matrix, and what other rules make of it: {PAGE.relative_to(ROOT)}",
        )
    )


def document(matrix: Matrix) -> dict[str, Any]:
    """The matrix as JSON values; what is infinite is a string."""
    score = mutation.score(matrix.rows)
    totals = ("faults", "cited", "mutants", "killed", "located", "locatable", "clean", "equivalent")
    return {
        "holds": matrix.holds,
        "score": {name: getattr(score, name) for name in totals},
        "rows": [_plain(dataclasses.asdict(row)) for row in matrix.rows],
        "training": [_plain(dataclasses.asdict(row)) for row in matrix.trained],
        "correct_runs": [dataclasses.asdict(run) for run in matrix.runs],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
