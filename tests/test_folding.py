"""Folding batch norm: which layers change, and that the values are the float64 formula's, rounded once."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from impls import models
from impls.oracle.forward import taps
from impls.spec import NO_PADDING, Add, BatchNorm2d, Block, Conv2d, ModelSpec, Relu, layers, tensor_shapes
from impls.weights.folding import fold_batch_norm
from impls.weights.synthesis import synthesize

NAMES = ["cifar_resnet8", "cifar_resnet8_b", "cifar_resnet8_c", "cifar_plain8", "resnet18", "resnet50"]


@pytest.mark.parametrize("name", NAMES)
def test_structure(name: str) -> None:
    """No batch norm is left, every convolution has a bias, everything else and the order stay."""
    model = models.get(name)
    folded, weights = fold_batch_norm(model, synthesize(model, 0))
    expected = [
        replace(layer, bias=True) if isinstance(layer, Conv2d) else layer
        for layer in layers(model.body)
        if not isinstance(layer, BatchNorm2d)
    ]
    assert list(layers(folded.body)) == expected
    assert replace(folded, body=model.body) == model
    assert {key: array.shape for key, array in weights.items()} == tensor_shapes(folded)
    assert all(array.dtype == np.float32 for array in weights.values())


def test_values_from_fractions() -> None:
    """Each value lies within one rounding to float32, and a few to float64, of the exact rational formula."""
    model = models.get("cifar_resnet8")
    weights = synthesize(model, 3)
    _, folded = fold_batch_norm(model, weights)
    for conv, norm in (("conv1", "bn1"), ("layer2.0.conv2", "layer2.0.bn2")):
        for channel in range(8):
            gamma, beta, mean, var = (
                Fraction(float(weights[f"{norm}.{leaf}"][channel])) for leaf in ("weight", "bias", "running_mean", "running_var")
            )
            scale = gamma / Fraction(float(np.sqrt(np.float64(float(var + Fraction(1e-5))))))
            exact_bias = beta - mean * scale
            size = abs(beta) + abs(mean * scale)
            assert abs(Fraction(float(folded[f"{conv}.bias"][channel])) - exact_bias) <= abs(exact_bias) * 2**-24 + size * 2**-50
            for value, weight in zip(folded[f"{conv}.weight"][channel].flat, weights[f"{conv}.weight"][channel].flat, strict=True):
                exact = Fraction(float(weight)) * scale
                assert abs(Fraction(float(value)) - exact) <= abs(exact) * Fraction(2**-24 + 2**-50)


@pytest.mark.parametrize("name", NAMES)
def test_same_function(name: str) -> None:
    """The folded net's convolution taps are the original's batch-norm taps, and its logits agree, up to float32 rounding of weights."""
    model = models.get(name)
    weights = synthesize(model, 1)
    folded, folded_weights = fold_batch_norm(model, weights)
    images = np.random.default_rng(2).standard_normal((2, 3, 33, 32)).astype(np.float32)
    before, after = taps(model, weights, images), taps(folded, folded_weights, images)
    pairs = [(conv.name, norm.name) for conv, norm in zip(layers(model.body), list(layers(model.body))[1:], strict=False)]
    norms = {norm for norm in before if norm not in after}
    compared = 0
    for conv, norm in [*((conv, norm) for conv, norm in pairs if norm in norms), ("fc", "fc")]:
        error = np.sqrt(np.mean((after[conv] - before[norm]) ** 2)) / np.sqrt(np.mean(before[norm] ** 2))
        assert error < 1e-5, norm
        compared += 1
    assert compared == len(norms) + 1
    assert not np.array_equal(after["fc"], before["fc"])


def test_other_batch_norms_stay() -> None:
    """A batch norm after anything but a convolution stays with its tensors, and a bias that is there is folded in."""
    conv = Conv2d("conv", 3, 4, 1, 1, NO_PADDING, bias=True)
    norms = [BatchNorm2d(name, 4, 1e-3, 0.1, "unbiased") for name in ("bn1", "bn2", "bn3", "bn4")]
    block = Block("block", ((), (replace(conv, name="inner", in_channels=4), norms[2])), Add("add"), (norms[3], Relu("out")))
    model = ModelSpec("net", (3, 4, 4), 1, (conv, norms[0], Relu("relu"), norms[1], block), "a test")
    rng = np.random.default_rng(0)
    weights = {name: (0.5 + rng.random(shape)).astype(np.float32) for name, shape in tensor_shapes(model).items()}
    folded, folded_weights = fold_batch_norm(model, weights)
    assert [layer.name for layer in layers(folded.body)] == ["conv", "relu", "bn2", "inner", "add", "bn4", "out"]
    assert list(folded_weights) == list(tensor_shapes(folded))
    for name in ("bn2", "bn4"):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            assert folded_weights[f"{name}.{leaf}"] is weights[f"{name}.{leaf}"]
    images = rng.standard_normal((1, 3, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(taps(folded, folded_weights, images)["out"], taps(model, weights, images)["out"], rtol=1e-6, atol=1e-6)


def test_original_is_left_alone() -> None:
    """Folding changes neither the model nor its weights."""
    model = models.get("cifar_resnet8")
    weights = synthesize(model, 0)
    copies = {name: array.copy() for name, array in weights.items()}
    fold_batch_norm(model, weights)
    assert all(np.array_equal(weights[name], copies[name]) for name in copies)
