"""Audits of the timed path: that the clock was around the work, all of it, of the right kind, in the right place.

Each is a question to the worker that was timed and a pure judgement of the answer; a process that fails one has no figure, and the
row says which and by how much. What a machine's noise could explain is not a failure: the judgements of times use intervals.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics as descriptive
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from impls.implementation import Sgd
from impls.oracle.rounding import round_to
from impls.precision import PRECISIONS
from impls.spec import Conv2d, GlobalAvgPool2d, Linear, ModelSpec, Padding, parameter_names, tensor_shapes
from impls.weights import file
from results import statistics
from results.record import Cell
from results.timing import Audit, SecondClock
from suites.equivalence.tiers import check_ring
from suites.harness import requests
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, Context
from suites.harness.process import WorkerProcess
from suites.harness.reference import reference

READS = 5
READ_FLOOR_S = 20e-6
READ_FRACTION = 0.05
"""An output that has just been waited for may take so much longer to be read than one that was left alone, and than it takes again; more is
unfinished work."""

COPY_LATENCY_S = 100e-6
COPY_RATE = 1e9
"""Bytes per second. From a card an output is copied when it is first read, and JAX and TensorFlow keep the copy, so that reading it again
takes nothing. Allowed are several times what we take copies into pageable memory for (20 us, 3 GB/s); on no card was it measured yet."""

WINDOW_S = 0.02
WINDOW_REPEATS = 5
LONG_CALL_S = 0.1
LONG_REPEATS = 4
"""Repeats of what is asked of calls of ``LONG_CALL_S`` and more, so that an audit does not take longer than the measurement."""

LINEARITY_FRACTION = 0.05
"""A call may be timed at most so much shorter than each further call of a window."""

CACHING_FRACTION = 0.1
"""One input repeated may be at most so much faster than inputs that differ (MLPerf inference, TEST04)."""

MOST_UNLIKE = 100
"""Pairs of calls at most, each on an input made for it."""

SECOND_CLOCK_FRACTION = 0.05
"""Our clock and the second may differ by so much, once the second's own overhead is taken off."""

SECOND_CLOCK_BLOCKS = 5
"""Of four visits, ours and theirs in the order ABBA or BAAB: ten pairs."""

CONFIDENCE = 0.999
"""Of the intervals by which times are judged: a run makes dozens of such audits, and a false one costs a figure."""

TIMER_FRACTION = 1e-3
"""The clock's own overhead may be at most so much of a sample."""


def outputs(worker: WorkerProcess, handle: str, context: Context, cell: Cell) -> Audit:
    """The logits of timed calls, chosen at random while they were timed, against the oracle: E4 (MLPerf inference, TEST01)."""
    about = context.subject(cell.model)
    assert cell.batch_size is not None
    out = context.scratch / f"kept-{worker.pid}.safetensors"
    kept = worker.call("kept", CALL_TIMEOUT_S, handle=handle, out=str(out))["batches"]
    members = about.inputs.members(cell.batch_size)[kept]
    model, weights = about.given(context.manifests[cell.implementation])
    predicted = reference(model, weights, about.inputs.pool, cell.precision, context.threads)
    tier = check_ring(load_file(out)["logits"], members, predicted, cell.precision)
    reason = None if tier.passed else f"the outputs of timed calls: {tier.reason}"
    return Audit("outputs", tier.passed, tier.worst_error, tier.bound, reason)


def trained(worker: WorkerProcess, handle: str, context: Context, cell: Cell) -> Audit:
    """Timed steps were steps of a training: between those that were kept the first parameter moved, and all is finite and was moved.

    Not how far: steps at the timed shape are free ones, which rounding leads astray, and the certificate judges free steps.
    """
    out = context.scratch / f"kept-{worker.pid}.safetensors"
    worker.call("kept", CALL_TIMEOUT_S, handle=handle, out=str(out))
    learnt = worker.call("learnt", CALL_TIMEOUT_S, handle=handle, weights=str(requests.subject(context, cell).path))
    return judge_trained(load_file(out)["logits"], **learnt)


def judge_trained(kept: npt.NDArray[np.float64], unchanged: Sequence[str], not_finite: Sequence[str]) -> Audit:
    """``kept`` are losses of timed steps, each with the first parameter then, (steps, 1 + elements); tensors by name after all steps."""
    stood = len(kept) - len(np.unique(kept[:, 1:], axis=0))
    reason = None
    if not np.isfinite(kept).all():
        reason = "a timed step gave a loss or a parameter that is not finite"
    elif not_finite:
        reason = f"{not_finite[0]} is not finite after the timed steps"
    elif unchanged:
        reason = f"{len(unchanged)} tensors are the same before and after the timed steps, {unchanged[0]} among them"
    elif stood or len(kept) < 2:
        reason = f"of {len(kept)} timed steps {stood} left the first parameter as another had left it"
    return Audit("trained", reason is None, float(stood + len(unchanged) + len(not_finite)), 0.0, reason)


def declared(cell: Cell, settings: Mapping[str, Any]) -> list[Audit]:
    """Threads and device as the framework reports them."""
    threads, place = settings.get("threads"), settings.get("placed_on")
    wrong_threads = None if threads == cell.threads else f"{threads} threads, by the framework's own word; {cell.threads} were declared"
    wrong_place = None if place == cell.device else f"it ran on {place}, by the framework's own word; {cell.device} was declared"
    found = float(threads) if isinstance(threads, int) else None
    return [
        Audit("threads", wrong_threads is None, found, cell.threads, wrong_threads),
        Audit("placement", wrong_place is None, None, None, wrong_place),
    ]


def recompilation(compilations: int) -> Audit:
    """Nothing was compiled between the first and the last timed call."""
    reason = f"{compilations} compilations between timed calls: some of them timed the compiler" if compilations else None
    return Audit("recompilation", not compilations, compilations, 0, reason)


def timer(timer: Mapping[str, Any], columns: Mapping[str, Sequence[Any]]) -> Audit:
    """The clock's overhead is nothing beside a sample."""
    timed = [ns for ns, warmup in zip(columns["duration_ns"], columns["warmup"], strict=True) if not warmup]
    share = timer["overhead_ns"] / descriptive.median(timed)
    reason = f"reading the clock takes {share:.2%} of a sample" if share > TIMER_FRACTION else None
    return Audit("timer", reason is None, share, TIMER_FRACTION, reason)


def unfinished_work(worker: WorkerProcess, handle: str, context: Context, cell: Cell) -> Audit:
    """Once a call has been waited for, its output is there: reading it waits for nothing and computes nothing."""
    taken = worker.call("reads", CALL_TIMEOUT_S, handle=handle, scope=cell.scope, calls=READS)["ns"]
    return judge_reads(taken, longest_copy(requests.subject(context, cell).model, cell))


def longest_copy(model: ModelSpec, cell: Cell) -> float:
    """Seconds that a card's copy of an output to the host may take: of logits, or of a step's loss and first parameter; 0 on a CPU."""
    if cell.device == "cpu":
        return 0.0
    assert cell.batch_size is not None
    elements = cell.batch_size * model.classes
    if cell.scenario == "training":
        elements = 1 + math.prod(tensor_shapes(model)[parameter_names(model)[0]])
    return COPY_LATENCY_S + 4 * elements / COPY_RATE


def judge_reads(taken: Sequence[Sequence[int]], copy_s: float = 0.0) -> Audit:
    """``taken`` holds ns of calls, of reads of their outputs at once and again, and of reads of outputs that were left alone.

    Work that goes on behind a call is done by the time that an output was left alone; work that is put off until an output is read takes
    longer than the copy, at most ``copy_s``.
    """
    call_s, at_once_s, again_s, rested_s = (descriptive.median(column) / 1e9 for column in zip(*taken, strict=True))
    excess, allowed = max(at_once_s - rested_s, at_once_s - again_s - copy_s), max(READ_FLOOR_S, READ_FRACTION * call_s)
    reason = None
    if excess > allowed:
        reason = f"the clock stops too early: an output is there {excess * 1e6:.0f} us after a call of {call_s * 1e6:.0f} us was waited for"
    return Audit("unfinished_work", reason is None, excess, allowed, reason)


def linearity(worker: WorkerProcess, handle: str, scope: str, calls: int, call_s: float, generator: random.Random) -> Audit:
    """Each further call of a window, the last output read inside the clock, takes no longer than a call that is timed as published.

    ``calls`` is how many calls a sample covers; both are taken next to each other, for the machine may be slower now than before.
    """
    unit = max(1, math.ceil(WINDOW_S / call_s))
    ratios = []
    for _ in range(_repeats(call_s)):
        counts = [unit, 2 * unit, 3 * unit]
        generator.shuffle(counts)
        visit = worker.call("visit", CALL_TIMEOUT_S, handle=handle, scope=scope, samples=max(1, 2 * unit // calls), calls=calls)
        windows = worker.call("windows", CALL_TIMEOUT_S, handle=handle, scope=scope, counts=counts)["duration_ns"]
        by_count = dict(zip(counts, windows, strict=True))
        further = (by_count[3 * unit] - by_count[unit]) / (2 * unit)
        ratios.append(sum(visit["duration_ns"]) / sum(visit["calls"]) / further)
    return judge_linearity(ratios)


def judge_linearity(ratios: Sequence[float]) -> Audit:
    """``ratios`` are the time of a call as published over that of a further call of a window; at least two.

    One that noise made negative says nothing.
    """
    sound = [ratio for ratio in ratios if ratio > 0]
    if len(sound) < 2:
        return Audit("linearity", True, None, LINEARITY_FRACTION, None)
    return _judge_shortfall(
        "linearity",
        sound,
        LINEARITY_FRACTION,
        "a call is timed at {:.0%} of what each further call of a window takes: the clock misses work",
    )


def caching(worker: WorkerProcess, handle: str, scope: str, call_s: float) -> Audit:
    """A repeated input is not much faster than inputs that were never seen: results are not taken from a cache."""
    calls = _repeats(call_s) * max(1, math.ceil(WINDOW_S / call_s))
    taken = worker.call("unlike", CALL_TIMEOUT_S, handle=handle, scope=scope, calls=min(calls, MOST_UNLIKE))
    return judge_caching([again / new for again, new in zip(taken["repeated_ns"], taken["fresh_ns"], strict=True)])


def judge_caching(ratios: Sequence[float]) -> Audit:
    """``ratios`` are the times of a repeated input over those of new ones; at least two."""
    return _judge_shortfall(
        "caching", ratios, CACHING_FRACTION, "a repeated input takes {:.0%} of the time of new ones: results come from a cache"
    )


def _judge_shortfall(name: str, ratios: Sequence[float], allowed: float, finding: str) -> Audit:
    """Fails where the whole interval of the mean ratio lies below 1 by more than is allowed; ``finding`` takes that mean."""
    ratio = statistics.estimate(ratios, CONFIDENCE)
    assert ratio.high is not None
    reason = finding.format(ratio.value) if ratio.high < 1 - allowed else None
    return Audit(name, reason is None, 1 - ratio.value, allowed, reason)


def second_clock(
    worker: WorkerProcess,
    handle: str,
    cell: Cell,
    package: Path,
    logs: Path,
    sizes: Mapping[str, int],
    generator: random.Random,
) -> SecondClock:
    """Visits timed by our clock and by LoadGen (``suites.harness.loadgen``), in turns.

    ``package`` is LoadGen's folder, ``logs`` where it may write; ``sizes`` are ``samples``, ``calls`` and ``rewarm`` of ``Worker.visit``.
    """
    arguments = {"handle": handle, "scope": cell.scope, **sizes}

    def loadgen(*, idle: bool) -> dict[str, Any]:
        where = {"package": str(package), "logs": str(logs)}
        return worker.call("loadgen", CALL_TIMEOUT_S, **arguments, **where, scenario=cell.scenario, idle=idle)

    def ours() -> float:
        taken = worker.call("visit", CALL_TIMEOUT_S, **arguments)
        ns, calls = taken["duration_ns"][sizes["rewarm"] :], taken["calls"][sizes["rewarm"] :]
        # As LoadGen reports: the upper of two middle latencies, and all calls over all time.
        return float(descriptive.median_high(ns) if cell.scenario == "single_stream" else sum(ns) / sum(calls)) / 1e9

    def theirs() -> float:
        return float(loadgen(idle=False)["call_s"])

    nothing = loadgen(idle=True)
    clocks = {"ours": ours, "theirs": theirs}
    taken: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(SECOND_CLOCK_BLOCKS):
        first = generator.sample(list(clocks), 2)
        for name in (*first, *reversed(first)):
            taken[name].append(clocks[name]())
    calls = sizes["samples"] * sizes["calls"]
    return SecondClock(nothing["version"], nothing["seeds"], calls, nothing["call_s"], tuple(taken["ours"]), tuple(taken["theirs"]))


def judge_second_clock(found: SecondClock) -> Audit:
    """The clocks agree, whichever of them says less; of calls that take no longer than LoadGen's overhead nothing can be said."""
    ratio = found.ratio(CONFIDENCE)
    if ratio is None:
        return Audit("second_clock", True, None, SECOND_CLOCK_FRACTION, None)
    assert ratio.low is not None
    assert ratio.high is not None
    reason = None
    if ratio.high < 1 - SECOND_CLOCK_FRACTION or ratio.low > 1 + SECOND_CLOCK_FRACTION:
        ours, theirs = descriptive.geometric_mean(found.ours_s), descriptive.geometric_mean([each for each in found.net_s() if each > 0])
        reason = (
            f"the clocks disagree: a call takes {ours * 1e6:.4g} us by ours and {theirs * 1e6:.4g} us by {found.name}, "
            f"less its own {found.overhead_s * 1e6:.2g} us: {ratio.value:.3f} [{ratio.low:.3f},{ratio.high:.3f}] of it"
        )
    return Audit("second_clock", reason is None, abs(1 - ratio.value), SECOND_CLOCK_FRACTION, reason)


def _repeats(call_s: float) -> int:
    return LONG_REPEATS if call_s >= LONG_CALL_S else WINDOW_REPEATS


SIGNIFICANDS = np.array([1 + 2**-20, 1 + 2**-12, 1 + 2**-9, 1 + 2**-6], np.float32)
"""What of these comes through a product with 1 tells the precisions apart: the first is kept by fp32 alone, the second rounds in TF32
and fp16 too, the third in bf16 too, the last nowhere."""

SOFTMAX_UNITS = 4
"""How far the share of a class may be from 1 / C, in unit roundoffs; the significands' smallest part is 16 of fp32's."""

FACTOR = 1 + 2**-30
"""Every pixel; only fp64 tells it from 1, and holds its products with the significands exactly."""

PROBE_SIZES = {"cpu": (1, 8), "cuda": (512, 512)}
"""Images and channels of the probe; cuBLAS takes TF32 for no smaller products (PyTorch 2.13, _inductor/template_heuristics/triton.py).
A mean of 2 x 2 equal pixels is exact."""

SHOWN_BY = ("convolution", "product")
"""What the first and the second half of the probe's channels show."""


def probe(channels: int) -> tuple[ModelSpec, dict[str, npt.NDArray[np.float32]]]:
    """A convolution and a linear layer, each of which shows what it computes in whatever the other does.

    The first half of the convolution's channels has weights s and -1 and so gives what its operands keep of s - 1, a power of two, which
    the identity behind it hands on. The second half has weights 1 and s - 1, which no precision rounds, and so gives the significand s,
    of which that product's operands keep what they can.
    """
    model = ModelSpec(
        "probe-precision",
        (channels, 2, 2),
        channels,
        (
            Conv2d("conv", channels, channels, 1, 1, Padding.same_on_all_sides(0), bias=True),
            GlobalAvgPool2d("avgpool"),
            Linear("fc", channels, channels),
        ),
        "a probe of the arithmetic",
    )
    zero, places = np.zeros(channels, np.float32), np.arange(channels)
    shown = np.resize(SIGNIFICANDS, channels)
    first = places < channels // 2
    kernels = np.zeros((channels, channels, 1, 1), np.float32)
    kernels[places, places, 0, 0] = np.where(first, shown, 1)
    kernels[places, places - 1, 0, 0] = np.where(first, -1, shown - 1)
    return model, {
        "conv.weight": kernels,
        "conv.bias": zero,
        "fc.weight": np.eye(channels, dtype=np.float32),
        "fc.bias": zero,
    }


def precision(worker: WorkerProcess, context: Context, cell: Cell) -> Audit:
    """What products of this process and mode really compute in, whatever its flags say: a forward pass's, or a training step's."""
    return (_of_a_step if cell.scenario == "training" else _of_a_pass)(worker, context, cell)


def _of_a_pass(worker: WorkerProcess, context: Context, cell: Cell) -> Audit:
    """A convolution and a product."""
    folder = context.scratch_of(f"{cell.implementation}-{worker.pid}")
    path, ring, out = (folder / f"precision-{name}.safetensors" for name in ("weights", "ring", "out"))
    images, channels = PROBE_SIZES[cell.device]
    model, weights = probe(channels)
    file.save(path, model, weights, source="probe", preprocess={}, licence="CC0-1.0")
    shape = [images, *model.input_chw]
    save({"images": np.full((1, *shape), FACTOR)}, ring)
    worker.call("prepare", BUILD_TIMEOUT_S, handle="precision", weights=str(path), mode=cell.mode, input_shape=shape, fold=False)
    worker.call("put", BUILD_TIMEOUT_S, handle="precision", images=str(ring))
    worker.call("outputs", CALL_TIMEOUT_S, handle="precision", out=str(out))
    worker.call("release", CALL_TIMEOUT_S, handle="precision")
    return judge_precision(load_file(out)["logits"], cell.precision)


def _of_a_step(worker: WorkerProcess, context: Context, cell: Cell) -> Audit:
    """A convolution and the product that is the linear layer's gradient, as the momentum buffer after the first step has it.

    That layer's weights are 0, so softmax gives 1 / C to each of the C classes and the N images, of which one is not black: the rows of
    the classes that are no label are what the convolution gave, over C N.
    """
    folder = context.scratch_of(f"{cell.implementation}-{worker.pid}")
    path, batches, out = (folder / f"precision-{name}.safetensors" for name in ("weights", "batches", "trained"))
    images, channels = PROBE_SIZES[cell.device]
    model, weights = probe(channels)
    weights["fc.weight"] = np.zeros_like(weights["fc.weight"])
    file.save(path, model, weights, source="probe", preprocess={}, licence="CC0-1.0")
    shape = [images, *model.input_chw]
    pixels = np.zeros((1, *shape))
    pixels[0, 0] = FACTOR
    save({"images": pixels, "labels": np.zeros((1, images), np.int64)}, batches)
    sgd = dataclasses.asdict(Sgd(momentum=0.5, nesterov=False, weight_decay=0.0, label_smoothing=0.0))
    worker.call("prepare_training", BUILD_TIMEOUT_S, weights=str(path), sgd=sgd, mode=cell.mode, input_shape=shape)
    worker.call("train", BUILD_TIMEOUT_S, batches=str(batches), learning_rates=[1.0])
    worker.call("trained", CALL_TIMEOUT_S, out=str(out))
    products = load_file(out)["momentum:fc.weight"][1:].astype(np.float64) * channels * images
    # Softmax takes exp and log, which err by some units in the last place.
    units = PRECISIONS["fp64" if cell.precision == "fp64" else "fp32"].unit_roundoff
    return judge_precision(products, cell.precision, SOFTMAX_UNITS * units)


def expected(precision: str) -> npt.NDArray[np.float64]:
    """What the probe gives in a precision, (2, 4): by ``SHOWN_BY``, for each significand."""
    kept = np.asarray(round_to(SIGNIFICANDS, precision), np.float64)
    given = np.stack([kept - 1, kept])
    return given * FACTOR if precision == "fp64" else given


def judge_precision(given: npt.NDArray[Any], declared: str, tolerance: float = 0.0) -> Audit:
    """Whether what the probe gives, (..., channels), is all of the declared precision within ``tolerance``; else whose it is."""
    rows = np.moveaxis(np.reshape(given, (-1, len(SHOWN_BY), np.shape(given)[-1] // 2)), 1, 0).reshape(len(SHOWN_BY), -1, len(SIGNIFICANDS))

    def like(precision: str) -> npt.NDArray[np.bool_]:
        alike: npt.NDArray[np.bool_] = np.all(np.abs(rows - expected(precision)[:, None]) <= tolerance, axis=2)
        return alike

    error = float(np.max(np.abs(rows - expected(declared)[:, None])))
    right = like(declared)
    if right.all():
        return Audit("precision", True, error, tolerance, None)
    wrong = [half for half in range(len(SHOWN_BY)) if not right[half].all()]
    others = [name for name in PRECISIONS if name != declared and like(name)[wrong].all()]
    values = ", ".join(f"{each:.9g}" for each in rows[wrong[0], np.argmin(right[wrong[0]])])
    what = f"computes as {' or '.join(others)} does" if others else f"gives {values}"
    who = "it" if len(wrong) == len(SHOWN_BY) else f"its {SHOWN_BY[wrong[0]]}"
    return Audit("precision", False, error if math.isfinite(error) else None, tolerance, f"{declared} was declared, but {who} {what}")
