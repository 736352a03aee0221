"""The printed comparison: its words, and that it never prints what it must not."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from reports import table, write
from tests.synthetic_records import SETTINGS, Run, field_of_four


def printed(run: Run, width: int = 100, baseline: str = "pytorch/eager") -> str:
    """The terminal's text."""
    stream = StringIO()
    Console(file=stream, width=width).print(table.terminal(write.comparison(run.folder, baseline)))
    return stream.getvalue()


def verdicts(run: Run) -> list[str]:
    return [section.verdict for section in write.comparison(run.folder).sections]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return field_of_four(tmp_path_factory.mktemp("field"))


def steady(run: Run, name: str, seconds: float, rounds: int = 4, **changes: object) -> None:
    """Certified, with times that are equal in every round but for one part in a thousand of its own."""
    run.certify(name)
    for index in range(rounds):
        run.process(name, index, seconds * (1 + 1e-3 * ((index * 7 + len(name)) % 5)), **changes)


def test_no_row(run: Run) -> None:
    """A run in which nothing has been measured says so."""
    assert "nothing to compare" in printed(run)


def test_only_one_row(run: Run) -> None:
    """One row is compared with nothing."""
    steady(run, "jax/jit", 0.01)
    assert verdicts(run) == ["Only JAX jit holds a figure, so there is nothing to compare it with."]


def test_one_winner(run: Run) -> None:
    """A single leader is named with its ratio and interval."""
    steady(run, "pytorch/eager", 0.02)
    steady(run, "jax/jit", 0.01)
    assert verdicts(run)[0].startswith("JAX jit is the fastest, 2.00x [")
    assert verdicts(run)[0].endswith("] as fast as PyTorch eager.")


def test_the_baseline_wins(run: Run) -> None:
    """Where the baseline leads, nothing beats it, and the headline gives the ratio of the next."""
    steady(run, "pytorch/eager", 0.01)
    steady(run, "jax/jit", 0.02)
    assert verdicts(run) == ["PyTorch eager is the fastest."]
    assert "PyTorch eager is the fastest; next is JAX jit, 0.50x [" in write.comparison(run.folder).headline


def test_all_tie(run: Run) -> None:
    """Rows that cannot be told apart tie, and nothing else is said of them."""
    steady(run, "pytorch/eager", 0.01)
    steady(run, "jax/jit", 0.01)
    assert verdicts(run) == ["PyTorch eager and JAX jit tie."]


def test_leaders_tie_and_beat_the_baseline(field: Run) -> None:
    """The sentence of the design: two tie, each beats the baseline."""
    assert verdicts(field)[0] == "PyTorch compile and ONNX Runtime tie; each beats PyTorch eager."
    headline = write.comparison(field.folder).headline
    assert re.search(r"PyTorch compile \(1\.1\dx \[.*\]\) and ONNX Runtime \(1\.1\dx \[.*\]\) tie; each beats PyTorch eager\.$", headline)


def test_only_those_beat_the_baseline_whose_interval_says_so(run: Run) -> None:
    """A leader whose wide interval reaches 1 ties for first, and is not said to beat the baseline."""
    steady(run, "pytorch/eager", 0.020)
    steady(run, "jax/jit", 0.017)
    run.certify("onnx/ort")
    for index, seconds in enumerate((0.012, 0.025, 0.014, 0.024)):
        run.process("onnx/ort", index, seconds)
    said = "JAX jit and ONNX Runtime tie for first, though not every row below them is told apart from each; JAX jit beats PyTorch eager."
    assert verdicts(run) == [said]


def test_one_process_makes_no_comparison(run: Run) -> None:
    """With one process each there is a time, no interval, no rank and no verdict."""
    steady(run, "pytorch/eager", 0.02, rounds=1)
    steady(run, "jax/jit", 0.01, rounds=1)
    text = printed(run)
    assert "no comparison can be made" in text
    assert "(no interval)" in text
    assert "x [" not in text


def test_a_run_that_has_only_begun(run: Run) -> None:
    """Valid after every block: one framework has processes, one only its certificate, one is not even certified."""
    steady(run, "pytorch/eager", 0.02, rounds=2)
    run.certify("jax/jit")
    run.append("inference", run.cell("onnx/ort"), 0, status="failed", reason="the worker died")
    text = printed(run)
    assert "not measured; ok" in text
    assert "failed: the worker died" in text
    assert "Only PyTorch eager holds a figure" in text


@pytest.mark.parametrize(("swing", "gap"), [(1.01, "Gaps under "), (9.0, "Even gaps of a factor of ten ")])
def test_the_gap_that_would_be_seen(run: Run, swing: float, gap: str) -> None:
    """In per cent; of two processes an order of magnitude apart there is none that a reader could use."""
    for name, factor in (("pytorch/eager", 1.0), ("jax/jit", swing)):
        run.certify(name)
        for index in range(2):
            run.process(name, index, 0.01 * factor**index)
    assert gap in printed(run)
    assert "from the baseline cannot be counted on" in " ".join(printed(run).split())


def test_a_missing_baseline_is_said(run: Run) -> None:
    """Without a baseline the table still ranks, and a note says why there is no ratio."""
    steady(run, "onnx/ort", 0.02)
    steady(run, "jax/jit", 0.01)
    text = printed(run)
    assert "JAX jit is the fastest." in text
    assert "No ratio where fewer than two processes were paired with PyTorch eager's." in text


def test_a_smoke_run_prints_no_figure(run: Run) -> None:
    """The times of a smoke run stand nowhere."""
    steady(run, "pytorch/eager", 0.0271828, measurement=False)
    text = printed(run) + table.markdown(write.comparison(run.folder))
    text = text.replace(run.folder.name, "")  # which holds the moment of the run, and so any digits
    assert "NOT-A-MEASUREMENT" in text
    assert "27.1" not in text
    assert "27.2" not in text


def test_over_the_ceiling_is_an_error(run: Run) -> None:
    """More than 100 % of the ceiling is printed as an error with the probe's name."""
    run.probe(100e9, 20e9, "jax/jit")
    steady(run, "pytorch/eager", 0.02)
    text = " ".join(printed(run, 120).split())
    assert "error:" in text
    assert "FLOP rate probe (jax) measured too low" in text


def test_it_says_how_to_run_it_again(field: Run) -> None:
    """The footer holds the very command that measured, and where the report lies when there is one."""
    footer = write.comparison(field.folder, report=Path("out/index.html")).footer
    assert footer == ("Report: out/index.html", "Again: levelfield bench --models resnet50")


@pytest.mark.parametrize("width", [100, 120])
def test_width(field: Run, width: int) -> None:
    """No line is longer than the terminal, and no row of figures is broken in two."""
    lines = printed(field, width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum("ok " in line and "[" in line and "94." in line for line in lines) == 15


def test_markdown_has_whole_rows(field: Run) -> None:
    """Every row of a Markdown table has as many cells as its head, whatever its reason holds."""
    text = table.markdown(write.comparison(field.folder))
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert [row.count("|") for row in rows if row.startswith("| rank")] == [11, 11, 9, 9]
    for table_rows in re.split(r"\n\n+", text):
        assert len({line.replace("\\|", "").count("|") for line in table_rows.splitlines() if line.startswith("|")}) <= 1
    assert "<script>" not in text


def test_percentiles_are_where_there_is_room(run: Run) -> None:
    """Markdown has them, with what is missing where there is none; the terminal stays as narrow as it is."""
    steady(run, "pytorch/eager", 0.02)
    text = table.markdown(write.comparison(run.folder))
    assert "| ms [95 %] | p90 ms at most | p99 ms at most | speed vs PyTorch eager |" in text
    assert "| not reportable: 4 calls, 64 needed | not reportable: 4 calls, 662 needed | baseline |" in text
    assert "p90" not in printed(run)


def test_an_unlike_row_is_noted_and_not_in_the_verdict(run: Run) -> None:
    """The fastest row was set up otherwise: it is beaten by nobody and beats nobody, and the note says why."""
    steady(run, "pytorch/eager", 0.02)
    steady(run, "onnx/ort", 0.015)
    steady(run, "jax/jit", 0.01, told={"settings": {**SETTINGS, "tf32": True}})
    assert verdicts(run)[0].startswith("ONNX Runtime is the fastest, 1.33x [")
    text = printed(run)
    assert "JAX jit: not compared with PyTorch eager: tf32 differs (true, false)." in text
    assert re.search(r"^- +JAX jit +10\.0\d* \[.*\] +- ", text, re.MULTILINE)
    assert "fewer than two processes" not in text
    assert [line.implementation for line in write.comparison(run.folder).sections[0].lines] == ["ONNX Runtime", "PyTorch eager", "JAX jit"]


def test_only_unlike_rows(run: Run) -> None:
    """Where no other row is like the baseline, that is the verdict."""
    steady(run, "pytorch/eager", 0.02)
    steady(run, "jax/jit", 0.01, told={"settings": {**SETTINGS, "tf32": True}})
    assert verdicts(run) == ["No row is like PyTorch eager in all that a comparison needs, so there is nothing to compare it with."]


def test_what_was_allowed_is_said(run: Run) -> None:
    """First of all, and beside the very rows that differ; without it nothing of the kind stands there."""
    steady(run, "pytorch/eager", 0.02)
    steady(run, "jax/jit", 0.01, told={"settings": {**SETTINGS, "tf32": True}})
    shown = write.comparison(run.folder, allow_unlike=["tf32", "folded"])
    stream = StringIO()
    Console(file=stream, width=100).print(table.terminal(shown))
    for text in (stream.getvalue(), table.markdown(shown).replace("**", "").replace("\\", "")):
        assert "Allowed to differ: tf32, folded" in text
        assert "JAX jit: compared with PyTorch eager although tf32 differs (true, false), as allowed." in text
        assert "JAX jit is the fastest, 2.00x [" in text
    assert "Allowed" not in printed(run)


def test_a_set_is_shown(field: Run) -> None:
    """Over the three cells that all share, from the fastest on, and named."""
    (means,) = write.comparison(field.folder).sets
    assert means.title == "Over 3 cells in fp32: geometric mean of the speeds, 95 % interval over rounds"
    assert [name for name, _ in means.lines] == ["PyTorch compile", "ONNX Runtime", "JAX jit", "TensorFlow graph"]
    assert re.fullmatch(r"1\.1\dx \[1\.1\d,1\.1\d\]", means.lines[0][1])
    assert means.lines[2][1].endswith(" tie")
    batches = ("batch 1", "batch 4", "batch 8 throughput")
    assert means.notes == (f"It speaks of this set and no other: {'; '.join(f'ResNet-50 fp32 host to host {each}' for each in batches)}.",)
    assert "Over 3 cells in fp32" in printed(field)
    assert "## Over 3 cells in fp32" in table.markdown(write.comparison(field.folder))


def test_the_sets_of_two_runs_are_told_apart(tmp_path: Path) -> None:
    """Each is named after its run."""
    runs = [field_of_four(tmp_path) for _ in range(2)]
    titles = [means.title for means in write.comparison(tmp_path).sets]
    assert [run.run.run_id in title for run, title in zip(runs, titles, strict=True)] == [True, True]


def test_reasons_are_not_markup(run: Run) -> None:
    """Square brackets in a reason are text, not colours for the terminal."""
    run.append("inference", run.cell("jax/jit"), 0, status="failed", reason="shape [red]1[/red] [/bold]")
    assert "shape [red]1[/red] [/bold]" in printed(run)


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (17.91, 17.62, 18.24, "17.9 [17.6,18.2]"),
        (83.6, 83.2, 84.0, "83.6 [83.2,84.0]"),
        (235.3, 234.0, 237.1, "235 [234,237]"),
        (0.3051, 0.3049, 0.3053, "0.3051 [0.3049,0.3053]"),
        (18.0, float("nan"), float("nan"), "18.0 (no interval)"),
        (1330.0, float("nan"), float("nan"), "1330 (no interval)"),
    ],
)
def test_decimals(value: float, low: float, high: float, text: str) -> None:
    """As many decimals as the interval gives meaning to."""
    assert table.with_interval(value, low, high) == text


def energies(run: Run, name: str, *joules: float) -> None:
    for index, each in enumerate(joules):
        run.append("energy", run.cell(name), index, measurements={"energy_j_per_image": each, "net_energy_j_per_image": each / 2})


def test_energy_has_a_column_where_it_was_measured(run: Run) -> None:
    """A row without energy among others that have one has a dash and a note; how far energies carry is said, and none is ranked."""
    for name, seconds in (("pytorch/eager", 0.02), ("jax/jit", 0.01)):
        steady(run, name, seconds)
    run.certify("onnx/ort", "fc: other weights")
    energies(run, "jax/jit", 0.99, 1.0, 1.01)
    energies(run, "pytorch/eager", 1.0)
    shown = write.comparison(run.folder)
    (section,) = shown.sections
    assert section.headings()[-2:] == ("J/image", "proof")
    assert [line.cells()[-2] for line in section.lines] == ["1 [0.975,1.03]", "-", ""]
    assert "PyTorch eager: no energy: 1 of at least 3 processes were measured" in section.notes
    assert "within 5 % of each other" in shown.no_conclusion[-1]
    assert all(len(line.cells()) == len(section.headings()) for line in section.lines)
    assert "| J/image | proof |" in table.markdown(shown)
    assert "J/image" in printed(run)


def test_energy_that_was_not_measured_is_one_line(field: Run) -> None:
    """Without an energy there is no column, and the reason stands once."""
    shown = write.comparison(field.folder)
    assert shown.no_conclusion[-1] == "energy: it was not measured (not asked for: --energy)"
    text = table.markdown(shown)
    assert text.count("--energy") == 1
    assert "J/image" not in text
