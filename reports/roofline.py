"""The ceilings that a row is held against, from what the probes of its own run measured of the machine.

On a CPU a bound: no code can be faster. On a GPU the matching line (``impls.traffic``): what a mode that fuses as this one does can
reach at best, so that the percentage grades the framework's use of the card and not its choice of what to fuse. Published results
of sound stacks lie at 66 to 100 % of their lines; below 60 % something is usually set up wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from impls import models
from impls.implementation import Roofline
from impls.models import UnknownModelError
from impls.precision import PRECISIONS
from impls.spec import ModelSpec, SpecError
from impls.traffic import kernels, least_time_s, training_kernels
from impls.weights.variant import for_images_of
from reports import labels
from results.record import Record

LOW = 0.6
"""A row of a GPU below this share of its line is told to be looked at."""

LEAST_BATCH = 64
"""Smaller batches leave activations in a GPU's cache, and the launches of kernels decide: they have no matching line. Nor have copies."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The least time of one batch, and the line that it is of; ``doubt`` says what a row that is faster than that means."""

    time_s: float
    line: str
    doubt: str


def bound(record: Record, probes: Iterable[Record], machine: Mapping[str, object]) -> Bound | None:
    """The least time of a record's batch; None without a probe of its device and precision, or where there is no line for it."""
    known = [each for each in probes if each.status == "ok" and each.measurement and each.cell.device == record.cell.device]
    return (_matching if record.cell.device == "cuda" else _least)(record, known, machine)


def _least(record: Record, known: list[Record], machine: Mapping[str, object]) -> Bound | None:
    """The least time in which this machine can run one batch.

    max(2 * MACs * batch / peak, (weights + input - last-level cache) / bandwidth). The peak is the best FLOP rate that any
    implementation's probe reached in this precision, so arithmetic as the spec counts it takes no less. Of the weights and
    the input, each read once, at most the last-level cache's size can have stayed there since the call before; the rest
    comes from memory, which a copy measures. Of a step of training the arithmetic is also that of both gradients, and parameters
    and momentum buffers are read and written. Nothing is counted where the run does not know its ``cache_bytes``, and
    activations, which may stay in the cache, are not counted. So this is a bound and no estimate of good code, with one
    exception: an algorithm with fewer multiplications than direct convolution (Winograd, FFT) may pass it.
    """
    if record.model is None or record.inputs is None or record.cell.batch_size is None:
        return None
    peaks = _best([each for each in known if each.cell.precision == record.cell.precision], "peak_flops_per_s")
    if peaks is None:
        return None
    trains = record.cell.scenario == "training"
    macs = _training_macs(record) if trains else record.model.macs * record.cell.batch_size
    if macs is None:
        return None
    bounds = [(2 * macs / peaks[0], "FLOP rate", peaks[1])]
    copy, cache = _best(known, "copy_bytes_per_s"), machine.get("cache_bytes")
    if copy is not None and isinstance(cache, int):
        held = 4 * parameter_size(record.cell.precision) if trains else 1
        elements = held * record.model.parameters + math.prod(record.inputs.shape)
        moved = elements * PRECISIONS[record.cell.precision].storage_bytes - cache
        bounds.append((moved / copy[0], "bandwidth", copy[1]))
    time_s, limit, source = max(bounds)
    doubt = f"the ceiling: the {limit} probe ({source}) measured too low, or the framework does fewer operations than direct convolution"
    return Bound(time_s, "bound", doubt)


def _as_run(record: Record) -> ModelSpec | None:
    """The model of a record, for the images that it took; None where the checkout has no such model."""
    try:
        known = models.get(record.cell.model)
        return for_images_of(known, *record.inputs.shape[2:]) if record.inputs and len(record.inputs.shape) == 4 else known
    except (UnknownModelError, SpecError):
        return None


def _training_macs(record: Record) -> int | None:
    """Multiply-accumulates of a step."""
    model = _as_run(record)
    if model is None:
        return None
    return sum(kernel.macs for kernel in training_kernels(models.in_training(model), "fused", record.cell.batch_size or 1))


def _matching(record: Record, known: list[Record], machine: Mapping[str, object]) -> Bound | None:
    """The line of the record's mode at the best FLOP rate in its precision and the best copy bandwidth of the run's probes."""
    cell, trains = record.cell, record.cell.scenario == "training"
    line, model = labels.roofline(cell.implementation, cell.mode, cell.device, training=trains), _as_run(record)
    peak = _best([each for each in known if each.cell.precision == cell.precision], "peak_flops_per_s")
    copy = _best(known, "copy_bytes_per_s")
    if line is None or model is None or peak is None or copy is None or (cell.batch_size or 0) < LEAST_BATCH or cell.scope != "device":
        return None
    assert cell.batch_size is not None
    time_s = line_s(model, line, cell.precision, cell.batch_size, peak[0], copy[0], training=trains)
    doubt = (
        f"its roofline ({line}): it fuses more than that line takes it to, or a probe (FLOP rate by {peak[1]}, bandwidth by {copy[1]}) "
        "measured too low"
    )
    return Bound(time_s, line, doubt)


def rates(
    records: Iterable[Record], run_id: str, model: str, precision: str, batch_sizes: Iterable[int], *, training: bool = False
) -> dict[str, dict[int, float]]:
    """Images per second of every line on a run's GPU, at the batch sizes that have one; empty without probes.

    Of training the folded line is the eager one, and left out.
    """
    own = [each for each in records if each.run_id == run_id and each.cell.device == "cuda"]
    known = [each for each in own if each.suite == "probe" and each.status == "ok" and each.measurement]
    timed = [each for each in own if each.suite in ("inference", "training") and each.cell.model == model and each.inputs]
    spec = _as_run(timed[0]) if timed else None
    peak = _best([each for each in known if each.cell.precision == precision], "peak_flops_per_s")
    copy, sizes = _best(known, "copy_bytes_per_s"), [size for size in batch_sizes if size >= LEAST_BATCH]
    if peak is None or copy is None or spec is None:
        return {}
    return {
        line: {size: size / line_s(spec, line, precision, size, peak[0], copy[0], training=training) for size in sizes}
        for line in get_args(Roofline)
        if sizes and not (training and line == "folded")
    }


def line_s(
    model: ModelSpec, line: Roofline, precision: str, batch_size: int, flops_per_s: float, bytes_per_s: float, *, training: bool = False
) -> float:
    """Seconds of one batch, or of one step, on a line."""
    if training:
        launched = training_kernels(models.in_training(model), line, batch_size, parameter_size(precision))
    else:
        launched = kernels(model, line, batch_size)
    return least_time_s(launched, PRECISIONS[precision].storage_bytes, flops_per_s, bytes_per_s)


def parameter_size(precision: str) -> int:
    """How many activations take the bytes of a parameter in training: parameters are float32 where activations are narrower."""
    return max(1, PRECISIONS["fp32"].storage_bytes // PRECISIONS[precision].storage_bytes)


def _best(probes: Iterable[Record], name: str) -> tuple[float, str] | None:
    """The largest value of a measurement, and whose it is."""
    found = [(value, each.cell.implementation) for each in probes if (value := each.measurements.get(name))]
    return max(found, default=None)
