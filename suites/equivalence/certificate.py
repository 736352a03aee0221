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
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from impls.oracle import lattice
from results.record import Cell, Record
from suites.equivalence.examination import Examination
from suites.equivalence.workers import Workers
from suites.harness.context import Context, Subject
from suites.harness.environments import cache_root
from suites.harness.process import WorkerError
from suites.harness.reference import code_sha256, oracle_sha256

CODE = (
    "impls/**/*.py",
    "impls/**/*.toml",
    "suites/zoo/**/*.py",
    "suites/equivalence/*.py",
    "suites/harness/inputs.py",
    "suites/harness/reference.py",
    "suites/harness/worker.py",
)
"""The code that a certificate depends on: an implementation may use another's, so all of them count."""

TIERS = ("E0", "E1", "E2", "E4")


def certificates_for(context: Context, cells: Sequence[Cell], batch_sizes: tuple[int, ...]) -> dict[Cell, Record]:
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
