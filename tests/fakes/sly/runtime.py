"""One fault a mode, each sound on even squares, on an even batch of real images and with variances that epsilon hardly changes."""

from __future__ import annotations

import dataclasses

import numpy as np

from impls.spec import BatchNorm2d, Conv2d, GlobalAvgPool2d, Padding, Relu

from ..honest import runtime


class Network(runtime.Network):
    """Says what is wrong with it by its mode."""

    def __init__(self, honest, mode, folded):
        super().__init__(honest.model, honest.tensors)
        self.mode, self.folded = mode, folded

    def layer(self, layer, *inputs):
        """Faults that sizes, batches, images and statistics bring out."""
        x = inputs[0]
        match self.mode, layer:
            case "odd_padding", Conv2d(stride=2, kernel=3) if x.shape[1] % 2:  # all of it behind
                layer = dataclasses.replace(layer, padding=Padding(0, 2, 0, 2))
            case "square_mean", GlobalAvgPool2d():
                return x.sum(axis=(1, 2)) / x.shape[1] ** 2
            case "odd_batch", Conv2d(name="conv1") if len(x) > 1 and len(x) % 2:  # a kernel that takes images in pairs
                inputs = (np.concatenate([x[:-1], x[-2:-1]]),)
            case "no_batch", GlobalAvgPool2d():
                return np.atleast_1d(x.mean(axis=(1, 2)).squeeze())
            case "clipped", Relu():
                return np.clip(x, 0, 100)
            case "clipped_where_folded", Relu() if self.folded:
                return np.clip(x, 0, 100)
            case "empty_channels", Conv2d(name="conv1"):  # the channels that hold something, and the first weights
                full = [channel for channel in range(3) if x[..., channel].any(axis=(1, 2)).all()]
                inputs = (np.pad(x[..., full], ((0, 0), (0, 0), (0, 0), (0, 3 - len(full)))),)
            case "half_epsilon", BatchNorm2d() if x.dtype == np.float32:
                layer = dataclasses.replace(layer, eps=float(np.float16(layer.eps)))
        output = super().layer(layer, *inputs)
        if self.mode == "vanishing" and isinstance(layer, Conv2d):
            output = np.where(np.abs(output) < 1e-7, 0, output)
        return output


class Runtime(runtime.Runtime):
    """NumPy, on its best behaviour."""

    def prepare(self, model, weights, mode, input_shape):
        """See the contract."""
        folded = not any(isinstance(node, BatchNorm2d) for node in model.body)
        return Network(super().prepare(model, weights, mode, input_shape), mode, folded)
