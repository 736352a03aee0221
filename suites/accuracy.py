"""Accuracy on labelled images: each certified arm classifies the whole test set through the path that is timed.

A record keeps the class and the logit margin of every image, so that implementations can be compared image by image. The
float64 oracle classifies the same images, where that is cheap.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from impls import models
from impls.oracle import forward
from impls.spec import macs
from results.record import Cell, Record
from suites.equivalence.workers import Workers
from suites.harness import inputs
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, Context, Subject
from suites.harness.inputs import Dataset, Images
from suites.harness.process import WorkerError, WorkerProcess

ORACLE_MACS = 2e11
"""Multiply-accumulates that the oracle may spend on a test set: half a minute of NumPy on a core or two."""

ORACLE = "oracle"
"""How the oracle is called beside the implementations."""

TOP = 5


class LogitsError(ValueError):
    """Logits from which no class can be told; the message says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Score:
    """How a test set was classified.

    ``predictions`` are the classes of the largest logits, the first of equal ones; ``margins`` their distance to the next.
    ``top5`` is None where there are no more than five classes.
    """

    predictions: tuple[int, ...]
    margins: tuple[float, ...]
    top1: float
    top5: float | None


def test_set(dataset: str) -> Dataset:
    """The labelled images of this name.

    Raises:
        NoInputError: there is no such data set.
    """
    if dataset != "digits":
        raise inputs.NoInputError(f"there is no data set {dataset!r} (known: digits)")
    return inputs.digits()[1]


def batches(images: Images, size: int) -> Images:
    """Images (count, C, H, W) as batches (ceil(count / size), size, C, H, W); the last is filled up from the beginning."""
    count = -(-len(images) // size) * size
    return images[np.arange(count) % len(images)].reshape(-1, size, *images.shape[1:])


def score(logits: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> Score:
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
    right = ranked == labels[:, None]
    best = np.take_along_axis(rows, ranked[:, :2], axis=1)
    return Score(
        predictions=tuple(ranked[:, 0].tolist()),
        margins=tuple(float(f"{margin:.6g}") for margin in best[:, 0] - best[:, 1]),
        top1=float(right[:, 0].mean()),
        top5=float(right[:, :TOP].any(axis=1).mean()) if rows.shape[1] > TOP else None,
    )


def bring_weights(model: str) -> str:
    """What a row says where there are no trained weights: how to bring some, or that there are no labelled images for them."""
    missing = f"bring weights: {model} has none here that were trained"
    spec = models.get(model)
    if (spec.input_chw, spec.classes) != ((3, 32, 32), 10):
        return f"{missing}, nor are there labelled images for it: those that are embedded are for nets like cifar_resnet20"
    return f"{missing}; `levelfield accuracy --models {model} --weights FILE` takes yours"


def without_weights(context: Context, arm: Cell) -> Record:
    """The record of an arm whose model has no trained weights at hand."""
    return context.record("accuracy", arm, "skipped", bring_weights(arm.model), data={"dataset": None})


def run(context: Context, cells: Sequence[Cell], certificates: Mapping[Cell, Record]) -> None:
    """Classify the test set with every certified arm among ``cells``, in its largest batch, and store a record for each.

    An arm without trained weights gets a record that says to bring some. What the store holds is not classified again.
    """
    workers = Workers(context, "accuracy")
    try:
        for cell in largest(cells):
            about = context.subject(cell.model)
            assert cell.batch_size is not None
            if context.store.has(context.run.run_id, "accuracy", cell.certificate_cell, None):
                continue
            if about.dataset is None:
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
            of_process(context, cell, worker, hello, "accuracy", certificates[cell.certificate_cell].record_id)
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


def of_process(context: Context, cell: Cell, worker: WorkerProcess, hello: Mapping[str, Any], handle: str, certificate_id: str) -> None:
    """Classify the test set with a network that stands ready in a worker, and store the record, of a failure too.

    What the store holds is not classified again.
    """
    arm = cell.certificate_cell
    if context.store.has(context.run.run_id, "accuracy", arm, None):
        return
    about = context.subject(arm.model)
    if about.dataset is None:
        context.store.append(without_weights(context, arm))
        return
    assert cell.batch_size is not None
    dataset = test_set(about.dataset)
    inputs.check_dataset(about.model, dataset)
    images = batches(dataset.images, cell.batch_size)
    fields: dict[str, Any] = {
        "certificate_id": certificate_id,
        "model": about.as_record(arm.precision, None),
        "inputs": {
            "sha256": inputs.Inputs(dataset.name, {}, dataset.images).sha256,
            "source": dataset.name,
            "ring_size": len(images),
            "shape": list(images.shape[1:]),
        },
    }
    context.say(f"classifying {dataset.name} with {arm.implementation} {arm.mode} {arm.model} {arm.precision}")
    oracle = _by_oracle(about, dataset)
    own = f"{arm.implementation}-{arm.mode}-{arm.model}-{arm.precision}.safetensors"  # others may be classifying beside this one
    ring, out = context.scratch / f"dataset-{own}", context.scratch / f"classified-{own}"
    save({"images": images}, ring)
    try:
        settings = worker.call("put", BUILD_TIMEOUT_S, handle=handle, images=str(ring))["settings"]
        worker.call("outputs", BUILD_TIMEOUT_S, handle=handle, out=str(out))
        found = score(load_file(out)["logits"], dataset.labels)
    except WorkerError as error:
        context.store.append(context.failure("accuracy", arm, error, **fields))
        return
    except LogitsError as error:
        context.store.append(context.record("accuracy", arm, "failed", str(error), **fields))
        return
    measurements = {"top1": found.top1, "images": len(dataset.labels)} | ({} if found.top5 is None else {"top5": found.top5})
    data = {
        "dataset": dataset.name,
        "labels_sha256": hashlib.sha256(dataset.labels.tobytes()).hexdigest(),
        "predictions": list(found.predictions),
        "margins": list(found.margins),
        "oracle": None if oracle is None else {name: _plain(value) for name, value in dataclasses.asdict(oracle).items()},
    }
    software = hello["packages"]
    context.store.append(
        context.record("accuracy", arm, measurements=measurements, settings=settings, software=software, data=data, **fields)
    )


@functools.cache
def _by_oracle(about: Subject, dataset: Dataset) -> Score | None:
    if macs(about.model) * len(dataset.images) > ORACLE_MACS:
        return None
    return score(forward.forward(about.folded_model, about.folded_weights, dataset.images), dataset.labels)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class Group:
    """Who classified the same images with the same network and weights: ``data`` of records by "implementation/mode".

    The oracle, if it was asked, is the last member.
    """

    model: str
    precision: str
    device: str
    dataset: str
    members: Mapping[str, Mapping[str, Any]]


def groups(records: Sequence[Record]) -> list[Group]:
    """The records that hold predictions, in groups."""
    found: dict[tuple[str, str, str, str], dict[str, Mapping[str, Any]]] = {}
    for record in records:
        if record.status == "ok" and record.data is not None:
            cell, data = record.cell, record.data
            members = found.setdefault((cell.model, cell.precision, cell.device, str(data["dataset"])), {})
            members[f"{cell.implementation}/{cell.mode}"] = data
    for members in found.values():
        if (oracle := next(iter(members.values()))["oracle"]) is not None:
            members[ORACLE] = oracle
    return [Group(*about, members) for about, members in found.items()]


def disagreements(members: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For every two members of a group, on how many images their classes differ: ``{"first", "second", "images"}``."""
    return [
        {"first": one, "second": other, "images": sum(a != b for a, b in zip(mine["predictions"], theirs["predictions"], strict=True))}
        for (one, mine), (other, theirs) in itertools.combinations(members.items(), 2)
    ]


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
