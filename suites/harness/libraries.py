"""NVIDIA's libraries that this process has loaded, whichever package or system folder they came from, by their own word.

What a package manager says is installed need not be what runs: a cuDNN elsewhere on the loader's path takes its place
(pytorch/pytorch#188892). Imports only the standard library.

Sources: /proc/PID/maps (proc(5)); cuDNN's ``cudnnGetVersion`` (major * 10000 + minor * 100 + patch); cuBLAS's ``cublasGetProperty``
(library_types.h: MAJOR_VERSION 0, MINOR_VERSION 1, PATCH_LEVEL 2). Neither needs a GPU.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LIBRARY = re.compile(r"(?P<path>/\S*/lib(?P<name>cudnn|cublas)\.so[.\d]*)$", re.MULTILINE)

UNTOLD = "does not say"


def _cudnn(library: Any) -> str:
    library.cudnnGetVersion.restype = ctypes.c_size_t
    number = library.cudnnGetVersion()
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


def _cublas(library: Any) -> str:
    parts = []
    for property_ in range(3):
        value = ctypes.c_int()
        library.cublasGetProperty(property_, ctypes.byref(value))
        parts.append(str(value.value))
    return ".".join(parts)


VERSIONS: Mapping[str, Callable[[Any], str]] = {"cudnn": _cudnn, "cublas": _cublas}


def loaded(maps: Path = Path("/proc/self/maps"), load: Callable[[str], Any] = ctypes.CDLL) -> dict[str, str]:
    """Name and version of each; several versions of one, joined, where the process has more than one file of it."""
    found: dict[str, dict[str, None]] = {}
    for path, name in dict.fromkeys((match["path"], match["name"]) for match in LIBRARY.finditer(maps.read_text(encoding="utf-8"))):
        try:
            version = VERSIONS[name](load(path))
        except (OSError, AttributeError):
            version = UNTOLD
        found.setdefault(name, {})[version] = None
    return {name: " and ".join(versions) for name, versions in sorted(found.items())}
