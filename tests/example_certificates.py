"""A certificate to spoil and to show."""

from __future__ import annotations

import dataclasses
from typing import Any

from results.certificate import SCHEMA_VERSION, Certificate, Layer, Probe, Tier
from results.record import Cell

EDGES = (-1.0, 0.0, 1.0)
LAYERS = (
    Layer("conv1", "Conv2d", 10, 0.5, 0.4, 0.1, 0.2, (1, 4, 4, 1), None),
    Layer("relu", "Relu", 10, 0.0, 0.0, 0.0, 0.0, (), None),
    Layer("fc", "Linear", 4, 0.7, 0.6, 0.3, 0.1, (0, 2, 2, 0), None),
)
TIERS = {
    "E0": Tier(True, 10, 0.0, "", 0.0, None),
    "E1": Tier(True, 24, 0.0, "conv1", 0.0, None),
    "E2": Tier(True, 24, 1e-10, "fc", 6.9e-14, None),
    "E3": Tier(True, 24, 1.0, "fc", 0.6, None),
    "E4": Tier(True, 4, 1.5, "logits", 0.55, None),
}


def certificate(**changes: Any) -> Certificate:
    """A certificate that passed, with some fields changed."""
    sound = Certificate(
        schema_version=SCHEMA_VERSION,
        purpose="inference",
        key="ab" * 32,
        cell=Cell("pytorch", "compile", "resnet50", "fp32", "cpu", None, None, None, None),
        created_utc="2026-11-21T10:00:00Z",
        tiers=TIERS,
        excused={},
        layers=LAYERS,
        edges=EDGES,
        compared="every tap and the logits",
        thorough=False,
        probes=(Probe("E1", "lattice", (2, 3, 64, 64), "even sizes"), Probe("E4", "timed", (8, 3, 224, 224), "what is timed")),
        threads=2,
        machine_id="0123456789abcdef",
        python="3.11.7",
        software={"torch": "2.13.0"},
        settings={"threads": 2, "layout": "channels <last>"},
        sha256={"spec": "aa" * 32, "weights": "bb" * 32},
    )
    return dataclasses.replace(sound, **changes)
