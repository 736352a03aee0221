"""Whether there is an NVIDIA GPU, asked without any framework."""

from __future__ import annotations

import ctypes
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")
LIBRARY = "libnvidia-ml.so.1"


def missing(driver: Path = DRIVER, library: str = LIBRARY) -> str | None:
    """Why no GPU can be used here, in one sentence that names what was looked for; None where one is there."""
    try:
        devices = sorted(driver.iterdir()) if driver.is_dir() else []
        ctypes.CDLL(library)
    except OSError:
        return f"there is no NVIDIA GPU to be used here: the driver's library {library} cannot be loaded (looked for it and for {driver})"
    if not devices:
        return f"there is no NVIDIA GPU to be used here: {driver} lists none, though {library} is installed"
    return None
