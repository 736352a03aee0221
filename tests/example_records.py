"""Records as a run makes them, for tests of what stores and reads them."""

from __future__ import annotations

from typing import Any

from results.record import Record, build

RUN_ID = "20260131T120000.000000Z-abcdef"


def fields(**changes: Any) -> dict[str, Any]:
    """The JSON fields of one inference record, with ``changes`` to the outermost."""
    return {
        "protocol_version": "1",
        "run_id": RUN_ID,
        "created_utc": "2026-01-31T12:00:05.250000Z",
        "suite": "inference",
        "cell": {
            "implementation": "pytorch",
            "mode": "eager",
            "model": "resnet50",
            "precision": "fp32",
            "device": "cpu",
            "batch_size": 1,
            "scope": "transfer",
            "scenario": "single_stream",
            "threads": 2,
        },
        "status": "ok",
        "reason": None,
        "measurement": True,
        "process": {"index": 0, "hash_seed": 7, "pad_bytes": 123, "order_seed": 11, "pid": 4321},
        "certificate_id": "6c1f000000000000",
        "settings": {"threads": 2, "tf32": False, "layout": "NCHW", "folded": False, "nested": {"list": [1, 2.5, None]}},
        "model": {"weights_sha256": "0" * 64, "spec_sha256": "1" * 64, "parameters": 25557032, "macs": 4089184256, "bytes_moved": None},
        "inputs": {"sha256": "2" * 64, "source": "photographs", "ring_size": 8, "shape": [1, 3, 224, 224]},
        "software": {"python": "3.11.7", "torch": "2.13.0"},
        "code": {"version": "0.1.0", "commit": "f" * 40, "dirty": False, "diff_sha256": None},
        "machine_id": "0123456789abcdef",
        "env_vars": {"OMP_NUM_THREADS": "2"},
        "timer": {"clock": "perf_counter_ns", "resolution_ns": 1, "overhead_ns": 40},
        "samples": {
            "visit": [0, 0, 1, 1],
            "start_ns": [1000, 2100, 9000, 9900],
            "duration_ns": [1100, 900, 880, 905],
            "calls": [1, 1, 1, 1],
            "warmup": [True, False, True, False],
        },
        "measurements": {"import_s": 1.25, "load_s": 0.5, "first_call_s": 0.25, "peak_memory_bytes": None, "images": 2},
        "data": None,
        "log_tail": None,
    } | changes


def record(**changes: Any) -> Record:
    """The record of ``fields``."""
    return build(fields(**changes))


def of_process(index: int, run_id: str = RUN_ID) -> Record:
    """The record of one round."""
    return record(run_id=run_id, process=fields()["process"] | {"index": index})
