"""Pairs of runs of one bench: does the second say of a ratio what the first does, within the interval that both claim?

    python -m tests.repeated_runs keep STORE FILE.csv     the times of every process of a store's runs, one a line
    python -m tests.repeated_runs judge FILE.csv          prints what pairs of successive runs say

A line of docs/measuring.md is made by it from ``results/repeats/``.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from reports.frame import BASELINE, process_times
from results.comparison import Unpaired, unpaired
from results.record import Record
from results.statistics import ratio
from results.store import Store

Cell = tuple[str, ...]
Times = Mapping[Cell, Mapping[int, float]]
"""Seconds of one call by cell and round, of one run."""

COLUMNS = ("run_id", "machine_id", "commit", "arm", "model", "precision", "batch_size", "scope", "round", "seconds")


@dataclass(frozen=True, slots=True)
class Repetition:
    """A cell's ratio to the baseline in two runs: the second's over the first's, and whether one calls faster what the other slower."""

    cell: Cell
    change: Unpaired
    reversed: bool

    @property
    def covered(self) -> bool:
        """Whether the change's own interval contains none."""
        return self.change.low <= 1 <= self.change.high


def keep(store: Store) -> Iterable[tuple[str, ...]]:
    """A line for every process that was timed."""
    for run_id in store.runs():
        cells: dict[Cell, list[Record]] = defaultdict(list)
        for record in store.read(run_id)[0]:
            if record.suite == "inference":
                cell = record.cell
                name = f"{cell.implementation}/{cell.mode}"
                cells[name, cell.model, cell.precision, str(cell.batch_size), str(cell.scope)].append(record)
        for cell, records in sorted(cells.items()):
            about = run_id, records[0].machine_id, str(records[0].code.commit)
            yield from ((*about, *cell, str(index), f"{seconds:.6g}") for index, seconds in sorted(process_times(records).items()))


def read(lines: Iterable[Mapping[str, str]]) -> list[Times]:
    """The runs in the order in which they were made."""
    runs: dict[str, dict[Cell, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        cell = tuple(line[name] for name in ("arm", "model", "precision", "batch_size", "scope"))
        runs[line["run_id"]][cell][int(line["round"])] = float(line["seconds"])
    return [runs[run_id] for run_id in sorted(runs)]


def repetitions(first: Times, second: Times, baseline: str = BASELINE) -> Iterable[Repetition]:
    """Every cell that has a ratio to the baseline's of the same model in both runs."""
    for cell in sorted(first.keys() & second.keys()):
        base = baseline, *cell[1:]
        if cell == base or base not in first or base not in second:
            continue
        speeds = [[run[base][index] / run[cell][index] for index in sorted(run[base].keys() & run[cell].keys())] for run in (first, second)]
        if min(map(len, speeds)) < 2:
            continue
        found = [ratio(run[base], run[cell]) for run in (first, second)]
        verdicts = {1 if each.low > 1 else -1 for each in found if each.low is not None and not each.tie}
        yield Repetition(cell, unpaired(*speeds), len(verdicts) == 2)


def judge(runs: list[Times]) -> list[Repetition]:
    """Of the first run and the second, the third and the fourth, and so on."""
    return [each for first, second in list(pairwise(runs))[::2] for each in repetitions(first, second)]


def main() -> None:
    """Entry point."""
    match sys.argv[1:]:
        case ["keep", store, path]:
            with Path(path).open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(COLUMNS)
                writer.writerows(keep(Store(Path(store))))
        case ["judge", path]:
            with Path(path).open(newline="", encoding="utf-8") as file:
                runs = read(csv.DictReader(file))
            found = judge(runs)
            for each in found:
                if each.reversed or not each.covered:
                    what, change = "REVERSED" if each.reversed else "outside", each.change
                    print(f"{what}: {' '.join(each.cell)} {change.value:.3f} [{change.low:.3f}, {change.high:.3f}]")
            within, turned = sum(each.covered for each in found), sum(each.reversed for each in found)
            widths = sorted((each.change.high / each.change.low) ** 0.5 - 1 for each in found)
            print(f"{len(runs)} runs, {len(found)} repetitions: {within} within their interval, {turned} reversed")
            print(f"half-width: least {widths[0]:.1%}, median {widths[len(widths) // 2]:.1%}, most {widths[-1]:.1%}")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
