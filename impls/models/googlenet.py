"""GoogLeNet as torchvision has it: Szegedy et al., "Going Deeper with Convolutions", arXiv 1409.4842, with batch norm.

Tensor names and all numbers are torchvision's (torchvision 0.29 ``models/googlenet.py``). So its third branch has a 3x3 where the
paper has a 5x5 (pytorch/vision#906), and there is no local response normalisation. The auxiliary heads (``aux1``, ``aux2``) are for
training alone and not part of the network that is run in inference; ``with_heads`` adds them.

torchvision pools in ceil mode, where a last window may begin on the map and end behind it. A row and a column of padding behind the
map say the same at every size: a window that ends one behind an even map comes in, and on an odd one the padding is never reached.

torchvision's checkpoint takes images with mean 0.5 and standard deviation 0.5 (``transform_input``).
"""

from __future__ import annotations

from dataclasses import replace

from impls.models.resnet import MOMENTUM
from impls.spec import (
    NO_PADDING,
    AdaptiveAvgPool2d,
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
    Relu,
)

EPS = 1e-3
DROPOUT = 0.2
CEIL_MODE = Padding(0, 1, 0, 1)

# Channels of an Inception block, the columns of the paper's table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj.
INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}

# The pool behind a block: name and kernel.
POOLS = {"3b": ("maxpool3", 3), "4e": ("maxpool4", 2)}

# An auxiliary head, the block whose output it reads, and the channels of that.
HEADS = {"aux2": ("inception4d", 528), "aux1": ("inception4a", 512)}
HEAD_MAPS, HEAD_SIZE, HEAD_HIDDEN, HEAD_DROPOUT = 128, 4, 1024, 0.7
HEAD_WEIGHT = 0.3
"""Of an auxiliary loss: the paper's section 5. torchvision leaves the loss to the user, and its reference script has none for heads."""

NAMES: tuple[str, ...] = ("googlenet",)


def parse(name: str) -> ModelSpec | None:
    """The model of this name, or None when the family has none."""
    return googlenet() if name in NAMES else None


def googlenet() -> ModelSpec:
    """The net of the paper's table 1, without its auxiliary heads."""
    body: list[Node] = [
        *_conv("conv1", 3, 64, 7, 2),
        MaxPool2d("maxpool1", 3, 2, CEIL_MODE),
        *_conv("conv2", 64, 64, 1),
        *_conv("conv3", 64, 192, 3),
        MaxPool2d("maxpool2", 3, 2, CEIL_MODE),
    ]
    channels = 192
    for block, (one, reduce3, three, reduce5, five, pool) in INCEPTION.items():
        prefix = f"inception{block}"
        branches = (
            _conv(f"{prefix}.branch1", channels, one, 1),
            (*_conv(f"{prefix}.branch2.0", channels, reduce3, 1), *_conv(f"{prefix}.branch2.1", reduce3, three, 3)),
            (*_conv(f"{prefix}.branch3.0", channels, reduce5, 1), *_conv(f"{prefix}.branch3.1", reduce5, five, 3)),
            (MaxPool2d(f"{prefix}.branch4.0", 3, 1, Padding.same_on_all_sides(1)), *_conv(f"{prefix}.branch4.1", channels, pool, 1)),
        )
        body.append(Block(prefix, branches, Concat(f"{prefix}.concat"), ()))
        channels = one + three + five + pool
        if block in POOLS:
            name, kernel = POOLS[block]
            body.append(MaxPool2d(name, kernel, 2, CEIL_MODE))
    body += [GlobalAvgPool2d("avgpool"), Dropout("dropout", DROPOUT), Linear("fc", channels, 1000)]
    return ModelSpec("googlenet", (3, 224, 224), 1000, tuple(body), "arXiv 1409.4842 table 1; torchvision 0.29 models/googlenet.py")


def with_heads(model: ModelSpec) -> ModelSpec:
    """GoogLeNet as it is trained: logits of the main head, and behind them those of ``aux2`` and ``aux1``.

    Each head and the rest of the net read the same map.
    """
    body = model.body
    for head, (block, channels) in HEADS.items():
        behind = 1 + next(place for place, node in enumerate(body) if node.name == block)
        body = (*body[:behind], Block(head, (body[behind:], _head(head, channels, model.classes)), Concat(f"{head}.logits"), ()))
    return replace(model, body=body, auxiliary_weights=(HEAD_WEIGHT,) * len(HEADS))


def _head(name: str, channels: int, classes: int) -> tuple[Layer, ...]:
    """What torchvision calls InceptionAux. The paper pools 5x5 with stride 3, which gives 4x4 of 14x14 too."""
    return (
        AdaptiveAvgPool2d(f"{name}.avgpool", HEAD_SIZE),
        *_conv(f"{name}.conv", channels, HEAD_MAPS, 1),
        Flatten(f"{name}.flatten", HEAD_MAPS, HEAD_SIZE, HEAD_SIZE),
        Linear(f"{name}.fc1", HEAD_MAPS * HEAD_SIZE**2, HEAD_HIDDEN),
        Relu(f"{name}.relu"),
        Dropout(f"{name}.dropout", HEAD_DROPOUT),
        Linear(f"{name}.fc2", HEAD_HIDDEN, classes),
    )


def _conv(prefix: str, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> tuple[Layer, ...]:
    """What torchvision calls BasicConv2d, with a padding of half the kernel."""
    padding = Padding.same_on_all_sides(kernel // 2) if kernel > 1 else NO_PADDING
    return (
        Conv2d(f"{prefix}.conv", in_channels, out_channels, kernel, stride, padding, bias=False),
        BatchNorm2d(f"{prefix}.bn", out_channels, EPS, MOMENTUM, "unbiased"),
        Relu(f"{prefix}.relu"),
    )
