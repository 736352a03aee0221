"""Coverage-guided fuzzing of the ONNX reader, by hand: ``PYTHON -m tests.fuzz_onnx SECONDS [SEED]``, PYTHON of ONNX Runtime's environment.

A file is damaged in its bytes or in its graph, and read in a process forked for it, as a worker is a process of its own; if the reader
then walks from a line to another that it never walked between, the damaged file is kept and damaged further. Anything but weights or the
sentence of a ``CannotError`` is written down and ends the run with 1: another exception, a process that died, ten seconds of processor
time, a gigabyte.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from impls import models
from impls.implementation import CannotError
from impls.onnx import foreign, runtime
from impls.weights import folding, synthesis

MODEL = "cifar_resnet8"
SIZE = "32x32"
SLOWEST_S = 10
MEMORY_BYTES = 1 << 30
"""Above what the process holds at the start; what the limits of the reader let through may take less."""

NUMBERS = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 255, 2**16, 2**31 - 1, 2**40, 2**63 - 1)

Pair = tuple[int, int]


def examples() -> list[bytes]:
    """A small network as it is, and folded."""
    model = models.get(MODEL)
    weights = synthesis.synthesize(model, 0)
    folded = folding.fold_batch_norm(model, weights)
    made = [runtime.build(*network, np.float32, (1, 3, 32, 32)) for network in ((model, weights), folded)]
    return [proto.SerializeToString() for proto in made]


def damaged_bytes(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, put in, taken out or cut off."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        # Weights are nearly all of a file: half of the edits go where the graph is told.
        at = chance.randrange(min(len(changed), chance.choice((4096, len(changed)))) or 1)
        kind = chance.choice(("set", "insert", "delete", "cut"))
        if kind == "set":
            changed[at : at + 1] = chance.choice((chance.randbytes(1), b"\x00", b"\x7f", b"\x80", b"\xff"))
        elif kind == "insert":
            changed[at:at] = chance.randbytes(chance.randint(1, 8))
        elif kind == "delete":
            del changed[at : at + chance.randint(1, 8)]
        elif chance.random() < 0.1:
            del changed[at:]
    return bytes(changed)


def damaged_graph(data: bytes, chance: random.Random) -> bytes:
    """One or two fields of the graph: sizes, attributes, operators, wiring, types."""
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        return damaged_bytes(data, chance)
    for _ in range(chance.choice((1, 1, 2))):
        _damage(model, chance)
    return bytes(model.SerializeToString())


def _damage(model: ModelProto, chance: random.Random) -> None:
    graph, number = model.graph, chance.choice(NUMBERS)
    names = [name for node in graph.node for name in (*node.input, *node.output)] or [""]
    match chance.randrange(9):
        case 0 if graph.initializer:
            tensor = chance.choice(graph.initializer)
            if tensor.dims:
                tensor.dims[chance.randrange(len(tensor.dims))] = number
        case 1 if graph.initializer:
            tensor = chance.choice(graph.initializer)
            tensor.data_type = chance.randrange(24)
        case 2 if graph.initializer:
            tensor = chance.choice(graph.initializer)
            tensor.raw_data = tensor.raw_data[: chance.randrange(len(tensor.raw_data) + 1)]
        case 3 if graph.node:
            node = chance.choice(graph.node)
            node.op_type = chance.choice(sorted(foreign.OPERATORS))
        case 4 if graph.node:
            node = chance.choice(graph.node)
            if node.attribute:
                attribute = chance.choice(node.attribute)
                attribute.i, attribute.f = number, float(number)
                if attribute.ints:
                    attribute.ints[chance.randrange(len(attribute.ints))] = number
        case 5 if graph.node:
            node = chance.choice(graph.node)
            if node.input:
                node.input[chance.randrange(len(node.input))] = chance.choice(names)
        case 6 if graph.node:
            del graph.node[chance.randrange(len(graph.node))]
        case 7 if graph.input:
            value = chance.choice([*graph.input, *graph.output]).type.tensor_type
            value.elem_type = chance.randrange(24)
            if value.shape.dim:
                chance.choice(value.shape.dim).dim_value = number
        case _ if graph.node:
            graph.node.append(chance.choice(graph.node))


def read(path: Path) -> tuple[set[Pair], str | None]:
    """The steps between lines of the reader that the file takes, and what is wrong with how it was read, None where nothing is."""
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        os.close(receiving)
        _in_child(path, sending)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        told = pipe.read()
    _, status, used = os.wait4(child, 0)
    if not told:
        return set(), f"its process ended with {os.waitstatus_to_exitcode(status)}"
    walked, wrong = json.loads(told)
    if used.ru_utime + used.ru_stime > SLOWEST_S:
        wrong = wrong or f"took {used.ru_utime + used.ru_stime:.1f} s of processor time"
    if used.ru_maxrss * 1024 > _held() + MEMORY_BYTES:
        wrong = wrong or f"took {used.ru_maxrss >> 10} MiB"
    return {(before, after) for before, after in walked}, wrong


def _held() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _in_child(path: Path, sending: int) -> None:
    """Read the file, tell the parent, and end without cleaning up what is the parent's."""
    resource.setrlimit(resource.RLIMIT_CPU, (2 * SLOWEST_S, 2 * SLOWEST_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    steps: set[Pair] = set()
    wrong = None

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != foreign.__file__:
            return None
        last = frame.f_lineno

        def line(inner: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            steps.add((last, inner.f_lineno))
            last = inner.f_lineno
            return line

        return line

    images = np.linspace(-1, 1, math.prod((1, 3, 32, 32)), dtype=np.float32).reshape(1, 3, 32, 32)
    sys.settrace(trace)
    try:
        foreign.examine(path, {SIZE: images}, SIZE, 1)
    except CannotError:
        pass
    except BaseException as error:
        wrong = repr(error)[:300]
    sys.settrace(None)
    os.write(sending, json.dumps([sorted(steps), wrong]).encode())
    os._exit(0)


def fuzz(seconds: float, seed: int, folder: Path) -> int:
    """The exit code; what was done is printed."""
    chance = random.Random(seed)
    corpus, path, seen = examples(), folder / "x.onnx", set[Pair]()
    for data in corpus:
        path.write_bytes(data)
        steps, wrong = read(path)
        if wrong is not None:
            raise SystemExit(f"a sound file: {wrong}")
        seen |= steps
    found: dict[str, Path] = {}
    runs, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = chance.choice((damaged_bytes, damaged_graph, damaged_graph))(chance.choice(corpus), chance)
        path.write_bytes(data)
        steps, wrong = read(path)
        if wrong is not None and wrong not in found:
            found[wrong] = Path(tempfile.gettempdir()) / f"found-onnx-{time.time_ns()}"
            found[wrong].write_bytes(data)
        if steps - seen:
            seen |= steps
            corpus.append(data)
        runs += 1
    print(
        f"onnx, seed {seed}: {runs} files in {seconds:.0f} s, {len(corpus)} kept, {len(seen)} steps between lines, {len(found)} kinds found"
    )
    for wrong, where in found.items():
        print(f"{where}: {wrong}")
    return 1 if found else 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(fuzz(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(scratch)))
