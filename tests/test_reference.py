"""The kept answers of the oracle: a hit equals a fresh answer, and whatever the answer depends on is in the question."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from impls import models
from impls.oracle import forward
from impls.weights import folding, synthesis
from suites.harness import inputs, reference

MODEL = models.get("cifar_resnet8")
FOLDED, WEIGHTS = folding.fold_batch_norm(MODEL, synthesis.synthesize(MODEL, 0))
IMAGES = inputs.digits()[1].images[:2]
ASKED: dict[str, Any] = {"model": FOLDED, "weights": WEIGHTS, "images": IMAGES, "precision": "fp32", "workers": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own, and one noisy run per image."""
    monkeypatch.setattr(reference, "RUNS_IN_ALL", 1)
    monkeypatch.setenv("LEVELFIELD_CACHE", str(tmp_path))
    return tmp_path / "oracle"


def kept(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


def test_a_hit_equals_a_fresh_answer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second answer is read, not computed, and is the first bit for bit; the number of threads changes nothing."""
    fresh = reference.reference(**ASKED)
    assert len(kept(cache)) == 1
    assert all(name.endswith(".safetensors") for name in kept(cache))
    (cache / kept(cache).pop()).unlink()
    other = reference.reference(**ASKED | {"workers": 2})
    np.testing.assert_array_equal(other.logits, fresh.logits)
    np.testing.assert_array_equal(other.deviation, fresh.deviation)
    monkeypatch.setattr(reference, "envelope", None)
    again = reference.reference(**ASKED)
    np.testing.assert_array_equal(again.logits, fresh.logits)
    np.testing.assert_array_equal(again.deviation, fresh.deviation)
    assert len(kept(cache)) == 1


def test_it_is_the_oracles_answer() -> None:
    """The logits are the oracle's, and every deviation is positive."""
    answer = reference.reference(**ASKED)
    np.testing.assert_allclose(answer.logits, forward.forward(FOLDED, WEIGHTS, IMAGES), rtol=1e-12)
    assert (answer.deviation > 0).all()


def test_an_images_answer_depends_on_it_alone() -> None:
    """Another second image leaves the first one's answer as it was."""
    first = reference.reference(**ASKED)
    second = reference.reference(**ASKED | {"images": np.stack([IMAGES[0], IMAGES[1] / 2])})
    np.testing.assert_array_equal(first.logits[0], second.logits[0])
    np.testing.assert_array_equal(first.deviation[0], second.deviation[0])
    assert not np.array_equal(first.logits[1], second.logits[1])


def changed_weights() -> dict[str, Any]:
    weights = {name: tensor.copy() for name, tensor in WEIGHTS.items()}
    weights["fc.bias"][0] = np.nextafter(weights["fc.bias"][0], np.float32(np.inf))
    return weights


def changed_images() -> Any:
    images = IMAGES.copy()
    images[0, 0, 0, 0] = np.nextafter(images[0, 0, 0, 0], np.float32(np.inf))
    return images


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("weights", changed_weights),
        ("images", changed_images),
        ("images", lambda: IMAGES[:1]),
        ("precision", lambda: "fp64"),
        ("model", lambda: dataclasses.replace(FOLDED, source="elsewhere")),
    ],
    ids=["weights", "images", "fewer images", "precision", "model"],
)
def test_another_question_has_another_answer(cache: Path, name: str, other: Callable[[], Any]) -> None:
    """One bit of a weight or an image, the precision or the network: each is asked anew."""
    reference.reference(**ASKED)
    reference.reference(**ASKED | {name: other()})
    assert len(kept(cache)) == 2


def test_another_oracle_is_asked_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of other code is not this code's answer."""
    reference.reference(**ASKED)
    monkeypatch.setattr(reference, "oracle_sha256", lambda: "other code")
    reference.reference(**ASKED)
    assert len(kept(cache)) == 2


def test_weights_are_held_as_the_precision_has_them() -> None:
    """fp32 and TF32 hold the file's bytes, the others each value rounded once."""
    assert all(reference.held(WEIGHTS, precision)["fc.weight"] is WEIGHTS["fc.weight"] for precision in ("fp32", "tf32"))
    assert reference.held(WEIGHTS, "fp64")["fc.weight"].tolist() == WEIGHTS["fc.weight"].tolist()
    for precision, bits in (("bf16", 8), ("fp16", 11)):
        rounded = reference.held({"x": np.array([1 + 2.0**-bits, 1 + 3 * 2.0**-bits], np.float32)}, precision)["x"]
        assert rounded.tolist() == [1.0, 1 + 2 * 2.0 ** (1 - bits)], "to nearest, ties to even"


def test_code_is_hashed_by_name_and_content(tmp_path: Path) -> None:
    """A changed, renamed or added file changes the hash; byte-compiled folders and other files do not."""

    def found(*patterns: str) -> str:
        return reference.code_sha256(*patterns, root=tmp_path)

    (tmp_path / "a.py").write_text("1")
    first = found("*.py", "*")
    (tmp_path / "__pycache__").mkdir()
    assert found("*.py", "*") == first
    (tmp_path / "a.py").write_text("2")
    second = found("*.py")
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    third = found("*.py")
    (tmp_path / "c.py").touch()
    assert len({first, second, third, found("*.py")}) == 4
