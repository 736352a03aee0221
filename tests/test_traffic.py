"""The rooflines of a GPU: the bytes of each kind of fusion, and what no fusion changes."""

from __future__ import annotations

from typing import get_args

import pytest

from impls import models
from impls.implementation import Roofline
from impls.spec import bytes_moved, macs
from impls.traffic import Kernel, kernels, least_time_s

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
