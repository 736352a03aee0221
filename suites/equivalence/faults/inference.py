"""Faults of inference: what people have got wrong, or could, when they port a ResNet.

Citations are threads that were opened and read; a fault without one was found nowhere in public, only feared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from impls.oracle.forward import tensors_of
from impls.oracle.rounding import round_to
from impls.spec import (
    NO_PADDING,
    BatchNorm2d,
    Block,
    Concat,
    Conv2d,
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
    walk,
)
from suites.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from suites.equivalence.faults.fault import Array, Case, Citation, Fault, Group
from suites.equivalence.faults.surgery import (
    blocks,
    changed,
    each,
    entering,
    first_convolution,
    followed_by,
    helper,
    joins,
    last_layer,
    passed_on,
    per_channel,
    rejoined,
    relayered,
    rewired,
    swapped_with_next,
    with_images,
    with_tensors,
)

MEAN, STD = (np.array(each, np.float64)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))


def _is_strided(layer: Conv2d) -> bool:
    return layer.kernel == 3 and layer.stride == 2


def _has_kernel(layer: Conv2d) -> bool:
    return layer.kernel > 1


def _is_square(layer: Conv2d) -> bool:
    return layer.in_channels == layer.out_channels


STRIDED = each(Conv2d, _is_strided)
STEM = each(Conv2d, lambda layer: layer.kernel == 7)
POOL = each(MaxPool2d)
CEIL_MODE = each(MaxPool2d, lambda layer: layer.kernel == 3 and layer.padding == Padding(0, 1, 0, 1))
NORM = each(BatchNorm2d)
KERNEL = each(Conv2d, _has_kernel)
CLASSIFIER = each(Linear)
IDENTITY = joins(lambda block: len(block.branches) == 2 and not block.branches[1])
HAS_IDENTITY_OUTPUT = joins(lambda block: len(block.then) == 1 and isinstance(block.then[0], Relu))


def _padded(top: int, bottom: int) -> Callable[[Case, Group], Case]:
    return lambda case, names: relayered(case, names, padding=Padding(top, bottom, top, bottom))


def _bottlenecks(strided: str) -> Callable[[ModelSpec], tuple[Group, ...]]:
    """The first two convolutions of each bottleneck that strides in the one called ``strided``."""

    def find(model: ModelSpec) -> tuple[Group, ...]:
        convs = {layer.name: layer for layer in layers(model.body) if isinstance(layer, Conv2d)}
        prefixes = [name.removesuffix(".conv3") for name in convs if name.endswith(".conv3")]
        return tuple((f"{p}.conv1", f"{p}.conv2") for p in prefixes if convs[f"{p}.{strided}"].stride == 2)

    return find


def _stride_moved(case: Case, names: Group) -> Case:
    return rewired(case, {name: lambda layer: (dataclasses.replace(layer, stride=3 - layer.stride),) for name in names})


def _pool_of_zeros(case: Case, names: Group) -> Case:
    """The zeros are padded by a convolution that does nothing else, and the pool pads nothing."""
    name = names[0]
    pool = next(layer for layer in layers(case.model.body) if layer.name == name)
    assert isinstance(pool, MaxPool2d)
    pad, weight = per_channel(helper(name), entering(case, name)[1], 1, 1, pool.padding, 1.0)
    return with_tensors(rewired(case, {name: lambda layer: (pad, dataclasses.replace(layer, padding=NO_PADDING))}), weight)


def _average_for_maximum(case: Case, names: Group) -> Case:
    name = names[0]
    average, weight = per_channel(name, entering(case, name)[1], 3, 2, Padding.same_on_all_sides(1), np.full((3, 3), 1 / 9))
    return with_tensors(rewired(case, {name: lambda layer: (average,)}), weight)


def _branches_reversed(block: Block) -> Block:
    return dataclasses.replace(block, branches=block.branches[::-1])


def _scaled_before(factor: float) -> Callable[[Case, Group], Case]:
    """What enters a layer is multiplied."""

    def inject(case: Case, names: Group) -> Case:
        name = names[0]
        scale, weight = per_channel(helper(name), entering(case, name)[1], 1, 1, NO_PADDING, factor)
        return with_tensors(rewired(case, {name: _behind(scale)}), weight)

    return inject


def _mean_over_padding(case: Case, names: Group) -> Case:
    """The mean of a map that was padded with a row and a column of zeros."""
    height, width = entering(case, names[0])[2:]
    return _scaled_before(height * width / ((height + 1) * (width + 1)))(case, names)


def _sum_for_mean(case: Case, names: Group) -> Case:
    height, width = entering(case, names[0])[2:]
    return _scaled_before(height * width)(case, names)


def _behind(first: Layer) -> Callable[[Any], tuple[Node, ...]]:
    """A layer with another before it."""
    return lambda layer: (first, layer)


def _odd_phase(case: Case, names: Group) -> Case:
    """Everything is shifted by one before the shortcut takes every second."""
    shift = np.zeros((3, 3))
    shift[2, 2] = 1.0
    for name in names:
        move, weight = per_channel(helper(name), entering(case, name)[1], 3, 1, Padding.same_on_all_sides(1), shift)
        case = with_tensors(rewired(case, {name: _behind(move)}), weight)
    return case


def _averaged_shortcut(case: Case, names: Group) -> Case:
    for name in names:
        mean, weight = per_channel(helper(name), entering(case, name)[1], 2, 2, NO_PADDING, np.full((2, 2), 0.25))
        case = with_tensors(rewired(relayered(case, (name,), stride=1), {name: _behind(mean)}), weight)
    return case


def _pad_channels_behind(case: Case, names: Group) -> Case:
    def behind(layer: PadShortcut) -> tuple[Node, ...]:
        return (dataclasses.replace(layer, channels_before=0, channels_after=layer.channels_before + layer.channels_after),)

    return rewired(case, dict.fromkeys(names, behind))


def _relu_before_sum(block: Block) -> Block:
    main = (*block.branches[0], Relu(helper(block.merge.name)))
    nothing = passed_on(block.then[0])[0]
    return dataclasses.replace(block, branches=(main, *block.branches[1:]), then=(nothing,))  # type: ignore[arg-type]


def _without_shortcut(block: Block) -> Block:
    return dataclasses.replace(block, branches=block.branches[:1])


def _shortcut_twice(block: Block) -> Block:
    return dataclasses.replace(block, branches=(*block.branches, ()))


def _second_reads_input(case: Case, names: Group) -> Case:
    """The first convolution's result is multiplied by zero before the sum, and the second starts from the block's input."""

    def rewire(block: Block) -> Block:
        main = block.branches[0]
        cut = next(index for index, node in enumerate(main) if node.name == f"{block.name}.conv2")
        dead, weight = per_channel(helper(block.name), channels, 1, 1, NO_PADDING, 0.0)
        tensors.update(weight)
        return dataclasses.replace(block, branches=((*main[:cut], dead), main[cut:], *block.branches[1:]))

    tensors: dict[str, Array] = {}
    block_names = {f"{block.name}.conv2": block.merge.name for block in blocks(case.model)}
    channels = entering(case, names[0])[1]
    return with_tensors(rejoined(case, {block_names[name] for name in names}, rewire), tensors)


def _second_convolutions(model: ModelSpec) -> tuple[Group, ...]:
    """The second convolutions of basic blocks that keep their input's shape."""
    convs = {layer.name: layer for layer in layers(model.body) if isinstance(layer, Conv2d)}
    basic = [block for block in blocks(model) if not block.branches[1] and f"{block.name}.conv3" not in convs]
    widths = {convs[f"{block.name}.conv2"].out_channels for block in basic}
    return tuple((f"{block.name}.conv2",) for block in basic if convs[f"{block.name}.conv2"].out_channels == min(widths))


def _dilated(case: Case, names: Group) -> Case:
    def dilate(layer: Conv2d) -> tuple[Node, ...]:
        return (dataclasses.replace(layer, kernel=5, padding=Padding.same_on_all_sides(2)),)

    for name in names:
        weight = case.weights[f"{name}.weight"]
        spread = np.zeros((*weight.shape[:2], 5, 5))
        spread[:, :, ::2, ::2] = weight
        case = with_tensors(rewired(case, {name: dilate}), {f"{name}.weight": spread})
    return case


def _in_two_groups(weight: Array) -> Array:
    """A convolution of two groups sees half of its inputs."""
    mask = np.zeros(weight.shape[:2])
    half = tuple(size // 2 for size in weight.shape[:2])
    mask[: half[0], : half[1]] = mask[half[0] :, half[1] :] = 1.0
    result: Array = weight * mask[:, :, None, None]
    return result


def _with_epsilon(value: float) -> Callable[[Case, Group], Case]:
    return lambda case, names: relayered(case, names, eps=value)


TINY = 1e-30
"""An epsilon that no sum with a variance notices: the spec takes none that is 0."""


def variances(change: Callable[[Array, float], Array], eps: float | None = None) -> Callable[[Case, Group], Case]:
    """Running variances made anew from the old and epsilon; said through the weights, but no fault of them."""

    def inject(case: Case, names: Group) -> Case:
        epsilons = {layer.name: layer.eps for layer in layers(case.model.body) if isinstance(layer, BatchNorm2d)}
        made = {f"{name}.running_var": change(case.weights[f"{name}.running_var"].astype(np.float64), epsilons[name]) for name in names}
        case = with_tensors(case, made)
        return case if eps is None else relayered(case, names, eps=eps)

    return inject


def _leaves(*leaves: str, value: float) -> Callable[[Case, Group], Case]:
    """Tensors of batch norms filled with one number."""

    def inject(case: Case, names: Group) -> Case:
        return with_tensors(case, {f"{n}.{leaf}": np.full_like(case.weights[f"{n}.{leaf}"], value) for n in names for leaf in leaves})

    return inject


def _exchanged(one: str, other: str) -> Callable[[Case, Group], Case]:
    def inject(case: Case, names: Group) -> Case:
        pairs = [(f"{name}.{one}", f"{name}.{other}") for name in names]
        return with_tensors(case, {a: case.weights[b] for pair in pairs for a, b in (pair, pair[::-1])})

    return inject


def _identity_norm(case: Case, names: Group) -> Case:
    """A batch norm left out: as one that changes nothing."""
    case = relayered(case, names, eps=TINY)
    ones = {f"{name}.{leaf}": np.ones_like(case.weights[f"{name}.{leaf}"]) for name in names for leaf in ("weight", "running_var")}
    zeros = {f"{name}.{leaf}": np.zeros_like(case.weights[f"{name}.{leaf}"]) for name in names for leaf in ("bias", "running_mean")}
    return with_tensors(case, ones | zeros)


def _no_offset(case: Case, names: Group) -> Case:
    """Mean and beta lost together, as where only the scale is folded."""
    return _leaves("bias", "running_mean", value=0.0)(case, names)


def _batch_statistics(case: Case, names: Group) -> Case:
    """Every named batch norm normalises by the statistics of the batch that it sees."""
    tensors: dict[str, Array] = {}

    def apply(layer: Layer, *inputs: Array) -> Array:
        own = tensors_of(layer, case.weights)
        if layer.name in names:
            x = inputs[0]
            found = {"running_mean": x.mean((0, 2, 3)), "running_var": x.var((0, 2, 3))}
            tensors.update({f"{layer.name}.{leaf}": value for leaf, value in found.items()})
            own |= found
        return case.evaluate(layer, inputs, own)

    walk(case.model.body, apply, case.images.astype(np.float64))
    return with_tensors(case, tensors)


def _like_neighbours(model: ModelSpec) -> tuple[Group, ...]:
    """Pairs of consecutive blocks of equal shapes: their first convolutions."""
    convs = {layer.name: layer for layer in layers(model.body) if isinstance(layer, Conv2d)}

    def form(block: Block) -> list[Any]:
        return [dataclasses.replace(convs[name], name="") for name in convs if name.startswith(f"{block.name}.")]

    found = blocks(model)
    return tuple((f"{a.name}.conv1", f"{b.name}.conv1") for a, b in pairwise(found) if form(a) == form(b))


def _blocks_swapped(case: Case, names: Group) -> Case:
    one, other = (name.removesuffix("conv1") for name in names)
    pairs = [(name, name.replace(one, other, 1)) for name in case.weights if name.startswith(one)]
    return with_tensors(case, {a: case.weights[b] for pair in pairs for a, b in (pair, pair[::-1])})


def _first_weight(change: Callable[[np.float32], np.float32]) -> Callable[[Case, Group], Case]:
    """One weight changed: the first of the tensor that is not zero."""

    def inject(case: Case, names: Group) -> Case:
        weight = case.weights[f"{names[0]}.weight"].copy()
        flat = weight.reshape(-1)
        place = np.flatnonzero(flat)[0]
        flat[place] = change(flat[place])
        return with_tensors(case, {f"{names[0]}.weight": weight})

    return inject


def _rounded(precision: str) -> Callable[[Case, Group], Case]:
    """Every tensor rounded."""
    return lambda case, names: with_tensors(case, {name: round_to(tensor, precision) for name, tensor in case.weights.items()})


HOLDERS = each(object, lambda layer: bool(layer.tensors()))


def _kernels(change: Callable[[Array], Array]) -> Callable[[Case, Group], Case]:
    return lambda case, names: changed(case, names, "weight", change)


def _first_input_dropped(weight: Array) -> Array:
    dropped = weight.copy()
    dropped[:, 0] = 0.0
    return dropped


def _first_output_dropped(weight: Array) -> Array:
    dropped = weight.copy()
    dropped[0] = 0.0
    return dropped


def _two_outputs_swapped(weight: Array) -> Array:
    swapped = weight.copy()
    swapped[[0, 1]] = weight[[1, 0]]
    return swapped


def of_images(change: Callable[[Array], Array]) -> Callable[[Case, Group], Case]:
    """A fault of the images, (N, C, H, W) float64."""
    return lambda case, names: with_images(case, change)


def photographs(model: ModelSpec) -> tuple[Group, ...]:
    """The first convolution of nets whose images were normalised with ImageNet's statistics."""
    return first_convolution(model) if model.input_chw[1] == 224 else ()


def of_pixels(change: Callable[[Array], Array]) -> Callable[[Case, Group], Case]:
    """A fault of the preprocessing, as seen from pixels on 0..1; what is given was normalised with ImageNet's statistics."""
    return of_images(lambda images: change(images * STD + MEAN))


def _shifted(images: Array) -> Array:
    return np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1)))[:, :, 1:, 1:]


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Array = powers / powers.sum(axis=1, keepdims=True)
    return result


def _unchanged(case: Case, names: Group) -> Case:
    return case


INFERENCE: tuple[Fault, ...] = (
    # Padding, strides and pools.
    Fault(
        "conv-same",
        "{site} pads (0, 1) instead of (1, 1): SAME padding",
        "every strided 3x3 convolution",
        STRIDED,
        _padded(0, 1),
        citation=Citation("keras-team/keras#16363", "implemented resnet18 and resnet34"),
    ),
    Fault(
        "conv-same-lower",
        "{site} pads (1, 0) instead of (1, 1): SAME padding on the wrong side",
        "every strided 3x3 convolution",
        STRIDED,
        _padded(1, 0),
        citation=Citation("root-project/root#21793", "[tmva][sofie] fix SAME_UPPER/SAME_LOWER autopad padding formula"),
        reach="all",
        equivalent="at an even size the last window ends on the last row and column, so (1, 1) never reads its pad behind them",
    ),
    Fault("conv-shifted", "{site} pads (2, 0) instead of (1, 1)", "every strided 3x3 convolution", STRIDED, _padded(2, 0)),
    Fault(
        "stem-same",
        "{site} pads (2, 3) instead of (3, 3): SAME padding",
        "the stem",
        STEM,
        _padded(2, 3),
        citation=Citation("taehoonlee/tensornets#25", "Notes for different padding behaviors when `stride=2, padding='SAME'`"),
    ),
    Fault(
        "pool-same",
        "{site} pads (0, 1) instead of (1, 1): SAME padding",
        "the max-pool",
        POOL,
        _padded(0, 1),
        citation=Citation("mlcommons/algorithmic-efficiency#248", "Jax ResNet Maxpool Padding"),
    ),
    Fault(
        "pool-valid",
        "{site} pads nothing, so maps are one row and column smaller (55x55 for 56x56)",
        "the max-pool",
        POOL,
        _padded(0, 0),
        citation=Citation("google/trax#260", "Possible padding bug in Resnet50"),
    ),
    Fault(
        "pool-2x2",
        "{site} takes a 2x2 window instead of 3x3",
        "the max-pool",
        POOL,
        lambda case, names: relayered(case, names, kernel=2, padding=NO_PADDING),
        citation=Citation("adobe/antialiased-cnns#5", "About kernel_size of initial max pooing for Resnet"),
    ),
    Fault("pool-average", "{site} averages instead of taking the maximum", "the max-pool", POOL, _average_for_maximum),
    Fault(
        "pool-zero",
        "{site} pads with zeros instead of minus infinity",
        "the max-pool",
        POOL,
        _pool_of_zeros,
        citation=Citation("distdl/distdl#195", "New distributed max pool does not use correct default padding"),
        equivalent="a ReLU comes before it, so nothing that it compares is below zero and every window holds something that is no pad",
    ),
    Fault(
        "pool-floor",
        "{site} leaves out ceil mode, so maps are one row and column smaller (55x55 for 56x56)",
        "every 3x3 max-pool in ceil mode",
        CEIL_MODE,
        _padded(0, 0),
        citation=Citation("BVLC/caffe#4781", "Caffe Pooling Layer Output Volume Calculation"),
    ),
    Fault(
        "pool-ceil-before",
        "{site} pads the row and column of ceil mode before the map instead of behind it",
        "every 3x3 max-pool in ceil mode",
        CEIL_MODE,
        _padded(1, 0),
    ),
    Fault(
        "stride-v1",
        "{site} strides in the first 1x1 instead of in the 3x3: v1 for v1.5",
        "every downsampling bottleneck",
        _bottlenecks("conv2"),
        _stride_moved,
        citation=Citation("FluxML/Metalhead.jl#114", "ResNet: apply stride 2 to conv_bn((3,3)) as in PyTorch"),
    ),
    Fault(
        "stride-v1.5",
        "{site} strides in the 3x3 instead of in the first 1x1: v1.5 for v1",
        "every downsampling bottleneck",
        _bottlenecks("conv1"),
        _stride_moved,
        citation=Citation("google/flax#3275", "ResNetV1 implementation is actually ResNetV1.5"),
    ),
    Fault(
        "conv-dilated",
        "{site} is dilated by 2",
        "every unstrided 3x3 convolution",
        each(Conv2d, lambda layer: layer.kernel == 3 and layer.stride == 1),
        _dilated,
        reach="one",
        citation=Citation("tensorflow/tfjs-converter#363", "Fix bug when forwarding dilations in conv2d to tfjs"),
    ),
    Fault(
        "conv-grouped",
        "{site} runs in two groups",
        "every 3x3 convolution",
        each(Conv2d, lambda x: x.kernel == 3 and x.in_channels > 3),
        _kernels(_in_two_groups),
        reach="one",
    ),
    # Epsilon.
    Fault(
        "eps-1e-3",
        "{site} has an epsilon of 1e-3 instead of 1e-5",
        "every batch norm",
        NORM,
        _with_epsilon(1e-3),
        citation=Citation("itijyou/ademxapp#4", "Imagenet doesn't give 4.7 Top5"),
    ),
    Fault(
        "eps-1.001e-5",
        "{site} has an epsilon of 1.001e-5 instead of 1e-5, as keras.applications",
        "every batch norm",
        NORM,
        _with_epsilon(1.001e-5),
    ),
    Fault(
        "eps-2e-5",
        "{site} has an epsilon of 2e-5 instead of 1e-5",
        "every batch norm",
        NORM,
        _with_epsilon(2e-5),
        citation=Citation("chainer/chainer#4858", "[chainer.exporters.caffe] Export eps param of BatchNormalization"),
    ),
    Fault(
        "eps-1e-6",
        "{site} has an epsilon of 1e-6 instead of 1e-5",
        "every batch norm",
        NORM,
        _with_epsilon(1e-6),
        citation=Citation("ceccocats/tkDNN#167", "different BN epsilon from the forked darknet"),
    ),
    Fault(
        "eps-none",
        "{site} adds no epsilon",
        "every batch norm",
        NORM,
        _with_epsilon(TINY),
        citation=Citation("chainer/chainer#2214", "Add eps to the variance in fixed_batch_normalization"),
    ),
    Fault(
        "eps-outside",
        "{site} adds epsilon to the standard deviation instead of to the variance",
        "every batch norm",
        NORM,
        variances(lambda variance, eps: (np.sqrt(variance) + eps) ** 2, TINY),
    ),
    Fault(
        "eps-maximum",
        "{site} takes the larger of variance and epsilon instead of their sum",
        "every batch norm",
        NORM,
        variances(np.maximum, TINY),
        citation=Citation(
            "vacancy/Synchronized-BatchNorm-PyTorch#43",
            'a question about the highlight "use sqrt(max(var, eps)) instead of sqrt(var + eps)"',
        ),
    ),
    # Activations and wiring.
    Fault(
        "relu-missing-stem",
        "{site} is missing behind the stem",
        "the first ReLU",
        lambda model: each(Relu)(model)[:1],
        lambda case, names: rewired(case, dict.fromkeys(names, passed_on)),
        citation=Citation("google/flax#343", "ResNet v1 is missing ReLU in root-block"),
    ),
    Fault(
        "relu-missing-inside",
        "{site} is missing",
        "every ReLU inside a block",
        lambda model: tuple(group for group in each(Relu)(model)[1:] if not group[0].endswith(".out")),
        lambda case, names: rewired(case, dict.fromkeys(names, passed_on)),
        reach="one",
    ),
    Fault(
        "relu-missing-sum",
        "{site} is missing: no ReLU after the sum",
        "every ReLU after a sum",
        lambda model: tuple((block.then[0].name,) for block in blocks(model) if block.then),
        lambda case, names: rewired(case, dict.fromkeys(names, passed_on)),
        citation=Citation("D-X-Y/AutoDL-Projects#65", "[TAS] Question about resnet basicblock architecture."),
    ),
    Fault(
        "relu-before-sum",
        "{site} adds the shortcut after the ReLU instead of before it",
        "every block",
        HAS_IDENTITY_OUTPUT,
        lambda case, names: rejoined(case, names, _relu_before_sum),
        citation=Citation("fastai/fastbook#1", "ResNet block should add before the last activation function"),
    ),
    Fault(
        "relu-twice",
        "{site} is applied twice",
        "every ReLU",
        each(Relu),
        lambda case, names: rewired(case, {name: lambda layer: (Relu(helper(layer.name)), layer) for name in names}),
        reach="all",
        citation=Citation("keras-team/keras-io#1119", "Problems with the image classification example"),
        equivalent="max(max(x, 0), 0) is max(x, 0)",
    ),
    Fault(
        "norm-after-relu",
        "{site} stands behind its ReLU instead of before it",
        "every batch norm with a ReLU behind it",
        followed_by(BatchNorm2d, Relu),
        swapped_with_next,
        citation=Citation("srebuffi/iCaRL#5", "batchnorm is applied after relu in the tensorflow implementation of ResNet18"),
    ),
    Fault(
        "shortcut-missing",
        "{site} has no shortcut to add",
        "every block with an identity shortcut",
        IDENTITY,
        lambda case, names: rejoined(case, names, _without_shortcut),
    ),
    Fault(
        "shortcut-twice",
        "{site} adds its shortcut twice",
        "every block with an identity shortcut",
        IDENTITY,
        lambda case, names: rejoined(case, names, _shortcut_twice),
        citation=Citation("yakhyo/darknet-pytorch#2", "Mistake of ResidualBlock()"),
    ),
    Fault(
        "shortcut-first",
        "{site} adds the branch to the shortcut instead of the shortcut to the branch",
        "every block with an identity shortcut",
        IDENTITY,
        lambda case, names: rejoined(case, names, _branches_reversed),
        reach="all",
        equivalent="IEEE 754 addition commutes, bit for bit",
    ),
    Fault(
        "second-reads-input",
        "{site} reads the block's input instead of the first convolution's result",
        "every second convolution",
        _second_convolutions,
        _second_reads_input,
        reach="one",
        citation=Citation("shaohua0116/Multiview2Novelview#11", "implementation of residual block"),
    ),
    Fault(
        "shortcut-odd",
        "{site} takes every second row and column from the second instead of from the first",
        "every strided shortcut",
        lambda model: (*each(PadShortcut)(model), *each(Conv2d, lambda layer: layer.kernel == 1 and layer.stride == 2)(model)),
        _odd_phase,
    ),
    Fault(
        "shortcut-averaged",
        "{site} averages 2x2 instead of taking every second",
        "every option-A shortcut",
        each(PadShortcut),
        _averaged_shortcut,
    ),
    Fault(
        "shortcut-pad-behind",
        "{site} puts all its zero channels behind the others instead of half on each side",
        "every option-A shortcut",
        each(PadShortcut),
        _pad_channels_behind,
        citation=Citation("keras-team/keras#2608", "Zero-padding for ResNet shortcut connections when channel number increase"),
    ),
    Fault(
        "mean-as-sum",
        "{site} sums instead of averaging",
        "the global mean",
        each(GlobalAvgPool2d),
        _sum_for_mean,
    ),
    Fault(
        "mean-over-padding",
        "{site} counts a padded row and column in its divisor",
        "the global mean",
        each(GlobalAvgPool2d),
        _mean_over_padding,
        citation=Citation(
            "microsoft/onnxruntime#16203", "`count_include_pad` calculates the the most right output with dividing it by kernel size"
        ),
    ),
    Fault(
        "concat-reversed",
        "{site} takes the branches in the reverse order",
        "every concatenation",
        joins(lambda block: isinstance(block.merge, Concat)),
        lambda case, names: rejoined(case, names, _branches_reversed),
        citation=Citation("PINTO0309/openvino2tensorflow#48", "Incorrect connection order in Concat"),
    ),
    Fault(
        "softmax",
        "{site} gives probabilities instead of logits",
        "the classifier",
        last_layer,
        _unchanged,
        "logits",
        output=_softmax,
        citation=Citation("NVIDIA/DeepLearningExamples#468", "[Unet/tensorflow2] loss function with softmax output"),
    ),
    Fault(
        "classes-shifted",
        "{site} numbers its classes from one: a background class comes first",
        "the classifier",
        last_layer,
        _unchanged,
        "logits",
        output=lambda logits: np.roll(logits, 1, axis=1),
        citation=Citation("tensorflow/tpu#507", "Fix bug in mapping labels"),
    ),
    # Batch norm's tensors.
    Fault(
        "mean-for-beta",
        "{site} has running mean and beta exchanged",
        "every batch norm",
        NORM,
        _exchanged("bias", "running_mean"),
        "weights",
        citation=Citation("onnx/keras-onnx#213", "Fix Keras->ONNX shape and BatchNorm conversion"),
    ),
    Fault(
        "gamma-for-variance",
        "{site} has gamma and running variance exchanged",
        "every batch norm",
        NORM,
        _exchanged("weight", "running_var"),
        "weights",
    ),
    Fault(
        "gamma-one",
        "{site} takes gamma as 1 (fix_gamma)",
        "every batch norm",
        NORM,
        _leaves("weight", value=1.0),
        "weights",
        citation=Citation("apache/mxnet#15717", "convert mxnet to pytorch: different inference result from batchnorm layer"),
    ),
    Fault("beta-dropped", "{site} has lost its beta", "every batch norm", NORM, _leaves("bias", value=0.0), "weights"),
    Fault(
        "offset-dropped",
        "{site} is folded without its offset: only the scale arrives",
        "every batch norm",
        NORM,
        _no_offset,
        "weights",
        citation=Citation("jiazhihao/TASO#47", "fix fuse conv batchnorm subsitition bug"),
    ),
    Fault(
        "statistics-fresh",
        "{site} has fresh statistics, mean 0 and variance 1: the buffers were not loaded",
        "every batch norm",
        NORM,
        lambda case, names: _leaves("running_var", value=1.0)(_leaves("running_mean", value=0.0)(case, names), names),
        "weights",
        citation=Citation("torch/nn#1165", "A Pitfall in Using Batch Normalization Layers"),
    ),
    Fault(
        "variance-biased",
        "{site} stores the biased variance, (n - 1) / n of the unbiased with n = 98",
        "every batch norm",
        NORM,
        lambda case, names: changed(case, names, "running_var", lambda variance: variance * 97 / 98),
        "weights",
        citation=Citation("ml-explore/mlx#3817", "Fix BatchNorm running variance estimator"),
    ),
    Fault(
        "variance-as-deviation",
        "{site} holds the standard deviation where the variance belongs",
        "every batch norm",
        NORM,
        lambda case, names: changed(case, names, "running_var", np.sqrt),
        "weights",
    ),
    Fault(
        "variance-plus-eps",
        "{site} holds the variance with epsilon already added: it counts twice",
        "every batch norm",
        NORM,
        variances(lambda variance, eps: variance + eps),
        "weights",
        citation=Citation("torch/nn#609", "Fix loading of old SpatialBatchNormalization modules"),
    ),
    Fault("norm-missing", "{site} is left out", "every batch norm", NORM, _identity_norm),
    Fault(
        "norm-in-training",
        "{site} normalises by the batch instead of by its running statistics: training mode",
        "every batch norm",
        NORM,
        _batch_statistics,
        citation=Citation(
            "microsoft/onnxruntime#26584", "Two (near) identical models with BatchNorm (train vs eval) give different results"
        ),
    ),
    Fault(
        "norm-momentum",
        "{site} has a momentum of 0.9 instead of 0.1",
        "every batch norm",
        NORM,
        lambda case, names: relayered(case, names, momentum=0.9),
        reach="all",
        citation=Citation("pytorch/vision#8250", "MaxVIT Model - BatchNorm momentum is incorrect"),
        equivalent="inference reads the running statistics and never updates them; in training it is no equivalent",
    ),
    # Kernels and the classifier.
    Fault(
        "kernel-transposed",
        "{site} has height and width of its kernels exchanged",
        "every convolution with a kernel above 1x1",
        KERNEL,
        _kernels(lambda weight: weight.swapaxes(2, 3)),
        "weights",
        citation=Citation("tgyg-jegli/tf_texture_net#1", "The weight is not transposed properly"),
    ),
    Fault(
        "kernel-flipped",
        "{site} has its kernels turned by 180 degrees: convolution for cross-correlation",
        "every convolution with a kernel above 1x1",
        KERNEL,
        _kernels(lambda weight: weight[:, :, ::-1, ::-1]),
        "weights",
        citation=Citation("keras-team/keras#3015", "Tensorflow/Theano inconsistency for convolutional2D on CPU (kernel flipping)"),
    ),
    Fault(
        "kernel-channels-transposed",
        "{site} has input and output channels of its kernels exchanged",
        "every convolution of as many outputs as inputs",
        each(Conv2d, _is_square),
        _kernels(lambda weight: weight.swapaxes(0, 1)),
        "weights",
        citation=Citation("apache/tvm#3562", "[TOPI][C++]conv2d_nchw mistake?"),
    ),
    Fault(
        "kernel-reshaped",
        "{site} reads HWIO bytes as OIHW: a reshape in place of a transpose",
        "every convolution",
        each(Conv2d),
        _kernels(lambda weight: weight.transpose(2, 3, 1, 0).reshape(weight.shape)),
        "weights",
    ),
    Fault(
        "input-dropped",
        "{site} has lost its first input channel",
        "every convolution",
        each(Conv2d),
        _kernels(_first_input_dropped),
        "weights",
        reach="one",
    ),
    Fault(
        "output-dropped",
        "{site} has lost its first output channel",
        "every convolution",
        each(Conv2d),
        _kernels(_first_output_dropped),
        "weights",
        reach="one",
    ),
    Fault(
        "outputs-swapped",
        "{site} has its first two output channels exchanged",
        "every convolution",
        each(Conv2d),
        _kernels(_two_outputs_swapped),
        "weights",
        reach="one",
    ),
    Fault(
        "kernel-negated",
        "{site} has the sign of its kernels wrong",
        "every convolution",
        each(Conv2d),
        _kernels(np.negative),
        "weights",
        reach="one",
    ),
    Fault(
        "classifier-bias-dropped",
        "{site} has lost its bias",
        "the classifier",
        CLASSIFIER,
        lambda case, names: changed(case, names, "bias", np.zeros_like),
        "weights",
    ),
    Fault(
        "classifier-reshaped",
        "{site} reads (in, out) bytes as (out, in): a reshape in place of a transpose",
        "the classifier",
        CLASSIFIER,
        _kernels(lambda weight: weight.T.reshape(weight.shape)),
        "weights",
    ),
    Fault(
        "blocks-swapped",
        "{site} has the weights of the next block and the next its: keys sorted as strings",
        "every block",
        _like_neighbours,
        _blocks_swapped,
        "weights",
        reach="one",
    ),
    Fault(
        "weights-bf16", "{site} has weights that were rounded to bfloat16", "every layer", HOLDERS, _rounded("bf16"), "weights", reach="all"
    ),
    Fault(
        "weights-fp16", "{site} has weights that were rounded to float16", "every layer", HOLDERS, _rounded("fp16"), "weights", reach="all"
    ),
    Fault(
        "weight-0.1-percent",
        "{site} has one weight 0.1 % too large",
        "every convolution",
        each(Conv2d),
        _first_weight(lambda w: np.float32(w * 1.001)),
        "weights",
        reach="one",
    ),
    Fault(
        "weight-1-ulp",
        "{site} has one weight that is one unit in the last place too large",
        "every convolution",
        each(Conv2d),
        _first_weight(lambda w: np.nextafter(w, np.float32(np.inf))),
        "weights",
        reach="one",
    ),
    # Images.
    Fault(
        "images-bgr",
        "{site} is given BGR instead of RGB",
        "the first convolution",
        first_convolution,
        of_images(lambda images: images[:, ::-1]),
        "images",
        citation=Citation(
            "tensorpack/tensorpack#176", "ilsvrc.py uses cv2.imread to read image. The preprocessing assumes images are in rgb."
        ),
    ),
    Fault(
        "images-256",
        "{site} is given pixels divided by 256 instead of 255",
        "the first convolution",
        photographs,
        of_pixels(lambda pixels: (pixels * 255 / 256 - MEAN) / STD),
        "images",
        citation=Citation("Daniil-Osokin/lightweight-human-pose-estimation.pytorch#140", "preprocessing and normalization"),
    ),
    Fault(
        "images-255-twice",
        "{site} is given pixels divided by 255 twice",
        "the first convolution",
        photographs,
        of_pixels(lambda pixels: (pixels / 255 - MEAN) / STD),
        "images",
        citation=Citation("magenta/magenta#925", "Fix the preprocessing of imagenet data"),
    ),
    Fault(
        "images-255-never",
        "{site} is given pixels from 0 to 255",
        "the first convolution",
        photographs,
        of_pixels(lambda pixels: (pixels * 255 - MEAN) / STD),
        "images",
    ),
    Fault(
        "images-minus-one-to-one",
        "{site} is given pixels scaled to -1..1 instead of by mean and deviation",
        "the first convolution",
        photographs,
        of_pixels(lambda pixels: 2 * pixels - 1),
        "images",
    ),
    Fault(
        "images-mean-order",
        "{site} is given pixels less the means of the channels in reverse order",
        "the first convolution",
        photographs,
        of_pixels(lambda pixels: (pixels - MEAN[::-1]) / STD),
        "images",
        citation=Citation("intel/BigDL#708", "ChannelNormalize bug?"),
    ),
    Fault(
        "images-no-deviation",
        "{site} is given pixels that were not divided by the standard deviation",
        "the first convolution",
        photographs,
        of_pixels(lambda pixels: pixels - MEAN),
        "images",
    ),
    Fault(
        "images-reshaped",
        "{site} is given NHWC bytes reshaped to NCHW instead of transposed",
        "the first convolution",
        first_convolution,
        of_images(lambda images: images.transpose(0, 2, 3, 1).reshape(images.shape)),
        "images",
        citation=Citation("nntrainer/nntrainer#697", "[tensorfilter] Bug fix of tranpose"),
    ),
    Fault(
        "images-transposed",
        "{site} is given images with rows and columns exchanged",
        "the first convolution",
        first_convolution,
        of_images(lambda images: images.swapaxes(2, 3)),
        "images",
    ),
    Fault(
        "images-shifted",
        "{site} is given images cropped one pixel too far",
        "the first convolution",
        first_convolution,
        of_images(_shifted),
        "images",
    ),
)
"""All of them; ids are unique."""
