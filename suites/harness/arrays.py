"""Arrays between the parent and its workers, as safetensors files in the run's own folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from results.store import StoreError


def save(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> None:
    """Write arrays for a worker.

    Raises:
        StoreError: they cannot be written, for example because the disk is full.
    """
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    except SafetensorError as error:
        raise StoreError(f"{path} could not be written: {error}") from None
