"""The rooflines of a GPU: the bytes of each kind of fusion, and what no fusion changes."""

from __future__ import annotations

from typing import get_args

import pytest

from impls import models
from impls.implementation import Roofline
from impls.spec import Add, BatchNorm2d, Block, Conv2d, GlobalAvgPool2d, Linear, ModelSpec, Padding, Relu, bytes_moved, macs
from impls.traffic import Kernel, kernels, least_time_s, training_kernels

# Sums of max(FLOP / 790 TFLOP/s, bytes / 4.3 TB/s) over the kernels of a batch of 256 in bf16, derived apart from this code: MB of an
# image and images per second.
DERIVED = {
    "resnet18": {"fused": (13.0, 184_700), "compile": (22.9, 123_900), "folded": (25.2, 116_100), "eager": (35.2, 91_600)},
    "resnet50": {"fused": (57.0, 59_200), "compile": (101.5, 36_400), "folded": (117.5, 32_100), "eager": (162.0, 24_100)},
    "resnet152": {"fused": (118.3, 25_200), "compile": (208.5, 16_300), "folded": (255.1, 13_900), "eager": (345.0, 10_700)},
}


@pytest.mark.parametrize(("name", "roofline"), [(name, kind) for name in DERIVED for kind in get_args(Roofline)])
def test_bytes_and_rates(name: str, roofline: Roofline) -> None:
    """As derived by hand, to the digits that were kept."""
    megabytes, rate = DERIVED[name][roofline]
    launched = kernels(models.get(name), roofline, 256)
    assert 2 * sum(kernel.elements for kernel in launched) / 256 / 1e6 == pytest.approx(megabytes, rel=0.005)
    assert 256 / least_time_s(launched, 2, 790e12, 4.3e12) == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize("name", ["resnet50", "plain34", "cifar_resnet20", "cifar_resnet20_b"])
def test_what_no_fusion_changes(name: str) -> None:
    """Arithmetic is the model's; more fusion moves less; all fused is what the spec calls the least that layers move."""
    model = models.get(name)
    all_of = {kind: kernels(model, kind, 8) for kind in get_args(Roofline)}
    assert {sum(kernel.macs for kernel in launched) for launched in all_of.values()} == {8 * macs(model)}
    moved = [2 * sum(kernel.elements for kernel in all_of[kind]) for kind in get_args(Roofline)]
    assert moved == sorted(moved)
    # The spec counts batch norm's weight and bias, a thousandth.
    assert moved[0] == pytest.approx(bytes_moved(model, 2, 8), rel=0.01)


def test_a_kernel_is_bound_by_one_or_the_other() -> None:
    """The longer of arithmetic and bytes, kernel by kernel."""
    both = [Kernel(500, 0), Kernel(0, 10)]
    assert least_time_s(both, 4, 1000.0, 20.0) == 1 + 2
    assert least_time_s([Kernel(500, 10)], 4, 1000.0, 20.0) == 2


def one_layer() -> ModelSpec:
    """A convolution 2 -> 3, batch norm, ReLU, mean, classifier 3 -> 5, on images of 2 x 4 x 4."""
    body = (
        Conv2d("conv", 2, 3, 3, 1, Padding.same_on_all_sides(1), bias=False),
        BatchNorm2d("bn", 3, 1e-5, 0.1, "unbiased"),
        Relu("relu"),
        GlobalAvgPool2d("avgpool"),
        Linear("fc", 3, 5),
    )
    return ModelSpec("one-layer", (2, 4, 4), 5, body, "a test")


@pytest.mark.parametrize(("roofline", "between"), [("eager", 3 + 2 + 5 + 3), ("folded", 3 + 2 + 5 + 3), ("compile", 3 + 5), ("fused", 3)])
def test_a_step_counted_by_hand(roofline: Roofline, between: int) -> None:
    """A batch of 10: elements of convolution, of what follows it (in sizes of its output), of mean, classifier and SGD."""
    images, left, kernel = 10 * 2 * 16, 10 * 3 * 16, 3 * 2 * 9
    convolution = 2 * (images + kernel + left)  # forward, and the gradient of its weights; nobody asks for that of the images
    mean = 2 * (left + 30)
    classifier = 3 * (30 + 15 + 5 + 50)
    parameters = 5 * (kernel + 3 + 3 + 15 + 5)
    launched = training_kernels(one_layer(), roofline, 10)
    assert sum(each.elements for each in launched) == convolution + between * left + mean + classifier + parameters
    assert sum(each.macs for each in launched) == 10 * (2 * 16 * 3 * 2 * 9 + 3 * 3 * 5)
    wider = training_kernels(one_layer(), roofline, 10, parameter_size=2)
    assert sum(each.elements for each in wider) - sum(each.elements for each in launched) == parameters


@pytest.mark.parametrize(("roofline", "joined"), [("eager", 3 + 3), ("compile", 1 + 1), ("fused", 1 + 1)])
def test_a_sum_counted_by_hand(roofline: Roofline, joined: int) -> None:
    """Of x + relu(bn(x)): the sum reads a second input, and two gradients meet behind the convolution."""
    model = one_layer()
    conv, bn, relu, *rest = model.body
    with_sum = ModelSpec("with-sum", model.input_chw, 5, (conv, Block("block", ((bn, relu), ()), Add("block.add"), ()), *rest), "a test")
    moved = [sum(each.elements for each in training_kernels(each, roofline, 10)) for each in (with_sum, model)]
    assert moved[0] - moved[1] == joined * 10 * 3 * 16


# Derived apart from this code for a batch of 256 in bf16 at 790 TFLOP/s and 4.3 TB/s: images per second of steps in which everything is
# a kernel of its own, in which batch norm, sum and ReLU are one with their statistics in the convolution, and in which nothing lies
# between two convolutions; and GFLOP of an image. Ours counts statistics apart in the second, and reads a second gradient in the third.
DERIVED_STEPS = {
    "resnet18": (30_900, 41_000, 59_500, 10.65),
    "resnet34": (17_900, 23_100, 32_000, 21.75),
    "resnet50": (8_170, 11_700, 17_300, 24.30),
    "resnet101": (5_220, 7_480, 10_800, 46.57),
    "resnet152": (3_670, 5_270, 7_560, 68.85),
}


@pytest.mark.parametrize("name", DERIVED_STEPS)
def test_rates_of_training(name: str) -> None:
    """The first within 1 %, the others at most 14 % below, for what they count more; arithmetic is 3 forward passes less one gradient."""
    *rates, gflop = DERIVED_STEPS[name]
    for roofline, rate, less in zip(("eager", "compile", "fused"), rates, (0.01, 0.06, 0.14), strict=True):
        launched = training_kernels(models.get(name), roofline, 256)  # type: ignore[arg-type]
        assert 1 - less < 256 / least_time_s(launched, 2, 790e12, 4.3e12) / rate < 1.01
        assert 2 * sum(each.macs for each in launched) / 256 / 1e9 == pytest.approx(gflop, abs=0.01)


@pytest.mark.parametrize("name", ["resnet50", "plain34", "cifar_resnet20", "cifar_resnet20_b", "vgg16"])
def test_more_fusion_moves_less_in_training(name: str) -> None:
    model = models.get(name)
    moved = [sum(each.elements for each in training_kernels(model, kind, 8)) for kind in get_args(Roofline)]
    assert moved == sorted(moved)
    assert moved[-1] == moved[-2]
    assert moved[0] > 3 * sum(each.elements for each in kernels(model, "fused", 8)) * 0.9
