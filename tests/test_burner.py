"""The neighbour that disturbs: it burns about half of one core, and ends with its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from impls.implementation import ROOT
from suites.harness import burner
from tests.checkouts import wait_until


def children() -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "suites.harness.burner" in line]


def test_it_lives_as_long_as_the_block() -> None:
    with burner.burning():
        (pid,) = wait_until(children)
        ticks = wait_until(lambda: spent(pid))
        assert ticks > 0
    assert not children()


def spent(pid: int) -> int:
    """Processor time in ticks."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return int(file.read().rpartition(")")[2].split()[11])


def test_it_ends_with_its_parent() -> None:
    """Also when the parent is killed and can tell it nothing."""
    program = "import time\nfrom suites.harness import burner\nwith burner.burning() as _:\n    time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) as parent:
        command = ["ps", "-o", "pid=,args=", "--ppid", str(parent.pid)]

        def neighbours() -> list[int]:
            lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
            return [int(line.split()[0]) for line in lines if "suites.harness.burner" in line]

        (pid,) = wait_until(neighbours)
        time.sleep(0.5)  # until it has asked to die with its parent
        parent.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
