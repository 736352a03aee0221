"""The resident memory of this process."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from suites.harness import memory
from suites.harness.memory import peak_memory_bytes, reclaim, reset_peak_memory

SIZE, PIECE = 64_000_000, 100_000
"""Bytes in all, and of a piece smaller than the C library takes from the system by itself (128 KiB and more)."""


def peak_bytes() -> int:
    found = peak_memory_bytes()
    assert found is not None
    return found


def resident_bytes() -> int:
    assert reset_peak_memory()
    return peak_bytes()


def test_the_peak_stays_until_it_is_reset() -> None:
    """What was let go of is in the peak, and not in the one after a reset."""
    before = resident_bytes()
    held = mmap.mmap(-1, SIZE)  # from the system itself: the C library may take and keep a hole that other tests left
    np.frombuffer(held, np.int8).fill(1)
    assert peak_bytes() - before > 0.9 * SIZE
    held.close()
    assert peak_bytes() - before > 0.9 * SIZE
    assert resident_bytes() - before < 0.1 * SIZE


def test_what_is_free_goes_back() -> None:
    """Free pieces among some that are held stay with the process until they are reclaimed."""
    pieces = [np.ones(PIECE, np.int8) for _ in range(SIZE // PIECE)]
    full, held = resident_bytes(), pieces[::32]
    del pieces
    kept = resident_bytes()
    assert full - kept < 0.1 * SIZE
    reclaim()
    assert kept - resident_bytes() > 0.9 * SIZE
    assert all(piece.all() for piece in held)


def test_a_kernel_that_tells_no_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some sandboxes' has neither the line nor the file that resets it: None, never zero and no error."""
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmSize:\t  902 kB\nVmRSS:\t  433 kB\n", encoding="ascii")
    monkeypatch.setattr(memory, "STATUS", status)
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path)
    assert peak_memory_bytes() is None
    assert not reset_peak_memory()
