"""A GPU of NumPy's: its memory ends where the mode says."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from ..honest import runtime

ROOM = 4
"""The largest batch of images that mode ``small`` has memory for, and ``sociable`` beside others; probes take none."""


RING = 8
"""Batches of a ring of so few images."""


class OutOfMemoryError(RuntimeError):
    """As PyTorch's is called."""


PATIENCE_S = 1.0
"""A process that was sent a signal to stop does so a little later."""


def is_probe(chw):
    """Probes have 2 x 2 pixels."""
    return chw[1] <= 2


def company():
    """The states of the parent's other workers, as /proc has them: all hold memory of the card, those that are not stopped (T) use it."""
    siblings = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text(encoding="ascii").split()
    others = [Path("/proc", pid) for pid in siblings if int(pid) != os.getpid()]
    workers = [other for other in others if b"suites.harness.worker" in (other / "cmdline").read_bytes()]
    return [(worker / "stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] for worker in workers]


def awake_beside():
    """How many other workers are awake, and stay so."""
    end = time.monotonic() + PATIENCE_S
    while set(company()) - {"T"} and time.monotonic() < end:
        time.sleep(0.01)
    return sum(state != "T" for state in company())


def claims():
    """What each living process has of the card's memory, as a fraction, by its number."""
    found = Path(os.environ["CARD_CLAIMS"]).iterdir() if "CARD_CLAIMS" in os.environ else ()
    return {path.name: float(path.read_text()) for path in found if Path("/proc", path.name).exists()}


class Network(runtime.Network):
    """Honest NumPy, elsewhere. A GPU's libraries time kernels while they build and in the first call; ``beside`` is who was awake then."""

    def __init__(self, model, tensors, mode, taken):
        super().__init__(model, tensors)
        self.called = is_probe(model.input_chw)  # whose kernels nobody keeps
        self.beside = 0 if self.called else awake_beside()
        self.mode, self.taken, self.puts = mode, taken, 0

    def put(self, images):
        """See the contract."""
        self.puts += 1
        return super().put(images)

    def run(self, batch):
        """See the contract."""
        if not self.called:
            self.beside, self.called = max(self.beside, awake_beside()), True
        elif self.mode == "fragile" and len(batch) > ROOM and company():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(batch)

    def settings(self):
        """See the contract; ``taken`` is what others had of the card's memory when this was built."""
        return {**super().settings(), "placed_on": "cuda", "beside": self.beside, "taken": self.taken}


class Runtime(runtime.Runtime):
    """NumPy in this process."""

    largest = 0
    network = None

    def prepare(self, model, weights, mode, input_shape):
        """See the contract."""
        images, taken = 0 if is_probe(input_shape[1:]) else input_shape[0], sum(claims().values())
        if images > ROOM and (mode == "small" or (mode == "sociable" and company())):
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if images > ROOM and mode == "shy" and company():
            raise RuntimeError("GET was unable to find an engine to execute this computation")
        if images > ROOM and mode == "large":
            Path(os.environ["CARD_CLAIMS"], str(os.getpid())).write_text("0.6")
        network = super().prepare(model, weights, mode, input_shape)
        self.largest = max(self.largest, images)
        self.network = Network(network.model, network.tensors, mode, taken)
        return self.network

    def device_memory(self):
        """See the contract; copies of the host's take half a MiB, but for those of the first call and of a ring."""
        copies = 1 << 19 if self.network and self.network.puts > 1 + RING else 0
        return {"peak_allocated_bytes": (self.largest << 20) + copies, "peak_reserved_bytes": self.largest << 21}
