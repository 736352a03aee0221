"""The mutation score: a sample of it, arithmetic by simulation, training in NumPy, and what the score makes of bad rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from click.testing import CliRunner

from impls import models
from impls.oracle import forward, training
from impls.oracle.rounding import round_to
from levelfield.cli import main
from suites.equivalence import mutation, simulation, training_mutation
from suites.equivalence.faults import page
from suites.equivalence.faults.arithmetic import ARITHMETIC
from suites.equivalence.faults.families import CATALOGUE
from suites.equivalence.faults.fault import Citation
from suites.equivalence.faults.training import TRAINING
from suites.equivalence.mutation import SOUND, CorrectRun, Net, Row, Verdict
from suites.equivalence.practice import PracticeTrainer
from suites.equivalence.rules import RULES
from tests.frameworks import THREADS, interpreter

SAMPLE = Net(
    "cifar_resnet8",
    32,
    2,
    ("conv-same", "eps-1.001e-5", "mean-for-beta", "weight-1-ulp", "relu-twice", "softmax"),
    False,
)


def test_a_sample_of_the_matrix() -> None:
    """Faults of every kind: refused, seen in every precision in which they show, located; nothing sound is."""
    rows = mutation.run(interpreter("pytorch"), THREADS, lambda line: None, (SAMPLE,), ("fp64", "fp32", "bf16"))
    score = mutation.score(rows)
    assert (score.alive, score.unseen, score.mislocated, score.alarms, score.not_equivalent) == ((), (), (), (), ())
    assert (score.faults, score.clean, score.equivalent, score.killed) == (6, 1, 1, score.mutants)
    by_id = {row.fault: row for row in rows if row.single}
    assert by_id["eps-1.001e-5"].killed_in("fp32") == ("R5",)  # no other tier of fp32 can
    assert by_id["weight-1-ulp"].killed_in("fp32") == ("E0", "E1")
    assert by_id["weight-1-ulp"].killed_in("bf16") == ()  # bf16 does not hold the difference
    assert "E2" in by_id["weight-1-ulp"].killed_in("fp64")
    sound = rows[0]
    assert sound.fault == SOUND
    assert set(sound.verdicts) == {"fp64", "fp32", "bf16"}
    assert all(sound.passes.values())
    assert by_id["eps-1.001e-5"].passes["allclose-1e-3"]


ROUNDED = ("fp32-as-tf32", "tf32-as-fp32", "bf16-as-fp32", "bf16-rounded-twice", "fp16-truncated", "bf16-mean-sum")


def test_arithmetic_by_simulation() -> None:
    """Sound simulated runs pass, and faults of arithmetic are refused and located by E3."""
    about = mutation.prepare(Net("cifar_resnet8", 32, 2, None, True), THREADS)
    score = mutation.score(mutation.arithmetic(about, THREADS, [fault for fault in ARITHMETIC if fault.id in ROUNDED]))
    assert (score.alive, score.mislocated, score.alarms) == ((), (), ())
    assert score.clean == len(mutation.PRECISIONS)


def test_simulation_is_the_oracle_up_to_rounding() -> None:
    """In fp32 its logits are the oracle's to 1e-5; an exchange of steps changes only what lies behind it."""
    about = mutation.prepare(SAMPLE, THREADS)
    case = about.case
    sound = simulation.taps(case.model, case.weights, case.images[:2], "fp32")
    exact = forward.taps(case.model, case.weights, case.images[:2])
    assert list(sound) == list(exact)
    assert np.max(np.abs(sound["fc"] - exact["fc"])) < 1e-5 * np.abs(exact["fc"]).max()
    other = simulation.taps(
        case.model, case.weights, case.images[:2], "fp32", {"layer2.0.conv1": simulation.Steps("tf32", "fp32", ("fp32",))}
    )
    differing = [name for name in sound if not np.array_equal(sound[name], other[name])]
    assert differing[0] == "layer2.0.conv1"


def test_the_epsilon_probe_is_the_same_function() -> None:
    """Every running variance is below epsilon, and the logits are the same to the rounding of gamma."""
    case = mutation.prepare(SAMPLE, THREADS).case
    probe = mutation.epsilon_probe(case)
    assert all(tensor.max() < 1e-5 for name, tensor in probe.weights.items() if name.endswith("running_var"))
    ours, theirs = (forward.forward(each.model, each.weights, each.images[:2]) for each in (case, probe))
    assert np.max(np.abs(ours - theirs)) < 1e-5 * np.abs(ours).max()


def row(**fields: object) -> Row:
    given = {"net": "n", "fault": "f", "sentence": "s", "kind": "network", "tap": "a", "single": True, **fields}
    return Row(**given)  # type: ignore[arg-type]


KILL = Verdict(True, "a", "a: differs")


def test_the_score_keeps_nothing_back() -> None:
    """A mutant that no tier refuses, one unseen where it shows, one located elsewhere, a false alarm and a false equivalence are listed."""
    alive = row(verdicts={"fp32": {"E1": Verdict(False)}})
    unseen = row(signals={"bf16": 5.0}, verdicts={"fp64": {"E2": KILL}, "bf16": {"E3": Verdict(False)}})
    quiet = row(signals={"bf16": 4.9}, verdicts={"fp64": {"E2": KILL}, "bf16": {"E3": Verdict(False)}})
    elsewhere = row(verdicts={"fp32": {"E3": Verdict(True, "b", "b: differs"), "E1": KILL}})
    alarm = row(fault=SOUND, kind="clean", verdicts={"fp32": {"E4": Verdict(True, "logits", "logits: off")}})
    equal = row(equivalent="because", signals={"fp32": 1e-9}, verdicts={"fp32": {"E3": Verdict(False)}})
    score = mutation.score([alive, unseen, quiet, elsewhere, alarm, equal])
    assert score.alive == (alive,)
    assert score.unseen == ((unseen, "bf16"),)
    assert score.mislocated == (elsewhere,)
    assert score.alarms == (alarm,)
    assert score.not_equivalent == (equal,)
    assert (score.mutants, score.killed, score.located, score.locatable) == (4, 3, 2, 3)


def test_practice_without_a_fault_is_the_oracles_training() -> None:
    """A step is the oracle's bit for bit, with Nesterov's momentum and decay."""
    about = training_mutation.course()
    batch = about.batches[0]
    expected, found = training.step(about.practice.model, about.state, batch.images, batch.labels, about.practice.sgd, 0.1)
    trainer = PracticeTrainer(about.practice, about.state)
    assert trainer.steps([batch], [0.1]) == [found.loss]
    assert_equal(trainer.state(), expected)


@pytest.mark.parametrize("precision", training_mutation.ROUNDED)
def test_practice_holds_what_its_precision_holds(precision: str) -> None:
    """Activations and cotangents are numbers of the precision, whatever else a step shows or keeps a float32; float64 makes others."""
    about = training_mutation.course()
    wide, narrow = (PracticeTrainer(about.practice, about.state, each) for each in ("fp64", precision))
    found = narrow.differentiate(about.batches[0])
    losses = narrow.steps(about.batches[:1], [0.1])
    wide.steps(about.batches[:1], [0.1])
    state = narrow.state()
    kept = {**found.gradients, **state.weights, **state.momentum, "loss": np.array(losses)}
    assert all(np.array_equal(array, array.astype(np.float32)) for array in kept.values())
    assert all(np.array_equal(array, round_to(array, precision)) for array in (*found.taps.values(), *found.cotangents.values()))
    assert (precision == "bf16") is all(np.array_equal(array, round_to(array, "bf16")) for array in found.taps.values())
    with pytest.raises(AssertionError):
        assert_equal(state, wide.state())


def assert_equal(found: training.State, expected: training.State) -> None:
    for given, right in ((found.weights, expected.weights), (found.momentum, expected.momentum)):
        for name, tensor in right.items():
            assert np.array_equal(tensor, given[name]), name


SEEN = {
    SOUND: (set(), (), ()),
    "running-variance-biased": ({"statistics"}, ("E5",), ("E5",)),
    "statistics-twice": ({"statistics"}, ("E5",), ("E5",)),
    "train-eps-1.001e-5": ({"loss", "gradients", "statistics", "step", "zero gamma"}, ("epsilon",), ("epsilon",)),
    "variance-fast": ({"loss", "gradients", "statistics", "step", "zero gamma"}, ("magnitude",), ()),
    "relu-half-at-zero": ({"zero gamma"}, ("zero gamma",), ("E3", "zero gamma", "epsilon")),
    "rate-in-velocity": ({"rate change", "trajectory"}, ("E5",), ("E5",)),
    "rate-late": ({"rate change", "trajectory"}, ("E5",), ("E5",)),
    "decay-decoupled": ({"step", "rate change", "trajectory"}, ("E5",), ("E5",)),
    "statistics-constant": (
        {"gradients", "step", "rate change", "trajectory", "zero gamma"},
        ("E3", "E5", "zero gamma", "epsilon"),
        ("E3", "E5", "zero gamma", "epsilon"),
    ),
    "log-softmax-twice": (set(), (), ()),
}
"""Faults of training, and all the tiers that can see each in float64, in fp32 and in bf16."""


def test_a_sample_of_training() -> None:
    """Each fault is refused by the tiers that claim to see it, and by no other; sound training is not."""
    faults = [fault for fault in TRAINING if fault.id in SEEN]
    rows = training_mutation.run(interpreter("pytorch"), THREADS, lambda line: None, faults)
    found = {row.fault: ({tier for tier, killed in row.killed.items() if killed}, *row.refused.values()) for row in rows}
    assert found == SEEN
    assert {row.run_by for row in rows} == {"pytorch", "NumPy"}
    assert [row.fault for row in rows if row.unseen or row.seen is row.clean] == []


def test_a_fault_below_the_noise_of_fp32_has_its_reason() -> None:
    """A reason is given for those faults alone whose signal is below ``SIGNAL``."""
    wrong = [fault for fault in TRAINING if fault.equivalent is None]
    small = {fault.id for fault in wrong if training_mutation.signal(fault.change, "fp32") < mutation.SIGNAL}
    assert small == {fault.id for fault in TRAINING if fault.hidden is not None}


def test_a_row_of_training_keeps_nothing_back() -> None:
    """What no tier of a precision refuses is unseen if its signal is large there or, in fp32, no reason is given; nothing clean is."""
    quiet = training_mutation.TrainingRow(
        "f", "s", "NumPy", None, None, "too small", killed={"loss": True}, noticed={"fp32": 4.9, "bf16": 4.9}
    )
    assert (quiet.unseen, quiet.seen) == ((), True)
    assert dataclasses.replace(quiet, hidden=None).unseen == ("fp32",)
    assert dataclasses.replace(quiet, noticed={"fp32": 5.0, "bf16": 5.0}).unseen == ("fp32", "bf16")
    assert dataclasses.replace(quiet, noticed={"fp32": 5.0, "bf16": 5.0}, refused={"fp32": ("E5",)}).unseen == ("bf16",)
    assert dataclasses.replace(quiet, hidden=None, fault=SOUND).unseen == ()
    assert dataclasses.replace(quiet, killed={}, refused={"bf16": ("E3",)}).seen


def test_every_fault_of_training_changes_the_practice() -> None:
    """None is the sound practice, and what a framework can be told is told."""
    about = training_mutation.course()
    practices = {fault.id: fault.change(about.practice) for fault in TRAINING}
    assert all(practice != about.practice for practice in practices.values())
    told = {name for name, practice in practices.items() if training_mutation.is_declarative(practice, about.practice)}
    assert {"rate-late", "nesterov-missing", "momentum-exchanged", "train-conv-same"} <= told
    assert not {"decay-decoupled", "relu-half-at-zero", "loss-sum"} & told


def test_the_page_shows_what_is_open() -> None:
    """Survivors, threads, rules and figures stand on the page."""
    passes = dict.fromkeys((rule.id for rule in RULES), True)
    rows = [
        row(fault=SOUND, kind="clean", tap=None, single=False, verdicts={"fp32": {"E1": Verdict(False)}}, passes=passes),
        row(citation=Citation("a/b#1", "t"), signals={"fp32": 7.0}, verdicts={"fp32": {"E1": Verdict(False)}}, passes=passes),
        row(fault="g", equivalent="it is", signals={"fp32": 0.0}, verdicts={"fp32": {"E1": Verdict(False)}}, passes=passes),
    ]
    tiers = training_mutation.TIERS
    sound = training_mutation.TrainingRow(
        SOUND,
        "the sound trainer",
        "pytorch",
        None,
        None,
        None,
        dict.fromkeys(tiers, 0.0),
        dict.fromkeys(tiers, False),
        (1.0,),
        noticed={"fp32": 0.1, "bf16": 0.1},
        refused={"fp32": (), "bf16": ()},
    )
    large, small = {"fp32": 7.0, "bf16": 0.5}, {"fp32": 0.25, "bf16": 0.03}
    wrong = dataclasses.replace(sound, fault="h", sentence="too much", signals=dict.fromkeys(tiers, 0.5), noticed=large, losses=(1.04,))
    refused = {"fp32": ("E5", "epsilon"), "bf16": ("E3",)}
    seen = dataclasses.replace(wrong, fault="i", sentence="more", hidden="it is small", noticed=small, refused=refused)
    killed = dataclasses.replace(wrong, fault="j", sentence="most", killed=dict.fromkeys(tiers, True), losses=(2.0,))
    alarm = dataclasses.replace(sound, refused={"fp32": ("E3",), "bf16": ()})
    text = page.page(rows, [alarm, wrong, seen, killed], [CorrectRun("n", "jax", True, {**passes, "top-1": False})])
    assert "- alive: s (n)" in text
    assert "- unseen in fp32: s (n), at 7 deviations" in text
    assert "[a/b#1](https://github.com/a/b/issues/1)" in text
    assert "*Equivalent: it is.*" in text
    assert "| loss within 5 % | 1 of 1 | 2 of 3 | 0 of 1 |" in text
    assert "| the same top-1 class for every image | 1 of 1 | - | 1 of 1 |" in text
    assert "**0.5**" in text
    assert "- alive in training: too much" in text
    assert "- unseen in training in fp32: too much, at 7 deviations" in text
    assert "- unseen in training in fp32: most, at 7 deviations" in text
    assert "- alarm in training: the sound trainer" in text
    assert "| more *Below a step's rounding in fp32: it is small.* |  | pytorch | 0.25: E5, epsilon | 0.03: E3 |" in text
    assert "unseen in training in bf16" not in text
    assert "more, at" not in text


@pytest.mark.parametrize("arguments", [["--models", "resnet18"], ["--fresh"], ["--device", "cuda"], ["--threads", "0"]])
def test_mutants_take_no_request(arguments: list[str]) -> None:
    """An option that would do nothing is refused in a sentence."""
    done = CliRunner().invoke(main, ["certify", "--mutants", *arguments])
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert "--threads" in done.output


def test_the_whole_catalogue_has_a_place_in_the_matrix() -> None:
    """Every fault of inference is examined on some network."""
    placed = {
        planned.fault.id for net in mutation.NETS for planned in mutation.mutations(net, models.get(net.model)) if planned.fault is not None
    }
    assert placed == {fault.id for fault in CATALOGUE}
