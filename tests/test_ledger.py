from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from impls.implementation import ROOT
from results import ledger
from results.ledger import ENOUGH, Entry, Power, append, by, condition, read, summarise
from results.record import Cell
from results.schema import RecordError
from results.store import StoreError

CELL = Cell("pytorch", "eager", "cifar_resnet20", "fp32", "cpu", 1, "transfer", "single_stream", 2)


def entry(**changes: Any) -> Entry:
    fields: dict[str, Any] = {
        "created_utc": "2026-01-31T12:00:00Z",
        "machine_id": "0123456789abcdef",
        "run_id": "20260131T120000.000000Z-abcdef",
        "commit": None,
        "protocol_version": "1",
        "condition": "quiet",
        "cell": CELL,
        "pairs": 5,
        "ratio": 1.0,
        "low": 0.99,
        "high": 1.01,
        "planted_slowdown": 0.0,
        "verdict": "pass",
    }
    return Entry(**fields | changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of four entries."""
    found = tmp_path / "aa.jsonl"
    for pairs in (2, 3, 4, 5):
        assert append(found, entry(pairs=pairs)) == b""
    return found


def test_what_was_appended_is_read(path: Path) -> None:
    """Entries come back equal and in order; a ledger that is not there is empty."""
    assert read(path) == ledger.Ledger(tuple(entry(pairs=pairs) for pairs in (2, 3, 4, 5)), b"")
    assert read(path.with_name("none.jsonl")) == ledger.Ledger((), b"")


def altered(line: bytes) -> bytes:
    return line.replace(b'"ratio":1.0', b'"ratio":1.001')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], altered(lines[1]), *lines[2:]], "line 2: its content is not what was written"),
        (lambda lines: [*lines[:3], altered(lines[3])], "line 4: its content is not what was written"),
        (lambda lines: [lines[0], *lines[2:]], "line 2: it does not follow"),
        (lambda lines: lines[1:], "line 1: it does not follow"),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], "line 2: it does not follow"),
        (lambda lines: [*lines, lines[3]], "line 5: it does not follow"),
        (lambda lines: [lines[0], b"", *lines[1:]], "line 2: not valid JSON"),
        (lambda lines: [lines[0], b"[1]", *lines[1:]], "line 2: not a line of a ledger"),
        (lambda lines: [lines[0], b"\xff\x00", *lines[1:]], "line 2: not a line of a ledger"),
        (lambda lines: [lines[0].replace(b'"format":1', b'"format":2'), *lines[1:]], "line 1: format 2; this code reads format 1"),
    ],
    ids=(
        "altered",
        "altered last",
        "taken out",
        "first taken out",
        "moved",
        "copied",
        "empty",
        "another document",
        "bytes",
        "another format",
    ),
)
def test_a_broken_chain(path: Path, change: Any, message: str) -> None:
    """A line that was altered, taken out, moved, copied or put in is named, in one sentence."""
    lines = change(path.read_bytes().splitlines())
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(RecordError, match=f"aa.jsonl: {message}"):
        read(path)


def test_nothing_is_added_to_a_broken_end(path: Path) -> None:
    """Behind a last line that was altered nothing is appended."""
    data = b"\n".join([*path.read_bytes().splitlines()[:3], altered(path.read_bytes().splitlines()[3])]) + b"\n"
    path.write_bytes(data)
    with pytest.raises(RecordError, match="line 4"):
        append(path, entry())
    assert path.read_bytes() == data


def test_every_power_cut(path: Path) -> None:
    """Wherever the last line was cut, the others are read, the rest is named and kept, and the ledger goes on whole."""
    data = path.read_bytes()
    begin = data[:-1].rindex(b"\n") + 1
    for end in range(begin, len(data)):
        path.write_bytes(data[:end])
        whole = end == len(data) - 1  # all but the line's end
        found = read(path)
        assert [each.pairs for each in found.entries] == [2, 3, 4, 5][: 4 if whole else 3]
        torn = b"" if whole else data[begin:end]
        assert found.torn == torn
        assert append(path, entry(pairs=9)) == torn
        assert [each.pairs for each in read(path).entries] == ([2, 3, 4, 5, 9] if whole else [2, 3, 4, 9])
        kept = list(path.parent.glob("aa.jsonl.torn-*"))
        assert [each.read_bytes() for each in kept] == ([torn] if torn else [])
        for each in kept:
            each.unlink()


def test_several_processes(tmp_path: Path) -> None:
    """What processes append at once is all there, in one chain."""
    path = tmp_path / "aa.jsonl"
    program = (
        "import dataclasses, pathlib, sys; from tests.test_ledger import entry; from results.ledger import append\n"
        "for pairs in range(2, 27): append(pathlib.Path(sys.argv[1]), entry(pairs=pairs, machine_id=sys.argv[2]))"
    )
    children = [subprocess.Popen([sys.executable, "-c", program, str(path), str(number)], cwd=ROOT) for number in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    entries = read(path).entries
    for number in range(3):
        assert [each.pairs for each in entries if each.machine_id == str(number)] == list(range(2, 27))


def test_no_place(tmp_path: Path) -> None:
    """Where nothing can be written one sentence says so."""
    with pytest.raises(StoreError, match="the comparison was not added: Is a directory"):
        append(tmp_path, entry())


@pytest.mark.parametrize(
    "changes",
    [
        {"pairs": 1},
        {"low": 1.5},
        {"low": 0.0},
        {"high": float("inf")},
        {"ratio": float("nan")},
        {"planted_slowdown": -0.1},
        {"created_utc": "yesterday"},
        {"run_id": "../x"},
    ],
)
def test_no_such_entry(changes: dict[str, Any]) -> None:
    """A comparison without an interval, a time or a run is none."""
    with pytest.raises(RecordError, match=next(iter(changes)) if "low" not in changes and "high" not in changes else "ratio"):
        entry(**changes)


def test_wrong_types_are_not_written(tmp_path: Path) -> None:
    """An entry whose fields are of other types is refused before anything is written."""
    with pytest.raises(RecordError, match="condition"):
        append(tmp_path / "aa.jsonl", dataclasses.replace(entry(), condition="loud"))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_summary_by_hand() -> None:
    """Counts, coverage, median half-width, exact bounds, and the power at each planted slowdown."""
    equal = [
        entry(low=0.99, high=1.01),
        entry(low=0.999, ratio=1.001, high=1.002),
        entry(ratio=1.03, low=1.01, high=1.05, verdict="regressed"),
    ]
    equal += [entry(), entry(verdict="inconclusive")]
    planted = [
        entry(ratio=1.05, low=1.04, high=1.06, planted_slowdown=0.05, verdict=verdict) for verdict in ("regressed", "regressed", "pass")
    ]
    found = summarise([*equal, *planted])
    assert (found.comparisons, found.false_differences, found.false_alarms) == (5, 1, 1)
    assert found.coverage == pytest.approx(0.8)
    assert found.median_half_width == pytest.approx(np.log(1.01 / 0.99) / 2)
    # Clopper and Pearson by the beta distribution: p with P(X <= 1 of 5) = 5 %.
    assert found.false_bound == pytest.approx(0.657408, abs=1e-6)
    (power,) = found.power
    assert (power.planted_slowdown, power.comparisons, power.regressed) == (0.05, 3, 2)
    assert (power.low, power.high) == pytest.approx((0.094299, 0.991596), abs=1e-6)


@pytest.mark.parametrize(("comparisons", "bound"), [(60, 0.0487), (300, 0.00994)])
def test_bound_without_a_false_difference(comparisons: int, bound: float) -> None:
    """None false of 60 bound the rate by 4.9 %, none of 300 by 1 %."""
    assert summarise([entry()] * comparisons).false_bound == pytest.approx(bound, abs=5e-5)


def test_advisory() -> None:
    """Below sixty A/A comparisons a verdict is advisory; planted ones do not count."""
    few = [entry()] * (ENOUGH - 1) + [entry(planted_slowdown=0.05, verdict="regressed")] * 9
    assert summarise(few).advisory == "ADVISORY: this machine has 59 of the 60 A/A comparisons that a binding verdict rests on"
    assert summarise([*few, entry()]).advisory is None


def test_nothing_to_summarise() -> None:
    """An empty ledger has no rates, not zero ones."""
    assert summarise([]) == ledger.Summary(0, 0, None, None, None, 0, None, ())


def test_groups() -> None:
    """Each condition has a summary of its own."""
    entries = [entry(), entry(), entry(condition="burner")]
    assert {name: each.comparisons for name, each in by(entries, condition).items()} == {"burner": 1, "quiet": 2}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_groups_add_up(found: list[tuple[bool, bool]]) -> None:
    """The groups' counts sum to the whole's."""
    entries = [entry(low=1.005 if false else 0.99, ratio=1.006, condition="burner" if burner else "quiet") for false, burner in found]
    whole, parts = summarise(entries), by(entries, condition).values()
    assert whole.comparisons == sum(each.comparisons for each in parts)
    assert whole.false_differences == sum(each.false_differences for each in parts)


def test_power_is_exact() -> None:
    """The interval of the power holds it, also where all or none were found."""
    always = summarise([entry(planted_slowdown=0.05, verdict="regressed")] * 20).power
    assert always == (Power(0.05, 20, 20, pytest.approx(0.831567, abs=1e-6), 1.0),)


def test_lines_are_json(path: Path) -> None:
    """Anyone can read the file: an object a line, with the hash of the line before."""
    documents = [json.loads(line) for line in path.read_text().splitlines()]
    assert [each["previous"] for each in documents] == [ledger.FIRST, *(each["hash"] for each in documents[:-1])]
