"""Start-up time and peak host memory of a fresh process that does nothing but one cell.

One process at a time, none beside it. Start-up is split into import (framework and settings), load (weight file, folding,
building) and first call (tracing, compiling, first execution). Memory is VmHWM, the largest resident size that the kernel
saw: after the import, over everything, and while it runs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from safetensors.numpy import save_file

from results.record import Cell, Record
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, START_TIMEOUT_S, Context, Seeds
from suites.harness.process import WorkerError

RUNNING_CALLS = 10


def run(context: Context, cells: Sequence[Cell], processes: int, certificates: Mapping[Cell, Record], measured: Callable[[], None]) -> None:
    """Measure each cell in ``processes`` fresh processes; what the store holds already is not measured again."""
    for number in range(processes):
        for cell in cells:
            if not context.store.has(context.run.run_id, "startup", cell, number):
                context.say(f"start-up and memory of {cell.implementation} {cell.mode} {cell.model} batch {cell.batch_size}")
                for record in _one(context, cell, number, certificates[cell.certificate_cell].record_id):
                    context.store.append(record)
                measured()


def _one(context: Context, cell: Cell, index: int, certificate_id: str) -> list[Record]:
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
    save_file({"images": images}, ring)
    try:
        with context.launch(cell, cell.precision, seeds, purpose="start") as worker:
            hello = worker.call("start", START_TIMEOUT_S)
            imported = worker.call("memory", CALL_TIMEOUT_S, reset=False)["peak_memory_bytes"]
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
            peak = worker.call("memory", CALL_TIMEOUT_S, reset=True)
            worker.call("visit", CALL_TIMEOUT_S, handle="cell", scope=cell.scope, samples=RUNNING_CALLS, calls=1)
            running = worker.call("memory", CALL_TIMEOUT_S, reset=False)
    except WorkerError as error:
        return [context.failure(suite, cell, error, **fields) for suite in ("startup", "memory")]
    fields |= {"settings": first["settings"], "software": hello["packages"]}
    startup = {"import_s": hello["import_s"], "load_s": loaded["load_s"], "first_call_s": first["first_call_s"]}
    memory = {
        **running,
        "imported_memory_bytes": imported,
        "running_memory_bytes": running["peak_memory_bytes"],
        "peak_memory_bytes": max(peak["peak_memory_bytes"], running["peak_memory_bytes"]),
    }
    return [
        context.record("startup", cell, measurements=startup, **fields),
        context.record("memory", cell, measurements=memory, **fields),
    ]
