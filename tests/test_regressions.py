"""The list of regressions: as a frame, as Markdown and on a terminal, the worst first."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from reports import regressions
from results import regression
from results.gate import Judgement
from results.record import Cell
from results.regression import Regressions, Verdict

CELL = Cell("pytorch", "eager", "resnet18", "fp32", "cpu", 1, "transfer", "single_stream", 2)
ARM = CELL.certificate_cell

FOUND = Regressions(
    "main",
    "topic",
    "0" * 40,
    "1" * 40,
    0.0,
    (
        Verdict.of(CELL, "time", Judgement("pass", "-6 %: less", 5, 0.94, 0.93, 0.95, 0.02, None, improved=True)),
        Verdict.of(
            dataclasses.replace(CELL, batch_size=8),
            "time",
            Judgement("regressed", "+9 % | so", 8, 1.09, 1.07, 1.11, 0.03, None, improved=False),
        ),
        Verdict.plain(ARM, "certificate", "pass", "certified on both sides"),
        Verdict.of(ARM, "startup", Judgement("inconclusive", "noise", 5, 1.1, 0.8, 1.5, 0.4, 40, improved=False)),
    ),
    "ADVISORY: of a new machine",
)


def test_the_frame_has_a_row_for_each_verdict() -> None:
    frame = regressions.frame(FOUND)
    assert list(frame.outcome) == ["regressed", "inconclusive", "pass", "pass"]
    assert list(frame.quantity) == ["time", "startup", "time", "certificate"]
    assert frame.change[0] == pytest.approx(0.09)
    assert pd.isna(frame.change[3])
    assert list(frame.improved) == [False, False, True, False]
    assert set(frame.base) == {"main"}


def test_the_answer() -> None:
    assert regressions.summary(FOUND) == "REGRESSED: topic against main: 1 regressed, 1 inconclusive, 2 pass."
    assert regressions.summary(dataclasses.replace(FOUND, planted_slowdown=0.05)).startswith(
        "REGRESSED: topic with 5.0% planted against main"
    )


def test_markdown_is_a_table_whatever_a_reason_holds() -> None:
    lines = regressions.markdown(FOUND).splitlines()
    assert lines[0] == "**REGRESSED: topic against main: 1 regressed, 1 inconclusive, 2 pass.**"
    assert lines[2] == "ADVISORY: of a new machine"
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {len(regressions.HEADINGS) + 1}
    assert table[2] == "| regressed | PyTorch eager | ResNet-18 | fp32 | 8 | time | +9 % / so |"
    assert table[4].startswith("| improved | PyTorch eager | ResNet-18 | fp32 | 1 | time |")


def test_the_terminal_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=110).print(regressions.terminal(FOUND))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["verdict", "regressed", "inconclusive", "improved", "pass"]
    assert lines[-2:] == ["ADVISORY: of a new machine", regressions.summary(FOUND)]


def test_files(tmp_path: Path) -> None:
    regression.write(tmp_path, FOUND)
    markdown, table = regressions.write(tmp_path, tmp_path / "out")
    assert markdown.read_text(encoding="utf-8") == regressions.markdown(FOUND)
    assert list(pd.read_csv(table).outcome) == ["regressed", "inconclusive", "pass", "pass"]
