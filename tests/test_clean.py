"""Counting false alarms: an honest implementation has none, a faulty one is all alarms."""

from __future__ import annotations

import pytest

from tests.checkouts import Checkout

FEW = "from suites.equivalence import clean\nclean.SETS = 2"
ARGUMENTS = ("certify", "--env", "current", "--precisions", "fp32", "--threads", "1")


def test_an_honest_implementation_has_no_alarm(checkout: Checkout, tmp_path: str) -> None:
    """Every tier is compared for every seed, or once for every network, and the bound says what so few seeds can."""
    code, found = checkout.document(*ARGUMENTS, "--impls", "honest", "--clean-seeds", "3", "--store", str(tmp_path), before=FEW)
    assert code == 0
    assert (found["seeds"], found["alarms"], found["failed"]) == (4, 0, [])
    assert found["compared"] == {"E0": 2, "E1": 2, "E2": 4, "E3": 4, "E4": 4}
    assert found["at_most"] == pytest.approx(1 - 0.05**0.25)


def test_a_faulty_implementation_is_an_alarm(checkout: Checkout, tmp_path: str) -> None:
    """What counts alarms sees a fault: an epsilon of 1e-3 shows in every seed's float64, and the exit code says so."""
    code, found = checkout.document(
        *ARGUMENTS, "--impls", "villain", "--modes", "epsilon", "--clean-seeds", "2", "--store", str(tmp_path), before=FEW
    )
    assert code == 1
    assert sum(", E2: bn1: the first tap that differs" in alarm for arm in found["arms"] for alarm in arm["alarms"]) == 2
    assert found["at_most"] == 1.0
