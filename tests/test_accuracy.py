"""Accuracy: batches and their remainder, scores, disagreements, and what becomes a record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_limits

from impls.implementation import find
from levelfield import screen
from reports import write
from results.record import Cell, Record
from results.store import Store
from suites import accuracy
from suites.accuracy import LogitsError, batches, disagreements, flips, groups, score
from suites.harness import inputs
from suites.harness.context import Context
from suites.harness.inputs import NoInputError
from suites.harness.plan import Skip
from suites.harness.process import WorkerError
from tests import synthetic_records

ARM = Cell("onnx", "ort", "cifar_resnet20", "fp32", "cpu", None, None, None, None)
OTHER = Cell("jax", "jit", "cifar_resnet20", "fp32", "cpu", None, None, None, None)
WITHOUT = Cell("onnx", "ort", "cifar_plain20", "fp32", "cpu", None, None, None, None)
LABELS = inputs.digits()[1].labels


def cell(arm: Cell, batch_size: int) -> Cell:
    return Cell(arm.implementation, arm.mode, arm.model, arm.precision, arm.device, batch_size, "transfer", "offline", 2)


@given(st.integers(1, 40), st.integers(1, 12))
def test_the_last_batch_is_filled_up_from_the_beginning(count: int, size: int) -> None:
    """Batches hold every image once in order, then the first ones again; cut off, what is left are the images."""
    images = np.arange(count, dtype=np.float32).reshape(count, 1, 1, 1)
    made = batches(images, size)
    flat = made.reshape(-1)
    assert made.shape == (-(-count // size), size, 1, 1, 1)
    assert np.array_equal(flat[:count], np.arange(count))
    assert np.array_equal(flat[count:], np.arange(len(flat) - count) % count)


def test_score_of_known_logits() -> None:
    """Top-1 counts the largest logit, the first of equals, top-5 the five largest, and the margin is to the next."""
    logits = np.array([[[0, 9, 8, 7, 6, 5, 4], [3, 3, 0, 0, 0, 0, 0]], [[9, 1, 2, 3, 4, 5, 6], [7, 7, 7, 7, 7, 7, 7]]], np.float32)
    found = score(logits, np.array([1, 1, 1]))
    assert found.predictions == (1, 0, 0)
    assert found.margins == (1, 0, 3)
    assert found.top1 == pytest.approx(1 / 3)
    assert found.top5 == pytest.approx(2 / 3)


def test_what_filled_up_the_last_batch_is_not_counted() -> None:
    """Wrong logits behind the last label change nothing; one before it does."""
    right = np.eye(10, dtype=np.float32)[np.arange(8) % 10].reshape(2, 4, 10)
    labels = np.arange(6)
    spoilt = right.copy()
    spoilt[1, 2:] = 0
    assert score(spoilt, labels) == score(right, labels)
    spoilt[1, 1] = 0
    assert score(spoilt, labels).top1 == pytest.approx(5 / 6)


def test_no_top5_of_five_classes() -> None:
    """Among five classes every class is one of the first five."""
    assert score(np.eye(5), np.arange(5)).top5 is None
    assert score(np.eye(6), np.arange(6)).top5 == 1


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.zeros((1, 3, 10)), "logits of 3 images for 4 labels"),
        (np.full((1, 4, 10), np.nan), "the logits of 4 images are not finite"),
        (np.where(np.arange(40).reshape(1, 4, 10) == 13, np.inf, 0), "the logits of 1 images are not finite"),
    ],
)
def test_logits_that_tell_no_class_are_refused(logits: npt.NDArray[Any], message: str) -> None:
    """Too few logits, NaN and infinity are no predictions."""
    with pytest.raises(LogitsError, match=message):
        score(logits, np.arange(4))


def test_unknown_data_set_is_refused() -> None:
    """The sentence names those that there are."""
    with pytest.raises(NoInputError, match="no data set 'imagenet'"):
        accuracy.test_set("imagenet")


def logits_of(wrong: dict[int, int]) -> npt.NDArray[np.float32]:
    """Logits (500, 10) that are right but for the images in ``wrong``."""
    classes = LABELS.copy()
    for image, predicted in wrong.items():
        classes[image] = predicted
    return np.eye(10, dtype=np.float32)[classes]


class FakeWorker:
    """Answers as a worker does, with given logits for the images in the order of the test set."""

    alive = True

    def __init__(self, logits: npt.NDArray[np.float32]) -> None:
        self.logits = logits
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.ring = np.zeros(0, np.float32)

    def call(self, operation: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        self.asked.append((operation, arguments))
        if operation == "put":
            self.ring = load_file(arguments["images"])["images"]
            return {"settings": {"threads": 2}}
        if operation == "outputs":
            count = self.ring.shape[0] * self.ring.shape[1]
            filled = self.logits[np.arange(count) % len(self.logits)]
            save_file({"logits": filled.reshape(*self.ring.shape[:2], 10)}, arguments["out"])
        return {}


class Fakes:
    """Stands in for ``Workers``: what each implementation answers, be it an error."""

    def __init__(self, answers: dict[str, npt.NDArray[np.float32] | WorkerError]) -> None:
        self.workers = {name: answer if isinstance(answer, WorkerError) else FakeWorker(answer) for name, answer in answers.items()}
        self.ended = False

    def get(self, cell: Cell, precision: str) -> tuple[Any, dict[str, Any]]:
        worker = self.workers[cell.implementation]
        if isinstance(worker, WorkerError):
            raise worker
        return worker, {"packages": {"onnxruntime": "1.31.1"}}

    def end(self) -> None:
        self.ended = True


Run = Callable[..., list[Record]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the suite on cells in a fresh store with faked workers, and give its records by arm."""
    monkeypatch.setenv("LEVELFIELD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(accuracy, "ORACLE_MACS", 0)
    store = Store(tmp_path / "store")
    held = store.create_run(
        {"machine_id": "0123456789abcdef"}, {"code": {"version": "0", "commit": None, "dirty": None, "diff_sha256": None}}
    )
    context = Context(find(), {}, store, held, threads=2, smoke=False, say=lambda line: None)

    def of(fakes: Fakes, *cells: Cell) -> list[Record]:
        monkeypatch.setattr(accuracy, "Workers", lambda context, purpose: fakes)
        arms = list(dict.fromkeys(each.certificate_cell for each in cells))
        certificates = {arm: context.record("equivalence", arm) for arm in arms}
        accuracy.run(context, cells, certificates)
        return [store.find(held.run_id, "accuracy", arm, None)[-1] for arm in arms]

    return of


def test_a_certified_arm_is_classified_in_its_largest_batch(run: Run) -> None:
    """One record for an arm, from its largest batch, with every prediction and the settings that were read back."""
    fakes = Fakes({"onnx": logits_of({3: (LABELS[3] + 1) % 10})})
    (record,) = run(fakes, cell(ARM, 1), cell(ARM, 8))
    worker = fakes.workers["onnx"]
    assert isinstance(worker, FakeWorker)
    assert worker.ring.shape == (63, 8, 3, 32, 32)
    assert [operation for operation, _ in worker.asked] == ["prepare", "put", "outputs", "release"]
    assert worker.asked[0][1]["input_shape"] == [8, 3, 32, 32]
    assert worker.asked[0][1]["fold"] is True
    assert record.status == "ok"
    assert record.measurements == {"top1": 499 / 500, "top5": record.measurements["top5"], "images": 500}
    assert record.data is not None
    assert record.data["dataset"] == "digits/test"
    assert len(record.data["predictions"]) == 500  # type: ignore[arg-type]
    assert record.settings == {"threads": 2}
    assert record.certificate_id
    assert fakes.ended


def test_what_was_classified_is_not_classified_again(run: Run) -> None:
    """A second run of the same arm asks no worker."""
    run(Fakes({"onnx": logits_of({})}), cell(ARM, 8))
    again = Fakes({"onnx": WorkerError("failed", "must not be asked")})
    assert [record.status for record in run(again, cell(ARM, 8))] == ["ok"]


def test_failures_are_records(run: Run) -> None:
    """A worker that dies and logits that are not finite end in rows with their reason; the other arm is measured all the same."""
    broken = logits_of({})
    broken[17, 4] = np.nan
    failed, fine = run(Fakes({"onnx": broken, "jax": logits_of({})}), cell(ARM, 8), cell(OTHER, 8))
    assert (failed.status, failed.reason) == ("failed", "the logits of 1 images are not finite")
    assert fine.status == "ok"


def test_a_dead_worker_is_a_record(run: Run) -> None:
    """Its reason and its last log lines are kept."""
    (record,) = run(Fakes({"onnx": WorkerError("died", "its worker ended with exit code 9", ("last words",))}), cell(ARM, 8))
    assert (record.status, record.reason, record.log_tail) == ("failed", "its worker ended with exit code 9", ("last words",))
    assert record.measurements == {}


def test_without_trained_weights_a_row_says_to_bring_some(run: Run) -> None:
    """The record is a skip that names the way out."""
    (record,) = run(Fakes({}), cell(WITHOUT, 8))
    assert record.status == "skipped"
    assert record.reason is not None
    assert record.reason.startswith("bring weights: cifar_plain20")
    assert "--weights FILE" in record.reason
    assert record.data == {"dataset": None}


def test_the_oracle_is_a_member_where_it_is_cheap(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its predictions stand beside the implementations', and a flip names it."""
    images = 4
    monkeypatch.setattr(accuracy, "ORACLE_MACS", 1e9)
    test_set = inputs.digits()[1]
    few = inputs.Dataset("digits/few", test_set.images[:images], test_set.labels[:images])
    monkeypatch.setattr(accuracy, "test_set", lambda name: few)
    with threadpool_limits(1):
        (record,) = run(Fakes({"onnx": logits_of({2: (LABELS[2] + 1) % 10})[:images]}), cell(ARM, 2))
    (group,) = groups([record])
    assert list(group.members) == ["onnx/ort", "oracle"]
    (flip,) = flips(group.members, few.labels.tolist())
    assert flip["image"] == 2
    assert flip["label"] == flip["predictions"]["oracle"] == LABELS[2]
    assert disagreements(group.members) == [{"first": "onnx/ort", "second": "oracle", "images": 1}]


def test_document_holds_interval_flips_and_disagreements(run: Run) -> None:
    """Fractions with the Wilson interval of Brown, Cai and DasGupta's formula, and the images that not all put in one class."""
    wrong = {3: int(LABELS[3] + 1) % 10, 5: int(LABELS[5] + 1) % 10}
    records = run(Fakes({"onnx": logits_of({}), "jax": logits_of(wrong)}), cell(ARM, 8), cell(OTHER, 8))
    document = screen.accuracy_document(records, [], LABELS.tolist())
    perfect, other = document["rows"]
    assert (perfect["top1"], other["top1"], other["images"]) == (1.0, 498 / 500, 500)
    z, n, p = 1.959963984540054, 500, 498 / 500
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert other["top1_interval"] == pytest.approx([(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)], rel=1e-9)
    assert [flip["image"] for flip in document["flips"]] == [3, 5]
    assert document["flips"][0]["predictions"] == {"onnx/ort": int(LABELS[3]), "jax/jit": wrong[3]}
    assert [pair["images"] for pair in document["disagreements"]] == [2]


def test_the_table_shows_bring_weights_and_failures(tmp_path: Path) -> None:
    """Instead of a blank the top-1 column says what is missing, the way out stands once below the table, a failure by its row."""
    made = synthetic_records.Run(tmp_path)
    for name in ("pytorch/eager", "onnx/ort", "jax/jit"):
        made.certify(name)
        made.timed(name, 0.02)
    for name in ("pytorch/eager", "onnx/ort"):
        skipped = {"status": "skipped", "reason": accuracy.bring_weights("resnet50"), "data": {"dataset": None}}
        made.append("accuracy", made.cell(name).certificate_cell, **skipped)
    made.append("accuracy", made.cell("jax/jit").certificate_cell, status="failed", reason="its worker ended with exit code 9")
    (section,) = write.comparison(made.folder, "pytorch/eager").sections
    assert {line.implementation: line.top1 for line in section.lines} == {
        "PyTorch eager": "bring weights",
        "ONNX Runtime": "bring weights",
        "JAX jit": "failed",
    }
    assert [note for note in section.notes if "weights" in note] == [f"Top-1: {accuracy.bring_weights('resnet50')}."]
    assert "JAX jit: accuracy: failed: its worker ended with exit code 9" in section.notes


def test_exit_codes(run: Run) -> None:
    """0 where something was classified, 1 for a failure or what was named in vain, 2 where there is nothing."""
    (fine,) = run(Fakes({"onnx": logits_of({})}), cell(ARM, 8))
    (without,) = run(Fakes({}), cell(WITHOUT, 8))
    (failed,) = run(Fakes({"jax": WorkerError("failed", "no")}), cell(OTHER, 8))
    skip = Skip("onnx", "ort", "cifar_resnet20", "bf16", "cpu", "no bfloat16", by_name=True)
    assert screen.accuracy_code([fine, without], [], by_name=False) == 0
    assert screen.accuracy_code([fine, without], [], by_name=True) == 1
    assert screen.accuracy_code([fine, failed], [], by_name=False) == 1
    assert screen.accuracy_code([fine], [skip], by_name=False) == 1
    assert screen.accuracy_code([without], [], by_name=False) == 2
