"""The command ``bench --training``, on a trainer that computes no gradient and whose certificates are taken for granted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from impls.implementation import TRAINING_PRECISIONS, find
from impls.spec import parameter_count
from impls.weights import file
from reports import frame
from results.record import Cell
from results.store import Store
from results.timing import of
from suites.harness import audits, inputs, plan, requests
from suites.harness.context import Context
from suites.harness.environments import Interpreters
from tests.checkouts import BRIEF, Checkout, bench, records
from tests.test_bench_gpu import CARD
from tests.test_rerun import WIDE

GRANTED = """
from suites.equivalence import training
from suites.equivalence.tiers import Tier
def run(self, meaning):
    return {name: Tier(True, 1, 1.0, "", 0.0, None) for name in ("E2", "E3", "E5")}
training.TrainingExamination.run = run
"""

REFUSED = """
from suites.equivalence import training
from suites.equivalence.tiers import Tier
training.TrainingExamination.run = lambda self, meaning: {"E2": Tier(False, 1, 1.0, "loss", 2.0, "loss: off by 2")}
"""

CAUGHT = {
    "unfenced": ("unfinished_work", "the clock stops too early: an output is there "),
    "stands_still": ("trained", "left the first parameter as another had left it"),
    "freezes": ("trained", "1 tensors are the same before and after the timed steps, conv1.weight among them"),
    "diverges": ("trained", "a timed step gave a loss or a parameter that is not finite"),
    "overflows": ("trained", "conv1.weight is not finite after the timed steps"),
    "recompiles": ("recompilation", "compilations between timed calls"),
    "narrow": ("precision", "fp32 was declared, but its convolution computes as bf16 does"),
}
"""The mode, the audit that fails first, and what the row says."""

Run = tuple[int, dict[str, Any], Path]


@pytest.fixture(scope="module")
def run(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Exit code, document and store of a bench of the honest pupil, of every fault, and of one that does not train."""
    store = tmp_path_factory.mktemp("training")
    arguments = bench("pupil", "honest", store=store, batch_sizes="2", modes="all")
    code, document = checkout.document(*arguments, "--training", "--processes", "2", "--baseline", "pupil/eager", before=BRIEF + GRANTED)
    return code, document, store


def row(run: Run, mode: str, implementation: str = "pupil") -> dict[str, Any]:
    (found,) = (each for each in run[1]["rows"] if (each["implementation"], each["mode"]) == (implementation, mode))
    return found


def test_steps_are_a_throughput(run: Run) -> None:
    """Images per second, of windows of steps; the time of a step is that of the pupil."""
    found = row(run, "eager")
    assert (found["status"], found["scenario"], found["scope"], found["certified"]) == ("ok", "training", "device", True)
    assert found["latency_s"]["value"] is None
    assert 100 < found["throughput_images_per_s"]["value"] <= 2 / 2e-3
    timed = [each for each in records(run[2]) if each.suite == "training" and each.cell.mode == "eager"]
    assert [each.process.index for each in timed if each.process] == [0, 1]
    assert all(calls > 1 for calls in timed[0].samples.calls[-3:])  # type: ignore[union-attr]
    assert timed[0].settings["sgd"] == {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "label_smoothing": 0.1}
    assert timed[0].settings["folded"] is False
    assert not [each for each in records(run[2]) if each.suite in ("inference", "equivalence", "accuracy")]


def test_memory_and_start_up_are_of_training(run: Run) -> None:
    found = row(run, "eager")
    assert found["peak_memory_bytes"] > 0
    assert found["first_call_s"] >= 2e-3
    assert found["top1"] is None


def test_one_that_does_not_train_is_a_reasoned_skip(run: Run) -> None:
    """It was asked for by name, so the command says no."""
    assert run[0] == 1
    assert (row(run, "eager", "honest")["status"], row(run, "eager", "honest")["reason"]) == ("skipped", "Plain NumPy has no training")


@pytest.mark.parametrize("mode", CAUGHT)
def test_an_audit_catches_each_fault(run: Run, mode: str) -> None:
    """The row says which audit failed and by how much, and holds no figure."""
    found = row(run, mode)
    assert (found["status"], found["throughput_images_per_s"]["value"]) == ("audit_failed", None)
    assert CAUGHT[mode][1] in found["reason"]
    timed = [each for each in records(run[2]) if each.suite == "training" and each.cell.mode == mode]
    beside = of(timed[0])
    assert beside is not None
    assert beside.failed_audits[0].name == CAUGHT[mode][0]


def test_the_honest_one_passes_every_audit(run: Run) -> None:
    """No caching: no step can be answered from an earlier one."""
    timed = next(each for each in records(run[2]) if each.suite == "training" and each.cell.mode == "eager")
    beside = of(timed)
    assert beside is not None
    assert [audit.name for audit in beside.audits if audit.passed] == [
        *("threads", "placement", "recompilation", "trained", "precision", "unfinished_work", "linearity", "timer"),
    ]


def test_no_certificate_no_figure(checkout: Checkout, tmp_path: Path) -> None:
    """A certificate of training that failed withholds it; one of inference would not do."""
    arguments = bench("pupil", store=tmp_path, batch_sizes="2", modes="eager")
    code, document = checkout.document(*arguments, "--training", "--processes", "1", "--threads", "1", before=BRIEF + REFUSED)
    (found,) = document["rows"]
    assert (code, found["status"], found["certified"]) == (1, "not_certified", False)
    assert found["reason"] == "E2: loss: off by 2"
    assert not [each for each in records(tmp_path) if each.samples]


def test_a_training_is_measured_again(checkout: Checkout, run: Run, tmp_path: Path) -> None:
    """A rerun of one of its records: under a certificate of training, and REPRODUCED within a band that holds everything."""
    (source,) = run[2].iterdir()
    record = next(each for each in records(run[2]) if (each.suite, each.cell.mode, each.status) == ("training", "eager", "ok"))
    code, document = checkout.document(
        "rerun", str(source / "records" / record.file_name), "--env", "current", "--store", str(tmp_path), before=WIDE + GRANTED
    )
    assert (code, document["outcome"]) == (0, "REPRODUCED"), document
    new = [each for each in records(tmp_path) if each.cell == record.cell]
    assert {each.suite for each in new if each.samples} == {"training"}
    assert {each.data["rerun_of"] for each in new if each.data} == {source.name}
    assert [each.status for each in records(tmp_path) if each.suite == "training_equivalence"] == ["ok"]


def test_a_certificate_of_inference_is_none_of_training(run: Run, tmp_path: Path) -> None:
    """The frame asks for that of the suite that was timed."""
    loaded = frame.read(run[2])
    renamed = [dataclasses.replace(each, suite="equivalence") if each.suite == "training_equivalence" else each for each in loaded.records]
    cells = frame.tidy(dataclasses.replace(loaded, records=tuple(renamed)), "pupil/eager")
    assert cells.throughput_images_per_s.isna().all()
    assert "no certificate for it was found in this run" in set(cells.reason.dropna())


def test_on_a_card(checkout: Checkout, tmp_path: Path) -> None:
    """The same under a fake NVML: memory is the allocator's, what does not fit is a row, and a precision that nothing trains in a skip."""
    arguments = bench("pupil", store=tmp_path, batch_sizes="4,64", modes="eager,crowded")
    options = ("--training", "--device", "cuda", "--precisions", "fp32,fp16", "--baseline", "pupil/eager")
    code, document = checkout.document(*arguments, *options, before=CARD + GRANTED)
    assert code == 1
    found = {(each["mode"], each["precision"], each["batch_size"]): each for each in document["rows"]}
    assert found["eager", "fp32", 64]["status"] == "ok"
    assert found["eager", "fp32", 64]["peak_memory_bytes"] == 3 << 20
    assert found["eager", "fp32", 64]["roofline"] == "eager"
    assert found["crowded", "fp32", 64]["status"] == "out_of_memory"
    assert found["eager", "fp16", None]["reason"] == f"training is done in {', '.join(TRAINING_PRECISIONS)}, not in fp16"
    assert not [each for each in records(tmp_path) if each.suite == "copies"]
    page = (checkout.root / "reports" / "local" / document["run_id"] / "index.html").read_text(encoding="utf-8")
    assert 'id="training"' in page
    assert "CIFAR ResNet-8  fp32  cuda  on the device  batch 64  training" in page


def test_the_default_plans() -> None:
    """What is trained where nothing is named; ONNX Runtime and a mode that would be another once more are skips, named by nobody."""
    on_cpu = plan.make(plan.Request(training=True), find())
    assert {(cell.model, cell.precision, cell.batch_size, cell.scope, cell.scenario) for cell in on_cpu.cells} == {
        ("cifar_resnet20", "fp32", 32, "device", "training")
    }
    on_gpu = plan.make(plan.Request(training=True, device="cuda"), find())
    assert {(cell.model, cell.precision, cell.batch_size) for cell in on_gpu.cells} == {
        ("resnet50", precision, size) for precision in ("bf16", "tf32") for size in (64, 256)
    }
    reasons = {(skip.implementation, skip.mode, skip.precision): skip.reason for skip in on_gpu.skips}
    assert reasons["onnx", "ort", "tf32"] == "ONNX Runtime has no training"
    assert reasons["pytorch", "compile_autocast", "bf16"].startswith("training in bf16 is under autocast in every mode")
    assert not [skip for skip in (*on_gpu.skips, *on_cpu.skips) if skip.by_name]
    assert on_gpu.estimated_s > plan.make(plan.Request(device="cuda", precisions=("tf32",), batch_sizes=(64, 256)), find()).estimated_s / 2


@pytest.mark.parametrize(
    "asked", [{"energy": True}, {"second_clock": True}, {"zoo": True}, {"scopes": ("transfer",)}, {"scopes": ("all",)}]
)
def test_what_is_for_inference_alone(asked: dict[str, Any]) -> None:
    with pytest.raises(plan.UsageError, match="is for inference"):
        plan.make(plan.Request(training=True, **asked), find())
    assert plan.make(plan.Request(training=True, scopes=("device",)), find()).cells


def test_what_cannot_be_trained_is_named_by_its_word() -> None:
    """A precision, asked for by name, is the precision's fault; a model with dropout is trained without."""
    assert plan.make(plan.Request(training=True, models=("alexnet",), implementations=("jax",)), find()).cells
    half = plan.make(plan.Request(training=True, precisions=("fp16",), implementations=("jax",)), find())
    assert half.skips[0].by_name


def test_what_is_timed_is_the_network_that_is_trained(tmp_path: Path) -> None:
    """With the heads that it is trained with, in a weight file of its own; any other is the file that inference is timed with."""
    store = Store(tmp_path)
    context = Context(find(), Interpreters(find(), (), "cpu", {}), store, store.create_run({}, {}), threads=1, smoke=False, say=print)
    cells = [Cell("jax", "jit", name, "fp32", "cpu", 2, "device", "training", 1) for name in ("googlenet", "cifar_resnet8")]
    google, resnet = (requests.subject(context, cell) for cell in cells)
    _, asked = requests.prepare(context, cells[0], "cell")
    held = file.load(Path(asked["weights"]))
    assert held.model.auxiliary_weights == (0.3, 0.3)
    assert file.tensor_sha256(held.weights) == google.weights_sha256 != context.subject("googlenet").weights_sha256
    assert google.as_record("fp32", 2)["parameters"] == parameter_count(held.model)
    assert requests.subject(context, cells[0]).path == google.path
    assert resnet is context.subject("cifar_resnet8")
    assert requests.subject(context, dataclasses.replace(cells[0], scenario="offline")) is context.subject("googlenet")


def test_labels_go_with_their_images(tmp_path: Path) -> None:
    """An image of the pool has the same label wherever it stands in the ring, and a ring with labels is a file of its own."""
    pool = inputs.digits()[1].images[: inputs.POOL]
    given = inputs.Inputs("digits", None, pool)
    labels = inputs.pool_labels(10)
    assert set(labels) <= set(range(10))
    assert len(set(labels)) > 1
    held = audits.load_file(inputs.ring_file(given, 4, tmp_path, 10))
    assert held["images"].shape[:2] == held["labels"].shape == (8, 4)
    for images, of_them in zip(held["images"], held["labels"], strict=True):
        for image, label in zip(images, of_them, strict=True):
            assert label == labels[next(place for place, each in enumerate(pool) if np.array_equal(each, image))]
    assert set(audits.load_file(inputs.ring_file(given, 4, tmp_path))) == {"images"}


def test_judge_trained() -> None:
    """Each way to fail, and that two steps at least are looked at."""
    sound = np.array([[2.0, 0.1, 0.2], [1.9, 0.1, 0.3]])
    assert audits.judge_trained(sound, (), ()).passed
    assert not audits.judge_trained(sound[:1], (), ()).passed
    assert not audits.judge_trained(sound[[0, 0]], (), ()).passed
    assert not audits.judge_trained(np.where(sound == 1.9, np.inf, sound), (), ()).passed
    assert audits.judge_trained(sound, ("fc.bias",), ()).reason == (
        "1 tensors are the same before and after the timed steps, fc.bias among them"
    )
    assert not audits.judge_trained(sound, (), ("fc.bias",)).passed


def test_timed_by() -> None:
    cell = Cell("jax", "jit", "resnet50", "fp32", "cpu", 8, "device", "training", 1)
    assert cell.timed_by == "training"
    assert dataclasses.replace(cell, scenario="offline").timed_by == "inference"
