"""The matrix as a page of Markdown (docs/faults.md), written by ``levelfield certify --mutants`` and never by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from suites.equivalence import mutation, training_mutation
from suites.equivalence.faults.fault import Citation
from suites.equivalence.mutation import PRECISIONS, SIGNAL, CorrectRun, Row, Score
from suites.equivalence.rules import LOSS_RULES, RULES
from suites.equivalence.training_mutation import TrainingRow

COLUMNS = ("fp64", *PRECISIONS)


def page(rows: Sequence[Row], trained: Sequence[TrainingRow], runs: Sequence[CorrectRun]) -> str:
    """The whole page."""
    score = mutation.score(rows)
    return "\n".join(
        (*_head(score, rows, trained), *_rules(rows, trained, runs), *_open(score, trained), *_matrix(rows), *_training(trained), "")
    )


def _head(score: Score, rows: Sequence[Row], trained: Sequence[TrainingRow]) -> Iterable[str]:
    faults = [row for row in trained if row.fault != mutation.SOUND]
    wrong, clean = ([row for row in trained if row.clean is is_clean] for is_clean in (False, True))
    cited = score.cited + sum(row.citation is not None for row in faults)
    return (
        "# Faults that the certificate was shown",
        "",
        "Written by `levelfield certify --mutants`, never by hand.",
        "",
        "A proof is worth what it would refuse. Here every fault of a catalogue (`suites/equivalence/faults/`) is put into one "
        "implementation and examined by the certificate's own tiers; the oracle answers for the sound network and hears of no fault. "
        f"{score.faults + len(faults)} faults are known, {cited} of them with the public thread in which somebody made them.",
        "",
        "| | inference | training |",
        "|---|---|---|",
        f"| faults | {score.faults} | {len(faults)} |",
        f"| mutants: faults at a site of a network | {score.mutants} | {len(wrong)} |",
        f"| refused by some tier | {score.killed} | {sum(row.seen for row in wrong)} |",
        f"| seen in every precision in which they move the logits, or a step of training, by {SIGNAL:g} deviations of noise or more | "
        f"{score.mutants - len({id(row) for row, _ in score.unseen})} | {sum(not row.unseen for row in wrong)} |",
        f"| located: single-layer faults whose layer every failing tier names first | {score.located} of {score.locatable} | |",
        f"| declared equivalent, with the reason; verified to move nothing | {score.equivalent} | {len(faults) - len(wrong)} |",
        f"| alarms on sound and equivalent networks | {len(score.alarms)} of {score.clean + score.equivalent} | "
        f"{sum(row.seen for row in clean)} of {len(clean)} |",
        "",
    )


def _rules(rows: Sequence[Row], trained: Sequence[TrainingRow], runs: Sequence[CorrectRun]) -> Iterable[str]:
    judged = [row for row in rows if row.passes and not row.clean]
    sound = next(row for row in trained if row.fault == mutation.SOUND)
    wrong = [row for row in trained if not row.clean]
    yield "## The same faults by other rules"
    yield ""
    yield (
        "The rules that others use, re-implemented (`suites/equivalence/rules.py`), judge the mutants' fp32 logits against the same "
        "framework's sound logits, so that no rounding stands between them; and sound fp32 runs of the four frameworks, folded and not, "
        "against PyTorch's. Rules on losses also judge the losses of the last training step. None of them was written to prove "
        "equivalence: a fault let through says what a rule cannot be used for, not that it is wrong where it stands."
    )
    yield ""
    yield "| rule | faults let through | training faults let through | sound runs rejected | written for | source |"
    yield "|---|---|---|---|---|---|"
    for rule in RULES:
        through = sum(row.passes[rule.id] for row in judged)
        rejected = sum(not run.passes[rule.id] for run in runs)
        losses = "-"
        if rule.id in LOSS_RULES:
            share = LOSS_RULES[rule.id]
            losses = f"{sum(abs(row.losses[-1] - sound.losses[-1]) <= share * sound.losses[-1] for row in wrong)} of {len(wrong)}"
        yield (f"| {rule.title} | {through} of {len(judged)} | {losses} | {rejected} of {len(runs)} | {rule.purpose} | {rule.source} |")
    alive = sum(not row.killed for row in judged)
    missed = sum(not row.seen for row in wrong)
    sound_rows = [row for row in rows if row.clean]
    alarms = f"{sum(row.killed for row in sound_rows)} of {len(sound_rows)} sound and equivalent rows below"
    yield f"| this certificate | {alive} of {len(judged)} | {missed} of {len(wrong)} | {alarms} | proof | |"
    yield ""


def _open(score: Score, trained: Sequence[TrainingRow]) -> Iterable[str]:
    yield "## What it did not see"
    yield ""
    found = [
        *(f"- alive: {row.sentence} ({row.net})" for row in score.alive),
        *(
            f"- unseen in {precision}: {row.sentence} ({row.net}), at {row.signals[precision]:.3g} deviations"
            for row, precision in score.unseen
        ),
        *(f"- located elsewhere: {row.sentence} ({row.net}): {_taps(row)}" for row in score.mislocated),
        *(f"- alarm: {row.sentence} ({row.net}): {_taps(row)}" for row in score.alarms),
        *(f"- declared equivalent and is not: {row.sentence} ({row.net})" for row in score.not_equivalent),
        *(f"- alive in training: {row.sentence}" for row in trained if not (row.clean or row.seen)),
        *(
            f"- unseen in training in {precision}: {row.sentence}, at {row.noticed[precision]:.3g} deviations"
            for row in trained
            for precision in row.unseen
        ),
        *(f"- alarm in training: {row.sentence}" for row in trained if row.clean and row.seen),
    ]
    yield from found or ("Nothing: every mutant was refused, seen where it can show, and located; no sound network was.",)
    yield ""


def _taps(row: Row) -> str:
    return ", ".join(f"{precision} {tier} names {tap}" for precision, tier, tap in mutation.named(row) if tap != row.tap)


def _matrix(rows: Sequence[Row]) -> Iterable[str]:
    yield "## Inference"
    yield ""
    yield (
        "Each cell names the tiers that fail in a run of this precision (docs/certificate.md; R5 is the epsilon probe: running variances "
        "below epsilon), with the signal before them: how far the logits move, in deviations of predicted noise. For faults of "
        "arithmetic it is how far the simulated logits are off. Empty: no tier fails. A dot: not run. PyTorch runs the faulty networks; "
        "TF32, faults of arithmetic and layers that the spec does not have (padding by reflection, GELU) run in NumPy, which rounds where "
        "the precision says."
    )
    for net in dict.fromkeys(row.net for row in rows):
        yield from ("", f"### {net}", "", f"| fault | thread | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|")
        for row in rows:
            if row.net == net:
                note = f" *Equivalent: {row.equivalent}.*" if row.equivalent else ""
                yield f"| {row.sentence}{note} | {_thread(row.citation)} | {' | '.join(_cell(row, column) for column in COLUMNS)} |"
    yield ""


def _cell(row: Row, precision: str) -> str:
    if precision not in row.verdicts:
        return "."
    signal = "" if precision not in row.signals else f"{row.signals[precision]:.2g}: "
    return (signal + " ".join(row.killed_in(precision))).strip().removesuffix(":")


def _thread(citation: Citation | None) -> str:
    return "" if citation is None else f"[{citation.thread}]({citation.url})"


def _training(trained: Sequence[TrainingRow]) -> Iterable[str]:
    tiers, rounded = training_mutation.TIERS, training_mutation.ROUNDED
    yield "## Training"
    yield ""
    yield (
        f"{training_mutation.MODEL}. What a framework can be told is trained by PyTorch; the rest in NumPy, by the oracle's steps with one "
        "convention exchanged. fp32 and bf16 (mixed precision) name the certificate's tiers that fail there, and of E3 the probes apart: "
        "residual branches that end in gamma 0 (zero gamma), batch variances below epsilon (epsilon), and, in fp32, a mean of 10,000 "
        "deviations (magnitude). The signal before them is how far a step of E5 moves, in deviations of predicted noise. "
        f"The other columns are float64, {len(training_mutation.RATES)} steps with a change of learning rate, against the oracle's: how "
        "far a quantity is off, relative to its rms, in bold where it fails."
    )
    columns = ("fault", "thread", "trained by", *rounded, *tiers)
    yield from ("", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")
    for row in trained:
        note = f" *Equivalent: {row.equivalent}.*" if row.equivalent else ""
        note += f" *Below a step's rounding in fp32: {row.hidden}.*" if row.hidden else ""
        narrow = (f"{row.noticed[each]:.2g}: {', '.join(row.refused[each])}".removesuffix(": ") for each in rounded)
        cells = (_figure(row.signals, row.killed, tier) for tier in tiers)
        yield f"| {row.sentence}{note} | {_thread(row.citation)} | {row.run_by} | {' | '.join((*narrow, *cells))} |"


def _figure(signals: Mapping[str, float], killed: Mapping[str, bool], tier: str) -> str:
    figure = f"{signals[tier]:.1g}"
    return f"**{figure}**" if killed[tier] else figure
