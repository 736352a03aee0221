"""The README keeps its promises: its Python runs, its files and commands exist."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from levelfield import cli

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_python_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four lines that load published data do what they print."""
    monkeypatch.chdir(ROOT)
    failed, attempted = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert (failed, attempted >= 4) == (0, True)


def test_its_links_lead_somewhere() -> None:
    """Every file that it links to is there."""
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_its_commands_exist() -> None:
    """Every command that it names is one."""
    named = set(re.findall(r"`levelfield ([a-z]+)", TEXT))
    assert named
    assert named <= set(cli.main.commands)


def test_its_test_command_is_what_ci_runs() -> None:
    """CI calls the README's line, to the letter."""
    line = next(line for line in TEXT.splitlines() if line.endswith("nox -s tests"))
    assert line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_its_table_of_rules_is_the_generated_one() -> None:
    """What each rule lets through stands so in docs/faults.md, which a command writes."""
    rows = re.findall(r"^\| ([^|]+) \| (\d+ of \d+) \| (\d+ of \d+|-) \|$", TEXT, re.MULTILINE)
    generated = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    assert len(rows) >= 6
    assert [row for row in rows if f"| {row[0]} | {row[1]} | {row[2]} |" not in generated] == []
