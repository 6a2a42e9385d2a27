"""The largest eigenvalue of a loss in float64 from its dense Hessian, as an independent check."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

Parameters = dict[str, Tensor]


def sharpness(model: nn.Module, loss_fn: Callable[[nn.Module], Tensor], at: Parameters) -> float:
    """Largest eigenvalue of the Hessian of `loss_fn(model)` at these parameters."""
    shapes = {n: (p.shape, p.numel()) for n, p in at.items()}

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return loss_fn(self.model)

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([n for _, n in shapes.values()])
        swapped = {
            f"model.{name}": piece.view(shape)
            for (name, (shape, _)), piece in zip(shapes.items(), pieces, strict=True)
        }
        return functional_call(Body(), swapped, ())

    flat = torch.cat([p.detach().double().flatten() for p in at.values()])
    hessian = torch.autograd.functional.hessian(loss, flat)
    return float(torch.linalg.eigvalsh(hessian)[-1])
