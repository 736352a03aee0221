"""Which rows may be compared: every field counts, the exceptions are the documented ones, and what is compared is alike each to each."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import likeness
from reports.likeness import FIELDS, LIFTABLE, AllowUnlikeError, examine, facts
from results.record import Inputs, Model
from tests.synthetic_records import SETTINGS, SHA, Run

FACTS: dict[str, object] = {
    **{"precision": "float32", "tf32": False, "threads": 2, "folded": True, "deterministic": None, "autotuning": False},
    **{"inputs_sha256": SHA, "weights_sha256": SHA, "protocol_version": "1", "machine_id": "efb6512f3c0b812b"},
}
BASELINE = "pytorch/eager"


def without(name: str) -> dict[str, object]:
    return {field: value for field, value in FACTS.items() if field != name}


def test_alike_rows_have_nothing_to_say() -> None:
    """Rows that differ in no field are compared, and no note is made."""
    found = examine({BASELINE: FACTS, "jax/jit": FACTS}, BASELINE)
    assert set(found.values()) == {likeness.Finding()}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_counts(field: str) -> None:
    """A difference in any one field keeps the row out, and the note names the field and both values, the row's first."""
    found = examine({BASELINE: FACTS, "jax/jit": {**FACTS, field: "cdcdcdcdcdcd"}}, BASELINE)
    value = FACTS[field]
    there = value if isinstance(value, str) else {True: "true", False: "false", 2: "2", None: "null"}[value]  # type: ignore[index]
    here, there = ("cdcdcdcd", there[:8]) if field.endswith("_sha256") else ("cdcdcdcdcdcd", there)
    assert found["jax/jit"].unlike == f"not compared with PyTorch eager: {field} differs ({here}, {there})"
    assert found["jax/jit"].despite is None
    assert found[BASELINE] == likeness.Finding()


@pytest.mark.parametrize("field", LIFTABLE)
def test_what_is_allowed_is_compared_and_said(field: str) -> None:
    """A lifted field keeps nothing out and is named; another one still does."""
    rows = {BASELINE: FACTS, "jax/jit": {**FACTS, field: "other"}}
    lifted = examine(rows, BASELINE, [field])["jax/jit"]
    assert lifted.unlike is None
    assert lifted.despite is not None
    assert lifted.despite.startswith(f"compared with PyTorch eager although {field} differs (other, ")
    assert lifted.despite.endswith("), as allowed")
    another = next(name for name in LIFTABLE if name != field)
    assert examine(rows, BASELINE, [another])["jax/jit"].unlike is not None


@pytest.mark.parametrize("field", [field for field in FIELDS if field != "autotuning"])
def test_what_is_not_told_is_unlike_everything(field: str) -> None:
    """Even a row that does not tell it either."""
    found = examine({BASELINE: without(field), "jax/jit": without(field)}, BASELINE)
    assert found["jax/jit"].unlike == f"not compared with PyTorch eager: {field} differs (unknown, unknown)"


def test_autotuning_counts_where_both_tell_it() -> None:
    """No framework is refused for a setting that it has no name for."""
    assert examine({BASELINE: FACTS, "jax/jit": without("autotuning")}, BASELINE)["jax/jit"] == likeness.Finding()


def test_a_zoo_model_is_compared_in_its_own_form() -> None:
    """Folding is what the comparison with it is about, whichever of the two is the baseline; nothing else is."""
    zoo = {**FACTS, "folded": False}
    for baseline, other, values in ((BASELINE, "torchvision/eager", "false, true"), ("torchvision/eager", BASELINE, "true, false")):
        found = examine({BASELINE: FACTS, "torchvision/eager": zoo}, baseline)[other]
        assert found.unlike is None
        assert found.despite is not None
        assert found.despite.endswith(f"although folded differs ({values}), which the comparison is about")
    fast = examine({BASELINE: FACTS, "torchvision/eager": {**zoo, "tf32": True}}, BASELINE)["torchvision/eager"]
    assert fast.unlike == "not compared with PyTorch eager: tf32 differs (true, false)"
    ours = examine({BASELINE: FACTS, "jax/jit": zoo}, BASELINE)["jax/jit"]
    assert ours.unlike == "not compared with PyTorch eager: folded differs (false, true)"


def test_without_the_baseline_the_odd_one_is_out() -> None:
    """Where the baseline was not measured, the row is left out that is unlike most."""
    found = examine({"jax/jit": {**FACTS, "tf32": True}, "onnx/ort": FACTS, "tensorflow/xla": FACTS}, BASELINE)
    assert [name for name, each in found.items() if each.unlike] == ["jax/jit"]


NAMES = (BASELINE, "pytorch/compile", "jax/jit", "onnx/ort", "torchvision/eager", "keras/graph")
VALUES = st.fixed_dictionaries({"folded": st.booleans(), "tf32": st.sampled_from([True, False])})


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1), st.sets(st.sampled_from(["folded", "tf32"])))
def test_what_is_compared_is_alike_each_to_each(chosen: dict[str, Any], lifted: set[str]) -> None:
    """Ranks come from all pairs, so no pair may differ, also where each is like the baseline; the baseline is never out."""
    rows = {name: {**FACTS, **values} for name, values in chosen.items()}
    found = examine(rows, BASELINE, lifted)
    assert found.keys() == rows.keys()
    assert BASELINE not in rows or found[BASELINE] == likeness.Finding()
    kept = [name for name in rows if found[name].unlike is None]
    for one, other in itertools.combinations(kept, 2):
        assert "tf32" in lifted or rows[one]["tf32"] == rows[other]["tf32"]
        zoo = {"torchvision/eager", "keras/graph"} & {one, other}
        assert zoo or "folded" in lifted or rows[one]["folded"] == rows[other]["folded"]


def test_facts_are_those_of_every_process(tmp_path: Path) -> None:
    """What the processes of a row do not agree on is not known of it; a process that was never timed has no say."""
    run = Run(tmp_path)
    run.process("jax/jit", 0, 0.01)
    run.append("inference", run.cell("jax/jit"), 1, status="failed", reason="died", settings={})
    records = run.store.read()[0]
    assert facts(records) == without("autotuning")
    run.process(
        "jax/jit", 2, 0.01, told={"settings": {**SETTINGS, "tf32": True}, "inputs": Inputs("cd" * 32, "noise", 8, (1, 3, 224, 224))}
    )
    assert facts(run.store.read()[0]).keys() == FACTS.keys() - {"autotuning", "tf32", "inputs_sha256"}
    assert facts([]) == {}


def test_determinism_counts_on_a_gpu_only(tmp_path: Path) -> None:
    """On a CPU XLA is deterministic without having been asked; on a GPU the flag costs speed."""
    run = Run(tmp_path)
    for device in ("cpu", "cuda"):
        run.process("jax/jit", 0, 0.01, told={"settings": {**SETTINGS, "deterministic": True}}, device=device)
    told = {record.cell.device: facts([record])["deterministic"] for record in run.store.read()[0]}
    assert told == {"cpu": None, "cuda": True}


def test_other_weights_are_other_facts(tmp_path: Path) -> None:
    """The hash of the weights that were timed is among the facts."""
    run = Run(tmp_path)
    run.process("jax/jit", 0, 0.01, told={"model": Model("cd" * 32, SHA, 1, 1, None)})
    assert facts(run.store.read()[0])["weights_sha256"] == "cd" * 32


@pytest.mark.parametrize("name", ["machine_id", "protocol_version", "mode", "fold", ""])
def test_what_cannot_be_allowed_is_refused_by_name(name: str) -> None:
    """In one sentence that lists what can; machines and protocols are never compared row by row."""
    with pytest.raises(AllowUnlikeError, match=rf"^--allow-unlike {name}: .* precision, tf32, threads, folded, "):
        likeness.require_liftable(["tf32", name])
