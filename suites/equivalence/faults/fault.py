"""What a fault is: a way in which an implementation computes another function than the spec, as data.

A fault changes the network, the weights or the images before an implementation sees them, so that a sound implementation (or the
oracle) computes what the faulty one would have computed. What the spec's grammar cannot say directly (an average pool for a
max-pool, a dilated kernel) is said with helper layers, whose names begin with ``HELPER`` and which show no tap. What it cannot say
at all (GELU for ReLU, padding by reflection) is said with a function in a layer's place; only the oracle and the simulation run it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from impls import spec
from impls.oracle.forward import evaluate, tensors_of
from impls.spec import Layer, ModelSpec, layers

Array = npt.NDArray[Any]
Weights = dict[str, npt.NDArray[np.float32]]
Images = npt.NDArray[np.float32]
Group = tuple[str, ...]
Function = Callable[[Layer, tuple[Array, ...], Mapping[str, Array]], Array]
"""What a layer computes, as ``impls.oracle.forward.evaluate``: layer, inputs and tensors to its output, in the inputs' dtype."""

HELPER = "helper."
"""Begins the names of layers that express a fault and that no implementation would show."""

Kind = Literal["network", "function", "weights", "images", "logits"]
"""What is wrong. Only a fault of the weights stands in the tensors that the framework holds, where E0 looks; one of the network is said
in the spec's own layers, one of a function is not."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A public thread in which somebody really made the fault: ``owner/repository#number`` and its title."""

    thread: str
    title: str

    @property
    def url(self) -> str:
        """Its address; GitHub sends the number of a pull request on to it."""
        repository, _, number = self.thread.partition("#")
        return f"https://github.com/{repository}/issues/{number}"


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A network with its weights and the images that it is shown, (N, C, H, W) float32; ``instead`` holds functions by layer name."""

    model: ModelSpec
    weights: Weights
    images: Images
    instead: Mapping[str, Function] = field(default_factory=dict)

    def evaluate(self, layer: Layer, inputs: tuple[Array, ...], tensors: Mapping[str, Array]) -> Array:
        """One layer's output as this case computes it."""
        return self.instead.get(layer.name, evaluate)(layer, inputs, tensors)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a fault sits. ``name`` is its subject in a sentence; ``tap`` the first layer whose output it changes.

    ``source`` is the layer from which a fault takes something that it does not change, if there is one.
    """

    name: str
    layers: Group
    single: bool
    source: str | None = None

    @property
    def tap(self) -> str:
        """The layer to be named by whoever localises it."""
        return self.layers[0]


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to be wrong.

    Attributes:
        id: short and unique.
        sentence: what a diagnosis would say; ``{site}`` stands for the layer or for ``everywhere``, ``{source}`` for the site's.
        everywhere: the subject of the sentence where it affects all its layers.
        find: the layers that it can affect in a network, in groups of those that it changes together, the first to differ first.
        inject: the pure function from a sound case and the layers affected to what the faulty implementation computes.
        kind: where the fault lies.
        reach: whether it occurs in all layers at once, in one alone, or both.
        reads: whether the last layer of each group is its site's source; then it occurs in one alone.
        output: for faults of the logits, what becomes of them.
        citation: where somebody made it; None where no public thread was found.
        equivalent: why it can have no effect on any output, for those that have none.
    """

    id: str
    sentence: str
    everywhere: str
    find: Callable[[ModelSpec], tuple[Group, ...]]
    inject: Callable[[Case, Group], Case]
    kind: Kind = "network"
    reach: Literal["all", "one", "both"] = "both"
    reads: bool = False
    output: Callable[[Array], Array] | None = None
    citation: Citation | None = None
    equivalent: str | None = None

    def sites(self, model: ModelSpec) -> tuple[Site, ...]:
        """Every place at which the fault can sit in this network: all at once first, then one by one; none if it has no layer."""
        groups = self.find(model)
        if self.reads:
            return tuple(Site(group[0], group[:-1], True, group[-1]) for group in groups)
        everywhere = tuple(name for group in groups for name in group)
        single = tuple(Site(group[0], group, True) for group in groups)
        if len(groups) == 1:
            return single
        whole = (Site(self.everywhere, everywhere, False),) if groups else ()
        return {"all": whole, "one": single, "both": whole + single}[self.reach]

    def say(self, site: Site) -> str:
        """The sentence about one site."""
        return self.sentence.format(site=site.name, source=site.source)

    def of(self, case: Case, site: Site) -> Case:
        """What the faulty implementation computes in place of ``case``."""
        return self.inject(case, (*site.layers, site.source) if site.source else site.layers)


def computed(case: Case, images: Array | None = None) -> dict[str, Array]:
    """Every layer's output in float64, by layer name in topological order, for the case's images or others."""
    taps: dict[str, Array] = {}

    def apply(layer: Layer, *inputs: Array) -> Array:
        taps[layer.name] = case.evaluate(layer, inputs, tensors_of(layer, case.weights))
        return taps[layer.name]

    spec.walk(case.model.body, apply, (case.images if images is None else images).astype(np.float64))
    return taps


def shown(model: ModelSpec) -> tuple[str, ...]:
    """The taps that a faulty network shows: those of all layers but the helpers."""
    return tuple(layer.name for layer in layers(model.body) if not layer.name.startswith(HELPER))


def without_helpers(taps: Mapping[str, Array]) -> dict[str, Array]:
    """The taps that are not those of helper layers, in their order."""
    return {name: tap for name, tap in taps.items() if not name.startswith(HELPER)}
