"""The command on a GPU that is none: NumPy that says it is one, under a fake NVML. Everything up to the device."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from impls.implementation import find
from reports import frame
from results.record import Cell, Record
from results.store import Store
from suites import pairs
from suites.harness import plan, runner
from suites.inference import groups, rooms
from tests.checkouts import ROOT, UNDISTURBED, Checkout, bench, records

CARD = f"""
import sys
sys.path.append({str(ROOT)!r})
from tests.test_gpu import Server
sys.modules["pynvml"] = Server()
from suites.harness import gpu, plan, probe
gpu.LIBRARY = "libc.so.6"
plan.ON_GPU = plan.Effort(processes=2, blocks=1, visit_s=0.02, samples=3, warmup_s=0.02, rewarm_calls=1)
tiny = probe.Shapes(((probe._convolution(8, 8), 2), (probe._product(64), 64)), (probe._copy(4, 16), 2), 2)
probe.SHAPES = {{**probe.SHAPES, "cuda": tiny}}
{UNDISTURBED}"""


@pytest.fixture(scope="module")
def run(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], Path]:
    """One run over all that a card's memory can do: exit code, document, store."""
    store = tmp_path_factory.mktemp("store")
    options = ("--device", "cuda", "--precisions", "fp32", "--scopes", "all", "--baseline", "card/eager")
    arguments = bench("card", store=store, batch_sizes="1,8,16", modes="eager,small,sociable")
    code, document = checkout.document(*arguments, *options, before=CARD)
    return code, document, store


@pytest.mark.parametrize("command", ["bench", "certify"])
def test_an_exclusive_card_stops_a_run_before_it_begins(checkout: Checkout, tmp_path: Path, command: str) -> None:
    """One sentence and the exit code of the environment's errors; no run is begun."""
    exclusive = f"{CARD}\nsys.modules['pynvml'].state['nvmlDeviceGetComputeMode'] = 3"
    options = ("--models", "cifar_resnet8", "--env", "current", "--impls", "card", "--store", str(tmp_path / "store"))
    done = checkout.run(command, "--device", "cuda", *options, before=exclusive)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("levelfield: the GPU is in compute mode EXCLUSIVE_PROCESS, ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "store").exists()


def of(found: list[Record], suite: str, **coordinates: Any) -> list[Record]:
    return [each for each in found if each.suite == suite and all(getattr(each.cell, name) == value for name, value in coordinates.items())]


def test_what_does_not_fit_is_a_row(run: tuple[int, dict[str, Any], Path]) -> None:
    """The first size that does not fit is out of memory, a larger one is not tried, smaller ones and the other modes have figures."""
    code, document, store = run
    assert code == 1
    rows = {(row["mode"], row["batch_size"], row["scope"]): row for row in document["rows"]}
    for scope in plan.SCOPES:
        assert [rows["small", size, scope]["status"] for size in (1, 8, 16)] == ["ok", "out_of_memory", "out_of_memory"]
        assert "CUDA out of memory" in rows["small", 8, scope]["reason"]
        assert rows["small", 16, scope]["reason"] == "not tried: a batch of 8 did not fit into the GPU's memory"
        assert {rows["eager", size, scope]["status"] for size in (1, 8, 16)} == {"ok"}
    assert all(row["time_per_batch_s"] for row in rows.values() if row["status"] == "ok")
    assert {each.process for each in of(records(store), "inference", mode="small", batch_size=16)} == {None}


def test_what_does_not_fit_beside_others_has_the_card_to_itself(run: tuple[int, dict[str, Any], Path]) -> None:
    """It is measured in the same rounds as the others, so it is paired with them; its crowded processes leave no record."""
    _, document, store = run
    rows = [row for row in document["rows"] if row["mode"] == "sociable" and row["batch_size"] == 8]
    assert {(row["status"], row["pairs"]) for row in rows} == {("ok", 2)}
    found = of(records(store), "inference", mode="sociable", batch_size=8, scope="device")
    assert sorted(each.process.index for each in found if each.process) == [0, 1]


def test_whoever_builds_has_the_card_to_itself(run: tuple[int, dict[str, Any], Path]) -> None:
    """Nobody else is awake while a network is built and called first, for kernels are timed then and the fastest are kept."""
    found = [each for each in of(records(run[2]), "inference") if each.status == "ok"]
    assert {each.cell.mode for each in found} == {"eager", "small", "sociable"}
    assert {each.settings["beside"] for each in found} == {0}


def test_the_memory_is_the_cards(run: tuple[int, dict[str, Any], Path]) -> None:
    """Every size that fits has the allocator's peak, of a process that held nothing else; a start-up process tells the card's growth."""
    _, document, store = run
    peaks = {(row["mode"], row["batch_size"]): row["peak_memory_bytes"] for row in document["rows"] if row["scope"] == "device"}
    assert peaks["eager", 16] == 16 << 20
    assert peaks["small", 1] == 1 << 20
    assert peaks["small", 8] is None
    found = of(records(store), "memory", mode="eager", batch_size=1, scope="device")
    (startup,) = [each for each in found if "device_memory_bytes" in each.measurements]
    assert startup.measurements["device_memory_bytes"] == 0
    assert startup.measurements["peak_reserved_bytes"] == 1 << 21


def test_what_stays_on_the_device_holds_no_copies_of_the_hosts(run: tuple[int, dict[str, Any], Path]) -> None:
    """One process is timed in both scopes, and its peak grows with the second: that is host to host, in every process."""
    peaks = {(row["batch_size"], row["scope"]): row["peak_memory_bytes"] for row in run[1]["rows"] if row["mode"] == "eager"}
    assert peaks == {(size, scope): (size << 20) + (scope == "transfer") * (1 << 19) for size in (1, 8, 16) for scope in plan.SCOPES}


CLAIMS = (
    CARD
    + """
import os, tempfile, types
from impls.card.runtime import claims
os.environ["CARD_CLAIMS"] = tempfile.mkdtemp()
whole = 150_754_820_096
free = lambda: whole - int(whole * sum(claims().values()))
memory = lambda self, handle, version: types.SimpleNamespace(total=whole, free=free(), reserved=0)
Server.nvmlDeviceGetMemoryInfo = memory
"""
)


@pytest.fixture(scope="module")
def crowd(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], Path]:
    """A run of those that crowd others and those that do not bear it."""
    store = tmp_path_factory.mktemp("crowd")
    arguments = bench("card", store=store, batch_sizes="8", modes="eager,shy,fragile,large")
    code, document = checkout.document(
        *arguments, "--device", "cuda", "--precisions", "fp32", "--scopes", "device", "--baseline", "card/eager", before=CLAIMS
    )
    return code, document, store


def test_what_fails_beside_others_has_the_card_to_itself(crowd: tuple[int, dict[str, Any], Path]) -> None:
    """Whatever it said, or did not live to say: a library that lacks memory may find no engine. It is measured in the same rounds."""
    code, document, store = crowd
    assert code == 0
    assert {row["mode"]: row["status"] for row in document["rows"]} == dict.fromkeys(("eager", "shy", "fragile", "large"), "ok")
    found = of(records(store), "inference")
    assert sorted((each.cell.mode, each.process.index) for each in found if each.process) == [
        (mode, index) for mode in ("eager", "fragile", "large", "shy") for index in (0, 1)
    ]


def test_nothing_is_built_where_others_hold_half_of_the_memory(crowd: tuple[int, dict[str, Any], Path]) -> None:
    """It would be built, but of other kernels; one network holds 60 %, so whoever comes after it waits until it is alone."""
    taken = [each.settings["taken"] for each in of(records(crowd[2]), "inference")]
    assert len(taken) == 8
    assert set(taken) == {0}


def test_copies_are_apart(run: tuple[int, dict[str, Any], Path]) -> None:
    """Seconds of the way in and out, of every size, once."""
    _, document, _ = run
    found = {row["batch_size"]: row["copy_in_s"] for row in document["rows"] if row["mode"] == "eager" and row["scope"] == "device"}
    assert set(found) == {1, 8, 16}
    assert all(0 < seconds < 1 for seconds in found.values())


def test_the_card_is_part_of_the_machine(run: tuple[int, dict[str, Any], Path]) -> None:
    """Its model is in the report, its state in the run, the libraries and every visit's clocks and power in the records."""
    _, document, store = run
    assert document["machine"]["gpu_model"] == "NVIDIA H200"
    assert document["machine"]["gpu"]["power_limit_w"] == 700
    assert document["machine"]["cautions"] == []
    found = of(records(store), "inference", mode="eager", batch_size=8, scope="device")[0]
    assert found.settings["libraries"] == {}
    assert found.data is not None
    assert {each["card"]["power_w"] for each in found.data["noise"]} == {650.5}  # type: ignore[index,attr-defined]
    assert found.env_vars.get("CUDA_VISIBLE_DEVICES") is None
    log = next((store / found.run_id / "logs").glob("time-card-eager-*.log"))
    assert log.is_file()


def test_the_probe_measures_the_card(run: tuple[int, dict[str, Any], Path]) -> None:
    """FLOP rate and bandwidth by networks in the worker."""
    _, _, store = run
    (probe,) = of(records(store), "probe")
    assert probe.status == "ok"
    assert min(probe.measurements.values()) > 0  # type: ignore[type-var]


def test_the_page_is_written(run: tuple[int, dict[str, Any], Path], checkout: Checkout) -> None:
    """Of the same records, with the card in its strip."""
    _, document, store = run
    page = (checkout.root / "reports" / "local" / document["run_id"] / "index.html").read_text(encoding="utf-8")
    assert "NVIDIA H200" in page
    assert len(frame.load(store / document["run_id"], "card/eager")) == len(document["rows"])


def test_rooms() -> None:
    """On a CPU all cells share processes; on a GPU those of one model and batch size, the smallest first."""
    arms = [Cell(name, "eager", "resnet18", "bf16", "cuda", None, None, None, None) for name in ("pytorch", "jax")]
    cells = [
        dataclasses.replace(arm, batch_size=size, scope=scope, scenario=plan.scenario(size), threads=1)
        for arm in arms
        for size in (32, 1)
        for scope in plan.SCOPES
    ]
    found = rooms(groups(cells))
    assert [{cell.batch_size for group in room for cell in group} for room in found] == [{1}, {32}]
    assert [sorted({cell.scope for group in room for cell in group}) for room in found] == [["device", "transfer"]] * 2
    on_cpu = [dataclasses.replace(cell, device="cpu") for cell in cells]
    assert rooms(groups(on_cpu)) == [groups(on_cpu)]


@pytest.mark.parametrize(("device", "warmup_s", "sizes"), [("cpu", 0.25, (1, 8)), ("cuda", 1.0, (1,))])
def test_the_gate_and_reruns_on_a_gpu(monkeypatch: pytest.MonkeyPatch, device: str, warmup_s: float, sizes: tuple[int, ...]) -> None:
    """Clocks rise before anything is timed, and a batch that does not fit costs no certificate."""
    efforts: list[plan.Effort] = []
    rounds = SimpleNamespace(run=lambda *_: None)
    monkeypatch.setattr(pairs, "Round", lambda groups, effort, *_, **__: efforts.append(effort) or rounds)
    cell = Cell("pytorch", "eager", "resnet18", "bf16", device, 1, "device", "single_stream", 2)
    side: Any = SimpleNamespace(context=SimpleNamespace(say=lambda line: None), slowdown=0.0)
    pairs._stage(side, side, [cell], "aa", "screen", 2)
    assert [each.warmup_s for each in efforts] == [warmup_s] * 2
    assert runner.proved_sizes(device, [8, None, 1, 8]) == sizes
    assert plan.standard(device).warmup_s == {"cpu": 0.5, "cuda": 1.0}[device]


def test_the_default_plan_on_a_gpu() -> None:
    """Two lanes, latency and throughput, every mode of a GPU, in less than 25 minutes by its own estimate; ONNX Runtime has no bf16."""
    made = plan.make(plan.Request(device="cuda"), find())
    assert made.estimated_s < 25 * 60
    assert {cell.precision for cell in made.cells} == {"bf16", "tf32"}
    assert {cell.mode for cell in made.cells if cell.implementation == "pytorch"} == set(find()["pytorch"].modes_on("cuda"))
    assert {(skip.implementation, skip.precision) for skip in made.skips} == {("onnx", "bf16"), ("pytorch", "tf32")}
    assert {(cell.batch_size, cell.scope) for cell in made.cells} == {(size, scope) for size in (1, 256) for scope in plan.SCOPES}


@pytest.mark.parametrize(
    ("name", "mode", "builds"),
    [("jax", "jit", 4), ("tensorflow", "xla", 4), ("pytorch", "eager", 4), ("pytorch", "compile", 1.75), ("pytorch", "max_autotune", 1.75)],
)
def test_every_build_on_a_gpu_takes_its_time(name: str, mode: str, builds: float) -> None:
    """Nobody builds beside another, so each of three rounds and the start-up adds its own; a process that finds files takes a quarter."""
    request, manifests = plan.Request(device="cuda", precisions=("bf16",), batch_sizes=(1,)), find()
    modes = {each: dataclasses.replace(found, build_s=found.build_s + 10 * (each == mode)) for each, found in manifests[name].modes.items()}
    device = manifests[name].devices["cuda"]
    own = {each: dataclasses.replace(found, build_s=found.build_s + 10 * (each == mode)) for each, found in device.modes.items()}
    slower = dataclasses.replace(manifests[name], modes=modes, devices={"cuda": dataclasses.replace(device, modes=own)})
    more = plan.make(request, {**manifests, name: slower}).estimated_s - plan.make(request, manifests).estimated_s
    assert more == pytest.approx(10 * builds)


def test_a_short_budget_on_a_gpu_keeps_the_answer() -> None:
    """Latency and a batch that fills the card in the first precision, in three processes, of every implementation as it is likely best."""
    whole = plan.make(plan.Request(device="cuda"), find())
    short = plan.make(plan.Request(device="cuda", budget_s=300), find())
    assert short.estimated_s <= 300
    assert {(cell.precision, cell.batch_size, cell.scope) for cell in short.cells} == {("bf16", 1, "device"), ("bf16", 256, "device")}
    assert {(cell.implementation, cell.mode) for cell in short.cells} == {
        *(("pytorch", "eager"), ("pytorch", "max_autotune"), ("jax", "jit"), ("tensorflow", "xla")),
    }
    assert set(short.cells) < set(whole.cells)
    assert short.effort.processes == 3
    least = plan.make(plan.Request(device="cuda", budget_s=1), find())
    assert "more than the budget" in least.reductions[-1]
    assert (set(least.cells), least.effort) == (set(short.cells), short.effort)


def test_a_short_budget_leaves_no_implementation_without_a_mode() -> None:
    """One of whose modes for a short budget none is planned keeps those that are; the plan names what it leaves out."""
    asked = plan.Request(device="cuda", modes=("compile", "channels_last", "jit", "xla", "graph"), budget_s=1)
    made = plan.make(asked, find())
    assert {(cell.implementation, cell.mode) for cell in made.cells} == {
        *(("pytorch", "compile"), ("pytorch", "channels_last"), ("jax", "jit"), ("tensorflow", "xla")),
    }
    assert "modes tensorflow/graph are left out" in made.reductions
    many = plan.make(dataclasses.replace(asked, processes=10), find())
    assert (many.effort.processes, set(many.cells)) == (3, set(made.cells))
    assert plan.make(dataclasses.replace(asked, processes=2), find()).effort.processes == 2


def test_a_short_budget_trains_three_processes_too() -> None:
    """The same of steps."""
    short = plan.make(plan.Request(device="cuda", training=True, budget_s=300), find())
    assert (short.effort.processes, {cell.precision for cell in short.cells}) == (3, {"bf16"})
    assert short.estimated_s <= 300


def test_no_record_of_the_fake_card_is_published() -> None:
    """What was made up stays in the tests."""
    published = Store(ROOT / "results" / "records").read()[0]
    assert not [each for each in published if each.cell.implementation == "card"]


DOUBLING = (
    CARD
    + """
from suites.harness import plan
plan.LARGEST_BATCH = 16
"""
)


def test_doubling_ends_where_nothing_fits(checkout: Checkout, tmp_path: Path) -> None:
    """Each mode goes up to the first size without memory, which is a row and no failure; larger ones are neither tried nor rows."""
    options = ("--device", "cuda", "--precisions", "fp32", "--scopes", "device", "--baseline", "card/eager", "--modes", "eager,small")
    code, document = checkout.document(*bench("card", store=tmp_path, batch_sizes="2,4,..."), *options, before=DOUBLING)
    assert code == 0
    found = {mode: {row["batch_size"]: row["status"] for row in document["rows"] if row["mode"] == mode} for mode in ("eager", "small")}
    assert found["eager"] == dict.fromkeys((2, 4, 8, 16), "ok")
    assert found["small"] == {**dict.fromkeys((2, 4), "ok"), 8: "out_of_memory"}
    timed = {each.cell: each.status for each in of(records(tmp_path), "inference")}
    untried = dataclasses.replace(next(cell for cell in timed if cell.mode == "small"), batch_size=16)
    planned = plan.Plan((*timed, untried), (), plan.SMOKE, 0.0, (), smoke=False, doubled_from=4)
    store = Store(tmp_path)
    context: Any = SimpleNamespace(store=store, run=store.latest_run())
    assert set(runner._with_room(context, planned)) == {cell for cell, status in timed.items() if status == "ok"}


def test_doubling_is_planned_as_far_as_a_card_may_go() -> None:
    """Up to the bound; the estimate counts no more than a card of 80 GB may hold, and a budget says where doubling ends."""
    request = plan.Request(device="cuda", precisions=("bf16",), batch_sizes=(1, 32), doubling=True, scopes=("device",))
    made = plan.make(request, find())
    assert {cell.batch_size for cell in made.cells} == {1, *(32 << n for n in range(12))}
    assert made.doubled_from == 32
    named = dataclasses.replace(request, doubling=False, batch_sizes=(1, *(32 << n for n in range(10))))
    assert plan.make(named, find()).estimated_s == made.estimated_s
    short = plan.make(dataclasses.replace(request, budget_s=600), find())
    assert short.estimated_s <= 600
    (line,) = [line for line in short.reductions if "doubled" in line]
    assert line == f"batch sizes are doubled to {max(cell.batch_size or 0 for cell in short.cells)} at most"


def test_only_a_gpu_has_an_end_to_double_to() -> None:
    """A CPU's memory ends with a process that the kernel kills."""
    with pytest.raises(plan.UsageError, match=r"^--batch-sizes with \.\.\. is for a GPU"):
        plan.make(plan.Request(batch_sizes=(1,), doubling=True), find())
