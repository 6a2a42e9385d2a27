"""Losses and models that keep state in tensors of all layouts, in gradients and in settings."""

import copy
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import random as python_random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.neutrality.belongings import Batch, Net, Object, cross_entropy

KINDS: dict[str, Callable[[], tuple[nn.Module, Any, Callable[[], Any]]]] = {}
OPEN = threading.Event()  # that nobody sets


def _case(make: Callable[[], Any]) -> Any:
    KINDS[make.__name__] = make
    return make


def _beside() -> None:
    """Another thread lives, as that of a progress bar."""
    if all(thread.name != "beside" for thread in threading.enumerate()):
        threading.Thread(target=OPEN.wait, name="beside", daemon=True).start()


def _factor(write: Callable[[], Any], look: Callable[[], Any]) -> Any:
    """A loss that is multiplied by what `write` gives."""
    loss = lambda model, batch: cross_entropy(model, batch) * (1 + 0.01 * write())
    return Net(), loss, look


# -- layouts ---------------------------------------------------------------------------------------


@_case
def sparse() -> Any:
    one = torch.sparse_coo_tensor([[0, 1]], [1.0, 2.0], (4,), check_invariants=True).coalesce()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the layout is in beta state
        two = torch.eye(3).to_sparse_csr()

    def write() -> Tensor:
        one.add_(torch.sparse_coo_tensor([[3]], [0.5], (4,), check_invariants=True))
        one.mul_(1.1)
        two.values().mul_(1.1)
        return torch.sparse.sum(one) + two.to_dense().sum()

    return _factor(write, lambda: (one.to_dense().tolist(), two.to_dense().tolist()))


@_case
def large_sparse() -> Any:
    entries = 2**19
    held = torch.sparse_coo_tensor(
        torch.arange(entries)[None], torch.ones(entries), (entries,), check_invariants=True
    ).coalesce()
    return _factor(lambda: held.mul_(1.01)._values()[0], lambda: held._values()[:3].tolist())


@_case
def inference() -> Any:
    with torch.inference_mode():
        small, large = torch.zeros(3), torch.zeros(2**19)

    def write() -> float:
        with torch.inference_mode():
            small.mul_(0.9).add_(1.0)
            large.add_(0.1)
        return float(small.sum() + large[0])

    return _factor(write, lambda: (small.tolist(), large[:3].tolist(), small.is_inference()))


@_case
def entries_that_share_memory() -> Any:
    scale = torch.ones(1)
    wide, windows = scale.expand(6), torch.arange(6.0).unfold(0, 3, 1)

    def write() -> Tensor:
        scale.add_(0.1)
        windows[0, 2] += 0.5
        return wide.sum() + windows.sum()

    return _factor(write, lambda: (scale.tolist(), wide.tolist(), windows.tolist()))


@_case
def narrow_complex_and_nan() -> Any:
    narrow = torch.ones(4).to(torch.float8_e4m3fn)
    turned = torch.zeros(3, dtype=torch.complex64)
    other, odd = turned.conj(), torch.tensor([float("nan"), 1.0])

    def write() -> Tensor:
        narrow.copy_(narrow.float() * 1.3)
        turned.add_(1j)
        odd[1] += 1
        return narrow.float().sum() - other.imag.sum() + odd[1]

    return _factor(write, lambda: (narrow.float().tolist(), turned.tolist(), odd[1].item()))


@_case
def turned_and_resized() -> Any:
    one, two = torch.arange(6.0).view(2, 3), torch.zeros(2)

    def write() -> float:
        one.t_()
        two.resize_(two.numel() + 1).fill_(two.numel())
        return one.shape[0] + float(two.sum())

    return _factor(write, lambda: (one.tolist(), two.tolist()))


# -- gradients -------------------------------------------------------------------------------------


@_case
def gradients_clipped_in_place() -> Any:
    other = nn.Linear(3, 1)
    other(torch.ones(3)).sum().backward()

    def write() -> Any:
        for p in other.parameters():
            p.grad.mul_(0.9)
        return sum(p.grad.sum() for p in other.parameters())

    return _factor(write, lambda: [p.grad.tolist() for p in other.parameters()])


@_case
def gradient_and_flag_of_a_small_tensor() -> Any:
    held = torch.ones(3, requires_grad=True)
    plain = torch.ones(3)

    def write() -> Any:
        (g,) = torch.autograd.grad((held * 2).sum(), held)
        held.grad = g if held.grad is None else held.grad + g
        plain.requires_grad_(not plain.requires_grad)
        return held.grad.sum() + float(plain.requires_grad)

    return _factor(write, lambda: (held.grad.tolist(), plain.requires_grad))


@_case
def gradients_in_one_buffer() -> Any:
    other, flat = nn.Linear(3, 1), torch.zeros(4)
    other.weight.grad, other.bias.grad = flat[:3].view(1, 3), flat[3:]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        torch.autograd.backward([other(model(batch[0]).detach()).mean()])
        return cross_entropy(model, batch) * (1 + 0.01 * flat.sum())

    return Net(), loss, lambda: flat.tolist()


@_case
def backward_whose_gradient_is_used() -> Any:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0].clone().requires_grad_()
        cross_entropy(model, (x, batch[1])).backward(inputs=[x])
        return cross_entropy(model, ((x + 0.1 * x.grad.sign()).detach(), batch[1]))

    return Net(), loss, lambda: None


@_case
def penalty_of_a_gradient() -> Any:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0].clone().requires_grad_()
        (g,) = torch.autograd.grad(torch.tanh(model(x)).sum(), x, create_graph=True)
        return cross_entropy(model, batch) + 0.1 * g.square().mean()

    return Net(), loss, lambda: None


@_case
def adversary_that_steps_in_the_loss() -> Any:
    other = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(other.parameters(), lr=0.1)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        out = model(batch[0])
        optimizer.zero_grad(set_to_none=False)
        other(out.detach()).square().mean().backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        optimizer.step()
        return cross_entropy(model, batch) + 0.1 * other(out).mean()

    return (
        Net(),
        loss,
        lambda: (
            [p.tolist() for p in other.parameters()],
            [p.grad.tolist() for p in other.parameters()],
            [v.tolist() for state in optimizer.state.values() for v in state.values()],
        ),
    )


@_case
def temperature_that_steps_in_the_loss() -> Any:
    log = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([log], lr=0.1)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value = cross_entropy(model, batch)
        optimizer.zero_grad()
        (log * value.detach()).sum().backward()
        optimizer.step()
        return value * log.exp().detach().sum()

    return Net(), loss, lambda: (log.tolist(), log.grad.tolist())


@_case
def hooks_of_a_backward() -> Any:
    other, calls = nn.Linear(3, 1), [0]

    def hook(gradient: Tensor) -> Tensor:
        calls[0] += 1
        return gradient * (1 + 0.01 * calls[0])

    other.weight.register_hook(hook)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        other.zero_grad()
        other(batch[0][:, :3]).mean().backward()
        return cross_entropy(model, batch) * (1 + 0.1 * other.weight.grad.norm())

    return Net(), loss, lambda: (calls, other.weight.grad.tolist())


@_case
def inner_step_by_functional_call() -> Any:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        own = dict(model.named_parameters())
        inner = cross_entropy(model, (batch[0][:4], batch[1][:4]))
        gradients = torch.autograd.grad(inner, [*own.values()], create_graph=True)
        moved = {n: p - 0.1 * g for (n, p), g in zip(own.items(), gradients, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, moved, batch[0][4:]), batch[1][4:])

    return Net(), loss, lambda: None


@_case
def inner_steps_of_a_copy() -> Any:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        fast = copy.deepcopy(model)
        optimizer = torch.optim.SGD(fast.parameters(), lr=0.1)
        cross_entropy(fast, batch).backward()
        optimizer.step()
        pairs = zip(model.parameters(), fast.parameters(), strict=True)
        return cross_entropy(model, batch) + sum((p - q.detach()).square().sum() for p, q in pairs)

    return Net(), loss, lambda: None


@_case
def modes_left_behind() -> Any:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        torch.set_grad_enabled(False)
        aim = model(batch[0])
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float64)
        np.seterr(over="ignore")
        value = cross_entropy(model, batch) + F.mse_loss(model(batch[0]), aim * 1.1)
        torch.set_default_dtype(torch.float32)
        return value

    def look() -> Any:
        found = torch.is_grad_enabled(), torch.get_default_dtype(), np.seterr(over="warn")
        return repr(found)

    return Net(), loss, look


# -- random streams, beside another thread ---------------------------------------------------------


def _noisy(draw: Callable[[], Any]) -> Any:
    _beside()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0] + 0.1 * draw()), batch[1])

    return Net(), loss, lambda: None


@_case
def seed_set_in_the_loss() -> Any:
    def draw() -> Tensor:
        torch.manual_seed(7)
        return torch.randn(8, 6)

    return _noisy(draw)


@_case
def seed_set_by_the_generator() -> Any:
    def draw() -> Tensor:
        torch.default_generator.manual_seed(7)
        return torch.randn(8, 6)

    return _noisy(draw)


@_case
def forked_stream() -> Any:
    def draw() -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            noise = torch.randn(8, 6)
        return noise + torch.randn(8, 6)

    return _noisy(draw)


@_case
def draws_below_a_function_of_torch() -> Any:
    return _noisy(lambda: torch.svd_lowrank(torch.ones(8, 6), q=2)[0].sum())


@torch.jit.script
def scripted_noise(x: Tensor) -> Tensor:
    return torch.dropout(x, 0.5, True)


@_case
def draws_of_compiled_code() -> Any:
    return _noisy(lambda: scripted_noise(torch.ones(8, 6)))


@_case
def draws_of_numpy_and_python() -> Any:
    return _noisy(lambda: float(np.random.rand()) + python_random())


# -- threads of the loss itself --------------------------------------------------------------------


@_case
def pool_of_threads() -> Any:
    calls: list[int] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with ThreadPoolExecutor(2) as pool:
            halves = [*pool.map(model, batch[0].split(4))]
        calls.append(1)
        return F.cross_entropy(torch.cat(halves), batch[1]) * (1 + 0.01 * len(calls))

    return Net(), loss, lambda: len(calls)


@_case
def thread_that_writes_and_draws() -> Any:
    held, mean, bank = Object(calls=0, drawn=0.0), torch.zeros(3), torch.zeros(2**19)
    teacher = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))

    def work(x: Tensor) -> None:
        held.calls += 1
        held.drawn = float(np.random.rand()) + python_random() + torch.rand(()).item()
        held.aim = teacher(x).detach()
        mean.add_(1.0)
        bank.add_(1.0)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        thread = threading.Thread(target=work, args=(batch[0],))
        thread.start()
        thread.join()
        more = held.calls + held.drawn + mean.sum() + bank[0]
        return cross_entropy(model, batch) * (1 + 0.01 * more) + held.aim.mean()

    return (
        Net(),
        loss,
        lambda: (held.calls, held.drawn, mean.tolist(), bank[:2].tolist(),
                 [b.tolist() for b in teacher.buffers()]),
    )  # fmt: skip
