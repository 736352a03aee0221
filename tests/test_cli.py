"""The command: what a wrong word gets, one document on stdout, and the exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from levelfield.cli import Duration, main
from tests.checkouts import MODEL, Checkout, bench


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="levelfield")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bnch"], "there is no command 'bnch'; did you mean 'bench'?"),
        (["plan", "--modells", "resnet50"], "Did you mean one of: '--model', '--models'"),
        (["plan", "--models", "resnet51"], "there is no model 'resnet51'; the nearest is 'resnet50'"),
        (["plan", "--impls", "pytroch"], "there is no implementation 'pytroch'; did you mean 'pytorch'?"),
        (["plan", "--modes", "egaer"], "there is no mode 'egaer'; did you mean 'eager'?"),
        (["plan", "--precisions", "bf61"], "there is no precision 'bf61'; did you mean 'bf16'?"),
        (["plan", "--scopes", "host"], "there is no scope 'host'"),
        (["plan", "--device", "gpu"], "there is no device 'gpu'; did you mean 'cpu'? (known: cpu, cuda)"),
        (["plan", "--batch-sizes", "one"], "'one' is not a comma-separated list of numbers"),
        (["plan", "--batch-sizes", "1,,8"], "'1,,8' is not a comma-separated list of numbers"),
        (["plan", "--batch-sizes", "0"], "--batch-sizes 0: a batch holds at least one image"),
        (["plan", "--models", "resnet50,"], "'resnet50,' has an empty word"),
        (["plan", "--threads", "0"], "--threads 0: this process may use 1 to"),
        (["plan", "--budget", "5"], "'5' is not a duration like 90s, 5m or 1h"),
        (["plan", "--budget", "nanm"], "'nanm' is not a duration"),
        (["plan", "--budget", "-1s"], "'-1s' is not a duration"),
        (["bench", "--env", "jaks=python"], "--env jaks=python: expected 'current' or IMPLEMENTATION=PYTHON"),
        (["plan", "--batch-sizes", "1,...,32"], "... stands at the end, behind the size that is doubled first, as in 1,32,..."),
        (["plan", "--batch-sizes", "..."], "... stands at the end, behind the size that is doubled first"),
        (["plan", "--batch-sizes", "1,..."], "--batch-sizes with ... is for a GPU"),
        (["certify", "--batch-sizes", "1,..."], "only bench and plan take ..., which doubles"),
        (["bench", "--impls", "jax", "--env", "jax=/no/python"], "there is no interpreter /no/python"),
        (["bench", "--allow-unlike", "tf32,speed"], "--allow-unlike speed: what may be allowed to differ is precision, tf32, "),
        (["report", "results/records", "--allow-unlike", "machine_id"], "--allow-unlike machine_id: what may be allowed to differ is"),
        (["weights", "make", "--model", "resnet", "--out", "unused"], "there is no model 'resnet'"),
        (["weights", "show", "/no/such/file"], "/no/such/file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_word_gets_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    """Exit code 2, nothing on stdout, and a sentence that names the word and the nearest right one."""
    store = ["--store", str(tmp_path)] if arguments[0] == "bench" else []
    done = command(*arguments, *store)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("1h", 3600), ("0.5m", 30)])
def test_durations(text: str, seconds: float) -> None:
    """Seconds, minutes and hours."""
    assert Duration().convert(text, None, None) == seconds


def test_the_plan_as_json_is_one_document() -> None:
    """Cells, skips, effort and estimate; nothing else on stdout."""
    done = command("plan", "--json", "--models", "resnet18", "--budget", "1m")
    document = json.loads(done.stdout)
    assert done.exit_code == 0
    assert document["schema_version"] == 1
    assert {cell["model"] for cell in document["cells"]} == {"resnet18"}
    assert document["reductions"]
    assert done.stderr == ""


def test_the_plan_for_people_names_skips_and_cuts() -> None:
    """What is left out stands there with its reason."""
    done = command("plan", "--models", "resnet18", "--precisions", "fp32,tf32", "--budget", "1m")
    assert done.exit_code == 0
    assert "To keep within the budget: " in done.stdout
    assert re.search(r"skipped: pytorch eager resnet18 tf32: TF32 is a format", done.stdout)


def test_the_models() -> None:
    """Every model with its parameters."""
    rows = {row["model"]: row for row in json.loads(command("models", "--json").stdout)["models"]}
    assert rows["resnet50"]["parameters"] == 25_557_032


def test_weights_made_and_shown(tmp_path: Path) -> None:
    """A weight file is made from a seed and read back whole; a damaged one is refused in one sentence."""
    path = tmp_path / "weights.safetensors"
    assert command("weights", "make", "--model", MODEL, "--seed", "3", "--out", str(path)).exit_code == 0
    shown = command("weights", "show", str(path))
    assert shown.exit_code == 0
    assert "source: synthesised, seed 3" in shown.stdout
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    damaged = command("weights", "show", str(path))
    assert (damaged.exit_code, damaged.stdout) == (2, "")
    assert damaged.stderr.startswith("levelfield: ")


def test_nothing_to_run(checkout: Checkout, tmp_path: Path) -> None:
    """Where all that was asked for is impossible, the reason is the answer, with exit code 2."""
    done = checkout.run(*bench("honest", store=tmp_path / "store"), "--precisions", "bf16")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "levelfield: NumPy has no bfloat16\n"
    assert not (tmp_path / "store").exists()


def test_a_skip_asked_for_by_name_is_the_answer_no(checkout: Checkout, tmp_path: Path) -> None:
    """What could run ran, and what was named in vain makes the exit code 1; unnamed, it would be 0."""
    arguments = ("--models", MODEL, "--env", "current", "--impls", "honest", "--store", str(tmp_path))
    code, document = checkout.document("certify", *arguments, "--precisions", "fp32,bf16")
    assert code == 1
    assert [(skip["precision"], skip["by_name"]) for skip in document["skipped"]] == [("bf16", True)]
    assert [each["status"] for each in document["certificates"]] == ["ok"]
    assert checkout.document("certify", *arguments, "--precisions", "fp32")[0] == 0


def test_a_document_is_all_of_stdout(checkout: Checkout, tmp_path: Path) -> None:
    """``--json`` prints one document, which says that a smoke run measured nothing; the rest goes to stderr."""
    done = checkout.run(*bench("honest", store=tmp_path), "--smoke", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert [(row["implementation"], row["status"]) for row in document["rows"]] == [("honest", "ok")]
    assert document["rows"][0]["latency_s"]["value"] is None
    assert "certifying" in done.stderr


def test_a_store_that_cannot_be_written(checkout: Checkout, tmp_path: Path) -> None:
    """A file where the store's folder should be: one sentence that names it."""
    (tmp_path / "file").touch()
    done = checkout.run(*bench("honest", store=tmp_path / "file" / "store"), "--smoke")
    assert done.returncode == 2
    assert str(tmp_path / "file") in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_no_gpu_is_one_sentence() -> None:
    """Where there is no NVIDIA GPU, ``--device cuda`` says what was looked for, before anything is built."""
    from suites.harness import gpu

    if (why := gpu.missing()) is not None:
        done = command("bench", "--device", "cuda")
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr == f"levelfield: {why}\n"
