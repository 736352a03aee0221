"""One process, one framework: the far end of the pipe.

Started by ``suites.harness.process`` in the environment of one implementation. Requests and replies are JSON, one document a
line, on two pipes of their own, so whatever a framework prints goes to the log and cannot garble them; they are Python's JSON, in which
a loss may be NaN. Arrays pass as safetensors files. Needs only the standard library, numpy, safetensors and the framework.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from suites.harness.memory import peak_memory_bytes, reclaim, reset_peak_memory

PROTOCOL_VERSION = 1
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process, even a stopped one, when its parent dies."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def use_cores(threads: int) -> None:
    """Confine the process to as many cores as it may use threads; before any framework counts them."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[:threads])


class Worker:
    """Answers requests for one implementation; each public method is an operation of the protocol."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.networks: dict[str, Any] = {}
        self.paths: dict[str, Any] = {}
        self.trainer: Any = None

    def start(self) -> dict[str, Any]:
        """Import the framework and make its settings."""
        began = time.perf_counter()
        from impls import implementation  # what this costs is part of the start-up time

        module = importlib.import_module(f"{self.arguments.package}.runtime")
        settings = implementation.Settings(
            self.arguments.device, self.arguments.precision, self.arguments.threads, self.arguments.deterministic
        )
        self.runtime = module.Runtime(settings)
        from suites.harness import clock  # numpy and the framework come first

        resolution, overhead = clock.overhead_ns()
        return {
            "protocol": PROTOCOL_VERSION,
            "import_s": time.perf_counter() - began,
            "versions": self.runtime.versions(),
            "python": platform.python_version(),
            "packages": {each.name: each.version for each in importlib.metadata.distributions()},
            "timer": {"clock": "time.perf_counter_ns", "resolution_ns": resolution, "overhead_ns": overhead},
        }

    def prepare(self, handle: str, weights: str, mode: str, input_shape: list[int], fold: bool) -> dict[str, Any]:
        """Load a weight file, whose metadata holds the network, and build one mode of it."""
        from impls.weights import file, folding

        began = time.perf_counter()
        loaded = file.load(Path(weights))
        model, tensors = folding.fold_batch_norm(loaded.model, loaded.weights) if fold else (loaded.model, loaded.weights)
        network = self.runtime.prepare(model, tensors, mode, tuple(input_shape))
        self.networks[handle] = network
        return {"load_s": time.perf_counter() - began, "settings": {**network.settings(), "folded": fold}}

    def prepare_steps(
        self, handle: str, weights: str, mode: str, input_shape: list[int], sgd: dict[str, Any], learning_rate: float
    ) -> dict[str, Any]:
        """Load a weight file to take steps from it that are timed, with momentum buffers of zero; ``put`` wants labels then."""
        from suites.harness.steps import Steps

        began = time.perf_counter()
        self.networks[handle] = steps = Steps(self._trainer(weights, sgd, mode, input_shape, None), learning_rate)
        return {"load_s": time.perf_counter() - began, "settings": {**steps.settings(), "sgd": sgd, "learning_rate": learning_rate}}

    def put(self, handle: str, images: str, slowdown: float = 0.0) -> dict[str, Any]:
        """Take a ring of batches, (ring, N, C, H, W), arrange each in the network's memory order, and run the first.

        For training the file holds labels, (ring, N), too.
        """
        from suites.harness import clock

        network = self.networks[handle]
        hosts = list(self._hosts(network, images))
        began = time.perf_counter()
        network.get(network.run(network.put(hosts[0])))
        first_call_s = time.perf_counter() - began
        self.paths[handle] = clock.TimedPath(network, hosts, slowdown)
        settings = network.settings()
        if self.arguments.device == "cuda":
            from suites.harness import libraries

            settings |= {"libraries": libraries.loaded()}  # the first call has loaded them
        return {"first_call_s": first_call_s, "settings": settings}

    def arithmetic(self, handle: str) -> dict[str, Any]:
        """In which types and kernels products were computed; it may take seconds and memory, so no process that is measured is asked."""
        path = self.paths[handle]
        return {"arithmetic": path.network.arithmetic(path.network.put(path.hosts[0]))}

    def visit(self, handle: str, scope: str, samples: int, calls: int, rewarm: int = 0, keep: bool = False) -> dict[str, Any]:
        """``rewarm`` single calls and then ``samples`` of ``calls`` each, as columns of equal length; what they cost the process.

        ``compilations`` is the network's count at the end, ``cpu_s`` the processor time of all threads, ``threads`` their number.
        """
        path = self.paths[handle]
        began = time.process_time()
        taken = path.visit(scope=scope, samples=rewarm, calls=1) if rewarm else []
        taken += path.visit(scope=scope, samples=samples, calls=calls, keep=keep)
        return {
            **_columns(taken),
            "compilations": path.network.compilations(),
            "cpu_s": time.process_time() - began,
            "threads": len(os.listdir("/proc/self/task")),
        }

    def sustain(self, handle: str, scope: str, calls: int, seconds: float) -> dict[str, Any]:
        """See ``clock.TimedPath.sustained``; as columns of equal length."""
        return _columns(self.paths[handle].sustained(scope=scope, calls=calls, seconds=seconds))

    def kept(self, handle: str, out: str) -> dict[str, Any]:
        """The outputs kept of timed calls: logits (kept, N, classes) go to ``out``, and the batch of the ring of each is told."""
        import numpy as np

        kept = self.paths[handle].kept()
        return {"batches": [each.batch for each in kept], **self._write(out, {"logits": np.stack([each.logits for each in kept])})}

    def windows(self, handle: str, scope: str, counts: list[int]) -> dict[str, Any]:
        """See ``clock.TimedPath.windows``."""
        return {"duration_ns": self.paths[handle].windows(scope=scope, counts=counts)}

    def reads(self, handle: str, scope: str, calls: int) -> dict[str, Any]:
        """See ``clock.TimedPath.reads``."""
        return {"ns": self.paths[handle].reads(scope=scope, calls=calls)}

    def copies(self, handle: str, calls: int) -> dict[str, Any]:
        """See ``clock.TimedPath.copies``."""
        taken_in, taken_out = self.paths[handle].copies(calls)
        return {"in_ns": taken_in, "out_ns": taken_out}

    def unlike(self, handle: str, scope: str, calls: int) -> dict[str, Any]:
        """See ``clock.TimedPath.unlike``."""
        repeated, fresh = self.paths[handle].unlike(scope=scope, calls=calls)
        return {"repeated_ns": repeated, "fresh_ns": fresh}

    def loadgen(self, handle: str, package: str, logs: str, idle: bool, **arguments: Any) -> dict[str, Any]:
        """See ``loadgen.visit`` and ``loadgen.idle``; ``package`` is the folder that LoadGen was installed into."""
        if package not in sys.path:
            sys.path.append(package)  # behind the environment's own: nothing of it may take the framework's place
        from suites.harness import loadgen

        reading = (loadgen.idle if idle else loadgen.visit)(self.paths[handle], logs=Path(logs), **arguments)
        return {"call_s": reading.call_s, "version": reading.version, "seeds": dict(loadgen.SEEDS)}

    def outputs(self, handle: str, out: str, batches: int | None = None) -> dict[str, Any]:
        """Logits of the first ``batches`` of the ring (of all), (batches, N, classes), through the timed path."""
        import numpy as np

        path = self.paths[handle]
        network = path.network
        return self._write(out, {"logits": np.stack([network.get(network.run(network.put(host))) for host in path.hosts[:batches]])})

    def classify(self, handle: str, images: str, out: str) -> dict[str, Any]:
        """Logits (batches, N, classes) of batches (batches, N, C, H, W), host to host as they are timed; nothing of them is kept."""
        import numpy as np

        network = self.networks[handle]
        logits = [network.get(network.run(network.put(host))) for host in self._hosts(network, images)]
        return self._write(out, {"logits": np.stack(logits)})

    def settings(self, handle: str) -> dict[str, Any]:
        """The settings that the framework tells of a network now."""
        return {"settings": self.networks[handle].settings()}

    def taps(self, handle: str, images: str, out: str) -> dict[str, Any]:
        """Every layer's output for one batch, unfused."""
        from safetensors.numpy import load_file

        return self._write(out, self.networks[handle].taps(load_file(images)["images"].astype(self._host_dtype())))

    def examine(self, path: str, images: str, size: str, out: str) -> dict[str, Any]:
        """Read and run a file of unknown origin in the framework's own format, on images (N, C, H, W) by size, ``size`` if it is free."""
        from safetensors.numpy import load_file

        module = importlib.import_module(f"{self.arguments.package}.foreign")
        operators, arrays = module.examine(Path(path), load_file(images), size, self.arguments.threads)
        return {"operators": operators, **self._write(out, arrays)}

    def export(self, weights: str, out: str) -> dict[str, Any]:
        """Write a weight file's network as a file of the framework's own format, with what its metadata says of its origin."""
        from impls.weights import file

        loaded = file.load(Path(weights))
        module = importlib.import_module(f"{self.arguments.package}.export")
        notes = {name: loaded.metadata[name] for name in ("source", "licence", "preprocess", "classes", "tensor_sha256")}
        module.write(loaded.model, loaded.weights, Path(out), notes)
        return {}

    def weights(self, handle: str) -> dict[str, Any]:
        """SHA-256, type and shape of every tensor as the framework holds it, in canonical names and layout."""
        import numpy as np

        held = self.networks[handle].weights()
        return {
            name: {
                "sha256": hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).hexdigest(),
                "dtype": str(tensor.dtype),
                "shape": list(tensor.shape),
            }
            for name, tensor in held.items()
        }

    def prepare_training(
        self, weights: str, sgd: dict[str, Any], mode: str, input_shape: list[int], state: str | None = None
    ) -> dict[str, Any]:
        """Load a weight file to train from; ``sgd`` holds the fields of ``impls.implementation.Sgd``.

        ``state`` is a file that ``trained`` wrote: its weights and momentum buffers take the place of the file's and of zeros.
        """
        self.trainer = None
        reclaim()
        self.trainer = self._trainer(weights, sgd, mode, input_shape, state)
        return {}

    def _trainer(self, weights: str, sgd: dict[str, Any], mode: str, input_shape: list[int], state: str | None) -> Any:
        import numpy as np
        from safetensors.numpy import load_file

        from impls import spec
        from impls.implementation import Sgd
        from impls.weights import file

        loaded = file.load(Path(weights))
        tensors: dict[str, Any] = dict(loaded.weights)
        momentum = {name: np.zeros_like(tensors[name]) for name in spec.parameter_names(loaded.model)}
        for name, tensor in (load_file(state) if state else {}).items():
            kind, _, own = name.partition(":")
            {"weights": tensors, "momentum": momentum}[kind][own] = tensor
        return self.runtime.prepare_training(loaded.model, tensors, momentum, Sgd(**sgd), mode, tuple(input_shape))

    def train(self, batches: str, learning_rates: list[float]) -> dict[str, Any]:
        """A step on each of the batches, images (steps, N, C, H, W) and labels (steps, N); the loss of each."""
        from safetensors.numpy import load_file

        arrays = load_file(batches)
        steps = zip(arrays["images"].astype(self._host_dtype()), arrays["labels"], learning_rates, strict=True)
        return {"losses": [self.trainer.step(images, labels, rate) for images, labels, rate in steps]}

    def learnt(self, handle: str, weights: str) -> dict[str, Any]:
        """What steps that were timed made of the weight file that they began with: tensors that are as they were, and not finite ones."""
        import numpy as np

        from impls.weights import file

        before, trainer = file.load(Path(weights)).weights, self.networks[handle].trainer
        after, momentum = trainer.weights(), trainer.momentum()
        return {
            "unchanged": [name for name, tensor in before.items() if np.array_equal(tensor, after[name])],
            "not_finite": [name for held in (after, momentum) for name, tensor in held.items() if not np.isfinite(tensor).all()],
        }

    def trained(self, out: str) -> dict[str, Any]:
        """The state of training: "weights:NAME" and "momentum:NAME", canonical."""
        return self._write_kinds(out, weights=self.trainer.weights(), momentum=self.trainer.momentum())

    def differentiate(self, batch: str, out: str) -> dict[str, Any]:
        """The loss of one batch, images (N, C, H, W) and labels (N,); "taps:", "cotangents:" and "gradients:NAME" go to ``out``."""
        from safetensors.numpy import load_file

        arrays = load_file(batch)
        found = self.trainer.differentiate(arrays["images"].astype(self._host_dtype()), arrays["labels"])
        self._write_kinds(out, taps=found.taps, cotangents=found.cotangents, gradients=found.gradients)
        return {"loss": found.loss}

    def memory(self, reset: bool) -> dict[str, Any]:
        """Peak resident memory of this process, and the device allocator's counters; where it was to be reset, whether it was."""
        result = {"peak_memory_bytes": peak_memory_bytes(), **self.runtime.device_memory()}
        return {**result, "reset": reset_peak_memory()} if reset else result

    def release(self, handle: str) -> dict[str, Any]:
        """Forget a network and its inputs; their memory is free afterwards."""
        self.networks.pop(handle, None)
        self.paths.pop(handle, None)
        gc.unfreeze()
        reclaim()
        return {}

    def _hosts(self, network: Any, images: str) -> Iterator[Any]:
        """The batches of a file, each in the type and memory order that the network is given on the host; with labels as pairs."""
        import numpy as np
        from safetensors.numpy import load_file

        dtype, held = self._host_dtype(), load_file(images)
        for place, batch in enumerate(held["images"]):
            if network.host_layout == "NHWC":
                host = np.ascontiguousarray(batch.transpose(0, 2, 3, 1), dtype).transpose(0, 3, 1, 2)
            else:
                host = np.ascontiguousarray(batch, dtype)
            yield (host, held["labels"][place]) if "labels" in held else host

    def _host_dtype(self) -> str:
        return "float64" if self.arguments.precision == "fp64" else "float32"

    def _write(self, out: str, arrays: dict[str, Any]) -> dict[str, Any]:
        import numpy as np
        from safetensors.numpy import save_file

        for name, array in arrays.items():  # in place, so that not all are held twice
            arrays[name] = np.ascontiguousarray(array)
        save_file(arrays, out)
        return {"arrays": len(arrays)}

    def _write_kinds(self, out: str, **kinds: dict[str, Any]) -> dict[str, Any]:
        return self._write(out, {f"{kind}:{name}": array for kind, arrays in kinds.items() for name, array in arrays.items()})


def _columns(samples: list[Any]) -> dict[str, Any]:
    return {name: [getattr(sample, name) for sample in samples] for name in ("start_ns", "duration_ns", "calls")}


OUT_OF_MEMORY = re.compile(
    r"out[ _]of[ _]memory|bad_alloc"  # PyTorch, the CUDA driver (CUDA_ERROR_OUT_OF_MEMORY), C++
    r"|unable to find an engine to execute"  # PyTorch where every plan of cuDNN ran out of it (aten/src/ATen/native/cudnn/Conv_v8.cpp)
    r"|RESOURCE_?EXHAUSTED|OOM when allocating"  # XLA, TensorFlow
    r"|Failed to allocate memory|_ALLOC_FAILED",  # ONNX Runtime's arena; cuDNN and cuBLAS
    re.IGNORECASE,
)
"""What the frameworks say where memory ran out; few have an exception of their own for it."""


def error_of(error: BaseException) -> dict[str, str]:
    """What the parent is told of an exception: a kind that decides the row's status, and one line."""
    from impls.implementation import CannotError

    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, CannotError):
        return {"kind": "cannot", "message": message}
    if isinstance(error, ImportError):
        return {"kind": "missing", "message": f"{type(error).__name__}: {message}"[:1000]}
    named = f"{type(error).__name__}: {message}"
    memory = isinstance(error, MemoryError) or OUT_OF_MEMORY.search(named)
    return {"kind": "memory" if memory else "failed", "message": named[:1000]}


OPERATIONS = (
    *("start", "prepare", "put", "visit", "sustain", "kept", "windows", "reads", "copies", "unlike", "loadgen", "outputs", "arithmetic"),
    *("prepare_steps", "learnt", "classify", "settings", "weights", "memory", "release"),
    *("taps", "examine", "export", "prepare_training", "train", "trained", "differentiate"),
)


def serve(worker: Worker, requests: Any, replies: Any) -> None:
    """Answer requests until the pipe closes."""
    operations: dict[str, Callable[..., dict[str, Any]]] = {name: getattr(worker, name) for name in OPERATIONS}
    for line in requests:
        request = json.loads(line)
        try:
            reply = json.dumps({"id": request["id"], "ok": operations[request["op"]](**request["arguments"])})
        except Exception as error:
            import traceback

            traceback.print_exc()
            reply = json.dumps({"id": request["id"], "error": error_of(error)})
        replies.write(reply + "\n")
        replies.flush()


def main() -> None:
    """Entry point of ``python -m suites.harness.worker``."""
    parser = argparse.ArgumentParser(prog="suites.harness.worker")
    parser.add_argument("--package", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--replies", type=int, required=True)
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    use_cores(arguments.threads)
    with (
        contextlib.suppress(BrokenPipeError),
        os.fdopen(arguments.requests, encoding="utf-8") as requests,
        os.fdopen(arguments.replies, "w", encoding="utf-8") as replies,
    ):
        serve(Worker(arguments), requests, replies)
    sys.stdout.flush()
    os._exit(0)  # a framework's own shutdown has nothing left to save, and some hang in it


if __name__ == "__main__":
    main()
