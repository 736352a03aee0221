"""A bottleneck ResNet in Flax as Flax's ImageNet example writes it (google/flax, examples/imagenet/models.py).

It differs from the example where it must, to be the function of the spec: explicit padding in place of "SAME", which pads
strided convolutions and the pool on one side only, and the spec's epsilon.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class BottleneckBlock(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width; a projection where shapes change."""

    filters: int
    strides: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, C) to (N, H / strides, W / strides, 4 * filters)."""
        residual = x
        y = nn.relu(self.norm(name="bn1")(self.conv(self.filters, (1, 1), name="conv1")(x)))
        y = self.conv(self.filters, (3, 3), self.strides, padding=((1, 1), (1, 1)), name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.norm(name="bn3")(self.conv(self.filters * 4, (1, 1), name="conv3")(y))
        if residual.shape != y.shape:
            residual = self.conv(self.filters * 4, (1, 1), self.strides, name="downsample.0")(residual)
            residual = self.norm(name="downsample.1")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    """A bottleneck ResNet for ImageNet, v1.5, for inference."""

    stage_sizes: Sequence[int]
    classes: int
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images (N, H, W, 3) to logits (N, classes)."""
        conv = partial(nn.Conv, use_bias=False, padding="VALID", dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=True, epsilon=self.epsilon, dtype=self.dtype)
        x = conv(64, (7, 7), 2, padding=((3, 3), (3, 3)), name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, size in enumerate(self.stage_sizes):
            for block in range(size):
                strides = 2 if stage > 0 and block == 0 else 1
                x = BottleneckBlock(64 * 2**stage, strides, conv, norm, name=f"layer{stage + 1}.{block}")(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.classes, dtype=self.dtype, name="fc")(x)
