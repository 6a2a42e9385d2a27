"""Directions of parameter space that change no output: counted without any of the search."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from eqtoolbox.weights.parameter import ContinuousSymmetry, ParameterSymmetry

Parameters = dict[str, Tensor]


class Elsewhere:
    """A model at a random point, with data that discovery has not seen.

    Outputs are log-probabilities, so that a constant for all classes changes none.
    """

    def __init__(
        self, make: Callable[[], nn.Module], inputs: Callable[[torch.Generator], Tensor], seed: int
    ) -> None:
        torch.manual_seed(0)
        self.model = make().double()
        for module in self.model.modules():
            if hasattr(module, "eps"):
                module.eps = 1e-14
        self.generator = torch.Generator().manual_seed(seed)
        self.inputs = inputs
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.params = {n: self._drawn(p.detach()) for n, p in trained.items()}

    def _drawn(self, p: Tensor) -> Tensor:
        """Weights of size sqrt(2 / inputs), offsets of 0.5, gains around one."""
        noise = torch.randn(p.shape, generator=self.generator, dtype=torch.float64)
        if p.dim() > 1:
            return noise * (2.0 / p[0].numel()) ** 0.5
        return 1.0 + 0.3 * noise if bool((p == 1.0).all()) else 0.5 * noise

    def batch(self) -> Tensor:
        """Fresh inputs."""
        return self.inputs(self.generator)

    def outputs(self, params: Parameters, x: Tensor) -> Tensor:
        """Log-probabilities of all classes but the last, flat."""
        buffers = {n: b.clone() for n, b in self.model.named_buffers()}
        made: Tensor = functional_call(self.model, {**params, **buffers}, (x,))
        return made.log_softmax(-1)[..., :-1].flatten()

    def jacobian(self, surplus: float = 1.6) -> Tensor:
        """Gradients of random sums of outputs, `surplus` times as many as parameters."""
        leaves = {n: p.clone().requires_grad_() for n, p in self.params.items()}
        total = sum(p.numel() for p in leaves.values())
        rows: list[Tensor] = []
        while sum(map(len, rows)) < surplus * total:
            outputs = self.outputs(leaves, self.batch())
            few = len(outputs) // 4 + 1  # of one batch: many outputs share their features
            mixed = torch.randn(few, len(outputs), generator=self.generator, dtype=torch.float64)
            for some in mixed.split(64):
                found = torch.autograd.grad(
                    outputs, list(leaves.values()), some, retain_graph=True, is_grads_batched=True
                )
                rows.append(torch.cat([g.flatten(1) for g in found], dim=1))
        return torch.cat(rows)

    def flat(self, direction: Parameters) -> Tensor:
        """A direction as one vector."""
        zero = {n: torch.zeros_like(p) for n, p in self.params.items()}
        return torch.cat([{**zero, **direction}[n].flatten() for n in zero])

    def tangents(self, found: list[ParameterSymmetry]) -> Tensor:
        """K_i of every generator of the loss's symmetries, (generators, parameters)."""
        rows = [
            self.flat(symmetry.tangent(self.params, unit))
            for symmetry in found
            if isinstance(symmetry, ContinuousSymmetry) and not symmetry.equivariant
            if symmetry.status != "broken"
            for unit in torch.eye(symmetry.dimension, dtype=torch.float64)
        ]
        return torch.stack(rows) if rows else torch.zeros(0, len(self.flat({})))


def rank(matrix: Tensor) -> int:
    """Numerical rank, of singular values above 1e-9 of the largest."""
    return int(torch.linalg.matrix_rank(matrix, rtol=1e-9)) if len(matrix) else 0


def unit_rows(matrix: Tensor) -> Tensor:
    """Rows of length one."""
    return matrix / matrix.norm(dim=1, keepdim=True)
