"""What the command lists without measuring: the plan, the models, public checkpoints, the doctor's findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from impls import models as known
from impls import spec
from impls.implementation import Manifest
from impls.weights import trained
from results.record import Cell
from suites.harness import doctor
from suites.harness.plan import Plan


def plan_document(planned: Plan) -> dict[str, Any]:
    """The plan as JSON values."""
    return {
        "cells": [{name: getattr(cell, name) for name in Cell.__slots__} for cell in planned.cells],
        "skipped": [dataclasses.asdict(skip) for skip in planned.skips],
        "effort": dataclasses.asdict(planned.effort),
        "estimated_s": planned.estimated_s,
        "reductions": list(planned.reductions),
        "smoke": planned.smoke,
        "energy_absent": planned.energy_absent,
        "doubled_from": planned.doubled_from,
    }


def plan(planned: Plan, manifests: Mapping[str, Manifest]) -> None:
    """The plan for people."""
    console = Console()
    effort = planned.effort
    console.print(
        f"{len(planned.cells)} cells; {effort.processes} processes per implementation, {effort.blocks} visits per cell and process; "
        f"about {planned.estimated_s / 60:.0f} minutes with the environments built."
    )
    for line in planned.reductions:
        console.print(f"To keep within the budget: {line}.")
    if planned.energy_absent is not None:
        console.print(Text(f"Energy will not be measured: {planned.energy_absent}."))
    if planned.doubled_from is not None:
        console.print(f"Above {planned.doubled_from} images each mode is tried until a batch does not fit.")
    shown = Table(box=None, pad_edge=False)
    for heading in ("model", "precision", "batch", "scope", "scenario", "implementations"):
        shown.add_column(heading)
    rows: dict[tuple[str, ...], list[str]] = {}
    for cell in planned.cells:
        key = tuple(str(part) for part in (cell.model, cell.precision, cell.batch_size, cell.scope, cell.scenario))
        rows.setdefault(key, []).append(manifests[cell.implementation].modes_on(cell.device)[cell.mode].title)
    for key, names in rows.items():
        shown.add_row(*key, ", ".join(names))
    console.print(shown)
    for skip in planned.skips:
        console.print(Text(f"skipped: {skip.implementation} {skip.mode} {skip.model} {skip.precision}: {skip.reason}"))


def model_rows() -> list[dict[str, Any]]:
    """Every named model with its size and cost."""
    rows = []
    for name in known.NAMES:
        model = known.get(name)
        rows.append(
            {
                "model": name,
                "parameters": spec.parameter_count(model),
                "macs": spec.macs(model),
                "input_chw": list(model.input_chw),
                "weights": "digits, trained by the project" if trained.path(name) else "synthesised; bring weights for accuracy",
            }
        )
    return rows


def models(rows: Sequence[Mapping[str, Any]]) -> None:
    """The models for people."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("model", "parameters", "GMAC", "input", "weights"):
        shown.add_column(heading, justify="right" if heading in ("parameters", "GMAC") else "left")
    for row in rows:
        size = "x".join(map(str, row["input_chw"]))
        shown.add_row(row["model"], f"{row['parameters']:,}", f"{row['macs'] / 1e9:.4f}", size, row["weights"])
    console = Console()
    console.print(shown)
    console.print("Also cifar_resnetD and cifar_plainD for any D = 6n + 2, and the shortcut options _a, _b, _c of every ResNet.")


def checkpoint_rows(named: str | None) -> list[dict[str, Any]]:
    """What was published of each public checkpoint whose file's name holds ``named``, and the commands that hold it to that."""
    from impls.weights.checkpoints import public  # NumPy comes with it, which a plan need not wait for

    return [{**dataclasses.asdict(each), "check": list(each.check)} for each in public.KNOWN if named is None or named in each.file]


def checkpoints(rows: Sequence[Mapping[str, Any]], *, whole: bool) -> None:
    """A line each, or all of it with the commands."""
    if whole:
        for row in rows:
            five = f", top-5 {row['top5']} %" if row["top5"] is not None else ""
            but = f"; its publisher does not say {row['unsaid']}" if row["unsaid"] else ""
            click.echo(
                f"{row['file']}: {row['model']}, top-1 {row['top1']} %{five} on {row['dataset']}, prepared as {row['preprocess']}{but}"
            )
            click.echo(
                f"  {'SHA-256 begins with ' + row['sha256'] if row['sha256'] else 'MD5 ' + row['md5']}; {row['licence']}; {row['source']}"
            )
            click.echo("".join(f"  {command}\n" for command in row["check"]), nl=False)
        return
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("file", "model", "data", "preprocessing", "top-1 %", "top-5 %"):
        shown.add_column(heading, justify="right" if "%" in heading else "left", no_wrap=True)
    for row in rows:
        figures = (f"{row['top1']:g}", "-" if row["top5"] is None else f"{row['top5']:g}")
        shown.add_row(row["file"], row["model"], row["dataset"], row["preprocess"], *figures)
    console = Console(width=max(120, Console().width))
    console.print(shown)
    console.print("`levelfield weights known FILE` tells hash, licence, source and the commands that hold a file to its figure.")


def findings(found: Sequence[doctor.Finding]) -> None:
    """The doctor's findings for people."""
    console = Console()
    for each in found:
        mark = "[green]ok[/]" if each.ok else "[red]no[/]"
        console.print(mark, Text(f" {each.what}: {each.found}"), end="")
        console.print(Text(f"  -> {each.mend}") if each.mend and not each.ok else "")
