"""The table of what preprocessing alone changes: it stands in the docs as the code makes it, and its variants are what they say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from impls.implementation import ROOT
from suites.data import images, preprocess, variants
from suites.data.variants import VARIANTS, Values, central, difference, photographs, reference

DOCS = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")


def numbers(row: str) -> list[float]:
    return [float(each) for each in re.findall(r"[\d.]+", row.split("|", 2)[2])]


def test_the_table_in_the_docs_is_the_one_that_is_made() -> None:
    """Every row but those of other decoders; the pixels as written, the logits to a digit."""
    with threadpool_limits(1):
        made = variants.table().splitlines()
    assert len(made) == len(VARIANTS) + 2
    for row in made[2:]:
        name = row.split("|")[1]
        (written,) = [line for line in DOCS.splitlines() if line.startswith(f"|{name}|")]
        *pixels, logits = numbers(written)
        assert pixels == numbers(row)[:-1]
        assert logits == pytest.approx(numbers(row)[-1], abs=0.11)


def test_the_reference_is_the_preset() -> None:
    """What variants are compared with is what networks are given."""
    for path in photographs():
        pixels = reference(path)
        mean, std = (np.array(each, np.float32) for each in (variants.HOW.mean, variants.HOW.std))
        right = ((pixels / np.float32(255) - mean) / std).transpose(2, 0, 1)[None]
        assert np.array_equal(preprocess.prepare(images.decode(path), preprocess.PRESETS["torchvision"]), right)


def test_nothing_differs_from_itself() -> None:
    """The measure is 0 where nothing is changed, and says by how much where everything is."""
    with threadpool_limits(1):
        same = difference(reference)
        brighter = difference(lambda path: reference(path) + np.float32(2))
    assert (same.mean, same.largest, same.share, same.logits) == (0, 0, 0, 0)
    assert (brighter.mean, brighter.largest, brighter.share) == (2, 2, 1)
    assert brighter.logits > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_images_of_the_same_size(name: str) -> None:
    """Squares of 224 pixels on 0..255."""
    for path in photographs():
        values = VARIANTS[name](path)
        assert (values.shape, values.dtype) == ((224, 224, 3), np.float32)
        assert 0 <= values.min() < values.max() <= 255


def smallest() -> Path:
    return photographs()[2]


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("BGR for RGB", lambda found, right: np.array_equal(found[..., ::-1], right)),
        ("not rounded to 8 bits after the resize", lambda found, right: 0 < np.abs(found - right).max() <= 1),
        ("cropped one pixel further down and right", lambda found, right: np.array_equal(found[:-1, :-1], right[1:, 1:])),
    ],
)
def test_variants_do_what_they_say(name: str, holds: Callable[[Values, Values], bool]) -> None:
    """Where that can be told from the pixels."""
    assert holds(VARIANTS[name](smallest()), reference(smallest()))


def test_without_antialias_is_the_same_where_nothing_shrinks() -> None:
    """Bilinear from four neighbours is what a resize to the same size leaves alone, and a ramp stays a ramp."""
    ramp = np.broadcast_to(np.linspace(0, 255, 512)[None, :, None], (512, 512, 3))
    found = variants.bilinear(ramp, (256, 256))
    np.testing.assert_allclose(found[0, :, 0], (ramp[0, ::2, 0] + ramp[0, 1::2, 0]) / 2, rtol=1e-12)
    np.testing.assert_array_equal(variants.bilinear(ramp, (512, 512)), ramp)
    assert central(found).shape == (224, 224, 3)
