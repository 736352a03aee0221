"""Coverage-guided fuzzing of the readers of checkpoints, by hand: ``python -m tests.fuzz_checkpoints FORMAT SECONDS [SEED]``.

A file is damaged; if the reader then walks from a line to another that it never walked between, the damaged file is kept and damaged
further. Anything but arrays or a sentence, and anything that takes a second or 64 MB, is written down and ends the run with 1.
"""

from __future__ import annotations

import contextlib
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from impls.weights import checkpoints, container
from impls.weights.checkpoints import hdf5, pickled, pth
from impls.weights.container import WeightFileError
from tests.test_checkpoints import EXAMPLES, KINDS, edited

WATCHED = {module.__file__ for module in (checkpoints, container, hdf5, pickled, pth)}
SLOWEST_S = 1.0
MEMORY_BYTES = 64 << 20
"""Above what the process holds at the start."""

INTERESTING = [bytes([value]) * length for value in (0, 1, 0x7F, 0x80, 0xFF) for length in (1, 2, 4, 8)]

Pair = tuple[str, int, int]


def walked(path: Path) -> set[Pair]:
    """The steps between lines of the readers that reading the file takes."""
    steps: set[Pair] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        last = frame.f_lineno

        def line(inner: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            steps.add((inner.f_code.co_filename, last, inner.f_lineno))
            last = inner.f_lineno
            return line

        return line

    sys.settrace(trace)
    try:
        with contextlib.suppress(WeightFileError):
            checkpoints.read(path)
    finally:
        sys.settrace(None)
    return steps


def fuzz(name: str, seconds: float, seed: int, folder: Path) -> int:
    """The exit code; what was done is printed."""
    generator = random.Random(seed)
    corpus = [data for kind, data in EXAMPLES.items() if kind.startswith(name)]
    path = folder / "x"
    seen: set[Pair] = set()
    for data in corpus:
        path.write_bytes(data)
        seen |= walked(path)
    held, end, runs = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.monotonic() + seconds, 0
    while time.monotonic() < end:
        edits = [
            (generator.random(), generator.choice(KINDS), generator.choice([generator.randbytes(generator.randint(1, 8)), *INTERESTING]))
            for _ in range(generator.choice((1, 1, 2, 4, 8)))
        ]
        data = edited(generator.choice(corpus), edits)
        path.write_bytes(data)
        began = time.process_time()
        try:
            steps = walked(path)
        except Exception as error:
            return _found(name, data, repr(error))
        if time.process_time() - began > SLOWEST_S:
            return _found(name, data, f"took {time.process_time() - began:.1f} s of processor time")
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > held + MEMORY_BYTES:
            return _found(name, data, "took too much memory")
        if steps - seen:
            seen |= steps
            corpus.append(data)
        runs += 1
    print(f"{name}, seed {seed}: {runs} files in {seconds:.0f} s, {len(corpus)} kept, {len(seen)} steps between lines; nothing found")
    return 0


def _found(name: str, data: bytes, what: str) -> int:
    out = Path(tempfile.gettempdir()) / f"found-{name}-{time.time_ns()}"
    out.write_bytes(data)
    print(f"{name}: {what}: {out}")
    return 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(fuzz(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0, Path(scratch)))
