"""What the gate's commands show."""

from __future__ import annotations

from pathlib import Path

from levelfield import judged
from results import ledger
from tests.test_ledger import entry


def test_new_comparisons_stand_beside_the_whole_ledger(tmp_path: Path) -> None:
    """A run of one comparison is not a machine of one comparison."""
    path = tmp_path / "aa.jsonl"
    for _ in range(60):
        ledger.append(path, entry())
    these, kept = judged.aa([entry()], path).splitlines()
    assert these.startswith("These: 1 comparisons of equal things")
    assert kept.startswith("The ledger: 60 comparisons of equal things")
    assert "ADVISORY" not in these + kept


def test_nothing_compared_is_said(tmp_path: Path) -> None:
    assert judged.aa([], tmp_path / "aa.jsonl") == "Nothing could be compared; the lines above say why."
