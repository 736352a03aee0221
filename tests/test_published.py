"""Published accuracy as an assertion: held to within 0.03 points, or a reason why it cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from impls.weights.checkpoints.public import Public
from results.record import Record
from suites import published
from suites.data import preprocess
from tests import example_records

KNOWN = Public("net.pth", "resnet50", "somebody", "MIT", "torchvision", "imagenet", 76.13, 92.862, sha256="0676ba61")


def measured(top1: float, top5: float | None, *, precision: str = "fp32", status: str = "ok", **data: Any) -> Record:
    """An accuracy's record on all of ImageNet, prepared as it was published."""
    fields = example_records.fields()
    cell = fields["cell"] | {"precision": precision, "batch_size": None, "scope": None, "scenario": None}
    return example_records.record(
        suite="accuracy",
        cell=cell,
        status=status,
        reason=None if status == "ok" else "it died",
        samples=None,
        measurements={"top1": top1, "images": 50_000} | ({} if top5 is None else {"top5": top5}),
        data={"dataset": "imagenet/val", "preprocess": preprocess.chosen("torchvision").as_json()} | data,
    )


@pytest.mark.parametrize(
    ("top1", "top5", "points", "holds"),
    [
        (0.7613, 0.92862, (0, 0), True),
        (0.7616, 0.92832, (0.03, -0.03), True),
        (0.76162, 0.92862, (0.032, 0), False),
        (0.76098, 0.92862, (-0.032, 0), False),
        (0.7613, 0.92894, (0, 0.032), False),
    ],
)
def test_held_to_the_figure(top1: float, top5: float, points: tuple[float, float], holds: bool) -> None:
    """Fifteen of 50,000 images are within, sixteen are not; of top-5 as of top-1, above as below."""
    found = published.held(measured(top1, top5), KNOWN)
    assert found is not None
    assert (found["top1_points"], found["top5_points"], found["holds"], found["why"]) == (*points, holds, None)
    assert (found["file"], found["source"], found["top1"], found["top5"]) == ("net.pth", "somebody", 76.13, 92.862)


def test_without_a_published_top5() -> None:
    """Top-1 alone is held to."""
    found = published.held(measured(0.7613, 0.5), replace(KNOWN, top5=None))
    assert found is not None
    assert (found["top5_points"], found["holds"]) == (None, True)


@pytest.mark.parametrize(
    ("record", "known", "why"),
    [
        (measured(0.1, 0.2, dataset="imagenet/val-22"), KNOWN, "it was published of all of imagenet/val, this is imagenet/val-22"),
        (
            measured(0.1, 0.2, preprocess=preprocess.chosen("timm").as_json()),
            KNOWN,
            "it was published with the preprocessing torchvision, these images were prepared otherwise",
        ),
        (
            measured(0.1, 0.2, preprocess=preprocess.chosen("torchvision").as_json() | {"views": 10}),
            KNOWN,
            "it was published with the preprocessing torchvision, these images were prepared otherwise",
        ),
        (measured(0.1, 0.2, precision="bf16"), KNOWN, "it was published of fp32, this is bf16"),
        (measured(0.1, 0.2), replace(KNOWN, unsaid="how images were resized"), "its publisher does not say how images were resized"),
    ],
)
def test_what_is_not_comparable_is_not_held_to(record: Record, known: Public, why: str) -> None:
    """However far away; the figures stand beside each other all the same."""
    found = published.held(record, known)
    assert found is not None
    assert (found["top1_points"], found["holds"], found["why"]) == (-66.13, None, why)


def test_other_data_and_failures_have_no_published_accuracy() -> None:
    """Of another data set nothing was published, and where nothing was measured there is nothing to hold."""
    assert published.held(measured(0.7, 0.9, dataset="cifar10/test"), KNOWN) is None
    assert published.held(measured(0.7, 0.9, status="failed"), KNOWN) is None
