"""Weights from a seed."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from impls import models
from impls.oracle.forward import forward
from impls.spec import tensor_shapes
from impls.weights.file import tensor_sha256
from impls.weights.synthesis import synthesize

# Made with Python 3.11 and NumPy 2.4.6; Python 3.12 with NumPy 1.26.4 and Python 3.13 with NumPy 2.2.6 give the same.
GOLDEN = {
    "resnet18": "1770e65e7fa2a8ec6d553946eacf963dea4bed5476ea749a18d91b4d4f98e0bf",
    "resnet50": "0ff625aa177632a7d860ebd18edf1492536da1a4d48d3e1a11a685758784484e",
    "plain34": "323c512508ddf076fc91eb7292a50eca0c871986706d0ca3e9ea174a6a0d4fd5",
    "cifar_resnet20": "7da43b80037a2523aa2e168a162118965f24636968975ffc605b38b8f1c14203",
    "cifar_plain110": "d06eb9910a0e10c93d4cd9de8d065ab314ca7c69b47ab2b544a4f084145929c9",
    "cifar_resnet56_c": "f95c757e77d7cdbae48af923bfc48be86e0e12523dade32be0a168a11c70aabf",
    "cifar_resnet1202": "402ff1d80f911ec993703dd5bfe475cfc35abcc1610ab38edaa3afbec2bc97d3",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_hash(name: str) -> None:
    """The bytes of seed 0 are these on every machine."""
    assert tensor_sha256(synthesize(models.get(name), 0)) == GOLDEN[name]


def split_mix(seed: int, name: str, index: int) -> int:
    """SplitMix64's output number ``index`` (from 0) in plain integers."""
    mask = 2**64 - 1
    start = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
    z = (start + (index + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def centred_sum(z: int) -> int:
    return sum((z >> shift) & 0xFFFF for shift in (0, 16, 32, 48)) - 2 * 0xFFFF


def test_split_mix_is_the_published_generator() -> None:
    """The plain-integer twin gives SplitMix64's published first output for state 0."""
    z = 0x9E3779B97F4A7C15
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    assert z ^ (z >> 31) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize(("name", "output"), [("conv1.weight", 0), ("layer3.0.conv1.weight", 31), ("layer3.2.conv2.weight", 63)])
def test_kernels_from_fractions(name: str, output: int) -> None:
    """A filter recomputed in exact rational arithmetic agrees to one rounding to float32 and a few to float64.

    The last filter lies beyond the first piece of the generator's stream.
    """
    seed = 7
    kernel = synthesize(models.get("cifar_resnet20"), seed)[name]
    fan_in = math.prod(kernel.shape[1:])
    sums = [centred_sum(split_mix(seed, name, output * fan_in + index)) for index in range(fan_in)]
    mean = Fraction(sum(sums), fan_in)
    # The square of sd / sd(sum): 2 / fan_in over 4 * (2**32 - 1) / 12.
    scale_squared = Fraction(2, fan_in) / Fraction(2**32 - 1, 3)
    for value, total in zip(kernel[output].reshape(-1), sums, strict=True):
        centred = total - Fraction(3, 4) * mean
        exact = Fraction(math.isqrt(int(scale_squared * centred * centred * 2**200))) / 2**100 * (1 if centred > 0 else -1)
        assert abs(Fraction(float(value)) - exact) <= abs(exact) * Fraction(2**-24 + 2**-50)


def test_gamma_from_integers() -> None:
    """Gamma is low + (high - low) * (53 bits), rounded once to float32."""
    seed = 3
    weights = synthesize(models.get("cifar_resnet20"), seed)
    for name, low, high in (("bn1.weight", 0.5, 1.5), ("layer2.1.bn1.weight", 0.5, 1.5), ("layer2.1.bn2.weight", 0.25, 0.75)):
        for index, value in enumerate(weights[name]):
            assert value == np.float32(low + (high - low) * ((split_mix(seed, name, index) >> 11) * 2.0**-53))


def test_tensor_depends_on_seed_and_name_alone() -> None:
    """A tensor that two models share is the same in both; another seed changes every tensor."""
    small, large = (synthesize(models.get(name), 1) for name in ("cifar_resnet20", "cifar_resnet32"))
    for name in ("conv1.weight", "bn1.weight", "bn1.bias", "layer3.2.conv2.weight"):
        np.testing.assert_array_equal(small[name], large[name])
    other = synthesize(models.get("cifar_resnet20"), 2)
    assert all((small[name] != other[name]).mean() > 0.99 for name in small)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "plain18", "cifar_resnet20", "cifar_resnet20_c", "cifar_plain20"])
def test_generic_position(name: str) -> None:
    """Names, order and shapes are the file's; no gamma is near zero, no statistics are fresh, kernels have He's spread."""
    model = models.get(name)
    weights = synthesize(model, 0)
    assert [(key, array.shape) for key, array in weights.items()] == list(tensor_shapes(model).items())
    for key, array in weights.items():
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
        assert np.unique(array.reshape(-1)[:4096]).size > 0.9 * min(array.size, 4096), key
        if key.endswith(".running_var"):
            assert array.min() > 0
            assert array.max() / array.min() > 1.2, key
        elif key.endswith(".running_mean"):
            assert np.abs(array).max() > 0.01, key
        elif array.ndim == 1 and key.endswith(".weight"):
            assert 0.25 <= array.min() < array.max() <= 1.5, key
        elif array.ndim == 4:
            fan_in = math.prod(array.shape[1:])
            spread = array.std(dtype=np.float64) * math.sqrt(fan_in / 2)
            # Centring takes (2c - c^2) / fan_in of the variance; 5 standard errors of a standard deviation on each side.
            expected = math.sqrt(1 - 0.9375 / fan_in)
            assert abs(spread - expected) < 5 * math.sqrt(1 / (2 * array.size)), key


def activations(name: str, side: int) -> tuple[dict[str, float], npt.NDArray[np.float64]]:
    """Root mean square of every tap, and the logits, of two normal images."""
    model = models.get(name)
    images = np.random.default_rng(11).standard_normal((2, 3, side, side)).astype(np.float32)
    rms: dict[str, float] = {}

    def note(tap: str, output: npt.NDArray[np.float64]) -> None:
        rms[tap] = math.sqrt(np.mean(output * output))

    return rms, forward(model, synthesize(model, 5), images, tap=note)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 64),
        ("resnet50", 64),
        ("resnet152", 64),
        ("plain34", 64),
        ("cifar_plain110", 32),
        ("cifar_resnet56_c", 32),
        ("cifar_resnet110", 32),
        ("cifar_resnet1202", 32),
    ],
)
def test_activations_stay_of_order_one(name: str, side: int) -> None:
    """Every tap's rms lies within [0.05, 20] at any depth, and the images still differ in the logits by more than 5 %."""
    rms, logits = activations(name, side)
    assert min(rms.values()) > 0.05, min(rms, key=rms.__getitem__)
    assert max(rms.values()) < 20, max(rms, key=rms.__getitem__)
    differences = logits - logits.mean(axis=0)
    assert math.sqrt(np.mean(differences**2)) > 0.05 * math.sqrt(np.mean(logits**2))


def test_running_variance_is_the_true_second_moment() -> None:
    """At the model's own size the stored variances lie around the second moments that the oracle sees (mean ratio within 1.5x)."""
    model = models.get("cifar_resnet56")
    weights = synthesize(model, 5)
    rms, _ = activations("cifar_resnet56", 32)
    ratios = [
        float(np.mean(weights[f"{tap.replace('conv', 'bn')}.running_var"], dtype=np.float64)) / value**2
        for tap, value in rms.items()
        if "conv" in tap
    ]
    assert len(ratios) == 55
    assert 1 / 1.5 < math.exp(sum(map(math.log, ratios)) / len(ratios)) < 1.5
