"""What ``levelfield diagnose`` shows: its answers for people and as a document, and the exit code that follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import click

from levelfield.cli import INCONCLUSIVE, NO, YES
from suites.equivalence.diagnosis import Diagnosis

Answers = Sequence[tuple[str, Diagnosis]]


def document(answers: Answers) -> dict[str, Any]:
    """One entry per subject, with every field of its diagnosis."""
    return {"diagnoses": [{"subject": subject, **dataclasses.asdict(answer)} for subject, answer in answers]}


def show(answers: Answers) -> None:
    """One sentence per subject."""
    for subject, answer in answers:
        click.echo(f"{subject} {answer.sentence}")


def code(answers: Answers) -> int:
    """0 where all agree, 1 where one differs, 4 where none differs but one cannot be judged."""
    verdicts = {answer.verdict for _, answer in answers}
    return NO if "different" in verdicts else INCONCLUSIVE if "unclear" in verdicts else YES
