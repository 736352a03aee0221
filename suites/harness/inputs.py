"""What the networks are fed: real images that come inside scikit-learn, brought to tensors once, the same bytes for all.

Photographs (``china.jpg`` and ``flower.jpg``, 427 x 640): crops without any resize, whose pixels become what the weights were trained on,
torchvision's where nothing is said of that. Digits (1797 scans of 8 x 8 pixels with values 0..16; Alpaydin and Kaynak, UCI "Optical
Recognition of Handwritten Digits") for CIFAR nets that were trained on them or on nothing: every pixel repeated 4 x 4, the same in R, G
and B, value / 8 - 1, which float32 holds exactly.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from impls.spec import ModelSpec
from suites.data.preprocess import PRESETS, Preprocess, normalised, of_metadata
from suites.harness.arrays import save

Images = npt.NDArray[np.float32]

POOL = 8
"""Distinct images of a ring; the oracle computes each once."""

RING = 8
"""Distinct batches that timed calls go round, so that a cache of results cannot help (MLPerf's TEST04)."""

MOST_IMAGES = 512
"""Of a ring whose batches are large: it still has two of them, and takes no more memory than that."""

DIGITS_TEST = 500
"""The last 500 digits are the test set, the first 1297 the training set."""

PIXELS = ("channels", "range", "mean", "std")
"""What of a preprocessing is done to pixels."""

DEFAULT = PRESETS["torchvision"]
"""Of images for weights that say nothing of theirs."""

DIGITS_PREPROCESS: Mapping[str, object] = {"channels": "RGB", "repeat": 4, "range": [0, 16], "mean": [8, 8, 8], "std": [8, 8, 8]}


class NoInputError(ValueError):
    """No embedded images fit this model."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Labelled images: ``images`` (count, 3, H, W) float32, ``labels`` (count,) int64."""

    name: str
    images: Images
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Inputs:
    """A pool of distinct images, (POOL, 3, H, W) float32, where they come from, and what was done to their pixels: None for digits."""

    source: str
    how: Preprocess | None
    pool: Images

    @property
    def preprocess(self) -> Mapping[str, object]:
        """What was done to the pixels, as it stands in a weight file; nothing was resized."""
        if self.how is None:
            return DIGITS_PREPROCESS
        return {name: value for name, value in self.how.as_json().items() if name in PIXELS}

    def photographs(self, height: int, width: int) -> Images:
        """Photographs of this size, (POOL, 3, height, width), prepared as these images are; beside digits as ``DEFAULT`` says."""
        return photographs(height, width, self.how or DEFAULT).pool

    @property
    def sha256(self) -> str:
        """Identity of the pool: shape and bytes."""
        return hashlib.sha256(repr(self.pool.shape).encode() + self.pool.tobytes()).hexdigest()

    def members(self, batch_size: int) -> npt.NDArray[np.intp]:
        """Which image of the pool stands where in the ring: (ring, batch_size); every batch starts with another image."""
        return (np.arange(ring_size(batch_size))[:, None] + np.arange(batch_size)[None, :]) % len(self.pool)

    def covering(self, batch_size: int) -> npt.NDArray[np.intp]:
        """``members`` of the first batches that hold every image between them, two at least: no place in a batch sees one image only."""
        return self.members(batch_size)[: max(2, len(self.pool) - batch_size + 1)]

    def ring(self, batch_size: int) -> Images:
        """The ring of batches: (ring, batch_size, 3, H, W)."""
        return self.pool[self.members(batch_size)]


def ring_size(batch_size: int) -> int:
    """How many batches a ring has."""
    return min(RING, max(2, MOST_IMAGES // batch_size))


def ring_file(images: Inputs, batch_size: int, folder: Path, classes: int | None = None) -> Path:
    """The ring as a safetensors file in ``folder``, "images" (ring, batch_size, 3, H, W), written where it is not there yet.

    With ``classes`` it is for training and holds "labels" (ring, batch_size) too.
    """
    path = folder / f"ring-{images.sha256[:16]}-{batch_size}-{classes or 'unlabelled'}.safetensors"
    if not path.is_file():
        unfinished = path.with_suffix(f".{threading.get_ident()}")
        labels = {} if classes is None else {"labels": pool_labels(classes)[images.members(batch_size)]}
        save({"images": images.ring(batch_size), **labels}, unfinished)
        unfinished.replace(path)
    return path


def pool_labels(classes: int) -> npt.NDArray[np.int64]:
    """A label for each image of a pool, drawn from a seed: what is learnt changes no time, and the photographs have none."""
    return np.random.Generator(np.random.PCG64(POOL)).integers(0, classes, POOL)


@functools.cache
def photographs(height: int, width: int, how: Preprocess = DEFAULT) -> Inputs:
    """Crops of the two photographs, half from each, evenly spaced from corner to corner; nothing is resized."""
    from sklearn.datasets import load_sample_images  # half a second that most commands need not pay

    crops = []
    for photograph in load_sample_images().images:
        rows, columns = photograph.shape[0] - height, photograph.shape[1] - width
        if rows < 0 or columns < 0:
            raise NoInputError(
                f"the embedded photographs have {photograph.shape[0]} x {photograph.shape[1]} pixels, not {height} x {width}"
            )
        for index in range(POOL // 2):
            top, left = (index % 2) * rows, index * columns // (POOL // 2 - 1)
            crops.append(photograph[top : top + height, left : left + width])
    return Inputs("scikit-learn china.jpg and flower.jpg", how, normalised(np.stack(crops), how))


@functools.cache
def digits() -> tuple[Dataset, Dataset]:
    """Training and test set of the digits, as (count, 3, 32, 32) float32 in [-1, 1]."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = np.asarray(bunch.images, np.float32) / np.float32(8) - np.float32(1)
    large = small.repeat(4, axis=1).repeat(4, axis=2)
    images = np.ascontiguousarray(np.broadcast_to(large[:, None], (len(large), 3, 32, 32)))
    labels = np.asarray(bunch.target, np.int64)
    cut = len(images) - DIGITS_TEST
    return Dataset("digits/train", images[:cut], labels[:cut]), Dataset("digits/test", images[cut:], labels[cut:])


def check_dataset(model: ModelSpec, dataset: Dataset) -> None:
    """Refuse labelled images that are not for this model.

    Raises:
        NoInputError: no images, images of another shape, a label for each that is missing or no class of the model.
    """
    count = len(dataset.images)
    if count == 0 or dataset.images.shape[1:] != model.input_chw:
        raise NoInputError(f"{model.name} takes images of shape {model.input_chw}; {dataset.name} holds {dataset.images.shape}")
    if dataset.labels.shape != (count,):
        raise NoInputError(f"{dataset.name}: labels of shape {dataset.labels.shape} for {count} images")
    wrong = dataset.labels[(dataset.labels < 0) | (dataset.labels >= model.classes)]
    if wrong.size:
        raise NoInputError(f"{dataset.name}: the label {wrong[0]} is no class of {model.name}, which has {model.classes}")


def for_model(model: ModelSpec, preprocess: Mapping[str, object] | None = None) -> Inputs:
    """The images that a model is timed on, whose pixels are prepared as its weights want them.

    Args:
        model: the network.
        preprocess: what the metadata of its weight file says; nothing, or nothing in it, where it does not say.

    Raises:
        NoInputError: the model takes another number of channels, or images larger than the photographs.
        PreprocessError: what is said cannot be used.
    """
    channels, height, width = model.input_chw
    if channels != 3:
        raise NoInputError(f"{model.name} takes {channels} channels; the embedded images have 3")
    if (height, width) == (32, 32) and (not preprocess or preprocess == DIGITS_PREPROCESS):
        return Inputs("scikit-learn digits, test set", None, digits()[1].images[:POOL])
    return photographs(height, width, of_metadata(preprocess, height) if preprocess else DEFAULT)
