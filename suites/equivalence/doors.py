"""The three ways to a diagnosis: somebody's files, an ONNX file, implementations of this project."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from impls import models
from impls.implementation import Manifest, find
from impls.oracle.forward import check
from impls.spec import ModelSpec, Shape, tap_shapes
from impls.weights import file, folding
from suites.equivalence import foreign, outputs
from suites.equivalence.diagnosis import Diagnosis, diagnose
from suites.equivalence.probes import PROBE_SIZE, probe_size
from suites.harness import inputs, npz
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, START_TIMEOUT_S, subject
from suites.harness.environments import Interpreters, cache_root, parse_named
from suites.harness.process import Launch, WorkerError, WorkerProcess

Images = npt.NDArray[np.float32]
Say = Callable[[str], None]

IMAGES = "images"

SIDES = (32, PROBE_SIZE, 224, 288)
"""Sizes that an ONNX file may be fixed to; 288 is the one at which timm tests its ResNets."""

MOST_IMAGES = 1024

DEVICE = "cpu"


class DoorError(ValueError):
    """A diagnosis that cannot begin; the message says what to mend."""


def embedded(model: ModelSpec) -> Images:
    """The project's own images for a model, (8, 3, H, W) float32: crops of photographs, normalised, at most 64 x 64 if it takes that.

    Photographs for CIFAR nets too, since the digits that these are timed on are grey, and would hide the order of the channels.

    Raises:
        NoInputError: the model takes another number of channels.
    """
    if model.input_chw[0] != 3:
        raise inputs.NoInputError(f"{model.name} takes {model.input_chw[0]} channels; the embedded images have 3")
    return inputs.photographs(*probe_size(model)).pool


def of_files(weights: Path, arrays: Path, name: str | None, precision: str, threads: int, say: Say) -> Diagnosis:
    """Judge an .npz file: taps or "logits", and "images" (N, C, H, W) float32 unless they are the embedded ones.

    Raises:
        WeightFileError, UnknownModelError, NpzError, OutputsError, SpecError, NoInputError.
    """
    loaded = file.load(weights, models.get(name) if name else None)
    model = loaded.model

    def check_shapes(found: Mapping[str, Shape]) -> None:
        shape = found[IMAGES] if IMAGES in found else embedded(model).shape
        if len(shape) != 4 or shape[1] != model.input_chw[0] or not 0 < shape[0] <= MOST_IMAGES:
            raise DoorError(f"{IMAGES} have the shape {shape}, not (N, {model.input_chw[0]}, H, W) with N of 1 to {MOST_IMAGES}")
        if max(shape[2:]) > 2 * max(model.input_chw[1:]):
            raise DoorError(f"{IMAGES} of {shape[2]} x {shape[3]} pixels are more than twice as large as {model.name} is for")
        outputs.check_shapes(tap_shapes(model, shape[0], *shape[2:]), {key: each for key, each in found.items() if key != IMAGES})

    found = npz.load(arrays, check_shapes)
    images = _images_of(arrays, found.pop(IMAGES)) if IMAGES in found else embedded(model)
    try:
        return diagnose(model, loaded.weights, images, found, precision, threads=threads, say=say)
    except outputs.OutputsError as error:
        raise type(error)(f"{arrays}: {error}") from None


def _images_of(path: Path, images: npt.NDArray[Any]) -> Images:
    if images.dtype != np.float32:
        raise DoorError(f"{path}: {IMAGES} are of type {images.dtype}; give float32")
    if not np.isfinite(images).all():
        raise DoorError(f"{path}: {IMAGES} hold values that are NaN or infinite")
    return np.ascontiguousarray(images)


def write_inputs(weights: Path, out: Path, name: str | None) -> Shape:
    """Write the embedded images of a weight file's model as an .npz file for somebody's own port; their shape."""
    images = embedded(file.load(weights, models.get(name) if name else None).model)
    with out.open("wb") as stream:  # np.savez would add a suffix to a path
        np.savez(stream, images=images)
    return images.shape


def of_onnx(
    path: Path, weights: Path | None, name: str | None, precision: str, named: tuple[str, ...], threads: int, say: Say
) -> tuple[str, Diagnosis]:
    """Judge what an ONNX file computes, in ONNX Runtime, with the weights that it holds, or those of ``weights``; and its model's name.

    Raises:
        DoorError: the file cannot be read or run.
        ForeignError: its weights are no known network's.
        WeightFileError, UnknownModelError, EnvironmentBuildError.
    """
    found = examine_onnx(path, name, named, threads, say)
    try:
        identified = foreign.identify(found.operators, found.arrays, name)
        model, tensors = identified.model, identified.weights
        if weights is not None:
            loaded = file.load(weights, models.get(name) if name else None)
            folded = folding.fold_batch_norm(loaded.model, loaded.weights)
            model, tensors = (loaded.model, loaded.weights) if model.body == loaded.model.body else folded
        check(model, tensors, found.images)
        given = {outputs.LOGITS: found.logits}
        return model.name, diagnose(model, tensors, found.images, given, precision, threads=threads, say=say)
    except (foreign.ForeignError, outputs.OutputsError) as error:
        raise type(error)(f"{path}: {error}") from None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """What an ONNX file holds and computes: see ``impls.onnx.foreign.examine``."""

    operators: Sequence[Mapping[str, Any]]
    arrays: Mapping[str, npt.NDArray[Any]]
    images: Images
    logits: npt.NDArray[Any]


def examine_onnx(path: Path, name: str | None, named: tuple[str, ...], threads: int, say: Say) -> Examined:
    """Read an ONNX file and run it on the embedded images, in ONNX Runtime's environment.

    Raises:
        DoorError: the file cannot be read or run.
        UnknownModelError, EnvironmentBuildError.
    """
    sizes = {f"{side}x{side}": inputs.photographs(side, side).pool for side in SIDES}
    height, width = embedded(models.get(name)).shape[2:] if name else (PROBE_SIZE, PROBE_SIZE)
    with tempfile.TemporaryDirectory() as folder, worker_of("onnx", "fp32", named, threads, Path(folder)) as worker:
        given, out = Path(folder) / "images.safetensors", Path(folder) / "out.safetensors"
        save(sizes, given)
        say(f"reading and running {path}")
        try:
            size = f"{height}x{width}"
            reply = worker.call("examine", CALL_TIMEOUT_S, path=str(path.absolute()), images=str(given), size=size, out=str(out))
        except WorkerError as error:
            raise DoorError(f"{path}: {error}") from None
        arrays = load_file(out)
    logits, images = arrays.pop(outputs.LOGITS), arrays.pop(IMAGES)
    return Examined(reply["operators"], arrays, images, logits)


def of_arms(name: str, arms: Sequence[str], precision: str, named: tuple[str, ...], threads: int, say: Say) -> list[tuple[str, Diagnosis]]:
    """Judge implementations, each named IMPLEMENTATION/MODE: their taps, unfused, and then the logits of the mode.

    Raises:
        DoorError: an unknown implementation or mode, or a worker that failed.
        UnknownModelError, NoInputError, EnvironmentBuildError.
    """
    manifests = find()
    about = subject(name)
    images = embedded(about.model)
    answers = []
    for arm in arms:
        implementation, _, mode = arm.partition("/")
        if implementation not in manifests or mode not in manifests[implementation].modes:
            known = ", ".join(f"{key}/{each}" for key, manifest in manifests.items() for each in manifest.modes)
            raise DoorError(f"there is no {arm!r}; known: {known}")
        manifest = manifests[implementation]
        if precision not in manifest.devices[DEVICE].precisions:
            raise DoorError(f"{arm} {precision}: {manifest.devices[DEVICE].cannot.get(precision, 'it does not have this precision')}")
        say(f"running {arm}")
        try:
            with tempfile.TemporaryDirectory() as folder, worker_of(implementation, precision, named, threads, Path(folder)) as worker:
                taps, logits = _observe(worker, manifest, mode, about.path, images, Path(folder))
        except WorkerError as error:
            raise DoorError(f"{arm}: {error}") from None
        answer = None
        if manifest.taps:
            answer = diagnose(about.model, about.weights, images, taps, precision, threads=threads, say=say)
        if answer is None or answer.verdict == "equal":
            # The taps have decided where logits alone have no power.
            last = diagnose(*about.given(manifest), images, {outputs.LOGITS: logits}, precision, threads=threads, say=say)
            if answer is None or last.verdict == "different":
                answer = last
            elif last.verdict == "equal":
                answer = dataclasses.replace(answer, sentence=f"{answer.sentence}, and so do the logits of the mode")
        answers.append((arm, answer))
    return answers


def _observe(
    worker: WorkerProcess, manifest: Manifest, mode: str, weights: Path, images: Images, folder: Path
) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[Any]]:
    """Taps, none if it shows none, and the mode's logits."""
    batch, out = folder / "batch.safetensors", folder / "out.safetensors"
    arguments = {"weights": str(weights), "mode": mode, "input_shape": list(images.shape)}
    taps: dict[str, npt.NDArray[Any]] = {}
    if manifest.taps:
        save({IMAGES: images}, batch)
        worker.call("prepare", BUILD_TIMEOUT_S, handle="taps", fold=False, **arguments)
        worker.call("taps", BUILD_TIMEOUT_S, handle="taps", images=str(batch), out=str(out))
        taps = load_file(out)
        worker.call("release", CALL_TIMEOUT_S, handle="taps")
    save({IMAGES: images[None]}, batch)
    worker.call("prepare", BUILD_TIMEOUT_S, handle="mode", fold=manifest.folds, **arguments)
    worker.call("put", BUILD_TIMEOUT_S, handle="mode", images=str(batch))
    worker.call("outputs", CALL_TIMEOUT_S, handle="mode", out=str(out))
    return taps, load_file(out)["logits"][0]


@contextlib.contextmanager
def worker_of(name: str, precision: str, named: tuple[str, ...], threads: int, folder: Path) -> Iterator[WorkerProcess]:
    """A started worker of one implementation, ended on the way out."""
    manifests = find()
    python = Interpreters(manifests, [name], DEVICE, parse_named(named, manifests))[name]
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(cache_root() / "torchinductor"), "OMP_NUM_THREADS": str(threads)}
    launch = Launch(python, manifests[name].package, DEVICE, precision, threads, False, folder / "log", variables)
    with WorkerProcess(launch) as worker:
        worker.call("start", START_TIMEOUT_S)
        yield worker
