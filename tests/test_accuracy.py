"""Accuracy: batches and their remainder, what cannot be read, scores, ensembles, disagreements, and what becomes a record."""

from __future__ import annotations

import dataclasses
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
from levelfield import classified
from reports import write
from results.record import Cell, Record
from results.store import Store
from suites import accuracy
from suites.accuracy import NONE, LogitsError, averaged, disagreements, flips, gap, groups, judged, probabilities, score, scored
from suites.data.labelled import DataError, ImageError
from suites.data.test_set import TestSet, digits
from suites.evaluation import Evaluation
from suites.harness import inputs
from suites.harness.context import Context
from suites.harness.plan import Skip
from suites.harness.process import WorkerError
from suites.harness.scores import Batch
from tests import synthetic_records

ARM = Cell("onnx", "ort", "cifar_resnet20", "fp32", "cpu", None, None, None, None)
OTHER = Cell("jax", "jit", "cifar_resnet20", "fp32", "cpu", None, None, None, None)
WITHOUT = Cell("onnx", "ort", "cifar_plain20", "fp32", "cpu", None, None, None, None)
LABELS = inputs.digits()[1].labels


def cell(arm: Cell, batch_size: int) -> Cell:
    return Cell(arm.implementation, arm.mode, arm.model, arm.precision, arm.device, batch_size, "transfer", "offline", 2)


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


def parts_of(logits: npt.NDArray[Any], size: int, unreadable: tuple[int, ...] = ()) -> list[Batch]:
    """Scores in batches, with some images that could not be read."""
    return [
        Batch(logits[at : at + size], (), {image - at: "is no image" for image in unreadable if at <= image < at + size})
        for at in range(0, len(logits), size)
    ]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(4, 9), st.randoms(use_true_random=False))
def test_batches_score_as_the_whole(count: int, size: int, classes: int, random: Any) -> None:
    """However a test set is cut into batches, also where the last is small."""
    rng = np.random.default_rng(random.randrange(1000))
    logits, labels = rng.normal(size=(count, classes)), rng.integers(0, classes, count)
    assert scored(parts_of(logits, size), labels) == score(logits, labels)


def test_images_that_could_not_be_read_are_counted_and_not_right() -> None:
    """Scores of 0 put them into class 0, which is the label: they are no class and not among the first five either."""
    logits = np.eye(8, dtype=np.float32)
    logits[2] = 0
    labels = np.array([0, 1, 0, 3, 4, 5, 6, 7])
    found = scored(parts_of(logits, 3, (2,)), labels)
    assert found.predictions == (0, 1, NONE, 3, 4, 5, 6, 7)
    assert found.margins[2] == 0
    assert (found.top1, found.top5) == (7 / 8, 7 / 8)


def test_missing_batches_are_no_score() -> None:
    """Five images of six are not a test set."""
    with pytest.raises(LogitsError, match="logits of 4 images for 6 labels"):
        scored(parts_of(np.eye(6), 4)[:1], np.arange(6))


def test_an_ensemble_averages_probabilities_not_logits() -> None:
    """One that is sure of 0 and two that lean to 1: in probabilities 1 wins, in logits 0 would."""
    sure, leaning = np.array([[9.0, 0, 0]]), np.array([[0.0, 2, 0]])
    members = [parts_of(sure, 1), parts_of(leaning, 1), parts_of(leaning, 1)]
    (found,) = averaged(members, logits=True)
    each = [np.exp(values) / np.exp(values).sum() for values in (sure, leaning, leaning)]
    np.testing.assert_allclose(found.scores, np.mean(each, axis=0), rtol=1e-12)
    assert scored([found], np.array([1])).top1 == 1
    assert np.argmax(sure + 2 * leaning) == 0
    (again,) = averaged([parts_of(values, 1) for values in each], logits=False)
    np.testing.assert_allclose(again.scores, found.scores, rtol=1e-12)


def test_probabilities_of_large_logits() -> None:
    """No overflow, and they add up to 1."""
    found = probabilities(np.array([[1e4, 0.0], [-1e4, -1e4]], np.float32))
    np.testing.assert_array_equal(found, [[1, 0], [0.5, 0.5]])


def logits_of(wrong: dict[int, int]) -> npt.NDArray[np.float32]:
    """Logits (500, 10) that are right but for the images in ``wrong``."""
    classes = LABELS.copy()
    for image, predicted in wrong.items():
        classes[image] = predicted
    return np.eye(10, dtype=np.float32)[classes]


class FakeWorker:
    """Answers as a worker does, with given logits for the images in the order of the test set; after ``dies_after`` batches it dies."""

    alive = True

    def __init__(self, logits: npt.NDArray[np.float32], dies_after: int | None = None) -> None:
        self.logits = logits
        self.dies_after = dies_after
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.seen: list[npt.NDArray[np.float32]] = []

    def call(self, operation: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        self.asked.append((operation, arguments))
        return {"settings": {"threads": 2}} if operation == "settings" else {}

    def send(self, operation: str, **arguments: Any) -> None:
        self.asked.append((operation, arguments))

    def receive(self, timeout_s: float) -> dict[str, Any]:
        operation, arguments = self.asked[-1]
        assert operation == "classify"
        if len(self.seen) == self.dies_after:
            raise WorkerError("died", "its worker ended with exit code 9", ("last words",))
        images = load_file(arguments["images"])["images"]
        self.seen.append(images)
        found = np.zeros((*images.shape[:2], self.logits.shape[1]), np.float32)
        for at, image in enumerate(images.reshape(-1, *images.shape[2:])):
            found.reshape(-1, self.logits.shape[1])[at] = self.logits[BY_BYTES.get(image.tobytes(), 0)]
        save_file({"logits": found}, arguments["out"])
        return {}


BY_BYTES = {image.tobytes(): index for index, image in enumerate(inputs.digits()[1].images)}
"""Which of the digits an image is."""


class Fakes:
    """Stands in for ``Workers``: what each implementation answers, be it an error."""

    def __init__(self, answers: dict[str, npt.NDArray[np.float32] | FakeWorker | WorkerError]) -> None:
        self.workers = {name: FakeWorker(answer) if isinstance(answer, np.ndarray) else answer for name, answer in answers.items()}
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

    def of(fakes: Fakes, *cells: Cell, test: TestSet | None = None) -> list[Record]:
        monkeypatch.setattr(accuracy, "Workers", lambda context, purpose: fakes)
        arms = list(dict.fromkeys(each.certificate_cell for each in cells))
        certificates = {arm: context.record("equivalence", arm) for arm in arms}
        accuracy.run(context, cells, certificates, {arm.model: test for arm in arms} if test else None)
        return [store.find(held.run_id, "accuracy", arm, None)[-1] for arm in arms]

    return of


def few(count: int, unreadable: dict[int, str] | None = None) -> TestSet:
    """The first of the digits, some of which cannot be read."""
    whole = digits()

    def prepare(index: int) -> npt.NDArray[np.float32]:
        if unreadable and index in unreadable:
            raise ImageError(unreadable[index])
        return whole.prepare(index)

    return dataclasses.replace(whole, name="digits/few", labels=whole.labels[:count], names=whole.names[:count], prepare=prepare)


def test_a_certified_arm_is_classified_in_its_largest_batch(run: Run) -> None:
    """One record for an arm, from its largest batch, with every prediction and the settings that were read back."""
    fakes = Fakes({"onnx": logits_of({3: (LABELS[3] + 1) % 10})})
    (record,) = run(fakes, cell(ARM, 1), cell(ARM, 8))
    worker = fakes.workers["onnx"]
    assert isinstance(worker, FakeWorker)
    assert len(worker.seen) == 63
    assert {images.shape for images in worker.seen} == {(1, 8, 3, 32, 32)}
    assert np.array_equal(np.concatenate(worker.seen).reshape(-1, 3, 32, 32)[:500], inputs.digits()[1].images)
    assert [operation for operation, _ in worker.asked] == ["prepare", *["classify"] * 63, "settings", "release"]
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


def test_an_interrupted_classification_goes_on(run: Run, tmp_path: Path) -> None:
    """What was classified before is read from the run's folder; the record is that of an uninterrupted run."""
    logits = logits_of({3: (LABELS[3] + 1) % 10})
    test, size = few(30), 4
    dying = FakeWorker(logits, dies_after=5)
    (failed,) = run(Fakes({"onnx": dying}), cell(ARM, size), test=test)
    assert (failed.status, len(dying.seen)) == ("failed", 5)
    for path in (tmp_path / "store").rglob("accuracy-*.json"):
        path.unlink()  # as if the run had been killed instead
    second = FakeWorker(logits)
    (resumed,) = run(Fakes({"onnx": second}), cell(ARM, size), test=test)
    assert len(second.seen) == 3
    for path in (tmp_path / "store").rglob("accuracy-*.json"):
        path.unlink()
    for path in (tmp_path / "store").rglob("*.jsonl"):
        path.unlink()
    (whole,) = run(Fakes({"onnx": logits}), cell(ARM, size), test=test)
    assert resumed.data == whole.data
    assert resumed.inputs is not None
    assert resumed.inputs.sha256 == whole.inputs.sha256  # type: ignore[union-attr]
    assert whole.measurements["top1"] == 29 / 30


def test_the_identity_of_the_inputs_does_not_depend_on_the_batches(run: Run) -> None:
    """Batches of 4 and of 7 hold the same images, filled up otherwise."""
    test = few(30)
    (one,), (other,) = (
        run(Fakes({name: logits_of({})}), cell(arm, size), test=test) for name, arm, size in (("onnx", ARM, 4), ("jax", OTHER, 7))
    )
    assert one.inputs is not None
    assert other.inputs is not None
    assert one.inputs.sha256 == other.inputs.sha256


def test_unreadable_images_are_named_and_counted(run: Run) -> None:
    """Top-1 is of all images, the record names those that are missing and why, and the command does not end with 0."""
    test = few(20, {2: "is no image", 11: "there is no such file"})
    (record,) = run(Fakes({"onnx": logits_of({})}), cell(ARM, 8), test=test)
    assert record.status == "ok"
    assert record.measurements["top1"] == 18 / 20
    assert record.measurements["images"] == 20
    assert record.data is not None
    assert record.data["unreadable"] == [
        {"image": 2, "name": "digit 2", "reason": "is no image"},
        {"image": 11, "name": "digit 11", "reason": "there is no such file"},
    ]
    found = Evaluation((record,), (), (), (), (), (), ())
    assert classified.code(found, by_name=True) == 1
    assert classified.document(found)["rows"][0]["unreadable"] == record.data["unreadable"]


def test_a_data_set_of_which_nothing_can_be_read_is_a_failure(run: Run) -> None:
    """No accuracy of nothing."""
    (record,) = run(Fakes({"onnx": logits_of({})}), cell(ARM, 8), test=few(10, dict.fromkeys(range(10), "is no image")))
    assert (record.status, record.reason) == ("failed", "none of the 10 images can be read; digit 0 is no image")


def test_ten_crops_are_averaged_as_probabilities(run: Run) -> None:
    """Views of an image are batched one after the other, and the mean of their probabilities decides."""
    whole = digits()
    test = dataclasses.replace(
        whole,
        name="digits/pairs",
        labels=whole.labels[:10:2],
        names=whole.names[:5],
        views=2,
        prepare=lambda index: np.concatenate([whole.prepare(2 * index), whole.prepare(2 * index + 1)]),
    )
    logits = np.random.default_rng(0).normal(0, 3, (500, 10)).astype(np.float32)
    fakes = Fakes({"onnx": logits})
    (record,) = run(fakes, cell(ARM, 3), test=test)
    mean = probabilities(logits[:10]).reshape(5, 2, 10).mean(axis=1)
    assert record.data is not None
    assert record.data["predictions"] == np.argmax(mean, axis=1).tolist()
    worker = fakes.workers["onnx"]
    assert isinstance(worker, FakeWorker)
    assert [images.shape for images in worker.seen] == [(2, 3, 3, 32, 32)] * 2


def test_no_more_than_two_batches_are_held(run: Run) -> None:
    """While a batch is classified only the next is prepared: no image is asked for before its turn."""
    size, asked = 4, []
    whole = few(40)

    def prepare(index: int) -> npt.NDArray[np.float32]:
        asked.append(index)
        return whole.prepare(index)

    class Watching(FakeWorker):
        def receive(self, timeout_s: float) -> dict[str, Any]:
            assert max(asked, default=0) < (len(self.seen) + 2) * size
            return super().receive(timeout_s)

    (record,) = run(Fakes({"onnx": Watching(logits_of({}))}), cell(ARM, size), test=dataclasses.replace(whole, prepare=prepare))
    assert record.status == "ok"
    assert sorted(asked) == list(range(40))


def test_the_oracle_is_a_member_where_it_is_cheap(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its predictions stand beside the implementations', and a flip names it."""
    monkeypatch.setattr(accuracy, "ORACLE_MACS", 1e9)
    with threadpool_limits(1):
        (record,) = run(Fakes({"onnx": logits_of({2: (LABELS[2] + 1) % 10})}), cell(ARM, 2), test=few(4))
    (group,) = groups([record])
    assert list(group.members) == ["onnx/ort", "oracle"]
    (flip,) = flips(group.members, LABELS.tolist())
    assert flip["image"] == 2
    assert flip["label"] == flip["predictions"]["oracle"] == LABELS[2]
    (pair,) = disagreements(group.members, LABELS[:4].tolist())
    assert pair == {"first": "onnx/ort", "second": "oracle", "images": 1, "only_first_right": 0, "only_second_right": 1, "p": 1.0}


def evaluation_of(context: Context, records: list[Record], test: TestSet) -> Evaluation:
    """What the command makes of records of one group."""
    (group,) = groups(records)
    labels = test.labels.tolist()
    found = judged(context, group, flips(group.members, labels), test)
    about = {name: getattr(group, name) for name in ("model", "weights_sha256", "precision", "device", "dataset")}
    named = tuple({**about, **flip, "name": test.names[flip["image"]]} for flip in found)
    pairs = tuple({**about, **pair} for pair in disagreements(group.members, labels))
    return Evaluation(tuple(records), (), named, pairs, (), (), ())


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A run that no worker is asked in."""
    store = Store(tmp_path / "other")
    held = store.create_run({"machine_id": "0123456789abcdef"}, {"code": {}})
    return Context(find(), {}, store, held, threads=1, smoke=False, say=lambda line: None)


def test_document_holds_interval_flips_and_disagreements(run: Run, context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    """Fractions with the Wilson interval of Brown, Cai and DasGupta's formula, and the images that not all put in one class.

    Logits of 1 and 0 are apart by far more than rounding explains, which the command says and ends with 1 for.
    """
    wrong = {3: int(LABELS[3] + 1) % 10, 5: int(LABELS[5] + 1) % 10}
    with threadpool_limits(1):
        records = run(Fakes({"onnx": logits_of({}), "jax": logits_of(wrong)}), cell(ARM, 8), cell(OTHER, 8))
        found = evaluation_of(context, records, digits())
    document = classified.document(found)
    perfect, other = document["rows"]
    assert (perfect["top1"], other["top1"], other["images"]) == (1.0, 498 / 500, 500)
    z, n, p = 1.959963984540054, 500, 498 / 500
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert other["top1_interval"] == pytest.approx([(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)], rel=1e-9)
    assert perfect["inputs_sha256"] == other["inputs_sha256"]
    assert [flip["image"] for flip in document["flips"]] == [3, 5]
    assert document["flips"][0]["predictions"] == {"onnx/ort": int(LABELS[3]), "jax/jit": wrong[3]}
    (pair,) = document["disagreements"]
    assert (pair["images"], pair["only_first_right"], pair["p"]) == (2, 2, 0.5)
    assert [flip["gap"] for flip in document["flips"]] == [2, 2]
    assert all(0 < flip["bound"] < 0.1 and flip["within"] is False for flip in document["flips"])
    assert classified.code(found, by_name=True) == 1
    classified.show(found)
    shown = capsys.readouterr().out
    assert "2 images put in different classes" in shown
    assert "2 of them BEYOND what the certificates allow" in shown
    assert "100.00 [99.24,100.00]" in shown


def test_flips_within_rounding_are_no_fault(run: Run, context: Context) -> None:
    """Logits that differ in the seventh digit: the images flip, their margins are within the bound, and the exit code is 0."""
    tie = np.zeros((500, 10), np.float32)
    tie[:, 0], tie[:, 1] = 1, 1
    one, other = tie.copy(), tie.copy()
    one[7, 0] += 2e-7
    other[7, 1] += 2e-7
    with threadpool_limits(1):
        records = run(Fakes({"onnx": one, "jax": other}), cell(ARM, 8), cell(OTHER, 8))
        found = evaluation_of(context, records, digits())
    assert [(flip["image"], flip["within"]) for flip in found.flips] == [(7, True)]
    assert classified.code(found, by_name=True) == 0


def test_implementations_that_saw_other_images_are_not_compared(run: Run) -> None:
    """A file that changed between two of them would look like a difference of theirs."""
    changed = dataclasses.replace(few(10), prepare=lambda index: digits().prepare(index + 1))
    (one,), (other,) = (
        run(Fakes({name: logits_of({})}), cell(arm, 4), test=test) for name, arm, test in (("onnx", ARM, few(10)), ("jax", OTHER, changed))
    )
    with pytest.raises(DataError, match="digits/few: jax saw other images than onnx/ort: they changed on the disk"):
        groups([one, other])


def test_the_gap_is_of_two_implementations() -> None:
    """The widest pair of different classes, without the oracle, whose margin holds no error."""
    flip = {
        "predictions": {"a": 1, "b": 1, "c": 2, "oracle": 3},
        "margins": {"a": 0.1, "b": 0.4, "c": 0.2, "oracle": 9.0},
    }
    assert gap(flip) == pytest.approx(0.6)


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

    def code(*records: Record, skips: tuple[Skip, ...] = (), by_name: bool = False) -> int:
        return classified.code(Evaluation(records, skips, (), (), (), (), ()), by_name=by_name)

    assert code(fine, without) == 0
    assert code(fine, without, by_name=True) == 1
    assert code(fine, failed) == 1
    assert code(fine, skips=(skip,)) == 1
    assert code(without) == 2
