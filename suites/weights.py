"""Weights in and out: a checkpoint of others becomes a weight file, and a weight file a checkpoint for others."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from impls import models
from impls.spec import ModelSpec, SpecError
from impls.weights import checkpoints, container, file
from impls.weights.checkpoints import names, public, state_dict
from impls.weights.checkpoints.names import Imported
from impls.weights.container import WeightFileError
from impls.weights.variant import epsilons, for_images_of
from suites.data import preprocess
from suites.data.preprocess import Preprocess
from suites.equivalence import doors, foreign, outputs
from suites.equivalence.diagnosis import agrees
from suites.harness.context import BUILD_TIMEOUT_S
from suites.harness.process import WorkerError

Say = Callable[[str], None]

FORMATS = ("torchvision", "onnx")


@dataclass(frozen=True, slots=True)
class Brought:
    """What became of a checkpoint: the network with the file's own constants, the weights' root hash, and what is known of the file."""

    model: ModelSpec
    sha256: str
    convention: str
    known: public.Public | None
    preprocess: str | None


def bring(path: Path, name: str, preset: str | None, out: Path, *, named: tuple[str, ...], threads: int, say: Say) -> Brought:
    """Write a checkpoint as the weight file of a model.

    Args:
        path: the checkpoint.
        name: of the model that was meant.
        preset: how images become inputs; None for what is published of a known file, else nothing is said of it. Where it crops
            to another size than the model's, the file is for images of that size.
        out: the weight file.
        named: values of ``--env``; ONNX files are read in ONNX Runtime's environment.
        threads: for ONNX Runtime and the oracle.
        say: told what is being done.

    Raises:
        WeightFileError: the checkpoint cannot be read, or is not the model's.
        ForeignError, DoorError, OutputsError: likewise, of an ONNX file.
        UnknownModelError, PreprocessError, EnvironmentBuildError.
    """
    model = models.get(name)
    if out.resolve() == path.resolve():
        raise WeightFileError(f"{path}: would be written over by what is imported from it: give another --out")
    sha256, md5 = checkpoints.sha256(path), checkpoints.md5(path)
    known = public.find(sha256, md5)
    if known is not None and models.get(known.model).body != model.body:
        raise WeightFileError(f"{path}: has the hash published of {known.file}, which is for {known.model}: --model {known.model}")
    preset = preset or (known.preprocess if known else None)
    pipeline = preprocess.chosen(preset) if preset else None
    if checkpoints.recognise(path) == "onnx":
        imported = _from_onnx(path, name, named, threads, say)
    else:
        found = checkpoints.read(path)
        imported = names.canonical(path, found.tensors, model, keras=found.format == "hdf5")
    own = _as_prepared(imported.model, pipeline, preset)
    root = file.save(
        out,
        own,
        imported.weights,
        source=f"{path.name}, {known.source if known else f'names of {imported.convention}'}",
        preprocess=pipeline.as_json() if pipeline else {},
        licence=known.licence if known else "unknown",
        source_sha256=sha256,
        source_md5=md5,
    )
    return Brought(own, root, imported.convention, known, preset)


def _as_prepared(model: ModelSpec, pipeline: Preprocess | None, preset: str | None) -> ModelSpec:
    """The model for images of the size that the preprocessing crops to."""
    if pipeline is None or pipeline.crop is None:
        return model
    try:
        return for_images_of(model, pipeline.crop, pipeline.crop)
    except SpecError as error:
        raise preprocess.PreprocessError(f"--preprocess {preset}: {error}") from None


def _from_onnx(path: Path, name: str, named: tuple[str, ...], threads: int, say: Say) -> Imported:
    """By the wiring of the operators, not by names; and held to the oracle, since tensors that fit do not tell strides and paddings."""
    found = doors.examine_onnx(path, name, named, threads, say)
    try:
        try:
            identified = foreign.identify(found.operators, found.arrays, name)
        except foreign.ForeignError as error:
            raise foreign.ForeignError(f"{error}; {_whose(found)}") from None
        model = foreign.own_constants(identified, found.operators)
        say(f"comparing what {path} computes with the oracle")
        if not agrees(model, identified.weights, found.images, {outputs.LOGITS: found.logits}, threads=threads):
            raise foreign.ForeignError(f"its tensors are those of {name}, what it computes is not: `levelfield diagnose --onnx` says why")
    except (foreign.ForeignError, outputs.OutputsError) as error:
        raise type(error)(f"{path}: {error}") from None
    return Imported(model, identified.weights, "ONNX")


def _whose(found: doors.Examined) -> str:
    try:
        nearest = foreign.identify(found.operators, found.arrays).model.name
    except foreign.ForeignError as error:
        return str(error)
    return f"its tensors are all those of {nearest}: --model {nearest}"


def give(path: Path, form: str, out: Path, *, named: tuple[str, ...], threads: int) -> str:
    """Write a weight file as a checkpoint for others, ``form`` of ``FORMATS``; what it is called there comes back.

    What is imported from it again is the same to the bit.

    Raises:
        WeightFileError: the weight file cannot be read, or the format has no network with these constants.
        DoorError: the ONNX file could not be written.
        EnvironmentBuildError, OSError.
    """
    loaded = file.load(path)
    with container.replaced(out) as temporary:
        if form == "torchvision":
            name = state_dict.twin(out, loaded.model)
            state_dict.save(temporary, loaded.model, loaded.weights)
            return f"torchvision's {name}"
        _check_epsilons(out, loaded.model)
        with tempfile.TemporaryDirectory() as folder, doors.worker_of("onnx", "fp32", named, threads, Path(folder)) as worker:
            try:
                worker.call("export", BUILD_TIMEOUT_S, weights=str(path.absolute()), out=str(temporary.absolute()))
            except WorkerError as error:
                raise doors.DoorError(f"{out}: {error}") from None
    return f"{loaded.model.name} in ONNX"


def _check_epsilons(out: Path, model: ModelSpec) -> None:
    """ONNX keeps an epsilon as a float32, which must tell the number that it was."""
    try:
        usual = epsilons(models.get(model.name))
    except models.UnknownModelError:
        usual = {}
    for layer, epsilon in epsilons(model).items():
        if foreign.through_float32(epsilon, usual.get(layer, epsilon)) != epsilon:
            raise WeightFileError(f"{out}: is not written: ONNX keeps {layer}'s epsilon of {epsilon} as {np.float32(epsilon)}")
