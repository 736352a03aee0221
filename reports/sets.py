"""The geometric mean of a speed over the cells of a run in one precision. It speaks of this set of cells and of no other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from reports.frame import CELL, latest, process_times
from results import comparison
from results.record import Cell, Record
from results.statistics import Ratio

SHARED = CELL[2:]
"""What makes a cell but for who runs it: model, precision, device, batch size, scope, scenario, threads."""

Key = tuple[object, ...]
"""The values of ``SHARED``."""


@dataclass(frozen=True, slots=True)
class Over:
    """Cells of one run and precision, and the mean speed over the baseline's of every implementation and mode that has all of them.

    ``left_out`` are cells in which some of them have a ratio and not all; ``absent`` who has ratios in more than one cell, but not
    in two of these; ``despite`` what differs in a row and was compared all the same.
    """

    run_id: str
    precision: str
    baseline: str
    cells: tuple[Key, ...]
    means: dict[tuple[str, str], Ratio]
    left_out: tuple[Key, ...]
    absent: tuple[tuple[str, str], ...]
    despite: dict[tuple[str, str], str]


def over(cells: pd.DataFrame, records: Iterable[Record]) -> Iterator[Over]:
    """The set of each run and precision in which some implementation and mode has a ratio to the baseline in more than one cell.

    A set over precisions would lose all cells of those that one implementation does not have.
    ``cells`` is the frame of these records; it says which rows may be compared. The set grows no row's cells: it is what all that
    are shown share, found from the one with the most cells on; one that shares fewer than two is not shown.
    """
    of_run: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.suite in ("inference", "training"):
            of_run[record.run_id].append(record)
    compared = cells[cells["ratio"].notna()]
    for (run_id, precision), rows in compared.groupby(["run_id", "precision"], sort=False):
        made = _over(str(run_id), str(precision), rows, latest(of_run[str(run_id)]))
        if made is not None:
            yield made


def _over(run_id: str, precision: str, rows: pd.DataFrame, records: list[Record]) -> Over | None:
    has: dict[tuple[str, str], dict[Key, None]] = defaultdict(dict)
    despite: dict[tuple[str, str], str] = {}
    for row in rows.to_dict("records"):
        arm = row["implementation"], row["mode"]
        has[arm][tuple(row[name] for name in SHARED)] = None
        if pd.notna(row["despite"]):
            despite[arm] = row["despite"]
    several = sorted((arm for arm in has if len(has[arm]) > 1), key=lambda arm: (-len(has[arm]), arm))
    if not several:
        return None
    shown: list[tuple[str, str]] = []
    shared = list(has[several[0]])
    for arm in several:
        common = [key for key in shared if key in has[arm]]
        if len(common) > 1:
            shared, shown = common, [*shown, arm]
    baseline = str(rows["baseline"].iloc[0])
    base = tuple(baseline.split("/", 1))
    times: dict[Cell, list[Record]] = defaultdict(list)
    for record in records:
        times[record.cell].append(record)
    means = {}
    for arm in shown:
        ratios = {}
        for key in shared:
            theirs, own = (process_times(times[Cell(*who, *key)]) for who in (base, arm))  # type: ignore[arg-type]
            ratios[str(key)] = {index: theirs[index] / own[index] for index in theirs.keys() & own.keys()}
        mean = comparison.geometric_mean(ratios)
        if mean.value is not None:
            means[arm] = mean
    if not means:
        return None
    every = dict.fromkeys(key for arm in shown for key in has[arm])
    return Over(
        run_id,
        precision,
        baseline,
        tuple(shared),
        dict(sorted(means.items(), key=lambda item: -(item[1].value or 0))),
        tuple(key for key in every if key not in shared),
        tuple(arm for arm in several if arm not in means),
        {arm: said for arm, said in despite.items() if arm in means},
    )
