"""The same networks in four frameworks: proved equal first, then compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt
    import pandas as pd


def load(path: str | Path, baseline: str | None = None) -> pd.DataFrame:
    """What was measured, as one tidy frame with a row per cell: see ``reports.frame.load`` for columns, units and errors."""
    from reports import frame  # importing levelfield must need nothing

    return frame.load(path) if baseline is None else frame.load(path, baseline)


def assert_equivalent(
    model: str,
    weights: str | Path | Mapping[str, npt.ArrayLike],
    outputs: npt.ArrayLike | Mapping[str, npt.ArrayLike],
    images: npt.ArrayLike | None = None,
    precision: str = "fp32",
) -> None:
    """Pass if a port's outputs are the model's up to the rounding of its precision; else say what is wrong with it (docs/diagnose.md).

    Args:
        model: a name of ``levelfield models``.
        weights: a weight file, or float32 arrays under torchvision's names; ``num_batches_tracked`` is ignored.
        outputs: the port's logits, (N, classes), or any of its layers' outputs under the spec's names, (N, C, H, W) or (N, H, W, C).
        images: what the port was given, as (N, C, H, W) float32 whatever its own layout; the project's own images if left out.
        precision: in which the port computed: fp64, fp32, tf32, bf16 or fp16.

    Raises:
        AssertionError: they differ, hold NaN, or cannot be judged because rounding drowns them; the message is the diagnosis.
        ValueError: a model, tensor, shape or type that is none; the message names it.

    Example:
        >>> import numpy as np, levelfield
        >>> from impls import models
        >>> from impls.oracle.forward import forward as my_port
        >>> from impls.weights.synthesis import synthesize
        >>> model = models.get("cifar_resnet8")
        >>> weights = synthesize(model, seed=0)
        >>> images = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
        >>> levelfield.assert_equivalent("cifar_resnet8", weights, my_port(model, weights, images), images)
        >>> levelfield.assert_equivalent("cifar_resnet8", weights, my_port(model, weights, images[:, ::-1]), images)
        Traceback (most recent call last):
        AssertionError: differs: conv1 is given BGR instead of RGB; explains 100.00 % of the difference
    """
    from levelfield import port

    port.assert_equivalent(model, weights, outputs, images, precision)
