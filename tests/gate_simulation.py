"""The gate's error rates by simulation, beside those of other gates' rules: the tables of docs/gate.md.

    python -m tests.gate_simulation      prints them

The noise models are assumptions: they rank designs and do not predict a machine's error rates, which its own ledger does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from results.gate import TIME, Judgement, Rule, confirm, screen

Floats = npt.NDArray[np.float64]

TRIALS = 2000
SLOWDOWNS = (0.0, 0.02, 0.03, 0.05, 0.08)
BLOCKS, VISITS, CALLS = 5, 4, 15
VISIT_S, START_S = 0.5, 10.0
"""A visit, and what passes between the starts of two processes that run one after the other."""
DRIFT_S = 30.0
"""The time in which a machine forgets how fast it was."""


@dataclass(frozen=True)
class Model:
    """Fractions: what a process keeps for life, what each call adds, how the machine drifts, how far a process's two modes lie apart."""

    name: str
    process: float
    call: float
    drift: float = 0.0
    modes: float = 0.0

    def luck(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        """What each process keeps."""
        return rng.normal(0, self.process, shape) + self.modes * rng.integers(0, 2, shape)

    def wander(self, rng: np.random.Generator, trials: int, steps: int, step_s: float) -> Floats:
        """The machine's speed at moments ``step_s`` apart: an Ornstein-Uhlenbeck process. (trials, steps)."""
        kept = math.exp(-step_s / DRIFT_S)
        found = rng.normal(0, self.drift, (trials, steps))
        for step in range(1, steps):
            found[:, step] = kept * found[:, step - 1] + math.sqrt(1 - kept**2) * found[:, step]
        return found


MODELS = (
    Model("quiet: process 0.3 %, call 1 %", 0.003, 0.01),
    Model("autotuner: process 1.2 %, call 0.5 %", 0.012, 0.005),
    Model("two modes 4 % apart", 0.003, 0.005, modes=0.04),
    Model("shared machine: process 1 %, call 4 %, drift 3 %", 0.01, 0.04, drift=0.03),
)


def pairs(model: Model, rng: np.random.Generator, trials: int, count: int) -> Floats:
    """Log ratios of pairs of equal arms in turns, ABBA or BAAB by a coin: (trials, count)."""
    visits = BLOCKS * VISITS
    times = model.wander(rng, trials, count * visits, VISIT_S).reshape(trials, count, BLOCKS, VISITS)
    times += np.median(rng.normal(0, model.call, (*times.shape, CALLS)), axis=-1)
    coin = np.where(rng.integers(0, 2, (trials, count, BLOCKS)), 1.0, -1.0)
    signs = coin[..., None] * np.array([-1.0, 1.0, 1.0, -1.0])  # head is +1
    halves = VISITS / 2 * BLOCKS
    luck = model.luck(rng, (trials, count)) - model.luck(rng, (trials, count))
    found: Floats = (signs * times).sum((-2, -1)) / halves + luck
    return found


def ours(screened: Floats, confirmed: Floats, slowdown: float, rule: Rule = TIME) -> list[Judgement]:
    """What both stages say of each trial, its head being slower by a fraction."""
    shift = math.log1p(slowdown)
    found = []
    for first, second in zip(screened + shift, confirmed + shift, strict=True):
        stage = screen(first.tolist(), rule)
        found.append(confirm(second.tolist(), rule) if stage.outcome == "candidate" else stage)
    return found


def sequential(model: Model, rng: np.random.Generator, processes: int, values: int, calls: int, together: bool) -> tuple[Floats, Floats]:
    """Times of base and then head, each in fresh processes: (TRIALS, processes, values), a value being the mean of ``calls`` calls.

    ``together``: head follows base at once; otherwise the machine has forgotten base.
    """
    drift = model.wander(rng, TRIALS, 2 * processes, START_S if together else 1e9)
    luck = model.luck(rng, (TRIALS, 2 * processes))
    logs = (drift + luck)[..., None] + rng.normal(0, model.call / math.sqrt(calls), (TRIALS, 2 * processes, values))
    return np.exp(logs[:, :processes]), np.exp(logs[:, processes:])


def asv(base: Floats, head: Floats, factor: float) -> npt.NDArray[np.bool_]:
    """Of asv 0.6.6: asv/commands/compare.py ``_is_result_better``, asv/_stats.py ``is_different`` (p < 0.002), medians."""
    base, head = base.reshape(TRIALS, -1), head.reshape(TRIALS, -1)
    p = stats.mannwhitneyu(base, head, axis=1, method="exact").pvalue
    found: npt.NDArray[np.bool_] = (p < 0.002) & (np.median(base, axis=1) < np.median(head, axis=1) / factor)
    return found


def pyperf(base: Floats, head: Floats) -> npt.NDArray[np.bool_]:
    """Of pyperf 2.10.0: pyperf/_utils.py ``is_significant``, a t test of all values; 1.984 is its ``tdist95conf_level(118)``."""
    base, head = base.reshape(TRIALS, -1), head.reshape(TRIALS, -1)
    pooled = (base.var(1, ddof=1) + head.var(1, ddof=1)) / 2
    found: npt.NDArray[np.bool_] = (head.mean(1) - base.mean(1)) / np.sqrt(2 * pooled / base.shape[1]) >= 1.984
    return found


def criterion(base: Floats, head: Floats) -> npt.NDArray[np.bool_]:
    """Of criterion.rs, src/report.rs ``compare_to_threshold`` at 528cb12: p < 0.05 and the interval of the mean's change above 1 %.

    Its bootstrap is replaced by the normal distribution, which it comes close to with 100 values a side.
    """
    base, head = base.reshape(TRIALS, -1), head.reshape(TRIALS, -1)
    relative = [each.std(1, ddof=1) / each.mean(1) / math.sqrt(each.shape[1]) for each in (base, head)]
    change = head.mean(1) / base.mean(1)
    low = change * (1 - 1.959964 * np.hypot(*relative)) - 1
    found: npt.NDArray[np.bool_] = low > 0.01
    return found


def history(past: Floats, head: Floats) -> npt.NDArray[np.bool_]:
    """One run against ten earlier ones: above their one-sided 95 % prediction bound."""
    past, new = past.mean(2), head.mean(2)[:, 0]
    limit = past.mean(1) + stats.t.ppf(0.95, past.shape[1] - 1) * past.std(1, ddof=1) * math.sqrt(1 + 1 / past.shape[1])
    found: npt.NDArray[np.bool_] = new > limit
    return found


Gate = Callable[[Floats, Floats], npt.NDArray[np.bool_]]
OTHERS: tuple[tuple[str, tuple[int, int, int, bool], Gate], ...] = (
    ("asv continuous, factor 1.1", (2, 5, 1, True), lambda base, head: asv(base, head, 1.1)),
    ("asv, factor 1 (significance alone)", (2, 5, 1, True), lambda base, head: asv(base, head, 1.0)),
    ("pyperf compare_to, 20 processes x 3 values", (20, 3, 5, True), pyperf),
    ("criterion-like, 1 process x 100 values", (1, 100, 1, False), criterion),
    ("one run of 100 calls against ten before", (10, 100, 1, False), history),
)


def percent(hits: int, trials: int) -> str:
    return f"{100 * hits / trials:.3g}"


def own_row(model: Model) -> str:
    """Regressed / inconclusive in per cent, by true slowdown."""
    rng = np.random.default_rng(MODELS.index(model))
    draws = pairs(model, rng, TRIALS, TIME.screen_pairs), pairs(model, rng, TRIALS, TIME.confirm_pairs)
    cells = []
    for slowdown in SLOWDOWNS:
        found = [each.outcome for each in ours(*draws, slowdown)]
        cells.append(f"{percent(found.count('regressed'), TRIALS)} / {percent(found.count('inconclusive'), TRIALS)}")
    return f"| {model.name} | " + " | ".join(cells) + " |"


def own_table() -> list[str]:
    """A row for each model."""
    head = ["| noise | " + " | ".join(f"{each:.0%}" for each in SLOWDOWNS) + " |", "|---" * (len(SLOWDOWNS) + 1) + "|"]
    return [*head, *map(own_row, MODELS)]


def others_table() -> list[str]:
    """Called slower in per cent, at no slowdown and at 5 and 10 %."""
    slowdowns = (0.0, 0.05, 0.1)
    lines = ["| rule | " + " | ".join(model.name.partition(":")[0] for model in MODELS) + " |", "|---" * (len(MODELS) + 1) + "|"]

    def row(name: str, rates: Callable[[Model, np.random.Generator], Sequence[int]]) -> str:
        cells = [rates(model, np.random.default_rng(100 + index)) for index, model in enumerate(MODELS)]
        return f"| {name} | " + " | ".join(" / ".join(percent(hits, TRIALS) for hits in cell) for cell in cells) + " |"

    def other(size: tuple[int, int, int, bool], gate: Gate) -> Callable[[Model, np.random.Generator], Sequence[int]]:
        def rates(model: Model, rng: np.random.Generator) -> Sequence[int]:
            base, head = sequential(model, rng, *size)
            return [int(gate(base, head * (1 + slowdown)).sum()) for slowdown in slowdowns]

        return rates

    def own(model: Model, rng: np.random.Generator) -> Sequence[int]:
        draws = pairs(model, rng, TRIALS, TIME.screen_pairs), pairs(model, rng, TRIALS, TIME.confirm_pairs)
        return [sum(each.outcome == "regressed" for each in ours(*draws, slowdown)) for slowdown in slowdowns]

    return [*lines, *(row(name, other(size, gate)) for name, size, gate in OTHERS), row("this gate, 5 + 8 pairs, tolerance 2 %", own)]


if __name__ == "__main__":
    print("\n".join([*own_table(), "", *others_table()]))
