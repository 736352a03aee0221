"""The NVIDIA GPU that is measured: whether there is one, which it is, how it is set up. Nothing of it is ever changed.

Sources: NVML's API reference; CUDA's programming guide (CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER); NVIDIA's MIG user guide.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from results.schema import canonical

if TYPE_CHECKING:
    from suites.harness.noise import Card

LIBRARY = "libnvidia-ml.so.1"
"""NVML itself, which comes with the driver."""

BUSY_FRACTION = 0.02
"""A card of which more memory than this is taken before a run begins serves somebody else too.

The driver's own share is not counted, but by drivers that do not tell it.
"""


def missing() -> str | None:
    """Why no GPU can be measured here, in one sentence; None where one can."""
    from suites.harness.noise import NoCardError  # with numpy and scipy, which a plan needs not

    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return f"there is no NVIDIA GPU to be used here: the driver's library {LIBRARY} cannot be loaded"
    try:
        mode = compute_mode(card())
    except NoCardError as error:
        return str(error)
    if mode in (None, "DEFAULT"):
        return None
    return (
        f"the GPU is in compute mode {mode}, and a run has several processes on it at once: "
        "an administrator can allow them with `nvidia-smi -c DEFAULT`"
    )


def card(nvml: Any = None, environment: Mapping[str, str] = os.environ) -> Card:
    """The card, or instance of one (MIG), that is measured: the first of CUDA_VISIBLE_DEVICES, else the only one there is.

    ``nvml`` is the module pynvml.

    Raises:
        NoCardError: it cannot be read, or cannot be told among several.
    """
    from suites.harness.noise import Card, NoCardError  # with numpy and scipy, which a plan needs not

    named = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    by_number = not named or named.isdecimal()
    found = Card(int(named or 0) if by_number else named, nvml)
    # CUDA counts the fastest first unless it is told to count as NVML does.
    if by_number and found.count > 1 and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise NoCardError(
            f"which GPU is measured cannot be told: there are {found.count} cards; "
            "name it by its UUID, as `nvidia-smi -L` has it, in CUDA_VISIBLE_DEVICES"
        )
    if found.is_instance or not _is_split(found):
        return found
    instances = _instances(found)
    if len(instances) != 1:
        raise NoCardError(
            f"which part of the GPU is measured cannot be told: it is split into {len(instances)} instances (MIG); "
            "name one by its UUID, as `nvidia-smi -L` has it, in CUDA_VISIBLE_DEVICES"
        )
    return Card(instances[0], found.nvml)


def uuid(card: Card) -> str:
    """The name by which CUDA_VISIBLE_DEVICES finds it wherever it stands."""
    return str(_text(card.nvml.nvmlDeviceGetUUID(card.handle)))


def compute_mode(card: Card) -> str | None:
    """How many processes may compute on it, in the words of `nvidia-smi -c`; None where it does not say."""
    nvml = card.nvml
    names = {
        nvml.NVML_COMPUTEMODE_DEFAULT: "DEFAULT",
        nvml.NVML_COMPUTEMODE_PROHIBITED: "PROHIBITED",
        nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "EXCLUSIVE_PROCESS",
    }
    return names.get(card.ask(nvml.nvmlDeviceGetComputeMode))


def _is_split(card: Card) -> bool:
    mode = card.ask(card.nvml.nvmlDeviceGetMigMode)  # now, and after the next reset; older cards have none
    return mode is not None and mode[0] == 1


def _instances(card: Card) -> list[str]:
    most = card.ask(card.nvml.nvmlDeviceGetMaxMigDeviceCount) or 0
    handles = [card.ask(card.nvml.nvmlDeviceGetMigDeviceHandleByIndex, index) for index in range(most)]
    return [_text(card.nvml.nvmlDeviceGetUUID(handle)) for handle in handles if handle is not None]


def facts(card: Card) -> dict[str, object]:
    """What the card is and how it is set up now, for the machine of a run; what it does not tell is None.

    The UUID, a serial number, is there as a hash. ``compute_processes`` and ``used_bytes`` are others', before any worker starts.
    """
    nvml, ask = card.nvml, card.ask
    (memory_bytes, used_bytes), ecc = card.memory_bytes(), ask(nvml.nvmlDeviceGetEccMode)
    processes = ask(nvml.nvmlDeviceGetComputeRunningProcesses, of=card.handle)
    kinds = {"sm": nvml.NVML_CLOCK_SM, "memory": nvml.NVML_CLOCK_MEM}
    clocks = {kind: ask(nvml.nvmlDeviceGetMaxClockInfo, number) for kind, number in kinds.items()}
    limit, default = ask(nvml.nvmlDeviceGetPowerManagementLimit), ask(nvml.nvmlDeviceGetPowerManagementDefaultLimit)
    persistence = ask(nvml.nvmlDeviceGetPersistenceMode)
    cuda = ask(lambda _: nvml.nvmlSystemGetCudaDriverVersion())
    return {
        "name": _text(ask(nvml.nvmlDeviceGetName)),
        "uuid_sha256": hashlib.sha256(uuid(card).encode()).hexdigest()[:16],
        "memory_bytes": memory_bytes,
        "instance": card.is_instance,
        "driver": _text(ask(lambda _: nvml.nvmlSystemGetDriverVersion())),
        "cuda_driver": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        "vbios": _text(ask(nvml.nvmlDeviceGetVbiosVersion)),
        "ecc": None if ecc is None else bool(ecc[0]),
        "persistence": None if persistence is None else bool(persistence),
        "compute_mode": compute_mode(card),
        "power_limit_w": None if limit is None else limit / 1e3,
        "power_default_w": None if default is None else default / 1e3,
        **{f"{kind}_clock_max_hz": None if clock is None else clock * 1e6 for kind, clock in clocks.items()},
        "pcie_generation": ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration),
        "pcie_width": ask(nvml.nvmlDeviceGetCurrPcieLinkWidth),
        "compute_processes": None if processes is None else len(processes),
        "used_bytes": used_bytes,
        "clock_event_reasons": ask(nvml.nvmlDeviceGetCurrentClocksEventReasons),
    }


def is_shared(facts: Mapping[str, Any]) -> bool:
    """Whether somebody else was on the card before the run: by processes that compute, or by memory, for from a container none is seen."""
    used, whole = facts["used_bytes"], facts["memory_bytes"]
    return bool(facts["compute_processes"]) or (used is not None and bool(whole) and used / whole > BUSY_FRACTION)


def cautions(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What a reader of the figures must know of the card, in sentences."""
    from suites.harness.noise import FAULTS

    found = []
    if is_shared(facts):
        found.append(
            f"something else is on the GPU ({facts['compute_processes'] or 0} processes, {facts['used_bytes'] or 0:,} bytes): "
            "end it, or times, memory and energy are of a shared card"
        )
    if facts["instance"]:
        found.append("this is an instance of a card (MIG): power, temperature and clocks are the whole card's")
    limit, default = facts["power_limit_w"], facts["power_default_w"]
    if limit is not None and default is not None and limit < default:
        found.append(f"power is capped at {limit:g} W, below the card's own {default:g} W")
    if facts["persistence"] is False:
        found.append("persistence mode is off: the driver may unload between processes, and start-up takes longer")
    held = [name for bit, name in FAULTS.items() if (facts["clock_event_reasons"] or 0) & bit]
    if held:
        found.append(f"the card is held back before anything runs: {', '.join(held)}")
    return tuple(found)


def of_machine(machine: Mapping[str, object], facts: Mapping[str, Any]) -> dict[str, object]:
    """The machine of a run on this card: its identity takes the card's model, memory and division in."""
    lasting = [machine["machine_id"], facts["name"], facts["memory_bytes"], facts["instance"]]
    identity = hashlib.sha256(canonical(lasting)).hexdigest()[:16]
    return {**machine, "machine_id": identity, "gpu_model": facts["name"], "gpu": dict(facts), "cautions": list(cautions(facts))}


def _text(value: Any) -> Any:
    """NVML's older bindings give bytes."""
    return value.decode() if isinstance(value, bytes) else value
