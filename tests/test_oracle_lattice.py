"""The exact probe: its values against integer arithmetic, and its power against faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from impls import models, spec
from impls.oracle.forward import convolve, evaluate, taps
from impls.oracle.lattice import CEILING, Lattice, LatticeError, lattice, prove
from impls.oracle.rounding import round_to
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
)
from impls.weights.folding import fold_batch_norm

Integers = npt.NDArray[np.int64]
Weights = dict[str, npt.NDArray[np.float32]]

SMALL = ("cifar_resnet8", "cifar_resnet14_b", "cifar_resnet14_c", "cifar_plain20")
IMAGENET = ("resnet18", "resnet50_v1", "googlenet")

FLATTENING = ModelSpec(
    "flattening",
    (3, 8, 12),
    5,
    (
        Conv2d("conv", 3, 8, 3, 1, Padding.same_on_all_sides(1), bias=True),
        Relu("relu"),
        MaxPool2d("pool", 2, 2, NO_PADDING),
        Flatten("flatten", 8, 4, 6),
        Linear("fc1", 192, 64),
        Relu("relu1"),
        Dropout("dropout", 0.5),
        Linear("fc2", 64, 64),
        Relu("relu2"),
        Linear("fc3", 64, 5),
    ),
    "the tests of the lattice",
)
"""VGG's head behind one convolution."""


@cache
def probe(name: str, precision: str = "bf16", seed: int = 0) -> tuple[ModelSpec, Lattice]:
    """A model and its probe, made once."""
    model = models.get(name)
    size = 32 if name.startswith("cifar") else 64
    return model, lattice(model, precision, batch=2, height=size, width=size, seed=seed)


def in_integers(model: ModelSpec, weights: Weights, images: npt.NDArray[np.float32]) -> dict[str, Integers]:
    """Every tap in 64-bit integers, times the area of the pool behind it; no floating point after the cast."""
    outputs: dict[str, Integers] = {}
    area = 1

    def tensor(layer: Layer, leaf: str) -> Integers:
        value = weights[f"{layer.name}.{leaf}"]
        assert np.array_equal(value, value.astype(np.int64))
        return value.astype(np.int64)

    def shifted(x: Integers, layer: Conv2d | MaxPool2d, fill: int) -> list[list[Integers]]:
        pad, kernel, stride = layer.padding, layer.kernel, layer.stride
        padded = np.pad(x, ((0, 0), (0, 0), (pad.top, pad.bottom), (pad.left, pad.right)), constant_values=fill)
        rows, columns = padded.shape[2] - kernel, padded.shape[3] - kernel
        return [[padded[:, :, i : i + rows + 1 : stride, j : j + columns + 1 : stride] for j in range(kernel)] for i in range(kernel)]

    def apply(layer: Layer, *inputs: Integers) -> Integers:
        nonlocal area
        x = inputs[0]
        match layer:
            case Conv2d():
                weight = tensor(layer, "weight")
                y = sum(
                    (
                        np.tensordot(part, weight[:, :, i, j], axes=(1, 1)).transpose(0, 3, 1, 2)
                        for i, row in enumerate(shifted(x, layer, 0))
                        for j, part in enumerate(row)
                    ),
                    start=np.zeros((), np.int64),
                )
                y = y + tensor(layer, "bias")[:, None, None] if layer.bias else y
            case BatchNorm2d():
                sign = np.sign(tensor(layer, "weight"))
                assert np.array_equal(tensor(layer, "weight") ** 2, tensor(layer, "running_var"))
                y = (x - tensor(layer, "running_mean")[:, None, None]) * sign[:, None, None] + tensor(layer, "bias")[:, None, None]
            case Relu():
                y = x * (x > 0)
            case MaxPool2d():
                y = np.max([part for row in shifted(x, layer, -(2**60)) for part in row], axis=0)
            case GlobalAvgPool2d():
                area = x.shape[2] * x.shape[3]
                y = x.sum(axis=(2, 3))
            case Flatten():
                y = x.reshape(len(x), layer.channels * layer.height * layer.width)
            case Dropout():
                y = x
            case Linear():
                y = x @ tensor(layer, "weight").T + area * tensor(layer, "bias")
            case PadShortcut():
                y = np.zeros(spec.output_shape(layer, x.shape), np.int64)
                y[:, layer.channels_before : layer.channels_before + x.shape[1]] = x[:, :, :: layer.stride, :: layer.stride]
            case Add():
                y = np.sum(inputs, axis=0)
            case Concat():
                y = np.concatenate(inputs, axis=1)
        outputs[layer.name] = y
        return y

    spec.walk(model.body, apply, images.astype(np.int64))
    return outputs


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_resnet14_b"])
def test_values_are_those_of_integer_arithmetic(name: str, precision: str) -> None:
    """Every tap is an integer (times 1/area behind the pool), the same as in 64-bit integers, within the exact range, also when folded."""
    model, made = probe(name, precision)
    folded_model, folded_weights = fold_batch_norm(model, made.weights)
    folded = prove(folded_model, folded_weights, made.images, precision)
    for net, result in ((model, made), (folded_model, folded)):
        exact = in_integers(net, result.weights, result.images)
        assert list(exact) == list(result.expected) == list(result.largest)
        for tap, value in result.expected.items():
            scale = 64 if tap in ("avgpool", "fc") else 1
            assert np.array_equal(value * scale, exact[tap]), tap
            assert np.abs(exact[tap]).max() <= result.largest[tap] <= PRECISIONS[precision].exact_integer
            assert np.array_equal(round_to(value, precision), value)
    assert all(np.array_equal(round_to(tensor, precision), tensor) for tensor in made.weights.values())
    assert np.array_equal(folded.expected["fc"], made.expected["fc"])


def test_imagenet_values() -> None:
    """The same holds for an ImageNet net, its 7x7 stem and max-pool."""
    model, made = probe("resnet18")
    exact = in_integers(model, made.weights, made.images)
    assert all(np.array_equal(value * (4 if tap in ("avgpool", "fc") else 1), exact[tap]) for tap, value in made.expected.items())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_values_of_linear_layers(precision: str) -> None:
    """Behind a map that is flattened every tap is an integer, the same as in 64-bit integers, whatever the number of inputs.

    A unit of a hidden layer reads ceil(inputs / outputs) inputs or two, each at most the ceiling; its offset is no larger than their sum.
    """
    made = lattice(FLATTENING, precision, batch=2, height=8, width=12, seed=0)
    exact = in_integers(FLATTENING, made.weights, made.images)
    assert all(np.array_equal(value, exact[tap]) for tap, value in made.expected.items())
    for name, terms in (("fc1", 3), ("fc2", 2)):
        assert made.largest[name] <= 2 * terms * CEILING
        assert (made.weights[f"{name}.weight"] != 0).any(axis=0).all(), f"{name}: an input is not read"
        after = made.expected[name.replace("fc", "relu")]
        assert after.max() <= CEILING
        assert 0.25 < (after > 0).mean() < 0.75
    assert len(np.unique(made.expected["fc3"])) > 5


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bias_before_batch_norm_folds_exactly(precision: str) -> None:
    """Where bias, mean and offset would cancel in the folded bias, rounding in the folding could leave a remainder: none does."""
    norm = BatchNorm2d("bn", 64, 1e-5, 0.1, "unbiased")
    first = (Conv2d("conv0", 3, 64, 3, 1, Padding.same_on_all_sides(1), bias=True), norm, Relu("relu0"))
    rest = replace(FLATTENING.body[0], in_channels=64), *FLATTENING.body[1:]
    model = replace(FLATTENING, body=(*first, *rest))
    for seed in range(8):
        made = lattice(model, precision, batch=2, height=8, width=12, seed=seed)
        folded = prove(*fold_batch_norm(model, made.weights), made.images, precision)
        assert np.array_equal(folded.expected["fc3"], made.expected["fc3"])
        for tensor in ("conv0.bias", "bn.bias", "bn.running_mean"):
            assert np.count_nonzero(made.weights[tensor]) > 0.7 * 64, tensor
        after = made.expected["relu0"]
        assert after.max() <= CEILING
        assert 0.25 < (after > 0).mean() < 0.75


def test_faults_of_linear_layers_show() -> None:
    """Rows for columns or places for channels in the flattening, units or inputs shifted, a bias dropped: the logits differ."""
    made = lattice(FLATTENING, "bf16", batch=2, height=8, width=12, seed=0)

    def logits(weights: Weights) -> npt.NDArray[Any]:
        return taps(FLATTENING, made.weights | weights, made.images)["fc3"]

    assert np.array_equal(logits({}), made.expected["fc3"])
    first = made.weights["fc1.weight"].reshape(-1, 8, 4, 6)
    for order in ((0, 2, 3, 1), (0, 1, 3, 2), (0, 3, 2, 1)):
        # What reads the map in another order is a matrix whose columns are in another.
        assert not np.array_equal(logits({"fc1.weight": first.transpose(order).reshape(-1, 192)}), made.expected["fc3"]), order
    for name in ("fc1", "fc2", "fc3"):
        weight, bias = made.weights[f"{name}.weight"], made.weights[f"{name}.bias"]
        for axis in (0, 1):
            assert not np.array_equal(logits({f"{name}.weight": np.roll(weight, 1, axis)}), made.expected["fc3"]), (name, axis)
        assert not np.array_equal(logits({f"{name}.bias": np.zeros_like(bias)}), made.expected["fc3"]), name


def test_concatenations_show() -> None:
    """In every single block of GoogLeNet: branches in another order, and any two neighbours exchanged, change taps."""
    model, made = probe("googlenet")

    def apply(layer: Layer, *inputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if isinstance(layer, Concat):
            assert np.array_equal(evaluate(layer, inputs, {}), made.expected[layer.name])
            for order in ((3, 2, 1, 0), (1, 0, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2)):
                other = evaluate(layer, tuple(inputs[branch] for branch in order), {})
                assert not np.array_equal(other, made.expected[layer.name]), (layer.name, order)
        return made.expected[layer.name]

    spec.walk(model.body, apply, made.images.astype(np.float64))


@pytest.mark.parametrize("padding", [NO_PADDING, Padding(1, 0, 1, 0), Padding.same_on_all_sides(1)])
def test_ceil_mode_shows(padding: Padding) -> None:
    """Each pool of GoogLeNet in ceil mode without it, with its row and column before the map, and with both, changes its tap."""
    model, made = probe("googlenet")

    def apply(layer: Layer, x: npt.NDArray[np.float64], *others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if isinstance(layer, MaxPool2d) and layer.stride == 2 and layer.kernel == 3:
            assert not np.array_equal(evaluate(replace(layer, padding=padding), (x,), {}), made.expected[layer.name]), layer.name
        return made.expected[layer.name]

    spec.walk(model.body, apply, made.images.astype(np.float64))


def test_float32_and_float64_agree_bit_for_bit() -> None:
    """Plain float32 arithmetic, with epsilon added in float32, gives the float64 values exactly."""
    model, made = probe("cifar_resnet14_b", "fp32")

    def apply(layer: Layer, *inputs: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        tensors = {leaf: made.weights[f"{layer.name}.{leaf}"] for leaf in layer.tensors()}
        x = inputs[0]
        y: npt.NDArray[Any]
        if isinstance(layer, BatchNorm2d):
            scale = tensors["weight"] / np.sqrt(tensors["running_var"] + np.float32(layer.eps))
            y = x * scale[:, None, None] + (tensors["bias"] - tensors["running_mean"] * scale)[:, None, None]
        elif isinstance(layer, Conv2d):
            flat = np.pad(x, ((0, 0), (0, 0), (layer.padding.top,) * 2, (layer.padding.left,) * 2))
            windows = np.lib.stride_tricks.sliding_window_view(flat, (layer.kernel,) * 2, axis=(2, 3))[
                :, :, :: layer.stride, :: layer.stride
            ]
            y = np.einsum("nchwij,ocij->nohw", windows, tensors["weight"])
        else:
            y = evaluate(layer, inputs, tensors)  # type: ignore[arg-type]
        assert y.dtype == np.float32
        assert np.array_equal(y, made.expected[layer.name]), layer.name
        return y

    spec.walk(model.body, apply, made.images)


@pytest.mark.parametrize("name", [*SMALL, *IMAGENET])
def test_every_layer_is_observable(name: str) -> None:
    """At every layer: all kernel positions and input channels are seen, no channel is dead, and ReLU both passes and stops values."""
    model, made = probe(name)

    def apply(layer: Layer, *inputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = inputs[0], made.expected[layer.name]
        if isinstance(layer, Conv2d):
            weight = made.weights[f"{layer.name}.weight"] != 0
            area = layer.kernel**2
            each_position = np.eye(area).reshape(area, 1, layer.kernel, layer.kernel)
            alone = convolve(np.abs(x).reshape(-1, 1, *x.shape[2:]), each_position, layer.stride, layer.padding)
            seen = alone.any(axis=(2, 3)).reshape(x.shape[0], *weight.shape[1:]).any(axis=0)
            observed = (weight & seen).any(axis=0)
            assert observed.any(axis=0).all(), f"{layer.name}: a kernel position is not seen"
            assert observed.any(axis=(1, 2)).mean() > 0.75, f"{layer.name}: input channels are not seen"
        if isinstance(layer, Relu):
            assert (x.min(axis=(0, 2, 3)) < 0).mean() > 0.6, f"{layer.name}: nothing to stop"
            assert (y.max(axis=(0, 2, 3)) > 0).all(), f"{layer.name}: dead channels"
            assert y.max() <= CEILING
        return y

    spec.walk(model.body, apply, made.images.astype(np.float64))


def edited(nodes: tuple[Node, ...], edit: Callable[[Layer], Layer]) -> tuple[Node, ...]:
    """The tree with ``edit`` applied to every layer."""
    return tuple(
        replace(
            node,
            branches=tuple(edited(branch, edit) for branch in node.branches),
            then=tuple(layer for layer in edited(node.then, edit) if not isinstance(layer, Block)),
        )
        if isinstance(node, Block)
        else edit(node)
        for node in nodes
    )


def same_padding(layer: Layer) -> Layer:
    """What SAME means for a 3x3 of stride 2 and an even size: 0 before, 1 after."""
    if isinstance(layer, (Conv2d, MaxPool2d)) and layer.kernel == 3 and layer.stride == 2:
        return replace(layer, padding=Padding(0, 1, 0, 1))
    return layer


def stem_padding(layer: Layer) -> Layer:
    """What SAME means for a 7x7 of stride 2 and an even size: 2 before, 3 after."""
    return replace(layer, padding=Padding(2, 3, 2, 3)) if isinstance(layer, Conv2d) and layer.kernel == 7 else layer


def differs(made: Lattice, model: ModelSpec, weights: Weights | None = None, images: npt.NDArray[Any] | None = None) -> bool:
    """Whether some tap that both have changes; the logits must be among them."""
    found = taps(model, made.weights if weights is None else weights, made.images if images is None else images)
    return any(not np.array_equal(value, made.expected[tap]) for tap, value in found.items())


@pytest.mark.parametrize(
    ("name", "edit"),
    [("cifar_resnet8", same_padding), ("resnet18", same_padding), ("resnet50", same_padding), ("resnet18", stem_padding)],
)
def test_padding_faults_show(name: str, edit: Callable[[Layer], Layer]) -> None:
    """SAME padding, in one layer or all, changes taps."""
    model, made = probe(name)
    assert differs(made, replace(model, body=edited(model.body, edit)))
    for target in [layer.name for layer in spec.layers(model.body) if edit(layer) != layer]:
        one = edited(model.body, lambda layer, target=target: edit(layer) if layer.name == target else layer)  # type: ignore[misc]
        assert differs(made, replace(model, body=one)), target


def test_stride_place_shows() -> None:
    """v1 instead of v1.5 and the reverse change taps, with the same weights."""
    for name, other in (("resnet50", "resnet50_v1"), ("resnet50_v1", "resnet50")):
        _, made = probe(name)
        assert not np.array_equal(taps(models.get(other), made.weights, made.images)["fc"], made.expected["fc"])


@pytest.mark.parametrize("name", ["cifar_resnet8", "resnet18"])
def test_input_and_kernel_faults_show(name: str) -> None:
    """BGR, swapped image axes, and every single kernel transposed, flipped or with its filters or inputs shifted, change taps."""
    model, made = probe(name)
    assert differs(made, model, images=made.images[:, ::-1])
    assert differs(made, model, images=made.images.swapaxes(2, 3))
    faults: dict[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
        "transposed": lambda w: w.swapaxes(2, 3),
        "flipped": lambda w: w[:, :, ::-1, ::-1],
        "filters shifted": lambda w: np.roll(w, 1, axis=0),
        "inputs shifted": lambda w: np.roll(w, 1, axis=1),
        "negated": lambda w: -w,
    }

    def apply(layer: Layer, x: npt.NDArray[Any], *others: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if isinstance(layer, Conv2d):
            weight = made.weights[f"{layer.name}.weight"].astype(np.float64)
            for fault, damage in faults.items():
                if layer.kernel > 1 or "shift" in fault or fault == "negated":
                    y = convolve(x, np.ascontiguousarray(damage(weight)), layer.stride, layer.padding)
                    assert not np.array_equal(y, made.expected[layer.name]), (layer.name, fault)
        return made.expected[layer.name]

    spec.walk(model.body, apply, made.images.astype(np.float64))


@pytest.mark.parametrize("name", ["cifar_resnet14_b", "resnet18"])
def test_batch_norm_faults_show(name: str) -> None:
    """In every single batch norm: mean and bias swapped, mean or bias dropped, gamma's sign or gamma dropped, variances exchanged."""
    model, made = probe(name)

    def apply(layer: Layer, x: npt.NDArray[Any], *others: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if isinstance(layer, BatchNorm2d):
            right = {leaf: made.weights[f"{layer.name}.{leaf}"].astype(np.float64) for leaf in layer.tensors()}
            for fault in (
                {"running_mean": right["bias"], "bias": right["running_mean"]},
                {"running_mean": np.zeros(layer.channels)},
                {"bias": np.zeros(layer.channels)},
                {"weight": np.abs(right["weight"])},
                {"weight": np.ones(layer.channels)},
                {"running_var": np.roll(right["running_var"], 1)},
            ):
                assert not np.array_equal(evaluate(layer, (x,), right | fault), made.expected[layer.name]), (layer.name, list(fault))
        return made.expected[layer.name]

    spec.walk(model.body, apply, made.images.astype(np.float64))


def wiring_faults(block: Block) -> dict[str, Block]:
    """Faults of one block that leave its shapes as they are."""
    relus = [layer for layer in block.branches[0] if isinstance(layer, Relu)]
    found = {
        f"without {relu.name}": replace(block, branches=(tuple(n for n in block.branches[0] if n != relu), *block.branches[1:]))
        for relu in relus
    }
    found["without the last ReLU"] = replace(block, then=())
    found["ReLU before the sum"] = replace(
        block, branches=((*block.branches[0], replace(relus[0], name="early")), *block.branches[1:]), then=()
    )
    found["without the shortcut"] = replace(block, branches=block.branches[:1])
    return found


@pytest.mark.parametrize("name", ["cifar_resnet14_b", "cifar_resnet14_c", "resnet18"])
def test_wiring_faults_show(name: str) -> None:
    """In every single block: a ReLU missing, ReLU before the sum, no shortcut, each changes the logits' path."""
    model, made = probe(name)
    x = made.images.astype(np.float64)
    for position, node in enumerate(model.body):
        if isinstance(node, Block):
            for fault, block in wiring_faults(node).items():
                body = (*model.body[:position], block, *model.body[position + 1 :])
                found = taps(replace(model, body=body), made.weights, x)
                shared = [tap for tap in found if tap in made.expected]
                assert any(not np.array_equal(found[tap], made.expected[tap]) for tap in shared), (node.name, fault)


def test_option_a_phase_and_side_show() -> None:
    """Option A from the second row, or with the zero channels on the other side, changes taps."""
    model, made = probe("cifar_resnet14")

    def apply(layer: Layer, x: npt.NDArray[Any], *others: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if isinstance(layer, PadShortcut):
            odd = evaluate(layer, (np.roll(x, -1, axis=(2, 3)),), {})
            side = evaluate(replace(layer, channels_before=layer.channels_before * 2, channels_after=0), (x,), {})
            assert not np.array_equal(odd, made.expected[layer.name])
            assert not np.array_equal(side, made.expected[layer.name])
        return made.expected[layer.name]

    spec.walk(model.body, apply, made.images.astype(np.float64))


def test_swapped_blocks_show() -> None:
    """The weights of two blocks of one shape exchanged change taps."""
    model, made = probe("cifar_resnet20")
    swap = {"layer2.1.": "layer2.2.", "layer2.2.": "layer2.1."}
    weights = {next((swap[p] + k[len(p) :] for p in swap if k.startswith(p)), k): v for k, v in made.weights.items()}
    assert differs(made, model, weights)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["cifar_resnet110", "resnet101"])
def test_deep_nets_stay_in_range(name: str, precision: str) -> None:
    """Deep nets are proven exact, and their last maps still differ within every channel."""
    _, made = probe(name, precision)
    last = next(value for tap, value in reversed(made.expected.items()) if value.ndim == 4)
    assert max(made.largest.values()) <= PRECISIONS[precision].exact_integer
    assert (np.ptp(last, axis=(0, 2, 3)) > 0).all()
    assert len(np.unique(made.expected["fc"])) > 8


def test_the_same_seed_gives_the_same_probe() -> None:
    """A probe is a function of its arguments, and another seed gives another."""
    model = models.get("cifar_resnet8")
    first, again, other = (lattice(model, "bf16", batch=1, height=32, width=32, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.images, again.images)
    assert all(np.array_equal(first.weights[name], again.weights[name]) for name in first.weights)
    assert not np.array_equal(first.expected["fc"], other.expected["fc"])


def test_what_is_not_exact_is_refused() -> None:
    """Off-grid weights, images and scales, sums out of range, areas that are no power of two: each is refused by name."""
    model, made = probe("cifar_resnet8")

    def refuse(match: str, net: ModelSpec = model, **changed: npt.NDArray[Any]) -> None:
        images = changed.pop("images", made.images)
        with pytest.raises(LatticeError, match=match):
            prove(net, made.weights | {name.replace("__", "."): value for name, value in changed.items()}, images, "bf16")

    refuse("conv1", conv1__weight=made.weights["conv1.weight"] * np.float32(0.5))
    refuse("bn1", bn1__weight=made.weights["bn1.weight"] * np.float32(2))
    refuse("bn1", bn1__bias=made.weights["bn1.bias"] + np.float32(0.5))
    refuse("bn1", bn1__running_var=np.ones(16, np.float32), bn1__weight=np.ones(16, np.float32))
    refuse("conv1: its sums reach", conv1__weight=made.weights["conv1.weight"] * np.float32(100))
    refuse("images", images=made.images * np.float32(0.3))
    with pytest.raises(LatticeError, match="power of two"):
        lattice(models.get("resnet18"), "fp32", batch=1, height=224, width=224, seed=0)
    with pytest.raises(LatticeError, match="power of two"):
        prove(model, made.weights, made.images[:, :, :28, :28], "bf16")
    with pytest.raises(LatticeError, match="smaller images"):
        lattice(models.get("cifar_resnet8"), "bf16", batch=1, height=64, width=64, seed=0)
    coarse = edited(model.body, lambda layer: replace(layer, eps=1.0) if isinstance(layer, BatchNorm2d) else layer)
    with pytest.raises(LatticeError, match=r"bn1.*epsilon 1\.0"):
        lattice(replace(model, body=coarse), "fp16", batch=1, height=32, width=32, seed=0)
