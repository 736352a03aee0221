"""The catalogue: every fault does what it says, where it says, to the function that the oracle computes; equivalent ones do nothing."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest

from impls import models
from impls.oracle import forward
from impls.spec import layers
from impls.weights import synthesis
from suites.equivalence.faults.arithmetic import ARITHMETIC
from suites.equivalence.faults.fault import HELPER, Case, Fault, Site, without_helpers
from suites.equivalence.faults.inference import INFERENCE
from suites.equivalence.faults.training import TRAINING
from suites.equivalence.tiers import meaning
from suites.harness import inputs

NETS = {"cifar_resnet8": 32, "resnet18": 64, "resnet50_v1": 64, "resnet50": 64, "googlenet": 64}
"""The cheapest net that has the fault is taken; two equal blocks in a row need resnet18."""


@functools.cache
def case_of(name: str) -> Case:
    model = models.get(name)
    return Case(model, synthesis.synthesize(model, 0), inputs.photographs(NETS[name], NETS[name]).pool[:2])


@functools.cache
def taps_of(name: str) -> dict[str, np.ndarray]:
    case = case_of(name)
    return forward.taps(case.model, case.weights, case.images)


def home(fault: Fault) -> str:
    return next(name for name in NETS if fault.sites(models.get(name)))


def faulty(fault: Fault, case: Case, site: Site) -> dict[str, np.ndarray]:
    mutant = fault.of(case, site)
    with np.errstate(all="ignore"):
        found = without_helpers(forward.taps(mutant.model, mutant.weights, mutant.images))
        last = list(found)[-1]
        return found if fault.output is None else {**found, last: fault.output(found[last])}


def test_the_catalogue_is_as_large_as_it_says() -> None:
    """Ids are unique over all three kinds, and each thread is owner/repository#number with a title."""
    every = (*INFERENCE, *ARITHMETIC, *TRAINING)
    assert len({fault.id for fault in every}) == len(every) >= 70
    cited = [fault.citation for fault in every if fault.citation is not None]
    assert len({citation.thread for citation in cited}) >= 30
    for citation in cited:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", citation.thread)
        assert citation.title
        assert citation.url == "https://github.com/" + citation.thread.replace("#", "/issues/")


@pytest.mark.parametrize("fault", INFERENCE, ids=lambda fault: fault.id)
def test_a_fault_changes_the_function_where_it_says(fault: Fault) -> None:
    """The first tap that differs is the site's, at its first and last single site; what is given stays as it was."""
    name = home(fault)
    case = case_of(name)
    before = {tensor: array.copy() for tensor, array in case.weights.items()}
    sites = fault.sites(case.model)
    known = {layer.name for layer in layers(case.model.body)}
    for site in {sites[0], sites[-1]}:
        assert set(site.layers) <= known
        assert "{" not in fault.say(site)
        tier = meaning(taps_of(name), faulty(fault, case, site))
        if fault.equivalent is not None:
            assert tier.worst_error == 0.0
            continue
        assert not tier.passed
        assert tier.reason is not None
        first = tier.reason.partition(":")[0]
        assert first == site.tap if site.single else first in site.layers
    assert all(np.array_equal(before[tensor], array) for tensor, array in case.weights.items())


def test_sites_are_all_at_once_or_one_by_one() -> None:
    """Every strided convolution, then each; a fault of what a net does not have has no site."""
    fault = next(fault for fault in INFERENCE if fault.id == "conv-same")
    whole, *single = fault.sites(models.get("cifar_resnet20"))
    assert whole.layers == ("layer2.0.conv1", "layer3.0.conv1")
    assert not whole.single
    assert [site.layers for site in single] == [("layer2.0.conv1",), ("layer3.0.conv1",)]
    assert fault.say(whole) == "every strided 3x3 convolution pads (0, 1) instead of (1, 1): SAME padding"
    assert fault.say(single[0]) == "layer2.0.conv1 pads (0, 1) instead of (1, 1): SAME padding"
    assert fault.sites(models.get("cifar_plain8"))
    pool = next(fault for fault in INFERENCE if fault.id == "pool-same")
    assert pool.sites(models.get("cifar_resnet8")) == ()


def test_helpers_show_no_tap() -> None:
    """A fault said with helper layers shows the taps of the sound network, in their order."""
    fault = next(fault for fault in INFERENCE if fault.id == "second-reads-input")
    case = case_of("resnet18")
    mutant = fault.of(case, fault.sites(case.model)[0])
    assert any(layer.name.startswith(HELPER) for layer in layers(mutant.model.body))
    assert set(without_helpers(forward.taps(mutant.model, mutant.weights, mutant.images))) == set(taps_of("resnet18"))
