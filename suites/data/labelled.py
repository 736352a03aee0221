"""What every data set gives: labels, a name for each image, and its pixels when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""One image, (H, W, 3), RGB."""


class DataError(ValueError):
    """A data set that cannot be used; the message names folder or file, and the way out."""


class ImageError(ValueError):
    """One image that cannot be read, and why; the others can."""


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """A labelled data set that is read image by image.

    ``labels`` (count,) int64 in 0 .. classes - 1; ``names`` what each image is called for people; ``read`` gives the pixels of one
    by its index, from any thread, or raises ImageError. ``side`` is that of all images, None where they are of many sizes. ``sha256``
    identifies labels and names, and the pixels too where they are one file.
    """

    name: str
    classes: int
    labels: npt.NDArray[np.int64]
    names: Sequence[str]
    read: Callable[[int], Pixels]
    side: int | None
    sha256: str
