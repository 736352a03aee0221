"""The images of an accuracy as one network takes them: labelled images and a preprocessing, or the embedded digits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from impls.spec import ModelSpec
from suites.data import cifar, imagenet, preprocess
from suites.data.labelled import DataError, Labelled
from suites.data.preprocess import Preprocess
from suites.harness import inputs
from suites.harness.environments import cache_root

Images = npt.NDArray[np.float32]

Dataset = Literal["digits", "cifar10", "cifar100", "imagenet"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)


@dataclass(frozen=True, slots=True, eq=False)
class TestSet:
    """Labelled images, prepared when they are asked for.

    ``labels`` (count,) int64; ``names`` what each image is called; ``prepare`` makes of an image by its index the network's inputs,
    (views, 3, H, W) float32, from any thread, or raises ImageError. ``sha256`` is that of ``Labelled``; ``preprocess`` goes into records.
    """

    __test__ = False  # its name is no test's

    name: str
    labels: npt.NDArray[np.int64]
    names: Sequence[str]
    views: int
    preprocess: Mapping[str, object]
    prepare: Callable[[int], Images]
    sha256: str


@functools.cache
def digits() -> TestSet:
    """The embedded digits that nothing here was trained on, prepared as the project's own networks take them."""
    held = inputs.digits()[1]
    names = [f"digit {index}" for index in range(len(held.labels))]
    identity = inputs.Inputs(held.name, None, held.images).sha256
    return TestSet(held.name, held.labels, names, 1, inputs.DIGITS_PREPROCESS, lambda index: held.images[index : index + 1], identity)


def labelled(dataset: Dataset, data_dir: Path | None, say: Callable[[str], None]) -> Labelled:
    """The test images of a data set that lies on the disk, or is downloaded.

    Raises:
        DataError: it is not there, or cannot be used.
    """
    if dataset == "imagenet":
        if data_dir is None:
            raise DataError(
                "imagenet: its images may not be passed on, so they are not downloaded; --data-dir names the folder that holds them"
            )
        return imagenet.validation_images(data_dir)
    return cifar.test_images(cifar.OFFICIAL[dataset], data_dir, cache_root() / "data", say)


def prepared(images: Labelled, model: ModelSpec, how: Preprocess, views: int) -> TestSet:
    """The labelled images as a model takes them.

    Raises:
        DataError: another number of classes than the model has.
        PreprocessError: the preprocessing does not end in the size that the model takes.
    """
    channels, height, width = model.input_chw
    if images.classes != model.classes:
        raise DataError(f"{images.name} has {images.classes} classes, {model.name} has {model.classes}")
    if channels != 3 or height != width:
        raise DataError(f"{images.name}: {model.name} takes {channels} channels of {height} x {width}, not 3 of a square")
    preprocess.check_size(how, images.side, height, views)
    shown = how.as_json() | ({"views": views} if views > 1 else {})
    prepare = functools.partial(_prepare, images, how, views)
    return TestSet(images.name, images.labels, images.names, views, shown, prepare, images.sha256)


def _prepare(images: Labelled, how: Preprocess, views: int, index: int) -> Images:
    return preprocess.prepare(images.read(index), how, views)
