"""What a certificate is made on: shapes that a lattice has, images at the ends of the format's range, and the epsilon probe."""

from __future__ import annotations

import numpy as np
import pytest

from impls import models, spec
from impls.oracle import forward, lattice
from impls.oracle.rounding import largest_power, round_to
from impls.precision import PRECISIONS
from impls.spec import GlobalAvgPool2d, Relu
from impls.weights import synthesis
from suites.equivalence import probes
from suites.harness import inputs

SMALL = ("cifar_resnet8", "resnet18")


@pytest.mark.parametrize("name", SMALL)
def test_sizes_are_what_they_are_there_for(name: str) -> None:
    """Odd rows stay odd at every stride; nothing is square; the averaged area is a power of two, which the lattice needs."""
    model = models.get(name)
    shapes = {probe.shape for probe in probes.asked(model, (), "inference", thorough=True)} - {(2, 3, *probes.probe_size(model))}
    assert sorted(shape[0] for shape in shapes) == [1, 3]
    for shape in shapes:
        assert shape[2] != shape[3]
        taps = spec.tap_shapes(model, shape[0], *shape[2:])
        before = [name for name in taps if len(taps[name]) == 4][-1]
        assert np.log2(np.prod(taps[before][2:])) % 1 == 0
        rows = {size[2] for size in taps.values() if len(size) == 4 and size[2] != taps[before][2]}
        assert (shape[0] == 1) or all(row % 2 for row in rows)


@pytest.mark.parametrize("name", SMALL)
def test_the_lattice_has_zeros_where_a_relu_decides(name: str) -> None:
    """So exact zeros into ReLU need no images of their own."""
    model = models.get(name)
    for probe in probes.asked(model, (), "inference", thorough=True):
        if probe.tier == "E1":
            batch, _, height, width = probe.shape
            taps = lattice.lattice(model, "bf16", batch=batch, height=height, width=width, seed=1).expected
            order = list(taps)
            read = {order[index - 1] for index, layer in enumerate(spec.layers(model.body)) if isinstance(layer, Relu)}
            assert all(np.any(taps[name] == 0) for name in read)
            assert isinstance(list(spec.layers(model.body))[-2], GlobalAvgPool2d)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_images_at_the_ends_of_the_range(precision: str) -> None:
    """The large one is exactly a power of two times the image, as large as half of the range lets it; the small one is no zero."""
    model = models.get("cifar_resnet8")
    weights = synthesis.synthesize(model, 0)
    images = inputs.photographs(13, 31).pool
    large, small, place = (image[None] for image in probes.extreme(model, weights, images, precision))
    factor = float(large.reshape(-1)[0] / images[0].reshape(-1)[0])
    assert np.array_equal(large, images[:1] * np.float32(factor))
    assert factor == 2**20 or precision == "fp16"
    reached = max(float(np.abs(tap).max()) for tap in forward.taps(model, weights, large).values())
    assert reached <= largest_power(precision)
    if precision == "fp16":
        assert 2.5 * reached > largest_power(precision)
    assert np.array_equal(small, images[1:2] * np.float32(2**-20))
    assert np.count_nonzero(round_to(small, precision)) > 0.9 * np.count_nonzero(images[1])
    assert (np.count_nonzero(place), place.sum()) == (1, 1)


@pytest.mark.parametrize("name", ["vgg16", "vgg19_bn", "alexnet"])
def test_nets_that_flatten_take_every_shape_that_is_asked(name: str) -> None:
    """Their maps have one size at each; rows are odd at the first stride, nothing but the ordinary shape is square."""
    model = models.get(name)
    shapes = [probe.shape for probe in probes.asked(model, (), "inference", thorough=True)]
    assert shapes[0] == (2, 3, 224, 224)
    for shape in set(shapes) - {shapes[0]}:
        assert spec.tap_shapes(model, shape[0], *shape[2:])["flatten"][1] in (25088, 9216)
        assert shape[2] != shape[3]
        assert shape[0] == 1 or shape[2] % 2 == shape[3] % 2 == 1


def test_one_pixel_tells_where_it_went() -> None:
    """Every shift, flip, turn and exchange of channels moves the pixel elsewhere."""
    model = models.get("cifar_resnet8")
    place = probes.extreme(model, synthesis.synthesize(model, 0), inputs.photographs(12, 12).pool, "fp32")[2]
    moved = (
        *(np.roll(place, shift, axis) for axis in (1, 2) for shift in (-1, 1)),
        *(place[::-1], place[:, ::-1], place[:, :, ::-1], place[:, ::-1, ::-1]),
        *(place.swapaxes(1, 2), place[[0, 2, 1]]),
    )
    assert not any(np.array_equal(place, other) for other in moved)
