"""The resident memory of this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from suites.harness import memory
from suites.harness.memory import peak_memory_bytes, reclaim, reset_peak_memory

PIECE, PIECES = 100_000, 640
"""Pieces smaller than the C library takes from the system one by one (128 KiB and more), 64 MB together."""


def peak_bytes() -> int:
    found = peak_memory_bytes()
    assert found is not None
    return found


def resident_bytes() -> int:
    assert reset_peak_memory()
    return peak_bytes()


def test_the_peak_stays_until_it_is_reset() -> None:
    """What was let go of is in the peak, and not in the one after a reset."""
    reclaim()  # else the array may come from memory that other tests left resident
    before = resident_bytes()
    held = np.ones(64_000_000, np.int8)
    assert peak_bytes() - before > 0.9 * held.nbytes
    size = held.nbytes
    del held
    assert peak_bytes() - before > 0.9 * size
    assert resident_bytes() - before < 0.1 * size


def test_what_is_free_goes_back() -> None:
    """Free pieces below one that is held stay with the process until they are reclaimed."""
    pieces = [np.ones(PIECE, np.int8) for _ in range(PIECES)]
    full, last = resident_bytes(), pieces[-1]
    del pieces
    kept = resident_bytes()
    assert full - kept < 0.1 * PIECE * PIECES
    reclaim()
    assert kept - resident_bytes() > 0.9 * PIECE * PIECES
    assert last.all()


def test_a_kernel_that_tells_no_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some sandboxes' has neither the line nor the file that resets it: None, never zero and no error."""
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmSize:\t  902 kB\nVmRSS:\t  433 kB\n", encoding="ascii")
    monkeypatch.setattr(memory, "STATUS", status)
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path)
    assert peak_memory_bytes() is None
    assert not reset_peak_memory()
