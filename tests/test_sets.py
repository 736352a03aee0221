"""The geometric mean over a set of cells: which cells are in it, which rows, and what it says of the rest."""

from __future__ import annotations

import math
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from reports import frame, sets, table, write
from tests.synthetic_records import SETTINGS, Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def times(run: Run, name: str, by_batch: dict[int, tuple[float, ...]], told: dict[str, object] | None = None) -> None:
    """Certified, with these seconds in the rounds of each batch size."""
    run.certify(name)
    for batch_size, seconds in by_batch.items():
        for index, each in enumerate(seconds):
            run.process(name, index, each, batch_size=batch_size, told=told)


def found(run: Run, baseline: str = "pytorch/eager") -> list[sets.Over]:
    loaded = frame.read(run.folder)
    return list(sets.over(frame.tidy(loaded, baseline), loaded.records))


def sizes(keys: tuple[sets.Key, ...]) -> list[object]:
    return [key[3] for key in keys]


BASE = {1: (0.010, 0.011, 0.012), 2: (0.020, 0.021, 0.022), 4: (0.040, 0.041, 0.042)}


def scaled(factors: dict[int, float]) -> dict[int, tuple[float, ...]]:
    return {size: tuple(each / factor for each in BASE[size]) for size, factor in factors.items()}


def test_the_mean_is_geometric_over_cells(run: Run) -> None:
    """Four times as fast in one cell and as fast in the other is twice as fast over both, also where every round is disturbed."""
    times(run, "pytorch/eager", {1: BASE[1], 2: BASE[2]})
    times(run, "jax/jit", scaled({1: 4.0, 2: 1.0}))
    (over,) = found(run)
    assert sizes(over.cells) == [1, 2]
    mean = over.means["jax", "jit"]
    assert (mean.value, mean.low, mean.high) == pytest.approx((2, 2, 2), rel=1e-5)
    assert mean.pairs == 3
    assert (over.left_out, over.absent, over.despite) == ((), (), {})


def test_rounds_are_the_units(run: Run) -> None:
    """What happens to both cells in one round is one observation: the interval is that of the rounds' means."""
    times(run, "pytorch/eager", {1: (0.01,) * 3, 2: (0.01,) * 3})
    times(run, "jax/jit", {1: (0.01, 0.011, 0.012), 2: (0.01, 0.011, 0.012)})
    (over,) = found(run)
    mean, cells = over.means["jax", "jit"], frame.load(run.folder)
    one = cells[(cells["implementation"] == "jax") & (cells["batch_size"] == 1)].iloc[0]
    assert (mean.low, mean.high) == pytest.approx((one["ratio_low"], one["ratio_high"]))
    assert mean.low is not None
    assert math.log(1 / mean.low) > math.log(1.1) / 2


def test_only_cells_that_all_rows_share(run: Run) -> None:
    """A cell that one row lacks is in no row's mean, and is named."""
    times(run, "pytorch/eager", BASE)
    times(run, "jax/jit", scaled({1: 2.0, 2: 2.0, 4: 1000.0}))
    times(run, "onnx/ort", scaled({1: 3.0, 2: 3.0}))
    (over,) = found(run)
    assert (sizes(over.cells), sizes(over.left_out)) == ([1, 2], [4])
    assert list(over.means) == [("onnx", "ort"), ("jax", "jit")]
    assert over.means["jax", "jit"].value == pytest.approx(2, rel=1e-5)


def test_each_precision_has_its_own_set(run: Run) -> None:
    """A row that has one of two precisions costs the others no cell of the other; a precision with one cell has no set."""
    of = {
        name: [(precision, size) for precision in ("bf16", "tf32") for size in (1, 2)] for name in ("pytorch/eager", "jax/jit", "onnx/ort")
    }
    del of["onnx/ort"][:2]
    of["pytorch/eager"].append(("fp32", 1))
    of["jax/jit"].append(("fp32", 1))
    for name, factor in (("pytorch/eager", 1.0), ("jax/jit", 2.0), ("onnx/ort", 3.0)):
        for precision in dict.fromkeys(precision for precision, _ in of[name]):
            run.certify(name, precision=precision)
        for precision, size in of[name]:
            speed = factor * (2 if precision == "bf16" and factor > 1 else 1)
            for index, seconds in enumerate(BASE[size]):
                run.process(name, index, seconds / speed, precision=precision, batch_size=size)
    by_precision = {over.precision: over for over in found(run)}
    assert list(by_precision) == ["bf16", "tf32"]
    for precision, over in by_precision.items():
        assert {key[1] for key in over.cells} == {precision}
        assert (sizes(over.cells), over.left_out, over.absent) == ([1, 2], (), ())
    assert {arm: mean.value for arm, mean in by_precision["bf16"].means.items()} == pytest.approx({("jax", "jit"): 4})
    assert list(by_precision["tf32"].means) == [("onnx", "ort"), ("jax", "jit")]
    shown, screen = write.comparison(run.folder), StringIO()
    Console(file=screen, width=100).print(table.terminal(shown))
    page = write.write(run.folder, run.folder.parent / "out")[0].read_text(encoding="utf-8")
    for text, before in ((screen.getvalue(), "\n"), (table.markdown(shown), "## "), (page, "<h3>")):
        for precision in ("bf16", "tf32"):
            assert f"{before}Over 2 cells in {precision}: geometric mean" in text


def test_who_shares_too_little_is_named(run: Run) -> None:
    """A row of which only one cell is in the set, or which has one cell, has no mean; one with cells of its own is named."""
    times(run, "pytorch/eager", {**BASE, 8: (0.08, 0.08, 0.08)})
    times(run, "jax/jit", scaled({1: 2.0, 2: 2.0, 4: 2.0}))
    times(run, "onnx/ort", {4: BASE[4], 8: (0.08, 0.08, 0.08)})
    times(run, "tensorflow/xla", {4: BASE[4]})
    (over,) = found(run)
    assert sizes(over.cells) == [1, 2, 4]
    assert list(over.means) == [("jax", "jit")]
    assert over.absent == (("onnx", "ort"),)


def test_one_cell_is_no_set(run: Run) -> None:
    """Nor are two cells in two runs, nor cells without ratios."""
    times(run, "pytorch/eager", {1: BASE[1], 2: BASE[2]})
    times(run, "jax/jit", {1: BASE[1]})
    assert found(run) == []
    assert found(run, "onnx/ort") == []


def test_a_row_that_may_not_be_compared_is_in_no_mean(run: Run) -> None:
    """The frame decides: an uncertified row and an unlike one are not there; one that was allowed is, and says so."""
    times(run, "pytorch/eager", {1: BASE[1], 2: BASE[2]})
    times(run, "jax/jit", scaled({1: 2.0, 2: 2.0}), told={"settings": {**SETTINGS, "tf32": True}})
    run.timed("onnx/ort", 0.001, batch_size=1)
    run.timed("onnx/ort", 0.001, batch_size=2)
    loaded = frame.read(run.folder)
    assert found(run) == []
    (over,) = sets.over(frame.tidy(loaded, allow_unlike=["tf32"]), loaded.records)
    assert list(over.means) == [("jax", "jit")]
    assert over.despite["jax", "jit"].endswith("although tf32 differs (true, false), as allowed")


def test_rounds_that_a_cell_lacks_are_left_out(run: Run) -> None:
    """A round counts where all cells of the row have it; fewer than two such rounds give no mean."""
    times(run, "pytorch/eager", {1: BASE[1], 2: BASE[2]})
    run.certify("jax/jit")
    for batch_size, rounds in ((1, (0, 1, 2)), (2, (1, 2))):
        for index in rounds:
            run.process("jax/jit", index, BASE[batch_size][index] / 2, batch_size=batch_size)
    (over,) = found(run)
    assert over.means["jax", "jit"].pairs == 2
