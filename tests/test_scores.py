"""The kept scores: what was written comes back, and whatever was altered ends what is believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.store import StoreError
from suites.harness import scores
from suites.harness.scores import Batch, Scores

RNG = np.random.default_rng(0)
HEAD = {"cell": "onnx/ort", "batch_size": 3}


def batch(dtype: str = "float32") -> Batch:
    values = RNG.normal(size=(3, 10)).astype(dtype)
    return Batch(values, ("a" * 64, "b" * 64, "c" * 64), {1: "is no image"})


def written(path: Path, count: int) -> list[Batch]:
    made = [batch() for _ in range(count)]
    kept = Scores(path, HEAD)
    for each in made:
        kept.append(each)
    return made


def same(found: Batch, right: Batch) -> bool:
    alike = found.images_sha256 == right.images_sha256 and dict(found.unreadable) == dict(right.unreadable)
    return alike and found.scores.dtype == right.scores.dtype and np.array_equal(found.scores, right.scores)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_was_written_comes_back(tmp_path: Path, dtype: str) -> None:
    """To the last bit, in order, when opened again and when read alone."""
    path = tmp_path / "folder" / "scores.jsonl"
    kept = Scores(path, HEAD)
    made = [batch(dtype) for _ in range(4)]
    for each in made:
        kept.append(each)
    again = Scores(path, HEAD)
    assert kept.batches == again.batches == 4
    for found in (list(again), list(scores.read(path))):
        assert len(found) == 4
        assert all(same(one, other) for one, other in zip(found, made, strict=True))


def test_another_head_begins_anew(tmp_path: Path) -> None:
    """Scores of other weights, images or batches are not gone on with."""
    path = tmp_path / "scores"
    written(path, 3)
    assert Scores(path, {**HEAD, "batch_size": 4}).batches == 0
    assert Scores(path, HEAD).batches == 0


@given(st.data())
def test_a_file_that_is_cut_off_keeps_its_whole_batches(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Wherever a kill left it; what is then added fits."""
    path = tmp_path_factory.mktemp("scores") / "scores"
    made = written(path, 3)
    content = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    at = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:at])
    kept = Scores(path, HEAD)
    assert kept.batches == max(0, sum(end <= at for end in ends) - 1)
    more = batch()
    kept.append(more)
    assert all(same(one, other) for one, other in zip(scores.read(path), [*made[: kept.batches - 1], more], strict=True))


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_no_altered_byte_is_believed(tmp_path_factory: pytest.TempPathFactory, at: int, change: int) -> None:
    """The batch that it lies in and those behind are gone; reading alone says so."""
    path = tmp_path_factory.mktemp("scores") / "scores"
    written(path, 3)
    content = bytearray(path.read_bytes())
    at %= len(content)
    line = content[:at].count(b"\n")
    content[at] ^= change
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is not what was written"):
        list(scores.read(path))
    assert Scores(path, HEAD).batches == max(0, line - 1)


def test_exchanged_batches_are_not_believed(tmp_path: Path) -> None:
    """Each hash covers the one before it."""
    path = tmp_path / "scores"
    written(path, 3)
    head, first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(head + second + first + third)
    assert Scores(path, HEAD).batches == 0


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A sentence, no traceback."""
    (tmp_path / "scores").mkdir()
    with pytest.raises(StoreError, match="scores: Is a directory"):
        Scores(tmp_path / "scores", HEAD)
    with pytest.raises(StoreError, match="Is a directory"):
        list(scores.read(tmp_path / "scores"))
