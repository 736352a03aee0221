"""The recipe, initial weights, batches of an epoch, and the weights that the project ships."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from impls import models
from impls.implementation import ROOT, CannotError, Runtime, Settings, Sgd, check_training
from impls.oracle.forward import forward
from impls.spec import tensor_shapes
from impls.weights import file, trained
from impls.weights.initial import initialize
from suites import training
from suites.accuracy import score
from suites.harness import inputs
from suites.harness.inputs import Dataset, NoInputError
from suites.training import DIGITS, Recipe, TrainingError, epoch_batches, learning_rates, steps_per_epoch

MODEL = models.get("cifar_resnet20")
DOCUMENT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def marked(count: int, height: int, width: int) -> Dataset:
    """Images in which every pixel's value is unlike any other's, so that a pixel tells where it came from."""
    values = np.arange(count * 3 * height * width, dtype=np.float32).reshape(count, 3, height, width)
    return Dataset("marked", values, np.arange(count, dtype=np.int64) % 10)


def recipe(batch_size: int, shift: int, epochs: int = 3) -> Recipe:
    return dataclasses.replace(DIGITS, epochs=epochs, batch_size=batch_size, largest_shift=shift)


def test_initial_weights_are_these_on_every_machine() -> None:
    """The bytes of seed 0 do not change."""
    assert file.tensor_sha256(initialize(MODEL, 0)) == "f8644f6a9016d9bff2dd29e6ad4249d276fed9c6a7858fe4776427d1ae5668bf"


def test_initial_weights_have_the_declared_spread() -> None:
    """Kernels have He's spread by fan_out, fc that of its inputs, and batch norm is the identity."""
    weights = initialize(models.get("cifar_resnet56"), 3)
    assert {name: tensor.shape for name, tensor in weights.items()} == tensor_shapes(models.get("cifar_resnet56"))
    kernel = weights["layer3.4.conv2.weight"]
    assert kernel.std() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert abs(kernel.mean()) < 5 * kernel.std() / math.sqrt(kernel.size)
    assert weights["fc.weight"].std() == pytest.approx(1 / 8, rel=0.15)
    for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
        assert (weights[f"layer2.0.bn1.{name}"] == value).all()
    assert (weights["fc.bias"] == 0).all()
    assert not np.array_equal(kernel, initialize(models.get("cifar_resnet56"), 4)["layer3.4.conv2.weight"])


def test_batches_are_these_on_every_machine() -> None:
    """Order and shifts of an epoch do not change with NumPy's version: a golden hash over images and labels."""
    images, labels = epoch_batches(DIGITS, inputs.digits()[0], 0, 1)
    assert images.shape == (20, 64, 3, 32, 32)
    assert (
        hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
        == "15eec57b13e315ee36e5ea9f0cfc5c73a5bf795ac5d545cf310a07176369cce5"
    )


def test_epochs_and_seeds_differ() -> None:
    """Another epoch or another seed gives another order and other shifts."""
    data = marked(40, 6, 6)
    first, again, other_epoch, other_seed = (
        epoch_batches(recipe(8, 2), data, seed, epoch)[0] for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other_epoch)
    assert not np.array_equal(first, other_seed)


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(0, 3), st.integers(0, 5), st.integers(9, 30), st.integers(0, 2**32))
def test_every_image_is_a_shifted_one(batch_size: int, shift: int, epoch: int, count: int, seed: int) -> None:
    """Each image of an epoch is another image of the set, moved by at most the largest shift, with its label and the fill."""
    data = marked(count, 7, 9)
    images, labels = epoch_batches(recipe(batch_size, shift), data, seed, epoch)
    assert images.shape == (count // batch_size, batch_size, 3, 7, 9)
    seen = []
    for image, label in zip(images.reshape(-1, 3, 7, 9), labels.reshape(-1), strict=True):
        index, center = divmod(int(image[0, 3, 4]), 3 * 7 * 9)  # at most 3 rows and columns from the edge: never fill
        rows, columns = np.array(divmod(center, 9)) - (3, 4)
        assert max(abs(rows), abs(columns)) <= shift
        expected = np.full((3, 7, 9), DIGITS.fill, np.float32)
        for row in range(7):
            for column in range(9):
                if 0 <= row + rows < 7 and 0 <= column + columns < 9:
                    expected[:, row, column] = data.images[index, :, row + rows, column + columns]
        assert np.array_equal(image, expected)
        assert label == data.labels[index]
        seen.append(index)
    assert len(set(seen)) == len(seen)


def test_all_shifts_occur() -> None:
    """Shifts reach the largest one in all four directions."""
    images, _ = epoch_batches(recipe(100, 2), marked(400, 5, 5), 0, 0)
    centers = images[:, :, 0, 2, 2].astype(int).reshape(-1) % 25
    assert {tuple(np.array(divmod(center, 5)) - 2) for center in centers} == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}


def test_learning_rate_falls_with_half_a_cosine() -> None:
    """It begins at the recipe's, is half of it in the middle, falls at every step and never reaches 0."""
    rates = [rate for epoch in range(DIGITS.epochs) for rate in learning_rates(DIGITS, 1297, epoch)]
    assert len(rates) == DIGITS.epochs * 20
    assert rates[0] == DIGITS.learning_rate
    assert rates[len(rates) // 2] == pytest.approx(DIGITS.learning_rate / 2)
    assert all(later < earlier for earlier, later in pairwise(rates))
    assert rates[-1] > 0


def test_too_few_images_are_refused() -> None:
    """Less than one batch is said in a sentence; exactly one is enough."""
    assert steps_per_epoch(DIGITS, 64) == 1
    with pytest.raises(TrainingError, match="a batch of 64 images cannot be made of 63"):
        steps_per_epoch(DIGITS, 63)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 3, 31, 32)), [0, 1], r"takes images of shape \(3, 32, 32\)"),
        (np.zeros((0, 3, 32, 32)), [], "takes images of shape"),
        (np.zeros((2, 3, 32, 32)), [0], "labels of shape"),
        (np.zeros((2, 3, 32, 32)), [0, 10], "the label 10 is no class"),
        (np.zeros((2, 3, 32, 32)), [-1, 10], "the label -1 is no class"),
    ],
)
def test_labelled_images_that_do_not_fit_are_refused(images: np.ndarray, labels: list[int], message: str) -> None:
    """Other shapes, missing labels and labels that are no class: one sentence each."""
    dataset = Dataset("bad", images.astype(np.float32), np.array(labels, np.int64))
    with pytest.raises(NoInputError, match=message):
        inputs.check_dataset(MODEL, dataset)


def test_an_implementation_without_training_says_so() -> None:
    """The contract's default refuses with the reason that a row shows."""

    class Still(Runtime):
        def __init__(self, settings: Settings) -> None: ...

        def prepare(self, *arguments: object) -> object: ...  # type: ignore[override]

        def versions(self) -> dict[str, str]: ...  # type: ignore[empty-body]

    with pytest.raises(CannotError, match="has no training"):
        Still(Settings("cpu", "fp32", 1, True)).prepare_training(MODEL, {}, {}, Sgd(0.9, False, 0.0, 0.0), "eager", (1, 3, 32, 32))


@pytest.mark.parametrize(
    ("precision", "shape", "message"),
    [
        ("fp16", (8, 3, 32, 32), "^training is done in fp64, fp32, tf32, bf16, not in fp16$"),
        ("fp32", (1, 3, 1, 1), "^bn1: one value of each channel has no variance"),
        ("fp32", (1, 3, 4, 4), r"^layer3\.0\.bn1: one value of each channel has no variance"),
    ],
)
def test_what_nobody_trains_is_refused(precision: str, shape: tuple[int, ...], message: str) -> None:
    """Narrow formats, and batches of which a batch norm gets one value a channel; two values are enough."""
    with pytest.raises(CannotError, match=message):
        check_training(MODEL, precision, shape)
    check_training(MODEL, "fp32", (2, *shape[1:]))


@pytest.mark.parametrize(("name", "layer"), [("vgg16_bn", "classifier.2"), ("alexnet", "classifier.0"), ("googlenet", "dropout")])
def test_nobody_trains_with_dropout(name: str, layer: str) -> None:
    """Which elements are dropped every framework draws for itself; the first layer that does is named."""
    with pytest.raises(CannotError, match=f"^{layer}: every framework draws its own dropout, so networks are trained here without it$"):
        check_training(models.get(name), "fp32", (2, 3, 224, 224))
    check_training(models.in_training(models.get(name)), "fp32", (2, 3, 224, 224))


def test_worker_failure_is_a_sentence(tmp_path: Path) -> None:
    """An interpreter that is not there ends training with a sentence, not a traceback."""
    with pytest.raises(TrainingError, match="training cifar_resnet20 failed: cannot start"):
        training.train(MODEL, inputs.digits()[0], DIGITS, 0, python=tmp_path / "python", threads=1, folder=tmp_path, say=lambda line: None)


def test_written_file_says_how_it_was_made(tmp_path: Path) -> None:
    """The file loads strictly, and its source names every constant of the recipe."""
    made = training.Trained(initialize(MODEL, 0), (1.0,), {"torch": "2.13.0+cpu"})
    path = tmp_path / "trained.safetensors"
    root = training.write(path, MODEL, made, DIGITS, 7, 2, "9.9.9")
    loaded = file.load(path, MODEL)
    assert loaded.sha256 == root
    for part in (
        "levelfield 9.9.9",
        "30 epochs in batches of 64",
        "momentum 0.9",
        "weight decay 0.0001",
        "rate 0.05",
        "seed 7",
        "2.13.0",
        "CC BY",
    ):
        assert part in loaded.metadata["source"]
    assert loaded.metadata["licence"] == "Apache-2.0"
    assert '"mean":[8,8,8]' in loaded.metadata["preprocess"]


def stated(pattern: str) -> str:
    """A figure of docs/training.md."""
    found = re.search(pattern, DOCUMENT)
    assert found is not None, pattern
    return found[1]


def test_shipped_weights_are_as_accurate_as_stated() -> None:
    """The oracle's top-1 of the shipped weights on the test digits is the figure of docs/training.md, and so is their hash."""
    path = trained.path("cifar_resnet20")
    assert path is not None
    loaded = file.load(path, MODEL)
    assert loaded.sha256 == stated(r"root hash `([0-9a-f]{64})`")
    for constant in (f"{DIGITS.epochs} epochs", f"rate {DIGITS.learning_rate} ", f"momentum {DIGITS.sgd.momentum}", "seed 0"):
        assert constant in loaded.metadata["source"]
    test_set = inputs.digits()[1]
    with threadpool_limits(1):  # its matrices are small, and idle threads of a busy machine cost ten times what they save
        found = score(forward(MODEL, loaded.weights, test_set.images), test_set.labels)
    assert f"{100 * found.top1:.1f}" == stated(r"top-1 on the 500 test digits \| ([0-9.]+) %")
