"""What pairs of runs say of each other: of equal runs what the interval promises, of a change that it is one."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from tests.repeated_runs import COLUMNS, Times, judge, read, repetitions

REST = ("cifar_resnet20", "fp32", "1", "device")
BASE, OTHER = ("pytorch/eager", *REST), ("jax/jit", *REST)


def run(generator: np.random.Generator, ratio: float, spread: float = 0.05, rounds: int = 3) -> Times:
    """The baseline takes about a millisecond, the other ``ratio`` times less; what a round does to both is common to them."""
    common = np.exp(generator.normal(0, 0.3, rounds))
    noise = np.exp(generator.normal(0, spread, (2, rounds)))
    times = 1e-3 * common * noise / np.array([[1.0], [ratio]])
    return {cell: dict(enumerate(map(float, row))) for cell, row in zip((BASE, OTHER), times, strict=True)}


def test_equal_runs_cover_as_often_as_they_say() -> None:
    """2000 pairs of runs of one thing: 95 % within (Welch's interval is a little wide at three rounds), and no verdict reverses."""
    generator = np.random.default_rng(7)
    found = [each for _ in range(2000) for each in repetitions(run(generator, 2.0), run(generator, 2.0))]
    assert 0.94 < np.mean([each.covered for each in found]) < 0.985
    assert not any(each.reversed for each in found)


def test_a_change_is_seen_and_a_reversal_told() -> None:
    """Twice as fast in one run and half as fast in the other."""
    generator = np.random.default_rng(8)
    (found,) = judge([run(generator, 2.0, 0.01), run(generator, 0.5, 0.01)])
    assert (found.covered, found.reversed) == (False, True)
    (found,) = judge([run(generator, 2.0, 0.01), run(generator, 1.5, 0.01)])
    assert (found.covered, found.reversed) == (False, False)


def test_pairs_do_not_share_a_run() -> None:
    """Of five runs two pairs; a run without the baseline's times, or with one round, has nothing to say."""
    generator = np.random.default_rng(9)
    runs = [run(generator, 1.0) for _ in range(5)]
    assert len(judge(runs)) == 2
    assert not list(repetitions(runs[0], {OTHER: runs[1][OTHER]}))
    assert not list(repetitions(runs[0], run(generator, 1.0, rounds=1)))


@pytest.mark.parametrize("order", [1, -1])
def test_runs_are_read_in_the_order_in_which_they_were_made(order: int) -> None:
    """A run's name begins with its time."""
    lines = [("20261122T01", "m", "c", *BASE, "0", "0.5"), ("20261122T02", "m", "c", *BASE, "0", "0.25")][::order]
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS, *lines])
    text.seek(0)
    assert [each[BASE][0] for each in read(csv.DictReader(text))] == [0.5, 0.25]
