"""Matrices with a prescribed spectrum, and three networks small enough for a dense Hessian."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eqtoolbox.linalg import MatrixOperator

Loss = Callable[[dict[str, Tensor]], Tensor]


@pytest.fixture(autouse=True)
def untouched_global_rng():
    """No function of the room may draw from the global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def prescribed():
    """(values, n=, dtype=) -> (matrix Q diag(values) Qᵀ, Q), missing eigenvalues filled by 0."""

    def make(
        values: Sequence[float], *, n: int | None = None, dtype=torch.float64, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        n = len(values) if n is None else n
        spectrum = torch.zeros(n, dtype=torch.float64)
        spectrum[: len(values)] = torch.tensor(values, dtype=torch.float64)
        rng = torch.Generator().manual_seed(seed)
        Q, _ = torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=torch.float64))
        A = (Q * spectrum) @ Q.T
        return ((A + A.T) / 2).to(dtype), Q

    return make


@pytest.fixture
def operator(prescribed):
    """(values, n=, dtype=) -> the operator of that matrix."""
    return lambda values, **kw: MatrixOperator(prescribed(values, **kw)[0])


def _draw(seed: int, shapes: dict[str, tuple[int, ...]], dtype) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    draws = {n: torch.randn(s, generator=rng, dtype=torch.float64) for n, s in shapes.items()}
    return {n: (x / max(x[0].numel(), 1) ** 0.5).to(dtype) for n, x in draws.items()}


def _mlp(dtype) -> tuple[Loss, dict[str, Tensor]]:
    data = _draw(1, {"x": (20, 5)}, dtype)["x"] * 5**0.5
    labels = torch.arange(20) % 3

    def loss(p: dict[str, Tensor]) -> Tensor:
        h = torch.tanh(data @ p["first.weight"].T + p["first.bias"])
        return F.cross_entropy(h @ p["last.weight"].T + p["last.bias"], labels)

    shapes = {"first.weight": (6, 5), "first.bias": (6,), "last.weight": (3, 6), "last.bias": (3,)}
    return loss, _draw(2, shapes, dtype)


def _convolution(dtype) -> tuple[Loss, dict[str, Tensor]]:
    images = _draw(3, {"x": (6, 2, 5, 5)}, dtype)["x"] * 50**0.5
    labels = torch.arange(6) % 2

    def loss(p: dict[str, Tensor]) -> Tensor:
        h = F.conv2d(images, p["conv.weight"])
        h = F.batch_norm(h, None, None, p["norm.weight"], p["norm.bias"], training=True)
        return F.cross_entropy(F.relu(h).mean((2, 3)) @ p["head.weight"].T, labels)

    def plain(p: dict[str, Tensor]) -> Tensor:
        h = F.conv2d(images, p["conv.weight"])
        h = h - h.mean((0, 2, 3), keepdim=True)
        h = h / (h.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        h = h * p["norm.weight"][:, None, None] + p["norm.bias"][:, None, None]
        return F.cross_entropy(F.relu(h).mean((2, 3)) @ p["head.weight"].T, labels)

    loss.plain = plain
    shapes = {
        "conv.weight": (3, 2, 3, 3),
        "norm.weight": (3,),
        "norm.bias": (3,),
        "head.weight": (2, 3),
    }
    return loss, _draw(4, shapes, dtype)


def _attention(dtype) -> tuple[Loss, dict[str, Tensor]]:
    tokens = _draw(5, {"x": (4, 6, 4)}, dtype)["x"] * 24**0.5
    targets = torch.arange(24) % 4

    def loss(p: dict[str, Tensor]) -> Tensor:
        q, k, v = (tokens @ p[name] for name in ("query", "key", "value"))
        weights = torch.softmax(q @ k.transpose(1, 2) / 2, dim=-1)
        return F.cross_entropy((tokens + weights @ v).reshape(24, 4), targets)

    return loss, _draw(6, {"query": (4, 4), "key": (4, 4), "value": (4, 4)}, dtype)


_NETWORKS = {"mlp": _mlp, "convolution": _convolution, "attention": _attention}


@pytest.fixture(params=list(_NETWORKS))
def network(request) -> tuple[Loss, dict[str, Tensor]]:
    """(loss, params) in float64: tanh MLP, convolution with BatchNorm, self-attention."""
    return _NETWORKS[request.param](torch.float64)


@pytest.fixture
def mlp() -> tuple[Loss, dict[str, Tensor]]:
    """The MLP alone."""
    return _mlp(torch.float64)


@pytest.fixture
def dense():
    """(loss, params) -> Hessian (n, n) by torch.func, independent of the room.

    A loss with BatchNorm brings `plain`, itself in elementary operations: torch.func's Hessian
    of F.batch_norm in training mode is wrong and not even symmetric (torch 2.13).
    """

    def make(loss: Loss, params: dict[str, Tensor]) -> Tensor:
        blocks = torch.func.hessian(getattr(loss, "plain", loss))(params)
        rows = [
            torch.cat(
                [blocks[a][b].reshape(params[a].numel(), params[b].numel()) for b in params], dim=1
            )
            for a in params
        ]
        return torch.cat(rows)

    return make
