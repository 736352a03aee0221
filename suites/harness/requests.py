"""What a worker is asked to make a cell ready to be timed: a network or a training, and its ring of inputs."""

from __future__ import annotations

import dataclasses
from typing import Any

from impls.weights import file
from results.record import Cell
from suites.equivalence.training import SGD, TRAJECTORY_RATE, in_training
from suites.harness import inputs
from suites.harness.context import Context, Subject

Request = tuple[str, dict[str, Any]]
"""An operation of ``suites.harness.worker`` and its arguments."""

LEARNING_RATE = TRAJECTORY_RATE
"""Of every timed step, as in the certificate's free run: so short that thousands of steps on one ring stay finite."""


def subject(context: Context, cell: Cell) -> Subject:
    """What is timed: of training the network that is trained where the model is asked for, in a weight file of its own."""
    about = context.subject(cell.model)
    trained = in_training(about) if cell.scenario == "training" else about
    if trained is about:
        return about
    path = context.scratch / f"{cell.model}-{trained.weights_sha256[:12]}.safetensors"
    if not path.is_file():
        file.save(path, trained.model, trained.weights, source=about.source, preprocess=about.inputs.preprocess, licence="CC0-1.0")
    return dataclasses.replace(trained, path=path)


def prepare(context: Context, cell: Cell, handle: str) -> Request:
    """Load the weights and build: folded where the implementation takes it so, or to be trained by the certificate's ``SGD``."""
    about = subject(context, cell)
    shape = [cell.batch_size, *about.inputs.pool.shape[1:]]
    arguments = {"handle": handle, "weights": str(about.path), "mode": cell.mode, "input_shape": shape}
    if cell.scenario == "training":
        return "prepare_steps", {**arguments, "sgd": dataclasses.asdict(SGD), "learning_rate": LEARNING_RATE}
    return "prepare", {**arguments, "fold": context.manifests[cell.implementation].folds}


def put(context: Context, cell: Cell, handle: str) -> Request:
    """Take the ring, with labels where it is for training, and run the first of it."""
    assert cell.batch_size is not None
    about = subject(context, cell)
    classes = about.model.classes if cell.scenario == "training" else None
    ring = inputs.ring_file(about.inputs, cell.batch_size, context.scratch, classes)
    return "put", {"handle": handle, "images": str(ring)}
