"""Reruns through the command, on a small framework in git; what differs, what is answered, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from levelfield import repeated
from results import rerun
from results.comparison import Unpaired
from results.record import Cell, Record, to_json
from results.rerun import NOT_THE_SAME_MEASUREMENT, Answer, Difference, Outcome, Rerun
from results.schema import RecordError
from results.store import Run
from suites import rerun as suite
from suites.harness.revisions import Revision
from suites.harness.runner import Options
from tests import checkouts, example_records
from tests.checkouts import BRIEF, Checkout, bench, records

RUNTIME = Path("impls/honest/runtime.py")

WIDE = f"""{BRIEF}
from results import rerun
rerun.SAME_MACHINE = 1e6
"""
"""A band within which every measurement lies."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in git."""
    made = checkouts.make(tmp_path_factory.mktemp("rerun"), tmp_path_factory.mktemp("rerun-cache"))
    shutil.copy(checkouts.ROOT / ".gitignore", made.root)  # what a run leaves behind must not make it dirty
    git(made, "init", "--quiet", "--initial-branch", "first")
    git(made, "add", ".")
    git(made, "commit", "--quiet", "-m", "first")
    return made


def git(checkout: Checkout, *arguments: str) -> None:
    identity = ("-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", checkout.root, *identity, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def benched(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the honest one, at two batch sizes."""
    store = tmp_path_factory.mktemp("benched")
    done = checkout.run(*bench("honest", store=store, batch_sizes="1,2"), "--threads", "1", before=BRIEF)
    assert done.returncode == 0, done.stderr
    (run,) = store.iterdir()
    return run


def timed(run: Path) -> list[Record]:
    return [record for record in records(run.parent) if record.suite == "inference" and record.run_id == run.name]


def path_of(run: Path, record: Record) -> Path:
    return run / "records" / record.file_name


@pytest.fixture
def altered(benched: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the run whose timed records were changed before they were written; the path is the run's folder."""

    def make(change: Callable[[Record], Record], machine: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> Path:
        run = tmp_path / "altered" / benched.name
        shutil.copytree(benched, run)
        of_all(run, change)
        document = json.loads((run / "run.json").read_text(encoding="utf-8"))
        document["machine"] = machine(document["machine"])
        (run / "run.json").write_text(json.dumps(document), encoding="utf-8")
        return run

    return make


def again(checkout: Checkout, path: Path, store: Path, before: str = BRIEF) -> tuple[int, dict[str, Any]]:
    return checkout.document("rerun", str(path), "--env", "current", "--store", str(store), before=before)


def faster(record: Record) -> Record:
    """As if a call had taken a thousandth of its time."""
    assert record.samples
    durations = tuple(max(1, duration // 1000) for duration in record.samples.duration_ns)
    return dataclasses.replace(record, samples=dataclasses.replace(record.samples, duration_ns=durations))


def fields(document: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {each["field"]: (each["was"], each["now"]) for each in document["differences"]}


def test_a_run_is_reproduced(checkout: Checkout, benched: Path, tmp_path: Path) -> None:
    """All cells of a run, in as many processes; nothing differs, since it is the same checkout."""
    store = tmp_path / "store"
    code, document = again(checkout, benched, store, WIDE)
    assert (code, document["outcome"]) == (0, "REPRODUCED"), document
    assert document["differences"] == []
    assert [each["cell"]["batch_size"] for each in document["answers"]] == [1, 2]
    assert [each["ratio"]["units"] for each in document["answers"]] == [[3, 3], [3, 3]]
    assert (document["processes"], document["same_machine"]) == (3, True)
    (run,) = store.iterdir()
    new = timed(run)
    assert {record.status for record in new} == {"ok"}
    assert {record.cell for record in new} == {record.cell for record in timed(benched)}
    assert {record.data and record.data["rerun_of"] for record in new} == {benched.name}
    assert json.loads((run / rerun.DOCUMENT).read_text(encoding="utf-8"))["rerun_id"] == run.name


def test_what_was_much_faster_differs(checkout: Checkout, altered: Callable[..., Path], tmp_path: Path) -> None:
    """One record's file: its cell only, and the text for people."""
    run = altered(faster)
    record = next(record for record in timed(run) if record.cell.batch_size == 2)
    done = checkout.run("rerun", str(path_of(run, record)), "--env", "current", "--store", str(tmp_path / "store"), before=BRIEF)
    assert done.returncode == 1, done.stderr
    assert "No difference that is recorded." in done.stdout
    said = " ".join(done.stdout.split())
    assert "DIFFERS: 1 DIFFERS; implementations of commit" in said
    assert "lies wholly outside the band of 2%" in said
    assert "One run of each is compared, unpaired" in said
    (again,) = (tmp_path / "store").iterdir()
    assert {record.cell.batch_size for record in timed(again)} == {2}


def test_the_commit_of_the_record_is_measured(checkout: Checkout, benched: Path, tmp_path: Path) -> None:
    """The working tree has since become wrong; what is rebuilt out of git is certified, what lies here would not be."""
    sound = (checkout.root / RUNTIME).read_text(encoding="utf-8")
    wrong = sound.replace("self.layer, batch)\n\n    def wait", "self.layer, batch) * 1.01\n\n    def wait")
    assert wrong != sound
    (checkout.root / RUNTIME).write_text(wrong, encoding="utf-8")
    try:
        code, document = again(checkout, benched, tmp_path / "store", WIDE)
        assert (code, document["outcome"]) == (0, "REPRODUCED"), document
        assert set(fields(document)) == {"code.dirty", "code.diff_sha256"}
        assert document["implementations_commit"] == timed(benched)[0].code.commit

        nowhere = tmp_path / "nowhere" / benched.name
        shutil.copytree(benched, nowhere)
        of_all(nowhere, lambda record: dataclasses.replace(record, code=dataclasses.replace(record.code, commit="0" * 40)))
        code, document = again(checkout, nowhere, tmp_path / "store")
    finally:
        (checkout.root / RUNTIME).write_text(sound, encoding="utf-8")
    assert (code, document["outcome"]) == (1, "not certified"), document
    assert document["implementations_commit"] is None
    was, now = fields(document)["implementations"]
    assert was == f"commit {'0' * 40}"
    assert now.startswith("the working tree: there is no revision '000")
    assert {each["outcome"] for each in document["answers"]} == {"not certified"}


def test_a_commit_too_old_for_the_contract_is_invalid(checkout: Checkout, benched: Path, tmp_path: Path) -> None:
    """Its implementation cannot say how often it compiled; the way out is named."""
    sound = (checkout.root / RUNTIME).read_text(encoding="utf-8")
    (checkout.root / RUNTIME).write_text(sound.replace("def compilations", "def older_name"), encoding="utf-8")
    git(checkout, "commit", "--quiet", "-a", "-m", "older")
    commit = subprocess.run(["git", "-C", checkout.root, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    git(checkout, "reset", "--quiet", "--hard", "HEAD^")
    run = tmp_path / benched.name
    shutil.copytree(benched, run)
    of_all(run, lambda record: dataclasses.replace(record, code=dataclasses.replace(record.code, commit=commit)))
    code, document = again(checkout, run, tmp_path / "store")
    assert (code, document["outcome"]) == (3, "invalid"), document
    assert document["implementations_commit"] == commit
    assert {each["reason"].partition("; ")[2] for each in document["answers"]} == {suite.OLDER}


def test_model_zoos_are_not_rebuilt() -> None:
    """Of a record of another commit the zoo's implementation is the working tree's, and that is told."""
    ours, theirs = (example_records.record(cell=example_records.fields()["cell"] | {"implementation": name}) for name in ("jax", "flax"))
    source = suite.Source("here", RUN, {ours.cell: (ours,), theirs.cell: (theirs,)})
    rebuilt = suite.Rebuilt(Revision("f" * 40, "f" * 40, Path("/elsewhere")), {}, None)
    (told,) = suite.not_rebuilt(source, rebuilt)
    assert (told.field, told.was, told.cells) == ("implementations", f"commit {'f' * 40}", (theirs.cell,))
    assert suite.not_rebuilt(dataclasses.replace(source, records={ours.cell: (ours,)}), rebuilt) == ()


def test_every_recorded_difference_is_listed(checkout: Checkout, altered: Callable[..., Path], tmp_path: Path) -> None:
    """Another protocol first, and no answer from it; then machine, packages, settings, variables; each with what it was.

    A cell that cannot be measured here is a row with its reason.
    """

    def change(record: Record) -> Record:
        if record.cell.batch_size == 2:
            return dataclasses.replace(unknown(record), machine_id="0123456789abcdef")
        return dataclasses.replace(
            record,
            protocol_version="1",
            machine_id="0123456789abcdef",
            settings={**record.settings, "layout": "NCHW", "new": None},
            software={**record.software, "numpy": "1.0", "gone": "2.0"},
            env_vars={**record.env_vars, "OMP_PROC_BIND": "true"},
            code=dataclasses.replace(record.code, dirty=True, diff_sha256="1" * 64),
        )

    def machine(here: dict[str, Any]) -> dict[str, Any]:
        return here | {"machine_id": "0123456789abcdef", "kernel": "2.6", "cpu_features": [*here["cpu_features"][1:], "abacus"]}

    code, document = again(checkout, altered(change, machine), tmp_path / "store", WIDE)
    assert (code, document["outcome"]) == (4, "CANNOT-TELL")
    told, impossible = document["answers"]
    assert told["reason"].endswith(f"], but {NOT_THE_SAME_MEASUREMENT}")
    assert impossible["outcome"] == "invalid"
    assert impossible["reason"].endswith("there is no implementation nobody in what was rebuilt")
    assert {each["band"] for each in document["answers"]} == {0.05}
    listed = fields(document)
    assert list(listed)[:2] == ["protocol_version", "implementations"]
    assert list(listed)[2:] == [
        *("machine.cpu_features", "machine.kernel", "machine.machine_id", "code.diff_sha256", "code.dirty"),
        *("software.gone", "software.numpy", "settings.layout", "env_vars.OMP_PROC_BIND"),
    ]
    assert listed["protocol_version"][0] == "1"
    assert listed["implementations"][1] == "the working tree: the record's checkout held changes that are in no commit"
    assert listed["software.gone"] == ("2.0", None)
    assert listed["settings.layout"] == ("NCHW", "NHWC")


def corrupted(run: Path, **changes: Any) -> Path:
    """A run with one record whose fields were changed, hash and all; its file's path."""
    record = timed(run)[0]
    changed = dataclasses.replace(record, **changes)
    path_of(run, record).unlink()
    path_of(run, changed).write_text(to_json(changed), encoding="utf-8")
    return path_of(run, changed)


def schema(run: Path, version: int) -> Path:
    path = path_of(run, timed(run)[0])
    path.write_text(path.read_text(encoding="utf-8").replace('"schema_version": 1', f'"schema_version": {version}'), encoding="utf-8")
    return path


def garbled(run: Path) -> Path:
    path = path_of(run, timed(run)[0])
    path.write_text("no record", encoding="utf-8")
    return path


def alone(run: Path) -> Path:
    first, *others = (record for record in timed(run) if record.cell.batch_size == 1)
    for record in others:
        path_of(run, record).unlink()
    return path_of(run, first)


def emptied(run: Path) -> Path:
    for record in timed(run):
        path_of(run, record).unlink()
    return run


def of_all(run: Path, change: Callable[[Record], Record]) -> Path:
    for record in timed(run):
        path_of(run, record).unlink()
        changed = change(record)
        path_of(run, changed).write_text(to_json(changed), encoding="utf-8")
    return run


def weights(record: Record) -> Record:
    assert record.model
    return dataclasses.replace(record, model=dataclasses.replace(record.model, weights_sha256="3" * 64))


def threads(record: Record) -> Record:
    return dataclasses.replace(record, cell=dataclasses.replace(record.cell, threads=4096))


def smoked(record: Record) -> Record:
    return dataclasses.replace(record, measurement=False)


def unknown(record: Record) -> Record:
    return dataclasses.replace(record, cell=dataclasses.replace(record.cell, implementation="nobody"))


SMOKE = {"measurement": False}
FAILED = {"status": "failed", "reason": "it fell over", "samples": None, "timer": None, "settings": {}}
SKIPPED = FAILED | {"status": "skipped", "reason": "no such mode"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: run / "run.json", "neither a record of a run nor a run's folder: a record lies in its run's folder records"),
        (lambda run: run / "records", "neither a record of a run nor a run's folder: it has no run.json"),
        (lambda run: run / "records" / "nowhere.json", "not a record: records lie in their run's folder records"),
        (lambda run: corrupted(run, **SMOKE), "this record cannot be rerun: it is marked as no measurement (--smoke)"),
        (lambda run: corrupted(run, **FAILED), "this record cannot be rerun: it was not measured: failed: it fell over"),
        (lambda run: corrupted(run, **SKIPPED), "this record cannot be rerun: it was not measured: skipped: no such mode"),
        (
            lambda run: next((run / "records").glob("equivalence-*")),
            "it is of the suite equivalence, and a rerun takes the suites inference and training",
        ),
        (lambda run: schema(run, 2), "schema_version: '2'; this code reads version 1"),
        (garbled, "not valid JSON"),
        (alone, "its run holds one process of this cell, and one alone has no interval"),
        (emptied, "nothing in this run can be rerun: it holds nothing timed"),
        (lambda run: of_all(run, smoked), "nothing in this run can be rerun: it is marked as no measurement"),
    ],
)
def test_what_is_no_result_is_refused(altered: Callable[..., Path], tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(RecordError) as refused:
        suite.read(make(altered(lambda record: record)), Options(tmp_path, (), True, print, print))
    assert message in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path))


def test_a_cell_without_a_result_is_left_out_and_said(altered: Callable[..., Path], tmp_path: Path) -> None:
    run = altered(lambda record: record)
    said: list[str] = []
    corrupted(run, **FAILED)
    left = suite.read(run, Options(tmp_path, (), True, said.append, print)).records
    assert [len(processes) for processes in left.values()] == [3]
    assert len(said) == 1
    assert said[0].endswith("it was not measured: failed: it fell over")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: run / "nowhere.json", "nowhere.json' does not exist"),
        (garbled, "not valid JSON"),
        (lambda run: of_all(run, weights), "its weights are not the project's own for cifar_resnet8, and a record does not hold them"),
        (lambda run: of_all(run, threads), "it was measured with 4096 threads, and this process may use"),
    ],
)
def test_bad_input_gets_one_sentence(
    checkout: Checkout, altered: Callable[..., Path], tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    store = tmp_path / "store"
    done = checkout.run("rerun", str(make(altered(lambda record: record))), "--env", "current", "--store", str(store), before=BRIEF)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not store.exists()


def process(index: int, call_ns: int, **changes: Any) -> Record:
    """A process that took so long for every call."""
    base = example_records.of_process(index)
    assert base.samples
    samples = dataclasses.replace(base.samples, start_ns=(0, 10**9, 2 * 10**9, 3 * 10**9), duration_ns=(call_ns,) * 4)
    return dataclasses.replace(base, samples=samples, **changes)


def processes(*calls_ns: int, **changes: Any) -> list[Record]:
    return [process(index, call_ns, **changes) for index, call_ns in enumerate(calls_ns)]


@pytest.mark.parametrize(
    ("new", "outcome", "reason"),
    [
        (processes(1_010_000, 1_012_000, 1_011_000), "REPRODUCED", "lies within the band of 2%"),
        (processes(1_100_000, 1_101_000, 1_102_000), "DIFFERS", "time +10.1% [+9.9%, +10.3%] lies wholly outside"),
        (processes(900_000, 901_000, 902_000), "DIFFERS", "lies wholly outside"),
        (processes(1_040_000, 1_041_000, 1_042_000), "DIFFERS", "lies wholly outside the band of 2%"),
        (processes(1_040_000, 1_041_000, 1_042_000, machine_id="another"), "REPRODUCED", "lies within the band of 5%"),
        (processes(900_000, 1_000_000, 1_100_000), "CANNOT-TELL", "lies neither within nor outside"),
        (processes(1_000_000, 1_000_000, 1_000_000, protocol_version="2"), "CANNOT-TELL", NOT_THE_SAME_MEASUREMENT),
        ([*processes(1_000_000), process(1, 1, status="failed", reason="it fell over")], "invalid", "failed: it fell over"),
        ([process(0, 1, status="not_certified", reason="E3")], "not certified", "not_certified: E3"),
        (processes(1_000_000), "invalid", "3 and 1 values have no interval"),
    ],
)
def test_answers(new: Sequence[Record], outcome: Outcome, reason: str) -> None:
    """Three processes of a record that took 1 ms a call, and what a rerun of it would say."""
    found = rerun.answer(processes(1_000_000, 1_000_500, 999_500), new)
    assert (found.outcome, reason in found.reason) == (outcome, True), found


RUN = Run(1, "then", "2026-01-31T12:00:00Z", {"machine_id": "0", "kernel": "6"}, {})
CELL = Cell("pytorch", "eager", "resnet18", "fp32", "cpu", 1, "transfer", "single_stream", 2)


def found(*outcomes: Outcome, differences: tuple[Difference, ...] = ()) -> Rerun:
    answers = tuple(Answer(CELL, outcome, "why", Unpaired(1.0, 0.9, 1.1, (3, 3)), 0.02) for outcome in outcomes)
    return Rerun("here", "then", "now", None, 3, True, differences, answers)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        (("REPRODUCED", "REPRODUCED"), 0),
        (("REPRODUCED", "DIFFERS", "invalid"), 1),
        (("REPRODUCED", "not certified"), 1),
        (("REPRODUCED", "CANNOT-TELL"), 4),
        (("REPRODUCED", "invalid"), 4),
        (("CANNOT-TELL", "invalid"), 4),
        (("invalid", "invalid"), 3),
    ],
)
def test_exit_codes(outcomes: tuple[Outcome, ...], code: int) -> None:
    assert repeated.code(found(*outcomes)) == code


def test_lines_of_differences() -> None:
    """Of two lists what is new in one of them; of a difference in some cells which."""
    other = dataclasses.replace(CELL, implementation="jax", mode="jit")
    listed = (
        Difference("protocol_version", "1", "2", (CELL, other)),
        Difference("machine.cpu_features", ["avx", "sse"], ["avx", "amx"], (CELL, other)),
        Difference("software.jax", "0.1", None, (other,)),
    )
    assert list(repeated.differences(found("REPRODUCED", "DIFFERS", differences=listed))) == [
        f"protocol_version: 1, now 2; {NOT_THE_SAME_MEASUREMENT}",
        "machine.cpu_features: no longer sse, now also amx",
        "software.jax: 0.1, now nothing (JAX jit)",
    ]
    assert list(repeated.differences(found("REPRODUCED"))) == ["No difference that is recorded."]


def test_differences_in_some_cells_are_told_with_them() -> None:
    """One line for what differs alike in several cells; a process that never came up lacks nothing."""
    later = dataclasses.replace(RUN, run_id="now", machine={"machine_id": "0", "kernel": "7"})
    first, second = example_records.record(), example_records.record(cell=example_records.fields()["cell"] | {"batch_size": 8})
    newer = dataclasses.replace(first, software={**first.software, "torch": "3.0"})
    failed = dataclasses.replace(second, status="failed", reason="why", samples=None, timer=None, settings={}, software={}, model=None)
    told = rerun.differences((RUN, later), [(first, newer), (second, failed)])
    assert told == (
        Difference("machine.kernel", "6", "7", (first.cell, second.cell)),
        Difference("software.torch", "2.13.0", "3.0", (first.cell,)),
    )
    assert rerun.differences((RUN, RUN), [(first, first)]) == ()
