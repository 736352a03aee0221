"""The rules by which others compare two implementations, re-implemented to be held against the same faults.

Each takes the outputs of a reference and of a candidate for the same images and says whether it lets the candidate pass. They
were written for other purposes than proof (a regression test, a debugging aid, a training benchmark), which ``purpose`` says;
what they let through here says what they cannot be used for, not that they are wrong where they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a rule may look at: logits (N, classes), and the labels (N,) of the images."""

    logits: Array
    labels: npt.NDArray[np.int64]

    @property
    def loss(self) -> float:
        """Mean cross-entropy; NaN where the logits are not finite."""
        logits = self.logits.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            shifted = logits - logits.max(axis=1, keepdims=True)
            log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return float(-log_softmax[np.arange(len(self.labels)), self.labels].mean())


@dataclass(frozen=True, slots=True)
class Rule:
    """One project's rule. ``source`` names project, file and version; ``passes`` takes reference and candidate."""

    id: str
    title: str
    source: str
    purpose: str
    passes: Callable[[Outputs, Outputs], bool]


def allclose(rtol: float, atol: float) -> Callable[[Outputs, Outputs], bool]:
    """Every element within atol + rtol * abs(reference), as ``numpy.allclose`` and ``torch.allclose``; NaN is never close."""
    return lambda reference, candidate: bool(np.allclose(candidate.logits, reference.logits, rtol=rtol, atol=atol))


def either(rtol: float, atol: float) -> Callable[[Outputs, Outputs], bool]:
    """Every element within atol absolutely or within rtol relatively."""

    def passes(reference: Outputs, candidate: Outputs) -> bool:
        with np.errstate(invalid="ignore", divide="ignore"):
            absolute = np.abs(candidate.logits.astype(np.float64) - reference.logits)
            relative = absolute / np.abs(reference.logits)
            return bool(np.all((absolute <= atol) | (relative <= rtol)))

    return passes


def loss_within(rtol: float) -> Callable[[Outputs, Outputs], bool]:
    """The losses differ by at most rtol of the reference's."""
    return lambda reference, candidate: bool(abs(candidate.loss - reference.loss) <= rtol * abs(reference.loss))


def means_within(rtol: float) -> Callable[[Outputs, Outputs], bool]:
    """The means of the tensors differ by at most rtol of the reference's."""

    def passes(reference: Outputs, candidate: Outputs) -> bool:
        ours, theirs = float(reference.logits.mean(dtype=np.float64)), float(candidate.logits.mean(dtype=np.float64))
        return abs(theirs - ours) <= rtol * abs(ours)

    return passes


def cosine_of(least: float, tolerance: float) -> Callable[[Outputs, Outputs], bool]:
    """All elements are close, or the cosine between the flattened tensors is at least ``least``."""

    def passes(reference: Outputs, candidate: Outputs) -> bool:
        if allclose(tolerance, tolerance)(reference, candidate):
            return True
        a, b = reference.logits.astype(np.float64).ravel(), candidate.logits.astype(np.float64).ravel()
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return bool(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) >= least)

    return passes


def same_classes(reference: Outputs, candidate: Outputs) -> bool:
    """The largest logit is the same class for every image; a logit that is not finite fails."""
    return bool(np.isfinite(candidate.logits).all() and np.array_equal(reference.logits.argmax(1), candidate.logits.argmax(1)))


RULES: tuple[Rule, ...] = (
    Rule(
        "loss-5-percent",
        "loss within 5 %",
        "a common acceptance in porting guides and training reproductions; no single project",
        "reproducing a training run, whose loss differs between seeds by as much",
        loss_within(0.05),
    ),
    Rule(
        "loss-rtol-1",
        "loss within 100 % (rtol = 1)",
        "AlgoPerf, mlcommons/algorithmic-efficiency tests/test_traindiffs.py, as of September 2025",
        "ten training steps of a JAX and a PyTorch workload, to see that neither diverges",
        loss_within(1.0),
    ),
    Rule(
        "allclose-1e-3",
        "allclose, rtol 1e-3, atol 1e-3",
        "ONNX Runtime, onnxruntime/test/providers/cpu/model_tests.cc, per-sample tolerances, commit 1a27a79",
        "regression tests of operators and model zoo networks on many devices",
        allclose(1e-3, 1e-3),
    ),
    Rule(
        "polygraphy-1e-5",
        "absolute or relative within 1e-5",
        "NVIDIA/TensorRT tools/Polygraphy/polygraphy/comparator/compare.py, defaults of CompareFunc.simple, commit 922d13f",
        "bisecting a converted network, with tolerances set by the user",
        either(1e-5, 1e-5),
    ),
    Rule(
        "torch-defaults",
        "torch.testing.assert_close, fp32 defaults (rtol 1.3e-6, atol 1e-5)",
        "PyTorch, torch/testing/_comparison.py, 2.13",
        "unit tests of single operators",
        allclose(1.3e-6, 1e-5),
    ),
    Rule(
        "tensor-means",
        "means of the tensors within rtol 1e-7",
        "PaDiff, PaddlePaddle/PaDiff padiff/checker, compare_mode='mean'",
        "finding the first layer at which a PyTorch and a Paddle model part",
        means_within(1e-7),
    ),
    Rule(
        "tensor-means-1e-4",
        "means of the tensors within rtol 1e-4",
        "the same rule with a tolerance at which correct fp32 runs pass",
        "as above",
        means_within(1e-4),
    ),
    Rule(
        "cosine-0.99",
        "cosine similarity of at least 0.99",
        "PyTorch, torch/_dynamo/utils.py same(cos_similarity=True), 2.13",
        "compiled against eager models in reduced precision, where element-wise rules fail",
        cosine_of(0.99, 1e-4),
    ),
    Rule(
        "top-1",
        "the same top-1 class for every image",
        "common in conversion guides; MLPerf inference asks for 99 % of the reference's accuracy on a data set",
        "the user-visible quality of a converted network",
        same_classes,
    ),
)
"""In the order in which they are shown."""

LOSS_RULES: Mapping[str, float] = {"loss-5-percent": 0.05, "loss-rtol-1": 1.0}
"""Those that ask for a loss alone, and so can judge training too: the share by which it may be off."""
