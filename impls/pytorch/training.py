"""Training in PyTorch: the module of ``runtime`` in training mode, autograd, and ``torch.optim.SGD`` with every argument given.

``nn.BatchNorm2d`` (``layers``) is the spec's in training too: it normalises with the batch's biased variance and keeps the
unbiased one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from impls import implementation, spec
from impls.implementation import CannotError, Derivatives, Sgd
from impls.pytorch import layers
from impls.spec import ModelSpec, Shape


class Trainer(implementation.Trainer):
    """A module in training mode, its loss and its optimizer.

    ``call`` is how a step runs the module: itself, or compiled; ``computed`` is the dtype of the activations, in mixed precision narrower
    than the parameters, which autocast then casts; ``memory_format`` is the memory order of the images; ``told`` reads the settings back,
    ``compilations`` counts them.
    """

    def __init__(
        self,
        module: nn.Module,
        call: Callable[[Tensor], Tensor],
        momentum: Mapping[str, Tensor],
        sgd: Sgd,
        auxiliary_weights: tuple[float, ...],
        computed: torch.dtype,
        memory_format: torch.memory_format,
        told: Callable[[], dict[str, Any]],
        compilations: Callable[[], int],
    ) -> None:
        self._module, self._call, self._computed, self._memory_format = module, call, computed, memory_format
        self._told, self._compilations = told, compilations
        self.host_layout = "NHWC" if memory_format == torch.channels_last else "NCHW"
        self._label_smoothing = sgd.label_smoothing
        self._auxiliary_weights = auxiliary_weights
        self._parameters = dict(module.named_parameters())
        self._optimizer = torch.optim.SGD(
            self._parameters.values(),
            lr=0.0,  # each step sets its own
            momentum=sgd.momentum,
            dampening=0,
            weight_decay=sgd.weight_decay,
            nesterov=sgd.nesterov,
            maximize=False,
            foreach=False,
            differentiable=False,
            fused=True,  # one pass over all parameters, where the loop makes three of each
        )
        for name, parameter in self._parameters.items():
            # Fused SGD walks both in memory order: a GPU refuses strides that differ, a CPU takes the wrong elements.
            self._optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum[name])

    def put(self, images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        """See the contract. On a CPU the batch is a view of ``images`` when neither dtype nor memory order has to change."""
        device = next(iter(self._parameters.values())).device
        batch = torch.from_numpy(images).to(device, self._computed, memory_format=self._memory_format)
        return batch, torch.from_numpy(labels).to(device)

    def enqueue(self, batch: tuple[Tensor, Tensor], learning_rate: float) -> Tensor:
        """See the contract."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        images, targets = batch
        with self._autocast():
            logits = self._call(images)
        loss = self._loss(logits, targets)
        loss.backward()
        self._optimizer.step()
        return loss.detach()  # which holds no activations

    def wait(self, loss: Tensor) -> None:
        """See the contract."""
        if loss.is_cuda:
            torch.cuda.current_stream(loss.device).synchronize()

    def get(self, loss: Tensor) -> float:
        """See the contract."""
        return float(loss)

    def first_parameter(self) -> Any:
        """See the contract."""
        return next(iter(self._parameters.values())).detach().to("cpu").numpy()

    def differentiate(self, images: Any, labels: Any) -> Derivatives:
        """See the contract. Eager in every mode; batch norm updates copies of the running statistics."""
        taps: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            return lambda module, inputs, output: taps.update({name: output})

        named = [(name, module) for name, module in self._module.named_modules() if not list(module.children())]
        hooks = [module.register_forward_hook(keep(name)) for name, module in named]
        buffers = {name: buffer.clone() for name, buffer in self._module.named_buffers()}
        batch, targets = self.put(images, labels)
        try:
            with self._autocast():
                logits = functional_call(self._module, buffers, (batch,))
            loss = self._loss(logits, targets)
        finally:
            for hook in hooks:
                hook.remove()
        derivatives = [layers.to_canonical(tensor) for tensor in torch.autograd.grad(loss, [*taps.values(), *self._parameters.values()])]
        return Derivatives(
            float(loss),
            {name: layers.to_canonical(tap) for name, tap in taps.items()},
            dict(zip(taps, derivatives, strict=False)),
            dict(zip(self._parameters, derivatives[len(taps) :], strict=True)),
        )

    def weights(self) -> dict[str, Any]:
        """See the contract."""
        return {name: layers.to_canonical(tensor) for name, tensor in self._module.state_dict().items()}

    def momentum(self) -> dict[str, Any]:
        """See the contract."""
        state = self._optimizer.state
        return {name: layers.to_canonical(state[parameter]["momentum_buffer"]) for name, parameter in self._parameters.items()}

    def compilations(self) -> int:
        """See the contract."""
        return self._compilations()

    def settings(self) -> dict[str, Any]:
        """See the contract."""
        return self._told()

    def _autocast(self) -> torch.autocast:
        """Casts the weights of convolutions and linear layers where the parameters are wider than what is computed in."""
        held = next(iter(self._parameters.values()))
        return torch.autocast(held.device.type, self._computed, enabled=self._computed != held.dtype)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        main, *others = (
            cross_entropy(head, targets, weight=None, ignore_index=-100, reduction="mean", label_smoothing=self._label_smoothing)
            for head in wide.chunk(1 + len(self._auxiliary_weights), dim=1)
        )
        return sum((weight * loss for weight, loss in zip(self._auxiliary_weights, others, strict=True)), main)


def check(model: ModelSpec, sgd: Sgd, precision: str, input_shape: Shape) -> None:
    """Refuse what ``Trainer`` would not do as the contract says.

    Raises:
        CannotError: a running variance, a momentum, a precision or a batch that PyTorch does not train with here.
    """
    implementation.check_training(model, precision, input_shape)
    if sgd.momentum == 0:
        raise CannotError("torch.optim.SGD keeps no buffers where the momentum is 0")
    for layer in spec.layers(model.body):
        if isinstance(layer, spec.BatchNorm2d) and layer.running_variance != "unbiased":
            raise CannotError(f"{layer.name}: nn.BatchNorm2d keeps the unbiased running variance only")
