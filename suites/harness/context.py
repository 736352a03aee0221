"""What every suite of one run shares: interpreters, models with their weights, the store, and how records are made."""

from __future__ import annotations

import dataclasses
import functools
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from impls import models
from impls.implementation import ROOT, Manifest
from impls.precision import PRECISIONS
from impls.spec import ModelSpec, bytes_moved, macs, parameter_count
from impls.weights import file, folding, synthesis, trained
from results import provenance, record
from results.record import Cell, Record
from results.store import Run, Store
from suites.data.preprocess import PreprocessError
from suites.harness import gpu, inputs
from suites.harness.environments import EnvironmentBuildError, Interpreters, cache_root, pip_line, software
from suites.harness.noise import Card
from suites.harness.process import Launch, WorkerError, WorkerProcess

PROTOCOL_VERSION = "2"
"""Of the measurement: records of different protocols are never compared."""

SEED = 0
"""Of synthesised weights, where no trained ones are at hand."""

START_TIMEOUT_S = 300.0
BUILD_TIMEOUT_S = 1800.0
CALL_TIMEOUT_S = 600.0

STATUS_OF_ERROR: Mapping[str, str] = {
    "cannot": "skipped",
    "memory": "out_of_memory",
    "missing": "failed",
    "hung": "timed_out",
    "failed": "failed",
    "died": "failed",
    "nonsense": "failed",
}


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model with its weights, as the file holds them and folded, and the images it is timed on.

    ``dataset`` names the labelled data that the weights were trained for, None for synthesised weights.
    """

    model: ModelSpec
    path: Path
    weights: folding.Weights
    folded_model: ModelSpec
    folded_weights: folding.Weights
    weights_sha256: str
    spec_sha256: str
    dataset: str | None
    source: str
    inputs: inputs.Inputs

    def given(self, manifest: Manifest) -> tuple[ModelSpec, folding.Weights]:
        """The network and weights that an implementation is given to run: folded unless it takes them as they are."""
        return (self.folded_model, self.folded_weights) if manifest.folds else (self.model, self.weights)

    def as_record(self, precision: str, batch_size: int | None) -> dict[str, object]:
        """The ``model`` field of a record."""
        moved = bytes_moved(self.model, PRECISIONS[precision].storage_bytes, batch_size) if batch_size else None
        return {
            "weights_sha256": self.weights_sha256,
            "spec_sha256": self.spec_sha256,
            "parameters": parameter_count(self.model),
            "macs": macs(self.model),
            "bytes_moved": moved,
        }


@functools.lru_cache(maxsize=4)  # of VGG's there are 0.6 GB each
def subject(name: str, brought: Path | None = None) -> Subject:
    """The model of this name with the weights ``brought``, else those that the project ships for it, else synthesised ones.

    Raises:
        WeightFileError: the file cannot be used for this model.
        PreprocessError: nor what it says of its images.
    """
    model = models.get(name)
    given = brought or trained.path(name)
    if given is None:
        path = cache_root() / "weights" / f"{name}-seed{SEED}-{file.spec_sha256(model)[:12]}.safetensors"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            weights, prepared = synthesis.synthesize(model, SEED), inputs.for_model(model).preprocess
            file.save(path, model, weights, source=f"synthesised, seed {SEED}", preprocess=prepared, licence="CC0-1.0")
    else:
        path = given
    loaded = file.load(path, model)
    model = loaded.model  # with the file's own constants
    folded_model, folded_weights = folding.fold_batch_norm(model, loaded.weights)
    return Subject(
        model=model,
        path=path.absolute(),  # workers run in a folder of their own
        weights=loaded.weights,
        folded_model=folded_model,
        folded_weights=folded_weights,
        weights_sha256=file.tensor_sha256(loaded.weights),
        spec_sha256=file.spec_sha256(model),
        dataset="digits" if given is not None and _prepared_as_digits(loaded) else None,
        source=loaded.metadata["source"],
        inputs=_images(loaded, path),
    )


def _images(loaded: file.WeightFile, path: Path) -> inputs.Inputs:
    try:
        return inputs.for_model(loaded.model, json.loads(loaded.metadata["preprocess"]))
    except PreprocessError as error:
        raise PreprocessError(f"{path}: {error}; `levelfield weights import --preprocess` writes one that can") from None


def _prepared_as_digits(loaded: file.WeightFile) -> bool:
    """Whether these weights take the digits: their size, their classes, and pixels prepared as theirs."""
    fits = (loaded.model.input_chw, loaded.model.classes) == ((3, 32, 32), 10)
    return fits and json.loads(loaded.metadata["preprocess"]) == dict(inputs.DIGITS_PREPROCESS)


@dataclass(frozen=True, slots=True)
class Seeds:
    """What is randomised in one process, and recorded: no layout luck is shared by all processes (Mytkowicz et al. 2009)."""

    index: int
    order_seed: int
    hash_seed: int = field(default_factory=lambda: secrets.randbelow(2**32))
    pad_bytes: int = field(default_factory=lambda: secrets.randbelow(4097))

    def as_record(self) -> dict[str, object]:
        """The ``process`` field of a record."""
        return {**dataclasses.asdict(self), "pid": None}


def compiler_caches(folder: Path) -> dict[str, str]:
    """The variables that put all that compilers and drivers keep between processes below ``folder``.

    TorchInductor and Triton (PyTorch's "Compile Time Caching Configuration"), the CUDA driver's code for cards that a package has none for
    (CUDA C++ Programming Guide, "CUDA Environment Variables"). JAX, TensorFlow XLA and ONNX Runtime keep nothing unless they are told to.
    """
    names = {"TORCHINDUCTOR_CACHE_DIR": "torchinductor", "TRITON_CACHE_DIR": "triton", "CUDA_CACHE_PATH": "cuda"}
    return {name: str(folder / own) for name, own in names.items()}


def uncounted(what: str, done: int, total: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True)
class Context:
    """One run. ``say`` gets a line for people about what happens now; ``weights`` are the user's own, by model.

    ``count`` is told what is being worked through, how much of it is done, and how much there is.

    ``card`` is the GPU that workers see, None where nothing runs on one.
    """

    manifests: Mapping[str, Manifest]
    interpreters: Interpreters
    store: Store
    run: Run
    threads: int
    smoke: bool
    say: Callable[[str], None]
    root: Path = ROOT
    weights: Mapping[str, Path] = field(default_factory=dict)
    card: Card | None = None
    count: Callable[[str, int, int], None] = uncounted

    def subject(self, model: str) -> Subject:
        """The model with the weights that this run is about."""
        return subject(model, self.weights.get(model))

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.store.root / self.run.run_id

    @property
    def scratch(self) -> Path:
        """Where arrays pass between processes; emptied when the run ends."""
        path = self.folder / "scratch"
        path.mkdir(exist_ok=True)
        return path

    def scratch_of(self, implementation: str) -> Path:
        """A folder of it that belongs to one implementation's workers."""
        path = self.scratch / implementation
        path.mkdir(exist_ok=True)
        return path

    @property
    def is_shared(self) -> bool:
        """Whether somebody else was on the GPU when the run began."""
        found = self.run.machine.get("gpu")
        return isinstance(found, Mapping) and gpu.is_shared(found)

    def python(self, implementation: str) -> Path:
        """The interpreter of an implementation's workers; waits for one that is being built.

        Raises:
            WorkerError: there is no environment for it.
        """
        try:
            return self.interpreters[implementation]
        except EnvironmentBuildError as error:
            raise WorkerError("failed", str(error)) from None

    def software(self, implementation: str) -> tuple[str, Mapping[str, str]]:
        """Python's version and the packages of an implementation's environment.

        Raises:
            WorkerError: there is no environment for it.
        """
        try:
            return software(self.python(implementation))
        except EnvironmentBuildError as error:
            raise WorkerError("failed", str(error)) from None

    def launch(self, cell: Cell, precision: str, seeds: Seeds | None = None, *, purpose: str, caches: Path | None = None) -> WorkerProcess:
        """Start (not yet ask) a worker for a cell's implementation. Its compiler's caches lie in ``caches``, else where they always do.

        Raises:
            WorkerError: there is no environment for it, or it cannot be started.
        """
        name = cell.implementation
        python = self.python(name)
        package = self.manifests[name].package
        variables = {"TORCHINDUCTOR_CACHE_DIR": str(cache_root() / "torchinductor"), "OMP_NUM_THREADS": str(self.threads)}
        if caches is not None:
            variables |= compiler_caches(caches)
        if self.card is not None:
            variables["CUDA_VISIBLE_DEVICES"] = gpu.uuid(self.card)
        if seeds is None:  # it measures no time, and another works beside it, whose core a thread that waits must not take
            variables |= {"OMP_WAIT_POLICY": "PASSIVE"}
        else:
            variables |= {"PYTHONHASHSEED": str(seeds.hash_seed), "LEVELFIELD_PADDING": "x" * seeds.pad_bytes}
        log = self.folder / "logs" / f"{purpose}-{name}-{cell.mode}-{precision}-{'x' if seeds is None else seeds.index}.log"
        return WorkerProcess(Launch(python, package, cell.device, precision, self.threads, False, log, variables, self.root))

    def record(self, suite: str, cell: Cell, status: str = "ok", reason: str | None = None, **fields: object) -> Record:
        """A record of this run; what is not given is null or empty."""
        document: dict[str, object] = {
            "protocol_version": PROTOCOL_VERSION,
            "run_id": self.run.run_id,
            "created_utc": record.utc_now(),
            "suite": suite,
            "cell": {name: getattr(cell, name) for name in Cell.__slots__},
            "status": status,
            "reason": reason,
            "measurement": not self.smoke,
            "process": None,
            "certificate_id": None,
            "settings": {},
            "model": None,
            "inputs": None,
            "software": {},
            "code": self.run.details["code"],
            "machine_id": self.run.machine["machine_id"],
            "env_vars": provenance.environment(),
            "timer": None,
            "samples": None,
            "measurements": {},
            "data": None,
            "log_tail": None,
        }
        return record.build({**document, **fields})

    def failure(self, suite: str, cell: Cell, error: WorkerError, **fields: object) -> Record:
        """The record of a worker's failure."""
        tail = [provenance.anonymous(line) for line in error.log_tail]
        reason = str(error)
        if error.kind == "missing":
            device = self.manifests[cell.implementation].devices[cell.device]
            reason += f"; to mend it: {pip_line(self.interpreters[cell.implementation], device)}"
        return self.record(suite, cell, STATUS_OF_ERROR[error.kind], reason, log_tail=tail or None, **fields)
