"""A trainer for the timed path alone: every step pulls all that it holds towards a number, and each mode is at fault in one way.

It computes no gradient but that of the probe of precisions, so its certificates have to be taken for granted.
"""

from __future__ import annotations

import os
import time

import numpy as np

from impls import implementation
from impls.oracle import training
from impls.oracle.rounding import as_taken

from ..honest import runtime

STEP_S = 2e-3
"""How long a step takes, for its time to be seen."""

MOST_PENDING = 5
"""Steps that the unfenced one puts off; a window of what takes no time holds thousands."""


class Trainer(implementation.Trainer):
    """A dict of arrays that steps pull at."""

    host_layout = "NCHW"

    def __init__(self, weights, momentum, mode, device):
        self.held, self.velocity = dict(weights), dict(momentum)
        self.mode, self.device, self.steps, self.pending = mode, device, 0, 0

    def put(self, images, labels):
        """See the contract."""
        assert images.dtype == np.float32
        assert labels.dtype == np.int64
        assert labels.shape == images.shape[:1]
        return images, labels

    def enqueue(self, batch, learning_rate):
        """See the contract; the one that is unfenced only takes notes."""
        self.steps += 1
        if self.mode == "unfenced":
            self.pending = min(self.pending + 1, MOST_PENDING)
        else:
            self.pull()
        return np.float32("nan" if self.mode == "diverges" and self.steps > 5 else 1 / self.steps)

    def pull(self):
        """One step."""
        end = time.perf_counter() + STEP_S
        while time.perf_counter() < end:
            pass
        if self.mode == "stands_still" and self.steps > 5:
            return
        for name in self.held:
            if not (self.mode == "freezes" and name == "conv1.weight"):
                self.held[name] = self.held[name] + np.float32(1e-4) * (1 - self.held[name])
        if self.mode == "overflows":
            self.velocity = {name: velocity + np.float32("inf") for name, velocity in self.velocity.items()}

    def wait(self, loss):
        """See the contract."""

    def get(self, loss):
        """See the contract."""
        return float(loss)

    def first_parameter(self):
        """See the contract; what is pending is done at last."""
        for _ in range(self.pending):
            self.pull()
        self.pending = 0
        return self.held["bn1.weight" if self.mode == "freezes" else "conv1.weight"]

    def differentiate(self, images, labels):
        """It cannot."""
        raise NotImplementedError

    def weights(self):
        """See the contract."""
        return self.held

    def momentum(self):
        """See the contract."""
        return self.velocity

    def compilations(self):
        """See the contract."""
        return self.steps if self.mode == "recompiles" else 0

    def settings(self):
        """See the contract."""
        told = {"precision": "float32", "tf32": False, "layout": "NCHW", "deterministic": True, "placed_on": self.device}
        return {**told, "threads": len(os.sched_getaffinity(0))}


class Probed(Trainer):
    """The oracle's steps with the weights of the precision; the narrow one's are bf16's."""

    def __init__(self, model, weights, momentum, sgd, mode, settings):
        super().__init__(weights, momentum, mode, settings.device)
        self.model, self.sgd, self.precision = model, sgd, "bf16" if mode == "narrow" else settings.precision

    def enqueue(self, batch, learning_rate):
        """See the contract."""
        state, taken = training.State(self.held, self.velocity), as_taken(self.model, self.held, self.precision)
        state, found = training.step(self.model, state, *batch, self.sgd, learning_rate, taken=taken)
        self.held, self.velocity = ({name: np.float32(each) for name, each in held.items()} for held in (state.weights, state.momentum))
        return found.loss


class Network(runtime.Network):
    """The probes' network, where the trainer is."""

    def settings(self):
        """See the contract."""
        return {**super().settings(), "placed_on": "cuda"}


class Runtime(runtime.Runtime):
    """NumPy in this process."""

    def prepare_training(self, model, weights, momentum, sgd, mode, input_shape):
        """See the contract."""
        implementation.check_training(model, self.settings.precision, input_shape)
        if mode == "crowded" and input_shape[0] > 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if model.name == "probe-precision":
            return Probed(model, weights, momentum, sgd, mode, self.settings)
        return Trainer(weights, momentum, mode, self.settings.device)

    def device_memory(self):
        """See the contract."""
        return {"peak_allocated_bytes": 3 << 20} if self.settings.device == "cuda" else {}
