"""Accuracy on labelled images: each certified arm classifies the whole test set through the path that is timed.

A record keeps the class and the logit margin of every image, so that implementations can be compared image by image; the scores
themselves lie in the run's folder (``suites.harness.scores``), from which an interrupted classification goes on. One batch is prepared
while the one before it is classified, so two are held at most. The float64 oracle classifies the same images, where that is cheap.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from impls import models
from impls.oracle import forward, rounding
from impls.spec import macs
from results import statistics
from results.record import Cell, Record
from suites.data import test_set
from suites.data.labelled import DataError, ImageError
from suites.data.test_set import TestSet
from suites.equivalence.workers import Workers
from suites.harness import inputs
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, Context, Subject
from suites.harness.inputs import Images
from suites.harness.process import WorkerError, WorkerProcess
from suites.harness.reference import reference
from suites.harness.scores import Batch, Scores

ORACLE_MACS = 2e11
"""Multiply-accumulates that the oracle may spend on a test set: half a minute of NumPy on a core or two."""

ORACLE = "oracle"
"""How the oracle is called beside the implementations."""

TOP = 5

NONE = -1
"""The prediction for an image that could not be read; it is counted, and is not right."""

MOST_JUDGED = 64
"""Flips of a group whose bound is computed, those with the largest margins; each costs the oracle a few passes."""

JUDGED = ("fp64", "fp32")
"""Precisions in which no flip may exceed the certificate's bound."""


class LogitsError(ValueError):
    """Logits from which no class can be told; the message says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Score:
    """How a test set was classified.

    ``predictions`` are the classes of the largest scores, the first of equal ones, and NONE for an image that could not be read;
    ``margins`` their distance to the next. ``top5`` is None where there are no more than five classes.
    """

    predictions: tuple[int, ...]
    margins: tuple[float, ...]
    top1: float
    top5: float | None


def score(logits: npt.NDArray[Any], labels: npt.NDArray[np.int64], unreadable: Iterable[int] = ()) -> Score:
    """Compare logits, (batches, N, classes) or (count, classes), with the labels, (count,); what filled up the last batch is cut off.

    Raises:
        LogitsError: too few logits, or some that are not finite.
    """
    rows = logits.reshape(-1, logits.shape[-1])[: len(labels)].astype(np.float64)
    if len(rows) != len(labels):
        raise LogitsError(f"logits of {len(rows)} images for {len(labels)} labels")
    if not np.isfinite(rows).all():
        raise LogitsError(f"the logits of {np.count_nonzero(~np.isfinite(rows).all(axis=1))} images are not finite")
    ranked = np.argsort(-rows, axis=1, kind="stable")
    best = np.take_along_axis(rows, ranked[:, :2], axis=1)
    margins = best[:, 0] - best[:, 1]
    for image in unreadable:
        ranked[image], margins[image] = NONE, 0
    right = ranked == labels[:, None]
    return Score(
        predictions=tuple(ranked[:, 0].tolist()),
        margins=tuple(float(f"{margin:.6g}") for margin in margins),
        top1=float(right[:, 0].mean()),
        top5=float(right[:, :TOP].any(axis=1).mean()) if rows.shape[1] > TOP else None,
    )


def scored(batches: Iterable[Batch], labels: npt.NDArray[np.int64]) -> Score:
    """The score of a whole test set, from one batch after the other.

    Raises:
        LogitsError: as :func:`score`; no batch at all.
    """
    parts: list[Score] = []
    at = 0
    for batch in batches:
        own = labels[at : at + len(batch.scores)]
        parts.append(score(batch.scores, own, batch.unreadable))
        at += len(own)
    if at != len(labels):
        raise LogitsError(f"logits of {at} images for {len(labels)} labels")

    def right(shares: Iterable[float]) -> float:
        return sum(round(share * len(part.predictions)) for share, part in zip(shares, parts, strict=True)) / at

    top5 = [part.top5 for part in parts if part.top5 is not None]
    return Score(
        predictions=tuple(itertools.chain.from_iterable(part.predictions for part in parts)),
        margins=tuple(itertools.chain.from_iterable(part.margins for part in parts)),
        top1=right(part.top1 for part in parts),
        top5=right(top5) if top5 else None,
    )


def probabilities(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Softmax over the last axis, in float64."""
    values = logits.astype(np.float64)
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def averaged(members: Sequence[Iterable[Batch]], *, logits: bool) -> Iterable[Batch]:
    """The batches of an ensemble: the mean of its members' probabilities. ``logits`` says what the members' scores are."""
    for parts in zip(*members, strict=True):
        each = [probabilities(part.scores) if logits else part.scores for part in parts]
        yield Batch(np.mean(each, axis=0), parts[0].images_sha256, parts[0].unreadable)


def bring_weights(model: str) -> str:
    """What a row says where there are no trained weights: how to bring some."""
    missing = f"bring weights: {model} has none here that were trained"
    spec = models.get(model)
    small = {10: "", 100: " --dataset cifar100"} if spec.input_chw == (3, 32, 32) else {}
    return f"{missing}; `levelfield accuracy --weights FILE{small.get(spec.classes, ' --dataset imagenet --data-dir DIR')}` takes yours"


def without_weights(context: Context, arm: Cell) -> Record:
    """The record of an arm whose model has no trained weights at hand."""
    return context.record("accuracy", arm, "skipped", bring_weights(arm.model), data={"dataset": None})


def held(context: Context, arm: Cell) -> list[Record]:
    """What the run holds of an arm's accuracy with the weights that it is about now."""
    return of_weights(context, context.store.find(context.run.run_id, "accuracy", arm, None))


def of_weights(context: Context, records: Sequence[Record]) -> list[Record]:
    """The records of the weights that a run is about now: an ensemble's members may be of one model."""
    return [
        record
        for record in records
        if record.model is None or record.model.weights_sha256 == context.subject(record.cell.model).weights_sha256
    ]


def run(context: Context, cells: Sequence[Cell], certificates: Mapping[Cell, Record], tests: Mapping[str, TestSet] | None = None) -> None:
    """Classify a test set with every certified arm among ``cells``, in its largest batch, and store a record for each.

    ``tests`` holds one for each model; without them it is the one that the weights were trained for, and an arm without trained
    weights gets a record that says to bring some. What the store holds is not classified again.
    """
    workers = Workers(context, "accuracy")
    try:
        for cell in largest(cells):
            about = context.subject(cell.model)
            assert cell.batch_size is not None
            if held(context, cell.certificate_cell):
                continue
            if tests is None and about.dataset is None:
                context.store.append(without_weights(context, cell.certificate_cell))
                continue
            try:
                worker, hello = workers.get(cell, cell.precision)
                worker.call(
                    "prepare",
                    BUILD_TIMEOUT_S,
                    handle="accuracy",
                    weights=str(about.path),
                    mode=cell.mode,
                    input_shape=[cell.batch_size, *about.inputs.pool.shape[1:]],
                    fold=context.manifests[cell.implementation].folds,
                )
            except WorkerError as error:
                context.store.append(context.failure("accuracy", cell.certificate_cell, error, model=about.as_record(cell.precision, None)))
                continue
            test = tests[cell.model] if tests else None
            of_process(context, cell, worker, hello, "accuracy", certificates[cell.certificate_cell].record_id, test)
            with contextlib.suppress(WorkerError):  # a worker that cannot is ended, and the next arm gets another
                worker.call("release", CALL_TIMEOUT_S, handle="accuracy")
    finally:
        workers.end()


def largest(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Of each arm the cell with the largest batch."""
    found: dict[Cell, Cell] = {}
    for cell in cells:
        arm = cell.certificate_cell
        if arm not in found or (cell.batch_size or 0) > (found[arm].batch_size or 0):
            found[arm] = cell
    return tuple(found.values())


def of_process(
    context: Context,
    cell: Cell,
    worker: WorkerProcess,
    hello: Mapping[str, Any],
    handle: str,
    certificate_id: str,
    test: TestSet | None = None,
) -> None:
    """Classify a test set with a network that stands ready in a worker, and store the record, of a failure too.

    Without ``test`` it is the one that the weights were trained for. What the store holds is not classified again.
    """
    arm = cell.certificate_cell
    if held(context, arm):
        return
    about = context.subject(arm.model)
    if test is None:
        if about.dataset is None:
            context.store.append(without_weights(context, arm))
            return
        test = embedded(about)
    assert cell.batch_size is not None
    shape = (cell.batch_size, *about.model.input_chw)
    fields: dict[str, Any] = {"certificate_id": certificate_id, "model": about.as_record(arm.precision, None)}
    context.say(f"classifying {test.name} with {arm.implementation} {arm.mode} {arm.model} {arm.precision}")
    oracle = _by_oracle(about, test)
    kept = scores_of(context, arm, cell.batch_size, test, hello)
    try:
        _classify(context, arm, worker, handle, test, shape, kept)
        settings = worker.call("settings", BUILD_TIMEOUT_S, handle=handle)["settings"]
        digest, unreadable = _seen(kept, test)
        fields["inputs"] = {"sha256": digest, "source": test.name, "ring_size": kept.batches, "shape": list(shape)}
        if len(unreadable) == len(test.labels):
            raise LogitsError(f"none of the {len(unreadable)} images can be read; {unreadable[0]['name']} {unreadable[0]['reason']}")
        found = scored(kept, test.labels)
    except WorkerError as error:
        context.store.append(context.failure("accuracy", arm, error, **fields))
        return
    except LogitsError as error:
        context.store.append(context.record("accuracy", arm, "failed", str(error), **fields))
        return
    measurements = {"top1": found.top1, "images": len(test.labels)} | ({} if found.top5 is None else {"top5": found.top5})
    data = {
        "dataset": test.name,
        "dataset_sha256": test.sha256,
        "labels_sha256": hashlib.sha256(test.labels.tobytes()).hexdigest(),
        "preprocess": dict(test.preprocess),
        "views": test.views,
        "scores": str(kept.path.relative_to(context.folder)),
        "unreadable": unreadable,
        "predictions": list(found.predictions),
        "margins": list(found.margins),
        "oracle": None if oracle is None else {name: _plain(value) for name, value in dataclasses.asdict(oracle).items()},
    }
    software = hello["packages"]
    context.store.append(
        context.record("accuracy", arm, measurements=measurements, settings=settings, software=software, data=data, **fields)
    )


def embedded(about: Subject) -> TestSet:
    """The digits, for a model that takes them.

    Raises:
        NoInputError: it does not.
    """
    inputs.check_dataset(about.model, inputs.digits()[1])
    return test_set.digits()


def scores_of(context: Context, arm: Cell, batch_size: int, test: TestSet, hello: Mapping[str, Any]) -> Scores:
    """The file in the run's folder for the scores of an arm, with whatever it holds already."""
    about = context.subject(arm.model)
    head = {
        "cell": arm.key,
        "batch_size": batch_size,
        "weights_sha256": about.weights_sha256,
        "spec_sha256": about.spec_sha256,
        "dataset": test.name,
        "dataset_sha256": test.sha256,
        "preprocess": dict(test.preprocess),
        "views": test.views,
        "software": dict(hello["packages"]),
    }
    name = f"{arm.implementation}-{arm.mode}-{arm.model}-{arm.precision}-{about.weights_sha256[:12]}.jsonl"
    return Scores(context.folder / "scores" / name, head)


def _classify(context: Context, arm: Cell, worker: WorkerProcess, handle: str, test: TestSet, shape: tuple[int, ...], kept: Scores) -> None:
    """Add to ``kept`` the batches that are missing in it; ``shape`` is one of the network's, (N, C, H, W)."""
    size, count = shape[0], len(test.labels)
    own = f"{arm.implementation}-{arm.mode}-{arm.model}-{arm.precision}.safetensors"  # others may be classifying beside this one
    sent, out = context.scratch / f"images-{own}", context.scratch / f"logits-{own}"
    what = f"{test.name}, {arm.implementation} {arm.mode} {arm.model}"
    first = kept.batches * size
    if first:
        context.say(f"{min(first, count)} of {count} images were classified before the interrupt")
    context.count(what, min(first, count), count)
    with ThreadPoolExecutor(context.threads) as pool:
        ahead = _ahead(pool, test, first, size)
        while ahead:
            inputs_of, unreadable = _collect(ahead, test.views, shape)
            digests = tuple(hashlib.sha256(each.tobytes()).hexdigest() for each in inputs_of[: len(ahead)])
            save({"images": inputs_of.reshape(test.views, *shape)}, sent)
            readable = len(ahead)
            del inputs_of
            worker.send("classify", handle=handle, images=str(sent), out=str(out))
            first += size
            ahead = _ahead(pool, test, first, size)
            worker.receive(BUILD_TIMEOUT_S)
            logits = load_file(out)["logits"].reshape(size, test.views, -1)[:readable]
            scores = logits[:, 0] if test.views == 1 else probabilities(logits).mean(axis=1)
            if not np.isfinite(scores).all():
                raise LogitsError(f"the logits of {np.count_nonzero(~np.isfinite(scores).all(axis=1))} images are not finite")
            kept.append(Batch(scores, digests, unreadable))
            context.count(what, min(first, count), count)


def _ahead(pool: ThreadPoolExecutor, test: TestSet, first: int, size: int) -> list[Future[Images | str]]:
    """Begin to prepare a batch; what an image that cannot be read gives is the reason."""

    def one(index: int) -> Images | str:
        try:
            return test.prepare(index)
        except ImageError as error:
            return str(error)

    return [pool.submit(one, index) for index in range(first, min(first + size, len(test.labels)))]


def _collect(ahead: Sequence[Future[Images | str]], views: int, shape: tuple[int, ...]) -> tuple[Images, dict[int, str]]:
    """A batch (N, views, C, H, W), filled up with zeros, as unreadable images are; and the reasons of these by their places."""
    made = np.zeros((shape[0], views, *shape[1:]), np.float32)
    unreadable: dict[int, str] = {}
    for place, future in enumerate(ahead):
        found = future.result()
        if isinstance(found, str):
            unreadable[place] = found
        else:
            made[place] = found
    return made, unreadable


def _seen(kept: Scores, test: TestSet) -> tuple[str, list[dict[str, Any]]]:
    """One hash over the inputs of all images in order, and the images that could not be read, with their names and the reasons."""
    digest = hashlib.sha256()
    unreadable: list[dict[str, Any]] = []
    first = 0
    for batch in kept:
        digest.update("".join(batch.images_sha256).encode())
        unreadable += [
            {"image": first + place, "name": test.names[first + place], "reason": reason} for place, reason in batch.unreadable.items()
        ]
        first += len(batch.scores)
    return digest.hexdigest(), unreadable


@functools.cache
def _by_oracle(about: Subject, test: TestSet) -> Score | None:
    if macs(about.model) * len(test.labels) > ORACLE_MACS or test.views > 1:
        return None
    try:
        images = np.concatenate([test.prepare(index) for index in range(len(test.labels))])
    except ImageError:
        return None
    return score(forward.forward(about.folded_model, about.folded_weights, images), test.labels)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class Group:
    """Who classified the same images with the same network and weights: ``data`` of records by "implementation/mode".

    The oracle, if it was asked, is the last member.
    """

    model: str
    weights_sha256: str
    precision: str
    device: str
    dataset: str
    members: Mapping[str, Mapping[str, Any]]


_Key = tuple[str, str, str, str, str]


def groups(records: Sequence[Record]) -> list[Group]:
    """The records that hold predictions, in groups.

    Raises:
        DataError: two of a group saw other images.
    """
    found: dict[_Key, dict[str, Mapping[str, Any]]] = {}
    seen: dict[_Key, str | None] = {}
    for record in records:
        if record.status == "ok" and record.data is not None and record.model is not None:
            cell, data = record.cell, record.data
            key = (cell.model, record.model.weights_sha256, cell.precision, cell.device, str(data["dataset"]))
            inputs_sha256 = record.inputs.sha256 if record.inputs else None
            if seen.setdefault(key, inputs_sha256) != inputs_sha256:
                raise DataError(
                    f"{data['dataset']}: {cell.implementation} saw other images than {next(iter(found[key]))}: they changed on the disk; "
                    "--fresh classifies them again"
                )
            found.setdefault(key, {})[f"{cell.implementation}/{cell.mode}"] = data
    for members in found.values():
        if (oracle := next(iter(members.values()))["oracle"]) is not None:
            members[ORACLE] = oracle
    return [Group(*about, members) for about, members in found.items()]


def disagreements(members: Mapping[str, Mapping[str, Any]], labels: Sequence[int]) -> list[dict[str, Any]]:
    """Every two members of a group: on how many images their classes differ, which of these each alone has right, and McNemar's p.

    ``{"first", "second", "images", "only_first_right", "only_second_right", "p"}``
    """
    found: list[dict[str, Any]] = []
    for (one, mine), (other, theirs) in itertools.combinations(members.items(), 2):
        differ = [each for each in zip(mine["predictions"], theirs["predictions"], labels, strict=True) if each[0] != each[1]]
        first, second = (sum(each[place] == each[2] for each in differ) for place in (0, 1))
        found.append(
            {
                "first": one,
                "second": other,
                "images": len(differ),
                "only_first_right": first,
                "only_second_right": second,
                "p": statistics.mcnemar(first, second),
            }
        )
    return found


def flips(members: Mapping[str, Mapping[str, Any]], labels: Sequence[int]) -> list[dict[str, Any]]:
    """The images that not all of a group put in one class: ``{"image", "label", "predictions", "margins"}``, the latter two by name."""
    names = list(members)
    found: list[dict[str, Any]] = []
    for image, classes in enumerate(zip(*(members[name]["predictions"] for name in names), strict=True)):
        if len(set(classes)) > 1:
            predictions = dict(zip(names, classes, strict=True))
            margins = {name: members[name]["margins"][image] for name in names}
            found.append({"image": image, "label": labels[image], "predictions": predictions, "margins": margins})
    return found


def gap(flip: Mapping[str, Any]) -> float:
    """The largest sum of two implementations' margins that put the image into different classes."""
    own = [name for name in flip["predictions"] if name != ORACLE]
    sums = [
        flip["margins"][one] + flip["margins"][other]
        for one, other in itertools.combinations(own, 2)
        if flip["predictions"][one] != flip["predictions"][other]
    ]
    return max(sums, default=0.0)


def judged(context: Context, group: Group, found: Sequence[dict[str, Any]], test: TestSet) -> list[dict[str, Any]]:
    """Flips with the ``bound`` that their ``gap`` may not exceed if the certificates hold, and whether it is ``within``; else None.

    If A says a by a margin m and B says b by a margin n, then m + n is at most (A_a - A_b) + (B_b - B_a) = (A_a - B_a) - (A_b - B_b):
    four errors of logits, each at most ``RHO_MAX`` predicted deviations by tier E4, which is taken here for the one image.
    """
    bounds: dict[int, float] = {}
    if group.precision in JUDGED and test.views == 1:
        worst = sorted(found, key=gap, reverse=True)[:MOST_JUDGED]
        about = context.subject(group.model)
        arms = {name.partition("/")[0] for name in group.members if name != ORACLE}
        if worst:
            images = np.concatenate([test.prepare(flip["image"]) for flip in worst])
            given = {context.manifests[name].folds: about.given(context.manifests[name]) for name in sorted(arms)}
            envelopes = [reference(*network, images, group.precision, context.threads) for network in given.values()]
            deviation = np.max([np.sqrt(np.mean(each.deviation**2, axis=1)) for each in envelopes], axis=0)
            bounds = {flip["image"]: 4 * rounding.RHO_MAX * float(size) for flip, size in zip(worst, deviation, strict=True)}
    return [
        {**flip, "gap": gap(flip), "bound": bounds.get(flip["image"]), "within": _within(gap(flip), bounds.get(flip["image"]))}
        for flip in found
    ]


def _within(size: float, bound: float | None) -> bool | None:
    return None if bound is None else size <= bound
