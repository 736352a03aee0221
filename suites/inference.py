"""Latency and throughput, measured in turns.

In every round each arm (implementation, mode, precision) gets one fresh process. The processes live side by side and take
turns in blocks of random order, so the machine's drift hits all alike; one that is not on turn is stopped, so its spinning
threads leave the cores alone. The unit of inference is the process: round k of one arm is paired with round k of another.
"""

from __future__ import annotations

import contextlib
import math
import random
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from safetensors.numpy import load_file

from results.record import Cell, Record
from suites.equivalence.tiers import Tier, check_ring
from suites.harness import inputs
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, START_TIMEOUT_S, Context, Seeds
from suites.harness.inputs import RING
from suites.harness.plan import Effort
from suites.harness.process import WorkerError, WorkerProcess
from suites.harness.reference import reference

K = TypeVar("K")

Arm = tuple[str, str, str]
"""Implementation, mode and precision: what shares a process."""

WARMUP_CALLS = 3
"""Fewest calls of a warm-up, after the one that built the network; calls of 0.1 s and more are flat from the second on."""

REWARM_S = 0.1
"""After a turn change calls are dropped for this long: caches and threads are warm again after one long call."""

OFFLINE_WINDOW_S = 0.1
"""Shortest window of an offline sample; it holds at least two calls."""


@dataclass(slots=True)
class Turn:
    """One cell in one process: its handle there, the readings so far, and how many calls make a sample."""

    cell: Cell
    worker: WorkerProcess
    handle: str
    hello: Mapping[str, Any]
    settings: Mapping[str, Any]
    columns: dict[str, list[Any]]
    calls: int = 1
    samples: int = 1
    rewarm_calls: int = 0
    visits: int = 0

    def visit(self, samples: int, calls: int, *, warmup: bool) -> float:
        """Take samples; returns the seconds of one call."""
        cell = self.cell
        taken = self.worker.call("visit", CALL_TIMEOUT_S, handle=self.handle, scope=cell.scope, samples=samples, calls=calls)
        for name in ("start_ns", "duration_ns", "calls"):
            self.columns[name] += taken[name]
        self.columns["visit"] += [self.visits] * samples
        self.columns["warmup"] += [warmup] * samples
        return float(sum(taken["duration_ns"])) / 1e9 / (samples * calls)


def groups(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Cells that are compared with each other: equal but for implementation and mode."""
    found: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.model, cell.precision, cell.device, cell.batch_size, cell.scope, cell.scenario), []).append(cell)
    return [tuple(group) for group in found.values()]


def run(context: Context, cells: Sequence[Cell], effort: Effort, certificates: Mapping[Cell, Record], measured: Callable[[], None]) -> None:
    """Measure certified cells until each group has ``effort.processes`` whole rounds; ``measured`` is called after each group.

    Rounds that the store already holds are not measured again. A cell of which a process failed takes no further part: its row
    holds no figure, and one that hangs would hang in every round.
    """
    for precision in dict.fromkeys(cell.precision for cell in cells):
        waiting = groups([cell for cell in cells if cell.precision == precision])
        for number in range(effort.processes):
            done = _Done(context)
            sound = [tuple(cell for cell in group if cell not in done.failed) for group in waiting]
            missing = [group for group in sound if group and done.whole_rounds(group) <= number]
            if missing:
                context.say(f"round {number + 1} of {effort.processes}, {missing[0][0].model}, {precision}: starting processes")
                _Round(context, missing, effort, certificates, done.next_index(missing)).run(measured)


class _Done:
    """What the store holds of this run's timed processes."""

    def __init__(self, context: Context) -> None:
        self._rounds: dict[Cell, set[int]] = {}
        self.failed: set[Cell] = set()
        for record in context.store.read(context.run.run_id)[0]:
            if record.suite == "inference" and record.process is not None:
                self._rounds.setdefault(record.cell, set()).add(record.process.index)
                if record.status != "ok":
                    self.failed.add(record.cell)

    def whole_rounds(self, group: Sequence[Cell]) -> int:
        """Rounds in which every cell of the group was recorded."""
        return len(set.intersection(*(self._rounds.get(cell, set()) for cell in group)))

    def next_index(self, missing: Sequence[Sequence[Cell]]) -> int:
        """A round that none of these cells had."""
        return max((index for group in missing for cell in group for index in self._rounds.get(cell, set())), default=-1) + 1


class _Round:
    """One fresh process per arm, all groups measured in it."""

    def __init__(
        self, context: Context, missing: Sequence[Sequence[Cell]], effort: Effort, certificates: Mapping[Cell, Record], index: int
    ) -> None:
        self.context = context
        self.missing = missing
        self.effort = effort
        self.certificates = certificates
        self.seeds = Seeds(index, secrets.randbits(31))
        self.order = random.Random(self.seeds.order_seed)
        self.all_seeds: dict[Arm, Seeds] = {}

    def run(self, measured: Callable[[], None]) -> None:
        """Start, prepare, measure group by group in random order, end."""
        with contextlib.ExitStack() as stack:
            turns = self._prepare(stack)
            shuffled = list(self.missing)
            self.order.shuffle(shuffled)
            for group in shuffled:
                self._measure([turns[cell] for cell in group if cell in turns])
                measured()

    def _prepare(self, stack: contextlib.ExitStack) -> dict[Cell, Turn]:
        """Processes with all their networks built; a cell that cannot be built is recorded as failed."""
        by_arm: dict[Arm, list[Cell]] = {}
        for group in self.missing:
            for cell in group:
                by_arm.setdefault((cell.implementation, cell.mode, cell.precision), []).append(cell)
        arms = list(by_arm)
        self.order.shuffle(arms)
        workers: dict[Arm, WorkerProcess] = {}
        for arm in arms:
            self.all_seeds[arm] = Seeds(self.seeds.index, self.seeds.order_seed)
            try:
                workers[arm] = stack.enter_context(self.context.launch(by_arm[arm][0], arm[2], self.all_seeds[arm], purpose="time"))
            except WorkerError as error:
                self._fail(by_arm[arm], error)
        hellos = self._together({arm: (worker, by_arm[arm]) for arm, worker in workers.items()}, lambda _: ("start", {}), START_TIMEOUT_S)
        turns: dict[Cell, Turn] = {}
        for position in range(max(map(len, by_arm.values()))):
            here = {by_arm[arm][position]: arm for arm in hellos if position < len(by_arm[arm])}
            loaded = self._together({cell: (workers[arm], [cell]) for cell, arm in here.items()}, self._prepare_request, BUILD_TIMEOUT_S)
            put = self._together({cell: (workers[here[cell]], [cell]) for cell in loaded}, self._put_request, BUILD_TIMEOUT_S)
            for cell, reply in put.items():
                columns: dict[str, list[Any]] = {name: [] for name in ("visit", "start_ns", "duration_ns", "calls", "warmup")}
                settings = {**loaded[cell]["settings"], **reply["settings"]}
                turns[cell] = Turn(cell, workers[here[cell]], cell.key, hellos[here[cell]], settings, columns)
        for worker in workers.values():
            worker.pause()
        return turns

    def _together(
        self, asked: Mapping[K, tuple[WorkerProcess, list[Cell]]], request: Callable[[K], tuple[str, dict[str, Any]]], timeout_s: float
    ) -> dict[K, dict[str, Any]]:
        """The replies of workers that work at the same time; of one that fails the cells are recorded so."""
        sent: list[K] = []
        replies: dict[K, dict[str, Any]] = {}
        for key, (worker, cells) in asked.items():
            operation, arguments = request(key)
            try:
                worker.send(operation, **arguments)
                sent.append(key)
            except WorkerError as error:
                self._fail(cells, error)
        for key in sent:
            worker, cells = asked[key]
            try:
                replies[key] = worker.receive(timeout_s)
            except WorkerError as error:
                self._fail(cells, error)
        return replies

    def _prepare_request(self, cell: Cell) -> tuple[str, dict[str, Any]]:
        about = self.context.subject(cell.model)
        shape = [cell.batch_size, *about.inputs.pool.shape[1:]]
        folds = self.context.manifests[cell.implementation].folds
        return "prepare", {"handle": cell.key, "weights": str(about.path), "mode": cell.mode, "input_shape": shape, "fold": folds}

    def _put_request(self, cell: Cell) -> tuple[str, dict[str, Any]]:
        assert cell.batch_size is not None
        ring = inputs.ring_file(self.context.subject(cell.model).inputs, cell.batch_size, self.context.scratch)
        return "put", {"handle": cell.key, "images": str(ring)}

    def _measure(self, turns: list[Turn]) -> None:
        """One group: warm-up, blocks of visits in random order, outputs, records."""
        for turn in list(turns):
            with self._on_turn(turn, turns):
                self._warm_up(turn)
        for _ in range(self.effort.blocks):
            self.order.shuffle(turns)
            for turn in list(turns):
                with self._on_turn(turn, turns):
                    turn.visits += 1
                    if turn.rewarm_calls:
                        turn.visit(turn.rewarm_calls, 1, warmup=True)
                    turn.visit(turn.samples, turn.calls, warmup=False)
        for turn in list(turns):
            with self._on_turn(turn, turns):
                self._store(turn, self._check(turn))

    @contextlib.contextmanager
    def _on_turn(self, turn: Turn, turns: list[Turn]) -> Iterator[None]:
        """Let one process run; if it fails, the cell is recorded so and takes no further turns."""
        turn.worker.resume()
        try:
            yield
        except WorkerError as error:
            turns.remove(turn)
            self._fail([turn.cell], error)
        finally:
            turn.worker.pause()

    def _warm_up(self, turn: Turn) -> None:
        """A few calls and ``warmup_s``; from its last calls follow the sizes of samples and visits."""
        call_s = turn.visit(WARMUP_CALLS, 1, warmup=True)
        if (left := self.effort.warmup_s - WARMUP_CALLS * call_s) > 0:
            call_s = turn.visit(min(1000, math.ceil(left / call_s)), 1, warmup=True)
        turn.rewarm_calls = min(self.effort.rewarm_calls, math.ceil(REWARM_S / call_s))
        if turn.cell.scenario == "offline":
            turn.calls = max(2, math.ceil(OFFLINE_WINDOW_S / call_s))
        turn.samples = min(1000, max(self.effort.samples, math.ceil(self.effort.visit_s / (call_s * turn.calls))))

    def _check(self, turn: Turn) -> Tier:
        """E4 on the outputs of the very networks that were timed."""
        cell = turn.cell
        assert cell.batch_size is not None
        about = self.context.subject(cell.model)
        out = self.context.scratch / "timed.safetensors"
        covering = -(-len(about.inputs.pool) // cell.batch_size)  # these batches hold every image of the pool
        members = about.inputs.members(cell.batch_size)[:covering]
        turn.worker.call("outputs", CALL_TIMEOUT_S, handle=turn.handle, batches=covering, out=str(out))
        model, weights = about.given(self.context.manifests[cell.implementation])
        predicted = reference(model, weights, about.inputs.pool, cell.precision, self.context.threads)
        return check_ring(load_file(out)["logits"], members, predicted, cell.precision)

    def _fields(self, cell: Cell) -> dict[str, object]:
        about = self.context.subject(cell.model)
        seeds = self.all_seeds[cell.implementation, cell.mode, cell.precision]
        shape = [cell.batch_size, *about.inputs.pool.shape[1:]]
        return {
            "process": seeds.as_record(),
            "certificate_id": self.certificates[cell.certificate_cell].record_id,
            "model": about.as_record(cell.precision, cell.batch_size),
            "inputs": {"sha256": about.inputs.sha256, "source": about.inputs.source, "ring_size": RING, "shape": shape},
        }

    def _fail(self, cells: Sequence[Cell], error: WorkerError) -> None:
        for cell in cells:
            self.context.store.append(self.context.failure("inference", cell, error, **self._fields(cell)))

    def _store(self, turn: Turn, outputs: Tier) -> None:
        self.context.store.append(
            self.context.record(
                "inference",
                turn.cell,
                "ok" if outputs.passed else "not_certified",
                None if outputs.passed else f"the outputs of this timed process: {outputs.reason}",
                **self._fields(turn.cell),
                settings=dict(turn.settings),
                software=turn.hello["packages"],
                timer=turn.hello["timer"],
                samples=turn.columns,
                data={"outputs": {"rho": outputs.worst_error, "elements": outputs.elements}},
            )
        )
