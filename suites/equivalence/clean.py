"""How often a correct implementation is refused: every tier on many seeds of a small network, in every arm.

A seed is a set of images shown to a network of synthesised weights; each network is shown several sets, since building it costs the
most. E2, E3 and E4 are judged for every seed, E0 and E1, which know no chance, once for every network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from impls import models
from impls.oracle import forward, lattice
from impls.oracle.local import with_single_epsilon
from impls.oracle.rounding import envelope
from impls.weights import file, folding, synthesis
from results.record import Cell, Record
from suites.equivalence.tiers import Tier, all_of, exact, identity, local_rounding, meaning, rounding_noise
from suites.equivalence.workers import Workers
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, Context
from suites.harness.process import WorkerError, WorkerProcess
from suites.harness.reference import held

MODEL = "cifar_resnet8"
SETS = 20
"""Sets of images for each network."""

BATCH, SIZE = 8, 16
"""Images of a set (rho needs eight) and their height and width in pixels."""

LATTICE_SIZE = 32
"""Smallest images that leave every kernel of the lattice something to see."""


def run(context: Context, arms: Sequence[Cell], seeds: int) -> dict[Cell, Record]:
    """Examine ``seeds`` seeds, shared out evenly among the arms and rounded up to whole networks; a record for each arm."""
    networks = -(-seeds // (len(arms) * SETS))
    records: dict[Cell, Record] = {}
    workers = Workers(context, purpose="clean")
    try:
        for arm in arms:
            records[arm] = _arm(context, workers, arm, networks)
            context.store.append(records[arm])
    finally:
        workers.end()
    return records


def _arm(context: Context, workers: Workers, arm: Cell, networks: int) -> Record:
    compared: Counter[str] = Counter()
    alarms: list[str] = []
    try:
        _, packages = context.software(arm.implementation)
        for seed in range(networks):
            context.say(f"clean seeds of {arm.implementation} {arm.mode} {arm.precision}: network {seed + 1} of {networks}")
            for name, tier in _network(context, workers, arm, seed):
                compared[name] += 1
                if not tier.passed:
                    alarms.append(f"network {seed}, {name}: {tier.reason}")
    except WorkerError as error:
        return context.failure("clean_seeds", arm, error)
    about = {"seeds": networks * SETS, "networks": networks, "compared": dict(compared), "alarms": alarms}
    return context.record("clean_seeds", arm, software=dict(packages), data=about)


def _network(context: Context, workers: Workers, arm: Cell, seed: int) -> Iterator[tuple[str, Tier]]:
    """Every tier of every set of one network."""
    model, manifest = models.get(MODEL), context.manifests[arm.implementation]
    weights, sets = synthesis.synthesize(model, seed), _sets(seed)
    path = context.scratch / "clean.safetensors"
    file.save(path, model, weights, source=f"synthesised, seed {seed}", preprocess={}, licence="CC0-1.0")
    judged, given = folding.fold_batch_norm(model, weights) if manifest.folds else (model, weights)
    worker, _ = workers.get(arm, "fp64")
    logits, taps, _ = _shown(context, worker, arm, path, sets, manifest.folds)
    for images, outputs, own in zip(sets, logits, taps, strict=True):
        right = forward.taps(model, weights, images)
        yield "E2", all_of([meaning(right, own), meaning({"logits": forward.forward(judged, given, images)}, {"logits": outputs})])
    worker, _ = workers.get(arm, arm.precision)
    logits, taps, epsilon = _shown(context, worker, arm, path, sets, manifest.folds)
    rounded, rounded_given = held(weights, arm.precision), held(given, arm.precision)
    network = with_single_epsilon(model) if epsilon == "float32" else model
    for number, (images, outputs, own) in enumerate(zip(sets, logits, taps, strict=True)):
        shown = held({"images": images}, arm.precision)["images"]
        yield "E3", local_rounding(network, rounded, shown, own, arm.precision)
        yield "E4", rounding_noise(outputs, envelope(judged, rounded_given, shown, arm.precision, runs=2, seed=number), arm.precision)
    yield "E0", identity(rounded_given, worker.call("weights", CALL_TIMEOUT_S, handle="mode"))
    worker.call("release", CALL_TIMEOUT_S, handle="mode")
    probe = lattice.lattice(model, arm.precision, batch=2, height=LATTICE_SIZE, width=LATTICE_SIZE, seed=seed)
    folded = lattice.prove(*folding.fold_batch_norm(model, probe.weights), probe.images, arm.precision) if manifest.folds else probe
    file.save(path, model, probe.weights, source=f"lattice, seed {seed}", preprocess={}, licence="CC0-1.0")
    logits, taps, _ = _shown(context, worker, arm, path, probe.images[None], manifest.folds)
    worker.call("release", CALL_TIMEOUT_S, handle="mode")
    last = list(folded.expected)[-1]
    yield "E1", all_of([exact(probe.expected, taps[0]), exact({"logits": folded.expected[last]}, {"logits": logits[0]})])


def _sets(seed: int) -> npt.NDArray[np.float32]:
    """Normal images, (SETS, BATCH, 3, SIZE, SIZE)."""
    generator = np.random.Generator(np.random.PCG64((seed, 1)))
    return generator.standard_normal((SETS, BATCH, 3, SIZE, SIZE), dtype=np.float32)


def _shown(
    context: Context, worker: WorkerProcess, arm: Cell, path: Path, sets: npt.NDArray[np.float32], folds: bool
) -> tuple[npt.NDArray[np.floating], list[dict[str, npt.NDArray[np.floating]]], object]:
    """Logits of all sets through the mode, taps of each, and what the settings say of epsilon; the handle "mode" stays."""
    given, out = context.scratch / "clean-images.safetensors", context.scratch / "clean-out.safetensors"
    arguments = {"weights": str(path), "mode": arm.mode, "input_shape": list(sets.shape[1:])}
    worker.call("prepare", BUILD_TIMEOUT_S, handle="mode", fold=folds, **arguments)
    save({"images": sets}, given)
    worker.call("put", BUILD_TIMEOUT_S, handle="mode", images=str(given))
    worker.call("outputs", CALL_TIMEOUT_S, handle="mode", out=str(out))
    logits = load_file(out)["logits"]
    settings = worker.call("prepare", BUILD_TIMEOUT_S, handle="taps", fold=False, **arguments)["settings"]
    taps = []
    for images in sets:
        save({"images": images}, given)
        worker.call("taps", CALL_TIMEOUT_S, handle="taps", images=str(given), out=str(out))
        taps.append(load_file(out))
    worker.call("release", CALL_TIMEOUT_S, handle="taps")
    return logits, taps, settings.get("epsilon")
