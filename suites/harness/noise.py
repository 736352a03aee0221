"""What else the machine did during a visit: its counters, read before and after by the parent, never inside the timed region.

A counter that is absent here is None, never zero. The flags are fixed before any run: a visit that was flagged has its
whole block dropped, in every arm alike; single samples never are, and nothing is judged by the times themselves.
Nothing of the machine or of a card is ever changed.

Sources: proc(5); the kernel's admin-guide/cgroup-v2 and scheduler/sched-bwc (throttling), accounting/psi (pressure);
NVML's API reference (clocks event reasons; known issues: fields 251 to 273 were renumbered between drivers 580.65 and 580.82).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.provenance import control_groups
from results.timing import Excluded

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
"""The step of the counters in /proc/stat and /proc/PID/stat: 10 ms on Linux."""

LOST_LIMIT = 0.01
"""A visit that lost more of its cores' time than this, to other guests or to a quota, is flagged."""

FAULTS = {0x40: "gpu-hw-thermal", 0x80: "gpu-power-brake"}
"""The clocks event reasons of NVML that flag a visit. A hardware slowdown (0x08) is only recorded: any change of the clocks may show it."""

SLOWED = {
    "sw_thermal_s": ("gpu-sw-thermal", LOST_LIMIT),
    "hw_thermal_s": ("gpu-hw-thermal", 0.0),
    "power_brake_s": ("gpu-power-brake", 0.0),
}
"""The flag of each time that a card was slowed down, and the fraction of the visit above which it is raised: hardware halves the clocks.

The software power cap is the regime that a card runs in, and has none.
"""

RENUMBERED = (575,), (580, 82)
"""The drivers, from the first to before the last, whose counters of slowdowns have numbers that are lower by ``LOWER``."""

LOWER = 18


@dataclass(frozen=True, slots=True)
class CardReading:
    """One NVIDIA card at one moment; ``reasons`` is NVML's bit mask, ``held_ns`` the times that its clocks were held down so far.

    ``held_ns`` has the names of ``CardNoise``, those that the card tells.
    """

    sm_clock_hz: float | None
    memory_clock_hz: float | None
    temperature_celsius: float | None
    power_w: float | None
    reasons: int | None
    held_ns: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters at one moment, of the cores that the worker may run on and of the worker; None where there is none.

    ``steal_ticks`` by core. ``throttled_ns`` is summed over cores and over the control groups around the worker.
    ``switches`` by thread: voluntary and involuntary.
    """

    clock_ns: int
    cores: int
    steal_ticks: Mapping[int, int] | None
    throttled_count: int | None
    throttled_ns: int | None
    cpu_pressure_us: int | None
    switches: Mapping[int, tuple[int, int]] | None
    worker_ticks: int | None
    core_clock_hz: float | None
    load: float | None
    card: CardReading | None


@dataclass(frozen=True, slots=True)
class CardNoise:
    """A card over a visit: the levels at its end, for how long its clocks were held down in it, and the names of the faults that were seen.

    They are held down to keep to the power limit, for heat (by the driver, by the hardware) and at a signal of the power supply.
    """

    sm_clock_hz: float | None
    memory_clock_hz: float | None
    temperature_celsius: float | None
    power_w: float | None
    reasons: int | None
    power_cap_s: float | None
    sw_thermal_s: float | None
    hw_thermal_s: float | None
    power_brake_s: float | None
    faults: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Noise:
    """What happened between two readings; None where either lacks the counter.

    ``steal_s`` (time that the hypervisor gave to others) and ``throttled_s`` (time over the quota) are core-seconds.
    ``lost_fraction`` is their certain part over wall time x cores: of each core's steal one tick less than it counted, as what
    filled the first tick may lie before the visit. ``cpu_pressure_s`` is the time in which something runnable on the machine
    waited for a core. ``worker_cpu_s`` is exact to a tick. ``core_clock_hz`` and ``load`` (of one minute) are levels at the end.
    """

    wall_s: float
    cores: int
    steal_s: float | None
    throttled_count: int | None
    throttled_s: float | None
    lost_fraction: float | None
    cpu_pressure_s: float | None
    voluntary_switches: int | None
    involuntary_switches: int | None
    worker_cpu_s: float | None
    core_clock_hz: float | None
    load: float | None
    card: CardNoise | None


class NoCardError(RuntimeError):
    """The card's counters cannot be read; the message says why and what would mend it."""


class Card:
    """One NVIDIA card, read through ``nvml`` (the module pynvml of nvidia-ml-py); never set.

    ``which`` is NVML's index of it, or its UUID, or that of an instance of it (MIG), whose sensors are the whole card's.
    ``count`` is how many cards the driver shows.

    Raises:
        NoCardError: nvidia-ml-py is not installed, or the driver has no such card.
    """

    def __init__(self, which: int | str = 0, nvml: Any = None) -> None:
        try:
            self.nvml = nvml or importlib.import_module("pynvml")
        except ImportError:
            raise NoCardError("the GPU's counters cannot be read: install nvidia-ml-py") from None
        try:
            self.nvml.nvmlInit()
            by = self.nvml.nvmlDeviceGetHandleByIndex if isinstance(which, int) else self.nvml.nvmlDeviceGetHandleByUUID
            self.which = which
            self.handle = by(which)
            self.count = int(self.nvml.nvmlDeviceGetCount())
            self.is_instance = bool(self.nvml.nvmlDeviceIsMigDeviceHandle(self.handle))
            self.board = self.nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self.handle) if self.is_instance else self.handle
        except self.nvml.NVMLError as error:
            raise NoCardError(f"the GPU's counters cannot be read: NVML says {error} of card {which}") from None
        self.held = self._held()

    def _held(self) -> dict[int, str]:
        """NVML's fields of the times that the clocks were held down, in ns, as this driver numbers them."""
        nvml = self.nvml
        driver = str(self.ask(lambda _: nvml.nvmlSystemGetDriverVersion()))
        first, last = RENUMBERED
        lower = LOWER if first <= tuple(map(int, re.findall(r"\d+", driver)[:2])) < last else 0
        return {
            nvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP: "power_cap_s",
            nvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN - lower: "sw_thermal_s",
            nvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN - lower: "hw_thermal_s",
            nvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN - lower: "power_brake_s",
        }

    def read(self) -> CardReading:
        """The card now; what it does not support is None."""
        ask, nvml = self.ask, self.nvml
        sm, memory = (ask(nvml.nvmlDeviceGetClockInfo, kind) for kind in (nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM))
        celsius = ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU)
        fields = ask(nvml.nvmlDeviceGetFieldValues, list(self.held)) or ()
        return CardReading(
            None if sm is None else sm * 1e6,
            None if memory is None else memory * 1e6,
            None if celsius is None else float(celsius),
            self.power_w(),
            ask(nvml.nvmlDeviceGetCurrentClocksEventReasons),
            {self.held[field.fieldId]: field.value.ullVal for field in fields if field.nvmlReturn == nvml.NVML_SUCCESS},
        )

    def power_w(self) -> float | None:
        """What it draws now, with its memory; None where it does not say."""
        milliwatt = self.ask(self.nvml.nvmlDeviceGetPowerUsage)
        return None if milliwatt is None else milliwatt / 1e3

    def energy_j(self) -> float | None:
        """What it has drawn since the driver was loaded (Volta and newer); None where it does not say."""
        millijoule = self.ask(self.nvml.nvmlDeviceGetTotalEnergyConsumption)
        return None if millijoule is None else millijoule / 1e3

    def memory_bytes(self) -> tuple[int, int] | tuple[None, None]:
        """Its memory, and how much of it is taken now, by whomever; without the driver's own share, where that is told."""
        question = self.nvml.nvmlDeviceGetMemoryInfo
        if (memory := self.ask(question, self.nvml.nvmlMemory_v2, of=self.handle)) is not None:
            return int(memory.total), int(memory.total - memory.free - memory.reserved)
        memory = self.ask(question, of=self.handle)  # an older driver's ``used`` holds the share
        return (None, None) if memory is None else (int(memory.total), int(memory.used))

    def ask(self, question: Any, *arguments: object, of: Any = None) -> Any:
        """What one of NVML's functions says of the card, or of its instance where ``of`` is ``handle``; None where it does not say."""
        try:
            return question(self.board if of is None else of, *arguments)
        except self.nvml.NVMLError:
            return None


def read(pid: int, root: Path = Path("/"), card: Card | None = None) -> Reading:
    """The counters now; ``root`` is where proc and sys lie.

    Takes 0.2 ms, and 17 us for each thread of the worker (AMD EPYC, two cores, Linux 6.18).
    """
    proc, system = f"{root}/proc", f"{root}/sys"
    cores = _affinity(f"{proc}/{pid}/status")
    steal = _steal(_read(f"{proc}/stat"), cores)
    count, throttled = _throttled(Path(f"{proc}/{pid}/cgroup"), Path(f"{system}/fs/cgroup"))
    pressure = re.search(rb"^some .*total=(\d+)", _read(f"{proc}/pressure/cpu"), re.MULTILINE)
    load = re.match(rb"(\d+\.\d+) ", _read(f"{proc}/loadavg"))
    return Reading(
        time.monotonic_ns(),
        len(cores or steal or ()) or os.cpu_count() or 1,
        steal,
        count,
        throttled,
        int(pressure[1]) if pressure else None,
        dict(_switches(f"{proc}/{pid}/task")) or None,
        _ticks(_read(f"{proc}/{pid}/stat")),
        _core_clock_hz(f"{proc}/cpuinfo", f"{system}/devices/system/cpu", cores),
        float(load[1]) if load else None,
        card.read() if card else None,
    )


def between(before: Reading, after: Reading) -> Noise:
    """What happened from one reading to the next of the same worker."""
    wall_s = (after.clock_ns - before.clock_ns) * 1e-9
    steal = certain = None
    if before.steal_ticks is not None and after.steal_ticks is not None:
        ticks = [after.steal_ticks[core] - before.steal_ticks[core] for core in before.steal_ticks.keys() & after.steal_ticks.keys()]
        steal, certain = sum(ticks) * TICK_S, sum(max(0, each - 1) for each in ticks) * TICK_S
    throttled = _difference(before.throttled_ns, after.throttled_ns, 1e-9)
    known = [each for each in (certain, throttled) if each is not None]
    voluntary, involuntary = _new_switches(before.switches, after.switches)
    count = _difference(before.throttled_count, after.throttled_count)
    return Noise(
        wall_s=wall_s,
        cores=after.cores,
        steal_s=steal,
        throttled_count=None if count is None else int(count),
        throttled_s=throttled,
        lost_fraction=sum(known) / (wall_s * after.cores) if known and wall_s > 0 else None,
        cpu_pressure_s=_difference(before.cpu_pressure_us, after.cpu_pressure_us, 1e-6),
        voluntary_switches=voluntary,
        involuntary_switches=involuntary,
        worker_cpu_s=_difference(before.worker_ticks, after.worker_ticks, TICK_S),
        core_clock_hz=after.core_clock_hz,
        load=after.load,
        card=_card(before.card, after.card, wall_s),
    )


def flags(noise: Noise) -> tuple[str, ...]:
    """Why the visit's block is dropped: none of them for a visit that stands, and none where nothing can be read."""
    found = ["cpu-lost"] if noise.lost_fraction is not None and noise.lost_fraction > LOST_LIMIT else []
    return (*found, *(noise.card.faults or () if noise.card else ()))


def dropped_blocks(visits: Iterable[tuple[int, Noise]]) -> tuple[Excluded, ...]:
    """The blocks that are left out, from the visits of all arms with the number of the block that each lies in."""
    found: dict[int, dict[str, None]] = {}
    for block, noise in visits:
        found.setdefault(block, {}).update(dict.fromkeys(flags(noise)))
    return tuple(Excluded(block, tuple(found[block])) for block in sorted(found) if found[block])


def _difference(before: float | None, after: float | None, unit: float = 1) -> float | None:
    return None if before is None or after is None else (after - before) * unit


def _card(before: CardReading | None, after: CardReading | None, wall_s: float) -> CardNoise | None:
    if before is None or after is None:
        return None
    held = {
        name: _difference(before.held_ns.get(name), after.held_ns.get(name), 1e-9)
        for name in ("power_cap_s", "sw_thermal_s", "hw_thermal_s", "power_brake_s")
    }
    slowed = {name: seconds for name in SLOWED if (seconds := held[name]) is not None}
    seen = {flag for name, (flag, limit) in SLOWED.items() if slowed.get(name, 0) > limit * wall_s}
    reasons = [each.reasons for each in (before, after) if each.reasons is not None]
    seen |= {name for bit, name in FAULTS.items() if any(mask & bit for mask in reasons)}
    return CardNoise(
        after.sm_clock_hz,
        after.memory_clock_hz,
        after.temperature_celsius,
        after.power_w,
        functools.reduce(lambda one, other: one | other, reasons) if reasons else None,
        **held,
        faults=tuple(sorted(seen)) if reasons or slowed else None,
    )


def _read(path: str) -> bytes:
    """The file's bytes, none where it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    except OSError:  # the process ended between the two calls
        return b""
    finally:
        os.close(descriptor)


def _affinity(status: str) -> frozenset[int]:
    """The cores that the process may run on."""
    found = re.search(rb"^Cpus_allowed_list:\s*([\d,-]+)$", _read(status), re.MULTILINE)
    ranges = [part.split("-") for part in found[1].decode().split(",")] if found else []
    return frozenset(core for each in ranges for core in range(int(each[0]), int(each[-1]) + 1))


def _steal(stat: bytes, cores: frozenset[int]) -> dict[int, int] | None:
    """The eighth counter of each core's line (Linux 2.6.11), of all cores where the worker's are not known."""
    lines = re.findall(rb"^cpu(\d+)(?: \d+){7} (\d+)", stat, re.MULTILINE)
    return {int(core): int(ticks) for core, ticks in lines if not cores or int(core) in cores} or None


def _throttled(membership: Path, mount: Path) -> tuple[int | None, int | None]:
    """How often and how long, in ns, the control groups around the process were held back; only those with a quota are counted."""
    texts = [_read(f"{folder}/cpu.stat") for folder in control_groups(membership, mount)]
    found = [dict(re.findall(rb"^(nr_throttled|throttled_usec|throttled_time) (\d+)$", text, re.MULTILINE)) for text in texts]
    groups = [each for each in found if b"nr_throttled" in each]
    if not groups:
        return None, None
    return (
        sum(int(each[b"nr_throttled"]) for each in groups),
        sum(int(each.get(b"throttled_usec", 0)) * 1000 + int(each.get(b"throttled_time", 0)) for each in groups),
    )


def _switches(tasks: str) -> Iterator[tuple[int, tuple[int, int]]]:
    """Voluntary and involuntary context switches by thread."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(tasks):
            # Of the form N, "nonvoluntary_ctxt_switches:", N, the rest; a regular expression takes as long as the kernel does.
            found = _read(f"{tasks}/{thread}/status").partition(b"\nvoluntary_ctxt_switches:")[2].split(None, 3)
            if len(found) > 2 and found[0].isdigit() and found[2].isdigit():
                yield int(thread), (int(found[0]), int(found[2]))


def _new_switches(
    before: Mapping[int, tuple[int, int]] | None, after: Mapping[int, tuple[int, int]] | None
) -> tuple[int, int] | tuple[None, None]:
    """The switches of the threads that are still there; one that is new began with none."""
    if before is None or after is None:
        return None, None
    pairs = [(before.get(thread, (0, 0)), counts) for thread, counts in after.items()]
    return sum(new[0] - old[0] for old, new in pairs), sum(new[1] - old[1] for old, new in pairs)


def _ticks(stat: bytes) -> int | None:
    """User and system time of all threads, fields 14 and 15; a name in field 2 may hold spaces and brackets."""
    fields = stat.rpartition(b") ")[2].split()
    return int(fields[11]) + int(fields[12]) if len(fields) > 12 and fields[11].isdigit() and fields[12].isdigit() else None


def _core_clock_hz(cpuinfo: str, cpus: str, cores: frozenset[int]) -> float | None:
    """The mean clock of the worker's cores; None in most virtual machines, where the one that is shown is nominal and never changes."""
    found = [int(text) * 1e3 for core in cores if (text := _read(f"{cpus}/cpu{core}/cpufreq/scaling_cur_freq").strip()).isdigit()]
    if not found and b" aperfmperf" in (text := _read(cpuinfo)):
        shown = dict(re.findall(rb"^processor\s*: (\d+)$.*?^cpu MHz\s*: ([\d.]+)$", text, re.MULTILINE | re.DOTALL))
        found = [float(shown[number]) * 1e6 for core in cores if (number := b"%d" % core) in shown]
    return sum(found) / len(found) if found else None
