"""The timed loop. The harness owns the clock: an implementation never times itself.

Runs inside a worker, around the four methods ``put``, ``run``, ``wait`` and ``get`` of a prepared network and nothing else.

Scopes: ``device`` starts with the inputs on the device and ends when the outputs are computed there; ``transfer`` starts
with host arrays and ends with the logits in host memory.
Scenarios: in ``single_stream`` a sample is one call, which is waited for: a latency. In ``offline`` a sample is a window of
calls that are all enqueued before the first is waited for: a throughput. One is never derived from the other.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from impls.implementation import Network


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading: when it began (``time.perf_counter_ns``), how long it took, and how many calls it covers."""

    start_ns: int
    duration_ns: int
    calls: int


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the samples."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class TimedPath:
    """A network with its ring of inputs, callable in one scope.

    ``hosts`` are the host batches in the network's own memory order; with distinct batches a cache of results cannot help.
    """

    def __init__(self, network: Network, hosts: list[Any]) -> None:
        self.network = network
        self.hosts = hosts
        self.batches = [network.put(host) for host in hosts]
        self._next = 0

    def visit(self, *, scope: str, samples: int, calls: int) -> list[Sample]:
        """Take ``samples`` readings of ``calls`` calls each; the ring goes on where the last visit left it."""
        network = self.network
        if scope == "device":
            source, submit, finish = self.batches, network.run, network.wait
        else:
            source, submit, finish = self.hosts, self._put_and_run, network.get
        with _no_collection():
            return [self._sample(source, submit, finish, calls) for _ in range(samples)]

    def _put_and_run(self, batch: Any) -> Any:
        return self.network.run(self.network.put(batch))

    def _sample(self, source: list[Any], submit: Callable[[Any], Any], finish: Callable[[Any], Any], calls: int) -> Sample:
        items = [source[(self._next + offset) % len(source)] for offset in range(calls)]
        self._next = (self._next + calls) % len(source)
        start = time.perf_counter_ns()
        for output in [submit(item) for item in items]:
            finish(output)
        return Sample(start, time.perf_counter_ns() - start, calls)


def overhead_ns(clock: Callable[[], int] = time.perf_counter_ns, repeats: int = 1000) -> tuple[int, int]:
    """Resolution (smallest step seen) and overhead (median gap between two readings) of the clock, in ns."""
    gaps = sorted(-clock() + clock() for _ in range(repeats))
    return min((gap for gap in gaps if gap > 0), default=0), gaps[repeats // 2]
