"""From pixels to a network's input: one pipeline in Pillow and NumPy for all implementations, so the tensor is the same bytes for all.

Resize and crop as torchvision's ``Resize`` and ``CenterCrop`` do on Pillow images; pixels to float32 by
``(pixel / 255 * (high - low) + low - mean) / std`` in that order, and ``(pixel - mean) / std`` on a scale of 0..255, from a table of
256 values a channel.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from suites.data.images import MOST_PIXELS, pillow
from suites.data.labelled import ImageError, Pixels

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Three = tuple[float, float, float]

# torchvision 0.28 transforms/_presets.py ImageClassification: statistics of ImageNet's training images, RGB on 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

TEN = 10
"""Crops of a 10-crop test: four corners and the centre, and the mirror image of each (Krizhevsky et al. 2012, section 4.1)."""


LARGEST = 4096
"""Pixels of a side that images are resized to."""


class PreprocessError(ValueError):
    """A preprocessing that cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image becomes an input.

    The shorter side is resized to ``resize`` (None: not at all), with ``interpolation``, and the central square of ``crop`` pixels
    is taken (None: all). Pixels are brought from 0..255 to ``range``; ``mean`` and ``std`` are per channel in the order of ``channels``.
    """

    resize: int | None
    crop: int | None
    interpolation: Interpolation
    channels: Literal["RGB", "BGR"]
    range: tuple[float, float]
    mean: Three
    std: Three
    source: str = ""

    def as_json(self) -> dict[str, object]:
        """As it stands in a weight file's metadata."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


UNIT = (0.0, 1.0)
BYTES = (0.0, 255.0)

_TORCHVISION = Preprocess(256, 224, "bilinear", "RGB", UNIT, IMAGENET_MEAN, IMAGENET_STD)
_CIFAR = Preprocess(None, None, "bilinear", "RGB", UNIT, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

PRESETS: Mapping[str, Preprocess] = {
    "torchvision": dataclasses.replace(
        _TORCHVISION, source="torchvision 0.28 transforms/_presets.py ImageClassification, of the IMAGENET1K_V1 weights"
    ),
    "torchvision_v2": dataclasses.replace(_TORCHVISION, resize=232, source="the same, of the IMAGENET1K_V2 weights: resize_size=232"),
    "torchvision_googlenet": dataclasses.replace(
        _TORCHVISION,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        source="torchvision 0.29 models/googlenet.py: ImageClassification and, in the network, transform_input; the same but for rounding",
    ),
    "timm": dataclasses.replace(
        _TORCHVISION, interpolation="bicubic", source="timm 1.0 data/constants.py DEFAULT_CROP_PCT = 0.875: floor(224 / 0.875) = 256"
    ),
    "timm_0.95": dataclasses.replace(
        _TORCHVISION,
        resize=235,
        interpolation="bicubic",
        source="timm 1.0, crop_pct 0.95 of the resnet*.a1_in1k and a3_in1k weights: floor(224 / 0.95)",
    ),
    "timm_1.0": dataclasses.replace(
        _TORCHVISION, resize=224, interpolation="bicubic", source="timm 1.0, test_crop_pct 1.0 of the resnet50.a1h_in1k weights"
    ),
    "timm_288_0.95": dataclasses.replace(
        _TORCHVISION,
        resize=303,
        crop=288,
        interpolation="bicubic",
        source="timm 1.0 models/resnet.py _ttcfg: test_input_size 288, test_crop_pct 0.95: floor(288 / 0.95)",
    ),
    "timm_288_1.0": dataclasses.replace(
        _TORCHVISION,
        resize=288,
        crop=288,
        interpolation="bicubic",
        source="timm 1.0 models/resnet.py _rcfg: test_input_size 288, test_crop_pct 1.0",
    ),
    "keras_caffe": Preprocess(
        256,
        224,
        "bilinear",
        "BGR",
        BYTES,
        (103.939, 116.779, 123.68),
        (1.0, 1.0, 1.0),
        "keras 3 applications/imagenet_utils.py mode 'caffe'; Keras says nothing of resize and crop, these are ours",
    ),
    "keras_tf": Preprocess(
        256,
        224,
        "bilinear",
        "RGB",
        BYTES,
        (127.5, 127.5, 127.5),
        (127.5, 127.5, 127.5),
        "keras 3 applications/imagenet_utils.py mode 'tf', x / 127.5 - 1, rounded once less; resize and crop are ours",
    ),
    "cifar": dataclasses.replace(_CIFAR, source="kuangliu/pytorch-cifar main.py, and most that followed; its std is a mean over images"),
    "cifar10": dataclasses.replace(
        _CIFAR, std=(0.2470, 0.2435, 0.2616), source="mean and std of all training pixels of CIFAR-10, computed"
    ),
    "cifar100": dataclasses.replace(
        _CIFAR,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        source="weiaicunzai/pytorch-cifar100 conf/global_settings.py, of all training pixels, to four places",
    ),
    "cifar100_models": dataclasses.replace(
        _CIFAR,
        mean=(0.5070, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2761),
        source="chenyaofo/image-classification-codebase conf/cifar100.conf, as logged in pytorch-cifar-models logs/cifar100",
    ),
    "cifar_imagenet": dataclasses.replace(
        _CIFAR, mean=IMAGENET_MEAN, std=IMAGENET_STD, source="akamaster/pytorch_resnet_cifar10 trainer.py: ImageNet's statistics"
    ),
}
"""By name. Mean and std of 0..1 unless the range says otherwise."""


def chosen(name: str) -> Preprocess:
    """The preset of this name.

    Raises:
        PreprocessError: there is none.
    """
    if name not in PRESETS:
        raise PreprocessError(f"there is no preprocessing {name!r} (known: {', '.join(PRESETS)})")
    return PRESETS[name]


def of_metadata(stored: Mapping[str, object], size: int) -> Preprocess:
    """What a weight file's metadata says; where it says nothing of resize and crop, nothing for images of 32, else torchvision's.

    Args:
        stored: the object under ``preprocess``.
        size: the side of the network's input.

    Raises:
        PreprocessError: a field that is missing, unknown or of another type or range.
    """
    geometry = PRESETS["cifar" if size <= 32 else "torchvision"]
    defaults = {"resize": geometry.resize, "crop": geometry.crop, "interpolation": geometry.interpolation, "source": ""}
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in {**defaults, **stored}.items()}
    fields = {field.name for field in dataclasses.fields(Preprocess)}
    if odd := [*sorted(found.keys() - fields), *sorted(fields - found.keys())]:
        raise PreprocessError(
            f"the weight file's own preprocessing cannot be used for these images: {odd[0]!r} is unknown or missing in it"
        )
    made = Preprocess(**found)  # type: ignore[arg-type]
    for name, right in (
        ("resize", made.resize is None or (type(made.resize) is int and 1 <= made.resize <= LARGEST)),
        ("crop", made.crop is None or (type(made.crop) is int and 1 <= made.crop <= LARGEST)),
        ("interpolation", made.interpolation in get_args(Interpolation)),
        ("channels", made.channels in ("RGB", "BGR")),
        ("range", _numbers(made.range, 2) and made.range[0] < made.range[1]),
        ("mean", _numbers(made.mean, 3)),
        ("std", _numbers(made.std, 3) and min(made.std) > 0),
        ("source", isinstance(made.source, str)),
    ):
        if not right:
            raise PreprocessError(f"the weight file's own preprocessing cannot be used: {name} is {str(found[name])[:80]}")
    return made


def _numbers(value: object, count: int) -> bool:
    return isinstance(value, tuple) and len(value) == count and all(type(each) in (int, float) and abs(each) < 1e6 for each in value)


def check_size(preprocess: Preprocess, side: int | None, size: int, views: int) -> None:
    """Refuse what does not end in squares of ``size`` pixels, or in ten crops that are one and its mirror image.

    ``side`` is that of all images, None where they are of many sizes.

    Raises:
        PreprocessError: the message names both sizes.
    """
    shorter = preprocess.resize or side
    if shorter is None:
        raise PreprocessError("the images are of many sizes, and this preprocessing resizes none")
    if preprocess.resize is not None and preprocess.crop is None:
        raise PreprocessError("this preprocessing resizes and does not crop, so its images are no squares")
    taken = preprocess.crop or shorter
    if taken != size or shorter < size:
        what = f"crops {taken} x {taken} of {shorter}" if preprocess.crop else f"leaves {taken} x {taken}"
        raise PreprocessError(f"this preprocessing {what} pixels, the network takes {size} x {size}")
    if views == TEN and shorter == size:
        raise PreprocessError("a 10-crop test needs images that are larger than the network's input; this preprocessing leaves none")


def prepare(pixels: Pixels, preprocess: Preprocess, views: int = 1) -> npt.NDArray[np.float32]:
    """The input that an image becomes, (views, 3, H, W) float32, contiguous; ``views`` is 1 or TEN.

    Raises:
        ImageError: resized it would have more pixels than are held.
    """
    sized = resized(pixels, preprocess.resize, preprocess.interpolation)
    crops = [sized] if preprocess.crop is None else cropped(sized, preprocess.crop, views)
    return normalised(np.stack(crops), preprocess)


def resized(pixels: Pixels, resize: int | None, interpolation: Interpolation) -> Pixels:
    """The shorter side ``resize`` pixels long, the longer in proportion, rounded down; as torchvision's ``Resize``."""
    height, width = pixels.shape[:2]
    if resize is None or min(height, width) == resize:
        return pixels
    longer = resize * max(height, width) // min(height, width)
    if resize * longer > MOST_PIXELS:
        raise ImageError(f"has {width} x {height} pixels, and resized to {resize} x {longer} would have more than {MOST_PIXELS:,}")
    size = (resize, longer) if width <= height else (longer, resize)
    module = pillow()
    return np.asarray(module.fromarray(pixels).resize(size, module.Resampling[interpolation.upper()]))


def cropped(pixels: Pixels, side: int, views: int) -> list[Pixels]:
    """The central square, or the ten of a 10-crop test: four corners and the centre, then their mirror images.

    The centre is torchvision's, ``round((length - side) / 2)`` with halves to even.
    """
    bottom, right = pixels.shape[0] - side, pixels.shape[1] - side
    centre = (round(bottom / 2), round(right / 2))
    places = [centre] if views == 1 else [(0, 0), (0, right), (bottom, 0), (bottom, right), centre]
    squares = [pixels[top : top + side, left : left + side] for top, left in places]
    return squares if views == 1 else squares + [square[:, ::-1] for square in squares]


def normalised(pixels: npt.NDArray[np.uint8], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """Pixels (..., H, W, 3) RGB as inputs (..., 3, H, W) float32."""
    table = _table(preprocess)
    order = (0, 1, 2) if preprocess.channels == "RGB" else (2, 1, 0)
    return np.stack([table[place][pixels[..., channel]] for place, channel in enumerate(order)], axis=-3)


@functools.cache
def _table(preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """What each of the 256 values becomes in each channel, (3, 256), every operation rounded to float32."""
    low, high = (np.float32(end) for end in preprocess.range)
    values = np.arange(256, dtype=np.float32)
    if preprocess.range != BYTES:
        values = values / np.float32(255)
    if preprocess.range not in (UNIT, BYTES):
        values = values * (high - low) + low
    mean, std = (np.array(each, np.float32)[:, None] for each in (preprocess.mean, preprocess.std))
    return np.asarray((values - mean) / std, np.float32)
