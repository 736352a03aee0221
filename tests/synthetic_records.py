"""Small records for the tests of the reports: a run on disk, made through the real schema and store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from results.record import Cell, Code, Inputs, Model, Process, Record, Samples, Timer
from results.store import Store

SHA = "ab" * 32
MACHINE = {"machine_id": "efb6512f3c0b812b", "cpu_model": "AMD EPYC 9B45", "cores": 2, "cache_bytes": 32 << 20}
CODE = Code("0.1.0", "c0ffee" * 6 + "abcd", False, None)
SOFTWARE = {
    "pytorch": {"torch": "2.13.0"},
    "jax": {"jax": "0.10.2"},
    "tensorflow": {"tensorflow": "2.21.0"},
    "onnx": {"onnxruntime": "1.31.1"},
}


SETTINGS: dict[str, Any] = {
    **{"precision": "float32", "tf32": False, "threads": 2, "folded": True, "deterministic": False},
    "layout": "NCHW",
}


class Run:
    """A run in the making: each method appends records of one suite."""

    def __init__(self, root: Path, machine: dict[str, object] | None = None, code: Code = CODE, protocol_version: str = "1") -> None:
        self.code, self.protocol_version = code, protocol_version
        self.store = Store(root)
        self.run = self.store.create_run(machine or MACHINE, {"command": ["bench", "--models", "resnet50"]})
        self.folder = root / self.run.run_id
        self.certificates: dict[Cell, str] = {}
        self.clock = 0
        self.random = np.random.default_rng(7)

    def cell(self, name: str, **changes: Any) -> Cell:
        """The cell of "implementation/mode", with changed coordinates."""
        implementation, mode = name.split("/")
        what = {"model": "resnet50", "precision": "fp32", "device": "cpu"}
        how = {"batch_size": 1, "scope": "transfer", "scenario": "single_stream", "threads": 2}
        return Cell(implementation, mode, **{**what, **how, **changes})

    def append(self, suite: str, cell: Cell, index: int | None = None, **changes: Any) -> Record:
        """One record, complete but for ``changes``."""
        self.clock += 1
        fields: dict[str, Any] = {
            "protocol_version": self.protocol_version,
            "run_id": self.run.run_id,
            "created_utc": f"2026-11-20T05:{self.clock // 60 % 60:02d}:{self.clock % 60:02d}Z",
            "suite": suite,
            "cell": cell,
            "status": "ok",
            "reason": None,
            "measurement": True,
            "process": None if index is None else Process(index, 0, 0, 0, 1),
            "certificate_id": self.certificates.get(cell.certificate_cell),
            "settings": SETTINGS,
            "model": Model(SHA, SHA, 25_557_032, 4_089_184_256, None),
            "inputs": Inputs(SHA, "scikit-learn china.jpg and flower.jpg", 8, (cell.batch_size or 1, 3, 224, 224)),
            "software": {"python": "3.11.7", **SOFTWARE.get(cell.implementation, {})},
            "code": self.code,
            "machine_id": self.run.machine["machine_id"],
            "env_vars": {},
            "timer": None,
            "samples": None,
            "measurements": {},
            "data": None,
            "log_tail": None,
        }
        record = Record(**{**fields, **changes})
        self.store.append(record)
        return record

    def certify(self, name: str, reason: str | None = None, suite: str = "equivalence", **changes: Any) -> None:
        """A certificate of the cell, passed unless there is a ``reason`` why not; ``suite`` says of what."""
        cell = self.cell(name, **changes).certificate_cell
        status = "ok" if reason is None else "not_certified"
        self.certificates[cell] = self.append(suite, cell, status=status, reason=reason).record_id

    def process(
        self, name: str, index: int, seconds: float, measurement: bool = True, told: dict[str, Any] | None = None, **changes: Any
    ) -> None:
        """One timed process in which every call takes ``seconds``; ``told`` are fields of its record, ``changes`` of its cell."""
        cell = self.cell(name, **changes)
        calls = 1 if cell.scenario == "single_stream" else 4
        nanoseconds = round(seconds * calls * 1e9)
        starts = tuple(turn * (10 * nanoseconds + 10) for turn in range(5))
        samples = Samples((0, 0, 0, 1, 1), starts, (9 * nanoseconds, *[nanoseconds] * 4), (calls,) * 5, (True, *[False] * 4))
        timer = Timer("time.perf_counter_ns", 1, 40)
        self.append(cell.timed_by, cell, index, **{"samples": samples, "timer": timer, "measurement": measurement, **(told or {})})

    def timed(
        self,
        name: str,
        seconds: float,
        processes: int = 5,
        spread: float = 0.01,
        told: dict[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        """Processes whose times scatter around ``seconds`` by the fraction ``spread``; ``told`` are fields of their records."""
        for index in range(processes):
            self.process(name, index, seconds * float(np.exp(spread * self.random.standard_normal())), told=told, **changes)

    def probe(
        self, peak_flops_per_s: float, copy_bytes_per_s: float, name: str = "pytorch/eager", precision: str = "fp32", device: str = "cpu"
    ) -> None:
        """A probe of the machine's limits."""
        cell = self.cell(name, model="probe", precision=precision, device=device, batch_size=None, scope=None, scenario=None)
        limits = {"peak_flops_per_s": peak_flops_per_s, "copy_bytes_per_s": copy_bytes_per_s}
        self.append("probe", cell, measurements=limits, model=None, inputs=None)


def field_of_four(root: Path) -> Run:
    """A whole comparison: two leaders that tie, the baseline, a slower one, and one row of every kind without figures."""
    run = Run(root)
    run.probe(578e9, 21e9)
    run.probe(560e9, 23e9, "jax/jit")
    speeds = {"pytorch/eager": 0.0203, "pytorch/compile": 0.0179, "onnx/ort": 0.0180, "tensorflow/graph": 0.0231, "jax/jit": 0.0203}
    for name, seconds in speeds.items():
        run.certify(name)
        for batch_size in (1, 4):
            run.timed(name, seconds * batch_size**0.93, batch_size=batch_size, processes=6)
        run.timed(name, seconds * 8**0.9, batch_size=8, scenario="offline", processes=6)
        memory = {"pytorch/eager": 590, "pytorch/compile": 612, "onnx/ort": 401, "tensorflow/graph": 845, "jax/jit": 707}[name]
        run.append("memory", run.cell(name), 0, measurements={"peak_memory_bytes": memory * 2.0**20})
        for index in range(3):
            startup = {"import_s": seconds * 80 + index / 10, "load_s": 0.2, "first_call_s": seconds * 100}
            run.append("startup", run.cell(name), index, measurements=startup)
        predictions = [image % 10 for image in range(500)]
        if name == "onnx/ort":
            predictions[17] = 9
        accuracy = {"top1": 0.942 if name == "onnx/ort" else 0.944, "images": 500.0}
        data = {"predictions": predictions}
        run.append("accuracy", run.cell(name).certificate_cell, measurements=accuracy, data=data)
    run.certify("tensorflow/xla", "layer3.0.conv2: padding (0,1), not (1,1)")
    run.append("inference", run.cell("pytorch/graph"), None, status="skipped", reason="no CUDA device <script>alert(1)</script> | here")
    run.append("equivalence", run.cell("onnx/ort", precision="fp64").certificate_cell, status="skipped", reason="it has no float64 Conv")
    return run


GPU = {
    **{"name": "MADE-UP GPU", "driver": "0.0", "cuda_driver": "13.1", "memory_bytes": 141 << 30, "power_limit_w": 700.0, "ecc": True},
    **{"power_default_w": 700.0, "persistence": True, "instance": False, "compute_processes": 0, "used_bytes": 0},
}
GPU_MACHINE = {**MACHINE, "gpu_model": "MADE-UP GPU (no such card)", "gpu": GPU, "cautions": ["every number here is made up"]}

GPU_ARMS: dict[str, tuple[float, float, str]] = {
    "pytorch/eager": (1.9e-3, 13_000, "NCHW"),
    "pytorch/channels_last": (1.8e-3, 21_800, "NHWC"),
    "pytorch/compile": (0.9e-3, 33_500, "NHWC"),
    "pytorch/max_autotune": (0.31e-3, 34_200, "NHWC"),
    "pytorch/compile_autocast": (0.95e-3, 33_400, "NHWC"),
    "jax/jit": (0.42e-3, 31_000, "NHWC"),
    "tensorflow/graph": (2.2e-3, 15_500, "NHWC"),
    "tensorflow/xla": (0.8e-3, 29_500, "NHWC"),
}
"""Made up: seconds of a call at batch 1 and images per second at 256 in bf16, and the layout."""


def made_up_gpu(root: Path) -> Run:
    """A run as a GPU would give it, of numbers that nobody measured; the name of the card says so on the page."""
    run = Run(root, GPU_MACHINE)
    what = {"device": "cuda", "threads": 1}
    for precision, slower in (("bf16", 1.0), ("tf32", 2.0)):
        run.probe(790e12 / slower, 4.3e12, "pytorch/eager", precision, device="cuda")
        for name, (latency_s, rate, layout) in GPU_ARMS.items():
            if precision == "tf32" and name == "pytorch/compile_autocast":
                continue
            run.certify(name, precision=precision, **what)
            told = {"settings": {**SETTINGS, "layout": layout, "tf32": precision == "tf32", "libraries": {"cudnn": "9.20.0"}}}
            for scope, more in (("device", 1.0), ("transfer", 1.3)):
                coordinates = {**what, "precision": precision, "scope": scope}
                run.timed(name, latency_s * more * slower**0.3, processes=3, told=told, batch_size=1, **coordinates)
                for size in (32, 256, 1024) if scope == "device" else (256,):
                    at = {**coordinates, "batch_size": size, "scenario": "offline"}
                    if (name, size) == ("tensorflow/graph", 1024):
                        run.append("inference", run.cell(name, **at), status="out_of_memory", reason="RESOURCE_EXHAUSTED: made up")
                        continue
                    run.timed(name, more * slower * (size + 8) / rate, processes=3, told=told, **at)
                    peak = {"peak_allocated_bytes": size * 12e6, "peak_reserved_bytes": size * 15e6}
                    run.append("memory", run.cell(name, **at), 0, measurements=peak)
                    copies = {"copy_in_s": size * 602_112 / 25e9, "copy_out_s": size * 4000 / 5e9}
                    run.append("copies", run.cell(name, **at), 0, measurements=copies)
            startup = {"import_s": 4.0, "load_s": 0.5, "first_call_s": latency_s * 10_000}
            run.append("startup", run.cell(name, **what, precision=precision, scope="device"), 0, measurements=startup)
    for precision, reason in (("bf16", "its CUDA provider has no bfloat16 Conv"),):
        cell = run.cell("onnx/ort", precision=precision, device="cuda").certificate_cell
        run.append("equivalence", cell, status="skipped", reason=reason)
    return run
