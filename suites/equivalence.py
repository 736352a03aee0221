"""The certificate: that an implementation, in one mode and precision, computes the function that the spec and weights define.

Tiers (each fails at zero elements compared, and at any missing, extra, misshapen or non-finite tap):

E0  identity   the weights read back from the framework are, byte for byte, the ones in the file as this precision holds them
E1  lattice    on a probe where every format computes the same integers, every tap and the mode's logits are equal bit for bit
E2  meaning    in float64 every tap and the mode's logits agree with the oracle to 1e-10
E4  rounding   at every timed shape the mode's logits lie within 1.5 times the noise that rounding theory predicts

Taps come from unfused execution, logits from the very mode that is timed, with batch norm folded where it is timed so. Of an
implementation that shows no taps (``taps = false`` in its manifest) the logits alone are compared, and the certificate says so.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from impls.implementation import Manifest
from impls.oracle import forward, lattice, rounding
from impls.oracle.lattice import Lattice
from impls.oracle.rounding import Envelope
from impls.spec import ModelSpec
from impls.weights import file, folding
from results.record import Cell, Record
from suites.harness import inputs
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, START_TIMEOUT_S, Context, Subject, subject
from suites.harness.environments import cache_root
from suites.harness.process import WorkerError, WorkerProcess
from suites.harness.reference import code_sha256, held, oracle_sha256, reference

Arrays = Mapping[str, npt.NDArray[Any]]

MEANING_BOUND = 1e-10
"""Six decades above float64 rounding in these nets (5e-14) and, in float64, two below the smallest known fault (4e-8)."""

CODE = ("impls/**/*.py", "impls/**/*.toml", "suites/zoo/**/*.py", "suites/equivalence.py", "suites/harness/worker.py")
"""The code that a certificate depends on: an implementation may use another's, so all of them count."""

TIERS = ("E0", "E1", "E2", "E4")

LATTICE_SEED = 1
PROBE_BATCH = 2
PROBE_SIZE = 64
"""Images of E1 and E2 for ImageNet nets, in pixels: even at every stride, and the pooled area is a power of two."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier's answer. ``worst`` is the worst tap and its error in the tier's unit; the first that fails is in ``reason``."""

    passed: bool
    elements: int
    bound: float
    worst_tap: str
    worst_error: float | None
    reason: str | None


def _failed(reason: str, bound: float, tap: str = "", elements: int = 0) -> Tier:
    return Tier(False, elements, bound, tap, None, reason)


def _finite(number: float) -> float | None:
    """The number, or None where JSON has none for it."""
    return number if math.isfinite(number) else None


def compare(expected: Arrays, found: Arrays, bound: float, error: Callable[[npt.NDArray[Any], npt.NDArray[Any]], float]) -> Tier:
    """Compare taps in the order of ``expected``; ``error`` gives one number a tap, which must not exceed ``bound``."""
    if missing := [name for name in expected if name not in found]:
        return _failed(f"{missing[0]}: the tap is missing", bound, missing[0])
    if extra := [name for name in found if name not in expected]:
        return _failed(f"{extra[0]}: there is no such tap in the spec", bound, extra[0])
    elements, worst_tap, worst, reason = 0, "", -1.0, None
    for name, right in expected.items():
        given = found[name]
        if given.shape != right.shape:
            return _failed(f"{name}: shape {given.shape}, not {right.shape}", bound, name, elements)
        if right.size == 0:
            return _failed(f"{name}: has no elements", bound, name, elements)
        if not (np.isfinite(given).all() and np.isfinite(right).all()):
            return _failed(f"{name}: holds values that are not finite", bound, name, elements)
        here = error(given, right)
        here = math.inf if math.isnan(here) else here
        elements += right.size
        if here > worst:
            worst_tap, worst = name, here
        if here > bound and reason is None:
            reason = f"{name}: the first tap that differs, by {here:.3g} (bound {bound:.3g})"
    if elements == 0:
        return _failed("nothing was compared", bound)
    return Tier(reason is None, elements, bound, worst_tap, _finite(worst), reason)


def exact(expected: Arrays, found: Arrays) -> Tier:
    """E1: the number of elements that are not equal must be 0 at every tap."""
    return compare(expected, found, 0.0, lambda given, right: float(np.count_nonzero(given.astype(np.float64) != right)))


def meaning(expected: Arrays, found: Arrays) -> Tier:
    """E2: largest difference over the tap's rms, at most ``MEANING_BOUND``; taps of zeros must be equal."""

    def error(given: npt.NDArray[Any], right: npt.NDArray[Any]) -> float:
        difference = float(np.max(np.abs(given.astype(np.float64) - right), initial=0.0))
        scale = float(np.sqrt(np.mean(right**2)))
        return difference / scale if scale else (0.0 if difference == 0 else np.inf)

    return compare(expected, found, MEANING_BOUND, error)


def identity(expected: Arrays, found: Mapping[str, Mapping[str, Any]]) -> Tier:
    """E0: type, shape and SHA-256 of every tensor that the framework holds, against the tensors it was given."""
    if missing := [name for name in expected if name not in found]:
        return _failed(f"{missing[0]}: the framework does not hold it", 0.0, missing[0])
    if extra := [name for name in found if name not in expected]:
        return _failed(f"{extra[0]}: the framework holds it, the file does not", 0.0, extra[0])
    for name, right in expected.items():
        given = found[name]
        if (given["dtype"], tuple(given["shape"])) != (str(right.dtype), right.shape):
            return _failed(f"{name}: held as {given['dtype']} {tuple(given['shape'])}, not {right.dtype} {right.shape}", 0.0, name)
        if given["sha256"] != hashlib.sha256(np.ascontiguousarray(right).tobytes()).hexdigest():
            return _failed(f"{name}: its bytes are not the file's", 0.0, name)
    elements = sum(right.size for right in expected.values())
    return Tier(True, elements, 0.0, "", 0.0, None) if elements else _failed("nothing was compared", 0.0)


def rounding_noise(logits: npt.NDArray[Any], predicted: Envelope, precision: str) -> Tier:
    """E4: rho = rms error over rms predicted noise, within the precision's bounds."""
    if logits.shape != predicted.logits.shape:
        return _failed(f"logits: shape {logits.shape}, not {predicted.logits.shape}", rounding.RHO_MAX, "logits")
    if logits.size == 0:
        return _failed("nothing was compared", rounding.RHO_MAX)
    if not np.isfinite(logits).all():
        return _failed("logits: hold values that are not finite", rounding.RHO_MAX, "logits")
    rho = rounding.rho(logits, predicted)
    passed = rounding.plausible(rho, precision)
    low = rounding.RHO_MIN.get(precision, 0.0)
    reason = None if passed else f"logits: {rho:.3g} times the noise that {precision} explains (must be {low:g} to {rounding.RHO_MAX:g})"
    return Tier(passed, logits.size, rounding.RHO_MAX, "logits", _finite(rho), reason)


def all_of(tiers: Sequence[Tier]) -> Tier:
    """Several comparisons of one tier as one: the first failure, else the worst."""
    for tier in tiers:
        if not tier.passed:
            return tier
    if not tiers:
        return _failed("nothing was compared", 0.0)
    worst = max(tiers, key=lambda tier: tier.worst_error or 0.0)
    return dataclasses.replace(worst, elements=sum(tier.elements for tier in tiers))


class Workers:
    """One live worker per implementation and precision, started when first asked for and again after it died.

    Only the one that was asked for last runs; the others are stopped. ``purpose`` begins the names of their logs.
    """

    def __init__(self, context: Context, purpose: str = "certify") -> None:
        self.context = context
        self.purpose = purpose
        self._live: dict[tuple[str, str], tuple[WorkerProcess, dict[str, Any]]] = {}

    def get(self, cell: Cell, precision: str) -> tuple[WorkerProcess, dict[str, Any]]:
        """The worker and what it said of itself at its start."""
        key = (cell.implementation, precision)
        if key in self._live and not self._live[key][0].alive:
            del self._live[key]
        for other, (worker, _) in self._live.items():
            if other != key:
                worker.pause()
        if key not in self._live:
            worker = self.context.launch(cell, precision, purpose=self.purpose)
            try:
                self._live[key] = (worker, worker.call("start", START_TIMEOUT_S))
            except WorkerError:
                worker.end()
                raise
        self._live[key][0].resume()
        return self._live[key]

    def end(self) -> None:
        """End them all."""
        for worker, _ in self._live.values():
            worker.end()


@dataclass(frozen=True, slots=True)
class Examination:
    """What an arm is examined with."""

    context: Context
    workers: Workers
    cell: Cell
    subject: Subject
    batch_sizes: tuple[int, ...]

    def run(self) -> tuple[dict[str, Tier], dict[str, object]]:
        """All tiers, and the settings that the framework reported; a tier that fails ends the examination."""
        tiers: dict[str, Tier] = {}
        settings: dict[str, object] = {}
        tiers["E2"] = self._meaning()
        if tiers["E2"].passed:
            tiers["E1"] = self._lattice()
        if all(tier.passed for tier in tiers.values()):
            tiers["E0"], tiers["E4"], settings = self._timed_shapes()
        return dict(sorted(tiers.items())), settings

    @property
    def _manifest(self) -> Manifest:
        return self.context.manifests[self.cell.implementation]

    def _size(self) -> tuple[int, int]:
        height, width = self.subject.model.input_chw[1:]
        return min(height, PROBE_SIZE), min(width, PROBE_SIZE)

    def _observe(self, precision: str, weights: Path, images: npt.NDArray[np.float32]) -> tuple[Arrays, npt.NDArray[Any]]:
        """Taps of one batch, unfused and unfolded (none if it shows none), and its logits through the mode, as it is timed."""
        worker, _ = self.workers.get(self.cell, precision)
        scratch = self.context.scratch
        batch, ring, out = scratch / "batch.safetensors", scratch / "ring.safetensors", scratch / "out.safetensors"
        save({"images": images}, batch)
        save({"images": images[None]}, ring)
        arguments = {"weights": str(weights), "mode": self.cell.mode, "input_shape": list(images.shape)}
        found: Arrays = {}
        if self._manifest.taps:
            worker.call("prepare", BUILD_TIMEOUT_S, handle="taps", fold=False, **arguments)
            worker.call("taps", BUILD_TIMEOUT_S, handle="taps", images=str(batch), out=str(out))
            found = load_file(out)
            worker.call("release", CALL_TIMEOUT_S, handle="taps")
        worker.call("prepare", BUILD_TIMEOUT_S, handle="mode", fold=self._manifest.folds, **arguments)
        worker.call("put", BUILD_TIMEOUT_S, handle="mode", images=str(ring))
        worker.call("outputs", CALL_TIMEOUT_S, handle="mode", out=str(out))
        logits = load_file(out)["logits"][0]
        worker.call("release", CALL_TIMEOUT_S, handle="mode")
        return found, logits

    def _lattice(self) -> Tier:
        cell = self.cell
        probe = _lattice_probe(self.subject.model, cell.precision, *self._size())
        path = self.context.scratch / f"lattice-{cell.model}-{cell.precision}.safetensors"
        if not path.is_file():
            file.save(
                path, self.subject.model, probe.given.weights, source=f"lattice, seed {LATTICE_SEED}", preprocess={}, licence="CC0-1.0"
            )
        taps, logits = self._observe(cell.precision, path, probe.given.images)
        expected = probe.folded if self._manifest.folds else probe.given
        tiers = [exact(probe.given.expected, taps)] if self._manifest.taps else []
        return all_of([*tiers, exact({"logits": expected.expected[list(expected.expected)[-1]]}, {"logits": logits})])

    def _meaning(self) -> Tier:
        about = self.subject
        images = _probe_images(about, *self._size())
        answer = _meaning_of(about.model.name, self.context.weights.get(about.model.name), *self._size())
        taps, logits = self._observe("fp64", about.path, images)
        tiers = [meaning(answer.taps, taps)] if self._manifest.taps else []
        return all_of([*tiers, meaning({"logits": answer.folded if self._manifest.folds else answer.given}, {"logits": logits})])

    def _timed_shapes(self) -> tuple[Tier, Tier, dict[str, object]]:
        cell, about = self.cell, self.subject
        worker, _ = self.workers.get(cell, cell.precision)
        model, weights = about.given(self._manifest)
        predicted = reference(model, weights, about.inputs.pool, cell.precision, self.context.threads)
        identities, noises = [], []
        settings: dict[str, object] = {}
        for size in self.batch_sizes:
            members = about.inputs.members(size)
            ring, out = self.context.scratch / "ring.safetensors", self.context.scratch / "out.safetensors"
            images = about.inputs.ring(size)
            save({"images": images}, ring)
            worker.call(
                "prepare",
                BUILD_TIMEOUT_S,
                handle="timed",
                weights=str(about.path),
                mode=cell.mode,
                input_shape=list(images.shape[1:]),
                fold=self._manifest.folds,
            )
            settings = worker.call("put", BUILD_TIMEOUT_S, handle="timed", images=str(ring))["settings"]
            worker.call("outputs", CALL_TIMEOUT_S, handle="timed", out=str(out))
            identities.append(identity(held(weights, cell.precision), worker.call("weights", CALL_TIMEOUT_S, handle="timed")))
            worker.call("release", CALL_TIMEOUT_S, handle="timed")
            noises.append(check_ring(load_file(out)["logits"], members, predicted, cell.precision))
        return all_of(identities), all_of(noises), settings


def check_ring(logits: npt.NDArray[Any], members: npt.NDArray[np.intp], predicted: Envelope, precision: str) -> Tier:
    """E4 for the outputs of a whole ring, (ring, N, classes); ``members`` says which image of the pool stands where."""
    expected = Envelope(predicted.logits[members], predicted.deviation[members])
    return rounding_noise(logits, expected, precision)


@dataclass(frozen=True, slots=True)
class _LatticeProbe:
    """The lattice as the weight file holds it, and with its batch norms folded."""

    given: Lattice
    folded: Lattice


@functools.lru_cache(maxsize=2)
def _lattice_probe(model: ModelSpec, precision: str, height: int, width: int) -> _LatticeProbe:
    """The probe of E1, the same for all implementations and modes."""
    given = lattice.lattice(model, precision, batch=PROBE_BATCH, height=height, width=width, seed=LATTICE_SEED)
    return _LatticeProbe(given, lattice.prove(*folding.fold_batch_norm(model, given.weights), given.images, precision))


@dataclass(frozen=True, slots=True)
class _Meaning:
    """The oracle's taps, and its logits for the weights as they are and folded."""

    taps: Arrays
    given: npt.NDArray[np.float64]
    folded: npt.NDArray[np.float64]


@functools.lru_cache(maxsize=2)
def _meaning_of(model: str, brought: Path | None, height: int, width: int) -> _Meaning:
    """The oracle's answer of E2, the same for all implementations and modes."""
    about = subject(model, brought)
    images = _probe_images(about, height, width)
    taps = forward.taps(about.model, about.weights, images)
    return _Meaning(taps, taps[list(taps)[-1]], forward.forward(about.folded_model, about.folded_weights, images))


def _probe_images(about: Subject, height: int, width: int) -> npt.NDArray[np.float32]:
    """Real images of E2's size."""
    full = about.inputs.pool.shape[2:]
    pool = about.inputs.pool if full == (height, width) else inputs.photographs(height, width).pool
    return pool[:PROBE_BATCH]


def certify(context: Context, cells: Sequence[Cell], batch_sizes: tuple[int, ...]) -> dict[Cell, Record]:
    """A certificate for every arm (a cell without batch size, scope, scenario and threads), stored as records.

    An arm that cannot be examined gets a record too: skipped, failed or not certified, with the reason. Certificates are kept
    in the cache folder under a hash of all they depend on, so an unchanged arm is not examined twice.
    """
    workers = Workers(context)
    certificates: dict[Cell, Record] = {}
    try:
        for number, cell in enumerate(cells, start=1):
            context.say(f"certifying {cell.implementation} {cell.mode} {cell.model} {cell.precision} ({number} of {len(cells)})")
            certificate = _certify_one(context, workers, cell, batch_sizes)
            context.store.append(certificate)
            certificates[cell] = certificate
    finally:
        workers.end()
    return certificates


def _certify_one(context: Context, workers: Workers, cell: Cell, batch_sizes: tuple[int, ...]) -> Record:
    about = context.subject(cell.model)
    shown = about.as_record(cell.precision, None)
    try:
        python, packages = context.software(cell.implementation)
        key = _key(context, cell, about, batch_sizes, python, packages)
        kept = cache_root() / "certificates" / f"{key}.json"
        document = _read_kept(kept, key)
        if document is None:
            tiers, settings = Examination(context, workers, cell, about, batch_sizes).run()
            document = {"key": key, "tiers": {name: dataclasses.asdict(tier) for name, tier in tiers.items()}, "settings": settings}
            if _is_certificate(document["tiers"]):
                _keep(kept, document)
    except WorkerError as error:
        return context.failure("equivalence", cell, error, model=shown)
    except lattice.LatticeError as error:
        return context.record("equivalence", cell, "not_certified", f"E1: no exact probe: {error}", model=shown)
    failed = [f"{name}: {tier['reason']}" for name, tier in document["tiers"].items() if not tier["passed"]]
    data = {
        "key": key,
        "tiers": document["tiers"],
        "compared": "every tap and the logits" if context.manifests[cell.implementation].taps else "the logits",
        "elements_compared": sum(tier["elements"] for tier in document["tiers"].values()),
        "batch_sizes": list(batch_sizes),
        "oracle_sha256": oracle_sha256(),
        "inputs_sha256": about.inputs.sha256,
    }
    return context.record(
        "equivalence",
        cell,
        "not_certified" if failed else "ok",
        failed[0] if failed else None,
        model=shown,
        settings=document["settings"],
        software=dict(packages),
        data=data,
    )


def _key(context: Context, cell: Cell, about: Subject, batch_sizes: tuple[int, ...], python: str, packages: Mapping[str, str]) -> str:
    """A hash of all that a certificate depends on: cell, weights, images, code, packages, machine, threads."""
    content = [
        cell.key,
        about.spec_sha256,
        about.weights_sha256,
        about.inputs.sha256,
        sorted(batch_sizes),
        context.threads,
        oracle_sha256(),
        code_sha256(*CODE),
        sorted(packages.items()),
        python,
        context.run.machine["machine_id"],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_certificate(tiers: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether every tier was examined and passed."""
    return set(tiers) == set(TIERS) and all(tier["passed"] is True and tier["elements"] > 0 for tier in tiers.values())


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _keep(path: Path, document: Mapping[str, Any]) -> None:
    """Write a certificate with the digest of its content; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps({"sha256": _digest(document), "document": document}), encoding="utf-8")
    unfinished.replace(path)


def _read_kept(path: Path, key: str) -> dict[str, Any] | None:
    """A kept certificate; None where there is none or it is not the one it should be."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        document: dict[str, Any] = kept["document"]
        is_ours = kept["sha256"] == _digest(document) and document["key"] == key and _is_certificate(document["tiers"])
        return document if is_ours else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
