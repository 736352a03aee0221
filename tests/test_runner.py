"""Whatever ends a run, what was measured is there, no worker stays behind, and the next run goes on from it."""

from __future__ import annotations

import resource
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from impls.models import get
from impls.weights.file import load, save, tensor_sha256
from impls.weights.synthesis import synthesize
from results.record import Record
from results.store import Store
from suites.harness import inputs
from tests.checkouts import BRIEF, MODEL, Checkout, bench, records, wait_until, workers_of

TWO = ("honest", "villain")
MODES = "eager,chatty"


def files(store: Path) -> dict[Path, bytes]:
    """Every record that has its name, and so is whole."""
    return {path: path.read_bytes() for path in store.glob("*/records/*.json")}


def measured(store: Path) -> list[Path]:
    return list(store.glob("*/records/inference-*.json"))


LONG_VISITS = """
import dataclasses
from suites.harness import plan
plan.SMOKE = dataclasses.replace(plan.SMOKE, samples=10)
"""
"""Visits of more calls than a certificate takes: what goes wrong late goes wrong on its turn."""


def hanging(checkout: Checkout, store: Path, before: str = "") -> tuple[subprocess.Popen[str], set[int]]:
    """A run in the middle of a round: one worker hangs on its turn, the other is stopped until its own."""
    process = checkout.start(*bench(*TWO, modes="eager,hangs_late", store=store), "--smoke", before=f"{before}\n{LONG_VISITS}")
    wait_until(lambda: sorted(workers_of(process.pid).values()) == ["S", "T"] and list(store.glob("*/logs/time-villain-*")))
    return process, set(workers_of(process.pid))


def test_a_killed_run_leaves_no_worker_and_loses_no_record(checkout: Checkout, tmp_path: Path) -> None:
    """SIGKILL after the third measurement: workers die, records stay; the next run is the same run and measures what is missing."""
    arguments = (*bench(*TWO, modes=MODES, store=tmp_path), "--processes", "3")
    process = checkout.start(*arguments, before=BRIEF)
    wait_until(lambda: len(measured(tmp_path)) >= 3)
    workers = set(workers_of(process.pid))
    process.kill()
    process.communicate(timeout=30)
    wait_until(lambda: not workers_of(process.pid), timeout_s=5)
    assert workers
    kept = files(tmp_path)
    before = records(tmp_path)

    code, document = checkout.document(*arguments, before=BRIEF)
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == [before[0].run_id] == [document["run_id"]]
    after = files(tmp_path)
    assert kept.items() <= after.items()
    count = Counter((each.suite, each.cell) for each in records(tmp_path))
    for (suite, _), times in count.items():
        assert times in ({3, 4} if suite == "inference" else {1}), "a round that was cut off is measured again, nothing else is"
    rounds = [indices(records(tmp_path), name) for name in TWO]
    assert len(rounds[0] & rounds[1]) == 3
    assert {each["status"] for each in document["rows"]} == {"ok"}


def test_disturbed_blocks_leave_no_figure(checkout: Checkout, tmp_path: Path) -> None:
    """All of its calls are in the store, and the row says why none of them counts."""
    flagged = f"{BRIEF}\nnoise.flags = lambda seen: ('steal',)"
    code, document = checkout.document(*bench("honest", store=tmp_path), before=flagged)
    assert code == 3
    (row,) = document["rows"]
    assert row["reason"].startswith("INVALID-NOISY: 6 of 6 blocks were disturbed (steal)")
    assert row["latency_s"]["value"] is None
    timed = [each for each in records(tmp_path) if each.suite == "inference"]
    assert [len(each.samples.visit) > 1 for each in timed if each.samples] == [True] * 3


def indices(found: list[Record], implementation: str) -> set[int]:
    return {
        each.process.index for each in found if each.suite == "inference" and each.cell.implementation == implementation and each.process
    }


def test_a_killed_parent_takes_its_stopped_worker_along(checkout: Checkout, tmp_path: Path) -> None:
    """A worker that is stopped cannot notice that its parent died; the kernel kills it all the same."""
    process, workers = hanging(checkout, tmp_path)
    assert len(workers) == 2
    process.kill()
    process.communicate(timeout=30)
    wait_until(lambda: not workers_of(process.pid), timeout_s=5)
    assert len(records(tmp_path)) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_one_sentence(checkout: Checkout, tmp_path: Path, number: signal.Signals) -> None:
    """SIGINT and SIGTERM end the run with 130, its workers and its scratch with it; certificates are there and no traceback is.

    A shell's background jobs ignore SIGINT, and so do the processes that they start, as these tests may be.
    """
    process, _ = hanging(checkout, tmp_path, "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "levelfield: interrupted; what was measured is stored, and the same command goes on from there"
    assert "Traceback" not in err
    assert workers_of(process.pid) == {}
    assert not list(tmp_path.glob("*/scratch"))
    assert [each.status for each in records(tmp_path)] == ["ok", "ok"]


COMPUTES = """
import signal, time
from pathlib import Path
from suites.equivalence import certificate
signal.signal(signal.SIGINT, signal.default_int_handler)
def computes(*_, **__):
    Path({marker!r}).touch()
    time.sleep(1000)
certificate._certify_one = computes
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_no_computation(checkout: Checkout, tmp_path: Path, number: signal.Signals) -> None:
    """The oracle may be at work for minutes, in a thread that nothing can stop but the end of the process."""
    marker = tmp_path / "computes"
    process = checkout.start(
        *("certify", "--models", "cifar_resnet8", "--env", "current", "--impls", "honest", "--store", str(tmp_path / "store")),
        before=COMPUTES.format(marker=str(marker)),
    )
    wait_until(marker.exists)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1].startswith("levelfield: interrupted; ")
    assert "Traceback" not in err
    assert not list(tmp_path.glob("store/*/scratch"))


@pytest.mark.parametrize("from_the_start", [True, False], ids=["scratch", "records"])
def test_a_full_disk_is_one_sentence(checkout: Checkout, tmp_path: Path, from_the_start: bool) -> None:
    """A disk that takes no more ends the run with 2 and a sentence that says so; the records before it are whole."""

    def limit(size: int, pid: int = 0) -> None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))

    arguments = (*bench(*TWO, modes=MODES, store=tmp_path), "--processes", "3")
    before = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n{BRIEF}" if from_the_start else BRIEF
    process = checkout.start(*arguments, before=before)
    if not from_the_start:
        wait_until(lambda: measured(tmp_path))
        limit(64, process.pid)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert "Traceback" not in err, err
    assert err.splitlines()[-1].startswith("levelfield: ")
    assert "File too large" in err.splitlines()[-1]
    found = records(tmp_path)
    assert all(each.status == "ok" for each in found)
    assert from_the_start or len(found) >= 3
    assert workers_of(process.pid) == {}


def test_a_corrupt_record_is_named_and_kept(checkout: Checkout, tmp_path: Path) -> None:
    """A damaged record is measured again, named by the report, and left as it is."""
    arguments = (*bench("honest", store=tmp_path), "--smoke")
    assert checkout.run(*arguments).returncode == 0
    (record,) = measured(tmp_path)
    damaged = record.read_bytes().replace(b'"status":', b'"statu$":')
    record.write_bytes(damaged)
    (run,) = tmp_path.iterdir()
    shown = checkout.run("report", str(run), "--out", str(tmp_path / "out"), "--baseline", "honest/eager")
    assert record.name in shown.stdout + shown.stderr
    assert record.name in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    (run / "finished").unlink()
    assert checkout.run(*arguments).returncode == 0
    assert record.read_bytes() == damaged
    again, corrupt = Store(tmp_path).read(run.name)
    assert [each.path for each in corrupt] == [record]
    assert [each.cell.implementation for each in again if each.suite == "inference"] == ["honest"]


def test_a_finished_run_is_not_gone_on_with(checkout: Checkout, tmp_path: Path) -> None:
    """The same command after a whole run makes a new run; its certificates come from the cache, its records are its own."""
    arguments = (*bench("honest", store=tmp_path), "--smoke")
    for _ in range(2):
        assert checkout.run(*arguments).returncode == 0
    assert [len(list((run / "records").iterdir())) for run in tmp_path.iterdir()] == [5, 5]


def test_paths_are_those_of_the_folder_that_the_command_is_given_in(checkout: Checkout, tmp_path: Path) -> None:
    """Workers run elsewhere; a weight file and a store that are named relative to here are found here."""
    save(tmp_path / "own", get(MODEL), synthesize(get(MODEL), 1), source="a test", preprocess={}, licence="CC0-1.0")
    here = checkout.environment() | {"PYTHONPATH": str(checkout.root)}
    arguments = (*bench("honest", store=Path("store")), "--weights", "own", "--smoke")
    done = checkout.run(*arguments, cwd=tmp_path, env=here)
    assert done.returncode == 0, done.stderr
    assert {each.model.weights_sha256 for each in records(tmp_path / "store") if each.model} == {
        tensor_sha256(load(tmp_path / "own").weights)
    }


def test_own_weights_are_each_for_a_model(checkout: Checkout, tmp_path: Path) -> None:
    """A run is of the models of its weight files, and its records are of these weights; two files of one model are refused."""
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, path in zip((1, 2), paths, strict=True):
        save(path, get(MODEL), synthesize(get(MODEL), seed), source="a test", preprocess=dict(inputs.DIGITS_PREPROCESS), licence="CC0-1.0")
    options = (
        "--impls",
        "honest",
        "--modes",
        "eager",
        "--batch-sizes",
        "1",
        "--env",
        "current",
        "--smoke",
        "--store",
        str(tmp_path / "store"),
    )
    done = checkout.run("bench", "--weights", str(paths[1]), *options, "--baseline", "honest/eager")
    assert done.returncode == 0, done.stderr
    assert {each.model.weights_sha256 for each in records(tmp_path / "store") if each.model} == {tensor_sha256(load(paths[1]).weights)}
    both = checkout.run("bench", "--weights", str(paths[0]), "--weights", str(paths[1]), *options)
    assert (both.returncode, both.stdout) == (2, "")
    assert f"are both for {MODEL}: a run measures one of them" in both.stderr
    other = checkout.run("bench", "--models", "resnet18", "--weights", str(paths[0]), *options)
    assert (other.returncode, other.stdout) == (2, "")
    assert f"is for {MODEL}, which --models does not name" in other.stderr
