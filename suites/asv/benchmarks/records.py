"""Stored records as values that asv tracks: those of this commit on this machine. Nothing is measured here.

asv's own stopwatch is not used for frameworks: it takes iterations of one process for independent and has no rounds in which
implementations are paired (docs/history.md). What is not stored is NaN, asv's word for skipped.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable
from typing import Any

from levelfield import history
from levelfield.checkout import ROOT
from reports import asv_site
from reports.history import PARAMETERS, QUANTITIES
from results import provenance

STORED = history.stored()


class Records:
    """One tracked value per quantity; the export of ``levelfield asv`` has them by the same names, parameters and versions."""

    param_names = PARAMETERS
    version = asv_site.version(STORED.points)
    timeout = 300

    def setup_cache(self) -> dict[tuple[str, tuple[Any, ...]], float]:
        """By quantity and parameters: the median over processes."""
        commit = os.environ.get("ASV_COMMIT") or provenance.code(ROOT).commit
        machine_id = provenance.machine()["machine_id"]
        return {
            (name, point.parameters): statistics.median(samples)
            for point in STORED.points
            if (point.commit, point.machine_id) == (commit, machine_id)
            for name, samples in point.samples.items()
            if samples
        }


def _track(name: str, unit: str) -> Callable[..., float]:
    def track(self: Records, found: dict[tuple[str, tuple[Any, ...]], float], *parameters: Any) -> float:
        return found.get((name, parameters), math.nan)

    track.__name__ = f"track_{name}"
    track.params = asv_site.axes(STORED.points, name)  # type: ignore[attr-defined]
    track.unit = unit  # type: ignore[attr-defined]
    track.pretty_name = name  # type: ignore[attr-defined]
    return track


for _name, _unit in QUANTITIES.items():
    setattr(Records, f"track_{_name}", _track(_name, _unit))
