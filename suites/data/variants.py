"""What preprocessing alone changes: the table of docs/accuracy.md, measured on photographs that come inside dependencies.

``python -m suites.data.variants [--tensorflow PYTHON]`` prints it; with the interpreter of TensorFlow's environment its JPEG decoder too.
"""

from __future__ import annotations

import argparse
import functools
import io
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from impls import models
from impls.oracle import forward
from impls.weights import synthesis
from suites.data import images, preprocess

MODEL = "resnet18"
HOW = preprocess.PRESETS["torchvision"]
RESIZE, CROP = 256, 224

Values = npt.NDArray[np.float32]
"""An image on 0..255, (H, W, 3), not necessarily of whole numbers."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Of a variant from the preset ``torchvision``: pixels on 0..255 that differ, and the rms of the logits' change over their rms."""

    mean: float
    largest: float
    share: float
    logits: float


@functools.cache
def photographs() -> tuple[Path, ...]:
    """``china.jpg`` and ``flower.jpg`` of scikit-learn, ``grace_hopper.jpg`` of matplotlib."""
    import matplotlib
    import sklearn.datasets

    of_sklearn = Path(sklearn.datasets.__file__).parent / "images"
    return (
        of_sklearn / "china.jpg",
        of_sklearn / "flower.jpg",
        Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
    )


def central(values: npt.NDArray[np.generic], down: int = 0, right: int = 0) -> Values:
    """The central square of CROP pixels, or one that lies beside it."""
    top, left = (round((length - CROP) / 2) for length in values.shape[:2])
    return values[top + down : top + down + CROP, left + right : left + right + CROP].astype(np.float32)


def _resized(interpolation: preprocess.Interpolation, resize: int = RESIZE) -> Callable[[Path], Values]:
    return lambda path: central(preprocess.resized(images.decode(path), resize, interpolation))


def bilinear(values: npt.NDArray[np.floating], size: tuple[int, int]) -> npt.NDArray[np.floating]:
    """Each new pixel from the four nearest, whatever lies between them, to (height, width)."""
    for axis, new in enumerate(size):
        length = values.shape[axis]
        at = np.clip((np.arange(new) + 0.5) * length / new - 0.5, 0, length - 1)
        low = np.minimum(at.astype(int), length - 2)
        part = (at - low).reshape([-1 if each == axis else 1 for each in range(3)])
        values = np.take(values, low, axis) * (1 - part) + np.take(values, low + 1, axis) * part
    return values


def _without_antialias(path: Path) -> Values:
    """As tensors are resized with antialias=False, and by OpenCV's INTER_LINEAR."""
    pixels = images.decode(path)
    size = preprocess.resized(pixels, RESIZE, "nearest").shape[:2]
    return central(np.rint(bilinear(pixels.astype(np.float64), (size[0], size[1]))))


def _unrounded(path: Path) -> Values:
    """Bilinear with antialias in float32, not rounded to whole numbers."""
    module = images.pillow()
    pixels = images.decode(path)
    height, width = preprocess.resized(pixels, RESIZE, "bilinear").shape[:2]
    planes = [
        np.asarray(module.fromarray(pixels[..., channel].astype(np.float32)).resize((width, height), module.Resampling.BILINEAR))
        for channel in range(3)
    ]
    return central(np.stack(planes, axis=-1))


def _squashed(path: Path) -> Values:
    """Height and width to 224 each, nothing cropped: Keras' load_img with a target_size, bilinear."""
    module = images.pillow()
    return np.asarray(module.fromarray(images.decode(path)).resize((CROP, CROP), module.Resampling.BILINEAR)).astype(np.float32)


def _one_off(path: Path) -> Values:
    return central(preprocess.resized(images.decode(path), RESIZE, "bilinear"), down=1, right=1)


def _at_half_size(path: Path) -> Values:
    """The decoder itself gives a smaller image where it can (DCT scaling), as decoders do that are told the size that is wanted."""
    with images.pillow().open(path) as image:
        image.draft("RGB", (RESIZE, RESIZE))
        return central(preprocess.resized(np.asarray(image.convert("RGB")), RESIZE, "bilinear"))


def _swapped(path: Path) -> Values:
    return reference(path)[..., ::-1]


reference = _resized("bilinear")

VARIANTS: Mapping[str, Callable[[Path], Values]] = {
    "not rounded to 8 bits after the resize": _unrounded,
    "cropped one pixel further down and right": _one_off,
    "JPEG decoded at half size where it is large enough": _at_half_size,
    "resized to 232, not 256": _resized("bilinear", 232),
    "bicubic": _resized("bicubic"),
    "Lanczos": _resized("lanczos"),
    "bilinear without antialias": _without_antialias,
    "nearest": _resized("nearest"),
    "squashed to 224 x 224, not cropped": _squashed,
    "BGR for RGB": _swapped,
}
"""From the preset ``torchvision``, in one thing each."""


def by_tensorflow(python: Path, method: str) -> Callable[[Path], Values]:
    """``tf.io.decode_jpeg`` in an environment that has TensorFlow, then as the preset."""
    code = (
        "import sys, numpy, tensorflow as tf; "
        f"numpy.save(sys.stdout.buffer, tf.io.decode_jpeg(open(sys.argv[1], 'rb').read(), channels=3, dct_method={method!r}).numpy())"
    )

    def decode(path: Path) -> Values:
        done = subprocess.run([python, "-c", code, path], check=True, capture_output=True)
        pixels = np.load(io.BytesIO(done.stdout), allow_pickle=False)
        return central(preprocess.resized(pixels, RESIZE, "bilinear"))

    return decode


@functools.cache
def _logits(values: bytes) -> npt.NDArray[np.float64]:
    """Of one image, by the oracle with synthesised weights."""
    model = models.get(MODEL)
    pixels = np.frombuffer(values, np.float32).reshape(CROP, CROP, 3)
    mean, std = (np.array(each, np.float32) for each in (HOW.mean, HOW.std))
    images_of = ((pixels / np.float32(255) - mean) / std).transpose(2, 0, 1)[None]
    return forward.forward(model, _weights(), images_of)


@functools.cache
def _weights() -> Mapping[str, npt.NDArray[np.float32]]:
    return synthesis.synthesize(models.get(MODEL), 0)


def difference(variant: Callable[[Path], Values]) -> Difference:
    """Over all photographs together."""
    pixels, logits, all_logits = [], [], []
    for path in photographs():
        right, found = reference(path), variant(path)
        pixels.append(np.abs(found - right))
        logits.append(_logits(found.tobytes()) - _logits(right.tobytes()))
        all_logits.append(_logits(right.tobytes()))
    apart = np.stack(pixels)
    changed = np.sqrt(np.mean(np.square(logits)) / np.mean(np.square(all_logits)))
    return Difference(float(apart.mean()), float(apart.max()), float((apart > 0).mean()), float(changed))


def table(variants: Mapping[str, Callable[[Path], Values]] = VARIANTS) -> str:
    """The differences as Markdown."""
    lines = [
        "| in one thing other than `torchvision` | mean of the pixels' differences | largest | pixels that differ | logits |",
        "|---|---|---|---|---|",
    ]
    for name, variant in variants.items():
        found = difference(variant)
        lines.append(f"| {name} | {found.mean:.2f} | {found.largest:.3g} | {found.share:.0%} | {found.logits:.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="suites.data.variants", description=__doc__)
    parser.add_argument("--tensorflow", type=Path, help="The Python of TensorFlow's environment.")
    python = parser.parse_args().tensorflow
    methods = {"TensorFlow's decoder as it comes": "", "TensorFlow's decoder, INTEGER_ACCURATE": "INTEGER_ACCURATE"}
    more = {name: by_tensorflow(python, method) for name, method in methods.items()} if python else {}
    print(table({**VARIANTS, **more}))


if __name__ == "__main__":
    main()
