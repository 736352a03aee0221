"""Runs in a framework's environment and asks a network what the pipe cannot show: which memory it keeps its hands off.

``python tests/contract_probe.py PACKAGE PRECISION THREADS WEIGHTS OUT MODE...`` writes, for each mode, a JSON object of
answers that must all be true.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from impls.implementation import Network, Settings
from impls.weights import file


def same(first: Any, second: Any) -> bool:
    """Whether two arrays hold the same bytes in the same type and shape."""
    return (first.dtype, first.shape) == (second.dtype, second.shape) and first.tobytes() == second.tobytes()


def arranged(images: Any, network: Network) -> Any:
    """Logical NCHW in the memory order that ``put`` takes."""
    if network.host_layout == "NCHW":
        return images.copy()
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def answers(network: Network, images: Any, others: Any, classes: int) -> dict[str, bool]:
    """What must hold of ``put``, ``run``, ``wait``, ``get``, ``taps`` and ``weights``."""
    host, other_host = arranged(images, network), arranged(others, network)
    before = {name: np.array(tensor) for name, tensor in network.weights().items()}
    batch = network.put(host)
    other_batch = network.put(other_host)
    output = network.run(batch)
    network.wait(output)
    logits = np.array(network.get(output))
    other_output = network.run(other_batch)
    other_logits = np.array(network.get(other_output))
    taps = network.taps(host)
    after = network.weights()
    return {
        "the logits are a NumPy array of float32, in fp64 float64": network.get(output).dtype == images.dtype,
        "the logits have the shape (N, classes)": logits.shape == (len(images), classes),
        "two batches give two answers": not same(logits, other_logits),
        "an output outlives the next run": same(np.array(network.get(output)), logits),
        "a batch outlives the next put, and its own run": same(np.array(network.get(network.run(batch))), logits),
        "a batch put again gives the same bits": same(np.array(network.get(network.run(network.put(host)))), logits),
        "get without wait gives the same bits": same(np.array(network.get(network.run(network.put(other_host)))), other_logits),
        "the host images are as they were": same(host, images) and same(other_host, others),
        "the weights are as they were": before.keys() == after.keys() and all(same(before[name], after[name]) for name in before),
        "taps have the type of the logits": all(tap.dtype == logits.dtype for tap in taps.values()),
        "taps do not share memory": len({tap.__array_interface__["data"][0] for tap in taps.values()}) == len(taps),
    }


def main() -> None:
    """The probe."""
    package, precision, threads, weights, out, *modes = sys.argv[1:]
    runtime = importlib.import_module(f"{package}.runtime").Runtime(Settings("cpu", precision, int(threads), True))
    loaded = file.load(Path(weights))
    generator = np.random.default_rng(0)
    dtype = np.float64 if precision == "fp64" else np.float32
    images, others = (generator.normal(size=(2, *loaded.model.input_chw)).astype(dtype) for _ in range(2))
    found = {}
    for mode in modes:
        network = runtime.prepare(loaded.model, loaded.weights, mode, images.shape)
        found[mode] = {name: bool(answer) for name, answer in answers(network, images, others, loaded.model.classes).items()}
        found[mode]["it says that it is deterministic"] = network.settings()["deterministic"] is True
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
