"""Start-up time and peak host memory of a fresh process that does nothing but one cell.

One process at a time, none beside it. Start-up is split into import (framework and settings), load (weight file, folding,
building) and first call (tracing, compiling, first execution). Memory is VmHWM, the largest resident size that the kernel
saw: after the import, over everything, and while it runs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from results.record import Cell, Record
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, START_TIMEOUT_S, Context, Seeds
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
) -> None:
    """Measure each cell in ``processes`` fresh processes; what the store holds already is not measured again."""
    for number in range(processes):
        for cell in cells:
            if not context.store.has(context.run.run_id, "startup", cell, number):
                context.say(f"start-up and memory of {cell.implementation} {cell.mode} {cell.model} batch {cell.batch_size}")
                _one(context, cell, number, certificates[cell.certificate_cell].record_id, afterwards)
                measured()


def _one(context: Context, cell: Cell, index: int, certificate_id: str, afterwards: Afterwards) -> None:
    assert cell.batch_size is not None
    about = context.subject(cell.model)
    seeds = Seeds(index, secrets.randbits(31))
    fields: dict[str, Any] = {
        "process": seeds.as_record(),
        "certificate_id": certificate_id,
        "model": about.as_record(cell.precision, cell.batch_size),
    }
    images = about.inputs.ring(cell.batch_size)
    ring = context.scratch / "ring.safetensors"
    save({"images": images}, ring)
    try:
        with context.launch(cell, cell.precision, seeds, purpose="start") as worker:
            hello = worker.call("start", START_TIMEOUT_S)
            imported = worker.call("memory", CALL_TIMEOUT_S, reset=False)
            loaded = worker.call(
                "prepare",
                BUILD_TIMEOUT_S,
                handle="cell",
                weights=str(about.path),
                mode=cell.mode,
                input_shape=list(images.shape[1:]),
                fold=context.manifests[cell.implementation].folds,
            )
            first = worker.call("put", BUILD_TIMEOUT_S, handle="cell", images=str(ring))
            built = worker.call("memory", CALL_TIMEOUT_S, reset=True)
            worker.call("visit", CALL_TIMEOUT_S, handle="cell", scope=cell.scope, samples=RUNNING_CALLS, calls=1)
            running = worker.call("memory", CALL_TIMEOUT_S, reset=False)
            fields |= {"settings": first["settings"], "software": hello["packages"]}
            times = {"import_s": hello["import_s"], "load_s": loaded["load_s"], "first_call_s": first["first_call_s"]}
            bytes_ = {
                **running,
                "imported_memory_bytes": imported["peak_memory_bytes"],
                "running_memory_bytes": running["peak_memory_bytes"],
                "peak_memory_bytes": max(built["peak_memory_bytes"], running["peak_memory_bytes"]),
            }
            context.store.append(context.record("startup", cell, measurements=times, **fields))
            context.store.append(context.record("memory", cell, measurements=bytes_, **fields))
            afterwards(cell, worker, hello, "cell")
    except WorkerError as error:
        for suite in ("startup", "memory"):
            context.store.append(context.failure(suite, cell, error, **fields))
