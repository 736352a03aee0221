"""Everything that an implementation can do wrong, one fault a mode; each is honest but for its fault."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from impls.implementation import CannotError
from impls.spec import BatchNorm2d, Conv2d, Padding
from suites.harness import memory

from ..honest import runtime

CERTIFYING_RUNS = 9
"""A certificate runs a network so often at most: once to build it and once for each of the ring's eight batches."""

TRUE_CLOCK = time.perf_counter_ns


class Network(runtime.Network):
    """Says what is wrong with it by its mode."""

    def __init__(self, honest, mode, folded):
        super().__init__(honest.model, honest.tensors)
        self.mode, self.folded, self.runs, self.cache = mode, folded, 0, {}

    def layer(self, layer, *inputs):
        """Wrong functions: they show in the taps and in the logits."""
        match self.mode, layer:
            case "same_padding", Conv2d(stride=2, kernel=3):  # what TensorFlow's word "SAME" does at even sizes
                layer = dataclasses.replace(layer, padding=Padding(0, 1, 0, 1))
            case "epsilon", BatchNorm2d():  # Keras' default
                layer = dataclasses.replace(layer, eps=1e-3)
            case "channel_order", Conv2d(name="conv1"):
                inputs = (inputs[0][..., ::-1],)
        output = super().layer(layer, *inputs)
        return output * 0 if self.mode == "zeros" else output

    def run(self, batch):
        """Faults of execution, and wrong logits behind right taps."""
        self.runs += 1
        late = self.runs > CERTIFYING_RUNS
        match self.mode:
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hangs":
                time.sleep(1000)
            case "killed_late" if late:
                os.kill(os.getpid(), signal.SIGKILL)
            case "hangs_late" if late:
                time.sleep(1000)
            case "chatty":
                print('{"id": 1, "ok": {}}', flush=True)
            case "garbage":
                os.write(int(sys.argv[sys.argv.index("--replies") + 1]), b"\xff\x00 not the protocol\n")
            case "unfenced":
                return functools.cache(functools.partial(super().run, batch))
            case "caches":
                if batch.tobytes() not in self.cache:
                    self.cache[batch.tobytes()] = super().run(batch)
                return self.cache[batch.tobytes()]
        output = super().run(batch)
        match self.mode:
            case "not_a_number":
                return output * np.nan
            case "not_a_number_late" if late:
                return output * np.nan
            case "cheats_late" if late:  # an answer prepared before the question
                return np.zeros_like(output)
            case "misshapen":
                return output[:, :-1]
            case "only_timed_mode_wrong" if self.folded:
                return output * 1.001
        return output

    def get(self, output):
        """The one that is unfenced works only when it is first asked for its output."""
        return super().get(output() if callable(output) else output)

    def compilations(self):
        """See the contract."""
        return self.runs if self.mode == "recompiles" else 0

    def settings(self):
        """See the contract."""
        told = super().settings()
        if self.mode == "more_threads":
            told["threads"] += 1
        if self.mode == "elsewhere":
            told["placed_on"] = "cuda"
        return told

    def taps(self, images):
        """Faults of the list of taps."""
        taken = super().taps(images)
        if self.mode == "missing_tap":
            del taken["layer1.0.conv2"]
        if self.mode == "extra_tap":
            taken["layer9.conv1"] = taken["conv1"]
        return taken


class Runtime(runtime.Runtime):
    """NumPy, up to no good."""

    def prepare(self, model, weights, mode, input_shape):
        """Faults of building and of the weights."""
        match mode:
            case "fails":
                raise ValueError("the graph\n  could not\nbe built")
            case "out_of_memory":
                raise MemoryError
            case "cannot":
                raise CannotError("it is not in the mood")
            case "one_weight_rounded" if self.settings.precision == "fp32":
                last = "fc.weight"
                bits = np.ascontiguousarray(weights[last]).view(np.uint32).copy()
                bits[0, 0] &= 0xFFFF0000  # the upper half of a float32 is a bfloat16
                weights = {**weights, last: bits.view(np.float32)}
            case "slow_clock":  # every other audit asks the same clock
                time.perf_counter_ns = lambda: TRUE_CLOCK() // 5
            case "no_peak" | "no_reset":  # in a sandbox whose kernel tells less
                memory.CLEAR_REFS = memory.CLEAR_REFS / "none"
                if mode == "no_peak":
                    memory.STATUS = Path("/dev/null")
            case "narrow" if model.name == "probe-precision":  # where no certificate looks
                weights = {name: (array.view(np.uint32) & 0xFFFFE000).view(np.float32) for name, array in weights.items()}
        folded = not any(isinstance(node, BatchNorm2d) for node in model.body)
        return Network(super().prepare(model, weights, mode, input_shape), mode, folded)
