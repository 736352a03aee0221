"""A checkout with a fifth framework in it: a copy of the project's code plus the folders of ``tests/fakes``, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.record import Record
from results.store import Store

ROOT = Path(__file__).resolve().parent.parent
CODE = ("impls", "suites", "results", "reports", "levelfield")

MAIN = "from levelfield.cli import main; main(prog_name='levelfield')"
IMPATIENT = "from suites.harness import context; context.CALL_TIMEOUT_S = context.BUILD_TIMEOUT_S = 5.0"
"""The waits of ten minutes and more that a hanging worker gets, cut short."""

UNDISTURBED = """
from suites.harness import noise
noise.flags = lambda seen: ()
"""
"""No block is dropped, however busy the machine that runs the tests."""

BRIEF = f"""{UNDISTURBED}
from suites.harness import plan, probe
probe.SAMPLES, probe.COPY_BYTES = 2, 1 << 20
plan.STANDARD = plan.Effort(processes=3, blocks=1, visit_s=0.05, samples=5, warmup_s=0.05, rewarm_calls=1)
"""
"""A real measurement, but a short one, of which nothing is left out."""

MODEL = "cifar_resnet8"


@dataclass(frozen=True, slots=True)
class Checkout:
    """The copy, and the command in it; every run has a store of its own, and all share one cache."""

    root: Path
    cache: Path

    def environment(self) -> dict[str, str]:
        """What the command sees."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
        return kept | {"LEVELFIELD_CACHE": str(self.cache), "PIP_NO_INDEX": "1", "COLUMNS": "140"}

    def start(self, *arguments: str, before: str = "", **options: Any) -> subprocess.Popen[str]:
        """The command in a process of its own, after the statements of ``before``."""
        command = [sys.executable, "-c", f"{before}\n{MAIN}", *arguments] if before else [sys.executable, "-m", "levelfield", *arguments]
        options = {"cwd": self.root, "env": self.environment(), **options}
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def run(self, *arguments: str, before: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        """The same, waited for."""
        process = self.start(*arguments, before=before, **options)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def document(self, *arguments: str, before: str = "") -> tuple[int, dict[str, Any]]:
        """Exit code and document of ``--json``."""
        done = self.run(*arguments, "--json", before=before)
        assert done.stdout, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout)


def make(root: Path, cache: Path) -> Checkout:
    """A checkout in which the fake implementations lie; no other file of it differs from the project's."""
    ignored = shutil.ignore_patterns("local", "__pycache__", "records", "published", "trained")
    for name in CODE:
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", root)
    for fake in sorted((ROOT / "tests" / "fakes").iterdir()):
        shutil.copytree(fake, root / "impls" / fake.name, ignore=ignored)
    return Checkout(root, cache)


def bench(*implementations: str, store: Path, modes: str = "all", batch_sizes: str = "1") -> tuple[str, ...]:
    """Arguments of a bench of the fakes."""
    return (
        *("bench", "--models", MODEL, "--env", "current", "--impls", ",".join(implementations), "--modes", modes),
        *("--batch-sizes", batch_sizes, "--baseline", "honest/eager", "--store", str(store)),
    )


def records(store: Path) -> list[Record]:
    """Every record of a store; none of its files is corrupt."""
    found, corrupt = Store(store).read()
    assert corrupt == []
    return found


def wait_until(holds: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Return what ``holds`` gives once it is true."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return value


def workers_of(parent: int) -> dict[int, str]:
    """Processes that the parent started as workers, and the state of each as /proc has it: R, S, T (stopped), Z."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"suites.harness.worker" in command and f"--parent\0{parent}\0".encode() in command:
            found[int(folder.name)] = state
    return found
