"""Families of faults of inference: one way to be wrong at every value that somebody may have taken.

Each family is a table; a diagnosis tries every line of it at every layer. Lines with a citation were really made; the others stand
here because a framework or a paper has them under the same name or as a default, which is then said beside them, or are made up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import special

from impls.oracle.forward import evaluate
from impls.spec import (
    NO_PADDING,
    Add,
    BatchNorm2d,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    MaxPool2d,
    ModelSpec,
    Padding,
    Relu,
    layers,
)
from suites.equivalence.faults.fault import Array, Case, Citation, Fault, Function, Group
from suites.equivalence.faults.inference import (
    CLASSIFIER,
    IDENTITY,
    INFERENCE,
    KERNEL,
    MEAN,
    NORM,
    POOL,
    STD,
    TINY,
    of_images,
    of_pixels,
    photographs,
    variances,
)
from suites.equivalence.faults.surgery import (
    blocks,
    changed,
    doubled,
    each,
    first_convolution,
    last_layer,
    relayered,
    with_functions,
    with_tensors,
)

Change = Callable[[Array], Array]
Inject = Callable[[Case, Group], Case]


def _function(function: Function) -> Inject:
    return lambda case, names: with_functions(case, names, function)


def _elementwise(change: Change) -> Inject:
    return _function(lambda layer, inputs, tensors: change(inputs[0]))


def _leaf(leaf: str, change: Change) -> Inject:
    return lambda case, names: changed(case, names, leaf, change)


# What a convolution pads with, by the names of numpy.pad.


def _padding_with(mode: Any) -> Function:
    def convolve(layer: Layer, inputs: tuple[Array, ...], tensors: Mapping[str, Array]) -> Array:
        assert isinstance(layer, Conv2d)
        pad = layer.padding
        padded = np.pad(inputs[0], ((0, 0), (0, 0), (pad.top, pad.bottom), (pad.left, pad.right)), mode=mode)
        return evaluate(dataclasses.replace(layer, padding=NO_PADDING), (padded,), tensors)

    return convolve


REFLECT = Citation("speechbrain/speechbrain#125", "padding_mode not respected in Conv")

PADDINGS = tuple(
    Fault(
        f"conv-{name}",
        f"{{site}} pads {how} instead of with zeros",
        "every convolution that pads",
        each(Conv2d, lambda layer: layer.padding != NO_PADDING),
        _function(_padding_with(mode)),
        "function",
        citation=citation,
    )
    for name, how, mode, citation in (
        ("reflect", "by reflection", "reflect", REFLECT),
        ("replicate", "with the edge", "edge", None),
        ("circular", "with the opposite edge", "wrap", None),
    )
)

# Activations.


def _leaky(slope: float) -> Change:
    return lambda x: np.where(x > 0, x, slope * x)


def _elu(x: Array) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _gelu_tanh(x: Array) -> Array:
    """Of Hendrycks and Gimpel (arXiv 1606.08415), section 2."""
    result: Array = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(x.dtype) * (x + 0.044715 * x**3)))
    return result


SELU = (1.0507009873554805, 1.6732632423543772)
"""Scale and alpha of Klambauer et al., arXiv 1706.02515, appendix."""

ACTIVATIONS = tuple(
    Fault(f"relu-{name}", f"{{site}} is {title} instead of ReLU", "every ReLU", each(Relu), _elementwise(change), "function")
    for name, title, change in (
        ("leaky-0.01", "leaky ReLU of slope 0.01", _leaky(0.01)),  # torch.nn.LeakyReLU, jax.nn.leaky_relu
        ("leaky-0.05", "leaky ReLU of slope 0.05", _leaky(0.05)),
        ("leaky-0.1", "leaky ReLU of slope 0.1", _leaky(0.1)),  # darknet, src/activations.h
        ("leaky-0.2", "leaky ReLU of slope 0.2", _leaky(0.2)),  # tf.nn.leaky_relu
        ("leaky-0.25", "PReLU of slope 0.25", _leaky(0.25)),  # torch.nn.PReLU's initial slope
        ("leaky-0.3", "leaky ReLU of slope 0.3", _leaky(0.3)),  # keras.layers.LeakyReLU
        ("absolute", "the absolute value", np.abs),
        ("6", "ReLU6", lambda x: np.clip(x, 0, 6)),
        ("elu", "ELU", _elu),
        ("selu", "SELU", lambda x: SELU[0] * np.where(x > 0, x, SELU[1] * _elu(x))),
        ("gelu", "GELU", lambda x: x * special.ndtr(x)),
        ("gelu-tanh", "GELU by its tanh approximation", _gelu_tanh),  # jax.nn.gelu
        ("silu", "SiLU (swish)", lambda x: x * special.expit(x)),
        ("hard-swish", "hard-swish", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
        ("mish", "Mish", lambda x: x * np.tanh(np.logaddexp(x, 0))),
        ("softplus", "softplus", lambda x: np.logaddexp(x, 0)),
        ("sigmoid", "sigmoid", special.expit),
        ("tanh", "tanh", np.tanh),
    )
)

# Sums of two branches.


def _weighted(main: float, shortcut: float) -> Function:
    return lambda layer, inputs, tensors: main * inputs[0] + shortcut * inputs[1]


TWO_BRANCHES = each(Add)
HALF_POWER = float(np.sqrt(0.5))

SCALINGS = tuple(
    Fault(f"sum-{name}", f"{{site}} {does}", "every block", TWO_BRANCHES, _function(_weighted(*factors)), "function", citation=citation)
    for name, does, factors, citation in (
        (
            "block-missing",
            "is the shortcut alone: the block is left out",
            (0.0, 1.0),
            Citation("youwayx/resnet-tf#3", "resnet-20 doesn't have 20 layers"),
        ),
        ("main-0.1", "adds a tenth of the branch to the shortcut", (0.1, 1.0), None),  # Szegedy et al., arXiv 1602.07261, section 3.3
        ("main-0.2", "adds a fifth of the branch to the shortcut", (0.2, 1.0), None),  # likewise, and Wang et al., arXiv 1809.00219
        ("main-0.3", "adds three tenths of the branch to the shortcut", (0.3, 1.0), None),  # Szegedy et al., likewise
        ("main-half", "adds half of the branch to the shortcut", (0.5, 1.0), None),
        ("main-twice", "adds the branch twice to the shortcut", (2.0, 1.0), None),
        ("main-subtracted", "subtracts the branch from the shortcut", (-1.0, 1.0), None),
        ("shortcut-half", "adds half of the shortcut", (1.0, 0.5), None),
        ("shortcut-subtracted", "subtracts the shortcut from the branch", (1.0, -1.0), None),
        ("mean", "averages branch and shortcut instead of adding them", (0.5, 0.5), None),
        ("root-half", "divides the sum of branch and shortcut by the root of 2", (HALF_POWER, HALF_POWER), None),
    )
)

# Blocks.

BLOCKS = (
    Fault(
        "block-twice",
        "the block of {site} is applied twice",
        "every block with an identity shortcut",
        lambda model: tuple((next(layers((block,))).name,) for block in blocks(model) if (block.merge.name,) in IDENTITY(model)),
        doubled,
        reach="one",
    ),
)

# Tensors of another layer of the same shapes.


def _siblings(kind: type[Any]) -> Callable[[ModelSpec], tuple[Group, ...]]:
    """Every ordered pair of layers whose tensors have the same shapes."""

    def find(model: ModelSpec) -> tuple[Group, ...]:
        members = [layer for layer in layers(model.body) if isinstance(layer, kind)]
        return tuple((one.name, two.name) for one in members for two in members if one is not two and one.tensors() == two.tensors())

    return find


def _taken(*leaves: str) -> Inject:
    def inject(case: Case, names: Group) -> Case:
        mine, theirs = names
        return with_tensors(case, {f"{mine}.{leaf}": case.weights[f"{theirs}.{leaf}"] for leaf in leaves})

    return inject


BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
LEAVES = (("gamma", "weight"), ("beta", "bias"), ("running mean", "running_mean"), ("running variance", "running_var"))

SIBLINGS = (
    Fault(
        "norm-of-sibling",
        "{site} has the tensors of {source}",
        "every batch norm",
        _siblings(BatchNorm2d),
        _taken(*BATCH_NORM),
        "weights",
        reads=True,
        citation=Citation("dreamquark-ai/tabnet#76", "Bugfix/shared layers"),
    ),
    Fault(
        "kernel-of-sibling",
        "{site} has the kernels of {source}",
        "every convolution",
        _siblings(Conv2d),
        _taken("weight"),
        "weights",
        reads=True,
    ),
    *(
        Fault(
            f"{leaf}-of-sibling",
            f"{{site}} has the {title} of {{source}}",
            "every batch norm",
            _siblings(BatchNorm2d),
            _taken(leaf),
            "weights",
            reads=True,
        )
        for title, leaf in LEAVES
    ),
)

# Epsilons, and what the difference from the mean is divided by.

EPSILONS = tuple(
    Fault(
        f"eps-{name}",
        f"{{site}} has an epsilon of {name} instead of 1e-5",
        "every batch norm",
        NORM,
        lambda case, names, value=float(name): relayered(case, names, eps=value),  # type: ignore[misc]
    )
    for name in (
        "1e-4",  # lasagne.layers.BatchNormLayer
        "1e-7",  # keras.config.epsilon
        "5e-5",
        "1e-2",
    )
)


def _dividing(power: float) -> Inject:
    """By (variance + epsilon) to this power instead of by its root."""
    return variances(lambda variance, eps: (variance + eps) ** (2 * power), TINY)


DIVISORS = tuple(
    Fault(f"norm-{name}", f"{{site}} {does} instead of dividing by its root", "every batch norm", NORM, _dividing(power), citation=citation)
    for name, does, power, citation in (
        ("variance", "divides by variance plus epsilon", 1.0, None),
        (
            "squared",
            "divides by the square of variance plus epsilon",
            2.0,
            Citation("jax-ml/jax#442", "`stax.BatchNorm` incorrect normalization"),
        ),
        ("times", "multiplies by the root of variance plus epsilon", -0.5, None),
        ("undivided", "takes off the mean and does not divide", 0.0, None),
    )
)

# Images and kernels turned and mirrored: the symmetries of the square.

SYMMETRIES: Mapping[str, tuple[str, Change, Citation | None]] = {
    "90": ("turned by 90 degrees to the left", lambda x: np.rot90(x, 1, (2, 3)), None),
    "180": ("turned by 180 degrees", lambda x: x[:, :, ::-1, ::-1], None),
    "270": ("turned by 90 degrees to the right", lambda x: np.rot90(x, -1, (2, 3)), None),
    "mirrored": (
        "mirrored left to right",
        lambda x: x[..., ::-1],
        Citation("quic/sense#107", "[FIX] Frame flip in pre-processing causing left/right confusion"),
    ),
    "upside-down": (
        "upside down",
        lambda x: x[:, :, ::-1],
        Citation("ultralytics/yolov5#5096", "I made a small bug fix to the classifier branch and now everything works correctly"),
    ),
    "antitransposed": ("mirrored along the other diagonal", lambda x: x[:, :, ::-1, ::-1].swapaxes(2, 3), None),
}
"""All but the transpose, which stands in ``INFERENCE``."""

TURNED_IMAGES = tuple(
    Fault(
        f"images-{name}",
        f"{{site}} is given images {how}",
        "the first convolution",
        first_convolution,
        of_images(change),
        "images",
        citation=citation,
    )
    for name, (how, change, citation) in SYMMETRIES.items()
)

TURNED_KERNELS = tuple(
    Fault(
        f"kernel-{name}",
        f"{{site}} has its kernels {how}",
        "every convolution with a kernel above 1x1",
        KERNEL,
        _leaf("weight", change),
        "weights",
    )
    for name, (how, change, _) in SYMMETRIES.items()
    if name != "180"  # convolution for cross-correlation, in INFERENCE
)

# Channels of the images, and preprocessing.


def _in_order(order: str) -> Change:
    channels = ["RGB".index(letter) for letter in order]
    return lambda images: images[:, channels]


ORDERS = tuple(
    Fault(
        f"images-{order.lower()}",
        f"{{site}} is given {order} instead of RGB",
        "the first convolution",
        lambda model: first_convolution(model) if model.input_chw[0] == 3 else (),
        of_images(_in_order(order)),
        "images",
    )
    for order in ("RBG", "GRB", "GBR", "BRG")
)

LUMA = np.array([0.299, 0.587, 0.114])[:, None, None]
"""ITU-R BT.601, as Pillow's mode L and OpenCV's grey."""

CAFFE_MEAN = np.array([103.939, 116.779, 123.68])[:, None, None]
"""Of B, G and R on 0..255: keras.applications.imagenet_utils, mode "caffe"."""

PREPROCESSING = (
    Fault(
        "images-grey",
        "{site} is given grey pixels",
        "the first convolution",
        photographs,
        of_pixels(lambda pixels: (np.sum(pixels * LUMA, 1, keepdims=True) - MEAN) / STD),
        "images",
    ),
    Fault(
        "images-bgr-before",
        "{site} is given BGR less the means of RGB, over the deviations of RGB",
        "the first convolution",
        photographs,
        of_pixels(lambda pixels: (pixels[:, ::-1] - MEAN) / STD),
        "images",
    ),
    Fault(
        "images-caffe",
        "{site} is given BGR on 0..255 less the means: Caffe's preprocessing",
        "the first convolution",
        photographs,
        of_pixels(lambda pixels: pixels[:, ::-1] * 255 - CAFFE_MEAN),
        "images",
        citation=Citation("keras-team/keras#10279", "'preprocess_input' defaults to 'caffe' rather than 'tf'"),
    ),
    Fault(
        "images-raw",
        "{site} is given pixels on 0..1, not normalised",
        "the first convolution",
        photographs,
        of_pixels(lambda pixels: pixels),
        "images",
    ),
    Fault(
        "images-normalised-twice",
        "{site} is given pixels that were normalised twice",
        "the first convolution",
        photographs,
        of_pixels(lambda pixels: ((pixels - MEAN) / STD - MEAN) / STD),
        "images",
    ),
)

# Pools.


def _average_of_what_is_there(layer: Layer, inputs: tuple[Array, ...], tensors: Mapping[str, Array]) -> Array:
    """The mean over the window without its pads (count_include_pad=False)."""
    assert isinstance(layer, MaxPool2d)
    pad = layer.padding
    widths = ((0, 0), (0, 0), (pad.top, pad.bottom), (pad.left, pad.right))
    padded, there = np.pad(inputs[0], widths), np.pad(np.ones_like(inputs[0][:1, :1]), widths)
    total, count = (
        np.lib.stride_tricks.sliding_window_view(x, (layer.kernel, layer.kernel), (2, 3))[:, :, :: layer.stride, :: layer.stride].sum(
            (4, 5)
        )
        for x in (padded, there)
    )
    result: Array = total / count
    return result


POOLS = (
    Fault(
        "pool-ceil",
        "{site} rounds its output's size up, so maps are one row and column larger (57x57 for 56x56)",
        "the max-pool",
        POOL,
        lambda case, names: relayered(case, names, padding=Padding(1, 2, 1, 2)),
        citation=Citation("xxradon/PytorchToCaffe#4", "Verification Error On Resnet18"),
    ),
    Fault(
        "pool-average-there",
        "{site} averages, without its pads, instead of taking the maximum",
        "the max-pool",
        POOL,
        _function(_average_of_what_is_there),
        "function",
    ),
    Fault(
        "pool-skips",
        "{site} takes every second row and column instead of the maximum",
        "the max-pool",
        POOL,
        _function(lambda layer, inputs, tensors: inputs[0][:, :, ::2, ::2]),
        "function",
    ),
)

FLATTENINGS = tuple(
    Fault(
        f"flatten-{name}",
        f"{{site}} takes the map {does}",
        "the map before the linear layers",
        each(Flatten),
        _elementwise(lambda x, axes=axes: x.transpose(axes).reshape(len(x), -1)),  # type: ignore[misc]
        "function",
        citation=citation,
    )
    for name, does, axes, citation in (
        (
            "nhwc",
            "place by place instead of channel by channel: NHWC for NCHW",
            (0, 2, 3, 1),
            Citation("microsoft/MMdnn#250", "After TensorFlow->Caffe conversion, output after flatten layer permuted in a different way"),
        ),
        ("nwhc", "column by column, and place by place instead of channel by channel", (0, 3, 2, 1), None),
        ("ncwh", "column by column instead of row by row", (0, 1, 3, 2), None),
    )
)

HEADS = tuple(
    Fault(
        f"mean-{name}",
        f"{{site}} {does} instead of averaging",
        "the global mean",
        each(GlobalAvgPool2d),
        _elementwise(change),
        "function",
        citation=citation,
    )
    for name, does, change, citation in (
        (
            "as-maximum",
            "takes the maximum",
            lambda x: x.max((2, 3)),
            Citation("deeplearning4j/deeplearning4j#8981", "MAX Pooling instead of AVG Pooling in Resnet50 ?"),
        ),
        ("and-maximum", "takes the mean of average and maximum", lambda x: (x.mean((2, 3)) + x.max((2, 3))) / 2, None),
        ("as-corner", "takes the first row and column", lambda x: x[:, :, 0, 0], None),
        ("as-root", "takes the root of the mean square", lambda x: np.sqrt((x * x).mean((2, 3))), None),
    )
)

# Vectors read backwards, and lost.


def _backwards(axis: int) -> Change:
    return lambda tensor: np.flip(tensor, axis)


REVERSED = (
    *(
        Fault(
            f"{leaf}-reversed",
            f"{{site}} has its {title} in reverse order",
            "every batch norm",
            NORM,
            _leaf(leaf, _backwards(0)),
            "weights",
        )
        for title, leaf in LEAVES
    ),
    *(
        Fault(f"{id}-reversed", f"{{site}} has its {what} in reverse order", where, find, _leaf(leaf, _backwards(axis)), "weights")
        for id, what, where, find, leaf, axis in (
            ("outputs", "output channels", "every convolution", each(Conv2d), "weight", 0),
            ("inputs", "input channels", "every convolution", each(Conv2d, lambda layer: layer.in_channels > 3), "weight", 1),
            ("classifier-bias", "biases", "the classifier", CLASSIFIER, "bias", 0),
            ("classifier-rows", "rows of weights", "the classifier", CLASSIFIER, "weight", 0),
            ("classifier-columns", "columns of weights", "the classifier", CLASSIFIER, "weight", 1),
        )
    ),
    Fault(
        "classes-reversed",
        "{site} gives its logits in reverse order",
        "the classifier",
        last_layer,
        lambda case, names: case,
        "logits",
        output=lambda logits: logits[:, ::-1],
    ),
    Fault("mean-dropped", "{site} takes off no running mean", "every batch norm", NORM, _leaf("running_mean", np.zeros_like), "weights"),
    Fault("gamma-negated", "{site} has the sign of gamma wrong", "every batch norm", NORM, _leaf("weight", np.negative), "weights"),
    Fault(
        "classifier-bias-twice", "{site} adds its bias twice", "the classifier", CLASSIFIER, _leaf("bias", lambda bias: 2 * bias), "weights"
    ),
)

FAMILIES: tuple[Fault, ...] = (
    *PADDINGS,
    *ACTIVATIONS,
    *SCALINGS,
    *BLOCKS,
    *SIBLINGS,
    *EPSILONS,
    *DIVISORS,
    *TURNED_IMAGES,
    *TURNED_KERNELS,
    *ORDERS,
    *PREPROCESSING,
    *POOLS,
    *FLATTENINGS,
    *HEADS,
    *REVERSED,
)

CATALOGUE: tuple[Fault, ...] = (*INFERENCE, *FAMILIES)
"""All faults of inference; ids are unique."""
