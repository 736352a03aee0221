"""The frame: every rule that decides whether a row may hold a figure, and what the figures are."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import levelfield
from reports import frame, likeness, table, write
from results import statistics
from results.record import Inputs, Model, Samples
from tests.synthetic_records import MACHINE, SETTINGS, SHA, Run, field_of_four


def row(cells: pd.DataFrame, name: str, **fields: object) -> pd.Series:
    """The one row of "implementation/mode" with these values."""
    implementation, mode = name.split("/")
    chosen = (cells["implementation"] == implementation) & (cells["mode"] == mode)
    for column, value in fields.items():
        chosen &= cells[column] == value
    assert chosen.sum() == 1, f"{name}: {chosen.sum()} rows"
    return cells[chosen].iloc[0]


def no_figure(cells: pd.Series) -> bool:
    return bool(cells[frame.FIGURES].isna().all())


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return frame.load(field_of_four(tmp_path_factory.mktemp("field")).folder)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def pair(run: Run, processes: int = 5, **changes: object) -> None:
    """PyTorch eager at 20 ms and JAX at 10 ms, both certified."""
    for name, seconds in (("pytorch/eager", 0.020), ("jax/jit", 0.010)):
        run.certify(name, **{key: value for key, value in changes.items() if key in ("model", "precision")})
        run.timed(name, seconds, processes=processes, **changes)


def test_dtypes_are_the_documented_ones(field: pd.DataFrame) -> None:
    """The docstring of load names every column with its dtype, and the frame has exactly these."""
    documented = dict(re.findall(r"^    (\w+) +(string|Int64|Float64|boolean) ", frame.load.__doc__ or "", re.MULTILINE))
    assert documented == dict(frame.DTYPES)
    assert {name: str(dtype) for name, dtype in field.dtypes.items()} == documented


def test_an_empty_run_has_the_same_columns(run: Run) -> None:
    """A run without a record gives no row, and all columns with their dtypes."""
    cells = frame.load(run.folder)
    assert len(cells) == 0
    assert {name: str(dtype) for name, dtype in cells.dtypes.items()} == dict(frame.DTYPES)


def test_one_row_per_cell(field: pd.DataFrame) -> None:
    """No cell of a run stands twice, and processes are counted, not listed."""
    assert not field.duplicated(["run_id", *frame.CELL]).any()
    assert row(field, "jax/jit", batch_size=1)["processes"] == 6


def test_latency_and_ratio(run: Run) -> None:
    """A framework that takes half the time has speed 2, with an interval that holds it, rank 1 and no tie."""
    pair(run)
    fast, base = (row(frame.load(run.folder), name) for name in ("jax/jit", "pytorch/eager"))
    assert fast["latency_low_s"] < fast["latency_s"] < fast["latency_high_s"]
    assert fast["latency_s"] == pytest.approx(0.010, rel=0.03)
    assert fast["ratio_low"] < 2 < fast["ratio_high"]
    assert (fast["rank_low"], fast["rank_high"], base["rank_low"], base["rank_high"]) == (1, 1, 2, 2)
    assert not fast["tie"]
    assert base["is_baseline"]
    assert pd.isna(base["ratio"])
    assert pd.isna(fast["throughput_images_per_s"])


def test_ratios_are_paired_by_round(run: Run) -> None:
    """What disturbs a whole round disturbs both arms: the ratio is exact although the times scatter by a factor of four."""
    for name, factor in (("pytorch/eager", 1.0), ("jax/jit", 0.5)):
        run.certify(name)
        for index, noise in enumerate((1.0, 4.0, 2.0, 1.5)):
            run.process(name, index, 0.01 * noise * factor)
    fast = row(frame.load(run.folder), "jax/jit")
    assert fast["ratio_low"] == pytest.approx(2, rel=1e-6)
    assert fast["ratio_high"] == pytest.approx(2, rel=1e-6)
    assert fast["latency_high_s"] > 2 * fast["latency_low_s"]


def test_rounds_of_one_alone_are_no_pair(run: Run) -> None:
    """Processes are matched by their index: a process without its partner enters no ratio."""
    run.certify("pytorch/eager")
    run.certify("jax/jit")
    for index in (0, 1, 2):
        run.process("pytorch/eager", index, 0.02)
    for index in (2, 3, 4):
        run.process("jax/jit", index, 0.01)
    fast = row(frame.load(run.folder), "jax/jit")
    assert fast["pairs"] == 1
    assert fast["processes"] == 3
    assert pd.isna(fast["ratio"])
    assert pd.isna(fast["rank_low"])


def test_one_process_has_no_interval(run: Run) -> None:
    """K = 1 gives a time without interval, no ratio and no rank."""
    pair(run, processes=1)
    fast = row(frame.load(run.folder), "jax/jit")
    assert fast["latency_s"] > 0
    assert pd.isna(fast[["latency_low_s", "latency_high_s", "ratio", "tie", "rank_low"]]).all()


def test_equal_frameworks_tie(run: Run) -> None:
    """Two frameworks of one speed tie, and both may hold either rank."""
    run.certify("pytorch/eager")
    run.certify("jax/jit")
    for index, factor in enumerate((1.0, 1.02, 0.98, 1.01, 0.99)):
        run.process("pytorch/eager", index, 0.02)
        run.process("jax/jit", index, 0.02 * factor)
    cells = frame.load(run.folder)
    assert row(cells, "jax/jit")["tie"]
    assert set(cells["rank_low"]) == {1}
    assert set(cells["rank_high"]) == {2}
    assert 0 < row(cells, "jax/jit")["mde"] < 0.2


def test_throughput_is_images_over_wall_time(run: Run) -> None:
    """Offline rows hold images per second and no latency; the interval's ends stay in order."""
    pair(run, scenario="offline", batch_size=8)
    fast = row(frame.load(run.folder), "jax/jit")
    assert fast["throughput_images_per_s"] == pytest.approx(8 / 0.010, rel=0.03)
    assert fast["throughput_low_images_per_s"] < fast["throughput_images_per_s"] < fast["throughput_high_images_per_s"]
    assert pd.isna(fast["latency_s"])


@pytest.mark.parametrize("differs", [{"batch_size": 2}, {"scope": "device"}, {"threads": 1}, {"precision": "bf16"}, {"model": "resnet18"}])
def test_unlike_rows_are_never_compared(run: Run, differs: dict[str, object]) -> None:
    """A row that differs in any coordinate from the baseline has no ratio, and does not take part in its ranks."""
    run.certify("pytorch/eager")
    run.timed("pytorch/eager", 0.02)
    run.certify("jax/jit", **{key: value for key, value in differs.items() if key in ("model", "precision")})
    run.timed("jax/jit", 0.01, **differs)
    cells = frame.load(run.folder)
    assert row(cells, "jax/jit")["latency_s"] > 0
    assert cells["ratio"].isna().all()
    assert set(cells["rank_high"]) == {1}


UNLIKE = {
    **{
        name: {"settings": {**SETTINGS, name: value}}
        for name, value in (("precision", "bfloat16"), ("tf32", True), ("threads", 1), ("folded", False))
    },
    "inputs_sha256": {"inputs": Inputs("cd" * 32, "noise", 8, (1, 3, 224, 224))},
    "weights_sha256": {"model": Model("cd" * 32, SHA, 25_557_032, 4_089_184_256, None)},
    "protocol_version": {"protocol_version": "2"},
}
"""What a process of an unlike row tells, by the field in which it differs."""


def three(run: Run, told: dict[str, object]) -> None:
    """PyTorch eager, ONNX Runtime, and JAX, whose processes tell something else."""
    for name, seconds in (("pytorch/eager", 0.020), ("onnx/ort", 0.015), ("jax/jit", 0.010)):
        if name == "jax/jit" and "model" in told:
            run.certificates[run.cell(name).certificate_cell] = run.append("equivalence", run.cell(name).certificate_cell, **told).record_id
        else:
            run.certify(name)
        run.timed(name, seconds, told=told if name == "jax/jit" else None)


@pytest.mark.parametrize("field", UNLIKE)
def test_a_row_that_was_set_up_otherwise_is_not_compared(run: Run, field: str) -> None:
    """It keeps its own figures, and has neither ratio nor rank; the others are ranked as if it were not there."""
    three(run, UNLIKE[field])
    cells = frame.load(run.folder)
    fast, other = row(cells, "jax/jit"), row(cells, "onnx/ort")
    assert fast["latency_s"] > 0
    assert fast[["ratio", "ratio_low", "ratio_high", "tie", "mde", "pairs", "rank_low", "rank_high"]].isna().all()
    assert fast["unlike"].startswith(f"not compared with PyTorch eager: {field} differs (")
    assert (other["rank_low"], other["rank_high"], row(cells, "pytorch/eager")["rank_low"]) == (1, 1, 2)
    assert pd.isna(other["unlike"])
    assert other["ratio"] > 1


def test_what_is_allowed_to_differ_is_compared(run: Run) -> None:
    """With its field lifted the row has its ratio and rank back, and says what differs."""
    three(run, UNLIKE["tf32"])
    fast = row(frame.load(run.folder, allow_unlike=["folded", "tf32"]), "jax/jit")
    assert fast["ratio_low"] < 2 < fast["ratio_high"]
    assert fast["rank_low"] == 1
    assert pd.isna(fast["unlike"])
    assert fast["despite"] == "compared with PyTorch eager although tf32 differs (true, false), as allowed"
    assert pd.isna(row(frame.load(run.folder, allow_unlike=["folded"]), "jax/jit")["ratio"])
    with pytest.raises(likeness.AllowUnlikeError, match="--allow-unlike protocol_version"):
        frame.load(run.folder, allow_unlike=["protocol_version"])


def test_layout_is_what_a_comparison_is_about(run: Run) -> None:
    """As are implementation, mode and software: an implementation chooses its layout."""
    three(run, {"settings": {**SETTINGS, "layout": "NHWC"}, "software": {"jax": "9"}})
    assert frame.load(run.folder)["unlike"].isna().all()


@pytest.mark.parametrize("changed", [{"protocol_version": "2"}, {"machine_id": "0" * 16}])
def test_processes_of_two_measurements_are_no_row(run: Run, changed: dict[str, object]) -> None:
    """A cell of which one process is of another protocol or machine holds no figure and says why."""
    pair(run)
    run.process("jax/jit", 5, 0.01, told=changed)
    bare = row(frame.load(run.folder), "jax/jit")
    assert no_figure(bare)
    assert bare["reason"].startswith("its processes are not of one measurement: protocol 1 on machine ")


@pytest.mark.parametrize("changed", [{"protocol_version": "2"}, {"machine": {**MACHINE, "machine_id": "0" * 16}}])
def test_protocols_and_machines_stand_in_tables_of_their_own(tmp_path: Path, changed: dict[str, Any]) -> None:
    """A folder with runs of two protocols, or of two machines: no table holds both, and every ratio is within its run."""
    for run in (Run(tmp_path), Run(tmp_path, **changed)):
        three(run, {})
    cells = frame.load(tmp_path)
    sections = list(table.groups(cells))
    assert len(sections) == 2
    for part in sections:
        assert part["run_id"].nunique() == part["machine_id"].nunique() == 1
        assert part["ratio"].notna().sum() == 2
    loaded = frame.read(tmp_path)
    assert all(len({each.protocol_version for each in loaded.records if each.run_id == run_id}) == 1 for run_id in loaded.runs)


def calls(run: Run, name: str, index: int, seconds: list[float]) -> None:
    """One process with these calls behind a slow one that is warm-up."""
    nanoseconds = (10**9, *(round(each * 1e9) for each in seconds))
    starts = tuple(int(start) for start in np.cumsum((0, *nanoseconds[:-1])))
    count = len(nanoseconds)
    samples = Samples((0, *[1] * (count - 1)), starts, nanoseconds, (1,) * count, (True, *[False] * (count - 1)))
    run.process(name, index, 1.0, told={"samples": samples})


def test_percentiles_are_the_largest_bound_of_a_process(run: Run) -> None:
    """Calls are never pooled over processes: the worst process's bound holds for all."""
    run.certify("pytorch/eager")
    processes = [list(0.01 * factor * np.exp(0.1 * run.random.standard_normal(700))) for factor in (1.0, 1.2, 1.1)]
    for index, seconds in enumerate(processes):
        calls(run, "pytorch/eager", index, seconds)
    found = row(frame.load(run.folder), "pytorch/eager")
    for percentile in (90, 99):
        bounds = [statistics.percentile_bound(each, percentile).value for each in processes]
        assert found[f"p{percentile}_s"] == pytest.approx(bounds[1], abs=1e-9)
        assert bounds[1] == max(bound or 0 for bound in bounds)
        assert np.quantile(processes[1], percentile / 100) < found[f"p{percentile}_s"] < 1
    assert found["calls"] == 700
    assert found[["p90_calls_needed", "p99_calls_needed"]].isna().all()


def test_a_percentile_of_too_few_calls_is_not_reportable(run: Run) -> None:
    """One process without a bound leaves the row without; the calls that are needed are MLPerf's 64 and 662."""
    run.certify("pytorch/eager")
    calls(run, "pytorch/eager", 0, [0.01] * 700)
    calls(run, "pytorch/eager", 1, [0.01] * 661)
    found = row(frame.load(run.folder), "pytorch/eager")
    assert (found["calls"], found["p99_calls_needed"]) == (661, 662)
    assert found["p90_s"] == pytest.approx(0.01)
    assert found[["p99_s", "p90_calls_needed"]].isna().all()
    calls(run, "pytorch/eager", 2, [0.01] * 63)
    found = row(frame.load(run.folder), "pytorch/eager")
    assert (found["calls"], found["p90_calls_needed"]) == (63, 64)
    assert pd.isna(found["p90_s"])


def test_a_throughput_has_no_percentiles(run: Run) -> None:
    """A window's calls are not waited for one by one."""
    pair(run, scenario="offline", batch_size=8)
    columns = ["calls", *(f"p{each}_{what}" for each in (90, 99) for what in ("s", "calls_needed"))]
    assert frame.load(run.folder)[columns].isna().all(axis=None)


def test_a_missing_baseline_leaves_ranks(run: Run) -> None:
    """Without the baseline there are no ratios; ranks come from all pairs and stay."""
    for name, seconds in (("onnx/ort", 0.02), ("jax/jit", 0.01)):
        run.certify(name)
        run.timed(name, seconds)
    cells = frame.load(run.folder)
    assert cells["ratio"].isna().all()
    assert row(cells, "jax/jit")["rank_high"] == 1


def test_another_baseline(run: Run) -> None:
    """``baseline`` turns the ratio round, and goes through levelfield.load."""
    pair(run)
    slow = row(levelfield.load(run.folder, baseline="jax/jit"), "pytorch/eager")
    assert slow["ratio_low"] < 0.5 < slow["ratio_high"]


def test_no_certificate_no_number(run: Run) -> None:
    """A timed row without any certificate holds no figure and says why, and others are ranked without it."""
    pair(run)
    run.timed("onnx/ort", 0.001)
    cells = frame.load(run.folder)
    bare = row(cells, "onnx/ort")
    assert no_figure(bare)
    assert not bare["certified"]
    assert "no certificate" in bare["reason"]
    assert bare["processes"] == 5
    assert row(cells, "jax/jit")["rank_low"] == 1


def test_a_failed_certificate_is_no_certificate(run: Run) -> None:
    """A certificate that did not pass withholds the figures and gives its reason."""
    run.certify("onnx/ort", "conv1: stride 1, not 2")
    run.timed("onnx/ort", 0.001)
    bare = row(frame.load(run.folder), "onnx/ort")
    assert no_figure(bare)
    assert bare["reason"] == "conv1: stride 1, not 2"


def test_a_certificate_of_another_mode_or_other_weights_does_not_count(run: Run) -> None:
    """A certificate holds for its own cell and weights only."""
    run.certify("jax/jit")
    run.timed("jax/scan", 0.001)
    cell = run.cell("onnx/ort").certificate_cell
    other = run.append("equivalence", cell, model=Model("cd" * 32, "ab" * 32, 1, 1, None))
    run.certificates[cell] = other.record_id
    run.timed("onnx/ort", 0.001)
    cells = frame.load(run.folder)
    assert no_figure(row(cells, "jax/scan"))
    assert no_figure(row(cells, "onnx/ort"))
    assert "other weights" in row(cells, "onnx/ort")["reason"]


def test_a_named_certificate_must_be_the_cells(run: Run) -> None:
    """A process that names a certificate which is not its cell's holds no figure."""
    run.certify("jax/jit")
    run.certificates[run.cell("jax/jit").certificate_cell] = "0123456789abcdef"
    run.timed("jax/jit", 0.001)
    assert no_figure(row(frame.load(run.folder), "jax/jit"))


def test_a_smoke_run_is_no_measurement(run: Run) -> None:
    """A smoke row is certified and counted, and holds no figure."""
    pair(run, measurement=False)
    cells = frame.load(run.folder)
    assert not cells["measurement"].any()
    assert all(no_figure(cells.iloc[index]) for index in range(len(cells)))
    assert cells["certified"].all()


def test_a_failed_process_fails_the_row_until_it_is_run_again(run: Run) -> None:
    """One failed process withholds the row; the same process measured later heals it."""
    pair(run)
    run.append("inference", run.cell("jax/jit"), 5, status="timed_out", reason="no reply in 60 s")
    failed = row(frame.load(run.folder), "jax/jit")
    assert no_figure(failed)
    assert (failed["status"], failed["reason"]) == ("timed_out", "process 5: no reply in 60 s")
    run.process("jax/jit", 5, 0.01)
    healed = row(frame.load(run.folder), "jax/jit")
    assert healed["status"] == "ok"
    assert healed["processes"] == 6


def test_skipped_and_uncertified_cells_are_rows(field: pd.DataFrame) -> None:
    """What was never timed is a row with its reason."""
    assert row(field, "onnx/ort", precision="fp64")["status"] == "skipped"
    assert row(field, "tensorflow/xla")["reason"].startswith("layer3.0.conv2")
    assert no_figure(row(field, "tensorflow/xla"))


def test_what_was_measured_beside(field: pd.DataFrame) -> None:
    """Memory and start-up belong to the batch size at which they were taken, accuracy to every row of the cell."""
    first, fourth = row(field, "onnx/ort", batch_size=1), row(field, "onnx/ort", batch_size=4)
    assert first["peak_memory_bytes"] == 401 * 2**20
    assert pd.isna(fourth["peak_memory_bytes"])
    assert first["import_s"] == pytest.approx(0.018 * 80 + 0.1)
    assert fourth["top1"] == 0.942
    assert fourth["top1_low"] < 0.942 < fourth["top1_high"]
    assert fourth["flips"] == 1
    assert row(field, "pytorch/eager", batch_size=4)["flips"] == 0


def test_two_weight_files_of_one_model_are_two_rows(run: Run) -> None:
    """Each with the certificate, the accuracy and the flips of its own; what names no weights is of both."""
    for place, sha in enumerate(("a" * 64, "b" * 64, "c" * 64)):
        model = Model(sha, SHA, 25_557_032, 4_089_184_256, None)
        for name in ("pytorch/eager", "onnx/ort"):
            cell = run.cell(name).certificate_cell
            why: dict[str, Any] = {"status": "not_certified", "reason": "E2: off"} if sha[0] == "c" else {}
            run.append("equivalence", cell, model=model, **why)
            predicted = [0, 1, 2, 3] if name == "pytorch/eager" else [0, 1, 2 + place, 3 + place]
            data = {"dataset": "cifar10", "predictions": predicted}
            run.append("accuracy", cell, model=model, measurements={"top1": 0.9 + place / 100, "images": 4}, data=data)
    run.append("startup", run.cell("onnx/ort").certificate_cell, model=None)
    cells = frame.load(run.folder)
    first, second, third = (row(cells, "onnx/ort", weights_sha256=sha * 64) for sha in "abc")
    assert (first["top1"], second["top1"]) == (0.9, pytest.approx(0.91))
    assert (first["flips"], second["flips"]) == (0, 2)
    assert [each["certified"] for each in (first, second, third)] == [True, True, False]
    assert no_figure(third)
    assert len(cells) == 6


def test_weights_that_were_not_timed_lend_no_accuracy(run: Run) -> None:
    """A timed row has the accuracy of its own weights or none."""
    pair(run)
    other = Model("a" * 64, SHA, 25_557_032, 4_089_184_256, None)
    run.append(
        "accuracy", run.cell("jax/jit").certificate_cell, model=other, measurements={"top1": 0.5, "images": 4}, data={"dataset": "x"}
    )
    assert pd.isna(row(frame.load(run.folder), "jax/jit")["top1"])


def test_a_failure_beside_the_timing_is_remarked(run: Run) -> None:
    """A memory process that failed leaves the latency and says so."""
    pair(run)
    run.append("memory", run.cell("jax/jit"), 0, status="out_of_memory", reason="allocation of 3 GiB")
    fast = row(frame.load(run.folder), "jax/jit")
    assert fast["latency_s"] > 0
    assert fast["remark"] == "memory: out of memory: allocation of 3 GiB"


def test_roofline_takes_the_best_probe(run: Run) -> None:
    """The peak is the largest of the probes in this precision; bf16's does not count for fp32."""
    run.probe(400e9, 20e9)
    run.probe(578e9, 20e9, "jax/jit")
    run.probe(5e12, 20e9, precision="bf16")
    pair(run, processes=2)
    base = row(frame.load(run.folder), "pytorch/eager")
    assert base["roofline_fraction"] == pytest.approx(2 * 4_089_184_256 / 578e9 / base["latency_s"])


def test_roofline_counts_weights_that_no_cache_holds(run: Run, tmp_path: Path) -> None:
    """With a slow memory the bound is weights and input less the cache, over the copy's bandwidth; unknown caches count none."""
    run.probe(1e15, 10e9)
    pair(run, processes=2)
    base = row(frame.load(run.folder), "pytorch/eager")
    moved = (25_557_032 + 3 * 224 * 224) * 4 - (32 << 20)
    assert base["roofline_fraction"] == pytest.approx(moved / 10e9 / base["latency_s"])
    blind = Run(tmp_path / "blind", {key: value for key, value in MACHINE.items() if key != "cache_bytes"})
    blind.probe(1e15, 10e9)
    pair(blind, processes=2)
    assert row(frame.load(blind.folder), "pytorch/eager")["roofline_fraction"] < 0.01


def test_more_than_the_roofline_is_an_error(run: Run) -> None:
    """A time below the bound is never clipped to 100 %: the row names the probe instead."""
    run.probe(100e9, 20e9, "jax/jit")
    pair(run, processes=2)
    base = row(frame.load(run.folder), "pytorch/eager")
    assert pd.isna(base["roofline_fraction"])
    assert "FLOP rate probe (jax)" in base["roofline_error"]
    assert re.match(r"4\d\d%", base["roofline_error"])


def test_a_folder_of_runs(tmp_path: Path) -> None:
    """Rows of two runs stand side by side and are never in one ratio."""
    first, second = Run(tmp_path), Run(tmp_path)
    first.certify("pytorch/eager")
    first.timed("pytorch/eager", 0.02)
    second.certify("jax/jit")
    second.timed("jax/jit", 0.01)
    cells = frame.load(tmp_path)
    assert list(cells["run_id"]) == [first.run.run_id, second.run.run_id]
    assert cells["ratio"].isna().all()


def test_no_run_is_one_sentence(tmp_path: Path) -> None:
    """A folder without runs is refused by name."""
    with pytest.raises(frame.NoRecordsError, match=re.escape(str(tmp_path))):
        frame.load(tmp_path)


@pytest.mark.parametrize("baseline", ["", "pytorch", "pytorch/", "/eager", "a/b/c"])
def test_a_baseline_has_two_parts(run: Run, baseline: str) -> None:
    """Anything but implementation/mode is refused in one sentence that shows how it is written."""
    with pytest.raises(frame.BaselineError, match="like pytorch/eager"):
        frame.load(run.folder, baseline)


def test_unreadable_files_are_named(run: Run) -> None:
    """A file that is no record is left out, and named without the path of this machine."""
    pair(run)
    (run.folder / "records" / "broken.json").write_text("{", encoding="ascii")
    loaded = frame.read(run.folder)
    assert len(loaded.unreadable) == 1
    assert loaded.unreadable[0].startswith("broken.json: not valid JSON")
    assert len(frame.tidy(loaded)) == 2


def test_importing_levelfield_needs_nothing() -> None:
    """The door opens without pandas, and without any other part of the project."""
    heavy = {"pandas", "numpy", "reports", "results", "impls"}
    code = f"import sys, levelfield; print({{name.split('.')[0] for name in sys.modules}} & {heavy})"
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(root)})
    assert done.stdout.strip() == "set()"


def _twelve_records() -> frame.Loaded:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        pair(run)
        return frame.read(run.folder)


RECORDS = _twelve_records()


@settings(max_examples=25)
@given(st.permutations(range(12)))
def test_the_order_of_records_does_not_matter(order: list[int]) -> None:
    """Files are read in the order of their names, which is chance: the frame is the same for every order."""
    records = RECORDS.records
    shuffled = frame.Loaded(tuple(records[index] for index in order), RECORDS.runs, ())
    columns = ["implementation", *frame.FIGURES]
    found, wanted = (frame.tidy(each)[columns].sort_values("implementation", ignore_index=True) for each in (shuffled, RECORDS))
    pd.testing.assert_frame_equal(found, wanted)


SECOND = {
    "name": "MLCommons LoadGen 6",
    "seeds": {},
    "calls": 9,
    "overhead_s": 2e-6,
    "ours_s": [1e-2, 1.01e-2],
    "theirs_s": [2.0002e-2] * 2,
}
"""Theirs are 20 ms, less the overhead; ours are half of it."""


@pytest.mark.parametrize("scenario", ["single_stream", "offline"])
def test_the_second_clock_stands_in_the_row_that_it_timed(run: Run, scenario: str) -> None:
    pair(run, scenario=scenario, batch_size=8)
    beside = {"blocks": [0], "noise": [{}], "excluded": [], "audits": [], "second_clock": SECOND}
    run.process("jax/jit", 9, 0.01, scenario=scenario, batch_size=8, told={"data": beside})
    cells = frame.load(run.folder)
    jax = row(cells, "jax/jit")
    assert jax["second_clock"] == "MLCommons LoadGen 6"
    assert jax["second_clock_s"] == pytest.approx(20e-3)
    assert jax["second_clock_overhead_s"] == 2e-6
    assert jax["second_clock_ratio"] == pytest.approx(1.01**0.5 / 2)
    assert jax["second_clock_ratio_low"] < jax["second_clock_ratio"] < jax["second_clock_ratio_high"]
    assert pd.isna(row(cells, "pytorch/eager")["second_clock_s"])
    note = next(note for section in write.comparison(run.folder).sections for note in section.notes if "LoadGen" in note)
    figures = "20 ms by MLCommons LoadGen 6" if scenario == "single_stream" else "400 images/s by MLCommons LoadGen 6"
    ours = "10.05 ms by our clock" if scenario == "single_stream" else "796 images/s by our clock"
    assert note.startswith(
        f"JAX jit: {figures} (2 us per call for its own work are taken off), {ours} in turns with it: a call takes 0.502 ["
    )


def draw(run: Run, name: str, *joules: float, net: float = 0.5, **changes: Any) -> None:
    """Processes in which an image took so much energy, of which the share ``net`` is net."""
    for index, each in enumerate(joules):
        measurements = {"energy_j_per_image": each, "net_energy_j_per_image": net * each, "idle_power_w": 50.0}
        run.append("energy", run.cell(name), index, measurements=measurements, **changes)


def test_energy(run: Run) -> None:
    """Energies are a geometric mean with its interval over processes, and never a ratio or a rank."""
    pair(run)
    draw(run, "jax/jit", 1.0, 2.0, 4.0)
    found = row(frame.load(run.folder), "jax/jit")
    assert found["energy_j_per_image"] == pytest.approx(2)
    assert found["net_energy_j_per_image"] == pytest.approx(1)
    assert 0 < found["energy_low_j_per_image"] < 2 < found["energy_high_j_per_image"]
    assert pd.isna(found["energy_absent"])
    assert not [name for name in frame.DTYPES if "energy" in name and ("ratio" in name or "rank" in name)]


def test_net_energy_below_what_a_counter_tells(run: Run) -> None:
    """A process that drew no more than idle has no net energy; the total stands."""
    pair(run)
    draw(run, "jax/jit", 1.0, 1.0, 1.0, net=-0.01)
    found = row(frame.load(run.folder), "jax/jit")
    assert found["energy_j_per_image"] == pytest.approx(1)
    assert pd.isna(found["net_energy_j_per_image"])


@pytest.mark.parametrize(
    ("joules", "changes", "absent"),
    [
        ((), {}, "not asked for: --energy"),
        ((1.0, 1.0), {}, "2 of at least 3 processes were measured"),
        ((1.0,) * 3, {"status": "failed", "reason": "it did not change within 1 s"}, "it did not change within 1 s"),
        ((1.0,), {"status": "skipped", "reason": "there is no counter"}, "there is no counter"),
    ],
)
def test_no_energy(run: Run, joules: tuple[float, ...], changes: dict[str, str], absent: str) -> None:
    """Where there is none the row says why, and holds neither 0 nor part of one."""
    pair(run)
    draw(run, "jax/jit", *joules, **changes)
    found = row(frame.load(run.folder), "jax/jit")
    assert found["energy_absent"] == absent
    assert found[[name for name in frame.FIGURES if "energy" in name]].isna().all()
    assert found["latency_s"] > 0


def test_no_certificate_no_energy(run: Run) -> None:
    """A row that may hold no figure holds no energy, for its own reason."""
    run.certify("jax/jit", "fc: other weights")
    run.timed("jax/jit", 0.01)
    draw(run, "jax/jit", 1.0, 1.0, 1.0)
    found = row(frame.load(run.folder), "jax/jit")
    assert no_figure(found)
    assert found["energy_absent"] == "fc: other weights"


def test_doubts_of_an_energy_are_remarks(run: Run) -> None:
    """Sensors that disagree are told of beside the row."""
    pair(run)
    draw(run, "jax/jit", 1.0, 1.0, 1.0, data={"flags": ["8 % apart"]})
    remark = row(frame.load(run.folder), "jax/jit")["remark"]
    assert remark == "; ".join(f"energy: process {index}: 8 % apart" for index in range(3))


def test_a_process_of_which_the_machine_left_nothing(run: Run) -> None:
    """Every block disturbed in every process: a row that says so, and no traceback."""
    pair(run, batch_size=8, scenario="offline")
    beside = {"blocks": [0], "noise": [{}], "excluded": [{"block": 0, "flags": ["steal"]}], "audits": [], "second_clock": None}
    for index in range(2):
        run.process("onnx/ort", index, 0.01, batch_size=8, scenario="offline", told={"data": beside})
    run.certify("onnx/ort")
    cells = frame.load(run.folder)
    found = row(cells, "onnx/ort")
    assert found["reason"].startswith("INVALID-NOISY: 2 of 2 blocks were disturbed (steal)")
    assert pd.isna(found["throughput_images_per_s"])
    assert row(cells, "jax/jit")["throughput_images_per_s"] > 0


def test_a_row_tells_its_network_and_data(field: pd.DataFrame) -> None:
    """Parameters, multiply-accumulates and weights of what was run; the data set where the record names it."""
    timed = field[field["status"].eq("ok") & field["latency_s"].notna()]
    assert set(timed["parameters"]) == {25_557_032}
    assert set(timed["macs"]) == {4_089_184_256}
    assert set(timed["weights_sha256"]) == {SHA}
    assert field["dataset"].isna().all()
