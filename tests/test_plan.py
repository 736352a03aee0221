"""The plan: every cell asked for is planned or skipped with a reason, and a budget only ever takes away, and says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impls.implementation import Device, Manifest, Mode, find
from impls.precision import PRECISIONS
from suites.harness import plan
from suites.harness.plan import Request, UsageError

HERE = Path(__file__)


def manifest(name: str, modes: dict[str, tuple[str, ...]], devices: tuple[Device, ...], models: tuple[str, ...] | None = None) -> Manifest:
    built = {mode: Mode(mode, f"{name} {mode}", needs, 1.0) for mode, needs in modes.items()}
    named = {each.name: each for each in devices}
    return Manifest(name, f"impls.{name}", name.title(), "numpy", next(iter(modes)), models, True, True, False, built, named)


CPU = Device("cpu", HERE, ("fp64", "fp32", "bf16"), {"bf16": "an emulation"}, {"tf32": "a format of tensor cores"})
CUDA = dataclasses.replace(CPU, name="cuda", precisions=("fp32",), untimed={}, cannot={})
MANIFESTS = {
    "red": manifest("red", {"eager": (), "compile": ("no-such-compiler",)}, (CPU, CUDA)),
    "blue": manifest("blue", {"graph": ()}, (CPU,)),
    "zoo": manifest("zoo", {"eager": ()}, (CPU,), models=("resnet50",)),
}
MODES = ("eager", "compile", "graph")


def some(values: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...] | None]:
    return st.none() | st.lists(st.sampled_from((*values, "all")), min_size=1, max_size=4).map(tuple)


REQUESTS = st.builds(
    Request,
    models=some(("cifar_resnet20", "resnet50", "cifar_resnet14_b")).filter(lambda names: names is None or "all" not in names),
    implementations=some(tuple(MANIFESTS)),
    modes=some(MODES),
    precisions=some(tuple(PRECISIONS)),
    batch_sizes=st.none() | st.lists(st.integers(1, 64), min_size=1, max_size=3).map(tuple),
    scopes=some(plan.SCOPES),
    device=st.sampled_from(plan.DEVICES),
    processes=st.none() | st.integers(1, 5),
    smoke=st.booleans(),
)


@given(request=REQUESTS)
def test_planned_or_skipped(request: Request) -> None:
    """Each (implementation, mode of its own, model, precision) appears once, as cells or as one skip with a reason."""
    made = plan.make(request, MANIFESTS)
    planned = [(cell.implementation, cell.mode, cell.model, cell.precision) for cell in made.arms()]
    skipped = [(skip.implementation, skip.mode, skip.model, skip.precision) for skip in made.skips]
    defaults = plan.DEFAULTS[request.device]
    asked_modes = plan.choose("mode", request.modes or ("all",), MODES)
    expected = [
        (name, mode, model.name, precision)
        for name in plan.choose("implementation", request.implementations or ("all",), MANIFESTS)
        for mode in asked_modes
        if mode in MANIFESTS[name].modes
        for model in plan.chosen_models(request.models or defaults.models)
        for precision in plan.choose("precision", request.precisions or defaults.precisions, PRECISIONS)
    ]
    own = [key for key in skipped if key[1] in MANIFESTS[key[0]].modes]
    assert sorted(planned + own) == sorted(expected)
    assert len(set(planned + skipped)) == len(planned) + len(skipped)
    assert all(skip.reason for skip in made.skips)
    assert len(set(made.cells)) == len(made.cells)
    sizes = set(request.batch_sizes or defaults.batch_sizes)
    scopes = plan.choose("scope", request.scopes or defaults.scopes, plan.SCOPES)
    assert len(made.cells) == len(sizes) * len(scopes) * len(planned)
    assert all(cell.scenario == ("single_stream" if cell.batch_size == 1 else "offline") for cell in made.cells)


@given(request=REQUESTS, budgets=st.tuples(st.floats(1, 3000), st.floats(1, 3000)))
def test_a_budget_only_takes_away_and_says_so(request: Request, budgets: tuple[float, float]) -> None:
    """The smaller the budget the less is measured; a plan fits, or says that the least does not, and every cut is stated."""
    whole = plan.make(request, MANIFESTS)
    assert whole.reductions == ()
    plans = [plan.make(dataclasses.replace(request, budget_s=budget), MANIFESTS) for budget in sorted(budgets)]
    for small, large, budget in zip(plans, (plans[1], whole), sorted(budgets), strict=True):
        assert set(small.cells) <= set(large.cells)
        assert small.effort.blocks <= large.effort.blocks
        assert small.effort.processes <= large.effort.processes
        assert small.estimated_s <= large.estimated_s
        assert small.skips == whole.skips
        fits = small.estimated_s <= budget
        assert fits != any("more than the budget" in line for line in small.reductions)
        stated = "; ".join(small.reductions)
        if small.effort.blocks < whole.effort.blocks:
            assert f"{small.effort.blocks} visit(s)" in stated
        if small.effort.processes < whole.effort.processes:
            assert f"{small.effort.processes} process(es)" in stated
            assert ("no interval" in stated) == (small.effort.processes == 1)
        gone = {cell.batch_size for cell in whole.cells} - {cell.batch_size for cell in small.cells}
        for size in gone:
            assert f"batch size {size} is left out" in stated
        if (small.effort, small.cells) == (whole.effort, whole.cells) and fits:
            assert small.reductions == ()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(models=("resnet5",)), r"there is no model 'resnet5'; the nearest is 'resnet50'"),
        (Request(implementations=("rad",)), r"there is no implementation 'rad'; did you mean 'red'\? \(known: red, blue, zoo\)"),
        (Request(modes=("compille",)), r"there is no mode 'compille'; did you mean 'compile'\?"),
        (Request(precisions=("fp23",)), r"there is no precision 'fp23'; did you mean 'fp32'\?"),
        (Request(scopes=("tranfser",)), r"there is no scope 'tranfser'; did you mean 'transfer'\?"),
        (Request(device="gpu"), r"there is no device 'gpu'; did you mean 'cpu'\? \(known: cpu, cuda\)"),
        (Request(threads=0), r"--threads 0: this process may use 1 to "),
        (Request(threads=10_000), r"--threads 10000: this process may use 1 to "),
        (Request(processes=0), r"--processes: at least 1"),
        (Request(batch_sizes=(8, 0)), r"--batch-sizes 0: a batch holds at least one image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_known_is_refused(request_: Request, message: str) -> None:
    """One sentence that quotes the word and gives the nearest right one."""
    with pytest.raises(UsageError, match=f"^{message}"):
        plan.make(request_, MANIFESTS)


@pytest.mark.parametrize(
    ("request_", "skips"),
    [
        (Request(), {("red", "compile"): False}),
        (Request(implementations=("red",), modes=("compile",)), {("red", "compile"): True}),
        (Request(implementations=("red",)), {("red", "compile"): False}),
        (Request(modes=("compile",)), {("red", "compile"): False}),
        (Request(implementations=("blue",), modes=("eager",)), {("blue", "eager"): True}),
        (Request(modes=("graph",)), {}),
        (Request(precisions=("tf32",), modes=("graph",)), {("blue", "graph"): False}),
        (Request(precisions=("tf32",), implementations=("blue",)), {("blue", "graph"): True}),
        (Request(precisions=("all",), implementations=("blue",)), {("blue", "graph"): False}),
        (Request(models=("resnet50", "cifar_resnet20"), implementations=("zoo",)), {("zoo", "eager"): True}),
        (Request(implementations=("zoo",)), {("zoo", "eager"): False}),
    ],
)
def test_asked_for_by_name(request_: Request, skips: dict[tuple[str, str], bool]) -> None:
    """A skip counts as asked for only where the implementation and what is in the way were both named."""
    zoo = "zoo" in (request_.implementations or ())
    made = plan.make(request_, {name: each for name, each in MANIFESTS.items() if zoo or name != "zoo"})
    assert {(skip.implementation, skip.mode): skip.by_name for skip in made.skips} == skips


def test_reasons() -> None:
    """Each kind of obstacle has its own sentence."""
    request = Request(models=("resnet50",), implementations=("red", "blue"), precisions=("bf16", "tf32", "fp16", "fp32"))
    reasons = {(skip.mode, skip.precision): skip.reason for skip in plan.make(request, MANIFESTS).skips}
    assert reasons["graph", "bf16"] == "an emulation"
    assert reasons["graph", "tf32"] == "a format of tensor cores"
    assert reasons["graph", "fp16"] == "Blue does not offer fp16 on cpu"
    assert reasons["compile", "fp32"] == "red compile needs no-such-compiler on the PATH"
    on_gpu = plan.make(dataclasses.replace(request, device="cuda", precisions=None), MANIFESTS)
    assert {skip.reason for skip in on_gpu.skips if skip.implementation == "blue"} == {"Blue does not offer cuda"}


def test_untimed_precisions_are_certified() -> None:
    """What is there for the proof only is an arm of ``certify`` and none of ``bench``."""
    request = Request(models=("resnet50",), implementations=("blue",), precisions=("bf16",))
    assert [cell.precision for cell in plan.arms(request, MANIFESTS, timed=False)[0]] == ["bf16"]
    assert plan.arms(request, MANIFESTS, timed=True)[0] == ()


def test_smoke_runs_each_path_once() -> None:
    """One process, one visit, no warm-up; a number of processes that was asked for wins."""
    assert plan.make(Request(smoke=True), MANIFESTS).effort == plan.SMOKE
    assert plan.make(Request(smoke=True, processes=2), MANIFESTS).effort.processes == 2


def test_the_default_plan_of_this_checkout() -> None:
    """By default: ResNet-50 and CIFAR ResNet-20 in fp32 at batch 1 and 8, host to host, every implementation."""
    made = plan.make(Request(), find())
    assert {cell.model for cell in made.cells} == {"resnet50", "cifar_resnet20"}
    assert {(cell.precision, cell.scope, cell.batch_size) for cell in made.cells} == {("fp32", "transfer", 1), ("fp32", "transfer", 8)}
    assert {cell.implementation for cell in made.cells} == set(find())
    assert made.reductions == ()


def test_the_second_clock_times_the_smallest_batch_of_the_default_mode() -> None:
    """One cell of each implementation, model and precision; the estimate counts it; none unless it is asked for."""
    request = Request(models=("resnet50", "cifar_resnet20"), implementations=("red", "blue"), batch_sizes=(8, 1))
    assert plan.make(request, MANIFESTS).clocked == ()
    asked = plan.make(dataclasses.replace(request, second_clock=True), MANIFESTS)
    assert {(cell.implementation, cell.mode, cell.model, cell.batch_size) for cell in asked.clocked} == {
        (name, mode, model, 1) for name, mode in (("red", "eager"), ("blue", "graph")) for model in ("resnet50", "cifar_resnet20")
    }
    assert asked.estimated_s > plan.make(request, MANIFESTS).estimated_s


def test_energy_is_planned_where_there_is_a_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs three processes a cell; without a counter it costs nothing and the reason is the plan's."""
    request = Request(models=("resnet50",))
    without = plan.make(request, MANIFESTS)
    assert (without.effort.energy, without.energy_absent) == (None, None)
    asked = dataclasses.replace(request, energy=True)
    monkeypatch.setattr(plan.energy, "missing", lambda device: f"no counter of {device}")
    assert plan.make(asked, MANIFESTS) == dataclasses.replace(without, energy_absent="no counter of cpu")
    monkeypatch.setattr(plan.energy, "missing", lambda device: None)
    made = plan.make(asked, MANIFESTS)
    assert made.effort.energy == plan.STANDARD_ENERGY
    assert made.estimated_s - without.estimated_s > 3 * 20 * len(made.cells)
    assert plan.make(dataclasses.replace(asked, smoke=True), MANIFESTS).effort.energy == plan.SMOKE_ENERGY


def test_a_budget_leaves_energy_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be had with less; the rest of the plan is what it would be without."""
    monkeypatch.setattr(plan.energy, "missing", lambda device: None)
    request = Request(models=("cifar_resnet20",), budget_s=400)
    made = plan.make(dataclasses.replace(request, energy=True), MANIFESTS)
    assert made.reductions == ("energy is left out",)
    assert made.energy_absent == "left out to keep within the budget"
    assert made.cells == plan.make(request, MANIFESTS).cells


def test_cold_starts_are_beside_the_answer() -> None:
    """Of modes that keep files, where asked for; the estimate has them, a budget leaves them out first."""
    on_cpu, on_gpu = plan.make(Request(cold=True), find()), Request(device="cuda")
    assert plan.make(Request(), find()).cold == ()
    assert {(arm.implementation, arm.mode) for arm in on_cpu.cold} == {("pytorch", "compile")}
    assert on_cpu.estimated_s > plan.estimate_s(dataclasses.replace(on_cpu, cold=()), find())
    assert plan.make(on_gpu, find()).cold == ()
    asked = plan.make(dataclasses.replace(on_gpu, cold=True), find())
    assert {arm.implementation for arm in asked.cold} == {"pytorch", "tensorflow"}
    less = plan.make(Request(cold=True, budget_s=on_cpu.estimated_s - 1), find())
    assert (less.reductions, less.cold, less.cells) == (("start-up with empty caches is left out",), (), on_cpu.cells)
