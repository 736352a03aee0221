"""Training as the timed loop sees it: a call is a step of SGD, an input a batch with its labels, an output the loss.

What ``clock.TimedPath`` does with a network it does with this, in scope ``device``: the steps of a window are enqueued, each on what
the one before it left, and waited for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from impls.implementation import Trainer


class Steps:
    """A trainer that is called like a network, every step with the same learning rate."""

    def __init__(self, trainer: Trainer, learning_rate: float) -> None:
        self.trainer = trainer
        self.learning_rate = learning_rate
        self.host_layout = trainer.host_layout

    def put(self, host: tuple[Any, Any]) -> Any:
        """Images and labels on the host to a batch on the device."""
        return self.trainer.put(*host)

    def run(self, batch: Any) -> Any:
        """Enqueue one step."""
        return self.trainer.enqueue(batch, self.learning_rate)

    def wait(self, loss: Any) -> None:
        """Return when the step is done."""
        self.trainer.wait(loss)

    def get(self, loss: Any) -> Any:
        """The loss, then every element of the first parameter as all steps so far leave it: (1 + elements,) float64.

        For audits alone. A step is done where the parameter that its backward pass reaches last can be read, not where its loss can.
        """
        return np.concatenate([[self.trainer.get(loss)], np.ravel(self.trainer.first_parameter())], dtype=np.float64)

    def compilations(self) -> int:
        """As the trainer counts them."""
        return self.trainer.compilations()

    def settings(self) -> dict[str, Any]:
        """As the framework reports them."""
        return {**self.trainer.settings(), "folded": False}
