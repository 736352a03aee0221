"""Certificates as records and as kept files: what they depend on, and when they are made again."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from impls import models
from impls.implementation import ROOT, find
from impls.oracle import forward, lattice, local
from impls.oracle.rounding import EXACT_LAYERS
from impls.spec import walk
from impls.weights import file
from results import certificate as documents
from results.record import Cell, Record
from results.store import Store, StoreError
from suites.data.preprocess import PRESETS, PreprocessError
from suites.equivalence import certificate, examination, probes, training
from suites.equivalence.examination import Examination
from suites.equivalence.tiers import MEANING_BOUND, Tier
from suites.harness import closure
from suites.harness.context import Context, subject
from suites.harness.environments import Interpreters
from suites.harness.process import WorkerError

CELL = Cell("onnx", "ort", "cifar_resnet8", "fp32", "cpu", None, None, None, None)
PACKAGES = {"onnxruntime": "1.31.1", "numpy": "2.4.6"}
PASSED = {name: Tier(True, 10, 0.0, "", 0.0, None) for name in documents.TIERS["inference"]}
FAILED = PASSED | {"E1": Tier(False, 10, 0.0, "bn1", 3.0, "bn1: the first tap that differs, by 3 (bound 0)")}


NO_WORKERS: Any = None
"""Where the examination is stood in for, no worker is asked."""


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A run whose cache and store are empty."""
    monkeypatch.setenv("LEVELFIELD_CACHE", str(tmp_path / "cache"))
    subject.cache_clear()
    store = Store(tmp_path / "store")
    run = store.create_run(
        {"machine_id": "0123456789abcdef"}, {"code": {"version": "0", "commit": None, "dirty": None, "diff_sha256": None}}
    )
    return Context(
        find(), Interpreters(find(), (), "cpu", {"onnx": Path(sys.executable)}), store, run, threads=2, smoke=False, say=lambda line: None
    )


class Examiner:
    """Stands in for the examination and counts how often it is held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tiers: dict[str, Tier] = PASSED
        self.held = 0
        self.meanings: list[Tier | None] = []
        monkeypatch.setattr(Examination, "run", lambda examination, meaning: self.run(meaning))

    def run(self, meaning: Tier | None) -> tuple[dict[str, Tier], dict[str, object]]:
        self.held += 1
        self.meanings.append(meaning)
        return self.tiers, {"threads": 2}


def certify_once(context: Context, batch_sizes: tuple[int, ...] = (1, 8)) -> str:
    """The status of one certificate."""
    return certificate._certify_one(context, NO_WORKERS, CELL, batch_sizes).status


def kept_files(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "certificates").glob("*"))


def test_certificate_is_kept(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unchanged arm is examined once, and what is kept gives the same record."""
    examiner = Examiner(monkeypatch)
    first, second = (certificate._certify_one(context, NO_WORKERS, CELL, (1,)) for _ in range(2))
    assert (first.status, second.status, examiner.held, len(kept_files(tmp_path))) == ("ok", "ok", 1, 1)
    assert (first.data, first.settings) == (second.data, second.settings)


def test_failed_examination_is_held_again(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that was refused is not kept; its record names tier and tap."""
    examiner = Examiner(monkeypatch)
    examiner.tiers = FAILED
    record = certificate._certify_one(context, NO_WORKERS, CELL, (1,))
    assert (record.status, record.reason) == ("not_certified", "E1: bn1: the first tap that differs, by 3 (bound 0)")
    assert kept_files(tmp_path) == []
    certify_once(context)
    assert examiner.held == 2


@pytest.mark.parametrize(
    "tamper",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"elements": 10', '"elements": 11', 1),
        lambda text: json.dumps(json.loads(text) | {"certificate": {**json.loads(text)["certificate"], "tiers": {}}}),
        lambda text: json.dumps(json.loads(text) | {"sha256": "0" * 64}),
    ],
    ids=["empty", "list", "cut off", "edited", "no tiers", "digest"],
)
def test_tampered_certificate_is_not_used(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tamper: Callable[[str], str]
) -> None:
    """A kept file that is not what was written, whole, leads to a new examination."""
    examiner = Examiner(monkeypatch)
    certify_once(context)
    (path,) = kept_files(tmp_path)
    before = path.read_text(encoding="utf-8")
    path.write_text(tamper(before), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != before
    assert (certify_once(context), examiner.held) == ("ok", 2)


@pytest.mark.parametrize(
    "tiers",
    [
        FAILED,
        {},
        {"E0": PASSED["E0"]},
        {name: tier for name, tier in PASSED.items() if name != "E3"},
        PASSED | {"E4": dataclasses.replace(PASSED["E4"], elements=0)},
    ],
    ids=["failed", "no tiers", "one tier", "no E3", "no elements"],
)
def test_only_whole_certificates_count(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiers: dict[str, Tier]) -> None:
    """A failed, empty or partial examination certifies nothing and is not kept; nor does it count where it was kept in due form."""
    examiner = Examiner(monkeypatch)
    certify_once(context)
    (path,) = kept_files(tmp_path)
    sound = documents.load(path)
    assert certificate._read_kept(path, sound.key) == sound
    assert certificate._read_kept(path, "another") is None
    partial = {name: documents.Tier(*(getattr(tier, field) for field in documents.Tier.__slots__)) for name, tier in tiers.items()}
    documents.save(path, dataclasses.replace(sound, tiers=partial))
    assert certificate._read_kept(path, sound.key) is None
    examiner.tiers = tiers
    assert (certify_once(context), examiner.held) == ("not_certified", 2)


def test_every_examination_leaves_a_document(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passed or not, the run's folder holds the whole certificate, which says what the record says."""
    examiner = Examiner(monkeypatch)
    for tiers in (PASSED, FAILED):
        examiner.tiers = tiers
        record = certificate._certify_one(context, NO_WORKERS, CELL, (len(tiers["E1"].worst_tap) + 1,))
        assert record.data is not None
        made = documents.load(context.folder / "certificates" / str(record.data["document"]))
        assert (made.passed, made.reason, made.key) == (record.status == "ok", record.reason, record.data["key"])


def test_what_does_not_train_is_skipped(context: Context) -> None:
    """ONNX Runtime has no training: its row says so."""
    record = certificate._certify_one(context, NO_WORKERS, CELL, (1,), "training")
    assert (record.suite, record.status, record.reason) == ("training_equivalence", "skipped", "ONNX Runtime has no training")


def test_what_nobody_trains_is_skipped(context: Context) -> None:
    """A precision in which nothing trains here: its row says so before any worker is asked."""
    cell = dataclasses.replace(CELL, implementation="pytorch", mode="eager", precision="fp16")
    record = certificate._certify_one(context, NO_WORKERS, cell, (1,), "training")
    assert (record.suite, record.status) == ("training_equivalence", "skipped")
    assert record.reason is not None
    assert record.reason.startswith("training is done in fp64, fp32, tf32, bf16, not in fp16")


def test_the_record_is_of_what_is_trained(context: Context) -> None:
    """Of GoogLeNet with its heads, which are another network than the one that is run."""
    cell = dataclasses.replace(CELL, model="googlenet")
    record = certificate._certify_one(context, NO_WORKERS, cell, (1,), "training")
    assert record.model is not None
    assert (record.status, record.model.parameters) == ("skipped", 13_004_888)
    assert context.subject("googlenet").as_record("fp32", None)["parameters"] == 6_624_904


def test_meaning_takes_the_epsilon_that_a_format_can_hold(context: Context) -> None:
    """With float32 epsilons the oracle's taps behind a batch norm are others, before it and folded the same; both are exact."""
    name, shape = CELL.model, (2, 3, 32, 32)
    double, single = (examination._meaning_of(name, None, shape, each) for each in (False, True))
    assert np.array_equal(double.taps["conv1"], single.taps["conv1"])
    assert not np.array_equal(double.taps["bn1"], single.taps["bn1"])
    assert np.array_equal(double.folded, single.folded)
    about = subject(name)
    exact = forward.taps(local.with_single_epsilon(about.model), about.weights, about.inputs.pool[:2])
    assert all(np.array_equal(exact[tap], value) for tap, value in single.taps.items())


def test_a_certificate_is_made_on_images_as_the_weights_want_them(context: Context, tmp_path: Path) -> None:
    """What a weight file says of its pixels reaches every tier's images, which a certificate depends on; what cannot be used is named."""
    usual = context.subject(CELL.model)
    path = tmp_path / "net.safetensors"

    def save(preprocess: dict[str, object]) -> None:
        file.save(path, usual.model, usual.weights, source="a test", preprocess=preprocess, licence="CC0-1.0")

    save(PRESETS["keras_caffe"].as_json())
    about = subject(CELL.model, path)
    assert about.inputs.sha256 != usual.inputs.sha256
    images = (probes.real(about.inputs, 32, 32), probes.real(about.inputs, 13, 31), training.batches(about)[0].images)
    assert all(np.abs(each).max() > 50 for each in images)  # torchvision's would reach 2.64
    subject.cache_clear()
    save({"mean": "usual"})
    with pytest.raises(PreprocessError, match=f"{path}: .* `levelfield weights import --preprocess` writes one that can"):
        subject(CELL.model, path)


def noisy_taps(images: npt.NDArray[Any], wrong: str | None) -> dict[str, npt.NDArray[Any]]:
    """Of an implementation whose every layer errs by 1e-11 of its value, and one, if it is named, by 1e-6."""
    about, generator = subject(CELL.model), np.random.Generator(np.random.PCG64(3))
    taps: dict[str, npt.NDArray[Any]] = {}

    def apply(layer: Any, *inputs: Any) -> Any:
        output = forward.evaluate(layer, inputs, forward.tensors_of(layer, about.weights))
        if not isinstance(layer, EXACT_LAYERS):
            output = output * (1 + (1e-6 if layer.name == wrong else 1e-11) * generator.uniform(-1, 1, output.shape))
        return taps.setdefault(layer.name, output)

    walk(about.model.body, apply, images.astype(np.float64))
    return taps


@pytest.mark.parametrize(
    ("noise", "wrong", "failing"),
    [(1e-12, None, "relu"), (1e-9, None, None), (1e-9, "layer2.0.conv1", "layer2.0.conv1"), (1e-9, "fc", "fc")],
)
def test_layers_are_judged_alone_where_the_network_enlarges_rounding(
    context: Context, monkeypatch: pytest.MonkeyPatch, noise: float, wrong: str | None, failing: str | None
) -> None:
    """Errors of sound layers add up to more than the bound: a fault, or no power, as float64's own noise is; a wrong layer is seen."""

    def observe(self: Examination, precision: str, weights: Path, images: Any) -> Any:
        taps = noisy_taps(images, wrong)
        return taps, taps["fc"], {}

    monkeypatch.setattr(Examination, "_observe", observe)
    monkeypatch.setattr(examination, "_noise_of_meaning", lambda *question: noise)
    probe = documents.Probe("E2", "ordinary", (2, 3, 32, 32), "as ever")
    tier = Examination(context, NO_WORKERS, CELL, subject(CELL.model), (probe,))._meaning(probe)
    assert tier.passed == (failing is None)
    if failing is None:
        assert tier.note == "no power: rounding explains 1e-09 of the logits' rms, so layers were judged alone and the mode by E1"
    else:
        assert tier.reason is not None
        assert tier.reason.startswith(f"{failing}: the first tap that differs")


def test_plain_nets_of_110_layers_enlarge_rounding(context: Context) -> None:
    """Residual nets and shorter plain ones do not."""
    noises = [examination._noise_of_meaning(name, None, (2, 3, 32, 32)) for name in ("cifar_plain20", "cifar_resnet56", "cifar_plain110")]
    assert max(noises[:2]) < 1e-13
    assert noises[2] > MEANING_BOUND


@pytest.mark.parametrize("constant", ["LARGE_PARAMETERS", "LARGE_TAPS", "MIDDLING_PARAMETERS", None])
def test_workers_of_larger_networks_end_earlier(context: Context, monkeypatch: pytest.MonkeyPatch, constant: str | None) -> None:
    """Each network's answers are let go before the next; a larger one's workers end with it, those of a large one live one at a time."""
    Examiner(monkeypatch)
    happened: list[str] = []
    monkeypatch.setattr(certificate, "forget", lambda: happened.append("forget"))
    monkeypatch.setattr(certificate.Workers, "dismiss", lambda workers: happened.append(f"dismiss, limit {workers.limit}"))
    if constant:
        monkeypatch.setattr(certificate, constant, 1)
    cells = [CELL, dataclasses.replace(CELL, model="cifar_plain8")]
    assert list(certificate.certificates_for(context, cells, (1,))) == cells
    limit = 1 if constant and constant.startswith("LARGE") else 2
    each = [*{None: 0, "MIDDLING_PARAMETERS": 1}.get(constant, 2) * [f"dismiss, limit {limit}"], "forget"]
    assert happened == [*each, *each, f"dismiss, limit {limit}"]


@pytest.mark.parametrize(("device", "most"), [("cpu", 2), ("cuda", 1)])
def test_a_card_is_one_implementations_at_a_time(context: Context, monkeypatch: pytest.MonkeyPatch, device: str, most: int) -> None:
    """What compilers choose there by timing kernels they keep; on a CPU two are examined at a time."""
    at_work: set[str] = set()
    seen: list[int] = []

    def certify(context: Context, workers: Any, cell: Cell, *_: object, **__: object) -> Record:
        at_work.add(cell.implementation)
        time.sleep(0.1)
        seen.append(len(at_work))
        at_work.remove(cell.implementation)
        return context.record("equivalence", cell)

    monkeypatch.setattr(certificate, "_certify_one", certify)
    cells = [dataclasses.replace(CELL, implementation=name, device=device) for name in ("onnx", "jax", "pytorch", "tensorflow")]
    certificate.certificates_for(context, cells, (1,))
    assert max(seen) == most


def test_meaning_is_asked_once_for_all_precisions(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """E2 is in float64 whatever the precision is, so a mode's holds for all of them; not another mode's or model's."""
    examiner = Examiner(monkeypatch)
    changed = ({}, {"precision": "fp64"}, {"mode": "other"}, {"mode": "other", "precision": "fp64"}, {"model": "cifar_plain8"})
    cells = [dataclasses.replace(CELL, **each) for each in changed]
    certificate.certificates_for(context, cells, (1,))
    assert examiner.meanings == [None, None, PASSED["E2"], PASSED["E2"], None]


def test_training_takes_more_memory() -> None:
    """ResNet-50 is large when it is trained, and ResNet-18 is not."""
    resnet18, resnet50 = map(models.get, ("resnet18", "resnet50"))
    assert [certificate.is_large(resnet50, purpose) for purpose in ("inference", "training")] == [False, True]
    assert not certificate.is_large(resnet18, "training")


def test_what_is_forgotten_is_made_anew(context: Context) -> None:
    """The same answer, from another network object."""
    about, answer = subject(CELL.model), examination._meaning_of(CELL.model, None, (2, 3, 32, 32), False)
    assert examination._meaning_of(CELL.model, None, (2, 3, 32, 32), False) is answer
    examination.forget()
    again = examination._meaning_of(CELL.model, None, (2, 3, 32, 32), False)
    assert again is not answer
    assert np.array_equal(again.given, answer.given)
    assert subject(CELL.model) is not about


def test_an_excused_tier_is_stated(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An implementation that shows no taps is certified without E3, kept so, and the record says why."""
    examiner = Examiner(monkeypatch)
    examiner.tiers = {name: tier for name, tier in PASSED.items() if name != "E3"}
    assert certify_once(context) == "not_certified"
    assert kept_files(tmp_path) == []
    silent = {name: dataclasses.replace(manifest, taps=False) for name, manifest in context.manifests.items()}
    record = certificate._certify_one(dataclasses.replace(context, manifests=silent), NO_WORKERS, CELL, (1,))
    assert record.data is not None
    assert record.data["excused"] == {"E3": "it shows no intermediate outputs"}
    assert len(kept_files(tmp_path)) == 1


def test_certificate_depends_on(context: Context) -> None:
    """Each of the things that a certificate rests on changes its key: none of them can change unnoticed."""
    about = subject(CELL.model)

    def key(
        context: Context = context,
        cell: Cell = CELL,
        about: Any = about,
        sizes: tuple[int, ...] = (1, 8),
        thorough: bool = False,
        python: str = "3.11.7",
        packages: Mapping[str, str] = PACKAGES,
        purpose: documents.Purpose = "inference",
    ) -> str:
        asked = probes.asked(about.model, sizes, "inference", thorough=thorough)
        return certificate._key(context, cell, about, asked, python, packages, purpose)

    others = [
        key(cell=dataclasses.replace(CELL, mode="other")),
        key(cell=dataclasses.replace(CELL, precision="bf16")),
        key(about=dataclasses.replace(about, weights_sha256="0" * 64)),
        key(about=dataclasses.replace(about, spec_sha256="0" * 64)),
        key(about=dataclasses.replace(about, inputs=dataclasses.replace(about.inputs, pool=about.inputs.pool[::-1].copy()))),
        key(sizes=(1, 4)),
        key(thorough=True),
        key(context=dataclasses.replace(context, threads=1)),
        key(context=dataclasses.replace(context, run=dataclasses.replace(context.run, machine={"machine_id": "f" * 16}))),
        key(packages=PACKAGES | {"onnxruntime": "1.30.0"}),
        key(python="3.12.1"),
        key(purpose="training"),
    ]
    assert key(sizes=(8, 1)) == key()
    assert len({key(), *others}) == 1 + len(others)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second checkout."""
    root = tmp_path_factory.mktemp("sources")
    for folder in ("impls", "suites", "results"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "*.jsonl", "*.safetensors"))
    return root


BOTH, TRAINING, NONE = {"inference", "training"}, {"training"}, set[str]()


@pytest.mark.parametrize(
    ("name", "purposes"),
    [
        ("impls/onnx/layers.py", BOTH),
        ("impls/onnx/impl.toml", BOTH),
        ("impls/onnx/requirements-cpu.txt", BOTH),
        ("impls/weights/folding.py", BOTH),
        ("impls/oracle/local.py", BOTH),
        ("suites/equivalence/certificate.py", BOTH),
        ("suites/equivalence/tiers.py", BOTH),
        ("suites/harness/inputs.py", BOTH),
        ("suites/harness/worker.py", BOTH),
        ("impls/oracle/backward_masks.py", TRAINING),
        ("suites/equivalence/timed_masks.py", TRAINING),
        ("impls/jax/layers.py", NONE),
        ("suites/harness/turns.py", NONE),
        ("suites/regression.py", NONE),
    ],
)
def test_code_that_a_certificate_depends_on(
    context: Context, sources: Path, monkeypatch: pytest.MonkeyPatch, name: str, purposes: set[str]
) -> None:
    """What examines and what runs in the worker; not another implementation, nor what measures."""
    monkeypatch.setattr(certificate, "ROOT", sources)
    context = dataclasses.replace(context, manifests=find(sources), root=sources)

    def keys() -> dict[documents.Purpose, str]:
        closure.closure_sha256.cache_clear()
        return {purpose: key_of(context, purpose) for purpose in typing.get_args(documents.Purpose)}

    before, text = keys(), (sources / name).read_text(encoding="utf-8")
    (sources / name).write_text(f"{text}\nx = 1\n", encoding="utf-8")
    after = keys()
    (sources / name).write_text(text, encoding="utf-8")
    assert {purpose for purpose in before if before[purpose] != after[purpose]} == purposes


def test_the_examined_revision_counts(context: Context, sources: Path) -> None:
    """What runs in the worker is its, what judges is this checkout's."""
    context = dataclasses.replace(context, manifests=find(sources), root=sources)
    before = key_of(context)
    changed = {name: (sources / name).read_text(encoding="utf-8") for name in ("impls/onnx/layers.py", "suites/equivalence/tiers.py")}
    keys = []
    for name, text in changed.items():
        (sources / name).write_text(f"{text}\nx = 1\n", encoding="utf-8")
        closure.closure_sha256.cache_clear()
        keys.append(key_of(context))
        (sources / name).write_text(text, encoding="utf-8")
    assert keys[0] != before
    assert keys[1] == before


def key_of(context: Context, purpose: documents.Purpose = "inference") -> str:
    return certificate._key(context, CELL, subject(CELL.model), (), "3.11.7", PACKAGES, purpose)


def test_a_worker_that_fails_to_start_is_a_row(context: Context) -> None:
    """An arm that cannot be examined has a record with the reason."""

    class Absent:
        def get(self, cell: Cell, precision: str) -> tuple[None, dict[str, Any]]:
            raise WorkerError("cannot", "there is no such precision")

    record = certificate._certify_one(context, Absent(), CELL, (1,))  # type: ignore[arg-type]
    assert (record.status, record.reason) == ("skipped", "there is no such precision")


def test_a_lattice_that_cannot_be_is_not_certified(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no exact probe exists there is no certificate, and the row says so."""

    def none(examination: Examination, meaning: Tier | None) -> None:
        raise lattice.LatticeError("averages 3x3 = 9 values")

    monkeypatch.setattr(Examination, "run", none)
    record = certificate._certify_one(context, NO_WORKERS, CELL, (1,))
    assert (record.status, record.reason) == ("not_certified", "E1: no exact probe: averages 3x3 = 9 values")


CELLS = tuple(
    dataclasses.replace(CELL, implementation=name, mode=mode) for name, mode in (("onnx", "ort"), ("jax", "jit"), ("pytorch", "eager"))
)


@pytest.fixture
def three(context: Context, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A run in which three implementations are at hand, all examined by a stand-in."""
    named = dict.fromkeys(("onnx", "jax", "pytorch"), Path(sys.executable))
    Examiner(monkeypatch)
    return dataclasses.replace(context, interpreters=Interpreters(find(), (), "cpu", named))


def test_implementations_are_examined_side_by_side(three: Context) -> None:
    """Every arm has its record, in the order asked for, whoever was ready first."""
    found = certificate.certificates_for(three, CELLS, (1,))
    assert list(found) == list(CELLS)
    assert {record.status for record in found.values()} == {"ok"}
    stored = three.store.read(three.run.run_id)[0]
    assert {record.record_id for record in stored} == {record.record_id for record in found.values()}


def test_an_error_of_one_ends_all(three: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is raised, and nothing is stored of what was ended because of it."""
    ended: list[str] = []
    monkeypatch.setattr(certificate.Workers, "end", lambda workers: ended.append("end"))

    def full(store: Store, record: Record) -> Path:
        raise StoreError("the disk is full")

    monkeypatch.setattr(Store, "append", full)
    with pytest.raises(StoreError, match="the disk is full"):
        certificate.certificates_for(three, CELLS, (1,))
    assert len(ended) >= len(CELLS)


@pytest.mark.parametrize(
    ("limit", "alive", "done"),
    [
        (1, [False, False, False, False, True], ["resume", "pause"]),
        (2, [True, False, False, True], ["resume", "pause", "resume", "pause", "resume", "pause"]),
    ],
)
def test_the_workers_before_are_stopped_or_ended(
    context: Context, monkeypatch: pytest.MonkeyPatch, limit: int, alive: list[bool], done: list[str]
) -> None:
    """Precisions in turn: stopped ones go on, and of more than may live the one that was not asked for the longest ends."""

    class Process:
        """Keeps what was done to it."""

        def __init__(self, *_: object, **__: object) -> None:
            self.done: list[str] = []
            self.alive = True
            started.append(self)

        def call(self, *_: object) -> dict[str, object]:
            return {}

        def pause(self) -> None:
            self.done.append("pause")

        def resume(self) -> None:
            self.done.append("resume")

        def end(self) -> None:
            self.alive = False

    started: list[Process] = []
    monkeypatch.setattr(Context, "launch", Process)
    workers = certificate.Workers(context)
    workers.limit = limit
    for precision in ("fp64", "fp32", "fp64", "bf16", "fp64") if limit == 1 else ("fp64", "fp32", "fp64", "bf16", "fp64", "fp16"):
        workers.get(CELL, precision)
    assert [process.alive for process in started] == alive
    assert started[0].done == done
    workers.get(dataclasses.replace(CELL, implementation="jax"), "fp32")
    assert [process.alive for process in started] == [*alive, True]


def test_ended_workers_start_no_other(context: Context) -> None:
    """A thread that goes on after the others were ended finds nobody to ask."""
    workers = certificate.Workers(context)
    workers.end()
    with pytest.raises(WorkerError, match="were ended"):
        workers.get(CELL, "fp32")
