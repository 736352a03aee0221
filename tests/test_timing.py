"""What is left out of a figure, and when a cell's processes are no sample of it."""

from __future__ import annotations

from typing import Any

import pytest

from results import timing
from results.schema import RecordError
from results.statistics import StatisticsError
from tests.example_records import fields, record

AUDIT = {"name": "outputs", "passed": True, "found": 0.5, "allowed": 2.5, "reason": None}


def beside(excluded: list[int], blocks: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
    return {
        "blocks": list(blocks),
        "noise": [{} for _ in blocks],
        "excluded": [{"block": block, "flags": ["cpu-lost"]} for block in excluded],
        "audits": [AUDIT],
    }


SAMPLES = {
    "visit": [0, 1, 1, 2, 2],
    "start_ns": [0, 2000, 4000, 6000, 8000],
    "duration_ns": [1900, 1000, 1000, 1500, 1700],
    "calls": [1, 1, 1, 1, 2],
    "warmup": [True, False, False, True, False],
}


def test_excluded_blocks_and_warm_up_are_left_out() -> None:
    everything = record(samples=SAMPLES, data=beside([]))
    assert list(timing.left_out(everything)) == [True, False, False, True, False]
    assert list(timing.left_out(record(samples=SAMPLES, data=beside([1])))) == [True, False, False, True, True]
    assert timing.call_s(record(samples=SAMPLES, data=beside([1]))) == pytest.approx(1e-6)
    assert timing.call_s(everything) == pytest.approx((1e-6 * 0.85e-6) ** 0.5)


def test_latencies_are_the_calls_that_figures_use() -> None:
    """Each in seconds, without warm-up and excluded blocks; none may be left."""
    assert timing.latencies_s(record(samples=SAMPLES, data=beside([]))) == pytest.approx([1e-6, 1e-6, 1.7e-6])
    assert timing.latencies_s(record(samples=SAMPLES, data=beside([1]))) == pytest.approx([1e-6, 1e-6])
    assert timing.latencies_s(record(samples=SAMPLES, data=beside([0, 1]))) == []


def test_a_throughput_is_wall_time_over_calls() -> None:
    offline = {**fields()["cell"], "scenario": "offline", "batch_size": 8}
    assert timing.call_s(record(cell=offline, samples=SAMPLES, data=beside([]))) == pytest.approx(3.7e-6 / 4)
    with pytest.raises(StatisticsError, match="every sample is left out"):
        timing.call_s(record(cell=offline, samples=SAMPLES, data=beside([0, 1])))


OLDER = {"wall_s": 1.0, "card": {"power_w": 650.5, "reasons": 1, "faults": []}}
"""A visit as it was recorded before there were these counters."""


@pytest.mark.parametrize(
    ("visits", "fraction"),
    [
        ([(3.0, 0.5), (1.0, 1.0)], 0.375),
        ([(3.0, 0.0), (1.0, 0.0)], 0.0),
        ([(3.0, 0.5), (1.0, None)], None),
    ],
)
def test_for_how_much_of_its_visits_a_card_was_held_down(visits: list[tuple[float, float | None]], fraction: float | None) -> None:
    """Over all processes and blocks, dropped ones too; what one visit lacks is not known of all."""
    seen = [{"wall_s": wall_s, "card": {"power_cap_s": held_s}} for wall_s, held_s in visits]
    processes = [record(samples=SAMPLES, data={**beside([0], blocks=(0,)), "noise": [each]}) for each in seen]
    assert timing.held_fraction([*processes, record(data=None)], "power_cap_s") == fraction
    assert timing.held_fraction(processes, "sw_thermal_s") is None


@pytest.mark.parametrize("seen", [{}, {"wall_s": 1.0, "card": None}, OLDER])
def test_records_without_the_cards_counters_still_load(seen: dict[str, Any]) -> None:
    """A CPU's, and those of before."""
    assert timing.held_fraction([record(samples=SAMPLES, data={**beside([], blocks=(0,)), "noise": [seen]})], "power_cap_s") is None
    assert timing.held_fraction([record(data=None)], "power_cap_s") is None


def test_records_without_blocks_leave_out_their_warm_up() -> None:
    assert timing.of(record(data=None)) is None
    assert list(timing.left_out(record())) == list(record().samples.warmup if record().samples else ())


def test_too_many_disturbed_blocks_are_no_sample() -> None:
    """A fifth of all blocks of all processes may be left out, not more."""
    quiet, disturbed = record(samples=SAMPLES, data=beside([], (0, 1))), record(samples=SAMPLES, data=beside([0], (0, 1)))
    assert timing.disturbed([quiet, quiet, disturbed]) is None
    assert timing.disturbed([quiet, disturbed]) == "INVALID-NOISY: 1 of 4 blocks were disturbed (cpu-lost), more than 20%"
    assert timing.disturbed([]) is None


def test_data_of_another_form_is_refused() -> None:
    with pytest.raises(RecordError, match=r"data: audits\[0\].reason: missing"):
        timing.of(record(samples=SAMPLES, data={**beside([]), "audits": [{k: v for k, v in AUDIT.items() if k != "reason"}]}))


def test_a_second_clock_is_there_or_not() -> None:
    """Records of before there was one have none; of one the overhead is taken off."""
    assert (before := timing.of(record(samples=SAMPLES, data=beside([])))) is not None
    assert before.second_clock is None
    second = {"name": "another", "seeds": {"a": 1}, "calls": 5, "overhead_s": 1.0, "ours_s": [4.0, 9.0, 4.0], "theirs_s": [5.0, 10.0, 1.0]}
    found = timing.of(record(samples=SAMPLES, data={**beside([]), "second_clock": second}))
    assert found is not None
    assert found.second_clock is not None
    assert found.second_clock.net_s() == (4.0, 9.0, 0.0)
    ratio = found.second_clock.ratio()
    assert ratio is not None
    assert (ratio.value, ratio.processes) == (pytest.approx(1.0), 2)
