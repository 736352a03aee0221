"""The regression gate: are the implementations of head slower, larger or less right than those of base?

Base and head are measured together, in pairs of processes that take turns, never against stored times. An implementation of which
nothing changed that a timed call runs through passes without a measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from impls.implementation import Manifest, find
from results import ledger, regression
from results.record import Cell
from results.regression import Regressions, Verdict
from suites import pairs
from suites.equivalence.certificate import certificates_for
from suites.harness import plan
from suites.harness.closure import implementation_sha256
from suites.harness.context import PROTOCOL_VERSION, Context
from suites.harness.revisions import Revision
from suites.harness.runner import FINISHED, Options, of_revision, opened, proved_sizes

MODELS = ("resnet18", "resnet50")


def run(
    request: plan.Request,
    base: Revision,
    head: Revision,
    options: Options,
    path: Path | None,
    slowdown: float,
    show: Callable[[Verdict], None],
) -> tuple[Path | None, Regressions]:
    """Judge every cell of the request; ``show`` is told of each verdict as it comes. ``path`` is the ledger, None for this machine's.

    Returns the run's folder, None where nothing had to be measured, and the verdicts. Without modes in the request each implementation's
    default mode is judged.

    Raises:
        UsageError, EnvironmentBuildError, NothingToRunError, StoreError.
        RecordError: the ledger is not valid.
    """
    planned = pairs.planned(request, find(head.root), MODELS)
    verdicts: list[Verdict] = []

    def tell(verdict: Verdict) -> None:
        verdicts.append(verdict)
        show(verdict)

    before, after = find(base.root), find(head.root)

    def unchanged(name: str) -> bool:
        return slowdown == 0 and _closure(base, before, name, request.device) == _closure(head, after, name, request.device)

    names = dict.fromkeys(cell.implementation for cell in planned.cells)
    same = {name for name in names if unchanged(name)}
    changed = tuple(cell for cell in planned.cells if cell.implementation not in same)
    for cell in planned.cells:
        if cell.implementation in same:
            tell(Verdict.plain(cell, "time", "pass", "identical by construction: nothing changed that a timed call runs through"))

    def judged(advisory: str | None) -> Regressions:
        return Regressions(base.name, head.name, base.commit, head.commit, slowdown, tuple(verdicts), advisory)

    if not changed:
        return None, judged(None)
    with opened(request, planned, options, changed) as context:
        machine_id = str(context.run.machine["machine_id"])
        entries = ledger.of_machine(ledger.read(path or ledger.path_of(machine_id)).entries, machine_id, PROTOCOL_VERSION)
        sides = [of_revision(context, *side, changed, options) for side in ((base, before), (head, after))]
        _judge(sides[0], sides[1], changed, slowdown, tell)
        found = judged(ledger.summarise(entries).advisory)
        regression.write(context.folder, found)
        (context.folder / FINISHED).touch()
    return context.folder, found


def _closure(revision: Revision, manifests: Mapping[str, Manifest], name: str, device: str) -> str | None:
    if name not in manifests or device not in manifests[name].devices:
        return None
    return implementation_sha256((revision.root,), manifests[name], device)


def _judge(base: Context, head: Context, cells: tuple[Cell, ...], slowdown: float, tell: Callable[[Verdict], None]) -> None:
    """Certificates of both sides first; what both have is measured."""
    arms = tuple(dict.fromkeys(cell.certificate_cell for cell in cells))
    sizes = proved_sizes(cells[0].device, (cell.batch_size for cell in cells))
    bases = base.manifests
    new = [arm for arm in arms if arm.implementation not in bases or arm.mode not in bases[arm.implementation].modes_on(arm.device)]
    for arm in new:
        tell(Verdict.plain(arm, "certificate", "pass", "base does not have it: there is nothing to compare with"))
    old = tuple(arm for arm in arms if arm not in new)
    before, after = certificates_for(base, old, sizes), certificates_for(head, old, sizes)
    sound = []
    for arm in old:
        was, now = before[arm].status == "ok", after[arm].status == "ok"
        if was and now:
            tell(Verdict.plain(arm, "certificate", "pass", "certified on both sides"))
            sound.append(arm)
        elif was:
            tell(Verdict.plain(arm, "certificate", "regressed", f"head is not certified: {after[arm].reason}"))
        elif now:
            tell(Verdict.plain(arm, "certificate", "pass", f"base was not certified ({before[arm].reason}), head is"))
        else:
            tell(Verdict.plain(arm, "certificate", "invalid", f"neither side is certified; head: {after[arm].reason}"))
    timed = [cell for cell in cells if cell.certificate_cell in sound]
    sides = pairs.Side(base, before), pairs.Side(head, after, slowdown)
    for compared, beside in pairs.compare(*sides, timed, "regression"):
        for each in compared:
            tell(Verdict.of(each.cell, "time", each.judgement))
        tell(Verdict.of(beside.arm, "peak_memory", beside.memory))
        tell(Verdict.of(beside.arm, "startup", beside.startup))
