"""The examination of one arm: what its worker is asked in each tier, and what the oracle says to it.

Taps come from unfused execution, logits from the very mode that is timed, with batch norm folded where it is timed so. Of an
implementation that shows no taps (``taps = false`` in its manifest) the logits alone are compared.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from impls.implementation import Manifest
from impls.oracle import forward, lattice
from impls.oracle.lattice import Lattice
from impls.spec import ModelSpec
from impls.weights import file, folding
from results.record import Cell
from suites.equivalence.tiers import Arrays, Tier, all_of, check_ring, exact, identity, meaning
from suites.equivalence.workers import Workers
from suites.harness import inputs
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, Context, Subject, subject
from suites.harness.reference import held, reference

LATTICE_SEED = 1
PROBE_BATCH = 2
PROBE_SIZE = 64
"""Images of E1 and E2 for ImageNet nets, in pixels: even at every stride, and the pooled area is a power of two."""


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
