"""The GPU that is measured: told by its UUID or not at all, its state recorded, and nothing of it ever set."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pynvml
import pytest

from impls.implementation import ROOT
from results.provenance import machine
from suites.harness import doctor, gpu, libraries
from suites.harness.noise import NoCardError
from tests.test_noise import FakeNvml

Handle = str


def memory(total: int, taken: int, reserved: int = 4_000_000_000) -> types.SimpleNamespace:
    """NVML's nvmlMemory_v2_t, whose ``used`` holds ``reserved`` or not, as the driver has it."""
    return types.SimpleNamespace(version=2, total=total, reserved=reserved, free=total - reserved - taken, used=reserved + taken)


class Server(FakeNvml):
    """A server with ``cards`` H200s; where ``instances`` are named the first card is split into these (MIG)."""

    def __init__(self, cards: int = 1, instances: tuple[str, ...] = (), **changes: Any) -> None:
        super().__init__()
        self.cards, self.instances = cards, instances
        self.memory_version = 2
        self.state = {
            **{"nvmlDeviceGetName": "NVIDIA H200", "nvmlDeviceGetVbiosVersion": "96.00.A5", "nvmlDeviceGetEccMode": [1, 1]},
            **{"nvmlDeviceGetPersistenceMode": 1, "nvmlDeviceGetPowerManagementLimit": 700_000},
            **{"nvmlDeviceGetPowerManagementDefaultLimit": 700_000, "nvmlDeviceGetComputeRunningProcesses": []},
            **{"nvmlDeviceGetCurrPcieLinkGeneration": 5, "nvmlDeviceGetCurrPcieLinkWidth": 16},
            "nvmlDeviceGetComputeMode": self.NVML_COMPUTEMODE_DEFAULT,
            "nvmlDeviceGetMemoryInfo": memory(150_754_820_096, 600_000_000),
        } | changes
        self.asked: list[tuple[str, Handle]] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)

        def answer(handle: Handle, *versions: int) -> Any:
            self.asked.append((name, handle))
            if versions and self.memory_version < 2:
                raise self.NVMLError("Function Not Found")
            if self.state.get(name) is None:
                raise self.NVMLError("Not Supported")
            return self.state[name]

        return answer

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.cards

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Handle:  # noqa: N802
        if uuid not in (*self.instances, *(f"GPU-{index}" for index in range(self.cards))):
            raise self.NVMLError("Not Found")
        return f"card {uuid.removeprefix('GPU-')}"

    def nvmlDeviceGetUUID(self, handle: Handle) -> str:  # noqa: N802
        name = handle.removeprefix("card ")
        return name if name.startswith("MIG-") else f"GPU-{name}"

    def nvmlDeviceGetMigMode(self, handle: Handle) -> list[int]:  # noqa: N802
        return [int(bool(self.instances)), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Handle) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Handle, index: int) -> Handle:  # noqa: N802
        if index >= len(self.instances):
            raise self.NVMLError("Not Found")
        return f"card {self.instances[index]}"

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: Handle) -> Handle:  # noqa: N802
        return "card 0"

    def nvmlDeviceGetMaxClockInfo(self, handle: Handle, kind: int) -> int:  # noqa: N802
        return {self.NVML_CLOCK_SM: 1980, self.NVML_CLOCK_MEM: 3201}[kind]

    def nvmlSystemGetCudaDriverVersion(self) -> int:  # noqa: N802
        return 13_010


def test_nvml_has_what_is_asked_of_it_and_nothing_is_set() -> None:
    """Every name that the code takes from NVML is in the real bindings, and none of them changes anything."""
    code = "".join((ROOT / "suites" / "harness" / name).read_text(encoding="utf-8") for name in ("gpu.py", "noise.py"))
    names = set(re.findall(r"nvml\.(nvml\w+|NVML\w+)", code))
    assert len(names) > 20
    assert [name for name in sorted(names) if not hasattr(pynvml, name)] == []
    assert [
        name for name in vars(FakeNvml) if name.startswith(("NVML_", "nvmlMemory")) and getattr(FakeNvml, name) != getattr(pynvml, name)
    ] == []
    assert [name for name in sorted(names) if re.search(r"Set|Reset|Clear|Create|Destroy", name)] == []


@pytest.mark.parametrize(
    ("cards", "instances", "environment", "expected"),
    [
        (1, (), {}, "GPU-0"),
        (4, (), {"CUDA_VISIBLE_DEVICES": "GPU-2,GPU-1"}, "GPU-2"),
        (4, (), {"CUDA_VISIBLE_DEVICES": "3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "GPU-3"),
        (1, ("MIG-a",), {}, "MIG-a"),
        (1, ("MIG-a", "MIG-b"), {"CUDA_VISIBLE_DEVICES": "MIG-b"}, "MIG-b"),
    ],
)
def test_the_card_is_told_by_its_uuid(cards: int, instances: tuple[str, ...], environment: dict[str, str], expected: str) -> None:
    """Whatever the user named, workers are given the UUID of one card or instance."""
    assert gpu.uuid(gpu.card(Server(cards, instances), environment)) == expected


@pytest.mark.parametrize(
    ("server", "environment", "message"),
    [
        (Server(4), {}, r"there are 4 cards; name it by its UUID, as `nvidia-smi -L` has it, in CUDA_VISIBLE_DEVICES$"),
        (Server(4), {"CUDA_VISIBLE_DEVICES": "2"}, r"there are 4 cards"),
        (Server(1), {"CUDA_VISIBLE_DEVICES": "GPU-9"}, r"NVML says Not Found of card GPU-9$"),
        (Server(1, ("MIG-a", "MIG-b")), {}, r"it is split into 2 instances \(MIG\); name one by its UUID"),
    ],
)
def test_no_card_is_guessed(server: Server, environment: dict[str, str], message: str) -> None:
    """Among several the user has to say which."""
    with pytest.raises(NoCardError, match=message):
        gpu.card(server, environment)


def test_the_facts_of_a_card() -> None:
    """Units are in the names, the serial number is a hash, all of it is JSON, and a quiet card has no cautions."""
    found = gpu.facts(gpu.card(Server(), {}))
    assert found["name"] == "NVIDIA H200"
    assert (found["power_limit_w"], found["power_default_w"]) == (700, 700)
    assert (found["sm_clock_max_hz"], found["memory_clock_max_hz"]) == (1980e6, 3201e6)
    assert (found["driver"], found["cuda_driver"]) == ("580.95.05", "13.1")
    assert (found["ecc"], found["persistence"], found["instance"], found["compute_mode"]) == (True, True, False, "DEFAULT")
    assert "GPU-0" not in json.dumps(found)
    assert gpu.cautions(found) == ()
    assert not gpu.is_shared(found)


@pytest.mark.parametrize(
    ("changes", "caution"),
    [
        ({"nvmlDeviceGetComputeRunningProcesses": [object()]}, "something else is on the GPU (1 processes"),
        ({"nvmlDeviceGetMemoryInfo": memory(100, 3, 0)}, "something else is on the GPU (0 processes, 3 bytes)"),
        ({"nvmlDeviceGetPowerManagementLimit": 500_000}, "power is capped at 500 W, below the card's own 700 W"),
        ({"nvmlDeviceGetPersistenceMode": 0}, "persistence mode is off"),
    ],
)
def test_what_a_reader_must_know(changes: dict[str, Any], caution: str) -> None:
    """Each state that bears on the figures has its sentence."""
    (said,) = gpu.cautions(gpu.facts(gpu.card(Server(**changes), {})))
    assert said.startswith(caution)


def test_the_drivers_own_memory_is_nobody_elses() -> None:
    """An empty card of 40 GB of which the driver keeps 912 MB is not shared; where an older driver does not tell its share, it counts."""
    server = Server(nvmlDeviceGetMemoryInfo=memory(42_949_672_960, 7_800_000, 912_000_000))
    card = gpu.card(server, {})
    assert card.memory_bytes() == (42_949_672_960, 7_800_000)
    assert gpu.cautions(gpu.facts(card)) == ()
    server.memory_version = 1
    assert card.memory_bytes() == (42_949_672_960, 919_800_000)


def test_a_card_that_is_held_back() -> None:
    """A slowdown by heat before anything runs is a caution; the software power cap, idleness and a change of the clocks are none."""
    server = Server()
    server.reasons = 0x1 | 0x4 | 0x8
    assert gpu.cautions(gpu.facts(gpu.card(server, {}))) == ()
    server.reasons = 0x40
    assert gpu.cautions(gpu.facts(gpu.card(server, {}))) == ("the card is held back before anything runs: gpu-hw-thermal",)


def test_an_instance_has_its_own_memory_and_the_cards_sensors() -> None:
    """Of MIG the memory and processes are the instance's; power and clocks are asked of the whole card."""
    server = Server(instances=("MIG-a",))
    card = gpu.card(server, {})
    found = gpu.facts(card)
    assert found["instance"] is True
    assert any("MIG" in each for each in gpu.cautions(found))
    asked = dict(server.asked)
    assert (asked["nvmlDeviceGetMemoryInfo"], asked["nvmlDeviceGetPowerManagementLimit"]) == ("card MIG-a", "card 0")
    assert card.read().power_w == 650.5


def test_what_a_card_does_not_tell() -> None:
    """Null, never zero."""
    silent = {name: None for name in Server().state if name != "nvmlDeviceGetName"}
    found = gpu.facts(gpu.card(Server(**silent), {}))
    assert {found[name] for name in ("memory_bytes", "ecc", "persistence", "power_limit_w", "compute_processes", "compute_mode")} == {None}
    assert gpu.cautions(found) == ()


def test_another_card_is_another_machine() -> None:
    """The identity takes in model, memory and division; a power limit may change under it."""
    here = machine()
    whole, capped = (gpu.facts(gpu.card(Server(**changes), {})) for changes in ({}, {"nvmlDeviceGetPowerManagementLimit": 500_000}))
    first = gpu.of_machine(here, whole)
    assert first["machine_id"] != here["machine_id"]
    assert first["gpu_model"] == "NVIDIA H200"
    assert gpu.of_machine(here, capped)["machine_id"] == first["machine_id"]
    assert gpu.of_machine(here, {**whole, "name": "NVIDIA H100"})["machine_id"] != first["machine_id"]
    assert gpu.of_machine(here, {**whole, "instance": True})["machine_id"] != first["machine_id"]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which the driver's library can be loaded, and no card is named."""
    monkeypatch.setattr(gpu, "LIBRARY", "libc.so.6")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


@pytest.mark.parametrize(("mode", "name"), [(0, None), (None, None), (2, "PROHIBITED"), (3, "EXCLUSIVE_PROCESS")])
def test_a_card_that_refuses_processes(driver: pytest.MonkeyPatch, mode: int | None, name: str | None) -> None:
    """One sentence says who can change that, the doctor's too; a card that does not tell its mode is tried."""
    driver.setitem(sys.modules, "pynvml", Server(nvmlDeviceGetComputeMode=mode))
    found = gpu.missing()
    if name is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(f"the GPU is in compute mode {name}, ")
        assert found.endswith("an administrator can allow them with `nvidia-smi -c DEFAULT`")
        assert [each.found for each in doctor._system() if "GPU" in each.what] == [found]


def test_a_card_that_cannot_be_told(driver: pytest.MonkeyPatch) -> None:
    """Is said before anything is built, too."""
    driver.setitem(sys.modules, "pynvml", Server(4))
    assert str(gpu.missing()).startswith("which GPU is measured cannot be told: there are 4 cards; ")


def test_no_driver(driver: pytest.MonkeyPatch) -> None:
    """Without the driver's library one sentence names it, and without a driver below it NVML's own word is told."""
    without = Server()
    without.present = False
    driver.setitem(sys.modules, "pynvml", without)
    assert gpu.missing() == "the GPU's counters cannot be read: NVML says Driver Not Loaded of card 0"
    driver.setattr(gpu, "LIBRARY", "no-such-library.so.1")
    assert gpu.missing() == "there is no NVIDIA GPU to be used here: the driver's library no-such-library.so.1 cannot be loaded"


def test_the_doctor_tells_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what speaks against its figures; a card that cannot be told is no traceback."""
    monkeypatch.setitem(sys.modules, "pynvml", Server(nvmlDeviceGetPersistenceMode=0))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert doctor._gpu().startswith("NVIDIA H200, driver 580.95.05, CUDA 13.1; persistence mode is off")
    monkeypatch.setitem(sys.modules, "pynvml", Server(cards=2))
    assert "there are 2 cards" in doctor._gpu()


MAPS = """7f00 r--p 00000000 08:01 1   /venv/nvidia/cudnn/lib/libcudnn.so.9
7f01 r-xp 00000000 08:01 1   /venv/nvidia/cudnn/lib/libcudnn.so.9
7f02 r--p 00000000 08:01 2   /venv/nvidia/cudnn/lib/libcudnn_ops.so.9
7f03 r--p 00000000 08:01 3   /venv/nvidia/cu13/lib/libcublas.so.13
7f04 r--p 00000000 08:01 4   /venv/nvidia/cu13/lib/libcublasLt.so.13
7f05 rw-p 00000000 00:00 0   [heap]
"""


class Cudnn:
    """A library that knows its version."""

    @staticmethod
    def cudnnGetVersion() -> int:  # noqa: N802
        return 92_807


class Cublas:
    @staticmethod
    def cublasGetProperty(number: int, value: Any) -> int:  # noqa: N802
        value._obj.value = (13, 10, 0)[number]
        return 0


def test_the_libraries_that_are_loaded(tmp_path: Path) -> None:
    """By their own word; a second cuDNN in the process is told, and one that does not say its version is no zero."""
    maps = tmp_path / "maps"
    maps.write_text(MAPS)
    known = {"/venv/nvidia/cudnn/lib/libcudnn.so.9": Cudnn, "/venv/nvidia/cu13/lib/libcublas.so.13": Cublas}
    assert libraries.loaded(maps, known.__getitem__) == {"cublas": "13.10.0", "cudnn": "9.28.7"}
    maps.write_text(MAPS + "7f06 r--p 00000000 08:01 9   /usr/lib/libcudnn.so.9.10.2\n")
    both = known | {"/usr/lib/libcudnn.so.9.10.2": object()}
    assert libraries.loaded(maps, both.__getitem__)["cudnn"] == "9.28.7 and does not say"
    maps.write_text("7f05 rw-p 00000000 00:00 0   [heap]\n")
    assert libraries.loaded(maps) == {}
    assert isinstance(libraries.loaded(), dict)
