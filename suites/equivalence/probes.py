"""What an implementation is shown: the images that every tier of a certificate asks about, in which shapes, and what they are there for.

The ordinary certificate asks each tier once, besides the timed shapes; a thorough one also at odd sizes that are not square, in
batches of one and three, on images and weights at the ends of their ranges. Several of these share one run: E3 judges every layer on
its own inputs and every element in its own deviation, so neither images nor weights hide each other's faults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.oracle import forward
from impls.oracle.rounding import largest_power
from impls.spec import BatchNorm2d, ModelSpec, SpecError, layers, tap_shapes
from results.certificate import Probe, Purpose
from suites.harness import inputs
from suites.harness.reference import held

Images = npt.NDArray[np.float32]
Weights = Mapping[str, npt.NDArray[np.float32]]

PROBE_BATCH = 2
PROBE_SIZE = 64
"""Images of E1, E2 and E3 for ImageNet nets, in pixels: even at every stride, and the pooled area is a power of two. Nets that
take no such images have their own size."""

TRAINING_SIZE = 112
"""Images of training for the same nets. At 64 the last batch norms see 8 values of a channel, by which float64's own rounding takes
ResNet-50's eight steps 1.7e-6 apart, and the adaptive pools of GoogLeNet's heads have as many windows as elements and do nothing; here
batch norms see 32, and the pools make 4x4 of 7x7, in windows of two and three rows that overlap."""

ODD = {64: (33, 63), 32: (13, 31), 224: (225, 253)}
"""Height and width by the ordinary probe's size. Rows are odd at every stride, columns at the first, and the lattice still averages
a power of two (2x2, 4x8). Of 224 to 254 pixels VGG and AlexNet, which average nothing, make maps of one size (``Flatten``)."""

MIXED = {64: (64, 47), 32: (32, 15), 224: (254, 231)}
"""More rows than columns, even rows and odd columns; 2x2 and 8x4 are averaged."""

EXPONENT = 20
"""Images are multiplied by two to this power and to minus it, which rounds nothing; fp16 ends before, and is taken to half of its range."""


def asked(model: ModelSpec, batch_sizes: tuple[int, ...], purpose: Purpose, *, thorough: bool) -> tuple[Probe, ...]:
    """Everything that a certificate is made on, the ordinary probes of a tier before the others."""
    if purpose == "training":
        return _training(model)
    return _ordinary(model, batch_sizes) + (_thorough(model) if thorough else ())


def _training(model: ModelSpec) -> tuple[Probe, ...]:
    shape = (PROBE_BATCH, model.input_chw[0], *training_size(model))
    return (
        Probe("E2", "real", shape, "every derivative, and eight batches of a free run"),
        Probe("E3", "real", shape, "values and cotangents as they are in use"),
        Probe("E5", "real", shape, "a step, and eight batches of a free run"),
    )


def _ordinary(model: ModelSpec, batch_sizes: tuple[int, ...]) -> tuple[Probe, ...]:
    shape = (PROBE_BATCH, model.input_chw[0], *probe_size(model))
    return (
        Probe("E1", "lattice", shape, "even at every stride, where padding named SAME is another than the spec's"),
        Probe("E2", "real", shape, "every constant counts"),
        Probe("E3", "real", shape, "values as they are in use"),
        *(Probe("E4", "timed", (size, *model.input_chw), "what is timed") for size in sorted(batch_sizes)),
    )


def _thorough(model: ModelSpec) -> tuple[Probe, ...]:
    size, channels = probe_size(model)[0], model.input_chw[0]
    odd, mixed = ODD[size], MIXED[size]
    return (
        Probe(
            "E1",
            "lattice",
            (3, channels, *odd),
            "odd sizes: before a strided layer other paddings than the spec's do as well where sizes are even; rows are not columns, and a "
            "batch of three is no multiple of two",
        ),
        Probe("E1", "lattice", (1, channels, *mixed), "one image, whose dimension is easily lost; more rows than columns"),
        Probe(
            "E3",
            "extreme",
            (3, channels, *odd),
            "large values are clipped or overflow, small ones vanish, empty channels are skipped, and epsilon alone decides every scale",
        ),
        Probe("E4", "large", (1, channels, *mixed), "the same in the mode that is timed, whose fused layers show no taps"),
    )


def probe_size(model: ModelSpec) -> tuple[int, int]:
    """Height and width of the ordinary images of E1, E2 and E3."""
    height, width = model.input_chw[1:]
    size = min(height, PROBE_SIZE), min(width, PROBE_SIZE)
    try:
        tap_shapes(model, PROBE_BATCH, *size)
    except SpecError:
        return height, width
    return size


def training_size(model: ModelSpec) -> tuple[int, int]:
    """Height and width of the images of training."""
    size = probe_size(model)
    return size if size == model.input_chw[1:] else (TRAINING_SIZE, TRAINING_SIZE)


def real(given: inputs.Inputs, height: int, width: int) -> Images:
    """The pool of real images of this size: those given where they have it, else crops of the photographs, prepared alike."""
    return given.pool if given.pool.shape[2:] == (height, width) else given.photographs(height, width)


def extreme(model: ModelSpec, weights: Weights, images: Images, precision: str) -> Images:
    """Three images, (3, C, H, W): the first of ``images`` magnified, the second diminished, and one that is 1 in one place.

    Shifts, flips and exchanges of rows, columns or channels move that place: it lies in no middle and in the last channel.
    """
    place = np.zeros_like(images[:1])
    place[0, -1, images.shape[2] // 3, images.shape[3] // 4] = 1
    return np.concatenate([magnified(model, weights, images[:1], precision), np.ldexp(images[1:2], -EXPONENT), place])


def magnified(model: ModelSpec, weights: Weights, images: Images, precision: str) -> Images:
    """The images times the largest power of two up to 2^20 that keeps every tap within half of the precision's range."""
    tensors, limit, exponent = held(weights, precision), largest_power(precision), EXPONENT
    scaled: Images = np.ldexp(images, exponent)
    while (largest := _reach(model, tensors, scaled)) > limit:
        exponent -= math.ceil(math.log2(largest / limit))
        scaled = np.ldexp(images, exponent)
    return scaled


def _reach(model: ModelSpec, weights: Mapping[str, npt.NDArray[Any]], images: Images) -> float:
    """The largest magnitude among the images and all taps."""
    reached = [float(np.abs(images).max())]
    forward.forward(model, weights, images, tap=lambda _, tap: reached.append(float(np.abs(tap).max())))
    return max(reached)


def small_variances(model: ModelSpec, weights: Weights) -> dict[str, npt.NDArray[np.float32]]:
    """The same function with running variances below epsilon and gamma smaller by as much, so that epsilon decides every scale.

    They are spread evenly from 0 to epsilon: were all 0, all channels of a layer would share one rounding of the root, where E3 takes
    roundings of different channels as different draws.
    """
    made = dict(weights)
    for layer in layers(model.body):
        if isinstance(layer, BatchNorm2d):
            variance = weights[f"{layer.name}.running_var"].astype(np.float64)
            small = (layer.eps * np.arange(layer.channels) / layer.channels).astype(np.float32)
            factor = np.sqrt((small.astype(np.float64) + layer.eps) / (variance + layer.eps))
            made[f"{layer.name}.running_var"] = small
            made[f"{layer.name}.weight"] = (weights[f"{layer.name}.weight"] * factor).astype(np.float32)
    return made
