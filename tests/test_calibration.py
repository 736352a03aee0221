"""The line about a machine's A/A ledger says the counts, their bounds, the widths and the power, and when they are too few."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports import calibration
from results import ledger
from results.schema import RecordError
from tests.test_ledger import entry


def test_nothing_yet(tmp_path: Path) -> None:
    said = calibration.of_machine(entry().machine_id, "1", tmp_path / "none.jsonl")
    assert said == "equal things were not yet compared on this machine; `levelfield aa` does so"


def test_counts_bounds_widths_and_power() -> None:
    """Of 62 quiet comparisons two excluded 1, one beside a burner did not; of four planted slowdowns three were found."""
    entries = [entry()] * 60 + [entry(ratio=1.02, low=1.01, high=1.03)] * 2 + [entry(condition="burner", low=0.96, high=1.04)]
    entries += [entry(planted_slowdown=0.05, verdict=verdict) for verdict in ("regressed", "regressed", "regressed", "inconclusive")]
    said = calibration.line(tuple(entries))
    assert said.startswith(
        "1 comparisons of equal things beside another process that burns a core half of the time: 0 called different (0.0%, at most 95.0%; "
    )
    assert "62 comparisons of equal things: 2 called different (3.2%, at most 9.8%; 5 % is nominal), half-width 1.0%" in said
    assert "the gate called 0 of 63 equal ones regressed (at most 4.6%)" in said
    assert said.endswith("a planted slowdown of 5% found in 3 of 4 (19% to 99%)")


def test_too_few_are_advisory(tmp_path: Path) -> None:
    """A ledger is, entries by themselves are not: they say nothing of how many a machine has."""
    path = tmp_path / "aa.jsonl"
    ledger.append(path, entry())
    said = calibration.of_machine(entry().machine_id, "1", path)
    assert said == f"{calibration.line((entry(),))}; ADVISORY: this machine has 1 of the 60 A/A comparisons that a binding verdict rests on"


def test_other_machines_and_protocols_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "FOLDER", tmp_path)
    for own in (entry(), entry(protocol_version="0")):
        ledger.append(ledger.path_of(own.machine_id), own)
    assert calibration.of_machine(entry().machine_id, "1").startswith("1 comparisons")
    assert calibration.of_machine("f" * 16, "1").startswith("equal things were not yet compared")


def test_an_altered_ledger_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "FOLDER", tmp_path)
    path = ledger.path_of(entry().machine_id)
    ledger.append(path, entry())
    path.write_bytes(path.read_bytes().replace(b'"high":1.01', b'"high":1.02'))
    with pytest.raises(RecordError, match="its content is not what was written"):
        calibration.of_machine(entry().machine_id, "1")
