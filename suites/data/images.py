"""One image file to RGB pixels, by Pillow; the file is not trusted.

What torchvision, timm and the published accuracies do is done: the pixels as they are stored, without the rotation that EXIF asks for,
colour profiles and transparency ignored, CMYK by Pillow's plain conversion. Samples of 16 bits are scaled to 8, which Pillow would
cut off at 255. Of an animation the first frame is taken.
"""

from __future__ import annotations

import functools
import io
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from suites.data.labelled import ImageError, Pixels

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Readers that start no other program, as the one for EPS does."""

MOST_BYTES = 256 << 20
"""Of a file. The largest of ImageNet's 50,000 validation images has under 10 MB."""

MOST_PIXELS = (1 << 28) // 3
"""89 million, Pillow's own limit: a quarter of a GiB as RGB. Of the image as stored and, in ``preprocess``, as resized."""

DEEPEST = 65535
"""The largest sample of 16 bits."""


def decode(path: Path) -> Pixels:
    """The pixels of an image file, (H, W, 3) uint8.

    Raises:
        ImageError: no such file, no image, cut off, too large, or samples that are neither of 8 nor of 16 bits.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ImageError("is not a file" if path.exists() else "there is no such file")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ImageError(f"has {size} bytes, more than the {MOST_BYTES} that are read")
        return of_bytes(path.read_bytes())
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from None


def of_bytes(data: bytes) -> Pixels:
    """The pixels of an image file's content; raises as :func:`decode`."""
    image_module = pillow()
    try:
        with image_module.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise _too_large(width, height)
            return _rgb(image)
    except ImageError:
        raise
    except image_module.UnidentifiedImageError:
        raise ImageError(f"is no image in any of the formats {', '.join(FORMATS)}") from None
    except (image_module.DecompressionBombError, image_module.DecompressionBombWarning):
        raise ImageError(f"has more than the {MOST_PIXELS:,} pixels that are decoded") from None
    except Exception as error:  # Pillow's readers promise no closed list, and one bad image must not end the others
        raise ImageError(f"cannot be decoded: {' '.join(str(error).split())[:200] or type(error).__name__}") from None


def _too_large(width: int, height: int) -> ImageError:
    return ImageError(f"has {width} x {height} pixels, more than the {MOST_PIXELS:,} that are decoded")


@functools.cache
def pillow() -> ModuleType:
    """``PIL.Image``, which most commands need not load, set to refuse where it would only warn of a decompression bomb."""
    from PIL import Image

    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    return Image


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # grey of 16 bits, alone or in 32
        samples = np.asarray(image).astype(np.int64)
        if samples.min(initial=0) < 0 or samples.max(initial=0) > DEEPEST:
            raise ImageError(f"has samples from {samples.min()} to {samples.max()}, which are not of 16 bits")
        grey = ((samples * 255 + DEEPEST // 2) // DEEPEST).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))
    if image.mode == "F":
        raise ImageError("has floating-point samples, which have no white")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours, without Pillow's warning
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
