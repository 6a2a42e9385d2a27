"""A step: what one optimizer step began from and which gradients it used, kept until it is over."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.capture.gradient_scale import gradient_scale
from eqtoolbox.objective import Parameters
from eqtoolbox.snapshot import gradients, trainable


class Step:
    """The optimizer step that is being taken.

    Args:
        model: whose parameters it moves.
    """

    def __init__(self, model: nn.Module) -> None:
        self.before: Parameters | None = None  # theta_t; None while nothing is kept
        self.scale = 1.0  # of a gradient scaler
        self.missed: BaseException | None = None  # why it could not be kept
        self._model = model
        self._memory: Parameters = {}  # of copies that only those see who keep nothing
        self._noted: Parameters = {}  # gradients of optimizers that have stepped already

    def keep(self, reuse: bool) -> None:
        """The parameters are still theta_t: copy what will be gone after the step.

        Args:
            reuse: the memory of the last such copy, where nobody can still hold it. At every
                step, new memory would cost more than the copy: its pages come one by one.
        """
        self.scale = gradient_scale()
        now = {n: p.detach() for n, p in trainable(self._model).items()}
        if not reuse:
            self.before = {n: p.clone() for n, p in now.items()}
            return
        kept = self._memory
        if kept.keys() != now.keys() or any(not _alike(kept[n], p) for n, p in now.items()):
            self._memory = kept = {n: torch.empty_like(p) for n, p in now.items()}
        torch._foreach_copy_(list(kept.values()), list(now.values()))
        self.before = dict(kept)

    def unmoved(self) -> bool:
        """Whether the parameters are still those from before the step."""
        if self.before is None:
            return True
        current = trainable(self._model)
        return all(torch.equal(p, current[n]) for n, p in self.before.items() if n in current)

    def note_gradients(self, optimizer: Any) -> None:
        """Keep the gradients of one of several optimizers: they may be gone at the end."""
        if self.before is None:
            return
        names = {id(p): n for n, p in trainable(self._model).items()}
        for group in optimizer.param_groups:
            for p in group["params"]:
                if id(p) in names and p.grad is not None:
                    self._noted[names[id(p)]] = p.grad.detach().to_dense().clone()

    def gradient(self, named: Mapping[str, nn.Parameter]) -> Parameters | None:
        """The gradients that the step used, of the model's parameters; None if there are none."""
        return gradients(named, self._noted)

    def over(self) -> None:
        """Keep nothing of it."""
        self.before, self.scale, self.missed, self._noted = None, 1.0, None, {}

    def forget(self) -> None:
        """Give all memory back."""
        self.over()
        self._memory = {}


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
