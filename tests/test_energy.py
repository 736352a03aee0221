"""Energy: what the counters say is what is told, and where they say nothing sound, one sentence does; no test waits."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.record import Cell, Record
from suites import energy as suite
from suites.harness import energy
from suites.harness.energy import APART_LIMIT, Clock, MeterError, NoMeterError, NvmlMeter, Rapl, Window, missing, window
from suites.harness.plan import STANDARD_ENERGY
from tests.checkouts import BRIEF, Checkout, bench, records
from tests.test_noise import FakeNvml

RANGE_UJ = 262_143_328_850
"""What an Intel server's packages have: 2^32 units of 61 uJ."""


class Time:
    """A clock that only sleeping and looking at it moves on."""

    def __init__(self) -> None:
        self.ns = 0
        self.slept_s = 0.0

    def now_ns(self) -> int:
        self.ns += 1000
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)
        self.slept_s += seconds

    @property
    def clock(self) -> Clock:
        return Clock(self.now_ns, self.sleep)


class Ticking:
    """A meter of a power that may change in time, read in ticks; its sensor of power is off by the fraction ``off``, if it has one."""

    title = "a simulated counter"

    def __init__(self, time: Time, watts: Callable[[float], float], tick_s: float = 0.1, off: float | None = None) -> None:
        self.time, self.watts, self.tick_s, self.off = time, watts, tick_s, off

    def energy_j(self) -> float:
        ticks = int(self.time.ns * 1e-9 / self.tick_s)
        return sum(self.watts(tick * self.tick_s) * self.tick_s for tick in range(ticks))

    def power_w(self) -> float | None:
        return None if self.off is None else self.watts(self.time.ns * 1e-9) * (1 + self.off)


def powercap(root: Path, *packages: int, range_uj: int = RANGE_UJ) -> Path:
    """A /sys/class/powercap as a server has it: packages with parts, one of them seen a second time, and the whole board."""
    zones = {"intel-rapl-mmio:0": ("package-0", 7), "intel-rapl:9": ("psys", 10**9)}
    for number, energy_uj in enumerate(packages):
        zones |= {f"intel-rapl:{number}": (f"package-{number}", energy_uj), f"intel-rapl:{number}:0": ("core", 5)}
    for folder, (name, energy_uj) in zones.items():
        (root / folder).mkdir(parents=True)
        for file, value in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", range_uj)):
            (root / folder / file).write_text(f"{value}\n")
    return root


def counted(root: Path, *packages: int) -> None:
    """Set the packages' counters."""
    for number, energy_uj in enumerate(packages):
        (root / f"intel-rapl:{number}" / "energy_uj").write_text(f"{energy_uj}\n")


def test_packages_are_summed(tmp_path: Path) -> None:
    """Both packages count, once each; their parts, the second view of one and the whole board do not."""
    meter = Rapl(powercap(tmp_path, 1_000_000, 50_000_000))
    before_j = meter.energy_j()
    counted(tmp_path, 3_000_000, 54_500_000)
    assert meter.energy_j() - before_j == pytest.approx(6.5)
    assert meter.title == "RAPL of package-0, package-1"
    assert meter.power_w() is None


@given(steps=st.lists(st.integers(0, 400_000), max_size=20), start=st.integers(0, 999_999))
def test_a_counter_that_begins_again(steps: list[int], start: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """However often it wraps around, nothing is lost and nothing goes backwards."""
    root = powercap(tmp_path_factory.mktemp("powercap"), start, range_uj=1_000_000)
    meter, total_uj = Rapl(root), 0
    for step in steps:
        total_uj += step
        counted(root, (start + total_uj) % 1_000_000)
        assert meter.energy_j() == pytest.approx(total_uj * 1e-6)


def test_a_counter_that_goes_backwards(tmp_path: Path) -> None:
    """A counter that lost a joule has not wrapped around 262 kJ later."""
    meter = Rapl(powercap(tmp_path, 5_000_000))
    counted(tmp_path, 4_000_000)
    with pytest.raises(MeterError, match=r"energy_uj went backwards, from 5000000 to 4000000 uJ"):
        meter.energy_j()


def test_no_rapl(tmp_path: Path) -> None:
    """No folder, an empty one, and one without a package are one answer each, in one sentence."""
    for root in (tmp_path / "absent", tmp_path, powercap(tmp_path / "board")):
        with pytest.raises(NoMeterError, match=r"has no RAPL counter of a package .*virtual machine") as caught:
            Rapl(root)
        assert "\n" not in str(caught.value)


def test_rapl_for_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since Linux 5.10 a user may not read it; the sentence says how to mend that."""
    root = powercap(tmp_path, 5)
    read_text = Path.read_text

    def refuse(path: Path, **how: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(path, **how)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(NoMeterError, match=rf"root alone.*CVE-2020-8694.*sudo chmod a\+r {root}/intel-rapl:\*"):
        Rapl(root)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read what it likes")
def test_rapl_without_permission(tmp_path: Path) -> None:
    """The same with the file's own permissions."""
    root = powercap(tmp_path, 5)
    (root / "intel-rapl:0" / "energy_uj").chmod(0)
    with pytest.raises(NoMeterError, match="root alone"):
        Rapl(root)


@pytest.mark.parametrize("file", ["energy_uj", "max_energy_range_uj"])
@pytest.mark.parametrize("text", ["", "-5", "no", "0"])
def test_rapl_of_nonsense(tmp_path: Path, file: str, text: str) -> None:
    """A file that holds no number is no counter, and a range of 0 none to wrap around."""
    (powercap(tmp_path, 5) / "intel-rapl:0" / file).write_text(text)
    if (file, text) == ("energy_uj", "0"):
        assert Rapl(tmp_path).energy_j() == 0
    else:
        with pytest.raises(NoMeterError, match=f"{file} holds '{text}'"):
            Rapl(tmp_path)


def test_rapl_that_vanishes(tmp_path: Path) -> None:
    """A counter that is gone in the middle of a measurement is said to be."""
    meter = Rapl(powercap(tmp_path, 5))
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(MeterError, match="No such file"):
        meter.energy_j()


class Board(FakeNvml):
    """The fake NVML with counters of energy."""

    def __init__(self, cards: int = 1, millijoules: int | None = 7_000_000) -> None:
        super().__init__()
        self.cards, self.millijoules = cards, millijoules

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.cards

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != "GPU-1":
            raise self.NVMLError("Not Found")
        return f"card {uuid}"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        self.asked = handle
        if self.millijoules is None:
            raise self.NVMLError("Not Supported")
        return self.millijoules


def test_a_card() -> None:
    """Millijoules and milliwatts become joules and watts; a counter that fails later is said to."""
    board = Board()
    meter = NvmlMeter(board, {})
    assert (meter.energy_j(), meter.power_w(), meter.title) == (7000.0, 650.5, "NVML's counter of card 0")
    board.millijoules = None
    with pytest.raises(MeterError, match="can no longer be read"):
        meter.energy_j()


@pytest.mark.parametrize(
    ("cards", "environment", "card"),
    [
        (1, {}, "card 0"),
        (1, {"CUDA_VISIBLE_DEVICES": "0"}, "card 0"),
        (4, {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}, "card GPU-1"),
        (4, {"CUDA_VISIBLE_DEVICES": "3,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "card 3"),
        (4, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "card 0"),
        (4, {}, None),
        (4, {"CUDA_VISIBLE_DEVICES": "3"}, None),
    ],
)
def test_the_card_that_is_measured(cards: int, environment: dict[str, str], card: str | None) -> None:
    """It is the one that the workers use, or it is not guessed."""
    board = Board(cards)
    if card is None:
        with pytest.raises(NoMeterError, match=r"there are 4 cards.*nvidia-smi -L.*CUDA_VISIBLE_DEVICES"):
            NvmlMeter(board, environment)
    else:
        NvmlMeter(board, environment)
        assert board.asked == card


def test_no_counter_on_the_card() -> None:
    """A card without the counter, no such card, and no driver."""
    with pytest.raises(NoMeterError, match="this card has no counter"):
        NvmlMeter(Board(millijoules=None), {})
    with pytest.raises(NoMeterError, match="Not Found of card GPU-7"):
        NvmlMeter(Board(), {"CUDA_VISIBLE_DEVICES": "GPU-7"})
    board = Board()
    board.present = False
    with pytest.raises(NoMeterError, match="Driver Not Loaded"):
        NvmlMeter(board, {})


def test_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason, or None where there is a meter."""
    monkeypatch.setattr(energy, "Rapl", lambda: Rapl(tmp_path))
    assert "has no RAPL counter" in (missing("cpu") or "")
    powercap(tmp_path, 5)
    assert missing("cpu") is None


@given(
    watts=st.floats(1, 1000),
    tick_s=st.sampled_from([0.001, 0.02, 0.1]),
    phase_s=st.floats(0, 1),
)
def test_a_window_lies_between_ticks(watts: float, tick_s: float, phase_s: float) -> None:
    """Of a steady power the energy over the time is that power, whatever the tick and the phase; the window is long enough."""
    time = Time()
    time.sleep(1 + phase_s)
    found = window(Ticking(time, lambda _: watts, tick_s), 2.0, time.clock)
    assert found.seconds >= 2.0
    assert found.seconds <= 2.0 + 2 * tick_s + 0.01
    assert found.power_w == pytest.approx(watts, rel=0.002)
    assert found.apart_fraction is None


def test_an_unaligned_window_would_be_wrong() -> None:
    """What alignment is for: the same counter read at any two moments is off by up to a tick."""
    time = Time()
    meter = Ticking(time, lambda _: 100.0)
    time.sleep(1.099)
    start_ns, start_j = time.ns, meter.energy_j()
    time.sleep(0.502)
    assert (meter.energy_j() - start_j) / ((time.ns - start_ns) * 1e-9) > 119
    assert window(meter, 0.5, time.clock).power_w == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize(("off", "flagged"), [(0.0, False), (0.04, False), (-0.04, False), (0.06, True), (-0.06, True)])
def test_counter_and_power_are_compared(off: float, flagged: bool) -> None:
    """Where the integrated power is more than 5 % from the counter the record says so, of a power that varies, too."""
    time = Time()
    meter = Ticking(time, lambda second: 100 + 50 * math.sin(second), off=off)
    both = window(meter, 10.0, time.clock)
    assert both.apart_fraction == pytest.approx(abs(off), abs=0.005)
    found = suite.described(meter, both, both)
    assert found["flags"] == (
        [f"counter and integrated power are 6% apart while it is {state}" for state in ("idle", "busy")] if flagged else []
    )
    json.dumps(found)
    assert APART_LIMIT == 0.05


def test_a_sensor_of_power_that_stops() -> None:
    """Readings with a gap are not integrated over."""
    time = Time()
    meter = Ticking(time, lambda _: 100.0, off=0.0)
    powers = itertools.chain([100.0, 100.0, None], itertools.repeat(100.0))
    meter.power_w = lambda: next(powers)  # type: ignore[method-assign]
    assert window(meter, 1.0, time.clock).apart_fraction is None


def test_a_counter_that_never_ticks() -> None:
    """It is given up on after a second, in one sentence."""
    time = Time()
    with pytest.raises(MeterError, match=r"^a simulated counter did not change within 1 s$"):
        window(Ticking(time, lambda _: 0.0), 10.0, time.clock)
    assert 0.9 < time.slept_s < 1.1


def test_a_counter_that_stops() -> None:
    """One that stands still at the end of a window gives no energy."""
    time = Time()
    with pytest.raises(MeterError, match="did not change"):
        window(Ticking(time, lambda second: 100.0 if second < 5 else 0.0), 10.0, time.clock)


@pytest.mark.parametrize("turn_s", [0.0, 5.0, 10.05])
def test_a_villain_that_goes_backwards(turn_s: float) -> None:
    """At the start, within the window or at its end: what has been drawn cannot be given back."""
    time = Time()
    time.sleep(20)
    with pytest.raises(MeterError, match=r"^a simulated counter went backwards$"):
        window(Ticking(time, lambda second: 100.0 if second < 20 + turn_s else -150.0), 10.0, time.clock)


def test_a_counter_that_is_set_back_within_a_window() -> None:
    """A step back is seen though the counter goes on from there and ends above where it began."""
    time = Time()
    with pytest.raises(MeterError, match="went backwards"):
        window(Ticking(time, lambda second: -1000.0 if 5 <= second < 5.09 else 100.0), 10.0, time.clock)


def busy(start_s: float, end_s: float) -> Window:
    return Window(round(start_s * 1e9), round(end_s * 1e9), 100.0, None)


def test_calls_are_counted_by_their_share() -> None:
    """Whole calls count as one each, a straddling one by its part, a sample of several calls by all of them."""
    starts, durations = [0, 1_000_000_000, 2_500_000_000], [1_000_000_000] * 3
    assert suite.calls_within(busy(0, 3.5), starts, durations, [1, 1, 1]) == pytest.approx(3)
    assert suite.calls_within(busy(0.5, 2.25), starts, durations, [1, 1, 1]) == pytest.approx(1.5)
    assert suite.calls_within(busy(0.5, 2.75), starts, durations, [4, 4, 4]) == pytest.approx(7)


@pytest.mark.parametrize(("start_s", "end_s"), [(-0.1, 1), (0, 3.6)])
def test_a_window_that_was_not_all_busy(start_s: float, end_s: float) -> None:
    """A window that begins before the calls or ends after them is no measurement."""
    starts, durations = [0, 1_000_000_000, 2_500_000_000], [1_000_000_000] * 3
    with pytest.raises(MeterError, match="did not last"):
        suite.calls_within(busy(start_s, end_s), starts, durations, [1, 1, 1])
    with pytest.raises(MeterError, match="did not last"):
        suite.calls_within(busy(0, 1), [], [], [])


class Worker:
    """A worker of a network that draws 30 W above the idle 50 W while it runs; each call takes ``call_s``."""

    def __init__(self, time: Time, call_s: float) -> None:
        self.time, self.call_s = time, call_s
        self.runs: list[tuple[float, float]] = []
        self.stopped: list[tuple[bool, float]] = []

    def watts(self, second: float) -> float:
        return 50.0 + 30.0 * any(start <= second < end for start, end in self.runs)

    def pause(self) -> None:
        self.stopped.append((True, self.time.ns * 1e-9))

    def resume(self) -> None:
        self.stopped.append((False, self.time.ns * 1e-9))

    def call(self, operation: str, timeout_s: float, **asked: Any) -> dict[str, Any]:
        assert operation == "visit"
        self.time.sleep(asked["samples"] * self.call_s)
        return {"duration_ns": [round(self.call_s * 1e9)] * asked["samples"]}

    def send(self, operation: str, **asked: Any) -> None:
        assert operation == "sustain"
        sample_ns = round(self.call_s * asked["calls"] * 1e9)
        self.calls = asked["calls"]
        self.samples = range(self.time.ns, self.time.ns + round(asked["seconds"] * 1e9), sample_ns), sample_ns
        self.runs.append((self.time.ns * 1e-9, (self.samples[0][-1] + sample_ns) * 1e-9))

    def receive(self, timeout_s: float) -> dict[str, Any]:
        starts, sample_ns = self.samples
        return {"start_ns": list(starts), "duration_ns": [sample_ns] * len(starts), "calls": [self.calls] * len(starts)}


def cell(batch_size: int) -> Cell:
    scenario = "offline" if batch_size > 1 else "single_stream"
    return Cell("honest", "eager", "cifar_resnet8", "fp32", "cpu", batch_size, "transfer", scenario, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(("batch_size", "call_s"), [(1, 0.004), (8, 0.02), (1, 0.7)])
def test_the_energy_of_an_image(batch_size: int, call_s: float) -> None:
    """80 W for a call's time is its energy, 30 W of it net; the process is stopped while idleness is read."""
    time = Time()
    worker = Worker(time, call_s)
    idle, loaded, images = suite.windows(worker, cell(batch_size), Ticking(time, worker.watts), STANDARD_ENERGY, time.clock)  # type: ignore[arg-type]
    found = suite.figures(idle, loaded, images)
    assert found["energy_j_per_image"] == pytest.approx(80 * call_s / batch_size, rel=0.01)
    assert found["net_energy_j_per_image"] == pytest.approx(30 * call_s / batch_size, rel=0.03)
    assert found["idle_power_w"] == pytest.approx(50, rel=0.001)
    assert min(found["window_s"], found["idle_window_s"]) >= 10
    (stopped, _), (_, resumed_s) = worker.stopped
    assert stopped
    assert resumed_s >= idle.end_ns * 1e-9
    assert loaded.start_ns * 1e-9 - worker.runs[0][0] >= STANDARD_ENERGY.lead_s
    assert worker.calls == (5 if batch_size > 1 else 1)


def test_phases_are_random() -> None:
    """Processes do not all begin at one phase of a sensor that sees 25 ms of every 100 ms."""
    random.seed(3)
    phases = [math.floor(suite._lead_s(STANDARD_ENERGY) * 1000) % 100 // 25 for _ in range(40)]
    assert set(phases) == {0, 1, 2, 3}


SIMULATED = """
import functools, pathlib, time
from suites.harness import energy, plan
class Meter:
    title = "a simulated counter"
    def energy_j(self):
        return {joules}
    def power_w(self):
        return 500.0
energy.meter = lambda device: Meter()
plan.STANDARD_ENERGY = plan.EnergyEffort(3, 0.1, 0.2)
energy.TICK_TIMEOUT_S = 0.5
"""
NO_RAPL = """
import functools, pathlib
from suites.harness import energy
energy.Rapl = functools.partial(energy.Rapl, pathlib.Path("/nowhere"))
"""


def measured(checkout: Checkout, store: Path, before: str) -> tuple[int, dict[str, Any], list[Record], str]:
    """Exit code, the one row, the records of energy and the report's Markdown of a bench of the honest one."""
    arguments = (*bench("honest", store=store), "--energy")
    code, document = checkout.document(*arguments, before=f"{BRIEF}\n{before}")
    (row,) = document["rows"]
    (report,) = checkout.root.glob(f"reports/local/{document['run_id']}/report.md")
    return code, row, [record for record in records(store) if record.suite == "energy"], report.read_text(encoding="utf-8")


def test_bench_without_a_counter(checkout: Checkout, tmp_path: Path) -> None:
    """The command ends well, with nothing instead of an energy, one record and one reason."""
    code, row, found, report = measured(checkout, tmp_path, NO_RAPL)
    assert code == 0, row["reason"]
    assert row["energy_j_per_image"] is None
    assert row["energy_absent"].startswith("the processor's energy cannot be read: /nowhere has no RAPL counter")
    assert [(record.status, record.reason) for record in found] == [("skipped", row["energy_absent"])]
    assert report.count("no RAPL counter") == 1
    assert "J/image" not in report
    assert row["latency_s"]["value"] > 0


def test_bench_with_a_counter(checkout: Checkout, tmp_path: Path) -> None:
    """Three processes, whose energies are the row's; sensors that disagree are told of."""
    code, row, found, report = measured(checkout, tmp_path, SIMULATED.format(joules="time.monotonic_ns() * 50e-9"))
    assert code == 0
    assert [record.process.index for record in found if record.process] == [0, 1, 2]
    assert len({record.process.hash_seed for record in found if record.process}) == 3
    for record in found:
        told = {name: value or math.nan for name, value in record.measurements.items()}
        assert told["energy_j_per_image"] == pytest.approx(told["power_w"] * told["window_s"] / told["images"])
    assert row["energy_low_j_per_image"] <= row["energy_j_per_image"] <= row["energy_high_j_per_image"]
    assert row["energy_absent"] is None
    assert "energy: process 0: counter and integrated power are" in row["remark"]
    assert "| J/image |" in report
    assert "no energies are ranked" in report


def test_bench_with_a_counter_that_goes_backwards(checkout: Checkout, tmp_path: Path) -> None:
    """It fails in the first process, which is not tried again; the times stand."""
    code, row, found, report = measured(checkout, tmp_path, SIMULATED.format(joules="-time.monotonic_ns() * 50e-9"))
    assert code == 0
    assert [(record.status, record.reason) for record in found] == [("failed", "a simulated counter went backwards")]
    assert (row["energy_j_per_image"], row["energy_absent"]) == (None, "a simulated counter went backwards")
    assert "energy: it was not measured (a simulated counter went backwards)" in report
