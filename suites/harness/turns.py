"""Processes that take turns on one machine, so that its drift hits all alike.

A round starts one fresh process for each arm; all stay alive and take turns in blocks. Two entrants take them in the order ABBA or
BAAB, as a coin falls, which cancels a linear drift; more come in a random order, each once a block. A process that is not on turn
is stopped, so its spinning threads leave the cores alone; on a GPU networks are built in turn, too. The unit of inference is the
process: the processes of one round are a pair, and calls within one share its luck.
"""

from __future__ import annotations

import contextlib
import math
import random
import secrets
import statistics as descriptive
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from results import statistics
from results.record import Cell
from results.schema import encode
from results.timing import Audit, Excluded, SecondClock, Timing
from suites.harness import audits, noise, requests
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, START_TIMEOUT_S, Context, Seeds
from suites.harness.noise import Noise
from suites.harness.plan import Effort
from suites.harness.process import WorkerError, WorkerProcess

K = TypeVar("K")

WARMUP_CALLS = 3
"""Fewest calls of a warm-up, after the one that built the network; calls of 0.1 s and more are flat from the second on."""

REWARM_S = 0.1
"""After a turn change calls are dropped for this long: caches and threads are warm again after one long call."""

OFFLINE_WINDOW_S = 0.1
"""Shortest window of an offline sample; it holds at least two calls."""

COPIES = 9
"""Copies of a batch that are timed, after the calls that warmed its buffers."""

CROWDED = 0.5
"""A network is not built beside others that hold more than this of a GPU's memory: some libraries silently choose slower kernels then."""

COLUMNS = ("visit", "start_ns", "duration_ns", "calls", "warmup")


@dataclass(frozen=True, slots=True, eq=False)
class Entrant:
    """A cell that takes part, of the checkout that ``context`` launches; ``side`` tells two entrants of one cell apart.

    ``slowdown`` lengthens its timed calls by this fraction, to see whether the difference is found. ``second_clock`` is the folder
    of LoadGen for its interpreter, where the audited round times it by that clock too.
    """

    cell: Cell
    context: Context
    side: str = ""
    slowdown: float = 0.0
    second_clock: Path | None = None

    @property
    def arm(self) -> tuple[str, str, str, str]:
        """What shares a process."""
        return self.side, self.cell.implementation, self.cell.mode, self.cell.precision


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """What a process gave of one cell.

    ``startup`` holds ``import_s`` of the process and ``load_s`` and ``first_call_s`` of the cell, which other processes may have had at the
    same time; ``memory`` holds the process's peaks so far, with all cells that it took before: ``peak_memory_bytes`` and the allocator's
    own. ``copies`` are the seconds of copies between host and GPU; empty on a CPU, and in rounds that are not audited.
    """

    settings: Mapping[str, Any]
    packages: Mapping[str, str]
    timer: Mapping[str, Any]
    samples: Mapping[str, Sequence[Any]]
    timing: Timing
    startup: Mapping[str, float]
    memory: Mapping[str, int | None]
    copies: Mapping[str, float]


Store = Callable[[Entrant, Seeds, Taken | WorkerError], None]
"""Is told of every entrant of a round once: what was taken, or what went wrong."""


@dataclass(slots=True, eq=False)
class Turn:
    """An entrant in its process: its handle there, the readings so far, and how many calls make a sample."""

    entrant: Entrant
    worker: WorkerProcess
    hello: Mapping[str, Any]
    settings: Mapping[str, Any]
    startup: Mapping[str, float]
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    calls: int = 1
    samples: int = 1
    rewarm_calls: int = 0
    blocks: list[int] = field(default_factory=list)
    noise: list[Noise] = field(default_factory=list)
    compilations: int | None = None
    recompiled: int = 0

    @property
    def handle(self) -> str:
        """What the worker calls the network."""
        return _handle(self.entrant.cell)

    def warm_up(self, calls: int) -> float:
        """Calls before the first block; returns the seconds of one."""
        return self._visit(0, calls, 1, rewarm=0, keep=False)

    def visit(self, block: int) -> None:
        """Its turn in a block."""
        self.blocks.append(block)
        card = self.entrant.context.card
        before = noise.read(self.worker.pid, card=card)
        self._visit(len(self.blocks), self.samples, self.calls, rewarm=self.rewarm_calls, keep=True)
        self.noise.append(noise.between(before, noise.read(self.worker.pid, card=card)))

    def _visit(self, number: int, samples: int, calls: int, *, rewarm: int, keep: bool) -> float:
        cell = self.entrant.cell
        arguments = {"scope": cell.scope, "samples": samples, "calls": calls, "rewarm": rewarm, "keep": keep}
        taken = self.worker.call("visit", CALL_TIMEOUT_S, handle=self.handle, **arguments)
        for name in ("start_ns", "duration_ns", "calls"):
            self.columns[name] += taken[name]
        self.columns["visit"] += [number] * (rewarm + samples)
        self.columns["warmup"] += [True] * rewarm + [not keep] * samples
        if self.blocks:
            assert self.compilations is not None
            self.recompiled += taken["compilations"] - self.compilations
        self.compilations = taken["compilations"]
        return float(sum(taken["duration_ns"][rewarm:])) / 1e9 / (samples * calls)


def order(count: int, generator: random.Random) -> list[int]:
    """Who visits when in one block: ABBA or BAAB for two, a random order for another number."""
    if count == 2:
        first = generator.randrange(2)
        return [first, 1 - first, 1 - first, first]
    numbers = list(range(count))
    generator.shuffle(numbers)
    return numbers


class Round:
    """One fresh process per arm, all groups measured in it; entrants of one group are compared with each other.

    ``audited`` says whether the audits that take calls of their own are made, which is enough in one round of a run. Where the caller
    tries again alone what fails beside others on a GPU, a process ``makes_room``: it ends as soon as it failed, and is not built where
    it is ``CROWDED``.
    """

    def __init__(
        self, groups: Sequence[Sequence[Entrant]], effort: Effort, index: int, store: Store, *, audited: bool, makes_room: bool = False
    ) -> None:
        self.groups = groups
        self.effort = effort
        self.store = store
        self.audited = audited
        self.makes_room = makes_room
        self.on_card = any(entrant.cell.device == "cuda" for group in groups for entrant in group)
        self.order_seed = secrets.randbits(31)
        self.random = random.Random(self.order_seed)
        arms = dict.fromkeys(entrant.arm for group in groups for entrant in group)
        self.seeds = {arm: Seeds(index, self.order_seed) for arm in arms}
        self._probed: dict[tuple[str, str, str, str], Audit] = {}

    def run(self, measured: Callable[[], None], purpose: str) -> None:
        """Start, prepare, measure group by group in random order, end; ``measured`` is called after each group."""
        with contextlib.ExitStack() as stack:
            turns = self._prepare(stack, purpose)
            shuffled = list(self.groups)
            self.random.shuffle(shuffled)
            if self.on_card:  # an allocator's peak cannot be reset, and what stays on the device shall hold no buffers of the host's
                shuffled.sort(key=lambda group: group[0].cell.scope != "device")
            for group in shuffled:
                self._measure([turns[entrant] for entrant in group if entrant in turns])
                measured()

    def _prepare(self, stack: contextlib.ExitStack, purpose: str) -> dict[Entrant, Turn]:
        """Processes with all their networks built; an entrant that cannot be built is told of as failed."""
        by_arm: dict[tuple[str, str, str, str], list[Entrant]] = {}
        for group in self.groups:
            for entrant in group:
                by_arm.setdefault(entrant.arm, []).append(entrant)
        arms = list(by_arm)
        self.random.shuffle(arms)
        _, before_bytes = self._memory_bytes()
        workers: dict[tuple[str, str, str, str], WorkerProcess] = {}
        for arm in arms:
            first = by_arm[arm][0]
            try:
                launched = first.context.launch(
                    first.cell, first.cell.precision, self.seeds[arm], purpose=f"{purpose}{first.side and '-'}{first.side}"
                )
                workers[arm] = stack.enter_context(launched)
            except WorkerError as error:
                self._fail(by_arm[arm], error)
        hellos = self._together({arm: (worker, by_arm[arm]) for arm, worker in workers.items()}, lambda _: ("start", {}), START_TIMEOUT_S)
        if self.audited:
            for arm in [arm for arm in hellos if by_arm[arm][0].context.manifests[arm[1]].models is None]:
                self._probe(arm, workers[arm], by_arm[arm], hellos)
        for worker in workers.values():
            worker.pause()
        turns: dict[Entrant, Turn] = {}
        built: dict[tuple[tuple[str, str, str, str], str], Turn] = {}
        for position in range(max(map(len, by_arm.values()))):
            here = {by_arm[arm][position]: arm for arm in hellos if position < len(by_arm[arm])}
            for entrant in [each for each, arm in here.items() if (arm, _handle(each.cell)) in built]:  # another scope of a network
                other = built[here.pop(entrant), _handle(entrant.cell)]
                turns[entrant] = Turn(entrant, other.worker, other.hello, other.settings, other.startup)
            # Libraries choose a GPU's kernels by timing them, and keep the choice: nobody else may be on the card then.
            for several in [{each: here[each]} for each in here] if self.on_card else [here]:
                if self._is_crowded(before_bytes):
                    crowded = WorkerError("memory", f"the others of its round hold more than {CROWDED:.0%} of the GPU's memory")
                    for entrant, arm in several.items():
                        self._fail([entrant], crowded, workers[arm])
                    continue
                for turn in self._built({each: (workers[arm], hellos[arm]) for each, arm in several.items()}):
                    turns[turn.entrant] = built[here[turn.entrant], turn.handle] = turn
        return turns

    def _built(self, asked: Mapping[Entrant, tuple[WorkerProcess, Mapping[str, Any]]]) -> list[Turn]:
        """The networks of workers that build at the same time, and are stopped before and after; with each what it said at its start."""
        for worker, _ in asked.values():
            worker.resume()
        loaded = self._together({each: (worker, [each]) for each, (worker, _) in asked.items()}, _prepare_request, BUILD_TIMEOUT_S)
        put = self._together({each: (asked[each][0], [each]) for each in loaded}, _put_request, BUILD_TIMEOUT_S)
        for worker, _ in asked.values():
            worker.pause()
        turns = []
        for entrant, reply in put.items():
            worker, hello = asked[entrant]
            settings = {**loaded[entrant]["settings"], **reply["settings"]}
            took = {"import_s": hello["import_s"], "load_s": loaded[entrant]["load_s"], "first_call_s": reply["first_call_s"]}
            turns.append(Turn(entrant, worker, hello, settings, took))
        return turns

    def _probe(
        self, arm: tuple[str, str, str, str], worker: WorkerProcess, entrants: list[Entrant], hellos: dict[Any, dict[str, Any]]
    ) -> None:
        """What precision this process really computes in, before its networks are built."""
        try:
            self._probed[arm] = audits.precision(worker, entrants[0].context, entrants[0].cell)
        except WorkerError as error:
            del hellos[arm]
            self._fail(entrants, error, worker)

    def _together(
        self, asked: Mapping[K, tuple[WorkerProcess, list[Entrant]]], request: Callable[[K], tuple[str, dict[str, Any]]], timeout_s: float
    ) -> dict[K, dict[str, Any]]:
        """The replies of workers that work at the same time; of one that fails the entrants are told of so."""
        sent: list[K] = []
        replies: dict[K, dict[str, Any]] = {}
        for key, (worker, entrants) in asked.items():
            operation, arguments = request(key)
            try:
                worker.send(operation, **arguments)
                sent.append(key)
            except WorkerError as error:
                self._fail(entrants, error, worker)
        for key in sent:
            worker, entrants = asked[key]
            try:
                replies[key] = worker.receive(timeout_s)
            except WorkerError as error:
                self._fail(entrants, error, worker)
        return replies

    def _measure(self, turns: list[Turn]) -> None:
        """One group: warm-up, blocks of visits, audits, and what was taken is told of."""
        for turn in list(turns):
            with self._on_turn(turn, turns):
                self._warm_up(turn)
        _same_sizes(turns)
        for block in self._blocks(turns):
            present = list(turns)
            for number in order(len(present), self.random):
                if (turn := present[number]) in turns:
                    with self._on_turn(turn, turns):
                        turn.visit(block)
        excluded = _excluded(turns)
        for turn in list(turns):
            with self._on_turn(turn, turns):
                self._tell(turn, excluded)

    def _blocks(self, turns: list[Turn]) -> Iterator[int]:
        """Numbers of blocks until enough stand; one that the machine disturbed is taken again, each planned one at most once."""
        for block in range(2 * self.effort.blocks):
            if block - len(_excluded(turns)) < self.effort.blocks:
                yield block

    @contextlib.contextmanager
    def _on_turn(self, turn: Turn, turns: list[Turn]) -> Iterator[None]:
        """Let one process run; if it fails, its entrant is told of so and takes no further turns."""
        turn.worker.resume()
        try:
            yield
        except WorkerError as error:
            turns.remove(turn)
            self._fail([turn.entrant], error, turn.worker)
        finally:
            turn.worker.pause()

    def _warm_up(self, turn: Turn) -> None:
        """A few calls, and more until ``warmup_s`` have passed in calls; from the last ones follow the sizes of samples and visits."""
        calls, left_s = WARMUP_CALLS, self.effort.warmup_s
        while True:
            call_s = turn.warm_up(calls)
            left_s -= calls * call_s
            if left_s <= 0:
                break
            calls = min(1000, max(WARMUP_CALLS, math.ceil(left_s / call_s)))  # the first calls may be slower than all others
        turn.rewarm_calls = min(self.effort.rewarm_calls, math.ceil(REWARM_S / call_s))
        if turn.entrant.cell.scenario != "single_stream":
            turn.calls = max(2, math.ceil(OFFLINE_WINDOW_S / call_s))
        turn.samples = min(1000, max(self.effort.samples, math.ceil(self.effort.visit_s / (call_s * turn.calls))))

    def _tell(self, turn: Turn, excluded: tuple[Excluded, ...]) -> None:
        """Audit what was timed, then hand it over."""
        memory = turn.worker.call("memory", CALL_TIMEOUT_S, reset=False)
        made = tuple(self._audits(turn))
        second = self._second_clock(turn) if self.audited else None
        if second is not None:
            made += (audits.judge_second_clock(second),)
        timing = Timing(tuple(turn.blocks), tuple(map(encode, turn.noise)), excluded, made, second)
        cell = turn.entrant.cell
        copies = _copies(turn) if self.audited and cell.device == "cuda" and cell.scenario != "training" else {}
        taken = Taken(turn.settings, turn.hello["packages"], turn.hello["timer"], turn.columns, timing, turn.startup, memory, copies)
        self.store(turn.entrant, self.seeds[turn.entrant.arm], taken)

    def _audits(self, turn: Turn) -> Iterator[Audit]:
        cell, context, worker = turn.entrant.cell, turn.entrant.context, turn.worker
        assert cell.scope is not None
        trains = cell.scenario == "training"
        yield from audits.declared(cell, turn.settings)
        yield audits.recompilation(turn.recompiled)
        yield audits.trained(worker, turn.handle, context, cell) if trains else audits.outputs(worker, turn.handle, context, cell)
        if self.audited:
            if turn.entrant.arm in self._probed:
                yield self._probed[turn.entrant.arm]
            call_s = statistics.process_time(*(turn.columns[name] for name in ("visit", "duration_ns", "calls", "warmup")))
            yield audits.unfinished_work(worker, turn.handle, context, cell)
            yield audits.linearity(worker, turn.handle, cell.scope, turn.calls, call_s, self.random)
            if not trains:  # each step computes from what the one before it left
                yield audits.caching(worker, turn.handle, cell.scope, call_s)
        yield audits.timer(turn.hello["timer"], turn.columns)  # last: what was left undone is fast, too, and better named

    def _second_clock(self, turn: Turn) -> SecondClock | None:
        cell, package = turn.entrant.cell, turn.entrant.second_clock
        if package is None:
            return None
        logs = turn.entrant.context.scratch_of(f"loadgen-{turn.worker.pid}")
        sizes = {"samples": turn.samples, "calls": turn.calls, "rewarm": turn.rewarm_calls}
        return audits.second_clock(turn.worker, turn.handle, cell, package, logs, sizes, self.random)

    def _memory_bytes(self) -> tuple[int, int] | tuple[None, None]:
        """The GPU's memory and what is taken of it; None where nobody asks."""
        card = self.groups[0][0].context.card if self.makes_room else None
        return (None, None) if card is None else card.memory_bytes()

    def _is_crowded(self, before_bytes: int | None) -> bool:
        """Whether processes of this round hold much of the memory, of which so much was taken before."""
        whole_bytes, used_bytes = self._memory_bytes()
        if before_bytes is None or whole_bytes is None or used_bytes is None:
            return False
        return used_bytes - before_bytes > CROWDED * whole_bytes

    def _fail(self, entrants: Sequence[Entrant], error: WorkerError, worker: WorkerProcess | None = None) -> None:
        if self.makes_room and worker is not None:
            worker.give_up(error)
        for entrant in entrants:
            self.store(entrant, self.seeds[entrant.arm], error)


def _excluded(turns: Sequence[Turn]) -> tuple[Excluded, ...]:
    return noise.dropped_blocks((block, seen) for turn in turns for block, seen in zip(turn.blocks, turn.noise, strict=True))


def _same_sizes(turns: Sequence[Turn]) -> None:
    """Entrants of one cell take samples of the same size: in a longer window more calls overlap."""
    for turn in turns:
        alike = [other for other in turns if other.entrant.cell == turn.entrant.cell]
        turn.calls = max(other.calls for other in alike)
        turn.samples = max(other.samples for other in alike)
        turn.rewarm_calls = max(other.rewarm_calls for other in alike)


def _handle(cell: Cell) -> str:
    """The network of a cell in its process: its scopes share it."""
    return f"{cell.certificate_cell.key}/{cell.batch_size}"


def _copies(turn: Turn) -> dict[str, float]:
    """Seconds of a batch's way to the device and of its logits' way back, medians."""
    taken = turn.worker.call("copies", CALL_TIMEOUT_S, handle=turn.handle, calls=COPIES)
    return {"copy_in_s": descriptive.median(taken["in_ns"]) / 1e9, "copy_out_s": descriptive.median(taken["out_ns"]) / 1e9}


def _prepare_request(entrant: Entrant) -> tuple[str, dict[str, Any]]:
    return requests.prepare(entrant.context, entrant.cell, _handle(entrant.cell))


def _put_request(entrant: Entrant) -> tuple[str, dict[str, Any]]:
    operation, arguments = requests.put(entrant.context, entrant.cell, _handle(entrant.cell))
    return operation, {**arguments, "slowdown": entrant.slowdown}
