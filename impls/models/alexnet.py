"""AlexNet as torchvision has it (Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997).

Tensor names and all numbers are torchvision's (torchvision 0.29 ``models/alexnet.py``), which has no local response normalisation and
no groups. Its adaptive pool to 6x6 is left out: it does nothing to the 6x6 maps that images of 224x224 give, and no other size
is taken here.
"""

from __future__ import annotations

from impls.spec import NO_PADDING, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ModelSpec, Padding, Relu

HIDDEN = 4096  # units of either hidden linear layer
DROPOUT = 0.5

NAMES: tuple[str, ...] = ("alexnet",)


def parse(name: str) -> ModelSpec | None:
    """The model of this name, or None when the family has none."""
    return alexnet() if name in NAMES else None


def alexnet() -> ModelSpec:
    """The five convolutions and three linear layers."""
    body = (
        Conv2d("features.0", 3, 64, 11, 4, Padding.same_on_all_sides(2), bias=True),
        Relu("features.1"),
        MaxPool2d("features.2", 3, 2, NO_PADDING),
        Conv2d("features.3", 64, 192, 5, 1, Padding.same_on_all_sides(2), bias=True),
        Relu("features.4"),
        MaxPool2d("features.5", 3, 2, NO_PADDING),
        Conv2d("features.6", 192, 384, 3, 1, Padding.same_on_all_sides(1), bias=True),
        Relu("features.7"),
        Conv2d("features.8", 384, 256, 3, 1, Padding.same_on_all_sides(1), bias=True),
        Relu("features.9"),
        Conv2d("features.10", 256, 256, 3, 1, Padding.same_on_all_sides(1), bias=True),
        Relu("features.11"),
        MaxPool2d("features.12", 3, 2, NO_PADDING),
        Flatten("flatten", 256, 6, 6),
        Dropout("classifier.0", DROPOUT),
        Linear("classifier.1", 256 * 6 * 6, HIDDEN),
        Relu("classifier.2"),
        Dropout("classifier.3", DROPOUT),
        Linear("classifier.4", HIDDEN, HIDDEN),
        Relu("classifier.5"),
        Linear("classifier.6", HIDDEN, 1000),
    )
    return ModelSpec("alexnet", (3, 224, 224), 1000, body, "arXiv 1404.5997; torchvision 0.29 models/alexnet.py")
