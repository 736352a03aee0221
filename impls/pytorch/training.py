"""Training in PyTorch: the module of ``runtime`` in training mode, stepped by ``torch.optim.SGD``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from impls import implementation, spec
from impls.implementation import CannotError, Sgd
from impls.pytorch import layers
from impls.spec import ModelSpec


class Trainer(implementation.Trainer):
    """A module, its optimizer and its loss; eager."""

    def __init__(self, module: nn.Module, sgd: Sgd, dtype: torch.dtype, device: torch.device) -> None:
        self._module = module.train()
        self._label_smoothing = sgd.label_smoothing
        self._dtype, self._device = dtype, device
        self._optimizer = torch.optim.SGD(
            module.parameters(),
            lr=0.0,  # each step sets its own
            momentum=sgd.momentum,
            dampening=0,
            weight_decay=sgd.weight_decay,
            nesterov=sgd.nesterov,
            maximize=False,
            foreach=False,
            differentiable=False,
            fused=False,
        )

    def step(self, images: Any, labels: Any, learning_rate: float) -> float:
        """See the contract."""
        batch = torch.from_numpy(images).to(self._device, self._dtype, memory_format=torch.channels_last)
        targets = torch.from_numpy(labels).to(self._device)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        logits: Tensor = self._module(batch)
        loss = cross_entropy(logits, targets, weight=None, ignore_index=-100, reduction="mean", label_smoothing=self._label_smoothing)
        loss.backward()
        self._optimizer.step()
        return float(loss)

    def weights(self) -> dict[str, Any]:
        """See the contract."""
        return {name: layers.to_canonical(tensor) for name, tensor in self._module.state_dict().items()}


def check(model: ModelSpec, precision: str) -> None:
    """Refuse what ``Trainer`` would not do as the spec says.

    Raises:
        CannotError: a running variance or a precision that PyTorch does not train with here.
    """
    if precision not in ("fp64", "fp32", "tf32"):
        raise CannotError(f"PyTorch trains in fp64, fp32 and tf32 here, not in {precision}")
    for layer in spec.layers(model.body):
        if isinstance(layer, spec.BatchNorm2d) and layer.running_variance != "unbiased":
            raise CannotError(f"{layer.name}: nn.BatchNorm2d keeps the unbiased running variance only")
