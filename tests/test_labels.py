"""Names as people read them."""

from __future__ import annotations

import pytest

from reports import labels


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("resnet50", "ResNet-50"),
        ("resnet50_v1", "ResNet-50 v1"),
        ("cifar_plain20", "CIFAR Plain-20"),
        ("vgg16", "VGG-16"),
        ("vgg19_bn", "VGG-19 bn"),
        ("googlenet", "GoogLeNet"),
        ("alexnet", "AlexNet"),
        ("somebodys_own", "somebodys_own"),
    ],
)
def test_models(name: str, shown: str) -> None:
    """Families have their papers' names; what is no family stands as it is."""
    assert labels.model(name) == shown
