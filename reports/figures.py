"""Figures as inline SVG: text stays text, ink follows the page's colour, and every figure says in words what it shows.

The colours are Okabe and Ito's ("Color Universal Design", 2008), told apart with every common form of colour blindness;
shape and fill carry the same information, so a print without colour loses nothing.
"""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from reports import labels

# A colour that nothing else uses: after drawing it becomes the page's own text colour, light or dark.
INK = "#010203"
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)
MARKERS = "osD^vP"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
WIDTH = 8.2  # inches
RATIOS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 5, 7, 10, 20, 50)


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG element to be put into a page, and what it shows in one sentence."""

    svg: str
    alt: str


def name(row: pd.Series) -> str:
    """How a figure calls a row of the frame."""
    return labels.implementation(row["implementation"], row["mode"])


@mpl.rc_context(STYLE)
def forest(rows: pd.DataFrame, baseline: str) -> Picture | None:
    """Speed against the baseline with its 95 % interval, a line per row; None where no row has a ratio.

    The shaded band is the smallest difference that this run could be expected to see; the dashed line is the roofline.
    """
    shown = rows[rows["ratio"].notna()].sort_values("ratio")
    if shown.empty:
        return None
    figure, axes = drawing(0.9 + 0.38 * (len(shown) + 1))
    detectable = rows["mde"].max()
    if pd.notna(detectable):
        axes.axvspan(1 / (1 + detectable), 1 + detectable, color=INK, alpha=0.10, lw=0)
    axes.axvline(1, color=INK, lw=1)
    for height, (_, row) in enumerate(shown.iterrows()):
        tied = bool(row["tie"])
        color = INK if tied else (BLUE if row["ratio"] > 1 else VERMILION)
        axes.hlines(height, row["ratio_low"], row["ratio_high"], color=color, lw=2)
        axes.plot(row["ratio"], height, "o" if tied else "s", color=color, mfc="none" if tied else color, ms=6)
    height = len(shown)
    axes.plot(1, height, "D", color=INK, ms=5)
    axes.set_yticks(range(height + 1), [*(name(row) for _, row in shown.iterrows()), f"{baseline} (baseline)"])
    axes.set_ylim(-0.6, height + 0.6)
    low, high = min(shown["ratio_low"].min(), 1), max(shown["ratio_high"].max(), 1)
    ceiling = _ceiling(rows)
    if ceiling is not None and ceiling < 3 * high:
        axes.axvline(ceiling, color=INK, lw=1, ls="--")
        axes.annotate("roofline", (ceiling, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=9)
        high = max(high, ceiling)
    _ratio_axis(axes, low / 1.04, high * 1.04)
    axes.set_xlabel("speed against the baseline (right is faster), 95 % interval over process pairs")
    told = [f"{name(row)} {row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]" for _, row in shown[::-1].iterrows()]
    return picture(figure, f"Speed against {baseline}, with 95 % intervals: {'; '.join(told)}.")


def _ceiling(rows: pd.DataFrame) -> float | None:
    """The roofline as a ratio to the baseline."""
    fraction = rows.loc[rows["is_baseline"] & rows["roofline_fraction"].notna(), "roofline_fraction"]
    return None if fraction.empty else 1 / float(fraction.iloc[0])


def _ratio_axis(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [tick for tick in RATIOS if low <= tick <= high]
    if len(ticks) < 3:
        step = 10 ** math.floor(math.log10(high - low))
        ticks = [1 + n * step for n in range(-20, 21) if low <= 1 + n * step <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}x"))


@mpl.rc_context(STYLE)
def against_batch(rows: pd.DataFrame) -> Picture | None:
    """Time per batch against batch size with intervals; None unless some implementation has two batch sizes."""
    shown = rows[rows["time_per_batch_s"].notna() & rows["batch_size"].notna()]
    groups = [(key, part.sort_values("batch_size")) for key, part in shown.groupby(["implementation", "mode"], sort=True)]
    if not any(part["batch_size"].nunique() > 1 for _, part in groups):
        return None
    figure, axes = drawing(3.8)
    for index, ((implementation, mode), part) in enumerate(groups):
        milliseconds = part[["time_per_batch_s", "time_per_batch_low_s", "time_per_batch_high_s"]].astype(float) * 1e3
        middle = milliseconds["time_per_batch_s"]
        below = (middle - milliseconds["time_per_batch_low_s"]).fillna(0)
        above = (milliseconds["time_per_batch_high_s"] - middle).fillna(0)
        axes.errorbar(
            part["batch_size"].astype(float),
            middle,
            yerr=[below, above],
            color=CYCLE[index % len(CYCLE)],
            marker=MARKERS[index % len(MARKERS)],
            ls="-" if index < len(CYCLE) else "--",
            ms=5,
            lw=1.4,
            capsize=2,
            label=labels.implementation(str(implementation), str(mode)),
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({float(size) for size in shown["batch_size"]})))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("batch size, images")
    axes.set_ylabel("ms per batch")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    sizes = ", ".join(str(size) for size in sorted(set(shown["batch_size"])))
    return picture(figure, f"Time per batch at batch sizes {sizes} for {len(groups)} implementations; the numbers stand in the tables.")


@mpl.rc_context(STYLE)
def throughput(rows: pd.DataFrame, lines: Mapping[str, Mapping[int, float]]) -> Picture | None:
    """Images per second against batch size with intervals, and the rooflines dashed; None unless there are two batch sizes.

    ``lines`` are images per second by batch size, by what they are the roofline of.
    """
    shown = rows[rows["throughput_images_per_s"].notna()]
    if shown["batch_size"].nunique() < 2:
        return None
    figure, axes = drawing(4.6)
    groups = shown.sort_values("batch_size").groupby(["implementation", "mode"], sort=True)
    for index, ((implementation, mode), part) in enumerate(groups):
        middle = part["throughput_images_per_s"].astype(float)
        below = (middle - part["throughput_low_images_per_s"].astype(float)).fillna(0)
        above = (part["throughput_high_images_per_s"].astype(float) - middle).fillna(0)
        axes.errorbar(
            part["batch_size"].astype(float),
            middle,
            yerr=[below, above],
            color=CYCLE[index % len(CYCLE)],
            marker=MARKERS[index % len(MARKERS)],
            ls="-" if index < len(CYCLE) else ":",
            ms=5,
            lw=1.4,
            capsize=2,
            label=labels.implementation(str(implementation), str(mode)),
        )
    for line, points in lines.items():
        axes.plot(list(points), list(points.values()), color=INK, lw=1, ls="--", marker="_" if len(points) == 1 else "")
        size, rate = max(points.items())
        axes.annotate(f"{line} roofline", (size, rate), (0, 3), textcoords="offset points", ha="right", va="bottom", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted({float(size) for size in shown["batch_size"]})))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch size, images")
    axes.set_ylabel("images per second")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    best = shown.sort_values("throughput_images_per_s").iloc[-1]
    return picture(
        figure,
        f"Images per second against batch size for {len(groups)} implementations; most is {best['throughput_images_per_s']:.4g} at batch "
        f"{best['batch_size']} by {name(best)}; the numbers stand in the tables.",
    )


@mpl.rc_context(STYLE)
def accuracy_against_size(rows: pd.DataFrame) -> Picture | None:
    """Top-1 with its 95 % interval against parameters and multiply-accumulates, a point per row; None unless there are two models."""
    shown = rows[rows[["top1", "parameters", "macs"]].notna().all(axis=1)]
    if shown["model"].nunique() < 2:
        return None
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    left = figure.add_subplot(1, 2, 1)
    panels = (
        (left, "parameters", 1e-6, "parameters, millions"),
        (figure.add_subplot(1, 2, 2, sharey=left), "macs", 1e-9, "multiply-accumulates of an image, billions"),
    )
    for axes, column, scale, unit in panels:
        across = shown[column].astype(float) * scale
        axes.errorbar(
            across, shown["top1"].astype(float) * 100, yerr=_top1_bars(shown), color=BLUE, marker="o", ms=5, ls="", lw=1, capsize=2
        )
        _decades(axes, across)
        axes.set_xlabel(unit)
        axes.set_ylabel("top-1, % [95 %]" if axes is left else "")
    for axes, column, scale, _ in panels:
        across = shown[column].astype(float) * scale
        _name_models(axes, shown, across, list(zip(across, shown["top1"].astype(float) * 100, strict=True)))
    told = [
        f"{labels.model(row['model'])} {row['top1'] * 100:.1f} % with {row['parameters'] * 1e-6:.3g} million parameters and "
        f"{row['macs'] * 1e-9:.3g} billion multiply-accumulates"
        for _, row in shown.iterrows()
    ]
    return picture(figure, f"Top-1 against size: {'; '.join(told)}.")


@mpl.rc_context(STYLE)
def accuracy_against_speed(rows: pd.DataFrame) -> Picture | None:
    """Top-1 against images per second, both with 95 % intervals, a point per implementation and model; None unless there are two models."""
    shown = rows[rows["top1"].notna() & rows["time_per_batch_s"].notna()]
    if shown["model"].nunique() < 2:
        return None
    figure, axes = drawing(4.0)
    batch = shown["batch_size"].astype(float)
    speeds = batch / shown["time_per_batch_s"].astype(float)
    below = (speeds - batch / shown["time_per_batch_high_s"].astype(float)).fillna(0)
    above = (batch / shown["time_per_batch_low_s"].astype(float) - speeds).fillna(0)
    for index, ((implementation, mode), part) in enumerate(shown.groupby(["implementation", "mode"], sort=True)):
        at = part.index
        axes.errorbar(
            speeds[at],
            part["top1"].astype(float) * 100,
            xerr=[below[at], above[at]],
            yerr=_top1_bars(part),
            color=CYCLE[index % len(CYCLE)],
            marker=MARKERS[index % len(MARKERS)],
            mfc=None if index < len(CYCLE) else "none",
            ls="",
            ms=5,
            lw=1,
            capsize=2,
            label=labels.implementation(str(implementation), str(mode)),
        )
    fastest = shown.loc[speeds.groupby([shown["model"], shown["weights_sha256"]]).idxmax()]
    _decades(axes, speeds)
    axes.set_xlabel("images per second (right is faster)")
    axes.set_ylabel("top-1, % [95 %]")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    _name_models(axes, fastest, speeds[fastest.index], list(zip(speeds, shown["top1"].astype(float) * 100, strict=True)))
    told = [
        f"{labels.model(row['model'])} {row['top1'] * 100:.1f} % at {speed:.4g} by {name(row)}"
        for speed, (_, row) in zip(speeds[fastest.index], fastest.iterrows(), strict=True)
    ]
    return picture(figure, f"Top-1 against images per second, of each model the fastest: {'; '.join(told)}.")


def _top1_bars(rows: pd.DataFrame) -> list[pd.Series]:
    percent = rows[["top1", "top1_low", "top1_high"]].astype(float) * 100
    return [percent["top1"] - percent["top1_low"], percent["top1_high"] - percent["top1"]]


SIDES = (("left", 6, "bottom", 3), ("right", -6, "bottom", 3), ("left", 6, "top", -3), ("right", -6, "top", -3), ("left", 10, "center", 0))
"""Where a name may stand beside its point: alignment and offset in points, across and up."""


def _name_models(axes: Axes, rows: pd.DataFrame, across: Iterable[float], points: Sequence[tuple[float, float]]) -> None:
    """Each model's name beside its point, where it covers no other name and none of ``points``; all else must be drawn before."""
    axes.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform(points)]
    for x, (_, row) in zip(across, rows.iterrows(), strict=True):
        where = (x, float(row["top1"]) * 100)
        name = axes.annotate(labels.model(row["model"]), where, (0, 0), textcoords="offset points", fontsize=8)
        for ha, right, va, up in SIDES:
            name.set(ha=ha, va=va)
            name.xyann = (right, up)
            box = name.get_window_extent()
            if not box.count_overlaps(taken) and axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1:
                break
        taken.append(box)


def _decades(axes: Axes, across: pd.Series) -> None:
    """A logarithmic axis with room at its ends and plain numbers."""
    axes.set_xscale("log")
    axes.set_xlim(across.min() / 1.3, across.max() * 1.3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def memory(rows: pd.DataFrame) -> Picture | None:
    """Peak memory of the process, a bar per row; None where it was not measured."""
    return _bars(rows, {"peak memory": ("peak_memory_bytes", 2**-20, BLUE)}, "peak memory, MiB")


def startup(rows: pd.DataFrame) -> Picture | None:
    """Import, load and first call, stacked, a bar per row; None where they were not measured."""
    parts = {"import": ("import_s", 1.0, SKY), "load": ("load_s", 1.0, ORANGE), "first call": ("first_call_s", 1.0, BLUE)}
    return _bars(rows, parts, "seconds from the start of the import to the first result")


@mpl.rc_context(STYLE)
def _bars(rows: pd.DataFrame, parts: dict[str, tuple[str, float, str]], unit: str) -> Picture | None:
    columns = [column for column, _, _ in parts.values()]
    shown = rows[rows[columns].notna().all(axis=1)]
    shown = shown.assign(total=shown[columns].sum(axis=1)).sort_values("total", ascending=False)
    if shown.empty:
        return None
    figure, axes = drawing(0.9 + 0.38 * len(shown) + (0.3 if len(parts) > 1 else 0))
    left = [0.0] * len(shown)
    for title, (column, scale, color) in parts.items():
        widths = [float(value) * scale for value in shown[column]]
        axes.barh(range(len(shown)), widths, left=left, color=color, height=0.62, label=title, edgecolor=INK, linewidth=0.4)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    for height, total in enumerate(left):
        text = f"{total:.3g}" if total < 100 else f"{total:.0f}"
        axes.annotate(text, (total, height), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(shown)), [name(row) for _, row in shown.iterrows()])
    axes.set_xlim(0, max(left) * 1.12)
    axes.set_xlabel(unit)
    if len(parts) > 1:
        axes.legend(frameon=False, ncols=len(parts), loc="lower left", bbox_to_anchor=(0, 1))
    told = "; ".join(f"{name(row)} {total:.4g}" for (_, row), total in zip(shown.iterrows(), left, strict=True))
    return picture(figure, f"{unit[0].upper()}{unit[1:]}: {told}.")


def drawing(height: float) -> tuple[Figure, Axes]:
    """A figure of the page's width and ``height`` inches, with its one plot."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def picture(figure: Figure, alt: str) -> Picture:
    """The figure as an element of its own: no prologue, ids that no other figure has, ink in the page's colour."""
    stream = io.StringIO()
    salt = f"f{hashlib.sha256(alt.encode()).hexdigest()[:12]}"
    with mpl.rc_context({"svg.hashsalt": alt}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\bid=\"", f'id="{salt}-', svg)
    svg = re.sub(r"(href=\"|url\()#", rf"\g<1>#{salt}-", svg)
    svg = svg.replace(INK, "currentColor")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt, quote=True)}" ', 1)
    return Picture(svg, alt)
