"""Programs of products: what hangs on the vector apart from what does not, for any data."""

import multiprocessing
import random
import shutil
import threading
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call

from eqtoolbox.linalg import hessian
from eqtoolbox.linalg.product_program import ProductProgram
from eqtoolbox.linalg.vectors import add, norm, random_like

MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)),
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)
    ),
    "unused": lambda: nn.ModuleDict({"0": nn.Linear(6, 3), "1": nn.Linear(2, 2)}),
}


def as_it_is(graph: fx.GraphModule, inputs: list[Tensor]) -> fx.GraphModule:
    return graph


def case(kind: str) -> tuple[Any, dict[str, Tensor], list[Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[kind]()
    rng = torch.Generator().manual_seed(0)
    data = [torch.randn(5, 6, generator=rng), torch.randint(3, (5,), generator=rng)]
    body = model["0"] if kind == "unused" else model
    prefix = "0." if kind == "unused" else ""

    def loss(p: dict[str, Tensor]) -> Tensor:
        own = {n.removeprefix(prefix): x for n, x in p.items() if n.startswith(prefix)}
        return F.cross_entropy(functional_call(body, own, data[0]), data[1])

    return loss, {n: p.detach() for n, p in model.named_parameters()}, data


@pytest.mark.parametrize("kind", MODELS)
def test_a_program_is_the_product_at_other_parameters_and_other_data(kind: str) -> None:
    loss, params, data = case(kind)
    v = random_like(params, torch.Generator().manual_seed(1))
    program = ProductProgram(loss, params, v, data, as_it_is)
    for _ in range(2):
        params = random_like(params, torch.Generator().manual_seed(2))
        data[0] = data[0] * -0.7
        want, product = hessian(loss, params), program.at(params, data)
        for seed in (3, 4):
            v = random_like(params, torch.Generator().manual_seed(seed))
            assert norm(add(product(v), want(v), -1.0)) < 1e-5 * norm(want(v))


def test_data_that_is_not_given_is_kept() -> None:
    """Negative control: the batch of the step it was recorded at."""
    loss, params, data = case("mlp")
    v = random_like(params, torch.Generator().manual_seed(1))
    program, first = ProductProgram(loss, params, v, (), as_it_is), hessian(loss, params)(v)
    data[0] = data[0] * -0.7
    assert norm(add(program.at(params)(v), first, -1.0)) < 1e-5 * norm(first)
    assert norm(add(program.at(params)(v), hessian(loss, params)(v), -1.0)) > 1e-2 * norm(first)


def test_what_does_not_hang_on_the_vector_is_not_computed_again() -> None:
    loss, params, data = case("mlp")
    v = random_like(params, torch.Generator().manual_seed(1))
    graphs = []
    ProductProgram(loss, params, v, data, lambda g, _: graphs.append(g) or g)  # type: ignore[func-returns-value]
    called = {str(node.target) for node in graphs[0].graph.nodes}
    assert not any("softmax.default" in name or name == "aten.gelu.default" for name in called)
    assert any("mm" in name for name in called)


def test_random_numbers_are_refused() -> None:
    rng = torch.Generator()
    noisy = lambda p: (p["x"] * torch.rand(3, generator=rng)).square().sum()
    with pytest.raises(ValueError, match="it draws random numbers"):
        ProductProgram(noisy, {"x": torch.ones(3)}, {"x": torch.ones(3)}, (), as_it_is)


class Doubled(torch.autograd.Function):
    """x -> 2x whose backward adds in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.zeros(gradient.shape).add_(gradient, alpha=2)


class Squared(torch.autograd.Function):
    """x -> x^2, its first backward by `Doubled`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * Doubled.apply(ctx.saved_tensors[0])


def test_writes_to_what_products_share_are_refused() -> None:
    loss, x = lambda p: Squared.apply(p["x"]).sum(), {"x": torch.ones(3)}
    assert hessian(loss, x)(x)["x"].tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="writes in place where a later product reads"):
        ProductProgram(loss, x, x, (), as_it_is)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler needs a C++ compiler")
def test_the_compiler_makes_the_same_products_and_leaves_streams_and_threads_alone() -> None:
    loss, params, data = case("mlp")
    v = random_like(params, torch.Generator().manual_seed(1))
    state, threads = streams(), threading.enumerate()
    program = ProductProgram(loss, params, v, data)
    assert streams() == state
    new = {thread.name for thread in threading.enumerate() if thread not in threads}
    assert new <= {"tqdm_monitor"}  # of its progress bars
    assert not multiprocessing.active_children()
    want, product = hessian(loss, params), program.at(params, data)
    for seed in (3, 4):
        v = random_like(params, torch.Generator().manual_seed(seed))
        assert norm(add(product(v), want(v), -1.0)) < 1e-5 * norm(want(v))


def streams() -> tuple[Any, ...]:
    own = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    return own
