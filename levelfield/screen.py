"""What the command shows: progress on stderr, results on stdout, documents for ``--json``, and the exit codes that follow."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from levelfield.cli import INVALID, NO, USAGE, YES
from reports import frame, labels, table, write
from results import statistics
from results.certificate import TIERS, Purpose
from results.record import Cell, Record
from results.store import Store
from suites.equivalence.certificate import SUITES
from suites.harness.plan import Plan, Skip

SAY_EVERY_S = 10.0


@dataclass(slots=True)
class _Count:
    """Something that is being counted: when it began and was told last, how much was done at first, and its bar."""

    began: float
    said: float
    first: int
    bar: TaskID | None = None


class Progress:
    """Says what happens now and shows the comparison as it grows, on stderr."""

    def __init__(self, console: Console, quiet: bool, baseline: str | None, allow_unlike: Sequence[str]) -> None:
        self._console = console
        self._quiet = quiet
        self._baseline = baseline
        self._allow_unlike = allow_unlike
        self._began = time.monotonic()
        self._live: Live | None = None
        self._shown: Any = Text("")
        self._bars = Bars(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
        self._counts: dict[str, _Count] = {}
        self._first_ratio = False

    def start(self) -> None:
        """Take over the bottom of a terminal; elsewhere lines are printed one after the other."""
        if self._console.is_terminal:
            self._live = Live(Group(self._shown, self._bars), console=self._console, refresh_per_second=2, transient=True)
            self._live.start()

    def stop(self) -> None:
        """Give the terminal back."""
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        """A line about what happens now."""
        elapsed = time.monotonic() - self._began
        self._console.print(Text(f"{elapsed // 60:3.0f}:{elapsed % 60:02.0f}  {line}", style="dim"), soft_wrap=True)

    def count(self, what: str, done: int, total: int) -> None:
        """How far something has come: a bar on a terminal, elsewhere a line now and then; nothing where a document is printed."""
        if self._quiet:
            return
        now = time.monotonic()
        one = self._counts.setdefault(what, _Count(now, now, done))
        if self._live:
            if one.bar is None:
                one.bar = self._bars.add_task(what, total=total, completed=done)
            self._bars.update(one.bar, completed=done, visible=done < total)
        elif now > one.said + SAY_EVERY_S and one.first < done < total:
            one.said = now
            left_s = (now - one.began) / (done - one.first) * (total - done)
            self.say(f"{done} of {total} images, about {left_s:.0f} s are left")
        if done >= total:
            del self._counts[what]

    def show(self, folder: Path) -> None:
        """The comparison so far; outside of a terminal once, when the first ratio is there."""
        if self._baseline is None or self._quiet or (self._live is None and self._first_ratio):
            return
        try:
            self._shown = table.terminal(write.comparison(folder, self._baseline, allow_unlike=self._allow_unlike))
        except frame.NoRecordsError:
            return
        if self._live:
            self._live.update(Group(self._shown, self._bars), refresh=True)
        elif bool(frame.load(folder, self._baseline, self._allow_unlike)["ratio"].notna().any()):
            self._first_ratio = True
            self._console.print(self._shown)


@contextmanager
def live(*, quiet: bool, baseline: str | None, allow_unlike: Sequence[str] = ()) -> Iterator[Progress]:
    """Progress for the length of a run."""
    progress = Progress(Console(stderr=True, width=None if sys.stderr.isatty() else 110), quiet, baseline, allow_unlike)
    progress.start()
    try:
        yield progress
    finally:
        progress.stop()


def final(folder: Path, baseline: str, out: Path, allow_unlike: Sequence[str] = ()) -> None:
    """The comparison and where its files lie, on stdout."""
    console = Console(width=max(100, min(120, Console().width)))
    console.print(table.terminal(write.comparison(folder, baseline, out / "index.html", allow_unlike)))


def bench_document(folder: Path, baseline: str, planned: Plan, allow_unlike: Sequence[str] = ()) -> dict[str, Any]:
    """``{"rows": [...], "machine": {...}}`` with a row per cell; figures are null where there is none."""
    cells = frame.load(folder, baseline, allow_unlike)
    rows = []
    for _, row in cells.iterrows():
        plain = {str(name): _plain(value) for name, value in row.items()}
        rows.append(
            {
                **plain,
                "latency_s": _interval(plain, "latency{}_s"),
                "throughput_images_per_s": _interval(plain, "throughput{}_images_per_s"),
                "ratios": []
                if plain["ratio"] is None
                else [{"baseline": baseline, **_interval(plain, "ratio{}"), "tie": plain["tie"], "mde": plain["mde"]}],
            }
        )
    run = Store(folder.parent).run(folder.name)
    return {
        "run_id": run.run_id,
        "rows": rows,
        "machine": dict(run.machine),
        "allow_unlike": list(allow_unlike),
        "estimated_s": planned.estimated_s,
        "reductions": list(planned.reductions),
    }


def _plain(value: Any) -> Any:
    if value is pd.NA or value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.item() if hasattr(value, "item") else value


def _interval(row: Mapping[str, Any], pattern: str) -> dict[str, Any]:
    return {"value": row[pattern.format("")], "low": row[pattern.format("_low")], "high": row[pattern.format("_high")]}


def bench_code(cells: pd.DataFrame, planned: Plan) -> int:
    """0; 1 where a cell failed, is not certified or was asked for by name in vain; 2 where nothing ran; 3 where nothing is valid."""
    bad = cells["status"].isin(["failed", "timed_out", "out_of_memory", "not_certified"])
    if planned.doubled_from is not None:  # that a batch does not fit is what doubling looks for
        bad &= ~(cells["status"].eq("out_of_memory") & cells["batch_size"].gt(planned.doubled_from).fillna(False))
    if bad.any() or any(skip.by_name for skip in planned.skips):
        return NO
    if (cells["status"] == "skipped").all():
        return USAGE
    return YES if planned.smoke or cells["time_per_batch_s"].notna().any() else INVALID


PURPOSES: Mapping[str, Purpose] = {suite: purpose for purpose, suite in SUITES.items()}


def certify_document(certificates: Mapping[Cell, Record], skips: Sequence[Skip]) -> dict[str, Any]:
    """``{"certificates": [...], "skipped": [...]}``."""
    made = []
    skipped = [{**dataclasses.asdict(skip)} for skip in skips]
    for cell, record in certificates.items():
        about = {
            "implementation": cell.implementation,
            "mode": cell.mode,
            "model": cell.model,
            "precision": cell.precision,
            "device": cell.device,
        }
        if record.status == "skipped":
            skipped.append({**about, "reason": record.reason, "by_name": False})
            continue
        data: Mapping[str, Any] = record.data or {}
        tiers = data.get("tiers", {})
        last = list(tiers.values())[-1] if tiers else None
        worst = next((tier for tier in tiers.values() if not tier["passed"]), last)
        made.append(
            {
                **about,
                "purpose": PURPOSES[record.suite],
                "passed": record.status == "ok",
                "status": record.status,
                "certificate": record.record_id,
                "tiers": tiers,
                "thorough": data.get("thorough", False),
                "probes": data.get("probes", []),
                "elements_compared": data.get("elements_compared", 0),
                "worst": {"tap": worst["worst_tap"], "error": worst["worst_error"], "bound": worst["bound"]} if worst else None,
                "reason": record.reason,
            }
        )
    return {"certificates": made, "skipped": skipped}


def certificates(found: Mapping[Cell, Record], skips: Sequence[Skip], pages: Path | None) -> None:
    """A line per certificate, and where to read them."""
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    purposes = {PURPOSES[record.suite] for record in found.values()}
    names = sorted({name for purpose in purposes for name in TIERS[purpose]} or TIERS["inference"])
    for heading in ("implementation", "model", "precision", "certificate", "elements", *names):
        shown.add_column(heading, no_wrap=True)
    reasons = []
    for cell, record in found.items():
        data: Mapping[str, Any] = record.data or {}
        tiers = data.get("tiers", {})
        marks = [_mark(tiers.get(name)) for name in names]
        verdict = f"ok {labels.short(record.record_id)}" if record.status == "ok" else record.status.replace("_", " ").upper()
        name = labels.implementation(cell.implementation, cell.mode)
        count = f"{data['elements_compared']:,}" if data else "-"
        shown.add_row(name, cell.model, cell.precision, verdict, count, *marks)
        reasons += [f"{name}  {cell.model}  {cell.precision}  {record.reason}"] if record.reason else []
    for skip in skips:
        name = labels.implementation(skip.implementation, skip.mode)
        shown.add_row(name, skip.model, skip.precision, "skipped", "-", *("-" for _ in names))
        reasons.append(f"{name}  {skip.model}  {skip.precision}  {skip.reason}")
    console = Console(width=max(100, min(140, Console().width)))
    console.print(shown)
    for reason in reasons:
        console.print(Text(reason))
    if pages is not None:
        console.print(Text(f"Certificates: {pages}"), soft_wrap=True)


def clean_document(found: Mapping[Cell, Record]) -> dict[str, Any]:
    """``{"seeds", "alarms", "at_most", "compared", "failed", "arms": [...]}``; ``at_most`` bounds the rate of false alarms (95 %)."""
    arms: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    compared: Counter[str] = Counter()
    for cell, record in found.items():
        arm = f"{cell.implementation}/{cell.mode} {cell.precision}"
        if record.status != "ok":
            failed.append({"arm": arm, "reason": record.reason})
            continue
        data: Mapping[str, Any] = record.data or {}
        compared.update(data["compared"])
        arms.append({"arm": arm, "seeds": data["seeds"], "alarms": data["alarms"]})
    seeds, alarms = sum(arm["seeds"] for arm in arms), sum(len(arm["alarms"]) for arm in arms)
    # A network that is refused as a whole counts once for each of its tiers.
    bound = statistics.upper_bound(min(alarms, seeds), seeds) if seeds else None
    return {"seeds": seeds, "alarms": alarms, "at_most": bound, "compared": dict(compared), "failed": failed, "arms": arms}


def clean(found: Mapping[str, Any], folder: Path) -> str:
    """The count of false alarms for people."""
    lines = [f"{arm['arm']}: {arm['seeds']} seeds, {len(arm['alarms'])} alarms" for arm in found["arms"]]
    lines += [f"  {alarm}" for arm in found["arms"] for alarm in arm["alarms"]]
    lines += [f"{each['arm']}: failed: {each['reason']}" for each in found["failed"]]
    if found["at_most"] is not None:
        lines.append(
            f"{found['alarms']} alarms in {found['seeds']} clean seeds: with 95 % confidence at most {found['at_most']:.2%} are refused"
        )
    return "\n".join([*lines, f"Records: {folder}"])


def _mark(tier: Mapping[str, Any] | None) -> str:
    if tier is None:
        return "-"
    if not tier["passed"]:
        return "FAILED"
    return "equal" if tier["bound"] == 0 else f"{tier['worst_error']:.2g}"


def certify_code(found: Mapping[Cell, Record], skips: Sequence[Skip]) -> int:
    """0; 1 where an arm is not equivalent, failed, or was asked for by name in vain; 2 where none could run."""
    statuses = {record.status for record in found.values()}
    if statuses - {"ok", "skipped"} or any(skip.by_name for skip in skips):
        return NO
    return YES if "ok" in statuses else USAGE
