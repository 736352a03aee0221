"""The certificate: that an implementation, in one mode and precision, computes the function that the spec and weights define.

Of inference (each tier fails at zero elements compared, and at any missing, extra, misshapen or non-finite tap):

E0  identity   the weights read back from the framework are, byte for byte, the ones in the file as this precision holds them
E1  lattice    on a probe where every format computes the same integers, every tap and the mode's logits are equal bit for bit
E2  meaning    in float64 every tap and the mode's logits agree with the oracle to 1e-10
E3  local      every layer, on the implementation's own inputs, rounds as the precision allows (``impls/oracle/local.py``)
E4  rounding   at every timed shape the mode's logits lie within 2.5 times the noise that rounding theory predicts

Taps come from unfused execution, logits from the very mode that is timed, with batch norm folded where it is timed so. Of an
implementation that shows no taps (``taps = false`` in its manifest) the logits alone are compared and E3 is excused; the
certificate says so. The tiers of training are told in ``suites.equivalence.training``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from impls import models
from impls.implementation import ROOT, CannotError, Sgd, check_training
from impls.oracle import lattice
from impls.oracle.local import EDGES
from impls.oracle.training import State
from impls.spec import ModelSpec, parameter_count, tap_shapes
from results import certificate as documents
from results.certificate import Certificate, Probe, Purpose
from results.record import Cell, Record, Suite, utc_now
from results.schema import RecordError, encode
from suites.equivalence import probes, training
from suites.equivalence.examination import Examination, forget
from suites.equivalence.tiers import Tier
from suites.equivalence.trainer import Batch, LiveTrainer
from suites.equivalence.training import TrainingExamination
from suites.equivalence.workers import LIVE, Workers
from suites.harness.closure import closure_sha256, implementation_sha256
from suites.harness.context import Context, Subject
from suites.harness.environments import cache_root
from suites.harness.process import WorkerError
from suites.harness.reference import code_sha256, oracle_sha256

JUDGES: Mapping[Purpose, tuple[str, ...]] = {
    "inference": ("suites.equivalence.examination", "suites.harness.worker"),
    "training": ("suites.equivalence.training", "suites.equivalence.trainer", "suites.harness.worker"),
}
"""The modules that examine; a certificate depends on all that they import, the oracle with it."""

LARGE_PARAMETERS = 60_000_000
"""From which on one implementation is examined at a time: each process holds its 0.2 GB of weights, VGG's 0.6, several times."""

MIDDLING_PARAMETERS = 20_000_000
"""From which on an implementation's workers end when it is through with a precision: a stopped one of ResNet-50 keeps 0.4 to 0.9 GB."""

LARGE_TRAINED = 20_000_000
"""The same for training, where a free run is held against eight runs of the oracle, whose weights and velocities in float64 are 128 bytes a
parameter, and against eight states of a sound one, 64 bytes."""

LARGE_TAPS = 50_000_000
"""Elements of the probe's taps from which on the same holds: they are 0.4 GB in float64. CIFAR's ResNet-1202 has 80 million."""

Arm = tuple[str, str, str]
"""Implementation, mode and model."""

SUITES: Mapping[Purpose, Suite] = {"inference": "equivalence", "training": "training_equivalence"}
"""The records that certificates are stored as."""


def certificates_for(
    context: Context, cells: Sequence[Cell], batch_sizes: tuple[int, ...], purpose: Purpose = "inference", *, thorough: bool = False
) -> dict[Cell, Record]:
    """A certificate for every arm (a cell without batch size, scope, scenario and threads), stored as records and documents.

    ``thorough`` ones of inference are made on more shapes and inputs (``suites.equivalence.probes``).

    An arm that cannot be examined gets a record too: skipped, failed or not certified, with the reason. Certificates are kept
    in the cache folder under a hash of all they depend on, so an unchanged arm is not examined twice. Two implementations are
    examined at a time, for most of it is starting and compiling on one core (one on a GPU, and one, whose workers end before the next
    one's start, where a network ``is_large``), and all of one model and precision before the next: they share the oracle's answers, which
    are then forgotten.
    """
    groups: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.precision), {}).setdefault(cell.implementation, []).append(cell)
    certificates: dict[Cell, Record] = {}
    meanings: dict[Arm, Tier] = {}
    staffs = {cell.implementation: Workers(context) for cell in cells}
    stopped = threading.Event()
    # What two compilers chose by timing kernels beside each other would lie in their caches when processes are timed.
    on_card = any(cell.device == "cuda" for cell in cells)

    def certify(arms: Sequence[Cell]) -> None:
        workers = staffs[arms[0].implementation]
        for cell in arms:
            what = f"{cell.implementation} {cell.mode} {cell.model} {cell.precision}"
            context.say(f"certifying {'training of ' if purpose == 'training' else ''}{what} ({len(certificates) + 1} of {len(cells)})")
            record = _certify_one(context, workers, cell, batch_sizes, purpose, meanings, thorough=thorough)
            if stopped.is_set():  # what failed then failed because its worker was ended
                return
            context.store.append(record)
            certificates[cell] = record
        if workers.limit == 1 or parameter_count(models.get(arms[0].model)) >= MIDDLING_PARAMETERS:
            workers.dismiss()

    one, two = ThreadPoolExecutor(1), ThreadPoolExecutor(2)
    try:
        for (model, _), arms in groups.items():
            large = is_large(models.get(model), purpose)
            for workers in staffs.values():
                workers.limit = 1 if large else LIVE
                if large:
                    workers.dismiss()
            for _ in (one if large or on_card else two).map(certify, arms.values()):
                pass
            forget()
    except BaseException:  # an interrupt must not wait for what is under way
        stopped.set()
        raise
    finally:
        for workers in staffs.values():
            workers.end()
        for pool in (one, two):
            pool.shutdown(wait=False, cancel_futures=True)
    return {cell: certificates[cell] for cell in cells}


def is_large(model: ModelSpec, purpose: Purpose) -> bool:
    """Whether a model is examined in one implementation at a time: its weights, or all its taps, are large."""
    limit = LARGE_TRAINED if purpose == "training" else LARGE_PARAMETERS
    shapes = tap_shapes(model, probes.PROBE_BATCH, *probes.probe_size(model))
    return parameter_count(model) >= limit or sum(map(math.prod, shapes.values())) >= LARGE_TAPS


def _certify_one(
    context: Context,
    workers: Workers,
    cell: Cell,
    batch_sizes: tuple[int, ...],
    purpose: Purpose = "inference",
    meanings: dict[Arm, Tier] | None = None,
    *,
    thorough: bool = False,
) -> Record:
    """``meanings`` holds E2, which no precision changes, and gets that of this cell."""
    meanings = {} if meanings is None else meanings
    about, manifest, suite = context.subject(cell.model), context.manifests[cell.implementation], SUITES[purpose]
    if purpose == "training":
        about = training.in_training(about)
    shown = about.as_record(cell.precision, None)
    if purpose == "training" and not manifest.trains:
        return context.record(suite, cell, "skipped", f"{manifest.title} has no training", model=shown)
    asked = probes.asked(about.model, batch_sizes, purpose, thorough=thorough)
    try:
        if purpose == "training":
            check_training(about.model, cell.precision, asked[0].shape)
        python, packages = context.software(cell.implementation)
        key = _key(context, cell, about, asked, python, packages, purpose)
        kept = cache_root() / "certificates" / f"{key}.json"
        certificate = _read_kept(kept, key)
        if certificate is None:
            certificate = _examine(context, workers, cell, about, asked, purpose, thorough, key, python, packages, meanings)
            if certificate.passed:
                documents.save(kept, certificate)
    except CannotError as error:
        return context.record(suite, cell, "skipped", str(error), model=shown)
    except WorkerError as error:
        return context.failure(suite, cell, error, model=shown)
    except lattice.LatticeError as error:
        return context.record(suite, cell, "not_certified", f"E1: no exact probe: {error}", model=shown)
    # With the key, for a run may hold several of one arm: of each of an ensemble's weight files, or of two revisions.
    name = f"{purpose}-{cell.implementation}-{cell.mode}-{cell.model}-{cell.precision}-{cell.device}-{key[:12]}.json"
    documents.save(context.folder / "certificates" / name, certificate)
    return context.record(
        suite,
        cell,
        "ok" if certificate.passed else "not_certified",
        certificate.reason,
        model=shown,
        settings=dict(certificate.settings),
        software=dict(packages),
        data={
            "key": key,
            "document": name,
            "tiers": {name: dataclasses.asdict(tier) for name, tier in certificate.tiers.items()},
            "excused": dict(certificate.excused),
            "compared": certificate.compared,
            "elements_compared": sum(tier.elements for tier in certificate.tiers.values()),
            "thorough": certificate.thorough,
            "probes": encode(certificate.probes),
            "oracle_sha256": certificate.sha256["oracle"],
            "inputs_sha256": certificate.sha256["inputs"],
        },
    )


def _examine(
    context: Context,
    workers: Workers,
    cell: Cell,
    about: Subject,
    asked: tuple[Probe, ...],
    purpose: Purpose,
    thorough: bool,
    key: str,
    python: str,
    packages: Mapping[str, str],
    meanings: dict[Arm, Tier],
) -> Certificate:
    """The certificate of an arm, whatever it says."""
    arm = (cell.implementation, cell.mode, cell.model)
    taps = context.manifests[cell.implementation].taps
    settings: Mapping[str, object]
    excused: dict[str, str] = {}
    tiers: Mapping[str, Tier]
    if purpose == "inference":
        tiers, settings = Examination(context, workers, cell, about, asked).run(meanings.get(arm))
        compared = "every tap and the logits" if taps else "the logits"
        excused = {} if taps else {"E3": "it shows no intermediate outputs"}
    else:
        tiers = _training(context, workers, cell, about).run(meanings.get(arm))
        settings = training.settings(context.subject(cell.model).model)
        compared = "taps, cotangents, gradients, masks, running statistics, parameters and momentum buffers"
    if "E2" in tiers:
        meanings[arm] = tiers["E2"]
    return Certificate(
        schema_version=documents.SCHEMA_VERSION,
        purpose=purpose,
        key=key,
        cell=cell,
        created_utc=utc_now(),
        tiers={
            name: documents.Tier(**{field.name: getattr(tier, field.name) for field in dataclasses.fields(documents.Tier)})
            for name, tier in tiers.items()
        },
        excused=excused,
        layers=tuple(documents.Layer(**dataclasses.asdict(tap)) for tier in tiers.values() for tap in tier.taps),
        edges=EDGES,
        compared=compared,
        thorough=thorough,
        probes=asked,
        threads=context.threads,
        machine_id=str(context.run.machine["machine_id"]),
        python=python,
        software=dict(packages),
        settings=settings,
        sha256={
            "spec": about.spec_sha256,
            "weights": about.weights_sha256,
            "inputs": about.inputs.sha256,
            "oracle": oracle_sha256(),
            **_code(context, cell, purpose),
        },
    )


def _training(context: Context, workers: Workers, cell: Cell, about: Subject) -> TrainingExamination:
    def trainer(precision: str, model: ModelSpec, state: State, sgd: Sgd, batch: Batch) -> LiveTrainer:
        worker, _ = workers.get(cell, precision)
        return LiveTrainer(worker, context.scratch_of(cell.implementation), model, state, sgd, cell.mode, batch.images.shape)

    return TrainingExamination(about, cell.precision, trainer)


def _key(
    context: Context,
    cell: Cell,
    about: Subject,
    asked: tuple[Probe, ...],
    python: str,
    packages: Mapping[str, str],
    purpose: Purpose = "inference",
) -> str:
    """A hash of all that a certificate depends on: purpose, cell, weights, images and probes, code, packages, machine, threads."""
    content = [
        purpose,
        cell.key,
        about.spec_sha256,
        about.weights_sha256,
        about.inputs.sha256,
        [dataclasses.astuple(probe) for probe in asked],
        context.threads,
        _code(context, cell, purpose),
        sorted(packages.items()),
        python,
        context.run.machine["machine_id"],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _code(context: Context, cell: Cell, purpose: Purpose) -> dict[str, str]:
    """Hashes of the code that judges, which is this checkout's, and of the implementation's, which is that of the examined revision."""
    own = code_sha256("suites/equivalence/certificate.py", root=ROOT)
    return {
        "code": hashlib.sha256((own + closure_sha256((ROOT,), *JUDGES[purpose])).encode()).hexdigest(),
        "implementation": implementation_sha256((context.root, ROOT), context.manifests[cell.implementation], cell.device),
    }


def _read_kept(path: Path, key: str) -> Certificate | None:
    """A kept certificate; None where there is none, or it is damaged, another's or did not pass."""
    try:
        certificate = documents.load(path)
    except (OSError, RecordError):
        return None
    return certificate if certificate.key == key and certificate.passed else None
