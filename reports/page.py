"""The self-contained HTML page: no request leaves it, and whatever was not written by this project is escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import pandas as pd

from reports import figures, labels, table
from reports.frame import DTYPES, FIGURES
from reports.publish import environment
from reports.table import Content, Line, Section

STARTUP = ["import_s", "load_s", "first_call_s", "cold_load_s", "cold_first_call_s"]
STARTUP_HEADINGS = ("implementation", "import s", "load s", "first call s", "cold load s", "cold first call s")
LATENCY = (
    "Each call is waited for before the next. Unlike rows are never compared. Percentiles are upper bounds with 99 % confidence in a "
    "process (MLPerf's early stopping), the largest over processes; they take a process's calls for independent."
)
BADGES = {
    "measured": "certified",
    "waiting": "not measured",
    "smoke": "NOT-A-MEASUREMENT",
    "uncertified": "withheld",
    "skipped": "skipped",
    "failed": "failed",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawn figure with the sentence below it."""

    svg: str
    caption: str


@dataclass(frozen=True, slots=True)
class Row:
    """A table row: plain cells, and at its end a badge with what it proves (over ``span`` columns) where there is one."""

    kind: str
    cells: tuple[str, ...]
    badge: str = ""
    proof: str = ""
    span: int = 1


@dataclass(frozen=True, slots=True)
class Part:
    """One comparison of a chapter; ``name_at`` is the column that names the row, ``right`` are the columns of plain numbers."""

    title: str
    verdict: str = ""
    figures: tuple[Figure, ...] = ()
    headings: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    name_at: int = 0
    right: tuple[int, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Chapter:
    """A section of the page."""

    id: str
    title: str
    note: str
    parts: tuple[Part, ...]


class Rates(Protocol):
    """The rooflines of a run's GPU, of inference or of training, in images per second by batch size."""

    def __call__(
        self, run_id: str, model: str, precision: str, batch_sizes: Iterable[int], /, *, training: bool = False
    ) -> Mapping[str, Mapping[int, float]]:
        """Of run, model, precision and batch sizes, by line."""


def render(frame: pd.DataFrame, content: Content, *, certificates: bool, rates: Rates) -> str:
    """The page for the rows of ``frame`` and the words of ``content``, which was built from the same rows.

    ``certificates`` says whether the pages of the certificates lie in the folder of that name beside it.
    """
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            content=content,
            certificates=certificates,
            chapters=[chapter for chapter in _chapters(frame, content, rates) if chapter.parts],
            without=list(_without(frame)),
            raw=_raw(frame),
            smoke=not frame["measurement"].fillna(True).all(),
        )
    )


def _chapters(frame: pd.DataFrame, content: Content, rates: Rates) -> Iterator[Chapter]:
    yield Chapter(
        "curves",
        "Throughput against batch size",
        "Dashed: what the card allows where a mode makes one kernel of so much (fused: a convolution with all that follows it; compile: "
        "a convolution, then one kernel; folded: batch norm in the weights; eager: a kernel each), at the FLOP rate and bandwidth that "
        "the same run measured.",
        tuple(_curves(frame, rates)),
    )
    timed = list(zip(content.sections, table.groups(frame), strict=True))
    for scenario, title, note in (
        ("single_stream", "Latency", LATENCY),
        ("offline", "Throughput", "Calls are enqueued in windows, and a window is waited for: images per second of wall time."),
        (
            "training",
            "Training",
            "Steps (forward, loss, backward, SGD) in windows that are waited for: images per second of wall time.",
        ),
    ):
        chosen = [(section, part) for section, part in timed if part["scenario"].eq(scenario).fillna(False).iloc[0]]
        parts = [_timing(section, part) for section, part in chosen]
        curves = _against_batch(frame[frame["scenario"].eq(scenario).fillna(False) & frame["device"].eq("cpu")])
        yield Chapter(title.lower(), title, note, (*parts, *curves))
    untimed = [_timing(section, part) for section, part in timed if pd.isna(part["scenario"].iloc[0])]
    yield Chapter("untimed", "Not timed", "What is known of cells for which no speed was measured.", tuple(untimed))
    yield Chapter(
        "sets",
        "Over several cells",
        "A geometric mean of speeds. The cells are averaged within each round, and the interval is over rounds, never over cells.",
        tuple(
            Part(means.title, headings=means.headings, rows=tuple(Row("measured", line) for line in means.lines), notes=means.notes)
            for means in content.sets
        ),
    )
    yield Chapter(
        "memory",
        "Memory",
        "Peak of a process of its own, which is never the one that is timed. Median over processes.",
        tuple(_memories(frame)),
    )
    yield Chapter(
        "copies",
        "Copies",
        "Of a batch from host memory to the card as the network takes it, and of its logits back, each waited for. Medians.",
        tuple(_beside(frame, None, _copies_row, ("implementation", "in ms", "out ms"), ["copy_in_s", "copy_out_s"])),
    )
    yield Chapter(
        "startup",
        "Start-up",
        "From an empty process: importing the framework, loading the weights, and the first call with any compilation. Medians. What a "
        "compiler keeps on the disk was there, left by one process before; what that one took, with nothing there, is told as cold. Modes "
        "without such files have no cold figures.",
        tuple(_beside(frame, figures.startup, _startup_row, STARTUP_HEADINGS, STARTUP)),
    )
    yield Chapter(
        "accuracy",
        "Accuracy",
        "Images classified as labelled, with Wilson's 95 % interval; flips are images whose class differs from the baseline's.",
        (
            *_against_cost(frame),
            *_beside(frame, None, _accuracy_row, ("implementation", "top-1 % [95 %]", "images", "flips"), ["top1"]),
        ),
    )


def _timing(section: Section, rows: pd.DataFrame) -> Part:
    drawn = figures.forest(rows, section.baseline)
    headings = section.headings(wide=True)
    caption = (
        "Point and 95 % interval of the speed against the baseline. Squares are told apart from it, open circles are ties. "
        "Shaded: differences too small to be counted on to be seen. Dashed: the roofline, where probes gave one."
    )
    return Part(
        section.title,
        section.verdict,
        (Figure(drawn.svg, caption),) if drawn else (),
        headings,
        tuple(_timing_row(line, len(headings)) for line in section.lines),
        section.notes,
        1,
        tuple(index for index, heading in enumerate(headings) if heading in (*section.tails, *table.NUMBERS)),
    )


def _timing_row(line: Line, columns: int) -> Row:
    badge = BADGES[line.kind]
    if line.kind == "measured":
        return Row(line.kind, line.cells(wide=True)[:-1], badge, line.proof)
    return Row(line.kind, (line.rank, line.implementation), badge, line.proof, columns - 2)


def _against_batch(rows: pd.DataFrame) -> Iterator[Part]:
    for _, part in rows.groupby(["run_id", "model", "precision", "device", "scope", "threads"], sort=False):
        drawn = figures.against_batch(part)
        if drawn:
            first = part.iloc[0]
            where = labels.SCOPES.get(first["scope"], first["scope"])
            title = f"{_what(first)}  {where}: time per batch against batch size (run {first['run_id']})"
            yield Part(title, figures=(Figure(drawn.svg, "Both axes are logarithmic; bars are 95 % intervals over processes."),))


def _what(row: pd.Series) -> str:
    return "  ".join([labels.model(row["model"]), *labels.images(row["model"], row["image_size"]), row["precision"], row["device"]])


def _beside(
    frame: pd.DataFrame,
    draw: Callable[[pd.DataFrame], figures.Picture | None] | None,
    row: Callable[[pd.Series], tuple[str, ...]],
    headings: tuple[str, ...],
    columns: list[str],
) -> Iterator[Part]:
    """What was measured beside the timing: one part per run, model, precision, device and batch size, each value once."""
    keys = ["run_id", "model", "precision", "device", *([] if columns == ["top1"] else ["batch_size"])]
    known = frame[frame[columns].notna().any(axis=1)].drop_duplicates([*keys, "implementation", "mode", *columns])
    for _, rows in known.groupby(keys, dropna=False, sort=False):
        first = rows.iloc[0]
        batch = f"  batch {first['batch_size']}" if "batch_size" in keys and pd.notna(first["batch_size"]) else ""
        drawn = draw(rows) if draw else None
        lines = tuple(Row("measured", row(each)) for _, each in rows.sort_values(columns).iterrows())
        pictures = (Figure(drawn.svg, "Shorter is better; the numbers stand below."),) if drawn else ()
        title = f"{_what(first)}{batch} (run {first['run_id']})"
        yield Part(title, "", pictures, headings, lines, right=tuple(range(1, len(headings))))


def _curves(frame: pd.DataFrame, rates: Rates) -> Iterator[Part]:
    on_gpu = frame[frame["device"].eq("cuda") & frame["scenario"].isin(["offline", "training"])]
    for (run_id, model, precision, _, scenario), rows in on_gpu.groupby(["run_id", "model", "precision", "scope", "scenario"], sort=False):
        sizes = sorted({int(size) for size in rows["batch_size"]})
        drawn = figures.throughput(rows, rates(str(run_id), str(model), str(precision), sizes, training=scenario == "training"))
        if drawn:
            first = rows.iloc[0]
            where = [labels.SCOPES.get(first["scope"], first["scope"]), *(["training"] if scenario == "training" else [])]
            title = f"{_what(first)}  {'  '.join(where)} (run {run_id})"
            yield Part(title, figures=(Figure(drawn.svg, "Bars are 95 % intervals over processes."),))


def _memories(frame: pd.DataFrame) -> Iterator[Part]:
    """Of the host on a CPU; of the card on a GPU, where what the allocator held and what the card lost are told too."""
    on_gpu = frame["device"].eq("cuda")
    yield from _beside(frame[~on_gpu], figures.memory, _memory_row, ("implementation", "peak MiB"), ["peak_memory_bytes"])
    headings = ("implementation", "allocated MiB", "reserved MiB", "of the card MiB")
    yield from _beside(frame[on_gpu], figures.memory, _card_memory_row, headings, list(CARD_MEMORY))


CARD_MEMORY = ("peak_memory_bytes", "reserved_memory_bytes", "device_memory_bytes")


def _memory_row(row: pd.Series) -> tuple[str, ...]:
    return (figures.name(row), _number(row["peak_memory_bytes"], 2**-20, 0))


def _card_memory_row(row: pd.Series) -> tuple[str, ...]:
    return (figures.name(row), *(_number(row[column], 2**-20, 0) for column in CARD_MEMORY))


def _copies_row(row: pd.Series) -> tuple[str, ...]:
    return (figures.name(row), *(_number(row[column], 1e3, 3) for column in ("copy_in_s", "copy_out_s")))


def _startup_row(row: pd.Series) -> tuple[str, ...]:
    return (figures.name(row), *(_number(row[column], 1, 2) for column in STARTUP))


def _accuracy_row(row: pd.Series) -> tuple[str, ...]:
    return (figures.name(row), _percent(row), _number(row["images"], 1, 0), _number(row["flips"], 1, 0))


CLASSIFIED = ["implementation", "mode", "model", "precision", "device", "weights_sha256"]
"""What an accuracy holds for: the same network with the same weights, in the same mode and precision."""


def _against_cost(frame: pd.DataFrame) -> Iterator[Part]:
    """Accuracy against size and measured speed, where two models have one of the same data set.

    A speed may be of another run than the accuracy, for an accuracy depends on no machine; two machines are never in one figure.
    """
    scores = frame[frame["top1"].notna() & frame["dataset"].notna()].drop_duplicates([*CLASSIFIED, "dataset"])
    timed = frame[frame["time_per_batch_s"].notna()].drop(columns=["top1", "top1_low", "top1_high"])
    for (dataset, precision, device), rows in scores.groupby(["dataset", "precision", "device"], sort=False):
        sizes = rows.sort_values(["parameters", "model", "is_baseline"], ascending=[True, True, False])
        sizes = sizes.drop_duplicates(["model", "weights_sha256"])
        drawn = figures.accuracy_against_size(sizes)
        if drawn is None:
            continue
        whose = (
            "Of each model the baseline's top-1, or else the first implementation's; where they differ, the tables below say by how much."
        )
        pictures = [Figure(drawn.svg, f"Bars are Wilson's 95 % intervals over images. {whose}")]
        of_these = timed.merge(rows[[*CLASSIFIED, "top1", "top1_low", "top1_high"]], on=CLASSIFIED)
        for (run_id, size, scope, _), part in of_these.groupby(["run_id", "batch_size", "scope", "threads"], sort=False):
            if (speeds := figures.accuracy_against_speed(part)) is not None:
                where = labels.SCOPES.get(str(scope), str(scope))
                caption = f"Measured speed at batch {size}, {where} (run {run_id}). The name of a model stands at its fastest."
                pictures.append(Figure(speeds.svg, caption))
        lines = tuple(Row("measured", _size_row(row)) for _, row in sizes.iterrows())
        title = f"{dataset}  {precision}  {device}: accuracy against size and speed"
        yield Part(title, "", tuple(pictures), SIZE_HEADINGS, lines, right=(1, 2, 3))


SIZE_HEADINGS = ("model", "parameters M", "GMAC", "top-1 % [95 %]")


def _size_row(row: pd.Series) -> tuple[str, ...]:
    return (labels.model(row["model"]), _number(row["parameters"], 1e-6, 3), _number(row["macs"], 1e-9, 4), _percent(row))


def _percent(row: pd.Series) -> str:
    return f"{row['top1'] * 100:.2f} [{row['top1_low'] * 100:.2f},{row['top1_high'] * 100:.2f}]"


def _number(value: float, scale: float, decimals: int) -> str:
    return table.MISSING if pd.isna(value) else f"{float(value) * scale:.{decimals}f}"


@dataclass(frozen=True, slots=True)
class Without:
    """A row without figures."""

    name: str
    what: str
    kind: str
    badge: str
    proof: str


def _without(frame: pd.DataFrame) -> Iterator[Without]:
    for _, row in frame.iterrows():
        kind, said = table.state(row)
        if kind != "measured":
            what = [labels.model(row["model"]), row["precision"], row["device"]]
            what += [f"batch {row['batch_size']}"] if pd.notna(row["batch_size"]) else []
            what += [labels.SCENARIOS.get(row["scenario"], row["scenario"])] if pd.notna(row["scenario"]) else []
            yield Without(figures.name(row), "  ".join(what), kind, BADGES[kind], said)


@dataclass(frozen=True, slots=True)
class Raw:
    """The frame as text, without the columns that hold nothing."""

    columns: list[str]
    rows: list[list[str]]


def _raw(frame: pd.DataFrame) -> Raw:
    columns = [name for name in DTYPES if frame[name].notna().any()]
    floats = {name for name in FIGURES if DTYPES[name] == "Float64"}
    rows = [
        ["" if pd.isna(row[name]) else f"{row[name]:.6g}" if name in floats else str(row[name]) for name in columns]
        for _, row in frame.iterrows()
    ]
    return Raw(columns, rows)
