"""A neighbour that disturbs: one process that burns a random core half of the time, in spells of random length.

``python -m suites.harness.burner PARENT`` ends with its parent. It makes the noise under which a machine's ledger is kept.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator

from impls.implementation import ROOT
from suites.harness.worker import die_with_parent

SPELL_S = 0.5
"""The mean length of a spell, of burning and of rest."""


@contextlib.contextmanager
def burning() -> Iterator[None]:
    """A burner for as long as the block lasts."""
    command = [sys.executable, "-m", "suites.harness.burner", str(os.getpid())]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT) as process:
        try:
            yield
        finally:
            process.kill()


def burn(generator: random.Random) -> None:
    """Burn and rest without end."""
    cores = sorted(os.sched_getaffinity(0))
    while True:
        os.sched_setaffinity(0, {generator.choice(cores)})
        until = time.monotonic() + generator.expovariate(1 / SPELL_S)
        while time.monotonic() < until:
            pass
        time.sleep(generator.expovariate(1 / SPELL_S))


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    burn(random.Random())
