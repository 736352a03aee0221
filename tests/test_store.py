from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from results.record import to_json
from results.schema import RecordError
from results.store import MAX_FILE_BYTES, Corrupt, Store, StoreError
from tests.example_records import of_process, record

ROOT = Path(__file__).resolve().parent.parent

APPEND = """
import sys
from pathlib import Path
from results.store import Store
from tests.example_records import of_process
store, run_id, first, last = Store(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for index in range(first, last):
    print(store.append(of_process(index, run_id)).name, flush=True)
"""

KILL_AT_STEP = """
import os, signal, sys
steps = 0
def count(event, arguments):
    global steps
    if "of_process" in globals() and (event == "open" or event.startswith("os.")):
        steps += 1
        if steps == STEP:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "local")


@pytest.fixture
def run_id(store: Store) -> str:
    return store.create_run({"machine_id": "0123456789abcdef"}, {"models": ["resnet50"]}).run_id


def records_folder(store: Store, run_id: str) -> Path:
    return store.root / run_id / "records"


def appender(store: Store, run_id: str, first: int, last: int, before: str = "") -> subprocess.Popen[str]:
    """A process that appends the records of these rounds and prints each file's name once it is stored."""
    return subprocess.Popen(
        [sys.executable, "-c", before + APPEND, str(store.root), run_id, str(first), str(last)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_is_appended_is_read(store: Store, run_id: str) -> None:
    """Records come back whole, in order of file name, with nothing corrupt."""
    stored = [of_process(index, run_id) for index in range(3)]
    paths = [store.append(item) for item in stored]
    records, corrupt = store.read(run_id)
    assert sorted(records, key=lambda item: item.file_name) == sorted(stored, key=lambda item: item.file_name)
    assert not corrupt
    assert sorted(path.name for path in records_folder(store, run_id).iterdir()) == sorted(path.name for path in paths)


def test_runs(store: Store) -> None:
    """Runs are found oldest first, with what was said of them; a store without runs has no latest."""
    assert store.latest_run() is None
    assert store.read() == ([], [])
    runs = [store.create_run({"machine_id": "a"}, {"number": number}) for number in range(3)]
    assert store.runs() == tuple(run.run_id for run in runs)
    assert store.latest_run() == store.run(runs[-1].run_id) == runs[-1]


def test_latest_run_skips_a_broken_one(store: Store) -> None:
    """A run whose description is broken is named when all is read, and is never the latest."""
    first, second = (store.create_run({"machine_id": "a"}, {}).run_id for _ in range(2))
    broken = store.root / second / "run.json"
    broken.write_text("{", encoding="utf-8")
    latest = store.latest_run()
    assert latest is not None
    assert latest.run_id == first
    assert [found.path for found in store.read()[1]] == [broken]
    with pytest.raises(RecordError, match=r"run\.json: not valid JSON"):
        store.run(second)


def test_description_must_be_json(store: Store) -> None:
    """A run whose description has no JSON form is not made."""
    with pytest.raises(RecordError, match=r"machine\.load"):
        store.create_run({"load": float("nan")}, {})
    assert store.runs() == ()


def test_resume(store: Store, run_id: str) -> None:
    """What is recorded is known by suite, cell, process index and run; a failure counts, another cell or run does not."""
    store.append(of_process(0, run_id))
    store.append(record(run_id=run_id, status="failed", reason="it broke", process=None, samples=None))
    cell = record().cell
    other_run = store.create_run({"machine_id": "a"}, {}).run_id
    assert store.has(run_id, "inference", cell, 0)
    assert store.has(run_id, "inference", cell, None)
    assert not store.has(run_id, "inference", cell, 1)
    assert not store.has(run_id, "memory", cell, 0)
    assert not store.has(run_id, "inference", cell.certificate_cell, 0)
    assert not store.has(other_run, "inference", cell, 0)
    assert [found.status for found in store.find(run_id, "inference", cell, None)] == ["failed"]


def test_index_is_not_a_prefix(store: Store, run_id: str) -> None:
    """Process 12 is not taken for process 1."""
    store.append(of_process(12, run_id))
    assert not store.has(run_id, "inference", record().cell, 1)


def test_same_record_twice(store: Store, run_id: str) -> None:
    """Storing a record again is no error and leaves one."""
    assert store.append(of_process(0, run_id)) == store.append(of_process(0, run_id))
    assert len(store.read()[0]) == 1


def test_never_overwrites(store: Store, run_id: str) -> None:
    """What lies in a record's place is kept, and the record is refused."""
    path = store.append(of_process(0, run_id))
    path.write_text("garbled", encoding="utf-8")
    with pytest.raises(StoreError, match="holds something else and is kept"):
        store.append(of_process(0, run_id))
    assert path.read_text(encoding="utf-8") == "garbled"


def test_unknown_run(store: Store) -> None:
    """A record of a run that was not made is refused."""
    with pytest.raises(StoreError, match="not a run"):
        store.append(of_process(0))


def test_corrupt_files(store: Store, run_id: str) -> None:
    """Truncated, garbled, altered, foreign, copied, misplaced and oversized files are named, skipped and kept; the rest is read."""
    good = store.append(of_process(0, run_id))
    folder = good.parent
    text = good.read_text(encoding="utf-8")
    prefix = good.name.rsplit("-", 1)[0]
    cases = {
        f"{prefix}-truncated.json": text[: len(text) // 2].encode(),
        f"{prefix}-empty.json": b"",
        f"{prefix}-garbled.json": b"\xff\x00\x80" + text.encode(),
        f"{prefix}-altered.json": text.replace("0.25", "0.24").encode(),
        f"{prefix}-copied.json": text.encode(),
        of_process(5).file_name: to_json(of_process(5)).encode(),
        "notes.txt": b"remember the milk",
        "foreign.json": b'{"name": "someone else\'s"}',
    }
    for name, content in cases.items():
        (folder / name).write_bytes(content)
    (folder / "folder.json").mkdir()
    os.mkfifo(folder / "pipe.json")
    (folder / "link.json").symlink_to(good)
    with (folder / "huge.json").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    before = sorted(folder.iterdir())

    records, corrupt = store.read(run_id)
    assert records == [of_process(0, run_id)]
    assert {found.path.name for found in corrupt} == {*cases, "folder.json", "pipe.json", "link.json", "huge.json"}
    assert all(str(found.path) in found.reason for found in corrupt)
    assert sorted(folder.iterdir()) == before


def test_corrupt_record_is_measured_again(store: Store, run_id: str) -> None:
    """A cell whose only record is corrupt counts as missing."""
    path = store.append(of_process(0, run_id))
    path.write_bytes(path.read_bytes()[:-20])
    assert not store.has(run_id, "inference", record().cell, 0)


@pytest.mark.parametrize("failing", ["fsync", "open"])
def test_full_disk(store: Store, run_id: str, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """On a full disk the record is refused in one sentence, nothing of it is left, and all before it are there."""
    store.append(of_process(0, run_id))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "open")), full)
        with pytest.raises(StoreError, match="was not stored: No space left on device"):
            store.append(of_process(1, run_id))
        if failing == "fsync":
            with pytest.raises(StoreError, match="no run could be made"):
                store.create_run({"machine_id": "a"}, {})
    assert len(list(records_folder(store, run_id).iterdir())) == 1
    assert store.read() == ([of_process(0, run_id)], [])
    store.append(of_process(1, run_id))
    assert len(store.read(run_id)[0]) == 2


def test_write_cut_short(store: Store, run_id: str) -> None:
    """Where the system cuts a write in the middle, the file does not appear."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
    process = appender(store, run_id, 0, 1, before=limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "StoreError" in errors
    assert "File too large" in errors
    assert list(records_folder(store, run_id).iterdir()) == []


def test_killed_at_every_step(store: Store, run_id: str) -> None:
    """A process killed before any one of its calls that touch the disk leaves the record whole or not at all, and the next is stored."""
    seen = set()
    for step in range(1, 30):
        process = appender(store, run_id, step, step + 1, before=KILL_AT_STEP.replace("STEP", str(step)))
        process.communicate(timeout=60)
        records, corrupt = store.read(run_id)
        assert not corrupt
        stored = any(item == of_process(step, run_id) for item in records)
        seen.add((process.returncode, stored))
        if process.returncode == 0:
            break
    assert seen == {(-signal.SIGKILL, False), (-signal.SIGKILL, True), (0, True)}


@pytest.mark.parametrize("after", [1, 7, 30])
def test_killed_while_appending(store: Store, run_id: str, after: int) -> None:
    """A run killed at any moment loses no finished record, leaves nothing broken, and goes on where it was."""
    process = appender(store, run_id, 0, 100_000)
    assert process.stdout is not None
    finished = [process.stdout.readline().strip() for _ in range(after)]
    process.send_signal(signal.SIGKILL)
    finished += process.communicate(timeout=60)[0].split()

    records, corrupt = store.read(run_id)
    assert not corrupt
    assert len(finished) >= after
    assert (
        set(finished) <= {item.file_name for item in records} <= {of_process(index, run_id).file_name for index in range(len(finished) + 1)}
    )
    missing = [index for index in range(after + 5) if not store.has(run_id, "inference", record().cell, index)]
    assert missing == list(range(len(records), after + 5))
    for index in missing:
        store.append(of_process(index, run_id))
    assert store.read(run_id)[1] == []


def test_two_processes_append(store: Store, run_id: str) -> None:
    """Processes that append at the same time, partly the same records, disturb neither each other nor a reader."""
    writers = [appender(store, run_id, 0, 60), appender(store, run_id, 30, 90)]
    while any(writer.poll() is None for writer in writers):
        assert not any(isinstance(found, Corrupt) for found in store.scan(run_id))
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
    records, corrupt = store.read(run_id)
    assert not corrupt
    assert {item.process.index for item in records if item.process} == set(range(90))
    assert len(records) == 90
