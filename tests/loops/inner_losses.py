"""Losses that differentiate inside, as their users write them, with the models that they train."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, vmap

from tests.conftest import mlp

Loss = Callable[[Any, Any], Tensor]
Problem = tuple[nn.Module, Loss, Any]


def smooth(*widths: int) -> nn.Module:
    torch.manual_seed(0)
    return mlp(*widths, activation=nn.Tanh)


def points(count: int = 12) -> Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(3))


def slopes(model: Any, x: Tensor) -> Tensor:
    return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]


def wave(model: Any, x: Tensor) -> Tensor:
    """u_tt - u_xx of a field, squared."""
    x = x.clone().requires_grad_(True)
    first = slopes(model, x)
    second = [torch.autograd.grad(first[:, k].sum(), x, create_graph=True)[0] for k in (0, 1)]
    return (second[0][:, 0] - second[1][:, 1]).square().mean() + model(x).square().mean()


def pinn() -> Problem:
    return smooth(2, 6, 6, 1), wave, points()


def pinn_of_third_order() -> Problem:
    def loss(model: Any, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_(True)
        u = model(x)
        for _ in range(3):
            (u,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            u = u[:, 0]
        return (u - 1).square().mean() + model(x).square().mean()

    return smooth(2, 6, 1), loss, points()


class Critic(nn.Module):
    """A recurrent critic of sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


def penalised(model: Any, batch: Any) -> Tensor:
    real, fake = batch
    a = torch.rand(len(real), *[1] * (real.dim() - 1)).to(real)
    x = (a * real + (1 - a) * fake).requires_grad_(True)
    steep = slopes(model, x).flatten(1).norm(dim=1)
    return model(fake).mean() - model(real).mean() + 10 * (steep - 1).square().mean()


def wgan_gp() -> Problem:
    torch.manual_seed(0)
    return Critic(), penalised, (torch.randn(6, 4, 3), torch.randn(6, 4, 3))


def adapted(model: Any, batch: Any) -> Tensor:
    total = torch.zeros(())
    for x, y in batch:
        params = dict(model.named_parameters())
        inner = (functional_call(model, params, (x,)) - y).square().mean()
        found = torch.autograd.grad(inner, list(params.values()), create_graph=True)
        fast = {n: p - 0.1 * g for (n, p), g in zip(params.items(), found, strict=True)}
        total = total + (functional_call(model, fast, (x + 1,)) - y).square().mean()
    return total / len(batch)


def maml() -> Problem:
    x = points()
    return smooth(2, 6, 1), adapted, [(x[:6], x[:6, :1].sin()), (x[6:], x[6:, 1:].cos())]


def maml_by_func() -> Problem:
    """The same step by torch.func, over tasks at once."""

    def loss(model: Any, x: Tensor) -> Tensor:
        params = dict(model.named_parameters())

        def task(x: Tensor) -> Tensor:
            inner = grad(lambda p: functional_call(model, p, (x,)).square().mean())(params)
            fast = {n: p - 0.1 * inner[n] for n, p in params.items()}
            return (functional_call(model, fast, (x,)) - 1).square().mean()

        return vmap(task)(x.reshape(3, 4, 2)).mean()

    return smooth(2, 6, 1), loss, points()


def laplacian_by_func() -> Problem:
    def loss(model: Any, x: Tensor) -> Tensor:
        bends = vmap(hessian(lambda z: model(z).squeeze()))(x)
        return (bends.diagonal(dim1=1, dim2=2).sum(1) - 1).square().mean() + model(
            x
        ).square().mean()

    return smooth(2, 6, 1), loss, points()


def score_matching() -> Problem:
    """Sliced: a product with a random vector, the same one each time."""

    def loss(model: Any, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_(True)
        v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        s = model(x)
        (along,) = torch.autograd.grad((s * v).sum(), x, create_graph=True)
        return ((along * v).sum(1) + 0.5 * s.square().sum(1)).mean()

    return smooth(2, 6, 2), loss, points()


class Hamiltonian(nn.Module):
    """The flow of an energy, differentiated in forward, its input cut off first."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = smooth(2, 6, 1)

    def forward(self, z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            found = slopes(self.energy, z)
        return torch.stack([found[:, 1], -found[:, 0]], 1)


def hamiltonian() -> Problem:
    return Hamiltonian(), lambda model, z: (model(z) - z).square().mean(), points()


class Forces(nn.Module):
    """Energy of pairs of points and the forces that follow from it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = smooth(1, 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.requires_grad_(True)
        apart = (x[:, :, None] - x[:, None]).square().sum(-1, keepdim=True)
        energy = self.net((-apart).exp()).sum((1, 2, 3))
        return energy, -torch.autograd.grad(energy.sum(), x, create_graph=True)[0]


def forces() -> Problem:
    def loss(model: Any, batch: Any) -> Tensor:
        energy, force = model(batch[0])
        return F.mse_loss(energy, batch[1]) + F.mse_loss(force, batch[2])

    torch.manual_seed(0)
    return Forces(), loss, (torch.randn(4, 3, 3), torch.randn(4), torch.randn(4, 3, 3))


def gradient_norm() -> Problem:
    def loss(model: Any, x: Tensor) -> Tensor:
        value = model(x).square().mean()
        found = torch.autograd.grad(value, list(model.parameters()), create_graph=True)
        return value + 0.1 * sum(g.square().sum() for g in found)

    return smooth(2, 6, 1), loss, points()


def attacked() -> Problem:
    """Trained on inputs that an attack moved, by backward() and .grad as tutorials have it."""

    def loss(model: Any, batch: Any) -> Tensor:
        x, y = batch
        delta = torch.zeros_like(x, requires_grad=True)
        F.cross_entropy(model(x + delta), y).backward()
        assert delta.grad is not None
        moved = x + 0.05 * delta.grad.sign()
        model.zero_grad()
        return F.cross_entropy(model(moved), y)

    return smooth(2, 6, 3), loss, (points(), torch.arange(12) % 3)


def by_backward() -> Problem:
    """A slope read from .grad, which keeps its graph."""

    def loss(model: Any, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_(True)
        model(x).sum().backward(create_graph=True, inputs=[x])
        assert x.grad is not None
        return x.grad.square().mean() + model(x).square().mean()

    return smooth(2, 6, 1), loss, points()


def marked_batch() -> Problem:
    """The loop has the batch require gradients, the loss does not."""

    def loss(model: Any, x: Tensor) -> Tensor:
        return slopes(model, x).square().mean() + model(x).square().mean()

    return smooth(2, 6, 1), loss, points().requires_grad_()


def marked_constants() -> Problem:
    """Points that a closure holds and that require gradients."""
    held = points().requires_grad_()

    def loss(model: Any, x: Tensor) -> Tensor:
        at = held.to(x) if x.dtype != held.dtype else held
        return slopes(model, at).square().mean() + model(x).square().mean()

    return smooth(2, 6, 1), loss, points()


PROBLEMS = {
    p.__name__: p
    for p in (
        pinn, pinn_of_third_order, wgan_gp, maml, maml_by_func, laplacian_by_func, score_matching,
        hamiltonian, forces, gradient_norm, attacked, by_backward, marked_batch, marked_constants,
    )
}  # fmt: skip


def dense(model: nn.Module, loss: Loss, batch: Any, seed: int) -> Tensor:
    """Eigenvalues of the loss in float64, by differentiating a copy twice and nothing else."""
    wide = copy.deepcopy(model).double()
    params = list(wide.parameters())
    torch.manual_seed(seed)
    first = torch.autograd.grad(
        loss(wide, _double(batch)), params, create_graph=True, materialize_grads=True
    )
    flat = torch.cat([g.flatten() for g in first])
    rows = [
        torch.autograd.grad(g, params, retain_graph=True, materialize_grads=True)
        for g in flat
        if g.requires_grad
    ]
    matrix = torch.stack([torch.cat([r.flatten() for r in row]) for row in rows])
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2)


def _double(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        wide = batch.detach().double() if batch.is_floating_point() else batch
        return wide.requires_grad_(batch.requires_grad)
    return type(batch)(_double(x) for x in batch)
