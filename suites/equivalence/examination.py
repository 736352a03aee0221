"""The examination of one arm: what its worker is asked in each tier, and what the oracle says to it.

Taps come from unfused execution, logits from the very mode that is timed, with batch norm folded where it is timed so. Of an
implementation that shows no taps (``taps = false`` in its manifest) the logits alone are compared, and there is no E3.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from impls.implementation import Manifest
from impls.oracle import forward, lattice, local
from impls.oracle.lattice import Lattice
from impls.spec import ModelSpec
from impls.weights import file, folding
from results.record import Cell
from suites.equivalence.tiers import Arrays, Tier, all_of, check_ring, exact, identity, local_rounding, meaning
from suites.equivalence.workers import Workers
from suites.harness import inputs
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, Context, Subject, subject
from suites.harness.reference import held, reference

LATTICE_SEED = 1
PROBE_BATCH = 2
PROBE_SIZE = 64
"""Images of E1, E2 and E3 for ImageNet nets, in pixels: even at every stride, and the pooled area is a power of two."""


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
        if self._manifest.taps and all(tier.passed for tier in tiers.values()):
            tiers["E3"] = self._local_rounding()
        if all(tier.passed for tier in tiers.values()):
            tiers["E0"], tiers["E4"], settings = self._timed_shapes()
            if tiers["E4"].note is not None and "E3" not in tiers:
                tiers["E4"] = replace(tiers["E4"], passed=False, reason="no tier judges its rounding: no power, and it shows no taps")
        return dict(sorted(tiers.items())), settings

    @property
    def _scratch(self) -> Path:
        """Another implementation may be examined beside this one."""
        return self.context.scratch_of(self.cell.implementation)

    @property
    def _manifest(self) -> Manifest:
        return self.context.manifests[self.cell.implementation]

    def _size(self) -> tuple[int, int]:
        return probe_size(self.subject.model)

    def _observe(self, precision: str, weights: Path, images: npt.NDArray[np.float32]) -> tuple[Arrays, npt.NDArray[Any]]:
        """Taps of one batch (none if it shows none), and its logits through the mode, as it is timed."""
        found = load_file(self._taps(precision, weights, images)[0]) if self._manifest.taps else {}
        worker, _ = self.workers.get(self.cell, precision)
        ring, out = self._scratch / "ring.safetensors", self._scratch / "out.safetensors"
        save({"images": images[None]}, ring)
        worker.call("prepare", BUILD_TIMEOUT_S, handle="mode", fold=self._manifest.folds, **self._build(weights, images))
        worker.call("put", BUILD_TIMEOUT_S, handle="mode", images=str(ring))
        worker.call("outputs", CALL_TIMEOUT_S, handle="mode", out=str(out))
        logits = load_file(out)["logits"][0]
        worker.call("release", CALL_TIMEOUT_S, handle="mode")
        return found, logits

    def _taps(self, precision: str, weights: Path, images: npt.NDArray[np.float32]) -> tuple[Path, Mapping[str, Any]]:
        """The file of the taps of one batch, unfused and unfolded, and the settings that the network reported."""
        worker, _ = self.workers.get(self.cell, precision)
        batch, out = self._scratch / "batch.safetensors", self._scratch / "taps.safetensors"
        save({"images": images}, batch)
        made = worker.call("prepare", BUILD_TIMEOUT_S, handle="taps", fold=False, **self._build(weights, images))
        worker.call("taps", BUILD_TIMEOUT_S, handle="taps", images=str(batch), out=str(out))
        worker.call("release", CALL_TIMEOUT_S, handle="taps")
        return out, made["settings"]

    def _build(self, weights: Path, images: npt.NDArray[np.float32]) -> dict[str, object]:
        return {"weights": str(weights), "mode": self.cell.mode, "input_shape": list(images.shape)}

    def _lattice(self) -> Tier:
        cell = self.cell
        probe = _lattice_probe(self.subject.model, cell.precision, *self._size())
        path = self._scratch / f"lattice-{cell.model}-{cell.precision}.safetensors"
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
        images = probe_images(about, *self._size())
        answer = _meaning_of(about.model.name, self.context.weights.get(about.model.name), *self._size())
        taps, logits = self._observe("fp64", about.path, images)
        tiers = [meaning(answer.taps, taps)] if self._manifest.taps else []
        return all_of([*tiers, meaning({"logits": answer.folded if self._manifest.folds else answer.given}, {"logits": logits})])

    def _local_rounding(self) -> Tier:
        about, precision = self.subject, self.cell.precision
        size = self._size()
        path, settings = self._taps(precision, about.path, probe_images(about, *size))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        brought = self.context.weights.get(about.model.name)
        return _local_rounding_of(about.model.name, brought, *size, precision, settings.get("epsilon") == "float32", path, digest)

    def _timed_shapes(self) -> tuple[Tier, Tier, dict[str, object]]:
        cell, about = self.cell, self.subject
        worker, _ = self.workers.get(cell, cell.precision)
        model, weights = about.given(self._manifest)
        predicted = reference(model, weights, about.inputs.pool, cell.precision, self.context.threads)
        identities, noises = [], []
        settings: dict[str, object] = {}
        for size in self.batch_sizes:
            members = about.inputs.members(size)
            ring, out = self._scratch / "ring.safetensors", self._scratch / "out.safetensors"
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
    images = probe_images(about, height, width)
    taps = forward.taps(about.model, about.weights, images)
    return _Meaning(taps, taps[list(taps)[-1]], forward.forward(about.folded_model, about.folded_weights, images))


@functools.lru_cache(maxsize=8)
def _local_rounding_of(
    model: str, brought: Path | None, height: int, width: int, precision: str, single_epsilon: bool, taps: Path, digest: str
) -> Tier:
    """The oracle's answer of E3; the modes of one implementation have the same taps, so it is asked once for the same ``digest``."""
    about = subject(model, brought)
    network = local.with_single_epsilon(about.model) if single_epsilon else about.model
    images = held({"images": probe_images(about, height, width)}, precision)["images"]
    return local_rounding(network, held(about.weights, precision), images, load_file(taps), precision)


def probe_size(model: ModelSpec) -> tuple[int, int]:
    """Height and width of the images of E1, E2 and E3."""
    height, width = model.input_chw[1:]
    return min(height, PROBE_SIZE), min(width, PROBE_SIZE)


def probe_images(about: Subject, height: int, width: int) -> npt.NDArray[np.float32]:
    """PROBE_BATCH real images."""
    full = about.inputs.pool.shape[2:]
    pool = about.inputs.pool if full == (height, width) else inputs.photographs(height, width).pool
    return pool[:PROBE_BATCH]
