"""The timed loop. The harness owns the clock: an implementation never times itself.

Runs inside a worker, around the four methods ``put``, ``run``, ``wait`` and ``get`` of a prepared network and nothing else.

Scopes: ``device`` starts with the inputs on the device and ends when the outputs are computed there; ``transfer`` starts
with host arrays and ends with the logits in host memory.
Scenarios: in ``single_stream`` a sample is one call, which is waited for: a latency. In ``offline`` a sample is a window of
calls that are all enqueued before the first is waited for: a throughput. One is never derived from the other.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from impls.implementation import Network

KEPT_PER_BATCH = 2
"""Outputs of timed calls that are kept of each batch of the ring, chosen at random: 16 of a ring of 8."""

REST_S = 0.01
"""How long an output is left alone, unless a call takes longer."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading: when it began (``time.perf_counter_ns``), how long it took, and how many calls it covers."""

    start_ns: int
    duration_ns: int
    calls: int


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the samples; what is alive now is not looked through again until ``gc.unfreeze``."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(frozen=True, slots=True)
class Kept:
    """What a timed call gave: its logits on the host, (N, classes), and the batch of the ring that it was given."""

    batch: int
    logits: Any


class TimedPath:
    """A network with its ring of inputs, callable in one scope.

    ``hosts`` are the host batches in the network's own memory order; with distinct batches a cache of results cannot help.
    ``slowdown`` lengthens every sample by this fraction, spinning inside the clock: a regression planted to see a gate work.
    """

    def __init__(self, network: Network, hosts: list[Any], slowdown: float = 0.0) -> None:
        self.network = network
        self.hosts = hosts
        self.batches = [network.put(host) for host in hosts]
        self.slowdown = slowdown
        self._next = 0
        self._seen = [0] * len(hosts)
        self._kept: dict[tuple[int, int], Any] = {}
        self._random = random.Random()

    def visit(self, *, scope: str, samples: int, calls: int, keep: bool = False) -> list[Sample]:
        """Take ``samples`` readings of ``calls`` calls each; the ring goes on where the last visit left it.

        With ``keep`` the outputs of some calls are kept for ``kept``.
        """
        source, submit, finish = self.steps(scope)
        with no_collection():
            return [self._sample(scope, source, submit, finish, calls, keep=keep) for _ in range(samples)]

    def sustained(self, *, scope: str, calls: int, seconds: float) -> list[Sample]:
        """Readings of ``calls`` calls each, one after the other, the last of which ends after ``seconds``."""
        source, submit, finish = self.steps(scope)
        taken: list[Sample] = []
        with no_collection():
            end_ns = time.perf_counter_ns() + round(seconds * 1e9)
            while not taken or taken[-1].start_ns + taken[-1].duration_ns < end_ns:
                taken.append(self._sample(scope, source, submit, finish, calls, keep=False))
        return taken

    def kept(self) -> list[Kept]:
        """Outputs of the calls that were timed with ``keep``, at most ``KEPT_PER_BATCH`` of each batch, each call as likely as another.

        They are forgotten then: what is timed next is another cell's.
        """
        found = [Kept(batch, self._kept[batch, place]) for batch, place in sorted(self._kept)]
        self._kept, self._seen = {}, [0] * len(self.hosts)
        return found

    def windows(self, *, scope: str, counts: Sequence[int]) -> list[int]:
        """For each count, the ns until so many calls were enqueued, waited for and the last output read on the host."""
        source, submit, finish = self.steps(scope)
        durations = []
        with no_collection():
            for count in counts:
                items = self._items(source, count)
                start = time.perf_counter_ns()
                outputs = [submit(item) for item in items]
                answers = [finish(output) for output in outputs]
                np.array(answers[-1] if scope == "transfer" else self.network.get(outputs[-1]))
                durations.append(time.perf_counter_ns() - start)
        return durations

    def reads(self, *, scope: str, calls: int) -> list[tuple[int, int, int, int]]:
        """Of calls that were waited for: ns of the call, of reading its output at once and again, and of another's that was left alone."""
        source, submit, finish = self.steps(scope)

        def read(rest_s: float) -> list[int]:
            (item,) = self._items(source, 1)
            start = time.perf_counter_ns()
            output = submit(item)
            answer = finish(output)
            times = [time.perf_counter_ns() - start]
            time.sleep(rest_s)
            for _ in range(2):
                start = time.perf_counter_ns()
                np.array(answer if scope == "transfer" else self.network.get(output))
                times.append(time.perf_counter_ns() - start)
            return times

        taken = []
        with no_collection():
            for _ in range(calls):
                call, at_once, again = read(0)
                _, rested, _ = read(max(REST_S, call / 1e9))
                taken.append((call, at_once, again, rested))
        return taken

    def unlike(self, *, scope: str, calls: int) -> tuple[list[int], list[int]]:
        """Ns of calls on one batch repeated, and of calls on batches that were never seen before; they take turns."""
        network = self.network
        source, submit, finish = self.steps(scope)
        repeated: list[int] = []
        fresh: list[int] = []
        with no_collection():
            for call in range(calls):
                host = np.roll(self.hosts[0], 1 + call // 2, axis=2 + call % 2)
                unseen = network.put(host) if scope == "device" else host
                network.get(network.run(source[0] if scope == "device" else network.put(source[0])))  # the put is done by then
                for item, taken in random.sample([(source[0], repeated), (unseen, fresh)], 2):
                    start = time.perf_counter_ns()
                    finish(submit(item))
                    taken.append(time.perf_counter_ns() - start)
        return repeated, fresh

    def copies(self, calls: int) -> tuple[list[int], list[int]]:
        """Ns of bringing a batch from the host to the device, and of bringing its logits to the host, each waited for."""
        network = self.network
        taken_in, taken_out = [], []
        with no_collection():
            for host in self._items(self.hosts, calls):
                start = time.perf_counter_ns()
                batch = network.put(host)
                network.wait(batch)
                taken_in.append(time.perf_counter_ns() - start)
                output = network.run(batch)
                network.wait(output)
                start = time.perf_counter_ns()
                np.array(network.get(output))
                taken_out.append(time.perf_counter_ns() - start)
        return taken_in, taken_out

    def steps(self, scope: str) -> tuple[list[Any], Callable[[Any], Any], Callable[[Any], Any]]:
        """What calls are given, how one is enqueued, and how it is waited for."""
        if scope == "device":
            return self.batches, self.network.run, self.network.wait
        return self.hosts, self._put_and_run, self.network.get

    def _put_and_run(self, batch: Any) -> Any:
        return self.network.run(self.network.put(batch))

    def _items(self, source: list[Any], calls: int) -> list[Any]:
        first, self._next = self._next, (self._next + calls) % len(source)
        return [source[(first + offset) % len(source)] for offset in range(calls)]

    def _sample(
        self,
        scope: str,
        source: list[Any],
        submit: Callable[[Any], Any],
        finish: Callable[[Any], Any],
        calls: int,
        *,
        keep: bool,
    ) -> Sample:
        first = self._next
        items = self._items(source, calls)
        start = time.perf_counter_ns()
        outputs = [submit(item) for item in items]
        answers = [finish(output) for output in outputs]
        duration = time.perf_counter_ns() - start
        if self.slowdown:
            longer = int(duration * (1 + self.slowdown))
            while duration < longer:
                duration = time.perf_counter_ns() - start
        if keep:
            offset = self._random.randrange(calls)
            batch = (first + offset) % len(source)
            if (place := self._place(batch)) is not None:
                self._kept[batch, place] = np.array(answers[offset] if scope == "transfer" else self.network.get(outputs[offset]))
        return Sample(start, duration, calls)

    def _place(self, batch: int) -> int | None:
        """Where the next output of this batch is kept, if it is: reservoir sampling (Vitter's algorithm R)."""
        self._seen[batch] += 1
        if self._seen[batch] <= KEPT_PER_BATCH:
            return self._seen[batch] - 1
        place = self._random.randrange(self._seen[batch])
        return place if place < KEPT_PER_BATCH else None


def overhead_ns(clock: Callable[[], int] = time.perf_counter_ns, repeats: int = 1000) -> tuple[int, int]:
    """Resolution (smallest step seen) and overhead (median gap between two readings) of the clock, in ns."""
    gaps = sorted(-clock() + clock() for _ in range(repeats))
    return min((gap for gap in gaps if gap > 0), default=0), gaps[repeats // 2]
