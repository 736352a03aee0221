"""Start-up time and peak host memory of a fresh process that does nothing but one cell.

Start-up is split into import (framework and settings), load (weight file, folding, building) and first call (tracing, compiling,
first execution). It is measured at each arm's smallest batch, in a process that has the machine to itself. Of a mode whose compiler
keeps files, there are two such processes: a cold one, which finds its caches empty, and a warm one, which finds what the cold one left.
Memory is VmHWM, the largest resident size that the kernel saw: after the import, over everything, and while it runs. What runs beside
a process does not change its memory, so the larger batches' processes go two at a time.

On a GPU only the smallest batch has such a process, which has the card to itself: what the card's memory grew by is the process's, with
its context and libraries. Of larger batches the processes that time them tell what their allocators took (``suites.inference``).
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from results.record import Cell, Record
from suites.harness import requests
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, START_TIMEOUT_S, Context, Seeds
from suites.harness.memory import NO_PEAK
from suites.harness.process import WorkerError, WorkerProcess

RUNNING_CALLS = 3

Afterwards = Callable[[Cell, WorkerProcess, Mapping[str, Any], str], None]
"""What else is asked of a process once it has been measured: cell, worker, what it said at its start, the network's handle.

It makes records of its own failures."""


def run(
    context: Context,
    cells: Sequence[Cell],
    processes: int,
    certificates: Mapping[Cell, Record],
    afterwards: Afterwards,
    measured: Callable[[], None],
    cold: Collection[Cell] = (),
) -> None:
    """Measure each cell in ``processes`` fresh processes, the arms in ``cold`` also with empty caches.

    What the store holds already is not measured again.
    """
    smallest: dict[Cell, Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.batch_size or 0):
        smallest.setdefault(cell.certificate_cell, cell)
    for number in range(processes):

        def one(cell: Cell, *, times: bool, caches: Path | None = None, number: int = number) -> None:
            what = "start-up and memory" if times else "memory"
            context.say(f"{what} of {cell.implementation} {cell.mode} {cell.model} batch {cell.batch_size}")
            _one(context, cell, number, certificates[cell.certificate_cell].record_id, afterwards, times=times, caches=caches)

        for cell in cells:
            if smallest[cell.certificate_cell] == cell and not context.store.has(context.run.run_id, "startup", cell, number):
                with tempfile.TemporaryDirectory(dir=context.scratch) as folder:
                    certificate_id, caches = certificates[cell.certificate_cell].record_id, Path(folder)
                    warmed = cell.certificate_cell in cold and _cold(context, cell, number, certificate_id, caches)
                    one(cell, times=True, caches=caches if warmed else None)
                measured()
        with ThreadPoolExecutor(2) as executor:
            larger = [cell for cell in cells if cell.device == "cpu" and smallest[cell.certificate_cell] != cell]
            rest = [cell for cell in larger if not context.store.has(context.run.run_id, "memory", cell, number)]
            for _ in executor.map(partial(one, times=False), rest):
                measured()


def _cold(context: Context, cell: Cell, index: int, certificate_id: str, caches: Path) -> bool:
    """Start a process with the empty folder ``caches`` for what its compiler keeps, and store what that took.

    Whether the caches are filled now; a failure is a record.
    """
    context.say(f"start-up with empty caches of {cell.implementation} {cell.mode} {cell.model} batch {cell.batch_size}")
    about, seeds = requests.subject(context, cell), Seeds(index, secrets.randbits(31))
    fields: dict[str, Any] = {
        "process": seeds.as_record(),
        "certificate_id": certificate_id,
        "model": about.as_record(cell.precision, cell.batch_size),
    }
    try:
        with context.launch(cell, cell.precision, seeds, purpose=f"cold-{cell.model}-{cell.batch_size}", caches=caches) as worker:
            hello = worker.call("start", START_TIMEOUT_S)
            loaded, first = _built(context, cell, worker)
    except WorkerError as error:
        context.store.append(context.failure("cold_startup", cell, error, **fields))
        return False
    taken = {"import_s": hello["import_s"], "load_s": loaded["load_s"], "first_call_s": first["first_call_s"]}
    fields |= {"settings": first["settings"], "software": hello["packages"]}
    context.store.append(context.record("cold_startup", cell, measurements=taken, **fields))
    return True


def _built(context: Context, cell: Cell, worker: WorkerProcess) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What the worker says of loading the network and of its first call."""
    (prepare, to_prepare), (put, to_put) = requests.prepare(context, cell, "cell"), requests.put(context, cell, "cell")
    loaded = worker.call(prepare, BUILD_TIMEOUT_S, **to_prepare)
    return loaded, worker.call(put, BUILD_TIMEOUT_S, **to_put)


def _one(
    context: Context, cell: Cell, index: int, certificate_id: str, afterwards: Afterwards, *, times: bool, caches: Path | None
) -> None:
    about = requests.subject(context, cell)
    seeds = Seeds(index, secrets.randbits(31))
    fields: dict[str, Any] = {
        "process": seeds.as_record(),
        "certificate_id": certificate_id,
        "model": about.as_record(cell.precision, cell.batch_size),
    }
    before = context.card.memory_bytes()[1] if context.card else None
    try:
        with context.launch(cell, cell.precision, seeds, purpose=f"start-{cell.model}-{cell.batch_size}", caches=caches) as worker:
            hello = worker.call("start", START_TIMEOUT_S)
            imported = worker.call("memory", CALL_TIMEOUT_S, reset=False)
            loaded, first = _built(context, cell, worker)
            built = worker.call("memory", CALL_TIMEOUT_S, reset=True)
            worker.call("visit", CALL_TIMEOUT_S, handle="cell", scope=cell.scope, samples=RUNNING_CALLS, calls=1)
            running = worker.call("memory", CALL_TIMEOUT_S, reset=False)
            fields |= {"settings": first["settings"], "software": hello["packages"]}
            peaks = built["peak_memory_bytes"], running["peak_memory_bytes"]
            bytes_ = {
                **running,
                "imported_memory_bytes": imported["peak_memory_bytes"],
                "running_memory_bytes": running["peak_memory_bytes"] if built["reset"] else None,
                "peak_memory_bytes": None if None in peaks else max(peaks),
            }
            after = context.card.memory_bytes()[1] if context.card else None
            if before is not None and after is not None and not context.is_shared:
                bytes_["device_memory_bytes"] = after - before
            if times:
                taken = {"import_s": hello["import_s"], "load_s": loaded["load_s"], "first_call_s": first["first_call_s"]}
                context.store.append(context.record("startup", cell, measurements=taken, **fields))
            absent = {"absent": NO_PEAK} if bytes_["peak_memory_bytes"] is None else None
            context.store.append(context.record("memory", cell, measurements=bytes_, data=absent, **fields))
            afterwards(cell, worker, hello, "cell")
    except WorkerError as error:
        for suite in ("startup", "memory") if times else ("memory",):
            context.store.append(context.failure(suite, cell, error, **fields))
