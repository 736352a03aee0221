"""The embedded images: the same bytes everywhere, brought to tensors by the rule that is written down."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_sample_image

from impls import models
from suites.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, PRESETS, PreprocessError
from suites.harness import inputs

GOLDEN = {
    224: "bda5c27e44d866739d961d0cac6c43222c27240a0473f51f194be1b1323cc746",
    64: "361e93a9e07af3f19dff8c1fe88513da1f1582d982490e6a9260eb0957cb5377",
}
DIGITS = (
    "bdfb2e58e1a033098fac789467512541bc28424e6f678c97da8855d5d1486193",
    "cdd5b00abaf5143cf5c784080dbf2c4e2ed2e4b1c4892f33d553da82d8e50776",
    "430c49c7dd893d785fdaf207342ff447d02f7d776522c7710867f8b3225658ac",
)


@pytest.mark.parametrize("size", GOLDEN)
def test_photographs_are_the_same_bytes_everywhere(size: int) -> None:
    """The pool of crops has one identity; another reader, crop or arithmetic would change it."""
    found = inputs.photographs(size, size)
    assert found.pool.shape == (8, 3, size, size)
    assert found.pool.dtype == np.float32
    assert found.sha256 == GOLDEN[size]


def test_digits_are_the_same_bytes_everywhere() -> None:
    """1297 training and 500 test images, with one identity each."""
    train, test = inputs.digits()
    assert train.images.shape == (1297, 3, 32, 32)
    assert test.images.shape == (500, 3, 32, 32)
    assert tuple(hashlib.sha256(each.tobytes()).hexdigest() for each in (train.images, test.images, test.labels)) == DIGITS


def test_the_rule_for_a_photograph() -> None:
    """Pixel by pixel: (value / 255 - mean) / std in float32, RGB, the first crop from the top left corner, the last from the other."""
    pool = inputs.photographs(64, 64).pool
    photograph = load_sample_image("china.jpg")
    mean, std = (np.array(each, np.float32) for each in (IMAGENET_MEAN, IMAGENET_STD))
    for index, (top, left) in {0: (0, 0), 3: (427 - 64, 640 - 64)}.items():
        for row, column in ((0, 0), (5, 63), (63, 63)):
            pixel = photograph[top + row, left + column].astype(np.float32) / np.float32(255)
            assert pool[index, :, row, column].tolist() == ((pixel - mean) / std).tolist()
    assert not np.array_equal(pool[:4], pool[4:])


def test_the_rule_for_a_digit() -> None:
    """Every pixel repeated 4 x 4, alike in R, G and B, value / 8 - 1: undone, the scans come out as they were."""
    bunch = load_digits()
    _, test = inputs.digits()
    scans = (test.images[:, :, ::4, ::4] + 1) * 8
    for channel in range(3):
        np.testing.assert_array_equal(scans[:, channel], bunch.images[-500:])
    blocks = test.images.reshape(500, 3, 8, 4, 8, 4)
    assert (blocks == blocks[:, :, :, :1, :, :1]).all()
    np.testing.assert_array_equal(test.labels, bunch.target[-500:])


@given(batch_size=st.integers(1, 40))
def test_a_ring_has_distinct_batches(batch_size: int) -> None:
    """Whatever the batch size, no two batches of the ring start with the same image, and each image stands where it should."""
    found = inputs.digits()[1].images[: inputs.POOL]
    ring = dataclasses.replace(inputs.for_model(models.get("cifar_resnet20")), pool=found)
    members = ring.members(batch_size)
    assert members.shape == (inputs.RING, batch_size)
    assert len(set(members[:, 0])) == inputs.RING
    assert (ring.ring(batch_size) == found[members]).all()
    covering = ring.covering(batch_size)
    assert (covering == members[: len(covering)]).all()
    assert set(covering.flat) == set(range(inputs.POOL))
    assert all(len(set(place)) >= 2 for place in covering.T)
    assert len(covering) == 2 or set(covering[:-1].flat) != set(range(inputs.POOL))


def test_pixels_are_prepared_as_the_weights_want_them() -> None:
    """Caffe's BGR on 0..255 less the means, of any size; a CIFAR net that was not trained on digits sees photographs."""
    caffe = inputs.for_model(models.get("resnet50_v1"), PRESETS["keras_caffe"].as_json())
    photograph = load_sample_image("china.jpg").astype(np.float32)
    assert caffe.pool[0, :, 5, 7].tolist() == (photograph[5, 7, ::-1] - np.array([103.939, 116.779, 123.68], np.float32)).tolist()
    assert caffe.photographs(64, 64)[0, :, 5, 7].tolist() == caffe.pool[0, :, 5, 7].tolist()
    assert inputs.for_model(models.get("resnet50_v1"), caffe.preprocess).sha256 == caffe.sha256
    small = models.get("cifar_resnet20")
    cifar = inputs.for_model(small, PRESETS["cifar"].as_json())
    assert (cifar.pool.shape, cifar.source[-10:]) == ((8, 3, 32, 32), "flower.jpg")
    digits = [inputs.for_model(small, stored) for stored in (None, {}, dict(inputs.DIGITS_PREPROCESS))]
    assert {each.sha256 for each in digits} == {digits[0].sha256} != {cifar.sha256}
    assert (digits[0].photographs(64, 64) == inputs.photographs(64, 64).pool).all()
    with pytest.raises(PreprocessError, match="std is"):
        inputs.for_model(small, {**cifar.preprocess, "std": [1, 0, 1]})


def test_models_get_images_of_their_size() -> None:
    """CIFAR nets see digits, others photographs; what cannot be had is refused by name."""
    assert inputs.for_model(models.get("cifar_resnet20")).source.startswith("scikit-learn digits")
    assert inputs.for_model(models.get("resnet18")).pool.shape == (8, 3, 224, 224)
    grey = dataclasses.replace(models.get("resnet18"), input_chw=(1, 224, 224))
    with pytest.raises(inputs.NoInputError, match="takes 1 channels"):
        inputs.for_model(grey)
    large = dataclasses.replace(models.get("resnet18"), input_chw=(3, 512, 512))
    with pytest.raises(inputs.NoInputError, match="427 x 640 pixels, not 512 x 512"):
        inputs.for_model(large)
