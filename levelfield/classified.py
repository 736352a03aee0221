"""What ``levelfield accuracy`` shows: a row per implementation, the images that flip, ensembles, and the exit code that follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from levelfield.cli import NO, USAGE, YES
from reports import labels
from results import statistics
from results.record import Record
from suites import published
from suites.evaluation import Evaluation

MOST_SHOWN = 10
"""Lines of one kind on the screen; the document has all."""

SIGNIFICANT = 0.05

HOLDS = {True: f"within {published.POINTS}", False: f"MORE than {published.POINTS} away: not what was published"}


def document(found: Evaluation) -> dict[str, Any]:
    """Lists of rows, flips, disagreements, oracle, ensembles, published and skipped; accuracies are fractions, but in published percent."""
    return {
        "rows": [_row(record) for record in found.records],
        "flips": [dict(flip) for flip in found.flips],
        "disagreements": [dict(pair) for pair in found.pairs],
        "oracle": [dict(each) for each in found.oracle],
        "ensembles": [dict(each) for each in found.ensembles],
        "published": [dict(each) for each in found.published],
        "skipped": [dataclasses.asdict(skip) for skip in found.skips],
    }


def _row(record: Record) -> dict[str, Any]:
    cell, data = record.cell, record.data or {}
    top1, images = record.measurements.get("top1"), record.measurements.get("images")
    return {
        "implementation": cell.implementation,
        "mode": cell.mode,
        "model": cell.model,
        "weights_sha256": record.model.weights_sha256 if record.model else None,
        "precision": cell.precision,
        "device": cell.device,
        "dataset": data.get("dataset"),
        "inputs_sha256": record.inputs.sha256 if record.inputs else None,
        "preprocess": data.get("preprocess"),
        "views": data.get("views"),
        "status": record.status,
        "reason": record.reason,
        "certificate": record.certificate_id,
        "images": images,
        "unreadable": data.get("unreadable", []),
        "top1": top1,
        "top5": record.measurements.get("top5"),
        "top1_interval": None if top1 is None or not images else statistics.wilson(round(top1 * images), round(images)),
    }


def show(found: Evaluation) -> None:
    """A line per implementation, then what could not be classified, and where implementations differ."""
    console = Console(width=max(100, min(140, Console().width)))
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("implementation", "model", "precision", "dataset", "images", "top-1 % [95 %]", "top-5 %", "proof"):
        shown.add_column(heading, no_wrap=True)
    rows = [_row(record) for record in found.records]
    for row in rows:
        if row["status"] == "ok":
            proof = f"ok {labels.short(row['certificate'])}"
            shown.add_row(_name(row), row["model"], row["precision"], row["dataset"], str(round(row["images"])), *_percent(row), proof)
    for each in found.ensembles:
        members = f"ensemble of {len(each['members'])}"
        shown.add_row(_name(each), members, each["precision"], each["dataset"], str(each["images"]), *_percent(each), "as its members")
    if shown.row_count:
        console.print(shown)
    for line in _lines(found, rows):
        console.print(Text(line))


def _lines(found: Evaluation, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"{_name(row)}  {row['model']}  {row['precision']}  {row['status'].replace('_', ' ')}: {row['reason']}"
        for row in rows
        if row["status"] != "ok"
    ]
    lines += [
        f"{labels.implementation(skip.implementation, skip.mode)}  {skip.model}  {skip.precision}  skipped: {skip.reason}"
        for skip in found.skips
    ]
    lines += dict.fromkeys(
        f"The oracle (NumPy float64): {each['model']} on {each['dataset']}: {_share(each['top1'])} %." for each in found.oracle
    )
    bad: Sequence[Mapping[str, Any]] = next((row["unreadable"] for row in rows if row["unreadable"]), [])
    if bad:
        lines.append(f"{len(bad)} images could not be read; they are counted, and not as right:")
        lines += _some([f"  {each['name']} {each['reason']}" for each in bad])
    lines += _published(found.published)
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for pair in found.pairs:
        groups.setdefault(_group(pair), []).append(pair)
    for group, pairs in groups.items():
        lines += _differences(pairs, [flip for flip in found.flips if _group(flip) == group])
    return lines


def _published(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether each public checkpoint has the accuracy that was published of it."""
    lines: list[str] = []
    for name in dict.fromkeys(claim["file"] for claim in claims):
        own = [claim for claim in claims if claim["file"] == name]
        known = own[0]
        figures = f"top-1 {known['top1']} %" + ("" if known["top5"] is None else f" and top-5 {known['top5']} %")
        lines.append(f"Published of {name}: {figures} ({known['source']}).")
        for claim in own:
            apart = ", ".join(
                f"{key.replace('top', 'top-')} {claim[f'{key}_points']:+.3f}" for key in ("top1", "top5") if claim[key] is not None
            )
            verdict = f"not held to it: {claim['why']}" if claim["why"] else HOLDS[claim["holds"]]
            lines.append(f"  {_name(claim)} {claim['precision']}: {apart} points, {verdict}")
    return lines


def _differences(pairs: Sequence[Mapping[str, Any]], flips: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is said of one group."""
    about = pairs[0]
    names = list(dict.fromkeys(name for pair in pairs for name in (pair["first"], pair["second"])))
    count = "no image" if not flips else f"{len(flips)} image{'s' if len(flips) > 1 else ''}"
    lines = [f"{about['model']} {about['precision']}: {count} put in different classes by {', '.join(names)}."]
    for flip in flips[:MOST_SHOWN]:
        said = ", ".join(f"{name} {flip['predictions'][name]} (margin {flip['margins'][name]:.3g})" for name in names)
        bound = "" if flip["bound"] is None else f"; margins add up to {flip['gap']:.3g}, the certificates allow {flip['bound']:.3g}"
        lines.append(f"  {flip['name']}, label {flip['label']}: {said}{bound}")
    if len(flips) > MOST_SHOWN:
        lines.append(f"  and {len(flips) - MOST_SHOWN} more (--json has all)")
    judged = [flip for flip in flips if flip["within"] is not None]
    if beyond := [flip for flip in judged if not flip["within"]]:
        lines.append(f"{len(beyond)} of them BEYOND what the certificates allow: rounding does not explain them.")
    elif judged:
        lines.append("Rounding explains all of them." if len(judged) == len(flips) else f"Rounding explains the {len(judged)} widest.")
    return lines + [
        f"{pair['first']} and {pair['second']} are not equally often right: {pair['only_first_right']} to {pair['only_second_right']} "
        f"images, McNemar's p = {pair['p']:.2g}."
        for pair in pairs
        if pair["p"] < SIGNIFICANT
    ]


def code(found: Evaluation, *, by_name: bool) -> int:
    """0; 1 where something asked for is missing or not as it must be; 2 where nothing could be classified.

    1: an arm is not certified, failed or was asked for by name in vain, images could not be read, a flip is beyond its bound, or an
    accuracy is not the published one. ``by_name`` says that the models were named, so that one without weights was asked for in vain.
    """
    statuses = {record.status for record in found.records}
    if statuses - {"ok", "skipped"} or any(skip.by_name for skip in found.skips) or (by_name and "skipped" in statuses):
        return NO
    if any((record.data or {}).get("unreadable") for record in found.records) or any(flip["within"] is False for flip in found.flips):
        return NO
    if any(claim["holds"] is False for claim in found.published):
        return NO
    return YES if "ok" in statuses else USAGE


def _name(row: Mapping[str, Any]) -> str:
    return labels.implementation(row["implementation"], row["mode"])


def _group(each: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(each[name] for name in ("model", "weights_sha256", "precision", "device", "dataset"))


def _share(value: float) -> str:
    return f"{100 * value:.2f}"


def _percent(row: Mapping[str, Any]) -> tuple[str, str]:
    low, high = row["top1_interval"]
    return f"{_share(row['top1'])} [{_share(low)},{_share(high)}]", "-" if row["top5"] is None else _share(row["top5"])


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_SHOWN
    return lines[:MOST_SHOWN] + ([f"  and {more} more (--json has all)"] if more > 0 else [])
