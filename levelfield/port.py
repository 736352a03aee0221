"""One line in the tests of people who port a model (docs/diagnose.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from levelfield import checkout

UNUSED = ".num_batches_tracked"
"""PyTorch's count of training steps; no inference reads it."""


def assert_equivalent(
    model: str,
    weights: str | Path | Mapping[str, npt.ArrayLike],
    outputs: npt.ArrayLike | Mapping[str, npt.ArrayLike],
    images: npt.ArrayLike | None = None,
    precision: str = "fp32",
) -> None:
    """See ``levelfield.assert_equivalent``, which documents it."""
    checkout.enter()
    from impls import models
    from impls.spec import tensor_shapes
    from impls.weights import file
    from suites.equivalence import doors
    from suites.equivalence.diagnosis import diagnose
    from suites.equivalence.outputs import LOGITS, NotFiniteError

    if isinstance(weights, (str, Path)):
        loaded = file.load(Path(weights), models.get(model))
        spec, tensors = loaded.model, loaded.weights
    else:
        spec = models.get(model)
        tensors = {name: np.asarray(tensor) for name, tensor in weights.items() if not name.endswith(UNUSED)}
        for name, tensor in tensors.items():
            if name not in tensor_shapes(spec):
                raise ValueError(f"{model} has no tensor {name!r}; its names are torchvision's")
            if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
                raise ValueError(f"{name}: must be finite float32, is {tensor.dtype}")
    batch = doors.embedded(spec) if images is None else np.asarray(images)
    if batch.dtype != np.float32 or not np.isfinite(batch).all():
        raise ValueError(f"images must be finite float32, are {batch.dtype}")
    named: Mapping[str, Any] = outputs if isinstance(outputs, Mapping) else {LOGITS: outputs}
    threads = len(os.sched_getaffinity(0))
    try:
        found = {name: np.asarray(array) for name, array in named.items()}
        answer = diagnose(spec, tensors, batch, found, precision, threads=threads)
    except NotFiniteError as error:
        raise AssertionError(f"differs: {error}") from None
    if answer.verdict != "equal":
        raise AssertionError(answer.sentence)
