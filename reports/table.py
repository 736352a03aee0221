"""The comparison as a table: built once as plain data, then printed in a terminal or written as Markdown.

A row without a passing certificate, a failed one and one of a smoke run hold no figure, only what happened.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from reports import labels, roofline, sets
from reports.about import About
from reports.frame import GROUP, PERCENTILES
from results.statistics import Ratio

NO_CONCLUSION = (
    "other machines, other batch sizes or models, other versions",
    "a difference that the intervals do not show: a tie says that this run could not tell, not that two are equal",
    "cost or ease of use: they were not measured",
)
ENERGY = "J/image"
ENERGY_LIMIT = (
    "which of two energies within 5 % of each other is the lower: the counters are no better than that, and no energies are ranked"
)
SMOKE = "NOT-A-MEASUREMENT: a smoke run, which shows that every path runs and says nothing about speed."
COLUMNS = ("rank", "implementation", "speed vs BASELINE", "MiB", "% of ceiling", "top-1 %", "proof")
NUMBERS = (*COLUMNS[3:6], ENERGY)
MISSING = "-"


@dataclass(frozen=True, slots=True)
class Line:
    """A row as text. ``kind`` is "measured", "waiting", "smoke", "uncertified", "skipped" or "failed".

    ``tails`` are the bounds of the percentiles of a latency; they are for where there is room.
    """

    rank: str
    implementation: str
    figure: str
    speed: str
    memory: str
    ceiling: str
    top1: str
    proof: str
    kind: str
    tails: tuple[str, ...] = ()
    energy: str | None = None

    def cells(self, *, wide: bool = False) -> tuple[str, ...]:
        """The row in the order of the table's columns; ``energy`` is one where anything of the table has one."""
        tails = self.tails if wide else ()
        energy = () if self.energy is None else (self.energy,)
        figures = (self.rank, self.implementation, self.figure, *tails, self.speed, self.memory, self.ceiling, self.top1)
        return (*figures, *energy, self.proof)


@dataclass(frozen=True, slots=True)
class Section:
    """One table: rows that may be compared with each other. ``answer`` is the verdict with the intervals that it rests on."""

    title: str
    verdict: str
    answer: str
    figure_heading: str
    baseline: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    tails: tuple[str, ...] = ()

    def headings(self, *, wide: bool = False) -> tuple[str, ...]:
        """The column headings."""
        speed = COLUMNS[2].replace("BASELINE", self.baseline)
        energy = () if all(line.energy is None for line in self.lines) else (ENERGY,)
        tails = self.tails if wide else ()
        return (*COLUMNS[:2], self.figure_heading, *tails, speed, *COLUMNS[3:-1], *energy, COLUMNS[-1])


@dataclass(frozen=True, slots=True)
class Set:
    """Geometric means over a set of cells: a title, (implementation, speed) from the fastest on, and what belongs to them."""

    title: str
    headings: tuple[str, str]
    lines: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """Everything that a printed comparison says. ``answers`` are those of a GPU beside the headline: what for, and a sentence."""

    headline: str
    answers: tuple[tuple[str, str], ...]
    about: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    sets: tuple[Set, ...]
    no_conclusion: tuple[str, ...]
    footer: tuple[str, ...]


def content(frame: pd.DataFrame, about: About, report: Path | None = None, allow_unlike: Collection[str] = ()) -> Content:
    """The comparison in words and numbers; ``report`` is where the page lies, if it is written.

    ``allow_unlike`` is what the frame was made with.
    """
    sections = tuple(_section(rows, about) for rows in groups(frame))
    footer = [f"Again: {command}" for command in about.again()]
    if report is not None:
        footer.insert(0, f"Report: {report}")
    allowed = [("Allowed to differ", ", ".join(allow_unlike))] if allow_unlike else []
    found = list(sets.over(frame, about.records))
    several = len({each.run_id for each in found}) > 1
    means = tuple(_set(each, f" of run {each.run_id}" if several else "") for each in found)
    limits = (*_no_conclusion(frame), *_of_energy(frame))
    answers = tuple(_answers(frame, sections))
    return Content(headline(sections), answers, (*allowed, *about.facts()), sections, means, limits, tuple(footer))


def _no_conclusion(frame: pd.DataFrame) -> tuple[str, ...]:
    """What no run says, and whichever of inference and training was not timed."""
    timed = frame.loc[frame["scenario"].notna(), "scenario"]
    trains = timed.eq("training")
    absent = "training" if not trains.any() else "inference" if trains.all() else None
    return (", ".join(filter(None, (NO_CONCLUSION[0], absent))), *NO_CONCLUSION[1:])


def _of_energy(frame: pd.DataFrame) -> Iterator[str]:
    """How far energies carry, and why there is none where the run has none."""
    if frame["energy_j_per_image"].notna().any():
        yield ENERGY_LIMIT
    elif reasons := list(frame.loc[frame["certified"] & frame["status"].eq("ok"), "energy_absent"].dropna().unique()):
        yield f"energy: it was not measured ({'; '.join(reasons)})"


def headline(sections: tuple[Section, ...]) -> str:
    """The answer in one sentence: that of the first table which has one."""
    if not sections:
        return "There is nothing to compare: no record was found."
    answered = [section for section in sections if any(line.kind == "measured" for line in section.lines)]
    section = (answered or list(sections))[0]
    return f"{section.title.split(' | ')[0]}: {section.answer}"


def _answers(frame: pd.DataFrame, sections: tuple[Section, ...]) -> Iterator[tuple[str, str]]:
    """Which to take on a GPU for latency, and for throughput at the batch size that gives most, in every precision."""
    tables = [(rows, section) for rows, section in zip(groups(frame), sections, strict=True) if rows["device"].iloc[0] == "cuda"]
    kinds: dict[tuple[object, ...], list[tuple[pd.DataFrame, Section]]] = {}
    for rows, section in tables:
        if rows["time_per_batch_s"].notna().any():
            kinds.setdefault(tuple(rows.iloc[0][["run_id", "model", "precision", "scope", "scenario"]]), []).append((rows, section))
    for found in kinds.values():
        # Of a latency the smallest batch, of a throughput the largest rate: both are the least time of an image.
        rows, section = min(found, key=lambda each: (each[0]["time_per_batch_s"] / each[0]["batch_size"]).min())
        first = rows.iloc[0]
        known = ("model", "precision", "device", "batch_size", "scope", "scenario", "image_size")
        what = labels.cell(*(first[name] for name in known))
        figure = next(line.figure for line in section.lines if line.kind == "measured")
        unit = "images/s" if is_offline(first) else "ms"
        yield "  ".join(what), f"{figure} {unit} by the fastest. {section.answer}"


def groups(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The rows of each table, in the order of ``Content.sections``.

    A row that has no timing cell of its own (it was never timed, or only its certificate failed) stands in every table
    of its model, precision and device.
    """
    timed = frame[frame["scenario"].notna()]
    loose = frame[frame["scenario"].isna()]
    shared = ["run_id", "model", "precision", "device"]
    for _, rows in timed.groupby(GROUP, dropna=False, sort=False):
        same = (loose[shared] == rows[shared].iloc[0]).all(axis=1)
        absent = ~loose.set_index(["implementation", "mode"]).index.isin(rows.set_index(["implementation", "mode"]).index)
        yield pd.concat([rows, loose[same & absent]]) if (same & absent).any() else rows
    orphans = loose[~loose.set_index(shared).index.isin(timed.set_index(shared).index)]
    yield from (rows for _, rows in orphans.groupby(GROUP, dropna=False, sort=False))


def is_offline(row: pd.Series) -> bool:
    """Whether a row's figure is a throughput."""
    return pd.notna(row["scenario"]) and bool(row["scenario"] in ("offline", "training"))


def order(rows: pd.DataFrame) -> pd.DataFrame:
    """The fastest first; then those that are in no comparison with them; then those without a figure, by name."""
    keys = ["apart", "time_per_batch_s", "implementation", "mode"]
    apart = rows["unlike"].notna() | rows["time_per_batch_s"].isna()
    return rows.assign(apart=apart).sort_values(keys, na_position="last", kind="stable").drop(columns="apart")


def _section(rows: pd.DataFrame, about: About) -> Section:
    rows = order(rows)
    first = rows.iloc[0]
    throughput = is_offline(first)
    energy = bool(rows["energy_j_per_image"].notna().any())
    lines = tuple(_line(row, throughput=throughput, energy=energy) for _, row in rows.iterrows())
    heading = "images/s [95 %]" if throughput else "ms [95 %]"
    baseline = labels.implementation(*str(first["baseline"]).split("/", 1))
    is_latency = pd.notna(first["scenario"]) and not throughput
    tails = tuple(f"p{percentile} ms at most" for percentile in PERCENTILES) if is_latency else ()
    return Section(
        _title(first, rows, about), verdict(rows), verdict(rows, detailed=True), heading, baseline, lines, tuple(_notes(rows)), tails
    )


def _title(first: pd.Series, rows: pd.DataFrame, about: About) -> str:
    known = {name: None if pd.isna(first[name]) else first[name] for name in ("batch_size", "scope", "scenario", "image_size")}
    what = labels.cell(first["model"], first["precision"], first["device"], **known)
    machine = about.machine(first["run_id"])
    if pd.notna(first["threads"]):
        machine += f", {first['threads']} thread{'s' if first['threads'] > 1 else ''}"
    return f"{'  '.join(what)} | {machine} | {_processes(rows)}"


def _set(found: sets.Over, run: str) -> Set:
    baseline = labels.implementation(*found.baseline.split("/", 1))

    def names(keys: tuple[sets.Key, ...]) -> str:
        """Threads, the last value, are named where they are what tells two cells apart."""
        texts = [" ".join(labels.cell(*key[:-1])) for key in keys]  # type: ignore[arg-type]
        return "; ".join(f"{text} {key[-1]} threads" if texts.count(text) > 1 else text for text, key in zip(texts, keys, strict=True))

    notes = [f"It speaks of this set and no other: {names(found.cells)}."]
    if found.left_out:
        notes.append(f"Not in the set, since not every row has a ratio there: {names(found.left_out)}.")
    if found.absent:
        absent = labels.joined([labels.implementation(*arm) for arm in found.absent])
        notes.append(f"Not shown, for want of ratios in these cells or of common rounds: {absent}.")
    notes += [f"{labels.implementation(*arm)}: {said}." for arm, said in found.despite.items()]
    lines = tuple((labels.implementation(*arm), _speed(mean)) for arm, mean in found.means.items())
    title = f"Over {len(found.cells)} cells in {found.precision}{run}: geometric mean of the speeds, 95 % interval over rounds"
    return Set(title, ("implementation", f"speed vs {baseline}"), lines, tuple(notes))


def _processes(rows: pd.DataFrame) -> str:
    counts = rows.loc[rows["time_per_batch_s"].notna(), "processes"]
    if counts.empty:
        return "no figure"
    low, high = int(counts.min()), int(counts.max())
    count = f"{low}" if low == high else f"{low} to {high}"
    return f"{count} process{'' if high == 1 else 'es'} each"


def verdict(rows: pd.DataFrame, *, detailed: bool = False) -> str:
    """What the ranks and the intervals allow to be said, for any number of rows; ``detailed`` with the leaders' intervals."""
    figures = rows[rows["time_per_batch_s"].notna()]
    if not rows["measurement"].fillna(True).all():
        return SMOKE
    if figures.empty:
        return "No row holds a figure, so nothing can be said."
    unlike = figures["unlike"].notna()
    if len(figures) > 1 and (~unlike).sum() == 1:
        return f"No row is like {_names(figures[~unlike])} in all that a comparison needs, so there is nothing to compare it with."
    figures = figures[~unlike]
    if len(figures) == 1:
        return f"Only {_names(figures)} holds a figure, so there is nothing to compare it with."
    ranked = figures[figures["rank_low"].notna()]
    if len(ranked) < len(figures):
        return "Too few processes ran in pairs for an interval, so no comparison can be made."
    leaders = ranked[ranked["rank_low"] == 1]
    return f"{_leaders(leaders, ranked, detailed=detailed)}{_beaten(leaders)}."


def _leaders(leaders: pd.DataFrame, ranked: pd.DataFrame, *, detailed: bool) -> str:
    if len(leaders) == 1:
        following = order(ranked).iloc[1]
        next_best = f"; next is {_name(following)}, {_ratio(following)} as fast" if detailed and leaders["is_baseline"].all() else ""
        return f"{_names(leaders)} is the fastest{next_best}"
    names = _names(leaders, detailed=detailed)
    if len(leaders) == len(ranked):
        return f"{names} tie"
    if (leaders["rank_high"] <= len(leaders)).all():
        return f"{names} tie"
    return f"{names} tie for first, though not every row below them is told apart from each"


def _beaten(leaders: pd.DataFrame) -> str:
    """What the leaders' intervals against the baseline say; nothing where the baseline leads or was not measured."""
    if leaders["is_baseline"].any() or leaders["ratio"].isna().any():
        return ""
    baseline = labels.implementation(*leaders["baseline"].iloc[0].split("/", 1))
    winners = leaders[leaders["ratio_low"] > 1]
    if winners.empty:
        return f"; no difference from {baseline} was found"
    if len(leaders) == 1:
        row = leaders.iloc[0]
        return f", {_ratio(row)} as fast as {baseline}"
    if len(winners) == len(leaders):
        return f"; each beats {baseline}"
    return f"; {_names(winners)} beat{'s' if len(winners) == 1 else ''} {baseline}"


def _name(row: pd.Series) -> str:
    return labels.implementation(row["implementation"], row["mode"])


def _names(rows: pd.DataFrame, *, detailed: bool = False) -> str:
    return labels.joined([_name(row) + (f" ({_ratio(row)})" if detailed and pd.notna(row["ratio"]) else "") for _, row in rows.iterrows()])


def _line(row: pd.Series, *, throughput: bool, energy: bool) -> Line:
    name = _name(row)
    kind, said = state(row)
    if kind != "measured":
        return Line(MISSING, name, "", "", "", "", "", said, kind, energy="" if energy else None)
    tails = () if throughput else tuple(_tail(row, percentile) for percentile in PERCENTILES)
    scale = 1.0 if throughput else 1e3
    columns = ("throughput_images_per_s", "throughput_low_images_per_s", "throughput_high_images_per_s")
    columns = columns if throughput else ("latency_s", "latency_low_s", "latency_high_s")
    value, low, high = (_float(row[column]) for column in columns)
    return Line(
        _rank(row),
        name,
        with_interval(value * scale, low * scale, high * scale),
        "baseline" if row["is_baseline"] else _ratio(row),
        _format(row["peak_memory_bytes"], 2**-20, 0),
        "error: see below" if pd.notna(row["roofline_error"]) else _format(row["roofline_fraction"], 100, 0),
        str(row["top1_absent"]).partition(":")[0] if pd.notna(row["top1_absent"]) else _format(row["top1"], 100, 1),
        said,
        kind,
        tails,
        _energy(row) if energy else None,
    )


def _tail(row: pd.Series, percentile: int) -> str:
    bound = row[f"p{percentile}_s"]
    if pd.isna(bound):
        return f"not reportable: {row['calls']} calls, {row[f'p{percentile}_calls_needed']} needed"
    return f"{bound * 1e3:.{_decimals(bound * 1e3, 0)}f}"


def _energy(row: pd.Series) -> str:
    value, low, high = (_float(row[f"energy{end}_j_per_image"]) for end in ("", "_low", "_high"))
    return MISSING if math.isnan(value) else f"{value:.3g} [{low:.3g},{high:.3g}]"


def state(row: pd.Series) -> tuple[str, str]:
    """What a row is and what its last column says."""
    reason = "no reason was recorded" if pd.isna(row["reason"]) else str(row["reason"])
    if row["status"] == "skipped":
        return "skipped", f"skipped: {reason}"
    if row["status"] not in ("ok", "not_certified"):
        return "failed", f"{str(row['status']).replace('_', ' ')}: {reason}"
    if not row["certified"] or row["status"] == "not_certified":
        return "uncertified", f"NOT CERTIFIED: {reason}"
    proof = f"ok {labels.short(row['certificate'])}"
    if not row["measurement"]:
        return "smoke", f"NOT-A-MEASUREMENT; {proof}"
    return ("waiting", f"not measured; {proof}") if pd.isna(row["time_per_batch_s"]) else ("measured", proof)


def _rank(row: pd.Series) -> str:
    if pd.isna(row["rank_low"]):
        return MISSING
    return f"{row['rank_low']}" if row["rank_low"] == row["rank_high"] else f"{row['rank_low']}-{row['rank_high']}"


def _ratio(row: pd.Series) -> str:
    if pd.isna(row["ratio"]):
        return MISSING
    return _speed(Ratio(_float(row["ratio"]), _float(row["ratio_low"]), _float(row["ratio_high"]), row["pairs"], None))


def _speed(ratio: Ratio) -> str:
    assert ratio.low is not None
    assert ratio.high is not None
    decimals = 2
    while decimals < 4 and not ratio.tie and 1 in (round(ratio.low, decimals), round(ratio.high, decimals)):
        decimals += 1  # an interval that does not hold 1 must not look as if it did
    return f"{ratio.value:.{decimals}f}x [{ratio.low:.{decimals}f},{ratio.high:.{decimals}f}]{' tie' if ratio.tie else ''}"


def with_interval(value: float, low: float, high: float) -> str:
    """ "17.9 [17.6,18.2]": as many decimals as the interval gives meaning to."""
    if math.isnan(low) or math.isnan(high):
        return f"{value:.{_decimals(value, 0)}f} (no interval)"
    decimals = _decimals(value, high - low)
    return f"{value:.{decimals}f} [{low:.{decimals}f},{high:.{decimals}f}]"


def _decimals(value: float, width: float) -> int:
    """The digit in which the interval's width begins, but at least three digits of the value."""
    wanted = -math.floor(math.log10(width)) if width > 0 else 0
    return min(4, max(0, wanted, 2 - math.floor(math.log10(value))))


def _float(value: object) -> float:
    return math.nan if pd.isna(value) else float(value)  # type: ignore[arg-type,call-overload]


def _format(value: object, scale: float, decimals: int) -> str:
    return MISSING if pd.isna(value) else f"{float(value) * scale:.{decimals}f}"  # type: ignore[arg-type,call-overload]


def _notes(rows: pd.DataFrame) -> Iterator[str]:
    mde = rows["mde"].max()
    if pd.notna(mde):
        gap = f"Gaps under {mde * 100:.1f} %" if mde < 9 else "Even gaps of a factor of ten"
        yield f"{gap} from the baseline cannot be counted on to be seen here."
    for _, row in rows[rows["unlike"].notna() | rows["despite"].notna()].iterrows():
        yield f"{_name(row)}: {row['unlike'] if pd.notna(row['unlike']) else row['despite']}."
    timed = rows[rows["time_per_batch_s"].notna() & rows["steady"].notna()]
    if len(timed):
        classes = (f"{steady}: {labels.joined([_name(row) for _, row in each.iterrows()])}" for steady, each in timed.groupby("steady"))
        yield f"Steadiness while timed: {'; '.join(classes)}."
    for column, cause in (("power_cap_fraction", "at the power limit"), ("heat_fraction", "for heat")):
        if (rows[column] > 0).any():
            shares = [f"{row[column]:.0%} of {_name(row)}" for _, row in rows[rows[column].notna()].iterrows()]
            yield f"Of the time of the visits the clocks were held down {cause}: {labels.joined(shares)}."
    unpaired = rows["time_per_batch_s"].notna() & rows["ratio"].isna() & rows["unlike"].isna() & ~rows["is_baseline"]
    if unpaired.any():
        baseline = labels.implementation(*str(rows["baseline"].iloc[0]).split("/", 1))
        yield f"No ratio where fewer than two processes were paired with {baseline}'s."
    for _, row in rows[rows["roofline_error"].notna()].iterrows():
        yield f"{_name(row)}: {row['roofline_error']}"
    for _, row in rows[(rows["device"] == "cuda") & (rows["roofline_fraction"] < roofline.LOW)].iterrows():
        yield f"{_name(row)}: {_low(row)}"
    for reason in rows["top1_absent"].dropna().unique():
        if ":" in reason:
            yield f"Top-1: {reason}."
    for _, row in rows[rows["second_clock_s"].notna()].iterrows():
        yield f"{_name(row)}: {_second_clock(row)}"
    if rows["energy_j_per_image"].notna().any():
        for _, row in rows[rows["time_per_batch_s"].notna() & rows["energy_absent"].notna()].iterrows():
            yield f"{_name(row)}: no energy: {row['energy_absent']}"
    for _, row in rows[rows["remark"].notna()].iterrows():
        yield f"{_name(row)}: {row['remark']}"


def _low(row: pd.Series) -> str:
    """What is to be looked at where a row is far below its roofline."""
    places = [_held_down(row), "the cuDNN and cuBLAS in its settings"]
    if row["layout"] == "NCHW":
        places.insert(0, "its layout, NCHW, for which tensor cores rearrange every tensor")
    if row["precision"] == "tf32" and not row["tf32"]:
        places.insert(0, "TF32, which it says is off")
    low = f"{row['roofline_fraction']:.0%} of its roofline ({row['roofline']}), below {roofline.LOW:.0%}"
    return f"{low}: something may be set up wrong; look at {labels.joined(places)}."


def _held_down(row: pd.Series) -> str:
    """What held the card's clocks down, and for how much of its visits, as far as the card counts it."""
    causes = {"the power limit": row["power_cap_fraction"], "heat": row["heat_fraction"]}
    shares = [f"{cause} ({'not counted here' if pd.isna(share) else f'{share:.0%} of its visits'})" for cause, share in causes.items()]
    return f"what held its clocks down: {', '.join(shares)}"


def _second_clock(row: pd.Series) -> str:
    """Both clocks' figures of the same visits, in the unit of the table."""
    calls = {row["second_clock"]: row["second_clock_s"], "our clock": row["second_clock_s"] * row["second_clock_ratio"]}
    if is_offline(row):
        figures = [f"{row['batch_size'] / seconds:.4g} images/s by {name}" for name, seconds in calls.items()]
    else:
        figures = [f"{seconds * 1e3:.4g} ms by {name}" for name, seconds in calls.items()]
    interval = f"{row['second_clock_ratio']:.3f} [{row['second_clock_ratio_low']:.3f},{row['second_clock_ratio_high']:.3f}]"
    overhead = f"{row['second_clock_overhead_s'] * 1e6:.2g} us per call for its own work are taken off"
    return f"{figures[0]} ({overhead}), {figures[1]} in turns with it: a call takes {interval} of it by ours."


def terminal(shown: Content) -> Group:
    """The comparison for rich: readable at 100 columns."""
    parts: list[object] = [*(Text.assemble((f"{name}: ", "bold"), value) for name, value in shown.about)]
    for section in shown.sections:
        parts += [Text(""), Text(section.title, style="bold"), Text(section.verdict), _rich_table(section)]
        parts += [Text(note) for note in section.notes]
    for means in shown.sets:
        grid = RichTable.grid(padding=(0, 2, 0, 0))
        for line in (means.headings, *means.lines):
            grid.add_row(*(escape(cell) for cell in line), style="dim" if line is means.headings else "")
        parts += [Text(""), Text(means.title, style="bold"), grid, *(Text(note) for note in means.notes)]
    if not shown.sections:
        parts.append(Text(shown.headline))
    if shown.answers:
        parts += [Text(""), *(Text.assemble((f"{what}: ", "bold"), answer) for what, answer in shown.answers)]
    parts += [Text(""), Text(f"Do not conclude: {'; '.join(shown.no_conclusion)}.")]
    parts += [Text(line) for line in shown.footer]
    return Group(*parts)  # type: ignore[arg-type]


class _Proofs:
    """The rows without figures, each on lines of its own under the table: a reason needs the whole width."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(len(line.implementation) for line in self.lines)
        grid = RichTable.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=4, justify="right")
        grid.add_column(min_width=width, no_wrap=True)
        grid.add_column(overflow="fold")
        for line in self.lines:
            grid.add_row(line.rank, escape(line.implementation), escape(line.proof))
        yield grid


def _rich_table(section: Section) -> Group:
    table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in section.headings():
        right = heading in NUMBERS
        table.add_column(_wrapped(heading), justify="right" if right else "left", overflow="fold")
    figures = [line for line in section.lines if line.kind == "measured"]
    without = [line for line in section.lines if line.kind != "measured"]
    for line in figures:
        table.add_row(*(escape(cell) for cell in line.cells()))
    return Group(*([table] if figures else []), *([_Proofs(without)] if without else []))


def _wrapped(heading: str) -> str:
    """A heading in two lines, so that it is no wider than its column."""
    for start in ("speed vs ", "% of ", "top-1 "):
        if heading.startswith(start):
            return f"{start.strip()}\n{heading.removeprefix(start)}"
    return heading


def markdown(shown: Content) -> str:
    """The comparison as GitHub-flavoured Markdown."""
    lines = ["# Comparison", "", f"**{_md(shown.headline)}**", ""]
    lines += [*(f"- **{_md(what)}**: {_md(answer)}" for what, answer in shown.answers), ""] if shown.answers else []
    lines += [f"- **{_md(name)}**: {_md(value)}" for name, value in shown.about]
    lines += [f"- **Do not conclude**: {'; '.join(shown.no_conclusion)}."]
    for section in shown.sections:
        lines += ["", f"## {_md(section.title.replace(' | ', '; '))}", "", _md(section.verdict), ""]
        lines += _md_table(section.headings(wide=True), [_whole(line, section) for line in section.lines])
        lines += [line for note in section.notes for line in ("", _md(note))]
    for means in shown.sets:
        lines += ["", f"## {_md(means.title)}", "", *_md_table(means.headings, means.lines)]
        lines += [line for note in means.notes for line in ("", _md(note))]
    return "\n".join([*lines, *(line for text in shown.footer for line in ("", _md(text))), ""])


def _whole(line: Line, section: Section) -> tuple[str, ...]:
    """A row with as many cells as the table has; one without figures has no tails."""
    cells = line.cells(wide=True)
    return (*cells[:3], *[""] * (len(section.tails) - len(line.tails)), *cells[3:])


def _md_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(map(_md, headings))} |", f"|{'---|' * len(headings)}", *(f"| {' | '.join(map(_md, row))} |" for row in rows)]


def _md(text: str) -> str:
    """Text that stays text: a reason may hold pipes, angle brackets or line ends."""
    for mark in ("\\", "|", "*", "`", "]("):
        text = text.replace(mark, f"\\{mark}" if len(mark) == 1 else "]\\(")
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())
