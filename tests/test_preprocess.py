"""From pixels to inputs: the geometry of torchvision's transforms, the arithmetic to the last bit, and sizes that are no good."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from impls import models
from suites.data import preprocess, test_set
from suites.data.labelled import DataError, ImageError, Labelled
from suites.data.preprocess import PRESETS, PreprocessError
from suites.harness import inputs

RNG = np.random.default_rng(0)


def pixels(height: int, width: int) -> npt.NDArray[np.uint8]:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(st.integers(1, 400), st.integers(1, 400))
def test_the_shorter_side_has_the_size_and_the_crop_is_square(height: int, width: int) -> None:
    """Whatever the image, and one of a single pixel: 3 x 224 x 224, from an image resized in proportion, rounded down."""
    how = PRESETS["torchvision"]
    image = np.zeros((height, width, 3), np.uint8)
    if max(height, width) > 40 * min(height, width):  # resized it would be long, which takes time and shows nothing
        return
    sized = preprocess.resized(image, how.resize, "nearest")
    assert min(sized.shape[:2]) == 256
    assert max(sized.shape[:2]) == int(256 * max(height, width) / min(height, width))
    assert preprocess.prepare(image, how).shape == (1, 3, 224, 224)


def test_resize_is_pillows_and_the_crop_is_central() -> None:
    """Pixel by pixel, on a landscape and a portrait."""
    for height, width, size in ((300, 411, (350, 256)), (411, 301, (256, 349))):
        image = pixels(height, width)
        right = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        top, left = round((size[1] - 224) / 2), round((size[0] - 224) / 2)
        right = right[top : top + 224, left : left + 224]
        found = preprocess.cropped(preprocess.resized(image, 256, "bilinear"), 224, 1)
        assert len(found) == 1
        assert np.array_equal(found[0], right)


def test_the_crop_rounds_halves_to_even() -> None:
    """As torchvision's center_crop: of 5 and 7 pixels to spare, 2 and 4 lie before it."""
    image = np.arange(9 * 11 * 3, dtype=np.uint8).reshape(9, 11, 3)
    assert np.array_equal(preprocess.cropped(image, 4, 1)[0], image[2:6, 4:8])


def test_ten_crops_are_four_corners_the_centre_and_their_mirror_images() -> None:
    """In the order of torchvision's TenCrop."""
    image = pixels(8, 10)
    squares = preprocess.cropped(image, 6, 10)
    right = [image[:6, :6], image[:6, 4:], image[2:, :6], image[2:, 4:], image[1:7, 2:8]]
    assert len(squares) == 10
    for found, expected in zip(squares, right + [each[:, ::-1] for each in right], strict=True):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", PRESETS)
def test_the_arithmetic_of_every_preset(name: str) -> None:
    """Every value in every channel, to the last bit of float32."""
    how = PRESETS[name]
    values = np.arange(256, dtype=np.uint8)
    image = np.stack([values, values[::-1], np.roll(values, 7)], axis=-1)[None]
    channels = image if how.channels == "RGB" else image[..., ::-1]
    scaled = channels.astype(np.float32) / np.float32(255) if how.range == (0, 1) else channels.astype(np.float32)
    right = (scaled - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    found = preprocess.normalised(image, how)
    assert found.dtype == np.float32
    assert found.tobytes() == np.ascontiguousarray(right.transpose(2, 0, 1)).tobytes()


def test_known_values() -> None:
    """By hand: caffe's blue comes first and loses 103.939; tf's white is 1 and black -1; another range is as it says."""
    image = np.array([[[10, 20, 30]]], np.uint8)
    caffe = preprocess.normalised(image, PRESETS["keras_caffe"])[:, 0, 0]
    assert caffe.tolist() == [
        np.float32(30) - np.float32(103.939),
        np.float32(20) - np.float32(116.779),
        np.float32(10) - np.float32(123.68),
    ]
    ends = np.array([[[0, 255, 0]]], np.uint8)
    assert preprocess.normalised(ends, PRESETS["keras_tf"])[:, 0, 0].tolist() == [-1, 1, -1]
    stored = {"channels": "RGB", "range": [-2, 2], "mean": [0, 0, 0], "std": [1, 1, 1]}
    assert preprocess.normalised(ends, preprocess.of_metadata(stored, 32))[:, 0, 0].tolist() == [-2, 2, -2]


def test_torchvision_s_googlenet_normalises_twice() -> None:
    """With ImageNet's statistics and, in the network, by ``transform_input``: the preset but for rounding."""
    image = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    once = preprocess.normalised(image, PRESETS["torchvision"])
    for channel, mean, std in zip(range(3), preprocess.IMAGENET_MEAN, preprocess.IMAGENET_STD, strict=True):
        twice = once[channel] * np.float32(std / 0.5) + np.float32((mean - 0.5) / 0.5)
        assert np.abs(twice - preprocess.normalised(image, PRESETS["torchvision_googlenet"])[channel]).max() < 2e-7


def test_the_table_reproduces_the_embedded_photographs() -> None:
    """The images that networks are timed on are what this pipeline makes of the same pixels."""
    from sklearn.datasets import load_sample_images

    china = load_sample_images().images[0][:64, :64]
    assert np.array_equal(preprocess.normalised(china, PRESETS["torchvision"]), inputs.photographs(64, 64).pool[0])


def test_presets_survive_the_weight_file() -> None:
    """What is written as metadata is read back the same."""
    for how in PRESETS.values():
        assert preprocess.of_metadata(how.as_json(), 224) == how
        assert how.source


def test_metadata_without_geometry() -> None:
    """Small networks take images as they are, others torchvision's crops."""
    stored = {"channels": "RGB", "range": [0, 1], "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}
    small, large = (preprocess.of_metadata(stored, size) for size in (32, 224))
    assert (small.resize, small.crop) == (None, None)
    assert (large.resize, large.crop, large.interpolation) == (256, 224, "bilinear")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repeat": 4}, "'repeat' is unknown"),
        ({"mean": None}, "mean is None"),
        ({"mean": [1, 2]}, r"mean is \(1, 2\)"),
        ({"std": [1, 0, 1]}, "std is"),
        ({"std": [1, float("nan"), 1]}, "std is"),
        ({"range": [1, 0]}, "range is"),
        ({"channels": "GBR"}, "channels is GBR"),
        ({"channels": ["R"]}, "channels is"),
        ({"interpolation": "area"}, "interpolation is area"),
        ({"interpolation": ["area"]}, "interpolation is"),
        ({"resize": 10**9}, "resize is 1000000000"),
        ({"crop": True}, "crop is True"),
        ({"source": {}}, "source is {}"),
    ],
)
def test_metadata_that_is_no_preprocessing_is_refused(change: dict[str, object], message: str) -> None:
    """A weight file comes from somebody; its words are checked."""
    stored: dict[str, object] = {"channels": "RGB", "range": [0, 1], "mean": [0, 0, 0], "std": [1, 1, 1]}
    with pytest.raises(PreprocessError, match=message):
        preprocess.of_metadata({**stored, **change}, 224)
    del stored["std"]
    with pytest.raises(PreprocessError, match="'std' is unknown or missing"):
        preprocess.of_metadata(stored, 224)


def test_an_unknown_preset_names_those_that_there_are() -> None:
    """The sentence is the list."""
    with pytest.raises(PreprocessError, match=r"'torch' \(known: torchvision, torchvision_v2, torchvision_googlenet"):
        preprocess.chosen("torch")


def test_an_image_30000_pixels_wide() -> None:
    """As high as 300 it is taken; of 2 pixels, resized it would be 3,840,000 wide, and it is refused by name of its size."""
    wide = np.zeros((300, 30_000, 3), np.uint8)
    assert preprocess.prepare(wide, PRESETS["torchvision"]).shape == (1, 3, 224, 224)
    with pytest.raises(ImageError, match="30000 x 2 pixels, and resized to 256 x 3840000"):
        preprocess.prepare(wide[:2], PRESETS["torchvision"])


@pytest.mark.parametrize(
    ("name", "change", "side", "size", "views", "message"),
    [
        ("torchvision", {}, None, 299, 1, "crops 224 x 224 of 256 pixels, the network takes 299 x 299"),
        ("timm", {"resize": 100}, None, 224, 1, "crops 224 x 224 of 100 pixels"),
        ("timm", {"crop": None}, None, 224, 1, "resizes and does not crop"),
        ("cifar", {}, None, 32, 1, "of many sizes"),
        ("cifar", {}, 32, 224, 1, "leaves 32 x 32 pixels, the network takes 224 x 224"),
        ("cifar", {"crop": 40}, 32, 40, 1, "crops 40 x 40 of 32 pixels"),
        ("cifar", {}, 32, 32, 10, "larger than the network's input; this preprocessing leaves none"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    name: str, change: dict[str, object], side: int | None, size: int, views: int, message: str
) -> None:
    """A crop of another size, none, one of too small an image, and ten crops where there is one."""
    how = preprocess.of_metadata({**PRESETS[name].as_json(), **change}, 224)
    with pytest.raises(PreprocessError, match=message):
        preprocess.check_size(how, side, size, views)


def labelled(classes: int, side: int) -> Labelled:
    image = np.zeros((side, side, 3), np.uint8)
    return Labelled("some/test", classes, np.zeros(1, np.int64), ["one"], lambda index: image, side, "0" * 64)


def test_a_data_set_for_another_network_is_refused() -> None:
    """By its classes, and by the size of its images where nothing resizes them."""
    model = models.get("cifar_resnet20")
    with pytest.raises(DataError, match="some/test has 100 classes, cifar_resnet20 has 10"):
        test_set.prepared(labelled(100, 32), model, PRESETS["cifar"], 1)
    with pytest.raises(PreprocessError, match="leaves 48 x 48 pixels, the network takes 32 x 32"):
        test_set.prepared(labelled(10, 48), model, PRESETS["cifar"], 1)
    found = test_set.prepared(labelled(10, 32), model, PRESETS["cifar"], 1)
    assert found.prepare(0).shape == (1, 3, 32, 32)
    assert found.preprocess["mean"] == [0.4914, 0.4822, 0.4465]
