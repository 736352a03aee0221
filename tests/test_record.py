from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.record import Cell, build, from_json, to_json, utc_now
from results.schema import RecordError
from tests.example_records import fields, record

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=8,
)


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every field of the schema, outermost first; free documents (settings and their like) count as one."""
    for name, item in value.items():
        yield (*path, name)
        if isinstance(item, dict) and name not in ("settings", "software", "env_vars", "measurements"):
            yield from places(item, (*path, name))


PLACES = list(places(fields()))


def at(document: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The object that holds the field at ``path``."""
    for name in path[:-1]:
        document = document[name]
    return document


def test_round_trip() -> None:
    """A record comes back from its JSON equal and with the same identity."""
    again = from_json(to_json(record()))
    assert again == record()
    assert again.record_id == record().record_id
    assert len(again.record_id) == 16


@given(
    settings=st.dictionaries(st.text(), JSON, max_size=4),
    data=st.none() | st.dictionaries(st.text(), JSON, max_size=4),
    log_tail=st.none() | st.lists(st.text(), max_size=3),
    load_s=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    durations=st.lists(st.tuples(st.integers(1, 10**12), st.integers(1, 100), st.booleans()), min_size=1, max_size=20),
)
def test_round_trip_of_any_content(settings: Any, data: Any, log_tail: Any, load_s: Any, durations: list[tuple[int, int, bool]]) -> None:
    """Whatever JSON holds survives, in settings, data, logs, numbers and samples."""
    nanoseconds = [duration for duration, _, _ in durations]
    samples = {
        "visit": list(range(len(durations))),
        "start_ns": [sum(nanoseconds[:position]) for position in range(len(durations))],
        "duration_ns": nanoseconds,
        "calls": [calls for _, calls, _ in durations],
        "warmup": [warmup for _, _, warmup in durations[:-1]] + [False],
    }
    made = record(settings=settings, data=data, log_tail=log_tail, measurements={"load_s": load_s}, samples=samples)
    again = from_json(to_json(made))
    assert again == made
    assert to_json(again) == to_json(made)


@pytest.mark.parametrize("path", [*PLACES, ("schema_version",), ("record_id",)], ids=".".join)
def test_missing_field(path: tuple[str, ...]) -> None:
    """A record without one of its fields is refused, and the message names the file and the field."""
    document = json.loads(to_json(record()))
    del at(document, path)[path[-1]]
    with pytest.raises(RecordError, match=rf"^some/file\.json: {'.'.join(path)}: missing"):
        from_json(json.dumps(document), "some/file.json")


@pytest.mark.parametrize("path", [path for path in PLACES if path not in (("data",), ("settings",))], ids=".".join)
def test_wrong_type(path: tuple[str, ...]) -> None:
    """A value of a type that its field does not have is refused by name."""
    document = fields()
    at(document, path)[path[-1]] = [[1.5]] if path[0] != "samples" else {}
    with pytest.raises(RecordError, match=rf"^record: {'.'.join(path)}"):
        build(document)


@pytest.mark.parametrize("holder", ["", "cell", "process", "model", "inputs", "code", "timer", "samples"])
def test_unknown_field(holder: str) -> None:
    """A field that the schema does not have is refused at every level."""
    document = fields()
    (document[holder] if holder else document)["extra"] = 1
    with pytest.raises(RecordError, match="extra: unknown field"):
        build(document)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "true", '"1"'])
@pytest.mark.parametrize("holder", ["measurements", "settings"])
def test_not_a_number(number: str, holder: str) -> None:
    """NaN and infinities are refused however they are spelled; what else is no number, where a number must stand."""
    if holder == "settings" and number in ("true", '"1"'):
        assert build(fields(settings={"load_s": json.loads(number)}))
        return
    text = to_json(record()).replace('"load_s": 0.5', f'"load_s": {number}').replace('"folded": false', f'"folded": {number}')
    with pytest.raises(RecordError, match=r"(load_s|folded): expected a finite number"):
        from_json(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.int64(3), {1}, b"x"])
def test_what_has_no_json_form_is_not_written(value: object) -> None:
    """A record that could not be read back is refused when it is written, by the field's name."""
    broken = dataclasses.replace(record(), settings={"threads": value})
    with pytest.raises(RecordError, match=r"settings\.threads"):
        to_json(broken)


def test_name_twice() -> None:
    """A document that says something twice is refused, where the standard parser would take the last."""
    text = to_json(record()).replace('"reason": null', '"reason": null, "reason": null')
    with pytest.raises(RecordError, match="stands twice"):
        from_json(text)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '"record"', "{}", '{"schema_version": 1}', "1" * 5000])
def test_not_a_record(text: str) -> None:
    """Text that is no record gives one clear error."""
    with pytest.raises(RecordError, match=r"^file\.json: "):
        from_json(text, "file.json")


@pytest.mark.parametrize("version", [0, 2, 1.0, True, "1", None])
def test_other_schema_version(version: object) -> None:
    """A record of another schema version is not guessed at."""
    document = json.loads(to_json(record())) | {"schema_version": version}
    with pytest.raises(RecordError, match="schema_version"):
        from_json(json.dumps(document))


@pytest.mark.parametrize("path", [("samples", "duration_ns"), ("machine_id",), ("record_id",), ("certificate_id",)], ids=".".join)
def test_altered_content(path: tuple[str, ...]) -> None:
    """A content that is valid but not the one that was named is found."""
    document = json.loads(to_json(record()))
    at(document, path)[path[-1]] = [1099, 900, 880, 905] if path[0] == "samples" else "fedcba9876543210"
    with pytest.raises(RecordError, match=r"record_id: .* was altered"):
        from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "failed"}, "reason"),
        ({"status": "failed", "reason": ""}, "reason"),
        ({"reason": "because"}, "reason"),
        ({"status": "fine"}, "status: expected one of"),
        ({"samples": None}, "samples"),
        ({"timer": None}, "samples"),
        ({"process": None}, "samples"),
        ({"suite": "equivalence"}, "null"),
        ({"cell": fields()["cell"] | {"scope": None}}, "has a batch_size"),
        ({"cell": fields()["cell"] | {"threads": 0}}, "cell: threads: 0 is not at least 1"),
        ({"cell": fields()["cell"] | {"threads": True}}, r"cell\.threads: expected an integer"),
        ({"cell": fields()["cell"] | {"mode": "a/b"}}, "cell: mode"),
        ({"cell": fields()["cell"] | {"precision": "float32"}}, r"cell\.precision"),
        ({"process": fields()["process"] | {"index": -1}}, "index"),
        ({"model": fields()["model"] | {"weights_sha256": "abc"}}, "weights_sha256"),
        ({"inputs": fields()["inputs"] | {"shape": []}}, "shape"),
        ({"measurements": {"latency": 1.0}}, r"measurements\.latency: its unit"),
        ({"created_utc": "2026-01-31 12:00"}, "created_utc"),
        ({"created_utc": "2026-01-31T12:00:00+01:00"}, "created_utc"),
        ({"run_id": "../elsewhere"}, "run_id"),
    ],
)
def test_contradictions(changes: dict[str, Any], message: str) -> None:
    """Fields that contradict each other, or values out of range, are refused by name."""
    with pytest.raises(RecordError, match=message):
        record(**changes)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("duration_ns", [1100, 900, 880], "of one length"),
        ("duration_ns", [1100, 0, 880, 905], "at least 1"),
        ("calls", [1, 1, 0, 1], "at least 1"),
        ("visit", [0, 1, 0, 1], "visit: not in order"),
        ("start_ns", [1000, 2099, 9000, 9900], "before the one before it ended"),
        ("warmup", [True, True, True, True], "every sample is warm-up"),
        ("warmup", [1, 0, 1, 0], r"warmup\[0\]: expected true or false"),
    ],
)
def test_broken_samples(column: str, values: list[object], message: str) -> None:
    """Samples that are incomplete, out of order or empty are refused."""
    with pytest.raises(RecordError, match=message):
        record(samples=fields()["samples"] | {column: values})


def test_failure_is_a_record() -> None:
    """A worker that never came up has a record with nothing but its reason and last lines."""
    failed = record(
        status="timed_out",
        reason="no answer in 60 s",
        process=None,
        certificate_id=None,
        settings={},
        model=None,
        inputs=None,
        software={},
        timer=None,
        samples=None,
        measurements={},
        log_tail=["killed"],
    )
    assert from_json(to_json(failed)) == failed


def test_cell_key() -> None:
    """The key names every coordinate, and a certificate's cell keeps the first five."""
    cell = record().cell
    assert cell.key == "pytorch/eager/resnet50/fp32/cpu/1/transfer/single_stream/2"
    assert cell.certificate_cell.key == "pytorch/eager/resnet50/fp32/cpu/-/-/-/-"
    assert cell.certificate_cell.certificate_cell == cell.certificate_cell
    assert cell.digest == "f7cdad479b5f"


def test_cells_differ_in_key() -> None:
    """Cells that differ in one coordinate differ in key."""
    cell = record().cell
    others: dict[str, Any] = {"implementation": "jax", "mode": "jit", "model": "vgg16", "precision": "bf16", "device": "cuda"}
    others |= {"batch_size": 8, "scope": "device", "scenario": "offline", "threads": 1}
    cells = [cell, *(dataclasses.replace(cell, **{name: value}) for name, value in others.items())]
    assert len({other.key for other in cells}) == len({other.digest for other in cells}) == 1 + len(dataclasses.fields(Cell))


def test_now() -> None:
    """The time of now is a time that records take."""
    assert record(created_utc=utc_now())
