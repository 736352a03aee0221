"""A worker process as the parent sees it: started, asked, stopped, continued, ended.

The parent is thin and never forks a framework. A worker that dies, hangs or talks nonsense raises ``WorkerError`` with its
last log lines; it takes no other worker with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn

from impls.implementation import ROOT

ErrorKind = Literal["cannot", "memory", "missing", "failed", "died", "hung", "nonsense"]

TOLD = ("cannot", "memory", "missing", "failed")
"""The kinds that a worker tells itself; the others are seen from here."""

LONGEST_REPLY_BYTES = 64 << 20
"""A reply of 10,000 samples is under 1 MB; what is longer is nonsense."""


class WorkerError(RuntimeError):
    """A worker did not answer as it should. ``kind`` decides the status of the row, ``log_tail`` holds its last lines."""

    def __init__(self, kind: ErrorKind, message: str, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
        self.log_tail = log_tail


class Reply(dict[str, Any]):
    """What a worker answered; a field that is not there is its fault, not the reader's."""

    def __missing__(self, name: str) -> NoReturn:
        raise WorkerError("nonsense", f"its worker did not talk the protocol: a reply without {name!r}")


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one worker for the implementation in ``package``. ``variables`` are added to the parent's environment."""

    python: Path
    package: str
    device: str
    precision: str
    threads: int
    deterministic: bool
    log: Path
    variables: Mapping[str, str]
    root: Path = ROOT


NOTICE_S = 1.0
"""An interrupt that comes just before a wait, or to another thread, does not end the wait: it is noticed so soon."""


class WorkerProcess:
    """A running worker. Use as a context manager: it is ended on the way out, stopped or not.

    ``call`` is ``send`` followed by ``receive``; the two apart let several workers work at once.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._id = 0
        self._buffer = b""
        self._loss: WorkerError | None = None
        launch.log.parent.mkdir(parents=True, exist_ok=True)
        request_read, request_write = os.pipe()
        reply_read, reply_write = os.pipe()
        command = [
            str(launch.python),
            "-m",
            "suites.harness.worker",
            "--package",
            launch.package,
            "--device",
            launch.device,
            "--precision",
            launch.precision,
            "--threads",
            str(launch.threads),
            "--parent",
            str(os.getpid()),
            "--requests",
            str(request_read),
            "--replies",
            str(reply_write),
            *(["--deterministic"] if launch.deterministic else []),
        ]
        # The implementations of another revision run under the harness of this one.
        path = os.pathsep.join(dict.fromkeys((str(launch.root), str(ROOT))))
        environment = {**os.environ, **launch.variables, "PYTHONSAFEPATH": "1", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        try:
            with launch.log.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(request_read, reply_write),
                    env=environment,
                    cwd=launch.root,
                    start_new_session=True,  # signals go to the worker and its children, and the terminal's only to the parent
                )
        except OSError as error:
            os.close(request_write)
            os.close(reply_read)
            raise WorkerError("died", f"cannot start {launch.python}: {error.strerror}") from None
        finally:
            os.close(request_read)
            os.close(reply_write)
        self._requests = request_write
        self._replies = reply_read

    @property
    def pid(self) -> int:
        """The process, which also leads its process group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._requests >= 0 and self._process.poll() is None

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def log_tail(self, lines: int = 12) -> tuple[str, ...]:
        """The last lines that the worker or its framework printed."""
        with contextlib.suppress(OSError):
            return tuple(self.launch.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        return ()

    def send(self, operation: str, **arguments: Any) -> None:
        """Ask for an operation; exactly one ``receive`` must follow."""
        self._id += 1
        request = json.dumps({"id": self._id, "op": operation, "arguments": arguments}) + "\n"
        try:
            os.write(self._requests, request.encode())
        except OSError:
            raise self._loss or self._death() from None

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The reply to the last ``send``.

        Raises:
            WorkerError: the operation failed, the worker died, hung beyond ``timeout_s`` or did not talk the protocol.
        """
        line = self._line(time.monotonic() + timeout_s, timeout_s)
        try:
            reply = json.loads(line)
            is_answer = isinstance(reply.get("ok"), dict)
            ok = reply["id"] == self._id and (is_answer or (reply["error"]["kind"] in TOLD and isinstance(reply["error"]["message"], str)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            ok = False
        if not ok:
            raise self._lost("nonsense", f"its worker did not talk the protocol: {line[:80]!r}")
        if "error" in reply:
            raise WorkerError(reply["error"]["kind"], reply["error"]["message"], self.log_tail())
        return Reply(reply["ok"])

    def call(self, operation: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """``send`` and ``receive``."""
        self.send(operation, **arguments)
        return self.receive(timeout_s)

    def _line(self, deadline: float, timeout_s: float) -> bytes:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._lost("hung", f"its worker gave no answer within {timeout_s:.0f} s")
            if not select.select([self._replies], [], [], min(left, NOTICE_S))[0]:
                continue
            part = os.read(self._replies, 1 << 16)
            if not part:
                raise self._death()
            self._buffer += part
            if len(self._buffer) > LONGEST_REPLY_BYTES:
                raise self._lost("nonsense", "its worker sent a reply without end")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _death(self) -> WorkerError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.poll()
        if code == -signal.SIGKILL:
            return self._lost("died", "its worker was killed (SIGKILL: usually the kernel, for lack of memory)")
        how = "without a word" if code is None else f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return self._lost("died", f"its worker ended {how}")

    def _lost(self, kind: ErrorKind, message: str) -> WorkerError:
        """End the process; whoever asks it again is told the same, not that it was killed."""
        self.end()
        self._loss = WorkerError(kind, message, self.log_tail())
        return self._loss

    def pause(self) -> None:
        """Stop the process and its children, so that spinning threads leave the cores to the others."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is not None:  # its number may belong to another by now
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def give_up(self, error: WorkerError) -> None:
        """End a process that failed; whoever asks it again is told the same."""
        self.end()
        self._loss = error

    def end(self) -> None:
        """Kill the process and its children and close the pipes; safe to call again."""
        if self._process.returncode is None:
            self._signal(signal.SIGKILL)
            self._process.wait()
        for descriptor in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._requests = self._replies = -1
