"""The history of records: exported to asv, published as its site, and searched for steps. What ``levelfield asv`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from levelfield.checkout import ROOT
from reports import asv_site, labels
from reports.history import History, Point, collect
from reports.steps import FEWEST, Step, series, steps
from results.store import Store

RECORDS = ROOT / "results" / "records"
LOCAL = ROOT / "results" / "local"
CONFIGURATION = ROOT / "suites" / "asv" / "asv.conf.json"
SITE = ROOT / "reports" / "local" / "asv"


class EmptyHistoryError(RuntimeError):
    """Nothing that is stored can be shown; the message gives the reasons."""


@dataclass(frozen=True, slots=True)
class Made:
    """The history that git knows here, how many of asv's result files hold it, the site, the series of ratios and their steps."""

    history: History
    files: int
    site: Path
    series: Sequence[Sequence[Point]]
    steps: Sequence[Step]


def stored() -> History:
    """All that lies in ``results/records`` and ``results/local``."""
    return collect([RECORDS, *([LOCAL] if Store(LOCAL).runs() else [])])


def make(stores: Sequence[Path], out: Path, baseline: str) -> Made:
    """Export the stores to asv's result files below ``out``, publish the site there, and find the steps.

    Raises:
        NoRecordsError: a store that is none.
        BaselineError: ``baseline`` is not "implementation/mode".
        SiteError: this is no clone of the project.
        EmptyHistoryError: no row has a right to figures and a commit that git knows.
    """
    configured = asv_site.configuration(CONFIGURATION, ROOT, out.resolve())
    found = collect(stores, baseline)
    order = asv_site.commits(configured)
    known = asv_site.within(found, order)
    if not known.points:
        raise EmptyHistoryError("; ".join(("nothing to export", *known.left_out)))
    files = asv_site.write(known, configured)
    site = asv_site.publish(known, configured)
    lines = series(known.points, order)
    return Made(known, files, site, lines, [step for line in lines for step in steps(line)])


def show(made: Made) -> None:
    """What was exported and left out, the steps, and where the site is."""
    console = Console()
    points = made.history.points
    commits = _count(len({point.commit for point in points}), "commit")
    machines = _count(len({point.machine_id for point in points}), "machine")
    console.print(f"{_count(len(points), 'row')} of {commits} on {machines}, in {_count(made.files, 'result file')} of asv.")
    for sentence in made.history.left_out:
        console.print(Text(f"left out: {sentence}"))
    if made.steps:
        console.print(_table(made.steps))
    lengths = [len(line) for line in made.series]
    console.print(
        f"{_count(len(made.steps), 'step')} in {sum(length >= FEWEST for length in lengths)} of {len(lengths)} series of ratios to the "
        f"baseline: those of {FEWEST} runs and more; the longest has {max(lengths, default=0)}."
    )
    click.echo(f"Site: {made.site}; to look at it: python3 -m http.server --directory {made.site}")


def _table(found: Sequence[Step]) -> Table:
    shown = Table(box=None, pad_edge=False)
    for heading in ("implementation", "cell", "machine", "speed vs baseline", "runs", "between commits", "versions"):
        shown.add_column(heading, overflow="fold")
    for step in found:
        cell = step.first.cell
        scope = labels.SCOPES.get(str(cell.scope), cell.scope)
        shown.add_row(
            labels.implementation(cell.implementation, cell.mode),
            f"{labels.model(cell.model)} {cell.precision} {cell.device} batch {cell.batch_size}, {scope}",
            labels.short(step.first.machine_id),
            f"{step.before:.2f}x to {step.after:.2f}x",
            f"{step.runs_before}, {step.runs_after}",
            f"{labels.short(step.last.commit)}..{labels.short(step.first.commit)}",
            " to ".join(dict.fromkeys((step.last.version, step.first.version))),
        )
    return shown


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
