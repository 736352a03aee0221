"""Other projects' rules, held to what their sources say."""

from __future__ import annotations

import numpy as np
import pytest

from suites.equivalence.rules import LOSS_RULES, RULES, Outputs, Rule, allclose, cosine_of, either, loss_within, means_within, same_classes

LABELS = np.array([0, 1, 2, 3])
LOGITS = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)


def outputs(logits: np.ndarray) -> Outputs:
    return Outputs(logits, LABELS)


BASE = outputs(LOGITS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_every_rule_passes_what_is_equal_and_no_nan(rule: Rule) -> None:
    """Equal logits pass every rule; one that is not a number passes none."""
    assert rule.passes(BASE, BASE)
    spoiled = LOGITS.copy()
    spoiled[1, 1] = np.nan
    assert not rule.passes(BASE, outputs(spoiled))
    assert rule.source
    assert rule.purpose


def test_rules_are_distinct() -> None:
    """Ids are unique, and those on losses are among them."""
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert set(LOSS_RULES) < {rule.id for rule in RULES}


def test_loss_is_cross_entropy() -> None:
    """Of uniform logits it is the logarithm of the number of classes; a rule on it lets a permutation of the others through."""
    assert outputs(np.zeros((4, 5))).loss == pytest.approx(np.log(5))
    shuffled = LOGITS.copy()
    shuffled[0, [1, 2]] = LOGITS[0, [2, 1]]
    assert loss_within(1e-12)(BASE, outputs(shuffled))
    assert not loss_within(0.05)(BASE, outputs(3 * LOGITS))


def test_allclose_adds_and_either_takes_the_larger() -> None:
    """An error of 1.5 tolerances passes the sum of both and not the larger of them."""
    ones = outputs(np.ones((4, 5)))
    off = outputs(np.ones((4, 5)) + 1.5e-3)
    assert allclose(1e-3, 1e-3)(ones, off)
    assert not either(1e-3, 1e-3)(ones, off)
    small = outputs(np.full((4, 5), 1e-6))
    assert either(1e-5, 1e-5)(small, outputs(np.full((4, 5), 9e-6)))


def test_means_do_not_see_a_permutation() -> None:
    """Tensor means are blind to the order of elements."""
    assert means_within(1e-7)(BASE, outputs(np.ascontiguousarray(LOGITS[:, ::-1])))
    assert not means_within(1e-7)(BASE, outputs(LOGITS + 1))


def test_cosine_does_not_see_a_scale() -> None:
    """A factor of 100 passes; a quarter turn does not."""
    assert cosine_of(0.99, 1e-4)(BASE, outputs(100 * LOGITS))
    assert not cosine_of(0.99, 1e-4)(outputs(np.eye(4, 5)), outputs(np.roll(np.eye(4, 5), 1, axis=1)))


def test_same_classes_sees_only_the_largest() -> None:
    """Any monotone change passes."""
    assert same_classes(BASE, outputs(np.exp(LOGITS)))
    assert not same_classes(BASE, outputs(-LOGITS))
