"""Energy of an image, by the hardware's counters (``suites.harness.energy``), in fresh processes that have the machine to themselves.

A process loads one cell and is stopped for an idle window, which also lets the machine cool; then it calls without a pause,
and when it has warmed up, a window of the same length is read. An image's energy is what was drawn in the window over the images that were
computed in it; a call that straddles an end counts by its share. The net energy is what the same time idle would not have drawn.
"""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from results.record import Cell, Record
from suites.harness import energy as meters
from suites.harness import inputs
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, START_TIMEOUT_S, Context, Seeds
from suites.harness.energy import APART_LIMIT, TICK_TIMEOUT_S, Clock, Meter, MeterError, Window
from suites.harness.plan import EnergyEffort
from suites.harness.process import WorkerError, WorkerProcess
from suites.harness.turns import OFFLINE_WINDOW_S, WARMUP_CALLS


def skip(context: Context, cells: Sequence[Cell], reason: str) -> None:
    """One skipped record for each cell: there is no figure, and this is why."""
    context.say(f"energy is not measured: {reason}")
    for cell in cells:
        if not context.store.has(context.run.run_id, "energy", cell, None):
            context.store.append(context.record("energy", cell, "skipped", reason))


def run(
    context: Context, cells: Sequence[Cell], effort: EnergyEffort, certificates: Mapping[Cell, Record], measured: Callable[[], None]
) -> None:
    """Measure each certified cell in ``effort.processes`` fresh processes, one at a time in random order.

    What the store holds already is not measured again; a cell of which a process failed takes no further part.
    """
    find = context.store.find
    for number in range(effort.processes):
        for cell in random.sample(cells, len(cells)):
            earlier = [record for index in range(number) for record in find(context.run.run_id, "energy", cell, index)]
            if find(context.run.run_id, "energy", cell, number) or any(record.status != "ok" for record in earlier):
                continue
            context.say(f"energy of {cell.implementation} {cell.mode} {cell.model} batch {cell.batch_size}")
            context.store.append(_one(context, cell, number, effort, certificates[cell.certificate_cell].record_id))
            measured()


def _one(context: Context, cell: Cell, index: int, effort: EnergyEffort, certificate_id: str) -> Record:
    """The record of one process; a failure is its reason."""
    seeds = Seeds(index, secrets.randbits(31))
    fields: dict[str, Any] = {
        "process": seeds.as_record(),
        "certificate_id": certificate_id,
        "model": context.subject(cell.model).as_record(cell.precision, cell.batch_size),
    }
    try:
        meter = meters.meter(cell.device)
        with context.launch(cell, cell.precision, seeds, purpose=f"energy-{cell.model}-{cell.batch_size}") as worker:
            hello = worker.call("start", START_TIMEOUT_S)
            fields |= {"settings": _load(context, cell, worker), "software": hello["packages"]}
            idle, busy, images = windows(worker, cell, meter, effort, Clock())
    except WorkerError as error:
        return context.failure("energy", cell, error, **fields)
    except MeterError as error:
        return context.record("energy", cell, "failed", str(error), **fields)
    return context.record("energy", cell, measurements=figures(idle, busy, images), data=described(meter, idle, busy), **fields)


def _load(context: Context, cell: Cell, worker: WorkerProcess) -> Mapping[str, Any]:
    """Have the worker build the cell and run it once; the settings that it read back."""
    assert cell.batch_size is not None
    about = context.subject(cell.model)
    ring = inputs.ring_file(about.inputs, cell.batch_size, context.scratch)
    shape = [cell.batch_size, *about.inputs.pool.shape[1:]]
    folds = context.manifests[cell.implementation].folds
    worker.call("prepare", BUILD_TIMEOUT_S, handle="cell", weights=str(about.path), mode=cell.mode, input_shape=shape, fold=folds)
    settings: Mapping[str, Any] = worker.call("put", BUILD_TIMEOUT_S, handle="cell", images=str(ring))["settings"]
    return settings


def windows(worker: WorkerProcess, cell: Cell, meter: Meter, effort: EnergyEffort, clock: Clock) -> tuple[Window, Window, float]:
    """The idle window, the busy one, and the images computed in the latter, by a worker that holds the cell.

    Raises:
        MeterError, WorkerError.
    """
    assert cell.batch_size is not None
    worker.pause()  # several frameworks' threads spin while they wait for work
    clock.sleep(_lead_s(effort))
    idle = meters.window(meter, effort.window_s, clock)
    worker.resume()
    warm = worker.call("visit", CALL_TIMEOUT_S, handle="cell", scope=cell.scope, samples=WARMUP_CALLS, calls=1)
    calls = max(2, math.ceil(OFFLINE_WINDOW_S * 1e9 / warm["duration_ns"][-1])) if cell.scenario == "offline" else 1
    lead_s = _lead_s(effort)
    seconds = lead_s + effort.window_s + 3 * TICK_TIMEOUT_S  # a tick at each end takes at most two, the third is to spare
    worker.send("sustain", handle="cell", scope=cell.scope, calls=calls, seconds=seconds)
    clock.sleep(lead_s)
    busy = meters.window(meter, effort.window_s, clock)
    taken = worker.receive(seconds + CALL_TIMEOUT_S)
    return idle, busy, cell.batch_size * calls_within(busy, taken["start_ns"], taken["duration_ns"], taken["calls"])


def _lead_s(effort: EnergyEffort) -> float:
    """How long before a window; the half that is random sets its phase against the sensor's."""
    return effort.lead_s * (1 + random.random() / 2)


def calls_within(busy: Window, start_ns: Sequence[int], duration_ns: Sequence[int], calls: Sequence[int]) -> float:
    """How many calls the samples made in the window; of one that lies partly in it, that part.

    Raises:
        MeterError: the samples do not span the window, so it was not all busy.
    """
    starts = np.asarray(start_ns, dtype=np.int64)
    ends = starts + np.asarray(duration_ns, dtype=np.int64)
    if not starts.size or starts[0] > busy.start_ns or ends[-1] < busy.end_ns:
        raise MeterError("the calls did not last from the first tick of the window to its last")
    inside = np.clip(np.minimum(ends, busy.end_ns) - np.maximum(starts, busy.start_ns), 0, None)
    return float(np.sum(inside / np.asarray(duration_ns) * np.asarray(calls)))


def figures(idle: Window, busy: Window, images: float) -> dict[str, float]:
    """The measurements of a record. Net energy may come out negative where a call draws less than the meter can tell."""
    return {
        "energy_j_per_image": busy.energy_j / images,
        "net_energy_j_per_image": (busy.energy_j - idle.power_w * busy.seconds) / images,
        "images": images,
        "window_s": busy.seconds,
        "power_w": busy.power_w,
        "idle_window_s": idle.seconds,
        "idle_power_w": idle.power_w,
    }


def described(meter: Meter, idle: Window, busy: Window) -> dict[str, object]:
    """The record's data: what was read, how far the two sensors are apart, and a flag for each window where that is too far."""
    apart = {"idle": idle.apart_fraction, "busy": busy.apart_fraction}
    flags = [
        f"counter and integrated power are {fraction:.0%} apart while it is {state}"
        for state, fraction in apart.items()
        if fraction is not None and fraction > APART_LIMIT
    ]
    return {"meter": meter.title, "apart_fraction": apart, "flags": flags}
