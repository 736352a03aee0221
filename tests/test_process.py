"""The parent's end of the pipe, against workers that say and do what no honest one would."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from suites.harness import process
from suites.harness.process import Launch, WorkerError, WorkerProcess
from tests.checkouts import wait_until

PARTNER = """
import json, os, signal, sys, time
option = lambda name: int(sys.argv[sys.argv.index(name) + 1])
requests, replies = os.fdopen(option("--requests")), os.fdopen(option("--replies"), "wb", buffering=0)
print("the log's last line", flush=True)
def serve():
    for line in requests:
        request = json.loads(line)
        arguments = request["arguments"]
        if request["op"] == "say":
            replies.write(arguments["text"].replace("ID", str(request["id"])).encode("latin-1"))
        elif request["op"] == "flood":
            while True:
                replies.write(b"x" * 65536)
        elif request["op"] == "exit":
            os._exit(arguments["code"])
        elif request["op"] == "signal":
            os.kill(os.getpid(), arguments["number"])
        elif request["op"] == "sleep":
            time.sleep(1000)
serve()
"""
"""A worker that does as it is told; it knows nothing of the protocol but how to read requests."""


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    (tmp_path / "suites" / "harness").mkdir(parents=True)
    for package in ("suites", "suites/harness"):
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "suites" / "harness" / "worker.py").write_text(PARTNER)
    log = tmp_path / "logs" / "partner.log"
    return Launch(Path(sys.executable), "impls.any", "cpu", "fp32", 1, False, log, {}, tmp_path)


@pytest.fixture
def partner(launch: Launch) -> Iterator[WorkerProcess]:
    with WorkerProcess(launch) as worker:
        yield worker


def failure(worker: WorkerProcess, operation: str, timeout_s: float = 30.0, **arguments: Any) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        worker.call(operation, timeout_s, **arguments)
    return caught.value


def test_an_answer(partner: WorkerProcess) -> None:
    """A reply with the request's number and a document is the document; a second one is read on its own."""
    assert partner.call("say", 30, text='{"id": ID, "ok": {"a": 1}}\n') == {"a": 1}
    assert partner.call("say", 30, text='{"id": ID, "ok": {}}\n') == {}
    assert partner.alive


def test_a_reply_in_pieces_and_a_long_one(partner: WorkerProcess) -> None:
    """A reply may be larger than the pipe."""
    text = '{"id": ID, "ok": {"a": "' + "x" * 1_000_000 + '"}}\n'
    assert len(partner.call("say", 30, text=text)["a"]) == 1_000_000


@pytest.mark.parametrize("kind", process.TOLD)
def test_an_error_that_the_worker_tells(partner: WorkerProcess, kind: str) -> None:
    """Its kind and message arrive with the log's last lines, and the worker lives on."""
    error = failure(partner, "say", text=f'{{"id": ID, "error": {{"kind": "{kind}", "message": "why"}}}}\n')
    assert (error.kind, str(error), error.log_tail) == (kind, "why", ("the log's last line",))
    assert partner.alive


@pytest.mark.parametrize(
    "text",
    [
        "\xff\x00 garbage\n",
        "\n",
        "null\n",
        "[]\n",
        '"ok"\n',
        "{}\n",
        '{"id": ID}\n',
        '{"id": 99, "ok": {}}\n',
        '{"id": ID, "ok": null}\n',
        '{"id": ID, "ok": [1]}\n',
        '{"id": ID, "error": "why"}\n',
        '{"id": ID, "error": {"message": "why"}}\n',
        '{"id": ID, "error": {"kind": "died", "message": "why"}}\n',
        '{"id": ID, "error": {"kind": "failed", "message": null}}\n',
        "[" * 100_000 + "\n",
    ],
    ids=range(15),
)
def test_nonsense(partner: WorkerProcess, text: str) -> None:
    """Whatever is no reply to this request ends the worker with an error that quotes the beginning."""
    error = failure(partner, "say", text=text)
    assert error.kind == "nonsense"
    assert str(error).startswith("its worker did not talk the protocol: b")
    assert len(str(error)) < 400
    assert not partner.alive


def test_a_reply_without_what_it_must_hold(partner: WorkerProcess) -> None:
    """A field that is missing is the worker's fault."""
    with pytest.raises(WorkerError, match="a reply without 'settings'") as caught:
        partner.call("say", 30, text='{"id": ID, "ok": {}}\n')["settings"]
    assert caught.value.kind == "nonsense"


def test_a_reply_without_end(partner: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's memory is not the worker's to fill."""
    monkeypatch.setattr(process, "LONGEST_REPLY_BYTES", 1 << 20)
    assert str(failure(partner, "flood")) == "its worker sent a reply without end"


def test_a_worker_that_hangs(partner: WorkerProcess) -> None:
    """It is ended when its time is over, and is not said to have lacked memory when it is asked again."""
    began = time.monotonic()
    error = failure(partner, "sleep", 0.5)
    assert time.monotonic() - began < 10
    assert (error.kind, str(error)) == ("hung", "its worker gave no answer within 0 s")
    assert not partner.alive
    again = failure(partner, "say", text="")
    assert (again.kind, str(again)) == (error.kind, str(error))


@pytest.mark.parametrize(
    ("operation", "arguments", "message"),
    [
        ("exit", {"code": 0}, "its worker ended with exit code 0"),
        ("exit", {"code": 3}, "its worker ended with exit code 3"),
        ("signal", {"number": 11}, "its worker ended by SIGSEGV"),
        ("signal", {"number": 9}, "its worker was killed (SIGKILL: usually the kernel, for lack of memory)"),
    ],
)
def test_how_a_worker_died(partner: WorkerProcess, operation: str, arguments: dict[str, int], message: str) -> None:
    """The code or signal that ended it is named, with its last lines; asked again, it is dead of the same."""
    error = failure(partner, operation, **arguments)
    assert (error.kind, str(error), error.log_tail) == ("died", message, ("the log's last line",))
    assert str(failure(partner, "say", text="")) == message


def test_a_worker_that_dies_between_requests(partner: WorkerProcess) -> None:
    """Its death is noticed at the next request."""
    partner.call("say", 30, text='{"id": ID, "ok": {}}\n')
    os.kill(partner.pid, 9)
    assert failure(partner, "say", text="").kind == "died"


def test_a_worker_that_is_given_up(partner: WorkerProcess) -> None:
    """It ends at once, although it only failed and could be asked again; whoever does is told what it failed of."""
    error = WorkerError("failed", "no engine was found", ("the last line",))
    partner.give_up(error)
    assert not partner.alive
    assert failure(partner, "say", text="") is error
    partner.give_up(error)
    partner.pause()


def test_stopped_and_continued(partner: WorkerProcess) -> None:
    """A paused worker does not run, goes on where it was, and is ended though it is stopped."""
    partner.send("say", text='{"id": ID, "ok": {}}\n')
    partner.receive(30)
    partner.pause()
    partner.send("say", text='{"id": ID, "ok": {"late": 1}}\n')
    stat = Path(f"/proc/{partner.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", timeout_s=5)
    partner.resume()
    assert partner.receive(30) == {"late": 1}
    partner.pause()
    partner.end()
    partner.end()
    partner.pause()
    assert not Path(f"/proc/{partner.pid}").exists()


def test_no_descriptor_is_left_open(launch: Launch) -> None:
    """Starting and ending workers, and failing to start one, leaves as many open files as before."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with WorkerProcess(launch):
            pass
    with pytest.raises(WorkerError, match="cannot start /no/such/python: No such file or directory") as caught:
        WorkerProcess(Launch(Path("/no/such/python"), "impls.any", "cpu", "fp32", 1, False, launch.log, {}, launch.root))
    assert caught.value.kind == "died"
    assert len(os.listdir("/proc/self/fd")) == before
