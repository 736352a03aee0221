"""Runs of equal blocks."""

from __future__ import annotations

from impls.models.resnet import parse
from impls.spec import Block, equal_runs


def test_runs_are_the_equal_blocks_of_each_stage() -> None:
    """ResNet-50 has stages of 3, 4, 6, 3 blocks, of which the first differs (a projection, and a stride or other channels)."""
    model = parse("resnet50")
    assert model is not None
    runs = equal_runs(model.body)
    assert [len(run) for run in runs if isinstance(run[0], Block)] == [1, 2, 1, 3, 1, 5, 1, 2]
    assert [node for run in runs for node in run] == list(model.body)


def test_a_different_number_ends_a_run() -> None:
    """Option C gives every block a projection, and the first stage of a CIFAR net keeps its size: one run of all its blocks."""
    model = parse("cifar_resnet20_c")
    assert model is not None
    assert [len(run) for run in equal_runs(model.body) if isinstance(run[0], Block)] == [3, 1, 2, 1, 2]
