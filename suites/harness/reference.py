"""What the oracle says of a network on its timing images: logits and predicted rounding noise, computed once and kept.

One file per question in the cache folder, named by a hash of everything the answer depends on: network, weights, images,
precision, the oracle's own code. It serves every implementation and mode, since all hold the same folded weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from impls.implementation import ROOT
from impls.oracle.rounding import Envelope, envelope, round_to
from impls.spec import ModelSpec, as_json
from impls.weights.file import tensor_sha256
from suites.harness.arrays import save
from suites.harness.environments import cache_root

RUNS_IN_ALL = 16
"""Noisy runs over the whole pool of images; each image gets its share, and at least one."""


def code_sha256(*patterns: str, root: Path = ROOT) -> str:
    """One hash over the files of the checkout at ``root`` that match, names and contents."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()}):
        digest.update(f"{path.relative_to(root)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()


@functools.cache
def oracle_sha256() -> str:
    """The version of the oracle: its code and what it is written from."""
    return code_sha256("impls/oracle/*.py", "impls/spec.py", "impls/precision.py", "impls/weights/folding.py", "impls/weights/variant.py")


def held(weights: Mapping[str, npt.NDArray[np.float32]], precision: str) -> dict[str, npt.NDArray[np.floating]]:
    """The weights as a run in this precision holds them: fp32 and tf32 as they are, others rounded once."""
    if precision in ("fp32", "tf32"):
        return dict(weights)
    return {name: round_to(tensor, precision) for name, tensor in weights.items()}


def reference(
    model: ModelSpec, weights: Mapping[str, npt.NDArray[np.float32]], images: npt.NDArray[np.float32], precision: str, workers: int
) -> Envelope:
    """Logits and deviation of every image of the pool, (P, classes) float64, for the weights that ``precision`` holds.

    ``model`` and ``weights`` are as the timed mode has them (folded). Image i's noise depends on i alone.
    """
    runs = max(1, RUNS_IN_ALL // len(images))
    question = json.dumps(
        [
            as_json(model),
            tensor_sha256(weights),
            hashlib.sha256(images.tobytes()).hexdigest(),
            images.shape,
            precision,
            runs,
            oracle_sha256(),
        ],
        sort_keys=True,
    )
    path = cache_root() / "oracle" / f"{hashlib.sha256(question.encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        kept = load_file(path)
        return Envelope(kept["logits"], kept["deviation"])
    pool = held({"images": images}, precision)["images"]
    tensors = held(weights, precision)

    def one(index: int) -> Envelope:
        return envelope(model, tensors, pool[index : index + 1], precision, runs=runs, seed=index)

    with ThreadPoolExecutor(workers) as executor:  # NumPy lets go of the interpreter lock in all that takes time here
        parts = list(executor.map(one, range(len(images))))
    answer = Envelope(np.concatenate([part.logits for part in parts]), np.concatenate([part.deviation for part in parts]))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    save({"logits": answer.logits, "deviation": answer.deviation}, unfinished)
    unfinished.replace(path)
    return answer
