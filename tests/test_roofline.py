"""A GPU's rows are graded against the line that matches their mode, with the rates that their own run measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest

from impls.implementation import Roofline
from reports import frame, labels, roofline, table, write
from reports.about import About
from tests.synthetic_records import GPU_ARMS, GPU_MACHINE, Run, made_up_gpu


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made_up_gpu(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def cells(run: Run) -> pd.DataFrame:
    return frame.load(run.folder)


def row(cells: pd.DataFrame, name: str, size: int, precision: str = "bf16", scope: str = "device") -> pd.Series:
    implementation, mode = name.split("/")
    found = cells[
        (cells.implementation == implementation)
        & (cells["mode"] == mode)
        & (cells.batch_size == size)
        & (cells.precision == precision)
        & (cells.scope == scope)
    ]
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize(
    ("name", "line", "limit"),
    [("pytorch/compile", "compile", 36_400), ("tensorflow/graph", "eager", 24_100), ("tensorflow/xla", "fused", 59_200)],
)
def test_each_mode_has_its_line(cells: pd.DataFrame, name: str, line: str, limit: float) -> None:
    """ResNet-50, batch 256, bf16, 790 TFLOP/s and 4.3 TB/s: the rates of ``tests/test_traffic.py``."""
    found = row(cells, name, 256)
    assert found["roofline"] == line
    assert found["roofline_fraction"] == pytest.approx(found["throughput_images_per_s"] / limit, rel=0.01)


def test_small_batches_have_none(cells: pd.DataFrame) -> None:
    """They live in the cache, and launches decide; nor has what copies are in."""
    assert cells.loc[cells.batch_size.lt(roofline.LEAST_BATCH).fillna(False), ["roofline_fraction", "roofline_error"]].isna().all(axis=None)
    large = cells.batch_size.ge(256).fillna(False) & cells.time_per_batch_s.notna()
    assert cells.loc[large & cells.scope.eq("device").fillna(False), "roofline_fraction"].notna().all()
    assert cells.loc[large & cells.scope.eq("transfer").fillna(False), ["roofline_fraction", "roofline_error"]].isna().all(axis=None)


def test_another_precision_has_its_own_peak(cells: pd.DataFrame) -> None:
    """TF32 moves twice the bytes and has its own probe."""
    tf32, bf16 = (row(cells, "jax/jit", 256, precision) for precision in ("tf32", "bf16"))
    lines = [each["throughput_images_per_s"] / each["roofline_fraction"] for each in (tf32, bf16)]
    assert lines[0] == pytest.approx(lines[1] / 2, rel=0.02)


def test_a_low_grade_says_what_to_look_at(run: Run, tmp_path: Path) -> None:
    """Below 60 %: its layout, its libraries, its clocks; above, nothing; and never on a CPU."""
    content = write.comparison(run.folder)
    notes = [note for section in content.sections for note in section.notes]
    low = [note for note in notes if "of its roofline" in note]
    assert all(note.startswith(("TensorFlow XLA: ", "PyTorch eager: ", "JAX jit: ")) for note in low)
    assert any("of its roofline (eager), below 60%: something may be set up wrong; look at its layout, NCHW" in note for note in low)
    unknown = "what held its clocks down: the power limit (not counted here), heat (not counted here) and the cuDNN"
    assert all(unknown in note for note in low)
    assert not any("held down at" in note for section in content.sections for note in section.notes)


def test_what_held_the_clocks_down_is_told(tmp_path: Path) -> None:
    """Of all rows under the table, by the card's counters, and of a low one again where it says what to look at."""
    run = Run(tmp_path, GPU_MACHINE)
    run.probe(790e12, 4.3e12, precision="bf16", device="cuda")
    at = {"device": "cuda", "precision": "bf16", "scope": "device", "batch_size": 256, "scenario": "offline"}
    for name, rate, held_s in (("pytorch/compile", 30_000, 1.9), ("jax/jit", 20_000, 0.5)):
        run.certify(name, precision="bf16", device="cuda")
        card = {"power_cap_s": held_s, "sw_thermal_s": 0.0}
        data = {"blocks": [0], "noise": [{"wall_s": 2.0, "card": card}], "excluded": [], "audits": []}
        run.timed(name, 256 / rate, told={"data": data}, **at)
    (section,) = write.comparison(run.folder).sections
    assert (
        "Of the time of the visits the clocks were held down at the power limit: 95% of PyTorch compile and 25% of JAX jit."
        in section.notes
    )
    assert not any("held down for heat" in note for note in section.notes)
    (low,) = [note for note in section.notes if "of its roofline" in note]
    assert low.startswith("JAX jit: ")
    assert "what held its clocks down: the power limit (25% of its visits), heat (0% of its visits)" in low
    by_name = frame.load(run.folder).set_index("implementation")
    assert (by_name.loc["jax", "power_cap_fraction"], by_name.loc["jax", "heat_fraction"]) == (0.25, 0)


def test_faster_than_its_line_is_told(tmp_path: Path) -> None:
    """What fuses more than its line takes it to, or a probe that measured too low; no percentage is shown."""
    run = Run(tmp_path)
    run.probe(790e12, 4.3e12, precision="bf16", device="cuda")
    at = {"device": "cuda", "precision": "bf16", "scope": "device", "batch_size": 256, "scenario": "offline"}
    run.certify("pytorch/compile", precision="bf16", device="cuda")
    run.timed("pytorch/compile", 256 / 50_000, **at)
    (found,) = [each for _, each in frame.load(run.folder).iterrows()]
    assert pd.isna(found["roofline_fraction"])
    assert re.match(r"13\d% of its roofline \(compile\): it fuses more than that line takes it to", found["roofline_error"])


def test_images_of_another_size(tmp_path: Path) -> None:
    """Their line is that of as many multiplications as they take, of the figure too, and the heading says their size."""
    grades, curves = [], []
    for side in (224, 288):
        run = Run(tmp_path / str(side))
        run.probe(790e12, 4.3e12, precision="bf16", device="cuda")
        run.certify("pytorch/compile", precision="bf16", device="cuda")
        at = {"device": "cuda", "precision": "bf16", "scope": "device", "batch_size": 256, "scenario": "offline"}
        shape = {"inputs": {"sha256": "2" * 64, "source": "photographs", "ring_size": 2, "shape": [256, 3, side, side]}}
        run.timed("pytorch/compile", 256 / 8_000, spread=0, told=shape, **at)
        (found,) = [each for _, each in frame.load(run.folder).iterrows()]
        assert found["image_size"] == f"{side}x{side}"
        grades.append(found["roofline_fraction"])
        curves.append(roofline.rates(frame.read(run.folder).records, run.run.run_id, "resnet50", "bf16", [256])["compile"][256])
        (section,) = write.comparison(run.folder).sections
        assert section.title.startswith("ResNet-50  288x288  bf16" if side == 288 else "ResNet-50  bf16")
    assert grades[1] / grades[0] == pytest.approx((288 / 224) ** 2, rel=0.02)
    assert curves[0] / curves[1] == pytest.approx((288 / 224) ** 2, rel=0.02)


def test_lines_of_a_figure(run: Run) -> None:
    """Every line at the sizes that have one; more fusion is faster; none of another run, precision or unknown model."""
    loaded = frame.read(run.folder)
    run_id = run.run.run_id
    lines = roofline.rates(loaded.records, run_id, "resnet50", "bf16", [1, 32, 256, 1024])
    assert [(line, set(points)) for line, points in lines.items()] == [(line, {256, 1024}) for line in get_args(Roofline)]
    at_256 = [points[256] for points in lines.values()]
    assert at_256 == sorted(at_256, reverse=True)
    for asked in (("another", "resnet50", "bf16"), (run_id, "resnet50", "fp16"), (run_id, "no-such-net", "bf16")):
        assert roofline.rates(loaded.records, *asked, [256]) == {}


def test_the_answers_of_a_gpu(run: Run) -> None:
    """For latency and for throughput at its best batch, in every precision and scope, with the interval."""
    content = write.comparison(run.folder)
    answers = dict(content.answers)
    assert len(answers) == 8
    latency = answers["ResNet-50  bf16  cuda  on the device  batch 1"]
    assert latency.startswith("0.31")
    assert "ms by the fastest. PyTorch compile max-autotune is the fastest" in latency
    (throughput,) = [what for what in answers if what.startswith("ResNet-50  bf16  cuda  on the device") and "throughput" in what]
    assert "batch 1024" in throughput


def test_a_cpu_has_one_headline(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.certify("jax/jit")
    run.timed("jax/jit", 0.02)
    loaded = frame.read(run.folder)
    assert table.content(frame.tidy(loaded), About(loaded.records, loaded.runs)).answers == ()


def test_the_strip_shows_the_card(run: Run) -> None:
    """Driver, power, ECC, libraries as they were loaded, and what a reader must know of the card."""
    loaded = frame.read(run.folder)
    facts = dict(About(loaded.records, loaded.runs).facts())
    assert facts["GPU"] == "driver 0.0, CUDA 13.1, 700 W, ECC on, persistence on"
    assert facts["Caution"] == "every number here is made up"
    assert "pytorch: cudnn 9.20.0" in facts["Libraries"]


def test_every_mode_of_a_gpu_has_a_line() -> None:
    for name in GPU_ARMS:
        implementation, mode = name.split("/")
        assert labels.roofline(implementation, mode, "cuda") is not None
        assert labels.roofline(implementation, mode, "cpu") is None
        assert labels.roofline(implementation, mode, "cuda", training=True) is not None
    assert labels.roofline("no-such", "mode", "cuda") is None
    # A step has batch norm between a convolution and ReLU, which XLA fuses where it is folded.
    assert [labels.roofline("tensorflow", "xla", "cuda", training=training) for training in (False, True)] == ["fused", "compile"]


def test_the_page_of_a_gpu(run: Run, tmp_path: Path) -> None:
    """The answers first, then the curves with their rooflines, then the tables; what is made up says so."""
    page = {path.name: path for path in write.write(run.folder, tmp_path / "out")}["index.html"].read_text(encoding="utf-8")
    places = [
        page.index(mark) for mark in ('<dl class="answers">', "MADE-UP GPU", 'id="curves"', 'id="latency"', 'id="memory"', 'id="copies"')
    ]
    assert places == sorted(places)
    assert page.count(" roofline</text>") == 4 * 2
    assert "RESOURCE_EXHAUSTED: made up" in page
    assert "of the card MiB" in page


def trained(root: Path, **changes: Any) -> Run:
    """Two frameworks that train; on a GPU in TF32 at the lines' rates of ``tests/test_traffic.py``, with twice the bytes of bf16."""
    run = Run(root, GPU_MACHINE if changes["device"] == "cuda" else None)
    what = {"scope": "device", "scenario": "training", **changes}
    run.probe(395e12 if changes["device"] == "cuda" else 500e9, 4.3e12, precision=changes["precision"], device=changes["device"])
    for name, rate in (("pytorch/eager", 3_000), ("jax/jit", 4_000)):
        run.certify(name, suite="training_equivalence", **what)
        run.timed(name, changes["batch_size"] / (rate if changes["device"] == "cuda" else rate / 500), **what)
    return run


def test_steps_have_lines_of_their_own(tmp_path: Path) -> None:
    """At 395 TFLOP/s and 4.3 TB/s: half of the rates at 790 TFLOP/s in bf16."""
    run = trained(tmp_path, device="cuda", precision="tf32", batch_size=256, threads=1)
    fractions = frame.load(run.folder).set_index("implementation")["roofline_fraction"]
    assert fractions["pytorch"] == pytest.approx(3_000 / (8_170 / 2), rel=0.02)
    assert fractions["jax"] == pytest.approx(4_000 / (11_178 / 2), rel=0.02)
    loaded = frame.read(run.folder)
    lines = roofline.rates(loaded.records, run.run.run_id, "resnet50", "tf32", [32, 256], training=True)
    assert {line: set(points) for line, points in lines.items()} == {line: {256} for line in ("fused", "compile", "eager")}


def test_a_step_on_a_cpu_has_three_passes_of_arithmetic(tmp_path: Path) -> None:
    """24.30 GFLOP an image at 500 GFLOP/s."""
    run = trained(tmp_path, device="cpu", precision="fp32", batch_size=8)
    row = frame.load(run.folder).set_index("implementation").loc["jax"]
    assert row["roofline_fraction"] == pytest.approx(row["throughput_images_per_s"] * 24.30 / 500, rel=1e-3)


def test_what_training_says_and_does_not(tmp_path: Path) -> None:
    """The headline names training, with the interval; it says nothing of inference, and inference nothing of it."""
    content = write.comparison(trained(tmp_path / "gpu", device="cuda", precision="tf32", batch_size=256, threads=1).folder)
    assert content.headline.startswith("ResNet-50  tf32  cuda  on the device  batch 256  training: JAX jit is the fastest, 1.3")
    ((what, answer),) = content.answers
    assert what == "ResNet-50  tf32  cuda  on the device  batch 256  training"
    assert re.match(r"40\d\d \[\d+,\d+\] images/s by the fastest\. JAX jit|39\d\d \[\d+,\d+\] images/s by the fastest\. JAX jit", answer)
    assert content.no_conclusion[0].endswith("other versions, inference")
    other = Run(tmp_path / "other")
    other.certify("jax/jit")
    other.timed("jax/jit", 0.02)
    assert write.comparison(other.folder).no_conclusion[0].endswith("other versions, training")


def test_a_certificate_of_inference_gives_training_no_figure(tmp_path: Path) -> None:
    run = Run(tmp_path)
    what = {"scope": "device", "scenario": "training", "batch_size": 8}
    run.certify("jax/jit")
    run.timed("jax/jit", 0.5, **what)
    (row,) = [each for _, each in frame.load(run.folder).iterrows()]
    assert (bool(row["certified"]), row["reason"]) == (False, "no certificate for it was found in this run")
    assert pd.isna(row["throughput_images_per_s"])
    both = Run(tmp_path)
    for suite, changes in (("training_equivalence", what), ("equivalence", {})):
        both.certify("jax/jit", suite=suite)
        both.timed("jax/jit", 0.5, **changes)
    rows = frame.load(both.folder).set_index("scenario")
    assert rows["certified"].all()
    assert rows.loc["training", "certificate"] != rows.loc["single_stream", "certificate"]
