"""A thing compared with itself, through the gate's own path, and what comes of it written into this machine's ledger.

An interval that excludes 1 is a false difference, a "regressed" a false alarm; how often they come is counted and printed with every
report. With a planted slowdown the same comparisons measure the power.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from impls.implementation import ROOT, find
from results import ledger, provenance
from results.ledger import Entry
from results.record import Cell, utc_now
from results.regression import Verdict
from suites import pairs
from suites.harness import burner, plan
from suites.harness.context import PROTOCOL_VERSION, Context
from suites.harness.runner import FINISHED, NothingToRunError, Options, certificates_of, opened, proved_sizes

Condition = Literal["quiet", "burner"]

MODELS = ("cifar_resnet20",)


def run(request: plan.Request, options: Options, path: Path | None, condition: Condition, slowdown: float) -> Iterator[Entry]:
    """Compare every certified cell of the request with itself; each entry is in the ledger (at ``path``, or this machine's) when it comes.

    Without modes in the request each implementation's default mode is compared.

    Raises:
        UsageError, EnvironmentBuildError, NothingToRunError, StoreError.
        RecordError: the ledger's last line is not valid.
    """
    planned = pairs.planned(request, find(), MODELS)
    with opened(request, planned, options, planned.cells) as context:
        sizes = proved_sizes(planned.cells[0].device, (cell.batch_size for cell in planned.cells))
        certificates = certificates_of(context, planned.arms(), sizes)
        cells = [cell for cell in planned.cells if certificates[cell.certificate_cell].status == "ok"]
        if not cells:
            raise NothingToRunError("no cell of the request has a certificate")
        with burner.burning() if condition == "burner" else contextlib.nullcontext():
            yield from _compared(context, cells, certificates, path, condition, slowdown)
        (context.folder / FINISHED).touch()


def _compared(
    context: Context, cells: Sequence[Cell], certificates: pairs.Certificates, path: Path | None, condition: Condition, slowdown: float
) -> Iterator[Entry]:
    commit = provenance.code(ROOT).commit
    machine_id = str(context.run.machine["machine_id"])
    path = path or ledger.path_of(machine_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    base, head = pairs.Side(context, certificates), pairs.Side(context, certificates, slowdown)
    for compared, _ in pairs.compare(base, head, cells, "aa"):
        for each in compared:
            ratio, outcome = each.ratio, Verdict.of(each.cell, "time", each.judgement).outcome
            if outcome == "invalid" or ratio.value is None or ratio.low is None or ratio.high is None:
                context.say(f"{each.cell.key}: no comparison: {each.judgement.reason}")
                continue
            entry = Entry(
                created_utc=utc_now(),
                machine_id=machine_id,
                run_id=context.run.run_id,
                commit=commit,
                protocol_version=PROTOCOL_VERSION,
                condition=condition,
                cell=each.cell,
                pairs=ratio.pairs,
                # The ledger holds times, head over base; a ratio is of speeds.
                ratio=1 / ratio.value,
                low=1 / ratio.high,
                high=1 / ratio.low,
                planted_slowdown=slowdown,
                verdict=outcome,
            )
            ledger.append(path, entry)
            yield entry
