"""The examination of one arm: what its worker is asked in each tier, and what the oracle says to it.

Taps come from unfused execution, logits from the very mode that is timed, with batch norm folded where it is timed so. Of an
implementation that shows no taps (``taps = false`` in its manifest) the logits alone are compared, and there is no E3.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from impls.implementation import Manifest
from impls.oracle import forward, lattice, local, rounding
from impls.oracle.lattice import Lattice
from impls.oracle.rounding import Envelope
from impls.spec import ModelSpec, Shape
from impls.weights import file, folding
from results.certificate import Probe
from results.record import Cell
from suites.equivalence import probes
from suites.equivalence.tiers import (
    MEANING_BOUND,
    Arrays,
    Tier,
    all_of,
    check_ring,
    exact,
    identity,
    local_rounding,
    meaning,
    meaning_of_layers,
)
from suites.equivalence.workers import Workers
from suites.harness import inputs
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, Context, Subject, subject
from suites.harness.reference import held, reference

LATTICE_SEED = 1


@dataclass(frozen=True, slots=True)
class Examination:
    """What an arm is examined with; ``probes`` are the images that each tier asks about, the ordinary ones first."""

    context: Context
    workers: Workers
    cell: Cell
    subject: Subject
    probes: tuple[Probe, ...]

    def run(self, meaning: Tier | None = None) -> tuple[dict[str, Tier], dict[str, object]]:
        """All tiers, and the settings that the framework reported; a tier that fails ends the examination.

        ``meaning`` is E2, if it is known of this mode in another precision: it is asked in float64 in all of them.
        """
        tiers: dict[str, Tier] = {}
        settings: dict[str, object] = {}
        identities: list[Tier] = []

        def timed(probe: Probe) -> Tier:
            identity, noise, reported = self._timed(probe)
            identities.append(identity)
            settings.update(reported)
            return noise

        tiers["E2"] = meaning or self._over("E2", self._meaning)
        if tiers["E2"].passed:
            tiers["E1"] = self._over("E1", self._lattice)
        if self._manifest.taps and all(tier.passed for tier in tiers.values()):
            tiers["E3"] = self._over("E3", self._local_rounding)
        if all(tier.passed for tier in tiers.values()):
            tiers["E4"] = self._over("E4", timed)
            tiers["E0"] = all_of(identities)
            if tiers["E4"].note is not None and "E3" not in tiers:
                tiers["E4"] = replace(tiers["E4"], passed=False, reason="no tier judges its rounding: no power, and it shows no taps")
        return dict(sorted(tiers.items())), settings

    def _over(self, name: str, ask: Callable[[Probe], Tier]) -> Tier:
        """A tier asked about each of its probes; the first that fails ends it, and its reason says which, but for the first of all."""
        answers: list[Tier] = []
        for probe in self.probes:
            if probe.tier != name:
                continue
            answers.append(answer := ask(probe))
            if not answer.passed:
                batch, _, height, width = probe.shape
                where = f" ({batch} {probe.images} of {height}x{width})" if len(answers) > 1 else ""
                return replace(answer, reason=f"{answer.reason}{where}")
        return all_of(answers)

    @property
    def _scratch(self) -> Path:
        """Another implementation may be examined beside this one."""
        return self.context.scratch_of(self.cell.implementation)

    @property
    def _manifest(self) -> Manifest:
        return self.context.manifests[self.cell.implementation]

    def _observe(
        self, precision: str, weights: Path, images: npt.NDArray[np.float32]
    ) -> tuple[Arrays, npt.NDArray[Any], Mapping[str, Any]]:
        """Taps of one batch (none if it shows none), its logits through the mode, as it is timed, and the mode's settings."""
        found = load_file(self._taps(precision, weights, images)[0]) if self._manifest.taps else {}
        worker, _ = self.workers.get(self.cell, precision)
        ring, out = self._scratch / "ring.safetensors", self._scratch / "out.safetensors"
        save({"images": images[None]}, ring)
        made = worker.call("prepare", BUILD_TIMEOUT_S, handle="mode", fold=self._manifest.folds, **self._build(weights, images))
        worker.call("put", BUILD_TIMEOUT_S, handle="mode", images=str(ring))
        worker.call("outputs", CALL_TIMEOUT_S, handle="mode", out=str(out))
        logits = load_file(out)["logits"][0]
        worker.call("release", CALL_TIMEOUT_S, handle="mode")
        return found, logits, made["settings"]

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

    def _lattice(self, probe: Probe) -> Tier:
        cell, digest = self.cell, hashlib.sha256(repr(probe.shape).encode()).hexdigest()[:8]
        model = self.subject.model
        made = _lattice_probe(model, cell.precision, probe.shape)
        path = self._scratch / f"lattice-{model.name}-{cell.precision}-{digest}.safetensors"
        if not path.is_file():
            file.save(path, model, made.given.weights, source=f"lattice, seed {LATTICE_SEED}", preprocess={}, licence="CC0-1.0")
        taps, logits, _ = self._observe(cell.precision, path, made.given.images)
        expected = made.folded if self._manifest.folds else _last(made.given.expected)
        tiers = [exact(made.given.expected, taps)] if self._manifest.taps else []
        return all_of([*tiers, exact({"logits": expected}, {"logits": logits})])

    def _meaning(self, probe: Probe) -> Tier:
        about = self.subject
        images = probes.real(about.inputs, *probe.shape[2:])[: probe.shape[0]]
        taps, logits, settings = self._observe("fp64", about.path, images)
        single = settings.get("epsilon") == "float32"
        answer = _meaning_of(about.model.name, self._brought, probe.shape, single)
        tiers = [meaning(answer.taps, taps)] if self._manifest.taps else []
        tiers.append(meaning({"logits": answer.folded if self._manifest.folds else answer.given}, {"logits": logits}))
        notes = ["every epsilon is the float32 that is nearest to the spec's"] if single else []
        tier = all_of(tiers)
        if not tier.passed and self._manifest.taps:
            noise = _noise_of_meaning(about.model.name, self._brought, probe.shape)
            if noise > MEANING_BOUND:
                network = local.with_single_epsilon(about.model) if single else about.model
                tier = meaning_of_layers(network, about.weights, images, taps)
                notes.append(f"no power: rounding explains {noise:.1g} of the logits' rms, so layers were judged alone and the mode by E1")
        return replace(tier, note="; ".join(notes) or None)

    def _local_rounding(self, probe: Probe) -> Tier:
        about, precision = self.subject, self.cell.precision
        shown = _shown(about.model.name, self._brought, probe.images, probe.shape, precision)
        path = about.path
        if probe.images == "extreme":
            path = self._scratch / f"{probe.images}-{about.model.name}.safetensors"
            file.save(path, about.model, shown.weights, source="running variances below epsilon", preprocess={}, licence="CC0-1.0")
        taps, settings = self._taps(precision, path, shown.images)
        with taps.open("rb") as file_of_taps:
            digest = hashlib.file_digest(file_of_taps, "sha256").hexdigest()
        single = settings.get("epsilon") == "float32"
        return _local_rounding_of(about.model.name, self._brought, probe.images, probe.shape, precision, single, taps, digest)

    def _timed(self, probe: Probe) -> tuple[Tier, Tier, dict[str, object]]:
        """E0 and E4 of one shape through the mode, and the settings."""
        about, precision, folds = self.subject, self.cell.precision, self._manifest.folds
        worker, _ = self.workers.get(self.cell, precision)
        given, predicted = _predicted(about.model.name, self._brought, folds, probe.images, probe.shape, precision, self.context.threads)
        ring, out = self._scratch / "ring.safetensors", self._scratch / "out.safetensors"
        members = given.covering(probe.shape[0])
        images = given.pool[members]
        save({"images": images}, ring)
        worker.call("prepare", BUILD_TIMEOUT_S, handle="timed", fold=folds, **self._build(about.path, images[0]))
        settings = worker.call("put", BUILD_TIMEOUT_S, handle="timed", images=str(ring))["settings"]
        if precision in ("bf16", "fp16"):  # a product of two such numbers is exact in fp32, so no tier sees in what it was computed
            settings |= worker.call("arithmetic", BUILD_TIMEOUT_S, handle="timed")
        worker.call("outputs", CALL_TIMEOUT_S, handle="timed", out=str(out))
        held_weights = worker.call("weights", CALL_TIMEOUT_S, handle="timed")
        worker.call("release", CALL_TIMEOUT_S, handle="timed")
        logits = load_file(out)["logits"]
        same = identity(held(about.given(self._manifest)[1], precision), held_weights)
        return same, check_ring(logits, members, predicted, precision), settings

    @property
    def _brought(self) -> Path | None:
        return self.context.weights.get(self.subject.model.name)


Answer = TypeVar("Answer")

_KEPT: list[Callable[[], None]] = []
"""How each answer that is kept for other implementations and modes is let go."""


def forget() -> None:
    """Let go of all answers and networks that are kept, which are gigabytes where networks are large."""
    for let_go in (*_KEPT, _local_rounding_of.cache_clear, subject.cache_clear):
        let_go()


def shared(maxsize: int) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """As ``lru_cache``, for implementations that are examined side by side: what two ask for at the same time is made once."""

    def decorate(make: Callable[..., Answer]) -> Callable[..., Answer]:
        cached, lock = functools.lru_cache(maxsize)(make), threading.Lock()
        _KEPT.append(cached.cache_clear)

        @functools.wraps(make)
        def asked(*arguments: Any) -> Answer:
            with lock:
                return cached(*arguments)

        return asked

    return decorate


@dataclass(frozen=True, slots=True)
class _LatticeProbe:
    """The lattice as the weight file holds it, and the logits of the network whose batch norms are folded."""

    given: Lattice
    folded: npt.NDArray[np.float64]


@shared(maxsize=2)
def _lattice_probe(model: ModelSpec, precision: str, shape: Shape) -> _LatticeProbe:
    """The probe of E1, the same for all implementations and modes."""
    batch, _, height, width = shape
    given = lattice.lattice(model, precision, batch=batch, height=height, width=width, seed=LATTICE_SEED)
    folded = lattice.prove(*folding.fold_batch_norm(model, given.weights), given.images, precision)
    return _LatticeProbe(given, _last(folded.expected))


def _last(taps: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    return taps[list(taps)[-1]]


@dataclass(frozen=True, slots=True)
class _Meaning:
    """The oracle's taps, and its logits for the weights as they are and folded."""

    taps: Arrays
    given: npt.NDArray[np.float64]
    folded: npt.NDArray[np.float64]


@shared(maxsize=4)
def _meaning_of(model: str, brought: Path | None, shape: Shape, single_epsilon: bool) -> _Meaning:
    """The oracle's answer of E2, the same for all implementations and modes whose format holds epsilon alike."""
    about = subject(model, brought)
    networks = (about.model, about.folded_model)
    network, folded = map(local.with_single_epsilon, networks) if single_epsilon else networks
    images = probes.real(about.inputs, *shape[2:])[: shape[0]]
    taps = forward.taps(network, about.weights, images)
    return _Meaning(taps, _last(taps), forward.forward(folded, about.folded_weights, images))


@shared(maxsize=4)
def _noise_of_meaning(model: str, brought: Path | None, shape: Shape) -> float:
    """What float64's own rounding makes of the logits of E2, over their rms: 5e-14 but for networks that enlarge every difference."""
    about = subject(model, brought)
    images = probes.real(about.inputs, *shape[2:])[: shape[0]]
    return rounding.relative_noise(rounding.envelope(about.model, about.weights, images, "fp64", runs=1))


@dataclass(frozen=True, slots=True)
class _Shown:
    """Weights and images of E3, before the precision rounds them."""

    weights: folding.Weights
    images: npt.NDArray[np.float32]


@shared(maxsize=2)
def _shown(model: str, brought: Path | None, kind: str, shape: Shape, precision: str) -> _Shown:
    """What E3 shows, the same for all implementations and modes."""
    about = subject(model, brought)
    images = probes.real(about.inputs, *shape[2:])
    if kind != "extreme":
        return _Shown(about.weights, images[: shape[0]])
    weights = probes.small_variances(about.model, about.weights)
    return _Shown(weights, probes.extreme(about.model, weights, images, precision))


@functools.lru_cache(maxsize=8)
def _local_rounding_of(
    model: str, brought: Path | None, kind: str, shape: Shape, precision: str, single_epsilon: bool, taps: Path, digest: str
) -> Tier:
    """The oracle's answer of E3; the modes of one implementation have the same taps, so it is asked once for the same ``digest``."""
    about, shown = subject(model, brought), _shown(model, brought, kind, shape, precision)
    network = local.with_single_epsilon(about.model) if single_epsilon else about.model
    images = held({"images": shown.images}, precision)["images"]
    return local_rounding(network, held(shown.weights, precision), images, load_file(taps), precision)


@shared(maxsize=4)
def _predicted(
    model: str, brought: Path | None, folds: bool, kind: str, shape: Shape, precision: str, threads: int
) -> tuple[inputs.Inputs, Envelope]:
    """The images of E4 and where their logits lie, the same for all implementations and modes that fold alike."""
    about = subject(model, brought)
    network, weights = (about.folded_model, about.folded_weights) if folds else (about.model, about.weights)
    given = about.inputs
    if kind == "large":
        given = replace(given, pool=probes.magnified(network, weights, probes.real(given, *shape[2:]), precision))
    return given, reference(network, weights, given.pool, precision, threads)
