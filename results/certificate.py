"""The certificate as a document: what was compared with what, how much, within which bound, and all that the answer depends on.

A certificate is one JSON file, ``{"sha256": ..., "certificate": {...}}``, whose hash is that of the canonical JSON of the rest. The hash
guards against accidents, such as a file cut off or edited by hand, not against forgers. README.md tabulates the fields.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from results.record import Cell
from results.schema import RecordError, canonical, decode, encode, parse

SCHEMA_VERSION = 2

LONGEST_BYTES = 16 << 20
"""A certificate of ResNet-1202, with its 4,816 taps, has under 2 MB; what is longer is none."""

Purpose = Literal["inference", "training"]

TIERS: Mapping[Purpose, tuple[str, ...]] = {"inference": ("E0", "E1", "E2", "E3", "E4"), "training": ("E2", "E3", "E5")}
"""The tiers that a whole certificate has."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier's answer. ``worst`` is the worst tap and its error in the tier's unit; the first that fails is in ``reason``.

    ``note`` says what a reader must know although the tier passed.
    """

    passed: bool
    elements: int
    bound: float
    worst_tap: str
    worst_error: float | None
    reason: str | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """How one layer rounds, given the implementation's own inputs.

    ``rms_z`` is the rms error in units of the predicted deviation; ``rms``, ``gauge`` and ``slope`` are the tests, each over its bound, so
    that more than 1 fails; null where infinite, and ``slope`` is 0 in training, where it is not taken. ``histogram`` counts elements by
    z, between the document's ``edges``.
    """

    tap: str
    kind: str
    elements: int
    rms_z: float | None
    rms: float | None
    gauge: float | None
    slope: float | None
    histogram: tuple[int, ...]
    fault: str | None


Images = Literal["lattice", "real", "timed", "large", "extreme"]

IMAGES: Mapping[Images, str] = {
    "lattice": "integers, and weights on which every format computes the same",
    "real": "real images",
    "timed": "the real images that are timed",
    "large": "real images times 2^20, or less where half of the format's range ends",
    "extreme": "a real image times 2^20, or less where half of the format's range ends; one times 2^-20; and one that is 0 but for "
    "one pixel of one channel; running variances from 0 to epsilon",
}
"""What the kinds of images are, and the weights that belong to them."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a tier asks about: which kind of ``images``, in which ``shape`` (N, C, H, W), and what they are there for."""

    tier: str
    images: Images
    shape: tuple[int, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was examined of one cell, passed or not.

    ``key`` is a hash of everything that the answer depends on; the hashes by name are the parts of it that are files or code.
    ``probes`` are the images that the tiers asked about; ``thorough`` says whether they are more than the ordinary ones.
    ``excused`` holds tiers that this implementation cannot be examined in, each with the reason.
    """

    schema_version: int
    purpose: Purpose
    key: str
    cell: Cell
    created_utc: str
    tiers: Mapping[str, Tier]
    excused: Mapping[str, str]
    layers: tuple[Layer, ...]
    edges: tuple[float, ...]
    compared: str
    thorough: bool
    probes: tuple[Probe, ...]
    threads: int
    machine_id: str
    python: str
    software: Mapping[str, str]
    settings: Mapping[str, object]
    sha256: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise RecordError(f"schema_version: {self.schema_version} is not {SCHEMA_VERSION}; levelfield of its time reads it")
        if unknown := sorted({*self.tiers, *self.excused} - set(TIERS[self.purpose])):
            raise RecordError(f"tiers: a certificate of {self.purpose} has no tier {unknown[0]}")
        for layer in self.layers:
            if layer.histogram and (len(layer.histogram) != len(self.edges) + 1 or sum(layer.histogram) != layer.elements):
                raise RecordError(f"layers: the histogram of {layer.tap} does not count its {layer.elements} elements")

    @property
    def passed(self) -> bool:
        """Whether every tier was examined, compared something, and passed."""
        return bool(self.tiers) and self.reason is None

    @property
    def reason(self) -> str | None:
        """Why it did not pass."""
        failed = (
            f"{name}: {tier.reason or 'nothing was compared'}" for name, tier in self.tiers.items() if not (tier.passed and tier.elements)
        )
        missing = (f"{name}: was not examined" for name in TIERS[self.purpose] if name not in {*self.tiers, *self.excused})
        return next(failed, None) or next(missing, None)


def digest(certificate: Certificate) -> str:
    """The SHA-256 of its canonical JSON."""
    return hashlib.sha256(canonical(encode(certificate))).hexdigest()


def save(path: Path, certificate: Certificate) -> None:
    """Write a certificate; it appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    text = json.dumps({"sha256": digest(certificate), "certificate": encode(certificate)}, allow_nan=False)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def load(path: Path) -> Certificate:
    """Read a certificate and check it whole.

    Raises:
        OSError: there is no such file, or it cannot be read.
        RecordError: it is not a certificate, not of this schema, or not what was written.
    """
    if path.stat().st_size > LONGEST_BYTES:
        raise RecordError(f"{path.name}: {path.stat().st_size} bytes are no certificate")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RecordError(f"{path.name}: is not UTF-8") from None
    document = parse(text, path.name)
    if not isinstance(document, dict) or set(document) != {"sha256", "certificate"}:
        raise RecordError(f"{path.name}: is not a certificate with its hash")
    certificate = decode(Certificate, document["certificate"], path.name)
    if digest(certificate) != document["sha256"]:
        raise RecordError(f"{path.name}: its content is not what its hash was taken of; certify again")
    return certificate
