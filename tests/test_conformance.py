"""One suite that every implementation on disk must pass, in every mode and precision that it offers on the CPU.

Tiers as in ``suites.equivalence``. What no framework can compute alike is found here as a figure of rho, what every framework
must compute alike as an inequality.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from impls import models
from impls.implementation import ROOT
from impls.oracle import forward, lattice, local, rounding
from impls.oracle.rounding import Envelope
from impls.precision import PRECISIONS
from impls.spec import (
    NO_PADDING,
    Add,
    BatchNorm2d,
    Block,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    ModelSpec,
    Node,
    Padding,
    PadShortcut,
    Relu,
    layers,
)
from impls.weights import folding, synthesis
from suites.equivalence import probes
from suites.equivalence.tiers import Tier, exact, identity, local_rounding, meaning, rounding_noise
from suites.harness import inputs
from suites.harness.context import BUILD_TIMEOUT_S, START_TIMEOUT_S
from suites.harness.process import WorkerError
from suites.harness.reference import held, reference
from tests.frameworks import ARMS, DEVICE, MANIFESTS, THREADS, Arm, Frameworks, interpreter, live_frameworks  # noqa: F401 - the fixture

Array = npt.NDArray[Any]
Weights = dict[str, npt.NDArray[np.float32]]

EAGER = tuple(arm for arm in ARMS if not MANIFESTS[arm.implementation].modes[arm.mode].needs)
"""Arms whose build needs no compiler, which takes seconds a shape and tens of seconds a deep net."""


def of_precision(arms: tuple[Arm, ...], precision: str) -> tuple[Arm, ...]:
    return tuple(arm for arm in arms if arm.precision == precision)


def each(*arms: Arm) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("arm", arms, ids=str)


DEEP = {
    "cifar_resnet20": 32,
    "cifar_resnet8_b": 32,
    "cifar_resnet8_c": 32,
    "cifar_plain8": 32,
    "cifar_resnet56": 32,
    "resnet18": 64,
    "resnet50_v1": 64,
}
"""Model and image size: each kind of shortcut and none, a run of equal blocks long enough to be a scan, both kinds of block."""

deep = pytest.mark.parametrize("name", DEEP)


@dataclass(frozen=True, slots=True)
class Net:
    """A network with its weights, as they are and folded."""

    model: ModelSpec
    weights: Weights
    folded: tuple[ModelSpec, Weights]

    def given(self, fold: bool) -> tuple[ModelSpec, Weights]:
        return self.folded if fold else (self.model, self.weights)


@functools.cache
def synthesised(name: str) -> Net:
    """The model of this name with weights in generic position."""
    model = models.get(name)
    weights = synthesis.synthesize(model, 0)
    return Net(model, weights, folding.fold_batch_norm(model, weights))


@functools.cache
def lattice_of(model: ModelSpec, precision: str, batch: int, height: int, width: int) -> lattice.Lattice:
    """One probe for all arms of a precision."""
    return lattice.lattice(model, precision, batch=batch, height=height, width=width, seed=5)


@functools.cache
def probe(name: str, precision: str, size: int) -> tuple[lattice.Lattice, Array]:
    """The lattice of a model and the logits of the folded network on it."""
    model = models.get(name)
    made = lattice_of(model, precision, 2, size, size)
    return made, last(lattice.prove(*folding.fold_batch_norm(model, made.weights), made.images, precision).expected)


@functools.cache
def meant(name: str, size: int, fold: bool) -> dict[str, Array]:
    """Every tap of a synthesised net on the first two of its images, by the oracle."""
    net = synthesised(name)
    return forward.taps(*net.given(fold), images_of(net.model, size, size)[:2])


def last(taps: dict[str, Array]) -> Array:
    return taps[list(taps)[-1]]


@functools.cache
def images_of(model: ModelSpec, height: int, width: int) -> npt.NDArray[np.float32]:
    """Eight real images."""
    return inputs.for_model(model).pool if (height, width) == model.input_chw[1:] else inputs.photographs(height, width).pool


def predicted(net: Net, images: npt.NDArray[np.float32], precision: str, *, fold: bool) -> Envelope:
    """Where the logits must lie."""
    return reference(*net.given(fold), images, precision, THREADS)


def assert_passed(tier: Tier) -> None:
    assert tier.passed, tier.reason
    assert tier.elements > 0


def examine(
    frameworks: Frameworks, arm: Arm, model: ModelSpec, weights: Weights, images: Array, *, fold: bool
) -> tuple[Array, dict[str, Array]]:
    """Logits through the mode and every tap."""
    with frameworks.prepare(arm, frameworks.weight_file(model, weights), images.shape, fold=fold) as network:
        return network.logits(images[None])[0], network.taps(images)


@each(*ARMS)
def test_lattice(frameworks: Frameworks, arm: Arm) -> None:
    """E1: where no format rounds, every tap and the logits, folded and not, are the same numbers in every framework."""
    made, folded_logits = probe("cifar_resnet8", arm.precision, 32)
    logits, taps = examine(frameworks, arm, models.get("cifar_resnet8"), made.weights, made.images, fold=False)
    assert_passed(exact(made.expected, taps))
    assert_passed(exact({"logits": last(made.expected)}, {"logits": logits}))
    logits, _ = examine(frameworks, arm, models.get("cifar_resnet8"), made.weights, made.images, fold=True)
    assert_passed(exact({"logits": folded_logits}, {"logits": logits}))


@each(*of_precision(EAGER, "fp32"))
@deep
def test_lattice_of_other_nets(frameworks: Frameworks, arm: Arm, name: str) -> None:
    """E1 for every kind of shortcut and block."""
    made, _ = probe(name, arm.precision, DEEP[name])
    logits, taps = examine(frameworks, arm, models.get(name), made.weights, made.images, fold=False)
    assert_passed(exact(made.expected, taps))
    assert_passed(exact({"logits": last(made.expected)}, {"logits": logits}))


def assert_meaning(
    frameworks: Frameworks,
    arm: Arm,
    model: ModelSpec,
    weights: Weights,
    images: npt.NDArray[np.float32],
    expected: dict[str, Array],
    *,
    fold: bool = False,
) -> None:
    logits, taps = examine(frameworks, arm, model, weights, images, fold=fold)
    assert_passed(meaning(expected, taps))
    assert_passed(meaning({"logits": last(expected)}, {"logits": logits}))


@each(*of_precision(ARMS, "fp64"))
def test_meaning(frameworks: Frameworks, arm: Arm) -> None:
    """E2: in float64 every tap and the logits are the oracle's."""
    net = synthesised("cifar_resnet8")
    for fold in (False, True):
        expected = meant("cifar_resnet8", 32, fold)
        assert_meaning(frameworks, arm, net.model, net.weights, images_of(net.model, 32, 32)[:2], expected, fold=fold)


@each(*of_precision(EAGER, "fp64"))
@deep
def test_meaning_of_other_nets(frameworks: Frameworks, arm: Arm, name: str) -> None:
    """E2 for every kind of shortcut and block."""
    net, size = synthesised(name), DEEP[name]
    assert_meaning(frameworks, arm, net.model, net.weights, images_of(net.model, size, size)[:2], meant(name, size, False))


UNUSUAL = {"cifar_resnet8": EAGER, "resnet18": of_precision(EAGER, "fp32")}
"""The arms of each net that are shown what a thorough certificate adds."""

unusual = pytest.mark.parametrize(("arm", "name"), [(arm, name) for name, arms in UNUSUAL.items() for arm in arms], ids=str)


def added(model: ModelSpec, images: str) -> list[tuple[int, ...]]:
    """The shapes of a kind of images that a thorough certificate has and an ordinary one has not."""
    ordinary, thorough = (probes.asked(model, (), "inference", thorough=thorough) for thorough in (False, True))
    return [probe.shape for probe in thorough[len(ordinary) :] if probe.images == images]


@unusual
def test_unusual_sizes(frameworks: Frameworks, arm: Arm, name: str) -> None:
    """E1 at odd sizes that are not square and in odd batches: rows and columns are not exchanged, no stride is off by one."""
    model = models.get(name)
    shapes = added(model, "lattice")
    assert len(shapes) == 2
    for batch, _, height, width in shapes:
        made = lattice_of(model, arm.precision, batch, height, width)
        logits, taps = examine(frameworks, arm, model, made.weights, made.images, fold=False)
        assert_passed(exact(made.expected, taps))
        assert_passed(exact({"logits": last(made.expected)}, {"logits": logits}))


@unusual
def test_extreme_inputs(frameworks: Frameworks, arm: Arm, name: str) -> None:
    """E3 where values are as large and as small as the format lets them, a channel is empty, and epsilon decides every scale."""
    net = synthesised(name)
    ((_, _, height, width),) = added(net.model, "extreme")
    weights = probes.small_variances(net.model, net.weights)
    images = probes.extreme(net.model, weights, images_of(net.model, height, width), arm.precision)
    with frameworks.prepare(arm, frameworks.weight_file(net.model, weights), images.shape, fold=False) as network:
        taps = network.taps(images)
    model = local.with_single_epsilon(net.model) if network.settings.get("epsilon") == "float32" else net.model
    shown = held({"images": images}, arm.precision)["images"]
    assert_passed(local_rounding(model, held(weights, arm.precision), shown, taps, arm.precision))


def examine_rounding(frameworks: Frameworks, arm: Arm, net: Net, images: npt.NDArray[np.float32], *, fold: bool) -> None:
    """E0 and E4 of one batch of eight."""
    with frameworks.prepare(arm, frameworks.weight_file(net.model, net.weights), images.shape, fold=fold) as network:
        assert_passed(identity(held(net.given(fold)[1], arm.precision), network.weights()))
        assert_passed(rounding_noise(network.logits(images[None])[0], predicted(net, images, arm.precision, fold=fold), arm.precision))


@each(*(arm for arm in ARMS if arm.precision != "fp64"))
@pytest.mark.parametrize("fold", [False, True], ids=["batch norm", "folded"])
def test_rounding(frameworks: Frameworks, arm: Arm, fold: bool) -> None:
    """E0 and E4: the weights are the file's to the byte, the logits as far off as the precision explains and no farther."""
    net = synthesised("cifar_resnet8")
    examine_rounding(frameworks, arm, net, images_of(net.model, 32, 32), fold=fold)


@each(*of_precision(EAGER, "fp32"))
@deep
def test_rounding_of_other_nets(frameworks: Frameworks, arm: Arm, name: str) -> None:
    """E0 and E4 for every kind of shortcut and block, as they are timed."""
    net = synthesised(name)
    examine_rounding(frameworks, arm, net, images_of(net.model, DEEP[name], DEEP[name]), fold=True)


@each(*(arm for arm in EAGER if arm.precision not in ("fp64", "fp32")))
def test_rounding_of_narrow_formats(frameworks: Frameworks, arm: Arm) -> None:
    """E0 and E4 where every layer rounds its output, in a deep net of bottlenecks."""
    net = synthesised("resnet50_v1")
    examine_rounding(frameworks, arm, net, images_of(net.model, 64, 64), fold=True)


@each(*of_precision(EAGER, "fp64"), *of_precision(EAGER, "fp32"))
def test_an_image_knows_no_other(frameworks: Frameworks, arm: Arm) -> None:
    """f(x_i) alone is f(x_i) in any batch: to rounding, in float64 to 1e-10 of the logits."""
    net = synthesised("cifar_resnet8_b")
    images = images_of(net.model, 32, 32)
    envelope = predicted(net, images, arm.precision, fold=True)
    path = frameworks.weight_file(net.model, net.weights)
    for size in (1, 2, 3):
        members = (np.arange(8)[:, None] + np.arange(size)[None, :]) % 8
        with frameworks.prepare(arm, path, images[:size].shape, fold=True) as network:
            logits = network.logits(images[members])
        assert_passed(rounding_noise(logits, Envelope(envelope.logits[members], envelope.deviation[members]), arm.precision))
        if arm.precision == "fp64":
            assert_passed(meaning({"logits": envelope.logits[members]}, {"logits": logits}))


@each(*of_precision(EAGER, "fp32"))
def test_runs_are_repeated_to_the_bit(frameworks: Frameworks, arm: Arm) -> None:
    """The same batch gives the same bits again, in its place of the ring and in a network that was prepared anew."""
    net = synthesised("cifar_resnet8")
    images = images_of(net.model, 32, 32)
    ring = np.stack([images, images[::-1], images])
    path = frameworks.weight_file(net.model, net.weights)
    answers = []
    for _ in range(2):
        with frameworks.prepare(arm, path, images.shape, fold=True) as network:
            answers += [network.logits(ring), network.logits(ring)]
    assert len({answer.tobytes() for answer in answers}) == 1
    assert answers[0][0].tobytes() == answers[0][2].tobytes()


@pytest.mark.parametrize(("implementation", "precision"), sorted({(arm.implementation, arm.precision) for arm in ARMS}), ids=str)
def test_contract(frameworks: Frameworks, tmp_path: Path, implementation: str, precision: str) -> None:
    """put, run, wait and get leave host images, batches, outputs and weights alone; with deterministic settings bits repeat."""
    modes = [arm.mode for arm in ARMS if (arm.implementation, arm.precision) == (implementation, precision)]
    if precision not in ("fp32", "fp64"):
        modes = [mode for mode in modes if not MANIFESTS[implementation].modes[mode].needs]
    net = synthesised("cifar_resnet8_b")
    path, out = frameworks.weight_file(net.model, net.weights), tmp_path / "answers.json"
    command = [
        interpreter(implementation),
        ROOT / "tests" / "contract_probe.py",
        MANIFESTS[implementation].package,
        precision,
        THREADS,
    ]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, command), str(path), str(out), *modes], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(out.read_text(encoding="utf-8"))
    assert list(answers) == modes
    assert [f"{mode}: not so: {name}" for mode, found in answers.items() for name, holds in found.items() if not holds] == []


DTYPES = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@each(*EAGER)
def test_settings(frameworks: Frameworks, arm: Arm) -> None:
    """What is shown of a run is read back, of the right type, and what was asked for."""
    net = synthesised("cifar_resnet8")
    with frameworks.prepare(arm, frameworks.weight_file(net.model, net.weights), (1, 3, 32, 32), fold=True) as network:
        network.logits(images_of(net.model, 32, 32)[None, :1])
        settings = network.settings
    assert settings["precision"] == DTYPES[arm.precision]
    assert settings["tf32"] is False
    assert settings["layout"] in ("NCHW", "NHWC")
    assert isinstance(settings["deterministic"], bool)
    assert settings["placed_on"] == "cpu"
    assert settings["threads"] == THREADS or (settings["threads"] is None and "ReferenceEvaluator" in settings["provider"])


@each(*(arm for arm in EAGER if arm.precision not in ("fp64", "fp32")))
def test_arithmetic(frameworks: Frameworks, arm: Arm) -> None:
    """In bf16 and fp16 the types and kernels of products are told, or that they are not; elsewhere E3 shows them."""
    net = synthesised("cifar_resnet8")
    with frameworks.prepare(arm, frameworks.weight_file(net.model, net.weights), (2, 3, 32, 32), fold=True) as network:
        network.logits(images_of(net.model, 32, 32)[None, :2])
        told = network.arithmetic()
    assert re.match(r"(bf16|f16|f32)( x \w+)? in (oneDNN|XLA) \S|not told", told)


@pytest.mark.parametrize(
    ("implementation", "mode", "variable", "value", "absent", "expected"),
    [
        ("pytorch", "eager", "ONEDNN_MAX_CPU_ISA", "AVX512_CORE", "core_bf16|amx", ""),
        ("tensorflow", "graph", "ONEDNN_MAX_CPU_ISA", "AVX512_CORE", "core_bf16|amx", ""),
        ("tensorflow", "graph", "TF_ENABLE_ONEDNN_OPTS", "0", "bf16 in", "f32 in oneDNN gemm_api"),
    ],
)
def test_other_kernels_are_told(
    frameworks: Frameworks, implementation: str, mode: str, variable: str, value: str, absent: str, expected: str
) -> None:
    """A process that may not use the processor's best instructions, or oneDNN's kernels, tells others: the answer is no constant."""
    net = synthesised("cifar_resnet8")
    images = frameworks.folder / "two.safetensors"
    save_file({"images": images_of(net.model, 32, 32)[None, :2]}, images)
    with frameworks.start(implementation, "bf16", **{variable: value}) as worker:
        worker.call("start", START_TIMEOUT_S)
        path = str(frameworks.weight_file(net.model, net.weights))
        worker.call("prepare", BUILD_TIMEOUT_S, handle="net", weights=path, mode=mode, input_shape=[2, 3, 32, 32], fold=True)
        worker.call("put", BUILD_TIMEOUT_S, handle="net", images=str(images))
        told = worker.call("arithmetic", BUILD_TIMEOUT_S, handle="net")["arithmetic"]
    assert not re.search(absent, told), told
    assert expected in told, told


@pytest.mark.parametrize("implementation", MANIFESTS)
def test_unknown_mode_is_refused_in_a_sentence(frameworks: Frameworks, implementation: str) -> None:
    """A mode that an implementation does not have is something that it cannot do, and it says which it has."""
    manifest = MANIFESTS[implementation]
    net = synthesised("cifar_resnet8")
    arm = Arm(implementation, "warp", "fp32")
    with pytest.raises(WorkerError, match="warp") as caught:
        frameworks.prepare(arm, frameworks.weight_file(net.model, net.weights), (1, 3, 32, 32), fold=True)
    assert caught.value.kind == "cannot"
    assert all(mode in str(caught.value) for mode in manifest.modes)
    assert frameworks.worker(implementation, "fp32").alive


@pytest.mark.parametrize(
    ("implementation", "precision"),
    [
        (name, precision)
        for name, manifest in MANIFESTS.items()
        for precision in PRECISIONS
        if precision not in manifest.devices[DEVICE].precisions
    ],
)
def test_impossible_precision_is_refused_in_a_sentence(frameworks: Frameworks, implementation: str, precision: str) -> None:
    """A precision that an implementation does not offer here is refused at the start, with a reason; the manifest has it too."""
    with frameworks.start(implementation, precision) as worker, pytest.raises(WorkerError) as caught:
        worker.call("start", START_TIMEOUT_S)
    assert caught.value.kind == "cannot"
    assert MANIFESTS[implementation].devices[DEVICE].cannot[precision] in str(caught.value)


def conv(
    name: str, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: Padding = NO_PADDING, *, bias: bool = False
) -> Conv2d:
    return Conv2d(name, inputs, outputs, kernel, stride, padding, bias)


def norm(name: str, channels: int, eps: float = 1e-5) -> BatchNorm2d:
    return BatchNorm2d(name, channels, eps, 0.1, "unbiased")


def hand_made(name: str, channels: int, *body: Node) -> ModelSpec:
    """A network of these nodes with a classifier of five classes behind them."""
    return ModelSpec(name, (3, 32, 32), 5, (*body, GlobalAvgPool2d("avgpool"), Linear("fc", channels, 5)), "the conformance tests")


# Sizes are such that what is averaged is a power of two, as the lattice wants it.
HAND_MADE: dict[str, tuple[ModelSpec, int, int]] = {
    "unequal padding": (hand_made("p1", 4, conv("a", 3, 4, 3, 2, Padding(0, 1, 2, 1)), norm("b", 4), Relu("c")), 16, 15),
    "padding on one side": (hand_made("p2", 4, conv("a", 3, 4, 3, 1, Padding(2, 0, 0, 2), bias=True), Relu("c")), 16, 8),
    "padding of a 1x1": (hand_made("p3", 4, conv("a", 3, 4, 1, 3, Padding(1, 0, 0, 1)), norm("b", 4)), 23, 22),
    "strided 1x1": (hand_made("s1", 8, conv("a", 3, 8, 1, 2), norm("b", 8), Relu("c")), 15, 16),
    "5x5 by 3": (hand_made("s2", 8, conv("a", 3, 8, 5, 3, Padding(2, 2, 1, 3)), norm("b", 8), Relu("c")), 22, 23),
    # No ReLU before the pools: where all values are negative, a pad of zero would be the maximum.
    "unequal pool": (hand_made("m1", 4, conv("a", 3, 4, 1, bias=True), MaxPool2d("m", 3, 2, Padding(0, 1, 1, 0))), 8, 8),
    "pool padded beyond half": (
        hand_made("m2", 4, conv("a", 3, 4, 1, bias=True), MaxPool2d("m", 3, 2, Padding.same_on_all_sides(2))),
        6,
        5,
    ),
    "pool that skips": (hand_made("m3", 4, conv("a", 3, 4, 3, bias=True), MaxPool2d("m", 2, 3, NO_PADDING)), 13, 14),
    "pools in ceil mode": (
        hand_made(
            "m4", 4, conv("a", 3, 4, 1, bias=True), MaxPool2d("m", 3, 2, Padding(0, 1, 0, 1)), MaxPool2d("n", 2, 2, Padding(0, 1, 0, 1))
        ),
        14,
        15,
    ),
    "bias before batch norm": (hand_made("n1", 4, conv("a", 3, 4, 3, bias=True), norm("b", 4, 1e-4), Relu("c")), 10, 18),
    "batch norm first": (hand_made("n2", 4, norm("n", 3), Relu("r"), conv("a", 3, 4, 3, 1, Padding.same_on_all_sides(1))), 8, 4),
    "option A of odd sizes": (
        hand_made(
            "o1",
            8,
            Block(
                "x",
                ((conv("x.a", 3, 8, 3, 2, Padding.same_on_all_sides(1)),), (PadShortcut("x.s", 2, 1, 4),)),
                Add("x.add"),
                (Relu("x.r"),),
            ),
        ),
        7,
        15,
    ),
    "shortcut first": (
        hand_made("w1", 4, conv("i", 3, 4, 1), Block("x", ((), (Relu("x.r"), conv("x.a", 4, 4, 1))), Add("x.add"), ()), Relu("o")),
        4,
        4,
    ),
    "activation before the branch": (
        hand_made("w2", 4, conv("i", 3, 4, 1), Block("x", ((Relu("x.r"), conv("x.a", 4, 4, 1)), ()), Add("x.add"), (Relu("x.o"),))),
        4,
        4,
    ),
    "three branches": (
        hand_made("w3", 4, conv("i", 3, 4, 1), Block("x", ((conv("x.a", 4, 4, 1),), (), (Relu("x.r"),)), Add("x.add"), (Relu("x.o"),))),
        4,
        4,
    ),
    "block within a block": (
        hand_made(
            "w4",
            4,
            conv("i", 3, 4, 1),
            Block(
                "x",
                ((Block("y", ((Relu("y.r"), conv("y.a", 4, 4, 1)), ()), Add("y.add"), (Relu("y.o"),)), norm("x.n", 4)), ()),
                Add("x.add"),
                (),
            ),
            Relu("o"),
        ),
        4,
        4,
    ),
    "branches side by side": (
        hand_made(
            "c1",
            9,
            conv("i", 3, 4, 1, bias=True),
            Block(
                "x",
                (
                    (conv("x.a", 4, 3, 3, 1, Padding.same_on_all_sides(1), bias=True),),
                    (MaxPool2d("x.m", 3, 1, Padding.same_on_all_sides(1)), conv("x.b", 4, 2, 1), norm("x.n", 2)),
                    (),
                ),
                Concat("x.cat"),
                (Relu("x.o"),),
            ),
        ),
        4,
        8,
    ),
    "flattened": (
        ModelSpec(
            "f1",
            (3, 8, 12),
            5,
            (
                conv("a", 3, 4, 3, 2, Padding.same_on_all_sides(1), bias=True),
                Relu("r"),
                MaxPool2d("m", 3, 2, Padding(0, 1, 0, 1)),
                Flatten("f", 4, 2, 3),
                Dropout("d1", 0.5),
                Linear("l1", 24, 16),
                Relu("r1"),
                Dropout("d2", 0.2),
                Linear("l2", 16, 5),
            ),
            "the conformance tests",
        ),
        8,
        12,
    ),
    "the images themselves": (hand_made("w5", 3, Relu("r"), Block("x", ((), ()), Add("x.add"), (Relu("x.o"),))), 4, 4),
}

OUTSIDE_LATTICE = {"three branches", "block within a block"}
"""Sums of more than a branch and a shortcut are fitted by no probe; float64 judges them."""


def generic(model: ModelSpec) -> Weights:
    """Weights in generic position, variances far from 1."""
    generator = np.random.default_rng(11)
    weights = {}
    for layer in layers(model.body):
        for leaf, shape in layer.tensors().items():
            value = generator.uniform(0.01, 2, shape) if leaf == "running_var" else generator.normal(size=shape)
            weights[f"{layer.name}.{leaf}"] = value.astype(np.float32)
    return weights


@each(*of_precision(EAGER, "fp64"))
@pytest.mark.parametrize("kind", HAND_MADE)
def test_meaning_of_hand_made_nets(frameworks: Frameworks, arm: Arm, kind: str) -> None:
    """E2 for padding, pooling, strides and wiring that no ResNet has but the spec allows."""
    model, height, width = HAND_MADE[kind]
    images = np.random.default_rng(12).normal(size=(2, 3, height, width)).astype(np.float32)
    weights = generic(model)
    assert_meaning(frameworks, arm, model, weights, images, forward.taps(model, weights, images))


@each(*(arm for arm in EAGER if arm.precision != "fp64"))
@pytest.mark.parametrize("kind", [kind for kind in HAND_MADE if kind not in OUTSIDE_LATTICE])
def test_lattice_of_hand_made_nets(frameworks: Frameworks, arm: Arm, kind: str) -> None:
    """E1 for the same in the precisions that are timed, whose kernels are others."""
    model, height, width = HAND_MADE[kind]
    made = lattice_of(model, arm.precision, 2, height, width)
    logits, taps = examine(frameworks, arm, model, made.weights, made.images, fold=False)
    assert_passed(exact(made.expected, taps))
    assert_passed(exact({"logits": last(made.expected)}, {"logits": logits}))


def exchanged(nodes: tuple[Any, ...], name: str, change: Callable[[Any], Any]) -> tuple[Any, ...]:
    """The nodes with one layer changed."""
    result: list[Any] = []
    for node in nodes:
        if isinstance(node, Block):
            branches = tuple(exchanged(branch, name, change) for branch in node.branches)
            result.append(dataclasses.replace(node, branches=branches, then=exchanged(node.then, name, change)))
        else:
            result.append(change(node) if node.name == name else node)
    return tuple(result)


def in_layer(name: str, change: Callable[[Any], Layer]) -> Callable[[ModelSpec], ModelSpec]:
    """A fault of one layer's spec."""
    return lambda model: dataclasses.replace(model, name="mutant", body=exchanged(model.body, name, change))


def in_tensors(**changes: Callable[[Weights], Array]) -> Callable[[Weights], Weights]:
    """A fault of the weights: each name's tensor is made anew from the old ones; ``__`` stands for a dot."""

    def faulty(weights: Weights) -> Weights:
        made = {name.replace("__", "."): change(weights) for name, change in changes.items()}
        assert all(made[name].shape == weights[name].shape and not np.array_equal(made[name], weights[name]) for name in made)
        return {**weights, **{name: np.ascontiguousarray(tensor, np.float32) for name, tensor in made.items()}}

    return faulty


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault, the model it is put into, the tiers that must see it, and the tap that they must name.

    A tier that is not listed must pass: it cannot see this fault, and is not credited with it.
    """

    model: str
    tap: str
    tiers: tuple[str, ...]
    spec: Callable[[ModelSpec], ModelSpec] = lambda model: dataclasses.replace(model, name="mutant")
    weights: Callable[[Weights], Weights] = lambda weights: weights
    images: Callable[[Array], Array] = lambda images: images


def without(layer: Layer) -> MaxPool2d:
    """A layer that passes its input on."""
    return MaxPool2d(layer.name, 1, 1, NO_PADDING)


ALL = ("E1", "E2", "E4")
MUTANTS = {
    "SAME padding of a strided 3x3": Mutant(
        "cifar_resnet8",
        "layer2.0.conv1",
        ALL,
        in_layer("layer2.0.conv1", lambda layer: dataclasses.replace(layer, padding=Padding(0, 1, 0, 1))),
    ),
    "SAME padding of the max-pool": Mutant(
        "resnet18", "maxpool", ALL, in_layer("maxpool", lambda layer: dataclasses.replace(layer, padding=Padding(0, 1, 0, 1)))
    ),
    "v1.5 for v1": Mutant("resnet50_v1", "layer2.0.conv1", ALL, lambda model: dataclasses.replace(models.get("resnet50"), name="mutant")),
    "BGR": Mutant("cifar_resnet8", "conv1", ALL, images=lambda images: images[:, ::-1]),
    "kernel transposed": Mutant(
        "cifar_resnet8",
        "layer1.0.conv2",
        ("E0", *ALL),
        weights=in_tensors(layer1__0__conv2__weight=lambda w: w["layer1.0.conv2.weight"].swapaxes(2, 3)),
    ),
    "kernel flipped": Mutant(
        "cifar_resnet8",
        "layer1.0.conv2",
        ("E0", *ALL),
        weights=in_tensors(layer1__0__conv2__weight=lambda w: w["layer1.0.conv2.weight"][:, :, ::-1, ::-1]),
    ),
    "eps 1e-3 in one batch norm": Mutant(
        "cifar_resnet8", "layer2.0.bn1", ("E2", "E4"), in_layer("layer2.0.bn1", lambda layer: dataclasses.replace(layer, eps=1e-3))
    ),
    "eps 1.001e-5 in one batch norm": Mutant(
        "cifar_resnet8", "layer2.0.bn1", ("E2",), in_layer("layer2.0.bn1", lambda layer: dataclasses.replace(layer, eps=1.001e-5))
    ),
    "running mean for beta": Mutant(
        "cifar_resnet8",
        "layer3.0.bn2",
        ("E0", *ALL),
        weights=in_tensors(
            layer3__0__bn2__bias=lambda w: w["layer3.0.bn2.running_mean"], layer3__0__bn2__running_mean=lambda w: w["layer3.0.bn2.bias"]
        ),
    ),
    "ReLU missing": Mutant("cifar_resnet8", "layer2.0.relu1", ALL, in_layer("layer2.0.relu1", without)),
    "ReLU missing after the sum": Mutant("cifar_resnet8", "layer3.0.out", ALL, in_layer("layer3.0.out", without)),
    "two blocks exchanged": Mutant(
        "cifar_resnet20",
        "layer1.1.conv1",
        ("E0", *ALL),
        weights=lambda weights: {
            name: weights[name.replace("layer1.1.", "layer1.x.").replace("layer1.2.", "layer1.1.").replace("layer1.x.", "layer1.2.")]
            for name in weights
        },
    ),
    "bias of the classifier missing": Mutant("cifar_resnet8", "fc", ("E0", *ALL), weights=in_tensors(fc__bias=lambda w: 0 * w["fc.bias"])),
    "weights rounded to bf16": Mutant(
        "cifar_resnet8",
        "conv1",
        ("E0", "E2", "E4"),
        weights=lambda weights: {name: rounding.round_to(each, "bf16") for name, each in weights.items()},
    ),
    "one weight 0.1 % larger": Mutant(
        "cifar_resnet8",
        "layer3.0.conv1",
        ("E0", "E1", "E2"),
        weights=in_tensors(layer3__0__conv1__weight=lambda w: larger(w["layer3.0.conv1.weight"])),
    ),
}


def larger(weight: Array) -> Array:
    """The first weight that is not zero, 0.1 % larger."""
    changed = weight.copy()
    changed.reshape(-1)[np.flatnonzero(changed)[0]] *= 1.001
    return changed


def judge(frameworks: Frameworks, mutant: Mutant, tier: str) -> Tier:
    """One tier's answer to a mutant that PyTorch runs."""
    net = synthesised(mutant.model)
    size = 32 if mutant.model.startswith("cifar") else 64
    if tier == "E1":
        made, _ = probe(mutant.model, "fp32", size)
        _, taps = examine(
            frameworks,
            Arm("pytorch", "eager", "fp32"),
            mutant.spec(net.model),
            mutant.weights(made.weights),
            mutant.images(made.images),
            fold=False,
        )
        return exact(made.expected, taps)
    images = images_of(net.model, size, size)
    if mutant.model.startswith("cifar"):
        images = inputs.photographs(size, size).pool  # the digits are grey
    faulty, weights = mutant.spec(net.model), mutant.weights(net.weights)
    if tier == "E2":
        _, taps = examine(frameworks, Arm("pytorch", "eager", "fp64"), faulty, weights, mutant.images(images[:2]), fold=False)
        return meaning(forward.taps(net.model, net.weights, images[:2]), taps)
    arm = Arm("pytorch", "eager", "fp32")
    fold = tier == "E4"  # as it is timed; folding would carry a fault of the spec into the weights, where E0 does not look for it
    with frameworks.prepare(arm, frameworks.weight_file(faulty, weights), images.shape, fold=fold) as network:
        if tier == "E0":
            return identity(held(net.weights, "fp32"), network.weights())
        logits = network.logits(mutant.images(images)[None])[0]
        return rounding_noise(logits, predicted(net, images, "fp32", fold=fold), "fp32")


@pytest.mark.parametrize("tier", ["E0", "E1", "E2", "E4"])
@pytest.mark.parametrize("fault", MUTANTS)
def test_mutant(frameworks: Frameworks, fault: str, tier: str) -> None:
    """Each fault is seen by the tiers that claim to see it, and by no other; taps are compared up to the first that it reaches."""
    mutant = MUTANTS[fault]
    found = judge(frameworks, mutant, tier)
    assert found.passed is (tier not in mutant.tiers), found
    if not found.passed:
        assert found.reason is not None
        if tier in ("E1", "E2"):
            assert found.reason.startswith(f"{mutant.tap}: ")
        elif tier == "E0":
            assert found.reason.endswith("its bytes are not the file's")


def test_every_implementation_is_here() -> None:
    """The suite speaks of every implementation, mode and precision on disk."""
    assert {arm.implementation for arm in ARMS} == set(MANIFESTS)
    assert all(
        any(arm.implementation == name for arm in of_precision(EAGER, precision)) for name in MANIFESTS for precision in ("fp32", "fp64")
    )
