from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.schema import encode
from results.timing import Excluded
from suites.harness import noise
from suites.harness.noise import Card, CardReading, NoCardError, Noise, between, dropped_blocks, flags, read

TICKS = round(1 / noise.TICK_S)
PID = 77

STAT = """cpu  900 0 100 9000 3 0 9 {total} 0 0
cpu0 300 0 30 3000 1 0 3 {zero} 0 0
cpu1 300 0 30 3000 1 0 3 {one} 0 0
cpu2 300 0 40 3000 1 0 3 5000 0 0
intr 12345 0 9
ctxt 99
"""
STATUS = (
    "Name:\tpython\nThreads:\t2\nCpus_allowed_list:\t0-1\n"
    "voluntary_ctxt_switches:\t{}\nnonvoluntary_ctxt_switches:\t{}\nx86_Thread_features:\t\n"
)
WORKER = "77 (a (b) c) S 1 77 77 0 -1 4194560 900 0 0 0 {} {} 0 0 20 0 2 0 100 1000 200 18446744073709551615\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def machine(root: Path, *, steal: tuple[int, int], throttled: str, threads: dict[int, tuple[int, int]], ticks: int, pressure: int) -> Path:
    """Three cores, of which the worker may use two, in a group with a quota below one without."""
    proc = root / "proc"
    write(proc / "stat", STAT.format(total=sum(steal) + 5000, zero=steal[0], one=steal[1]))
    write(
        proc / "pressure/cpu", f"some avg10=0.00 avg60=0.00 avg300=0.00 total={pressure}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"
    )
    write(proc / "loadavg", "1.25 0.80 0.70 2/185 7153\n")
    write(proc / f"{PID}/cgroup", "0::/outer/inner\n")
    write(proc / f"{PID}/stat", WORKER.format(ticks, 5))
    shutil.rmtree(proc / f"{PID}/task", ignore_errors=True)
    for thread, counts in {PID: (1, 1), **threads}.items():
        write(proc / f"{PID}/task/{thread}/status", STATUS.format(*counts))
    write(proc / f"{PID}/status", STATUS.format(1, 1))
    write(root / "sys/fs/cgroup/outer/inner/cpu.stat", throttled)
    write(root / "sys/fs/cgroup/outer/cpu.stat", "usage_usec 9\n")
    for core, kilohertz in enumerate((2_000_000, 3_000_000, 9_000_000)):
        write(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", f"{kilohertz}\n")
    return root


@pytest.fixture
def visit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Noise:
    """Two seconds on a recorded machine: one thread ended, one began."""
    clock: Iterator[int] = iter((10**9, 3 * 10**9))
    monkeypatch.setattr(noise.time, "monotonic_ns", lambda: next(clock))
    cgroup = "usage_usec 9\nnr_periods 5\nnr_throttled {}\nthrottled_usec {}\n"
    common: dict[str, Any] = {"root": tmp_path}
    machine(tmp_path, steal=(10, 20), throttled=cgroup.format(1, 1000), threads={78: (5, 5), 79: (9, 9)}, ticks=100, pressure=500)
    before = read(PID, **common)
    machine(tmp_path, steal=(13, 20), throttled=cgroup.format(4, 31000), threads={78: (7, 6), 80: (2, 4)}, ticks=300, pressure=250_500)
    return between(before, read(PID, **common))


def test_a_visit_by_hand(visit: Noise) -> None:
    """Every counter is a difference in its unit, of the worker's cores alone; of three ticks of steal two are certain."""
    assert dataclasses.asdict(visit) == pytest.approx(
        {
            "wall_s": 2.0,
            "cores": 2,
            "steal_s": 3 / TICKS,
            "throttled_count": 3,
            "throttled_s": 0.03,
            "lost_fraction": (2 / TICKS + 0.03) / 4,
            "cpu_pressure_s": 0.25,
            "voluntary_switches": 2 + 2,
            "involuntary_switches": 1 + 4,
            "worker_cpu_s": 200 / TICKS,
            "core_clock_hz": 2.5e9,
            "load": 1.25,
            "card": None,
        }
    )
    assert flags(visit) == ("cpu-lost",)


def test_noise_is_json(visit: Noise) -> None:
    """What a record keeps has a JSON form."""
    assert json.loads(json.dumps(encode(visit), allow_nan=False)) == encode(visit)


def test_version_1_groups(tmp_path: Path) -> None:
    """The first version of control groups counts nanoseconds, in a folder of its own; a group outside the container is not there."""
    machine(tmp_path, steal=(0, 0), throttled="", threads={}, ticks=0, pressure=0)
    write(tmp_path / f"proc/{PID}/cgroup", "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n0::/\n")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/cpu.stat", "nr_periods 7\nnr_throttled 2\nthrottled_time 5000000\n")
    found = read(PID, tmp_path)
    assert (found.throttled_count, found.throttled_ns) == (2, 5_000_000)


def test_absent_is_not_zero(tmp_path: Path) -> None:
    """A machine without any of the files has no noise rather than none of it, and nothing is flagged."""
    found = between(read(PID, tmp_path), read(PID, tmp_path))
    assert {name for name, value in encode(found).items() if value is not None} == {"wall_s", "cores"}
    assert flags(found) == ()


@pytest.mark.parametrize(
    "path", ["stat", "pressure/cpu", "loadavg", f"{PID}/stat", f"{PID}/status", f"{PID}/task/{PID}/status", f"{PID}/cgroup"]
)
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"cpu0 1 2\n", b"some total=\n", b"77 (python) S\n", b"9" * 5000])
def test_broken_files(tmp_path: Path, path: str, content: bytes) -> None:
    """A file that is cut short or holds something else makes its counter None and no other."""
    arguments: dict[str, Any] = {
        "steal": (1, 2),
        "throttled": "nr_throttled 1\nthrottled_usec 5\n",
        "threads": {},
        "ticks": 1,
        "pressure": 9,
    }
    sound = encode(read(PID, machine(tmp_path, **arguments)))
    (tmp_path / "proc" / path).write_bytes(content)
    found = encode(read(PID, tmp_path))
    fed_by = {
        "stat": {"steal_ticks"},
        "pressure/cpu": {"cpu_pressure_us"},
        "loadavg": {"load"},
        f"{PID}/stat": {"worker_ticks"},
        f"{PID}/status": {"steal_ticks", "core_clock_hz", "cores"},
        f"{PID}/task/{PID}/status": {"switches"},
        f"{PID}/cgroup": {"throttled_count", "throttled_ns"},
    }
    changed = {name for name in sound if sound[name] != found[name]} - {"clock_ns"}
    assert changed == fed_by[path]
    assert all(found[name] is None for name in changed - {"cores", "steal_ticks"})


def test_a_worker_that_ended() -> None:
    """Of a process that is gone the machine's counters are still read."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    before = read(child.pid)
    child.wait()
    found = between(before, read(child.pid))
    assert (found.voluntary_switches, found.worker_cpu_s) == (None, None)
    assert found.load is not None


def test_this_process() -> None:
    """On this machine a thread that waits and work that computes are seen, and time passes."""
    event = threading.Event()
    thread = threading.Thread(target=event.wait)
    before = read(os.getpid())
    thread.start()
    while between(before, after := read(os.getpid())).worker_cpu_s == 0:
        pass
    event.set()
    thread.join()
    found = between(before, after)
    assert found.wall_s > 0
    assert found.cores == len(os.sched_getaffinity(0))
    assert after.switches is not None
    assert len(after.switches) > len(before.switches or {})


def test_clock_of_a_virtual_machine(tmp_path: Path) -> None:
    """Where /proc/cpuinfo shows a nominal clock the clock is None; where the processor counts its cycles it is read."""
    root = machine(tmp_path, steal=(0, 0), throttled="", threads={}, ticks=0, pressure=0)
    shutil.rmtree(root / "sys/devices")
    entry = "processor\t: {}\nflags\t\t: fpu {}\ncpu MHz\t\t: {}\n\n"
    write(root / "proc/cpuinfo", "".join(entry.format(core, "sse", 2600.5) for core in range(3)))
    assert read(PID, root).core_clock_hz is None
    write(root / "proc/cpuinfo", "".join(entry.format(core, "aperfmperf", 2600.5 + core) for core in range(3)))
    assert read(PID, root).core_clock_hz == pytest.approx(2601e6)


def quiet(**changes: Any) -> Noise:
    return dataclasses.replace(Noise(1.0, 2, 0.0, None, None, 0.0, None, 1, 1, 0.5, None, 0.1, None), **changes)


@pytest.mark.parametrize(("lost", "expected"), [(None, ()), (0.0, ()), (0.01, ()), (0.0101, ("cpu-lost",))])
def test_limit(lost: float | None, expected: tuple[str, ...]) -> None:
    """Just over 1 % of the cores' time is flagged, 1 % and what is not known are not."""
    assert flags(quiet(lost_fraction=lost)) == expected


def test_a_block_is_dropped_whole() -> None:
    """One disturbed visit of one arm drops its block for all."""
    visits = [(block, quiet(lost_fraction=0.5 if (block, arm) == (3, 1) else 0.0)) for block in range(5) for arm in range(4)]
    assert dropped_blocks(visits) == (Excluded(3, ("cpu-lost",)),)
    assert dropped_blocks([]) == ()


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from([None, 0.0, 0.02]))), st.randoms())
def test_exclusions_do_not_depend_on_order(visits: list[tuple[int, float | None]], random: Any) -> None:
    """The order in which visits are told does not matter, and every block that holds a flagged visit is out."""
    noises = [(block, quiet(lost_fraction=lost)) for block, lost in visits]
    shuffled = list(noises)
    random.shuffle(shuffled)
    found = dropped_blocks(noises)
    assert found == dropped_blocks(shuffled)
    assert {each.block for each in found} == {block for block, lost in visits if lost}


class FakeNvml(types.ModuleType):
    """NVML with one card that cannot tell its memory clock. It has no function that sets anything."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU, NVML_SUCCESS = 1, 2, 0, 0
    nvmlMemory_v2 = 0x02000028  # noqa: N815
    NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP = 74
    NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN = 269
    NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN = 270
    NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN = 271
    NVML_COMPUTEMODE_DEFAULT, NVML_COMPUTEMODE_PROHIBITED, NVML_COMPUTEMODE_EXCLUSIVE_PROCESS = 0, 2, 3

    class NVMLError(Exception):
        """What every function may raise."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.reasons = 0x1
        self.counters = {74: 9, 269: 3, 270: 5, 271: 7}
        self.driver: str | None = "580.95.05"
        self.present = True

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.present:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        if self.driver is None:
            raise self.NVMLError("Not Supported")
        return self.driver

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"card {index}"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceIsMigDeviceHandle(self, handle: str) -> int:  # noqa: N802
        return int(handle.startswith("card MIG-"))

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        if kind == self.NVML_CLOCK_MEM:
            raise self.NVMLError("Not Supported")
        return 1980

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return 650_500

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        return 61

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        return self.reasons

    def nvmlDeviceGetFieldValues(self, handle: str, fields: list[int]) -> list[Any]:  # noqa: N802
        return [
            types.SimpleNamespace(
                fieldId=field,
                nvmlReturn=0 if field in self.counters else 3,
                value=types.SimpleNamespace(ullVal=self.counters.get(field, 0)),
            )
            for field in fields
        ]


def of_card(before: CardReading, after: CardReading, tmp_path: Path) -> Noise:
    """A visit of one second between two readings of a card."""
    first = read(PID, tmp_path)
    last = dataclasses.replace(first, clock_ns=first.clock_ns + 10**9)
    return between(dataclasses.replace(first, card=before), dataclasses.replace(last, card=after))


def test_card(tmp_path: Path) -> None:
    """Levels have their units, what the card does not support is None, and idleness is no fault."""
    nvml = FakeNvml()
    found = between(read(PID, tmp_path, Card(nvml=nvml)), read(PID, tmp_path, Card(nvml=nvml)))
    assert encode(found.card) == {
        "sm_clock_hz": 1980e6,
        "memory_clock_hz": None,
        "temperature_celsius": 61.0,
        "power_w": 650.5,
        "reasons": 1,
        "power_cap_s": 0.0,
        "sw_thermal_s": 0.0,
        "hw_thermal_s": 0.0,
        "power_brake_s": 0.0,
        "faults": [],
    }
    assert flags(found) == ()


@pytest.mark.parametrize(
    ("reasons", "held_ms", "expected"),
    [
        (0x04, {}, ()),  # the power cap: a regime
        (0x20, {}, ()),  # not for how long
        (0x08, {}, ()),  # any change of the clocks
        (0x48, {}, ("gpu-hw-thermal",)),
        (0x80 | 0x04, {}, ("gpu-power-brake",)),
        (0x01, {74: 1000}, ()),
        (0x01, {269: 10}, ()),  # just 1 % of the visit
        (0x01, {269: 11}, ("gpu-sw-thermal",)),
        (0x01, {270: 1}, ("gpu-hw-thermal",)),
        (0x01, {271: 1, 269: 500}, ("gpu-power-brake", "gpu-sw-thermal")),
    ],
)
def test_faults_of_a_card(tmp_path: Path, reasons: int, held_ms: dict[int, int], expected: tuple[str, ...]) -> None:
    """The hardware's slowdowns flag a visit at either end, and those and heat by the time that they took."""
    nvml = FakeNvml()
    before = Card(nvml=nvml).read()
    nvml.reasons = reasons
    for field, milliseconds in held_ms.items():
        nvml.counters[field] += milliseconds * 10**6
    after = Card(nvml=nvml).read()
    found = of_card(before, after, tmp_path)
    assert flags(found) == expected
    assert found.card is not None
    assert found.card.reasons == reasons | 0x01
    if not held_ms:
        assert flags(of_card(after, before, tmp_path)) == expected


def held_s(nvml: FakeNvml, field: int, tmp_path: Path) -> dict[str, float | None]:
    """For how long the clocks were held down while this field counted a quarter of a second."""
    card = Card(nvml=nvml)
    before = card.read()
    nvml.counters[field] = nvml.counters.get(field, 0) + 250 * 10**6
    found = of_card(before, card.read(), tmp_path).card
    assert found is not None
    return {name: getattr(found, name) for name in ("power_cap_s", "sw_thermal_s", "hw_thermal_s", "power_brake_s")}


@pytest.mark.parametrize(
    ("driver", "fields"),
    [
        ("575.51.03", (74, 251, 252, 253)),
        ("580.65.06", (74, 251, 252, 253)),
        ("580.82.07", (74, 269, 270, 271)),
        ("615.71", (74, 269, 270, 271)),
    ],
)
def test_drivers_number_their_counters_otherwise(tmp_path: Path, driver: str, fields: tuple[int, ...]) -> None:
    """NVML's fields of the slowdowns as its bindings 12.575.51, 13.580.65, 13.580.82 and 13.615.71 have them; each is asked for alone."""
    for field, name in zip(fields, ("power_cap_s", "sw_thermal_s", "hw_thermal_s", "power_brake_s"), strict=True):
        nvml = FakeNvml()
        nvml.driver, nvml.counters = driver, dict.fromkeys(fields, 0)
        found = held_s(nvml, field, tmp_path)
        assert found == {other: 0.25 if other == name else 0.0 for other in found}


@pytest.mark.parametrize("driver", [None, "570.86.10"])
def test_counters_that_a_card_lacks(tmp_path: Path, driver: str | None) -> None:
    """Are None, not zero, and neither is a fault seen nor its absence known of them; what it does count is told."""
    nvml = FakeNvml()
    nvml.driver, nvml.counters = driver, {74: 0}
    assert held_s(nvml, 74, tmp_path) == {"power_cap_s": 0.25, "sw_thermal_s": None, "hw_thermal_s": None, "power_brake_s": None}


def test_a_card_that_tells_nothing(tmp_path: Path) -> None:
    """Faults that cannot be seen are None, not an empty list; a power cap alone tells of none."""
    silent = CardReading(None, None, None, None, None, {})
    for reading in (silent, dataclasses.replace(silent, held_ns={"power_cap_s": 1})):
        found = of_card(reading, reading, tmp_path)
        assert found.card is not None
        assert found.card.faults is None
        assert flags(found) == ()


def test_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library or the driver one sentence says so."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoCardError, match="install nvidia-ml-py"):
        Card()
    nvml = FakeNvml()
    nvml.present = False
    with pytest.raises(NoCardError, match="Driver Not Loaded of card 0"):
        Card(nvml=nvml)
