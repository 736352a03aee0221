"""Published accuracy as an assertion: what was measured with a public checkpoint is held to what its publisher says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impls.weights import file
from impls.weights.checkpoints import public
from impls.weights.checkpoints.public import Public
from results.record import Record
from suites.data import preprocess

POINTS = 0.03
"""Percentage points that an accuracy may be away from the published one: 15 of ImageNet's 50,000 images, 3 of CIFAR's 10,000. Rounding puts
images whose two best scores are nearly equal into other classes, and decoders and resizes of other versions a few more."""

WHOLE: Mapping[str, str] = {"imagenet": "imagenet/val", "cifar10": "cifar10/test", "cifar100": "cifar100/test"}
"""What a data set is called of which no image is missing, by its name in ``public``."""

HELD = ("fp64", "fp32")
"""Precisions that are held to a figure: it was published of fp32."""


def checkpoint(weights: Path) -> Public | None:
    """The public checkpoint that a weight file was imported from.

    Raises:
        WeightFileError: not a weight file.
    """
    metadata = file.read_metadata(weights)
    return public.find(metadata.get("source_sha256", ""), metadata.get("source_md5", ""))


def held(record: Record, known: Public) -> dict[str, Any] | None:
    """An accuracy beside the one that was published; None where nothing was measured, or on other data.

    Returns:
        ``{"file", "source", "top1", "top5", "top1_points", "top5_points", "holds", "why"}``: as published, in percent, how many points
        the measured ones are above, whether that is within ``POINTS``, and, where ``holds`` is None, why that cannot be said.
    """
    data, measured = record.data or {}, record.measurements
    if record.status != "ok" or not str(data.get("dataset")).startswith(f"{known.dataset}/"):
        return None
    points = {name: _points(measured.get(name), getattr(known, name)) for name in ("top1", "top5")}
    why = _incomparable(record, data, known)
    within = all(abs(value) <= POINTS for value in points.values() if value is not None)
    return {
        "file": known.file,
        "source": known.source,
        "top1": known.top1,
        "top5": known.top5,
        **{f"{name}_points": value for name, value in points.items()},
        "holds": None if why else within,
        "why": why,
    }


def _points(measured: float | None, published: float | None) -> float | None:
    """The difference in percentage points, to the thousandth: figures are published with no more digits."""
    return None if measured is None or published is None else round(100 * measured - published, 3)


def _incomparable(record: Record, data: Mapping[str, Any], known: Public) -> str | None:
    if data["dataset"] != WHOLE[known.dataset]:
        return f"it was published of all of {WHOLE[known.dataset]}, this is {data['dataset']}"
    if data["preprocess"] != preprocess.chosen(known.preprocess).as_json():
        return f"it was published with the preprocessing {known.preprocess}, these images were prepared otherwise"
    if record.cell.precision not in HELD:
        return f"it was published of fp32, this is {record.cell.precision}"
    return f"its publisher does not say {known.unsaid}" if known.unsaid else None
