"""PyTorch's layers: activations NCHW and kernels OIHW, both in channels-last memory.

Each function makes the module of one layer from its spec and its tensors. Where PyTorch has a module of the same
meaning it is that module, with every argument written out, so tools that look for ``nn.Conv2d`` find it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impls import spec

Tensors = Mapping[str, Tensor]


def to_framework(array: npt.NDArray[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A canonical tensor (OIHW, (out, in) or (C,)) as PyTorch holds it: the same axes, rounded to nearest even; always a copy."""
    tensor = torch.tensor(array, dtype=dtype, device=device)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def to_canonical(tensor: Tensor) -> npt.NDArray[Any]:
    """A weight or an activation with its axes in canonical order, C-contiguous float32 (float64 stays); always a copy."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return np.array(tensor.detach().to("cpu", wide).numpy(), order="C")


def _is_symmetric(pad: spec.Padding) -> bool:
    return pad.top == pad.bottom and pad.left == pad.right


def _sides(pad: spec.Padding) -> tuple[int, int, int, int]:
    """In the order of ``F.pad``, last axis first."""
    return pad.left, pad.right, pad.top, pad.bottom


def _hold(module: nn.Module, tensors: Tensors) -> nn.Module:
    """Put the tensors in the module's places: running statistics as buffers, the others as parameters."""
    for leaf, tensor in tensors.items():
        setattr(module, leaf, tensor if leaf in module._buffers else nn.Parameter(tensor))
    return module


class PaddedConv2d(nn.Conv2d):
    """A convolution whose padding differs between opposite sides, which ``nn.Conv2d`` cannot say."""

    def __init__(self, *args: Any, pad: spec.Padding, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sides = _sides(pad)

    def forward(self, x: Tensor) -> Tensor:
        """Pad with zeros, then convolve."""
        return super().forward(F.pad(x, self.sides))


def conv2d(layer: spec.Conv2d, tensors: Tensors) -> nn.Module:
    """``nn.Conv2d``, which takes two paddings, or its padded form for four."""
    pad = layer.padding
    arguments: dict[str, Any] = {
        "kernel_size": layer.kernel,
        "stride": layer.stride,
        "dilation": 1,
        "groups": 1,
        "bias": layer.bias,
        "padding_mode": "zeros",
        "device": "meta",
    }
    if _is_symmetric(pad):
        module = nn.Conv2d(layer.in_channels, layer.out_channels, padding=(pad.top, pad.left), **arguments)
    else:
        module = PaddedConv2d(layer.in_channels, layer.out_channels, padding=0, pad=pad, **arguments)
    return _hold(module, tensors)


def batch_norm2d(layer: spec.BatchNorm2d, tensors: Tensors) -> nn.Module:
    """PyTorch's running variance is the unbiased one; in evaluation, momentum and that choice have no effect."""
    module = nn.BatchNorm2d(layer.channels, eps=layer.eps, momentum=layer.momentum, affine=True, track_running_stats=True, device="meta")
    module.num_batches_tracked = None  # only a momentum of None needs the count, and no weight file has it
    return _hold(module, tensors)


def relu(layer: spec.Relu, tensors: Tensors) -> nn.Module:
    """``nn.ReLU``; not in place until its input is known to have no other reader."""
    return nn.ReLU(inplace=False)


class PaddedMaxPool2d(nn.MaxPool2d):
    """A max-pool with a padding that ``nn.MaxPool2d`` does not take: unequal on opposite sides, or above half the window."""

    def __init__(self, *args: Any, pad: spec.Padding, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sides = _sides(pad)

    def forward(self, x: Tensor) -> Tensor:
        """Pad with minus infinity, then pool."""
        return super().forward(F.pad(x, self.sides, value=-torch.inf))


def max_pool2d(layer: spec.MaxPool2d, tensors: Tensors) -> nn.Module:
    """``nn.MaxPool2d``, which pads with minus infinity by at most half the window or only behind the map, or its padded form."""
    pad = layer.padding
    if _is_symmetric(pad) and max(pad.top, pad.left) <= layer.kernel // 2:
        return nn.MaxPool2d(layer.kernel, stride=layer.stride, padding=(pad.top, pad.left), dilation=1, ceil_mode=False)
    behind = layer.stride - 1
    if pad == spec.Padding(0, behind, 0, behind) and layer.kernel >= layer.stride:
        # Ceil mode: as many windows, the last of which begins on the map, and no padded copy of it.
        return nn.MaxPool2d(layer.kernel, stride=layer.stride, padding=0, dilation=1, ceil_mode=True)
    return PaddedMaxPool2d(layer.kernel, stride=layer.stride, padding=0, dilation=1, ceil_mode=False, pad=pad)


class GlobalAvgPool2d(nn.Module):
    """Mean over height and width."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        return x.mean((2, 3))


def global_avg_pool2d(layer: spec.GlobalAvgPool2d, tensors: Tensors) -> nn.Module:
    """A mean, which leaves (N, C)."""
    return GlobalAvgPool2d()


def adaptive_avg_pool2d(layer: spec.AdaptiveAvgPool2d, tensors: Tensors) -> nn.Module:
    """``nn.AdaptiveAvgPool2d``, whose windows are the spec's."""
    return nn.AdaptiveAvgPool2d((layer.size, layer.size))


def flatten(layer: spec.Flatten, tensors: Tensors) -> nn.Module:
    """``nn.Flatten``, which goes by the logical axes, whatever the memory order."""
    return nn.Flatten(start_dim=1, end_dim=-1)


def dropout(layer: spec.Dropout, tensors: Tensors) -> nn.Module:
    """``nn.Dropout``, the identity in evaluation."""
    return nn.Dropout(p=layer.probability, inplace=False)


def linear(layer: spec.Linear, tensors: Tensors) -> nn.Module:
    """``nn.Linear``."""
    return _hold(nn.Linear(layer.in_features, layer.out_features, bias=True, device="meta"), tensors)


class PadShortcut(nn.Module):
    """Subsampling and zero channels on both sides."""

    def __init__(self, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.before, self.after = stride, before, after

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, before + C + after, H / stride, W / stride), rounded up."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def pad_shortcut(layer: spec.PadShortcut, tensors: Tensors) -> nn.Module:
    """A strided view and ``F.pad``, which copies it."""
    return PadShortcut(layer.stride, layer.channels_before, layer.channels_after)


class Add(nn.Module):
    """The sum; ``inplace`` as in ``nn.ReLU``: written over the first input."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Sum of tensors of one shape."""
        for other in others:
            first = first.add_(other) if self.inplace else first.add(other)
        return first


def add(layer: spec.Add, tensors: Tensors) -> nn.Module:
    """A sum in the order of the branches; not in place until its first input is known to have no other reader."""
    return Add(inplace=False)


class Concat(nn.Module):
    """The inputs behind one another."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """(N, C_i, ...) to (N, sum of C_i, ...)."""
        return torch.cat(inputs, dim=1)


def concat(layer: spec.Concat, tensors: Tensors) -> nn.Module:
    """The channels in the order of the branches."""
    return Concat()


MODULES: dict[type, Callable[[Any, Tensors], nn.Module]] = {
    spec.Conv2d: conv2d,
    spec.BatchNorm2d: batch_norm2d,
    spec.Relu: relu,
    spec.MaxPool2d: max_pool2d,
    spec.GlobalAvgPool2d: global_avg_pool2d,
    spec.AdaptiveAvgPool2d: adaptive_avg_pool2d,
    spec.Flatten: flatten,
    spec.Dropout: dropout,
    spec.Linear: linear,
    spec.PadShortcut: pad_shortcut,
    spec.Add: add,
    spec.Concat: concat,
}
"""The function of each layer kind."""
