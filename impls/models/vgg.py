"""VGG-16 and VGG-19 (Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", arXiv 1409.1556).

Tensor names are torchvision's (torchvision 0.29 ``models/vgg.py``), whose number of a layer counts all layers before it. Its
adaptive pool to 7x7 is left out: it does nothing to the 7x7 maps that images of 224x224 give, and no other size is taken here.
"""

from __future__ import annotations

from itertools import count

from impls.models.resnet import EPS, MOMENTUM
from impls.spec import NO_PADDING, BatchNorm2d, Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, ModelSpec, Padding, Relu

# Width and convolutions of each stage: the paper's table 1, columns D and E.
STAGES = {
    16: ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    19: ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)),
}
HIDDEN = 4096  # units of either hidden linear layer
DROPOUT = 0.5  # section 3.1

NAMES: tuple[str, ...] = ("vgg16", "vgg19", "vgg16_bn", "vgg19_bn")


def parse(name: str) -> ModelSpec | None:
    """The model of this name, ``vgg(16|19)[_bn]``, or None when the family has none."""
    if name not in NAMES:
        return None
    depth, _, norm = name.removeprefix("vgg").partition("_")
    return vgg(name, int(depth), batch_norm=norm == "bn")


def vgg(name: str, depth: int, *, batch_norm: bool) -> ModelSpec:
    """A net of the paper's table 1; with ``batch_norm`` one behind each convolution, which keeps its bias (not the paper's)."""
    body: list[Layer] = []
    numbers = map("features.{}".format, count())
    channels = 3
    for width, convolutions in STAGES[depth]:
        for _ in range(convolutions):
            body.append(Conv2d(next(numbers), channels, width, 3, 1, Padding.same_on_all_sides(1), bias=True))
            if batch_norm:
                body.append(BatchNorm2d(next(numbers), width, EPS, MOMENTUM, "unbiased"))
            body.append(Relu(next(numbers)))
            channels = width
        body.append(MaxPool2d(next(numbers), 2, 2, NO_PADDING))
    body += [
        Flatten("flatten", channels, 7, 7),
        Linear("classifier.0", channels * 7 * 7, HIDDEN),
        Relu("classifier.1"),
        Dropout("classifier.2", DROPOUT),
        Linear("classifier.3", HIDDEN, HIDDEN),
        Relu("classifier.4"),
        Dropout("classifier.5", DROPOUT),
        Linear("classifier.6", HIDDEN, 1000),
    ]
    return ModelSpec(name, (3, 224, 224), 1000, tuple(body), "arXiv 1409.1556 table 1; torchvision 0.29 models/vgg.py")
