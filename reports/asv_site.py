"""A history as asv's result files and site, written by asv's own classes.

One file per machine, commit and environment; the samples are process medians, never iterations, which asv would take for
independent. A benchmark's version is the protocol's, so asv ignores what was measured by another protocol.
"""

from __future__ import annotations

import datetime
import itertools
import math
import re
import shutil
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asv.benchmarks import Benchmarks
from asv.commands.publish import Publish
from asv.config import Config
from asv.machine import Machine, iter_machine_files
from asv.repo import Repo, get_repo
from asv.results import Results
from asv.runner import BenchmarkResult
from asv.util import ProcessError, UserError, load_json

from reports.history import PARAMETERS, QUANTITIES, History, Point
from reports.steps import FEWEST


class SiteError(RuntimeError):
    """asv cannot make a site of this history here; the message says what is missing."""


def configuration(path: Path, repository: Path, out: Path) -> Config:
    """The configuration file of asv, with its folders at ``out`` and git's history from ``repository``."""
    found = Config.load(str(path))
    found.repo = str(repository)
    found.results_dir, found.html_dir = str(out / "results"), str(out / "html")
    return found


def commits(configured: Config) -> dict[str, int]:
    """The place of every commit in the history of HEAD, along first parents, as asv orders its graphs; the oldest is 0.

    Raises:
        SiteError: there is no git history.
    """
    try:
        newest_first = _repository(configured).get_hashes_from_range("HEAD")
    except (UserError, ProcessError, OSError):
        raise SiteError(
            f"{configured.repo} has no git history, which is where asv takes the order of commits from; run this in a clone of the project"
        ) from None
    return {commit: place for place, commit in enumerate(reversed(newest_first))}


def within(history: History, order: Mapping[str, int]) -> History:
    """The history without the commits that git does not know here, which are named with the way out."""
    unknown: dict[str, int] = defaultdict(int)
    for point in history.points:
        if point.commit not in order:
            unknown[point.commit] += 1
    named = tuple(
        f"{count} row{'s' if count > 1 else ''}: commit {commit[:12]} is not in the history of HEAD here; "
        "`git fetch --unshallow` completes a shallow clone"
        for commit, count in unknown.items()
    )
    return History(tuple(point for point in history.points if point.commit in order), history.machines, (*history.left_out, *named))


def write(history: History, configured: Config) -> int:
    """Write asv's files of the history in place of those of an earlier export; returns how many result files there are.

    What ``asv run`` measured beside them is kept. Points of one file and cell, from several runs, give their samples together:
    the unit is the process.
    """
    results = Path(configured.results_dir)
    for path in list(iter_machine_files(str(results))):
        if "driver" in load_json(path):  # which asv itself does not write
            shutil.rmtree(Path(path).parent)
    benchmarks = _benchmarks(history.points)
    kept = dict(Benchmarks.load(configured)) if (results / "benchmarks.json").is_file() else {}
    Benchmarks(configured, list((kept | benchmarks).values())).save()
    for machine_id in {point.machine_id for point in history.points}:
        described = Machine()
        described.__dict__.update(history.machines[machine_id])
        described.save(str(results))
    files: dict[tuple[str, str, str], list[Point]] = defaultdict(list)
    for point in history.points:
        files[point.machine_id, point.commit, point.environment].append(point)
    repository = _repository(configured)
    for (machine_id, commit, environment), points in files.items():
        python = points[0].python
        parameters = {**history.machines[machine_id], "python": python}
        date = repository.get_date(commit)
        found = Results(parameters, {}, commit, date, python, environment, dict(points[0].env_vars))
        for name, quantity in zip(QUANTITIES, benchmarks.values(), strict=True):
            _add(found, quantity, name, points)
        found.save(str(results))
    return len(files)


def publish(history: History, configured: Config) -> Path:
    """Make the site of all result files; returns its folder.

    asv's page of regressions stays empty until there are commits enough to tell a step from noise.
    """
    if len({point.commit for point in history.points}) < FEWEST:
        configured.regressions_first_commits = {r"records\.": None}
    Publish.run(conf=configured, pull=False)
    return Path(configured.html_dir)


def _repository(configured: Config) -> Repo:
    return get_repo(configured)


def axes(points: Sequence[Point], quantity: str) -> list[list[str]]:
    """The values of each of ``PARAMETERS`` that occur where a quantity was measured, with numbers in them in their order."""
    measured = [point.parameters for point in points if point.samples[quantity]]
    return [sorted({each[axis] for each in measured}, key=_natural) for axis in range(len(PARAMETERS))]


def _natural(text: str) -> list[str]:
    return [part.zfill(8) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def version(points: Sequence[Point]) -> str:
    """What asv takes for the version of a benchmark, of the newest point: it does not show results of another one."""
    return f"protocol {max(points, key=lambda point: point.measured_utc).protocol_version}"


def _benchmarks(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """Each quantity as asv describes a benchmark, under the name that ``suites/asv/benchmarks/records.py`` has it by."""
    return {
        f"records.Records.track_{name}": {
            "name": f"records.Records.track_{name}",
            "pretty_name": name,
            "code": f"{name} of one cell; each sample is the median of a fresh process (docs/history.md)",
            "type": "track",
            "unit": unit,
            "params": [[repr(value) for value in values] for values in axes(points, name)],
            "param_names": list(PARAMETERS),
            "version": version(points),
            "timeout": 60,
        }
        for name, unit in QUANTITIES.items()
    }


def _add(found: Results, benchmark: Mapping[str, Any], name: str, points: Sequence[Point]) -> None:
    """A quantity of one file; cells that were not measured are NaN, which is asv's word for skipped."""
    samples: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for point in points:
        if point.samples[name]:
            samples[tuple(map(repr, point.parameters))] += point.samples[name]
    cells = [samples.get(cell) for cell in itertools.product(*benchmark["params"])]
    if not any(cells):
        return
    result = BenchmarkResult(
        result=[statistics.median(each) if each else math.nan for each in cells],
        samples=cells,
        number=[1 if each else None for each in cells],
        errcode=0,
        stderr="",
        profile=None,
    )
    measured = datetime.datetime.fromisoformat(max(point.measured_utc for point in points))
    found.add_result({**benchmark, "version": version(points)}, result, started_at=measured, record_samples=True)
