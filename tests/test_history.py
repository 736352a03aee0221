"""The history: a record goes to asv's files, through its compare and its site, and nothing is left out in silence."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from asv.commands.compare import Compare
from asv.config import Config
from asv.results import Results, iter_results
from asv.step_detect import detect_steps
from click.testing import CliRunner

from levelfield.checkout import ROOT
from levelfield.cli import main
from reports import asv_site, history
from reports.history import PARAMETERS, QUANTITIES, History, Point
from reports.steps import FEWEST, series, steps
from results.record import Cell, Code
from tests.synthetic_records import MACHINE, SHA, SOFTWARE, Run

OTHER: dict[str, object] = {
    "machine_id": "0123456789abcdef",
    "cpu_model": "Intel Xeon",
    "cores": 8,
    "memory_gib": 64,
    "gpu_model": "NVIDIA H100",
}
LARGE = {"sha256": SHA, "source": "photographs", "ring_size": 8, "shape": [1, 3, 288, 288]}
SPEEDS = {"pytorch/eager": 0.020, "onnx/ort": 0.018}

Make = Callable[..., Run]


def git(folder: Path, *arguments: str, **variables: str) -> str:
    """What git answers in a folder, whatever the configuration of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    identity = {f"GIT_{who}_{what}": "test@test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = kept | identity | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull} | variables
    return subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A repository of four commits, an hour apart, and their names."""
    folder = tmp_path_factory.mktemp("clone")
    git(folder, "init", "-q")
    commits = []
    for hour in range(4):
        moment = f"2026-11-20T0{hour}:00:00Z"
        git(folder, "commit", "-q", "--allow-empty", "-m", f"Hour {hour}", GIT_AUTHOR_DATE=moment, GIT_COMMITTER_DATE=moment)
        commits.append(git(folder, "rev-parse", "HEAD"))
    return folder, commits


@pytest.fixture
def configured(clone: tuple[Path, list[str]], tmp_path: Path) -> Config:
    """The project's own configuration of asv, for that repository."""
    return asv_site.configuration(ROOT / "suites" / "asv" / "asv.conf.json", clone[0], tmp_path / "asv")


def code(commit: str | None, dirty: bool = False) -> Code:
    return Code("0.1.0", commit, None if commit is None else dirty, SHA if dirty else None)


def measured(root: Path, commit: str, factor: float = 1.0, machine: dict[str, object] | None = None, protocol: str = "1") -> Run:
    """A run of two implementations at batch 1 and 8, of which ONNX Runtime takes ``factor`` times as long as it did."""
    run = Run(root, machine, code(commit), protocol)
    for name, seconds in SPEEDS.items():
        run.certify(name)
        took = seconds * (factor if name == "onnx/ort" else 1.0)
        run.timed(name, took, processes=7, spread=0.001)
        run.timed(name, took * 7, processes=7, spread=0.001, batch_size=8, scenario="offline")
        for index in range(3):
            run.append("memory", run.cell(name), index, measurements={"peak_memory_bytes": 2.0**29 + index})
            run.append("startup", run.cell(name), index, measurements={"import_s": 2.0 + index, "load_s": 0.5, "first_call_s": 1.0})
    return run


def exported(store: Path, configured: Config) -> tuple[History, list[Results]]:
    """The history that git knows, and asv's files of it as asv reads them."""
    found = asv_site.within(history.collect([store]), asv_site.commits(configured))
    assert asv_site.write(found, configured) == len(list(iter_results(configured.results_dir)))
    return found, sorted(iter_results(configured.results_dir), key=lambda each: (each.date, each.env_name))


def values(results: Results, name: str) -> dict[tuple[str, ...], tuple[float | None, list[float] | None]]:
    """By parameters, the result and the samples of a quantity, without what was not measured."""
    key = f"records.Records.track_{name}"
    parameters = results.get_result_params(key)
    table = zip(
        itertools.product(*parameters), results.get_result_value(key, parameters), results.get_result_samples(key, parameters), strict=True
    )
    return {cell: (value, samples) for cell, value, samples in table if value is not None and not math.isnan(value)}


def test_a_record_is_one_sample_of_its_process(clone: tuple[Path, list[str]], configured: Config, tmp_path: Path) -> None:
    """Samples are the processes' times per image, as many as processes and no iteration; commit and date are git's."""
    run = measured(tmp_path / "store", clone[1][1])
    found, (onnx, pytorch) = exported(tmp_path / "store", configured)
    assert (onnx.env_name, pytorch.env_name) == ("onnx-1.31.1-cpu-py3.11", "pytorch-2.13.0-cpu-py3.11")
    assert onnx.commit_hash == clone[1][1]
    assert onnx.date == int(git(clone[0], "show", "-s", "--format=%at", clone[1][1])) * 1000
    assert onnx.params["python"] == "3.11"
    cells = values(onnx, "time_per_image_s")
    latency = ("'onnx/ort 1.31.1'", "'resnet50'", "'fp32'", "'cpu'", "'1 single_stream'", "'transfer'", "'2'")
    throughput = (*latency[:4], "'8 offline'", *latency[5:])
    assert set(cells) == {latency, throughput}
    timed = [record for record in run.store.read()[0] if record.suite == "inference" and record.cell.implementation == "onnx"]
    for cell, batch_size in ((latency, 1), (throughput, 8)):
        of_cell = sorted(
            (each for each in timed if each.cell.batch_size == batch_size), key=lambda each: each.process.index if each.process else 0
        )
        expected = [each.samples.duration_ns[-1] / each.samples.calls[-1] * 1e-9 / batch_size for each in of_cell if each.samples]
        assert cells[cell][1] == pytest.approx(expected, rel=1e-12)
        assert cells[cell][0] == pytest.approx(np.median(expected), rel=1e-12)
    assert values(onnx, "import_s") == {latency: (3.0, [2.0, 3.0, 4.0])}
    assert values(onnx, "peak_memory_bytes") == {latency: (2.0**29 + 1, [2.0**29, 2.0**29 + 1, 2.0**29 + 2])}
    assert found.left_out == ()


def test_throughput_is_never_exported(clone: tuple[Path, list[str]], configured: Config, tmp_path: Path) -> None:
    """Every quantity is seconds or bytes, and what is twice as fast is half as much, in offline too."""
    assert set(QUANTITIES.values()) == {"seconds", "bytes"}
    assert not [name for name in QUANTITIES if "per_s" in name]
    measured(tmp_path / "store", clone[1][0])
    measured(tmp_path / "store", clone[1][1], factor=0.5)
    _, files = exported(tmp_path / "store", configured)
    slow, fast = (values(each, "time_per_image_s") for each in files if each.env_name.startswith("onnx"))
    assert {cell[4] for cell in slow} == {"'1 single_stream'", "'8 offline'"}
    assert [fast[cell][0] / slow[cell][0] for cell in slow] == pytest.approx([0.5, 0.5], rel=0.01)  # type: ignore[operator]
    written = json.loads((Path(configured.results_dir) / "benchmarks.json").read_text(encoding="utf-8"))
    assert {each["unit"] for name, each in written.items() if name != "version"} == {"seconds", "bytes"}


def test_compare_reads_it(clone: tuple[Path, list[str]], configured: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``asv compare`` calls what is slower a regression and what is faster an improvement; another protocol is not compared."""
    for commit, factor, protocol in zip(clone[1], (1.0, 1.25, 0.8, 0.8), "1112", strict=True):
        measured(tmp_path / "store", commit, factor, protocol=protocol)
    exported(tmp_path / "store", configured)

    def marks(before: int, after: int) -> dict[str, set[str]]:
        Compare.run(configured, clone[1][before], clone[1][after], factor=1.1)
        rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "time_per_image_s" in line and "nan" not in line]
        found = [
            (row[1].strip(), next(name for name in ("onnx", "pytorch") if f"{name}/" in row[5])) for row in rows if "n/a" not in row[4]
        ]
        return {name: {mark for mark, of in found if of == name} for name in ("onnx", "pytorch")}

    assert marks(0, 1) == {"onnx": {"+"}, "pytorch": {""}}
    assert marks(1, 2) == {"onnx": {"-"}, "pytorch": {""}}
    assert marks(2, 3) == {"onnx": {"x"}, "pytorch": {"x"}}


def command(clone: Path, records: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with another repository and other published records."""
    before = "from pathlib import Path; from levelfield import history"
    before += f"; history.ROOT, history.RECORDS = Path({str(clone)!r}), Path({str(records)!r})"
    call = f"from levelfield.cli import main; main(['asv', '--out', {str(out)!r}, *{list(arguments)!r}])"
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", f"{before}; {call}"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_the_site_has_both_machines_and_the_step(clone: tuple[Path, list[str]], tmp_path: Path) -> None:
    """The command publishes records of two machines, from two stores; asv's index holds both, and draws one protocol only."""
    for commit, factor in zip(clone[1][1:], (1.0, 1.0, 1.5), strict=True):
        measured(tmp_path / "records", commit, factor)
        measured(tmp_path / "store", commit, factor, OTHER)
    measured(tmp_path / "records", clone[1][0], protocol="0")
    done = command(clone[0], tmp_path / "records", tmp_path / "asv", "--store", str(tmp_path / "store"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "28 rows of 4 commits on 2 machines, in 14 result files of asv." in done.stdout
    index = json.loads((tmp_path / "asv" / "html" / "index.json").read_text(encoding="utf-8"))
    assert set(index["machines"]) == {MACHINE["machine_id"], OTHER["machine_id"]}
    assert index["params"]["gpu"] == ["NVIDIA H100", "none"]
    assert index["params"]["cpu"] == ["AMD EPYC 9B45", "Intel Xeon"]
    assert set(index["params"]) >= {"cores", "ram", "driver", "python", "machine"}
    assert set(index["revision_to_hash"].values()) == set(clone[1])
    assert json.loads((tmp_path / "asv" / "html" / "regressions.json").read_text(encoding="utf-8")) == {"regressions": []}
    assert [index["benchmarks"][f"records.Records.track_{name}"]["params"][4] for name in ("time_per_image_s", "import_s")] == [
        ["'1 single_stream'", "'8 offline'"],
        ["'1 single_stream'"],
    ]
    for machine_id in index["machines"]:
        (graph,) = (tmp_path / "asv" / "html" / "graphs").rglob(f"machine-{machine_id}/**/records.Records.track_time_per_image_s.json")
        assert len(json.loads(graph.read_text(encoding="utf-8"))) == 3


def test_a_step_is_printed(clone: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Twelve runs before and twelve after a framework became 1.5 times slower: the table names machine, commits and levels."""
    for index in range(24):
        run = Run(tmp_path / "records", None, code(clone[1][0 if index < 12 else 3]))
        for name, seconds in {"pytorch/eager": 0.02, "onnx/ort": 0.01 if index < 12 else 0.015}.items():
            run.certify(name)
            run.random = np.random.default_rng(100 * index + len(name))
            run.timed(name, seconds, processes=3, spread=0.02)
    done = command(clone[0], tmp_path / "records", tmp_path / "asv")
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("ONNX Runtime")]
    assert "ResNet-50 fp32 cpu batch 1, host to host" in row
    assert f"{clone[1][0][:8]}..{clone[1][3][:8]}" in row
    assert "12, 12" in row
    before, after = (float(word.rstrip("x")) for word in row.split() if word.endswith("x") and word[0].isdigit())
    assert (before, after) == pytest.approx((2.0, 1.33), abs=0.03)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda run: run.timed("onnx/ort", 0.01), "2 rows: no certificate for it was found in this run"),
        (lambda run: (run.certify("onnx/ort", "conv1 differs"), run.timed("onnx/ort", 0.01)), "2 rows: conv1 differs"),
        (lambda run: (run.certify("onnx/ort"), run.timed("onnx/ort", 0.01, measurement=False)), "2 rows: NOT-A-MEASUREMENT: a smoke run"),
        (lambda run: run.certify("onnx/ort"), "2 rows: a certificate or an accuracy alone, not timed"),
        (
            lambda run: (run.certify("onnx/ort"), run.timed("onnx/ort", 0.01, told={"inputs": LARGE})),
            "2 rows: timed on images of 288x288, another size than resnet50 is for",
        ),
    ],
)
def test_what_has_no_right_is_left_out_by_name(tmp_path: Path, make: Callable[[Run], object], reason: str) -> None:
    """No certificate, no number; nor for smoke runs."""
    for _ in range(2):
        make(Run(tmp_path))
    found = history.collect([tmp_path])
    assert (found.points, found.left_out) == ((), (reason,))


def test_what_no_commit_names_is_left_out_by_name(clone: tuple[Path, list[str]], configured: Config, tmp_path: Path) -> None:
    """Uncommitted changes, no git, a commit that this clone does not have, a file that is no record."""
    runs = []
    for each in (code(clone[1][0], dirty=True), code(None), code("f" * 40), code(clone[1][0])):
        run = Run(tmp_path, None, each)
        run.certify("onnx/ort")
        run.timed("onnx/ort", 0.01)
        runs.append(run)
    (runs[-1].folder / "records" / "broken.json").write_text("{", encoding="utf-8")
    found = asv_site.within(history.collect([tmp_path]), asv_site.commits(configured))
    assert [point.run_id for point in found.points] == [runs[-1].run.run_id]
    dirty, outside, broken, unknown = found.left_out
    assert dirty == f"1 row: run {runs[0].run.run_id} was made with uncommitted changes, so no commit names its code"
    assert outside == f"1 row: run {runs[1].run.run_id} was made outside git, so no commit names its code"
    assert broken.startswith("not readable: broken.json: ")
    assert unknown == "1 row: commit ffffffffffff is not in the history of HEAD here; `git fetch --unshallow` completes a shallow clone"


def test_a_run_in_two_stores_counts_once(tmp_path: Path) -> None:
    """A run is published by copying its folder."""
    import shutil

    measured(tmp_path / "local", "c" * 40)
    shutil.copytree(tmp_path / "local", tmp_path / "records")
    assert history.collect([tmp_path / "local", tmp_path / "records"]) == history.collect([tmp_path / "local"])


def test_versions_and_variables_are_environments_of_their_own(clone: tuple[Path, list[str]], configured: Config, tmp_path: Path) -> None:
    """Two versions of a framework, or a variable that changes how it computes, are never one figure; two runs of the same are."""
    for version, variables in (("1.31.1", {}), ("1.32.0", {}), ("1.32.0", {"ORT_X": "1"}), ("1.31.1", {})):
        run = Run(tmp_path, None, code(clone[1][0]))
        run.certify("onnx/ort")
        timed = run.append
        software = {"python": "3.12.1", **SOFTWARE["onnx"], "onnxruntime": version}
        run.append = lambda *arguments, **fields: timed(*arguments, **{**fields, "software": software, "env_vars": variables})  # type: ignore[method-assign]  # noqa: B023
        run.timed("onnx/ort", 0.01, processes=3)
    _, files = exported(tmp_path, configured)
    assert [name[:22] for name in sorted(each.env_name for each in files)] == [
        "onnx-1.31.1-cpu-py3.12",
        "onnx-1.32.0-cpu-py3.12",
        "onnx-1.32.0-cpu-py3.12",
    ]
    assert {len(samples or ()) for each in files for _, samples in values(each, "time_per_image_s").values()} == {3, 6}
    assert {tuple(each.env_vars.items()) for each in files} == {(), (("ORT_X", "1"),)}


def test_an_export_replaces_the_one_before_and_nothing_else(clone: tuple[Path, list[str]], configured: Config, tmp_path: Path) -> None:
    """What a store no longer holds is gone; what asv itself measured stays."""
    measured(tmp_path / "first", clone[1][0], machine=OTHER)
    measured(tmp_path / "second", clone[1][1])
    own = Path(configured.results_dir) / "desk" / "machine.json"
    own.parent.mkdir(parents=True)
    own.write_text(json.dumps({"machine": "desk", "version": 1}), encoding="utf-8")
    exported(tmp_path / "first", configured)
    exported(tmp_path / "second", configured)
    assert {each.name for each in Path(configured.results_dir).iterdir()} == {str(MACHINE["machine_id"]), "desk", "benchmarks.json"}


def test_a_broken_store_is_one_sentence(clone: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No store, no git, nothing with a right: exit codes 2, 2 and 3, never a traceback."""
    Run(tmp_path / "empty").certify("onnx/ort")
    (tmp_path / "bare").mkdir()
    measured(tmp_path / "records", clone[1][0])
    for records, repository, status, words in (
        (tmp_path / "bare", clone[0], 2, "is no run and holds none"),
        (tmp_path / "records", tmp_path / "bare", 2, "has no git history, which is where asv takes the order of commits from"),
        (tmp_path / "empty", clone[0], 3, "nothing to export; 1 row: a certificate or an accuracy alone, not timed"),
    ):
        monkeypatch.setattr("levelfield.history.RECORDS", records)
        monkeypatch.setattr("levelfield.history.ROOT", repository)
        done = CliRunner().invoke(main, ["asv", "--out", str(tmp_path / "asv")])
        assert (done.exit_code, done.stdout) == (status, "")
        assert done.stderr.startswith("levelfield: ")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def point(commit: str, ratio: float | None, **changes: object) -> Point:
    """A point of which only the place and the ratio matter."""
    cell = Cell("jax", "jit", "resnet50", "fp32", "cpu", 1, "transfer", "single_stream", 2)
    fields = {"machine_id": "m", "commit": commit, "run_id": commit, "measured_utc": "2026-11-20T05:00:00Z", "protocol_version": "1"}
    rest = {"cell": cell, "version": "1", "python": "3.11", "env_vars": (), "samples": {}, "baseline": "pytorch/eager", "ratio": ratio}
    return Point(**{**fields, **rest, **changes})  # type: ignore[arg-type]


def test_steps_of_noise_are_rare_and_a_step_is_found_where_it_is() -> None:
    """200 series of 24 runs, noise 2 %: steps are invented in at most 1 %; one of ten deviations is found to within a run in 90 %."""
    random = np.random.default_rng(3)
    order = {str(index): index for index in range(24)}
    noise = 1.2 * np.exp(0.02 * random.standard_normal((200, 24)))
    assert sum(bool(steps(line(row))) for row in noise.tolist()) <= 2
    noise[:, 12:] *= np.exp(-0.2)
    found = [steps(line(row)) for row in noise.tolist()]
    right = [each for each in found if len(each) == 1 and abs(order[each[0].first.commit] - 12) <= 1 and each[0].after < each[0].before]
    assert len(right) >= 180


def test_parameters_are_in_the_order_of_their_numbers() -> None:
    """Batch 16 comes after batch 8, and ResNet-101 after ResNet-50; only what was measured is there."""
    cells = [
        Cell("jax", "jit", model, "fp32", "cpu", batch, "transfer", "offline", 2)
        for model in ("resnet101", "resnet50")
        for batch in (16, 8)
    ]
    points = [point("a", None, cell=cell, samples={"load_s": (1.0,)}) for cell in cells]
    points.append(point("a", None, samples={"load_s": ()}))
    assert asv_site.axes(points, "load_s")[1] == ["resnet50", "resnet101"]
    assert asv_site.axes(points, "load_s")[4] == ["8 offline", "16 offline"]


def test_short_series_are_not_searched() -> None:
    """Asv's detection takes noise for steps in series shorter than ten runs; from ten on it hardly does."""
    random = np.random.default_rng(4)

    def invented(runs: int, search: Callable[[list[float]], object]) -> float:
        noise = 1.2 * np.exp(0.02 * random.standard_normal((200, runs)))
        return sum(bool(search(row)) for row in noise.tolist()) / 200

    assert invented(4, lambda row: len(detect_steps(row)) > 1) > 0.3
    assert invented(FEWEST - 1, lambda row: steps(line(row))) == 0
    assert invented(FEWEST, lambda row: steps(line(row))) <= 0.02


def line(ratios: list[float]) -> list[Point]:
    """A series of these ratios, one a commit."""
    return [point(str(index), ratio) for index, ratio in enumerate(ratios)]


def test_a_series_follows_commits_not_clocks() -> None:
    """An old commit that was measured late stands at its place; machines and cells are apart; the baseline has no ratio."""
    late, early = "2026-12-01T00:00:00Z", "2026-11-01T00:00:00Z"
    other = Cell("jax", "jit", "resnet50", "bf16", "cpu", 1, "transfer", "single_stream", 2)
    points = [
        point("new", 1.1, measured_utc=early, version="2"),
        point("old", 1.0, measured_utc=late),
        point("old", None),
        point("old", 3.0, cell=other),
        point("old", 4.0, machine_id="n"),
    ]
    lines = series(points, {"old": 0, "new": 1})
    assert sorted([each.ratio for each in line] for line in lines) == [[1.0, 1.1], [3.0], [4.0]]
    assert [len(steps(line)) for line in lines] == [0, 0, 0]


def asv(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The asv of the environment on the project's benchmarks, which writes to a folder of the test's own."""
    folder = ROOT / "suites" / "asv"
    document = json.loads((folder / "asv.conf.json").read_text(encoding="utf-8"))
    document |= {"repo": str(ROOT), "benchmark_dir": str(folder / "benchmarks")}
    document |= {name: str(tmp_path / name) for name in ("results_dir", "html_dir", "env_dir")}
    path = tmp_path / "asv.conf.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONWARNINGS": "default"}
    return subprocess.run(
        [sys.executable, "-m", "asv", *arguments, "--config", str(path)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_asv_accepts_the_benchmarks(tmp_path: Path) -> None:
    """Asv check finds no fault; asv run times the harness, and knows the quantities by the export's names and parameters."""
    done = asv(tmp_path, "check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No problems found" in done.stdout
    (tmp_path / ".asv-machine.json").write_text(json.dumps({"desk": {"machine": "desk"}, "version": 1}), encoding="utf-8")
    done = asv(tmp_path, "run", "--quick", "--show-stderr", "--machine", "desk", "--bench", r"Clock.time_visit\('transfer', 1\)")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
    known = json.loads((tmp_path / "results_dir" / "benchmarks.json").read_text(encoding="utf-8"))
    assert {f"records.Records.track_{name}" for name in QUANTITIES} == {name for name in known if name.startswith("records.")}
    for name, unit in QUANTITIES.items():
        benchmark = known[f"records.Records.track_{name}"]
        assert (benchmark["unit"], benchmark["param_names"]) == (unit, list(PARAMETERS))
        assert benchmark["version"].startswith("protocol ")
