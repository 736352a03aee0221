"""The gate through its command, on a small framework in git: what it finds, what it passes unmeasured, and what it refuses."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results import ledger, regression
from results.gate import Judgement
from results.record import Cell
from results.regression import Regressions, Verdict
from results.schema import RecordError
from tests import checkouts
from tests.checkouts import MODEL, UNDISTURBED, Checkout, records

BRIEF = f"""{UNDISTURBED}
from suites import pairs
from suites.harness import plan
pairs.EFFORT = plan.Effort(processes=1, blocks=2, visit_s=0.01, samples=3, warmup_s=0.02, rewarm_calls=1)
"""
"""Pairs of real processes, but short ones."""

RUNTIME = Path("impls/honest/runtime.py")

COUNTED = """    def device_memory(self):
        return {{"peak_allocated_bytes": {}}}

    def versions(self):"""

CHANGES: dict[str, tuple[str, str]] = {
    "commented": ('"""One layer\'s output, NHWC."""', '"""The output of one layer, NHWC."""  # as before'),
    "refactored": ("own = {leaf: self.tensors[", "mine = own = {leaf: self.tensors["),
    "slower": ("        return spec.walk(self.model.body, self.layer, batch)", "        return [self.walked(batch) for _ in range(3)][0]"),
    "counted": ("    def versions(self):", COUNTED.format(1000)),
    "grown": ("    def versions(self):", COUNTED.format(1001)),
    "wrong": ("batch)\n\n    def wait", "batch) * 1.01\n\n    def wait"),
}
"""What each commit changes in the first: old text and new."""

SIMULATED = '''

class Time:
    """A processor that takes 0.2 ms for a layer, give or take a twentieth, whatever else the machine does."""

    def __init__(self):
        self.ns = time.perf_counter_ns()

    def read(self):
        self.ns += 100
        return self.ns

    def spend(self):
        self.ns += round(200_000 * random.lognormvariate(0, 0.05))


TIME = Time()
time.perf_counter_ns = TIME.read
'''

LAYER = '        """One layer\'s output, NHWC."""\n'

WALKED = '''
    def walked(self, batch):
        """Every layer once."""
        return spec.walk(self.model.body, self.layer, batch)

    def wait('''


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in git, whose fake keeps a time of its own, with a commit "first" and one on top of it for every change."""
    made = checkouts.make(tmp_path_factory.mktemp("gated"), tmp_path_factory.mktemp("gated-cache"))

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", made.root, *identity, *arguments], check=True, capture_output=True)

    found = (made.root / RUNTIME).read_text(encoding="utf-8")
    first = found.replace("import os\n", "import os\nimport random\nimport time\n") + SIMULATED
    first = first.replace(LAYER, f"{LAYER}        TIME.spend()\n")
    (made.root / RUNTIME).write_text(first, encoding="utf-8")
    git("init", "--quiet", "--initial-branch", "first")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    for name, (old, new) in CHANGES.items():
        assert old in first
        git("checkout", "--quiet", "-b", name, "first")
        text = first.replace(old, new)
        (made.root / RUNTIME).write_text(text.replace("\n    def wait(", WALKED) if name == "slower" else text, encoding="utf-8")
        git("commit", "--quiet", "-a", "-m", name)
    git("checkout", "--quiet", "first")
    return made


Regress = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def regress(gated: Checkout, tmp_path: Path) -> Regress:
    """The command on the honest one; its store lies in ``tmp_path / "store"``."""

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        about = ("--models", MODEL, "--impls", "honest", "--env", "current", "--store", str(tmp_path / "store"))
        return gated.document("regress", *about, "--ledger", str(tmp_path / "aa.jsonl"), *arguments, before=BRIEF)

    return run


def by_quantity(document: dict[str, Any]) -> dict[str, str]:
    return {each["quantity"]: each["outcome"] for each in document["verdicts"]}


def test_what_changes_no_code_passes_unmeasured(regress: Regress, tmp_path: Path) -> None:
    """A docstring and a comment; nothing is started and no run is stored."""
    code, document = regress("--base", "first", "--head", "commented")
    assert (code, document["outcome"], by_quantity(document)) == (0, "pass", {"time": "pass"})
    assert document["verdicts"][0]["reason"].startswith("identical by construction")
    assert document["advisory"] is None
    assert not (tmp_path / "store").exists()


def test_three_times_the_work_is_found(regress: Regress, tmp_path: Path) -> None:
    """A regression of the code: flagged by the screen, confirmed in fresh pairs, advisory without a ledger."""
    code, document = regress("--base", "first", "--head", "slower")
    assert (code, document["outcome"]) == (1, "regressed")
    assert by_quantity(document)["time"] == "regressed"
    assert by_quantity(document)["certificate"] == "pass"
    (time,) = (each for each in document["verdicts"] if each["quantity"] == "time")
    assert time["pairs"] == 8
    assert 2.8 < time["low"] < time["change"] < 3.2
    assert document["advisory"].startswith("ADVISORY: this machine has 0 of the 60")
    taken = [record for record in records(tmp_path / "store") if record.suite == "regression"]
    stages = [(record.data["stage"], record.data["side"]) for record in taken if record.data]
    assert {stage: stages.count(stage) for stage in stages} == {
        ("screen", "base"): 5,
        ("screen", "head"): 5,
        ("confirm", "base"): 8,
        ("confirm", "head"): 8,
    }
    assert len({record.process.index for record in taken if record.process}) == 8
    (run,) = (tmp_path / "store").iterdir()
    assert regression.read(run).outcome == "regressed"


def test_a_change_that_costs_nothing_is_measured_and_not_flagged(regress: Regress) -> None:
    """Another spelling of the same: the code differs, so it is measured."""
    code, document = regress("--base", "first", "--head", "refactored")
    assert by_quantity(document)["certificate"] == "pass"
    assert by_quantity(document)["time"] == "pass"
    assert code in (0, 4)
    (time,) = (each for each in document["verdicts"] if each["quantity"] == "time")
    assert time["pairs"] in (5, 8)


def test_a_byte_that_an_allocator_counts_is_found(regress: Regress) -> None:
    """Where the framework's allocator counts, one byte more is a regression; the process's peak is not asked then."""
    code, document = regress("--base", "counted", "--head", "grown")
    assert code == 1
    assert by_quantity(document)["peak_memory"] == "regressed"
    assert "1000 bytes became 1001" in [each["reason"] for each in document["verdicts"]]


def test_a_lost_certificate_is_a_regression_and_nothing_is_timed(regress: Regress, tmp_path: Path) -> None:
    code, document = regress("--base", "first", "--head", "wrong")
    assert (code, by_quantity(document)) == (1, {"certificate": "regressed"})
    assert document["verdicts"][0]["reason"].startswith("head is not certified: ")
    assert not [record for record in records(tmp_path / "store") if record.suite == "regression"]


def test_a_regained_certificate_passes(regress: Regress) -> None:
    code, document = regress("--base", "wrong", "--head", "first")
    assert (code, by_quantity(document)) == (0, {"certificate": "pass"})


def test_the_list_for_people(gated: Checkout, tmp_path: Path) -> None:
    """A planted slowdown against itself: the worst first, the answer last, files named; the working tree is head."""
    about = ("--models", MODEL, "--impls", "honest", "--env", "current", "--store", str(tmp_path), "--inject-slowdown", "100%")
    done = gated.run("regress", *about, "--ledger", str(tmp_path / "aa.jsonl"), "--base", "first", before=BRIEF)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith("regressed")
    assert re.search(r"REGRESSED: the working tree with 100.0% planted against first: 1 regressed", done.stdout)
    (markdown,) = (Path(line) for line in lines if line.endswith("regressions.md"))
    assert markdown.read_text(encoding="utf-8").startswith("**REGRESSED: the working tree")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "nowhere"], "there is no revision 'nowhere' here"),
        (["--base", "first", "--head", "nowhere"], "there is no revision 'nowhere' here"),
        (["--base", "first", "--processes", "3"], "--processes is not for the gate: how often it measures is fixed beforehand"),
        (["--base", "first", "--smoke"], "--smoke is not for the gate"),
        (["--base", "first", "--head", "slower", "--precisions", "bf16"], "NumPy has no bfloat16: a gate judges all that it was asked for"),
        (["--base", "first", "--inject-slowdown", "much"], "'much' is not a share like 5% or 0.05"),
    ],
)
def test_bad_input_gets_one_sentence(gated: Checkout, tmp_path: Path, arguments: list[str], message: str) -> None:
    about = ("--models", MODEL, "--impls", "honest", "--env", "current", "--store", str(tmp_path / "store"))
    done = gated.run("regress", *about, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


def test_equal_things_and_a_planted_slowdown_are_in_the_ledger(gated: Checkout, tmp_path: Path) -> None:
    """Both beside a burner; the second measures power and is no A/A comparison."""
    path = tmp_path / "aa.jsonl"
    about = ("--models", MODEL, "--impls", "honest", "--env", "current", "--store", str(tmp_path / "store"), "--ledger", str(path))
    code, document = gated.document("aa", *about, "--scopes", "device,transfer", "--burner", before=BRIEF)
    assert code == 0
    assert document["summary"]["comparisons"] == len(document["entries"]) == 2
    assert {entry["condition"] for entry in document["entries"]} == {"burner"}
    code, document = gated.document("aa", *about, "--inject-slowdown", "100%", before=BRIEF)
    assert document["summary"]["comparisons"] == 0
    (power,) = document["summary"]["power"]
    assert (power["planted_slowdown"], power["comparisons"], power["regressed"]) == (1.0, 1, 1)
    found = ledger.read(path)
    assert [entry.planted_slowdown for entry in found.entries] == [0.0, 0.0, 1.0]
    assert {record.suite for record in records(tmp_path / "store")} == {"equivalence", "aa"}


def test_a_broken_ledger_is_one_sentence(gated: Checkout, tmp_path: Path) -> None:
    path = tmp_path / "aa.jsonl"
    path.write_text("not a ledger\n", encoding="utf-8")
    about = ("--models", MODEL, "--impls", "honest", "--env", "current", "--store", str(tmp_path / "store"), "--ledger", str(path))
    done = gated.run("regress", *about, "--base", "first", "--head", "slower")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"levelfield: {path}: line 1: ")


CELL = Cell("pytorch", "eager", "resnet18", "fp32", "cpu", 1, "transfer", "single_stream", 2)


def found(*outcomes: tuple[regression.Quantity, regression.Outcome]) -> Regressions:
    verdicts = tuple(Verdict.plain(CELL, quantity, outcome, "why") for quantity, outcome in outcomes)
    return Regressions("main", "the working tree", "0" * 40, None, 0.0, verdicts, None)


def test_the_worst_counts() -> None:
    """Of start-up only "regressed" gates."""
    assert found(("time", "pass"), ("peak_memory", "inconclusive")).outcome == "inconclusive"
    assert found(("time", "invalid"), ("peak_memory", "inconclusive")).outcome == "invalid"
    assert found(("time", "invalid"), ("certificate", "regressed")).outcome == "regressed"
    assert found(("time", "pass"), ("startup", "inconclusive")).outcome == "pass"
    assert found(("time", "pass"), ("startup", "regressed")).outcome == "regressed"
    assert found(("startup", "inconclusive")).outcome == "invalid"


def test_the_document_comes_back(tmp_path: Path) -> None:
    judged = Judgement("candidate", "more", 5, 1.2, 1.1, 1.3, 0.05, None, improved=False)
    verdicts = (Verdict.of(CELL, "startup", judged),)
    assert verdicts[0].outcome == "regressed"
    whole = Regressions("main", "head", None, None, 0.05, verdicts, "ADVISORY")
    regression.write(tmp_path, whole)
    assert regression.read(tmp_path) == whole


@pytest.mark.parametrize("data", [b"", b"{}", b"[1", b"\xff"])
def test_a_document_that_is_none_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(RecordError, match=r"it has no regressions\.json"):
        regression.read(tmp_path)
    (tmp_path / regression.DOCUMENT).write_bytes(data)
    with pytest.raises(RecordError, match=str(tmp_path)):
        regression.read(tmp_path)
