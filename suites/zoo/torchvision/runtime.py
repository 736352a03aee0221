"""torchvision as its users run it: channels-last or NCHW, eager or under ``torch.compile`` with its default options."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from impls.implementation import Settings
from impls.pytorch import runtime
from impls.pytorch.runtime import Execution
from impls.spec import ModelSpec, Shape
from suites.zoo.torchvision import network


class Network(runtime.Network):
    """A torchvision model and how it is called."""

    def __init__(self, settings: Settings, model: nn.Module, mode: str) -> None:
        super().__init__(settings, model, mode, Execution(channels_last=mode != "eager_nchw"))
        if mode == "compile":
            self._execution, self._call = Execution(compiler="default"), torch.compile(model)


class Runtime(runtime.Runtime):
    """PyTorch in this process, set up as for our implementation."""

    def prepare(self, model: ModelSpec, weights: Mapping[str, Any], mode: str, input_shape: Shape) -> Network:
        """See the contract."""
        return Network(self._settings, network.build(model, self._tensors(weights, self._settings.precision)), mode)

    def versions(self) -> dict[str, str]:
        """See the contract."""
        return super().versions() | {"torchvision": importlib.metadata.version("torchvision")}
