"""One tidy pandas frame from records: a row per run and cell, every number with its unit in its name.

Rules that hold for every row (they are applied here once, so that no table, figure or file can forget them):

- No certificate, no number. A row holds figures only if the run has a passing certificate for its implementation, mode,
  model, precision and device, and for the very weights and network that were timed.
- A row of a smoke run and a row of which any process failed hold no figure.
- Only rows that are alike in what the comparison is not about are compared (``reports.likeness``); the others keep their own figures.
- Processes are the unit of all statistics. A ratio is taken between processes of one round, never between iterations.
"""

from __future__ import annotations

import re
import statistics as descriptive
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reports import labels, likeness, roofline
from results import statistics, steadiness, timing
from results.record import Cell, Record
from results.store import Run, Store

BASELINE = "pytorch/eager"

DTYPES: Mapping[str, str] = {
    "run_id": "string",
    "machine_id": "string",
    "implementation": "string",
    "mode": "string",
    "model": "string",
    "precision": "string",
    "device": "string",
    "batch_size": "Int64",
    "scope": "string",
    "scenario": "string",
    "threads": "Int64",
    "status": "string",
    "reason": "string",
    "remark": "string",
    "measurement": "boolean",
    "certified": "boolean",
    "certificate": "string",
    "baseline": "string",
    "is_baseline": "boolean",
    "processes": "Int64",
    "steady": "string",
    "pairs": "Int64",
    "time_per_batch_s": "Float64",
    "time_per_batch_low_s": "Float64",
    "time_per_batch_high_s": "Float64",
    "latency_s": "Float64",
    "latency_low_s": "Float64",
    "latency_high_s": "Float64",
    "calls": "Int64",
    "p90_s": "Float64",
    "p90_calls_needed": "Int64",
    "p99_s": "Float64",
    "p99_calls_needed": "Int64",
    "throughput_images_per_s": "Float64",
    "throughput_low_images_per_s": "Float64",
    "throughput_high_images_per_s": "Float64",
    "ratio": "Float64",
    "ratio_low": "Float64",
    "ratio_high": "Float64",
    "tie": "boolean",
    "mde": "Float64",
    "second_clock": "string",
    "second_clock_s": "Float64",
    "second_clock_overhead_s": "Float64",
    "second_clock_ratio": "Float64",
    "second_clock_ratio_low": "Float64",
    "second_clock_ratio_high": "Float64",
    "rank_low": "Int64",
    "rank_high": "Int64",
    "unlike": "string",
    "despite": "string",
    "peak_memory_bytes": "Float64",
    "reserved_memory_bytes": "Float64",
    "device_memory_bytes": "Float64",
    "energy_j_per_image": "Float64",
    "energy_low_j_per_image": "Float64",
    "energy_high_j_per_image": "Float64",
    "net_energy_j_per_image": "Float64",
    "net_energy_low_j_per_image": "Float64",
    "net_energy_high_j_per_image": "Float64",
    "energy_absent": "string",
    "import_s": "Float64",
    "load_s": "Float64",
    "first_call_s": "Float64",
    "cold_load_s": "Float64",
    "cold_first_call_s": "Float64",
    "copy_in_s": "Float64",
    "copy_out_s": "Float64",
    "roofline": "string",
    "roofline_fraction": "Float64",
    "roofline_error": "string",
    "power_cap_fraction": "Float64",
    "heat_fraction": "Float64",
    "dataset": "string",
    "top1": "Float64",
    "top1_absent": "string",
    "top1_low": "Float64",
    "top1_high": "Float64",
    "images": "Int64",
    "flips": "Int64",
    "parameters": "Int64",
    "macs": "Int64",
    "image_size": "string",
    "weights_sha256": "string",
    "layout": "string",
    "folded": "boolean",
    "tf32": "boolean",
    "deterministic": "boolean",
    "versions": "string",
    "created_utc": "string",
}
"""Every column and its dtype; ``load`` says what each holds."""

PERCENTILES = (90, 99)
"""Of latency, each with an upper bound; the tails that serving is judged by."""
CELL = ["implementation", "mode", "model", "precision", "device", "batch_size", "scope", "scenario", "threads"]
GROUP = ["run_id", "machine_id", "model", "precision", "device", "batch_size", "scope", "scenario", "threads"]
"""What rows share that are compared with each other."""
FIGURES = [name for name in DTYPES if DTYPES[name] == "Float64"] + ["pairs", "tie", "rank_low", "rank_high", "images", "flips"]
FIGURES += [f"p{percentile}_calls_needed" for percentile in PERCENTILES]
"""The columns that a row without a right to figures leaves empty."""
ENERGY_PROCESSES = 3
"""Fewer have seen too few phases of the sensor for an energy."""
NO_ENERGY = "not asked for: --energy"
STARTUP = ("import_s", "load_s", "first_call_s")
COLD_STARTUP = {"cold_load_s": "load_s", "cold_first_call_s": "first_call_s"}
"""The measurement that is in each column, of processes that found their compiler's caches empty."""
COPIES = ("copy_in_s", "copy_out_s")
MEMORY: Mapping[str, Mapping[str, str]] = {
    "cpu": {"peak_memory_bytes": "peak_memory_bytes"},
    "cuda": {
        "peak_memory_bytes": "peak_allocated_bytes",
        "reserved_memory_bytes": "peak_reserved_bytes",
        "device_memory_bytes": "device_memory_bytes",
    },
}
"""The measurement that is in each column, by device: of a GPU the memory of the card, not of the host."""
HELD = {"power_cap_fraction": "power_cap_s", "heat_fraction": "sw_thermal_s"}
"""The card's counter that is in each column (``timing.held_fraction``)."""


class NoRecordsError(ValueError):
    """A path that holds no run; the message names it."""


class BaselineError(ValueError):
    """A baseline that is not written as implementation/mode; the message shows one that is."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Records with the runs that they are of; ``unreadable`` names the files that are no records, with the reason."""

    records: tuple[Record, ...]
    runs: Mapping[str, Run]
    unreadable: tuple[str, ...]


def load(path: str | Path, baseline: str = BASELINE, allow_unlike: Collection[str] = ()) -> pd.DataFrame:
    """What was measured, one row per run and cell.

    ``path`` is a run's folder or a folder of runs; ``baseline`` is "implementation/mode"; ``allow_unlike`` are fields in which
    rows may differ and be compared all the same (``likeness.LIFTABLE``). All columns are nullable.

    ============================  =======  =================================================================================
    column                        dtype    what it holds
    ============================  =======  =================================================================================
    run_id                        string   the run
    machine_id                    string   the machine; rows of two machines are never in one ratio
    implementation                string   pytorch, jax, tensorflow, onnx, ...
    mode                          string   how it executes: eager, compile, jit, graph, ...
    model                         string   name of the network
    precision                     string   fp64, fp32, tf32, bf16, fp16
    device                        string   cpu or cuda
    batch_size                    Int64    images in a batch
    scope                         string   device (inputs and outputs stay there) or transfer (host to host)
    scenario                      string   single_stream (a call is waited for) or offline (calls in windows), training (the same of steps)
    threads                       Int64    threads asked for
    status                        string   ok, skipped, failed, timed_out, out_of_memory, not_certified
    reason                        string   why the status is not ok, or why there is no figure
    remark                        string   what went wrong beside the timing: memory, start-up, accuracy
    measurement                   boolean  false for a smoke run: NOT-A-MEASUREMENT
    certified                     boolean  a passing certificate for this cell, these weights and this network was found
    certificate                   string   the certificate's record
    baseline                      string   implementation/mode that ratios are against
    is_baseline                   boolean  this row is the baseline
    processes                     Int64    processes with valid timings: K
    steady                        string   what the processes' timed samples did: flat, warm-up, slowdown, no steady state, cannot tell
    pairs                         Int64    rounds in which this row and the baseline both have a process
    time_per_batch_s              Float64  seconds per call, geometric mean over processes of the process's mean log time
    time_per_batch_low_s          Float64  lower end of its 95 % interval over processes, seconds
    time_per_batch_high_s         Float64  upper end, seconds
    latency_s                     Float64  the same, in scenario single_stream only, seconds
    latency_low_s                 Float64  lower end, seconds
    latency_high_s                Float64  upper end, seconds
    calls                         Int64    timed calls of the process that has the fewest, in scenario single_stream only
    p90_s                         Float64  the 90th percentile of latency is not above this: largest bound of a process, seconds
    p90_calls_needed              Int64    where there is no such bound: the fewest calls of a process that give one
    p99_s                         Float64  the same of the 99th percentile, seconds
    p99_calls_needed              Int64    where there is none: the fewest calls
    throughput_images_per_s       Float64  images per second of wall time, in scenarios offline and training
    throughput_low_images_per_s   Float64  lower end
    throughput_high_images_per_s  Float64  upper end
    ratio                         Float64  speed over the baseline's, above 1 is faster; paired by round
    ratio_low                     Float64  lower end of its 95 % interval over pairs of processes
    ratio_high                    Float64  upper end
    tie                           boolean  the interval holds 1: this run cannot tell the row from the baseline
    mde                           Float64  smallest difference from the baseline that can be counted on to be seen, fraction
    second_clock                  string   name and version of the other clock that timed one of the processes too
    second_clock_s                Float64  seconds per call by it, less its overhead, geometric mean of visits in turns with ours
    second_clock_overhead_s       Float64  what it takes per call that does nothing, seconds
    second_clock_ratio            Float64  seconds per call by our clock over its, in the same visits
    second_clock_ratio_low        Float64  lower end of its 95 % interval over pairs of visits
    second_clock_ratio_high       Float64  upper end
    rank_low                      Int64    best rank that the simultaneous intervals allow, 1 is fastest
    rank_high                     Int64    worst rank that they allow
    unlike                        string   why it is in no ratio or rank: what differs from the baseline (this row's, the baseline's)
    despite                       string   what differs from the baseline although they are compared, and why they are
    peak_memory_bytes             Float64  peak resident (cpu) or allocated (cuda) bytes, median over processes
    reserved_memory_bytes         Float64  cuda: peak that the framework's allocator held for itself, bytes, where it tells
    device_memory_bytes           Float64  cuda: what the process took of a card that it had to itself, context and workspaces too, bytes
    energy_j_per_image            Float64  joules of an image by the hardware's counter, good to about 5 %; geometric mean over processes
    energy_low_j_per_image        Float64  lower end of its 95 % interval over processes, the 5 % not included
    energy_high_j_per_image       Float64  upper end
    net_energy_j_per_image        Float64  the same without what the time would have drawn idle, where every process drew more
    net_energy_low_j_per_image    Float64  lower end
    net_energy_high_j_per_image   Float64  upper end
    energy_absent                 string   why there is no energy: not asked for, no counter, or a failure
    import_s                      Float64  seconds to import the framework, median over processes
    load_s                        Float64  seconds to load the weights and build the network, median
    first_call_s                  Float64  seconds of the first call, compilation included, median; what a compiler keeps on disk is there
    cold_load_s                   Float64  seconds to load where the compiler's caches were empty, of modes that keep some, median
    cold_first_call_s             Float64  seconds of the first call there, median
    copy_in_s                     Float64  cuda: seconds to bring one batch from host memory to the device as the network takes it, median
    copy_out_s                    Float64  cuda: seconds to bring the logits of one batch to host memory, median
    roofline                      string   what the mode is held against: bound, or (cuda) fused, compile, folded, eager
    roofline_fraction             Float64  least possible time over measured time (``reports.roofline``), 0 to 1
    roofline_error                string   why there is none although there were probes: it came out above 1
    power_cap_fraction            Float64  cuda: of the time of its visits, how much the clocks were held down at the power limit
    heat_fraction                 Float64  cuda: the same for heat, by the driver
    dataset                       string   the labelled images that top1 is of
    top1                          Float64  fraction of images classified as labelled
    top1_absent                   string   why there is no top1, where that was recorded: "bring weights: ...", or "failed"
    top1_low                      Float64  lower end of its 95 % Wilson interval
    top1_high                     Float64  upper end
    images                        Int64    images that top1 is of
    flips                         Int64    of those, images whose class differs from the baseline's
    parameters                    Int64    of the network, batch norm's statistics not counted
    macs                          Int64    multiply-accumulates of one image
    image_size                    string   height and width of the timed images, "224x224"
    weights_sha256                string   the weights that were run: hash of their names, shapes and bytes
    layout                        string   NCHW or NHWC, read back; what may be rearranged says so
    folded                        boolean  batch norm was folded into the weights beforehand
    tf32                          boolean  TF32 was on, read back
    deterministic                 boolean  deterministic algorithms were asked for, read back
    versions                      string   the framework's version and Python's
    created_utc                   string   when the last process finished, ISO 8601
    ============================  =======  =================================================================================

    Raises:
        NoRecordsError: nothing there is a run.
        BaselineError: ``baseline`` is not "implementation/mode".
        AllowUnlikeError: a field that may not differ.
    """
    return tidy(read(path), baseline, allow_unlike)


def read(path: str | Path) -> Loaded:
    """The records below a run's folder or a folder of runs.

    Raises:
        NoRecordsError: nothing there is a run.
    """
    path = Path(path).resolve()
    single = (path / "run.json").is_file()
    store = Store(path.parent if single else path)
    names = (path.name,) if single else tuple(name for name in store.runs() if (path / name / "run.json").is_file())
    if not names:
        raise NoRecordsError(f"{path} is no run and holds none: a run is a folder with a run.json, as `levelfield bench` writes it")
    records: list[Record] = []
    unreadable: list[str] = []
    runs = {}
    for name in names:
        found, corrupt = store.read(name)
        records += found
        unreadable += [f"{each.path.name}: {each.reason.removeprefix(f'{each.path}: ')}" for each in corrupt]
        if not any(each.path.name == "run.json" for each in corrupt):
            runs[name] = store.run(name)
    return Loaded(tuple(records), runs, tuple(unreadable))


def tidy(loaded: Loaded, baseline: str = BASELINE, allow_unlike: Collection[str] = ()) -> pd.DataFrame:
    """The frame of ``load`` from records in memory.

    Raises:
        BaselineError: ``baseline`` is not "implementation/mode".
        AllowUnlikeError: a field that may not differ.
    """
    likeness.require_liftable(allow_unlike)
    if not re.fullmatch(r"[^/]+/[^/]+", baseline):
        raise BaselineError(f"the baseline {baseline!r} is not written as IMPLEMENTATION/MODE, like {BASELINE}")
    rows: list[dict[str, Any]] = []
    for run_id in dict.fromkeys(record.run_id for record in loaded.records):
        records = latest(record for record in loaded.records if record.run_id == run_id)
        run = loaded.runs.get(run_id)
        rows += _Run(records, run.machine if run else {}, baseline, allow_unlike).rows()
    table = pd.DataFrame([[row.get(name) for name in DTYPES] for row in rows], columns=list(DTYPES), dtype=object)
    return table.astype(dict(DTYPES))


OF_WEIGHTS = ("equivalence", "training_equivalence", "accuracy")


def latest(records: Iterable[Record]) -> list[Record]:
    """One record per suite, cell and process: a process that was tried again counts once, as it last ended.

    Of what is said of weights alone, certificates and accuracies, one for each weights.
    """
    kept: dict[tuple[object, ...], Record] = {}
    for record in sorted(records, key=lambda record: (record.created_utc, record.record_id)):
        process = record.process.index if record.process else None
        kept[record.suite, record.cell, process, _weights(record) if record.suite in OF_WEIGHTS else None] = record
    return list(kept.values())


class _Run:
    """The records of one run on their way to rows."""

    def __init__(self, records: list[Record], machine: Mapping[str, object], baseline: str, allow_unlike: Collection[str]) -> None:
        self.machine = machine
        self.baseline = baseline
        self.allow_unlike = allow_unlike
        self.by_suite: dict[str, list[Record]] = defaultdict(list)
        for record in records:
            self.by_suite[record.suite].append(record)

    def rows(self) -> list[dict[str, Any]]:
        """All rows: those that were timed, then those of which only something else is known."""
        timed: dict[Cell, list[Record]] = defaultdict(list)
        for record in (*self.by_suite["inference"], *self.by_suite["training"]):
            timed[record.cell].append(record)
        others: dict[tuple[Cell, str | None], list[Record]] = defaultdict(list)
        for suite in ("memory", "startup", "cold_startup", "copies", "energy", "accuracy", "equivalence", "training_equivalence"):
            for record in self.by_suite[suite]:
                if not any(_covers(record, cell) for cell in timed):
                    others[record.cell.certificate_cell, _weights(record)].append(record)
        for cell in [of for of, own in others if own is None]:  # what names no weights holds for all
            if named := [key for key in others if key[0] == cell and key[1] is not None]:
                unnamed = others.pop((cell, None))
                for key in named:
                    others[key] += unnamed
        times = {cell: process_times(records) for cell, records in timed.items()}
        rows = [self._row(cell, records, times[cell]) for cell, records in timed.items()]
        rows += [self._row(cell, records, {}) for (cell, _), records in others.items()]
        self._compare(rows, timed, times)
        for row in rows:
            if why := _withheld(row):
                row.update(dict.fromkeys(FIGURES))
                row["reason"] = row["reason"] or why
                row["energy_absent"] = row.get("energy_absent") or why
        return rows

    def _row(self, cell: Cell, records: list[Record], times: dict[int, float]) -> dict[str, Any]:
        newest = max(records, key=lambda record: record.created_utc)
        row: dict[str, Any] = {**asdict(cell), "run_id": newest.run_id, "machine_id": newest.machine_id}
        row |= {"baseline": self.baseline, "is_baseline": f"{cell.implementation}/{cell.mode}" == self.baseline}
        row |= {"created_utc": newest.created_utc, "measurement": all(record.measurement for record in records)}
        row |= {"versions": labels.versions(cell.implementation, newest.software)}
        row |= {name: newest.settings.get(name) for name in ("layout", "folded", "tf32", "deterministic")}
        if model := next((record.model for record in [newest, *records] if record.model), None):
            row |= {name: getattr(model, name) for name in ("parameters", "macs", "weights_sha256")}
        row |= self._status(cell, records)
        row |= self._certificate(cell, records)
        row |= {"processes": len(times), "noise": timing.disturbed(records), "steady": _steady(records), "mixed": _mixed(records)}
        row |= {column: timing.held_fraction(records, counter) for column, counter in HELD.items()}
        if times:
            row |= self._times(cell, newest, times) | _tails(cell, records)
        return row | _second_clock(records) | self._beside(cell, row.get("weights_sha256"))

    def _status(self, cell: Cell, records: list[Record]) -> dict[str, Any]:
        broken = [record for record in records if record.status != "ok"]
        if not broken:
            return {"status": "ok", "reason": None}
        worst = broken[0]
        place = f"process {worst.process.index}: " if worst.process and len(records) > 1 else ""
        return {"status": worst.status, "reason": f"{place}{worst.reason}"}

    def _certificate(self, cell: Cell, records: list[Record]) -> dict[str, Any]:
        """Whether the certificate is there, passed, and is for what was run: of training where nothing else was."""
        suites = {record.suite for record in records}
        purpose = "training_equivalence" if suites <= {"training", "training_equivalence"} else "equivalence"
        found = [record for record in self.by_suite[purpose] if record.cell == cell.certificate_cell]
        if not found:
            return {"certified": False, "certificate": None, "why": "no certificate for it was found in this run"}
        own = {_identity(record) for record in records if record.model}
        certificate = next((each for each in reversed(found) if _identity(each) in own), found[-1])
        verdict: dict[str, Any] = {"certified": False, "certificate": certificate.record_id}
        if certificate.status != "ok":
            return verdict | {"why": certificate.reason}
        for record in records:
            if record.certificate_id not in (None, certificate.record_id):
                return verdict | {"why": f"a process names certificate {labels.short(record.certificate_id)}, not this cell's"}
            if record.model and certificate.model and _identity(record) != _identity(certificate):
                return verdict | {"why": "its certificate is for other weights or another network"}
        return verdict | {"certified": True}

    def _times(self, cell: Cell, record: Record, times: dict[int, float]) -> dict[str, Any]:
        estimate = statistics.estimate(list(times.values()))
        middle, low, high = estimate.value, estimate.low, estimate.high
        row: dict[str, Any] = {"time_per_batch_s": middle, "time_per_batch_low_s": low, "time_per_batch_high_s": high}
        if cell.scenario == "single_stream":
            row |= {"latency_s": middle, "latency_low_s": low, "latency_high_s": high}
        elif cell.batch_size is not None:
            row["throughput_images_per_s"] = cell.batch_size / middle
            row["throughput_low_images_per_s"] = cell.batch_size / high if high is not None else None
            row["throughput_high_images_per_s"] = cell.batch_size / low if low is not None else None
        if record.inputs:
            row["image_size"] = "x".join(map(str, record.inputs.shape[2:]))
        bound = roofline.bound(record, self.by_suite["probe"], self.machine)
        if bound is not None:
            fraction = bound.time_s / middle
            row["roofline"] = bound.line
            row |= {"roofline_error": f"{fraction:.0%} of {bound.doubt}"} if fraction > 1 else {"roofline_fraction": fraction}
        return row

    def _beside(self, cell: Cell, weights: str | None) -> dict[str, Any]:
        """What the other suites say of a cell with these weights."""
        row: dict[str, Any] = {}
        remarks = []
        for suite in ("memory", "startup", "cold_startup", "copies", "accuracy"):
            records = [record for record in self.by_suite[suite] if _covers(record, cell)]
            remarks += [
                f"{suite}: {record.status.replace('_', ' ')}: {record.reason}"
                for record in records
                if record.status != "ok" and not _lacks_weights(record)
            ]
        energies = [record for record in self.by_suite["energy"] if _covers(record, cell)]
        remarks += [f"energy: {flag}" for record in energies for flag in _flags(record)]
        row["remark"] = "; ".join(dict.fromkeys(remarks)) or None
        row |= {column: self._median("memory", cell, name) for column, name in MEMORY[cell.device].items()}
        row |= {name: self._median("copies", cell, name) for name in COPIES}
        row |= {name: self._median("startup", cell, name) for name in STARTUP}
        row |= {column: self._median("cold_startup", cell, name) for column, name in COLD_STARTUP.items()}
        row |= _energy(energies, cell) if self.by_suite["energy"] else {"energy_absent": NO_ENERGY}
        return row | self._accuracy(cell, weights)

    def _median(self, suite: str, cell: Cell, name: str) -> float | None:
        found = measured(self.by_suite[suite], cell, name)
        return descriptive.median(found) if found else None

    def _accuracy(self, cell: Cell, weights: str | None) -> dict[str, Any]:
        record = self._classified(cell, weights)
        if record is None and (absent := [each for each in self.by_suite["accuracy"] if _covers(each, cell)]):
            last = absent[-1]
            return {"top1_absent": last.reason if _lacks_weights(last) else last.status.replace("_", " ")}
        if record is None or record.measurements.get("top1") is None or not record.measurements.get("images"):
            return {}
        images = round(record.measurements["images"] or 0)
        top1 = float(record.measurements["top1"] or 0)
        low, high = statistics.wilson(round(top1 * images), images)
        row: dict[str, Any] = {"top1": top1, "top1_low": low, "top1_high": high, "images": images}
        row["dataset"] = (record.data or {}).get("dataset")
        implementation, mode = self.baseline.split("/", 1)
        other = self._classified(Cell(implementation, mode, cell.model, cell.precision, cell.device, None, None, None, None), weights)
        mine, theirs = _predictions(record), _predictions(other)
        if mine is not None and theirs is not None and len(mine) == len(theirs):
            row["flips"] = sum(a != b for a, b in zip(mine, theirs, strict=True))
        return row

    def _classified(self, cell: Cell, weights: str | None) -> Record | None:
        found = [record for record in self.by_suite["accuracy"] if record.status == "ok" and _covers(record, cell)]
        return next((record for record in reversed(found) if weights in (None, _weights(record))), None)

    def _compare(self, rows: list[dict[str, Any]], timed: dict[Cell, list[Record]], times: dict[Cell, dict[int, float]]) -> None:
        """Ratios, ties and ranks among the rows that may be compared and hold figures; of the others, why they may not."""
        groups: dict[tuple[object, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            if row.get("time_per_batch_s") is not None and _withheld(row) is None:
                groups[tuple(row[name] for name in GROUP)].append(row)
        for group in groups.values():
            cells = {f"{row['implementation']}/{row['mode']}": Cell(*(row[name] for name in CELL)) for row in group}
            found = likeness.examine({name: likeness.facts(timed[cell]) for name, cell in cells.items()}, self.baseline, self.allow_unlike)
            by_name = {name: times[cell] for name, cell in cells.items() if found[name].unlike is None}
            base = by_name.get(self.baseline)
            places = statistics.ranks(by_name) if _share_rounds(by_name.values()) else {}
            for name, row in zip(cells, group, strict=True):
                row.update(unlike=found[name].unlike, despite=found[name].despite)
                if base is not None and name in by_name and not row["is_baseline"]:
                    row.update(_ratio(base, by_name[name]))
                if name in places:
                    row.update(rank_low=places[name].low, rank_high=places[name].high)


def _second_clock(records: Iterable[Record]) -> dict[str, Any]:
    """What the second clock said in the one process that it timed too."""
    for beside in map(timing.of, records):
        if beside is not None and (found := beside.second_clock) is not None and (ratio := found.ratio()) is not None:
            return {
                "second_clock": found.name,
                "second_clock_s": statistics.estimate([each for each in found.net_s() if each > 0]).value,
                "second_clock_overhead_s": found.overhead_s,
                "second_clock_ratio": ratio.value,
                "second_clock_ratio_low": ratio.low,
                "second_clock_ratio_high": ratio.high,
            }
    return {}


def _withheld(row: Mapping[str, Any]) -> str | None:
    """Why a row may hold no figure; None where it may."""
    if row["status"] != "ok":
        return str(row["reason"])
    if not row["certified"]:
        return str(row["why"])
    if row["mixed"]:
        return str(row["mixed"])
    if row["noise"]:
        return str(row["noise"])
    if not row["measurement"]:
        return "NOT-A-MEASUREMENT: a smoke run"
    return None


def _covers(record: Record, cell: Cell) -> bool:
    """Whether what a record says holds for a cell: where it names a coordinate, the cell has the same one.

    Accuracy depends on neither batch size, scope, scenario nor threads.
    """
    if record.cell.certificate_cell != cell.certificate_cell:
        return False
    mine = (record.cell.batch_size, record.cell.scope, record.cell.scenario, record.cell.threads)
    its = (cell.batch_size, cell.scope, cell.scenario, cell.threads)
    return record.suite == "accuracy" or all(a is None or b is None or a == b for a, b in zip(mine, its, strict=True))


def measured(records: Iterable[Record], cell: Cell, name: str) -> list[float]:
    """A measurement by its name, of every process that is ok and speaks for the cell; the records are of one suite."""
    return [
        value
        for record in records
        if record.status == "ok" and _covers(record, cell) and (value := record.measurements.get(name)) is not None
    ]


def _energy(records: list[Record], cell: Cell) -> dict[str, Any]:
    """The energies of a cell, or why it has none, from its records of the suite."""
    if broken := [record for record in records if record.status != "ok"]:
        return {"energy_absent": broken[0].reason}
    row: dict[str, Any] = {}
    for name in ("energy", "net_energy"):
        values = measured(records, cell, f"{name}_j_per_image")
        if len(values) < ENERGY_PROCESSES:
            return {"energy_absent": f"{len(values)} of at least {ENERGY_PROCESSES} processes were measured"}
        if min(values) > 0:
            found = statistics.estimate(values)
            row |= {f"{name}{end}_j_per_image": getattr(found, of) for end, of in (("", "value"), ("_low", "low"), ("_high", "high"))}
    return row


def _flags(record: Record) -> list[str]:
    """What a process's energy is doubted for, where the suite said so."""
    found = (record.data or {}).get("flags")
    place = f"process {record.process.index}: " if record.process else ""
    return [f"{place}{flag}" for flag in found] if isinstance(found, list) else []


def process_times(records: Iterable[Record]) -> dict[int, float]:
    """Seconds of one call by round, of the processes that are ok; not of one whose every block was disturbed."""
    timed = [record for record in records if record.status == "ok" and record.samples is not None and not timing.left_out(record).all()]
    return {record.process.index: timing.call_s(record) for record in timed if record.process is not None}


def _steady(records: Iterable[Record]) -> str | None:
    """The class of most of a cell's processes with their share, after Barrett et al.; it is told, nothing is dropped for it."""
    verdicts = [steadiness.classify(record.samples).verdict for record in records if record.samples is not None]
    if not verdicts:
        return None
    common = descriptive.mode(verdicts)
    return common if len(set(verdicts)) == 1 else f"{common} in {verdicts.count(common)} of {len(verdicts)}"


def _mixed(records: Iterable[Record]) -> str | None:
    """Why the processes of a cell are no one measurement: they are of several protocols or machines; None where they are one."""
    kinds = sorted({(record.protocol_version, record.machine_id) for record in records})
    if len(kinds) == 1:
        return None
    each = (f"protocol {protocol} on machine {labels.short(machine)}" for protocol, machine in kinds)
    return f"its processes are not of one measurement: {labels.joined(list(each))}"


def _tails(cell: Cell, records: Iterable[Record]) -> dict[str, Any]:
    """Upper bounds of percentiles of latency: the largest over processes, and where any process has too few calls, how many it takes."""
    if cell.scenario != "single_stream":
        return {}
    processes = [timing.latencies_s(record) for record in records if record.status == "ok" and record.samples is not None]
    found: dict[str, Any] = {"calls": min(map(len, processes))}
    for percentile in PERCENTILES:
        bounds = [statistics.percentile_bound(calls, percentile) for calls in processes]
        values = [bound.value for bound in bounds if bound.value is not None]
        if len(values) == len(bounds):
            found[f"p{percentile}_s"] = max(values)
        else:
            found[f"p{percentile}_calls_needed"] = bounds[0].needed
    return found


def _share_rounds(times: Iterable[Mapping[int, float]]) -> bool:
    """Whether all have two rounds in common, the fewest that tell anything apart."""
    return len(frozenset.intersection(*(frozenset(rounds) for rounds in times))) >= 2


def _ratio(base: Mapping[int, float], times: Mapping[int, float]) -> dict[str, Any]:
    found = statistics.ratio(base, times)
    return {
        "ratio": found.value,
        "ratio_low": found.low,
        "ratio_high": found.high,
        "tie": found.tie,
        "mde": found.mde,
        "pairs": found.pairs,
    }


def _identity(record: Record) -> tuple[str, str] | None:
    return (record.model.weights_sha256, record.model.spec_sha256) if record.model else None


def _weights(record: Record) -> str | None:
    return record.model.weights_sha256 if record.model else None


def _lacks_weights(record: Record) -> bool:
    """Whether the model was not classified with because its weights were trained for no data set."""
    return record.suite == "accuracy" and record.status == "skipped" and (record.data or {}).get("dataset", "") is None


def _predictions(record: Record | None) -> list[int] | None:
    """The class of every image in the order of the dataset, where the accuracy suite kept it."""
    found = (record.data or {}).get("predictions") if record else None
    return found if isinstance(found, list) else None
