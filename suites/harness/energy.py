"""Energy as the hardware's own counters tell it: RAPL of the processor's packages, NVML's counter of a card. Never an estimate.

A counter moves in ticks (RAPL about 1 ms, NVML 20 to 100 ms), so both ends of a window lie on one. NVML's sensor sees a
quarter of the time on some cards and is good to about 5 %: windows are long, and processes begin at random phases of it.

Sources: the kernel's power/powercap (RAPL's zones, which AMD shares; ``energy_uj`` is for root since Linux 5.10,
CVE-2020-8694); NVML's API reference; Yang, Adamek and Armour, "Accurate and Convenient Energy Measurements for GPUs", SC'24.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from suites.harness import gpu

POWERCAP = Path("/sys/class/powercap")

TICK_TIMEOUT_S = 1.0
"""A counter that stands still for ten of the slowest ticks is not counting."""

POLL_S = 1e-3
POWER_EVERY_S = 0.1

APART_LIMIT = 0.05
"""The accuracy of these sensors: a counter and an integrated power that are further apart are flagged."""


class MeterError(RuntimeError):
    """A meter that cannot be believed; the message says what it did."""


class NoMeterError(MeterError):
    """There is no meter to be read here; the message says why and, where there is a way, what would mend it."""


class Meter(Protocol):
    """A counter of energy. ``title`` says of what."""

    title: str

    def energy_j(self) -> float:
        """Joules since some moment, never fewer than before.

        Raises:
            MeterError: it cannot be read.
        """
        ...

    def power_w(self) -> float | None:
        """What is drawn now, by a sensor that is not this counter; None where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Clock:
    """The time. On Linux ``perf_counter_ns`` is the machine's monotonic clock, the same in every process."""

    now_ns: Callable[[], int] = time.perf_counter_ns
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Window:
    """What was drawn from one tick of a counter to another; ``integrated_j`` by the sensor of power, None where there is none."""

    start_ns: int
    end_ns: int
    energy_j: float
    integrated_j: float | None

    @property
    def seconds(self) -> float:
        """How long it was."""
        return (self.end_ns - self.start_ns) * 1e-9

    @property
    def power_w(self) -> float:
        """The mean over it, by the counter."""
        return self.energy_j / self.seconds

    @property
    def apart_fraction(self) -> float | None:
        """How far the integrated power is from the counter, as a fraction of the counter."""
        return None if self.integrated_j is None else abs(self.integrated_j / self.energy_j - 1)


class Rapl:
    """The packages of the processor, summed: cores, caches and memory controllers, not the memory, with all that runs on them.

    ``power_w`` is None: RAPL has no second sensor.

    Raises:
        NoMeterError: there is no package below ``root``, or its counter cannot be read.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._root = root
        # Of "intel-rapl:0" (a package) and "intel-rapl:0:1" (a part of it); "intel-rapl-mmio:0" is the same package again.
        zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if self._text(zone / "name").startswith("package")]
        if not zones:
            raise NoMeterError(
                f"the processor's energy cannot be read: {root} has no RAPL counter of a package (the kernel's module intel_rapl_msr "
                "makes them, of Intel's and of AMD's; a virtual machine seldom has any)"
            )
        self.title = f"RAPL of {', '.join(self._text(zone / 'name') for zone in zones)}"
        self._counters = [zone / "energy_uj" for zone in zones]
        self._ranges_uj = [self._number(zone / "max_energy_range_uj") for zone in zones]
        self._last_uj = [self._number(path) for path in self._counters]
        self._total_uj = 0

    def energy_j(self) -> float:
        """See ``Meter``; a counter that began again at 0 is gone on with."""
        now_uj = [self._number(path) for path in self._counters]
        for path, last, now, whole in zip(self._counters, self._last_uj, now_uj, self._ranges_uj, strict=True):
            step = (now - last) % whole
            if step > whole // 2:  # half a range takes minutes, and it is read every few seconds
                raise MeterError(f"{path} went backwards, from {last} to {now} uJ")
            self._total_uj += step
        self._last_uj = now_uj
        return self._total_uj * 1e-6

    def power_w(self) -> float | None:
        """See ``Meter``."""
        return None

    def _number(self, path: Path) -> int:
        text = self._text(path)
        if not text.isdecimal() or (path.name == "max_energy_range_uj" and int(text) < 2):
            raise NoMeterError(f"the processor's energy cannot be read: {path} holds {text[:20]!r}")
        return int(text)

    def _text(self, path: Path) -> str:
        try:
            return path.read_text(encoding="ascii", errors="replace").strip()
        except PermissionError:
            raise NoMeterError(
                f"the processor's energy cannot be read: {path} is for root alone, as Linux has it since 5.10 (CVE-2020-8694); "
                f"`sudo chmod a+r {self._root}/intel-rapl:*/*energy*_uj` allows it until the next start of the machine"
            ) from None
        except OSError as error:
            raise NoMeterError(f"the processor's energy cannot be read: {path}: {error.strerror}") from None


class NvmlMeter:
    """The card that is measured (``gpu.card``), by its own counter (Volta and newer): the whole board, with all that runs on it.

    ``nvml`` is the module pynvml.

    Raises:
        NoMeterError: the card cannot be read, keeps no such counter, or cannot be told among several.
    """

    def __init__(self, nvml: Any = None, environment: Mapping[str, str] = os.environ) -> None:
        from suites.harness.noise import NoCardError  # with numpy and scipy, which a plan needs not

        try:
            self._card = gpu.card(nvml, environment)
        except NoCardError as error:
            raise NoMeterError(str(error)) from None
        if self._card.is_instance or self._card.energy_j() is None:
            raise NoMeterError(
                "the GPU's energy cannot be read: this card has no counter of it (NVML has one of Volta and newer, not of MIG)"
            )
        self.title = f"NVML's counter of card {self._card.which}"

    def energy_j(self) -> float:
        """See ``Meter``."""
        energy_j = self._card.energy_j()
        if energy_j is None:
            raise MeterError(f"{self.title} can no longer be read")
        return energy_j

    def power_w(self) -> float | None:
        """See ``Meter``."""
        return self._card.power_w()


def meter(device: str) -> Meter:
    """The meter of what is measured on this device, "cpu" or "cuda".

    Raises:
        NoMeterError: there is none.
    """
    return Rapl() if device == "cpu" else NvmlMeter()


def missing(device: str) -> str | None:
    """Why there is no meter for this device, in one sentence; None where there is one."""
    try:
        meter(device)
    except NoMeterError as error:
        return str(error)
    return None


def window(meter: Meter, seconds: float, clock: Clock) -> Window:
    """What is drawn from the counter's next tick to its first tick after at least ``seconds``; what runs meanwhile is the caller's.

    Raises:
        MeterError: the counter stands still, goes backwards or cannot be read.
    """
    start_ns, start_j = _tick(meter, clock, meter.energy_j())
    level_j = start_j
    powers = [(clock.now_ns(), meter.power_w())]
    while (left_s := seconds - (clock.now_ns() - start_ns) * 1e-9) > 0:
        clock.sleep(min(left_s, POWER_EVERY_S))
        level_j = _onward(meter, level_j)
        powers.append((clock.now_ns(), meter.power_w()))
    end_ns, end_j = _tick(meter, clock, level_j)
    powers.append((clock.now_ns(), meter.power_w()))
    mean_w = _mean(powers)
    return Window(start_ns, end_ns, end_j - start_j, None if mean_w is None else mean_w * (end_ns - start_ns) * 1e-9)


def _onward(meter: Meter, before_j: float) -> float:
    """The counter now, which is at least what it was before."""
    now_j = meter.energy_j()
    if now_j < before_j:
        raise MeterError(f"{meter.title} went backwards")
    return now_j


def _tick(meter: Meter, clock: Clock, before_j: float) -> tuple[int, float]:
    """When the counter next changes, and to what; ``before_j`` is what it was before."""
    before_j, began_ns = _onward(meter, before_j), clock.now_ns()
    while (clock.now_ns() - began_ns) * 1e-9 < TICK_TIMEOUT_S:
        clock.sleep(POLL_S)
        now_j = _onward(meter, before_j)
        if now_j > before_j:
            return clock.now_ns(), now_j
    raise MeterError(f"{meter.title} did not change within {TICK_TIMEOUT_S:g} s")


def _mean(powers: list[tuple[int, float | None]]) -> float | None:
    """The mean over time of the readings, by the trapezoidal rule; None where one is missing."""
    known = [(clock_ns, power_w) for clock_ns, power_w in powers if power_w is not None]
    if len(known) < len(powers):
        return None
    area = sum((one_w + other_w) / 2 * (later - earlier) for (earlier, one_w), (later, other_w) in itertools.pairwise(known))
    return area / (known[-1][0] - known[0][0])
