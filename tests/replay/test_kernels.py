"""What differentiates once runs torch's own kernels; what differentiates twice runs formulas."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import eqtoolbox as eq
from eqtoolbox.probes.law_noise import USUAL
from eqtoolbox.probes.prediction import predicting
from eqtoolbox.replay.gradient import replayed_gradient
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import Objective
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.snapshot import NoRoom, Snapshot
from tests.conftest import blobs, mlp


class Attends(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.qkv, self.dropout = nn.Linear(4, 12), dropout

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def plain(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def of_its_slope(model: nn.Module, batch: Tensor) -> Tensor:
    """A loss that differentiates through the attention itself."""
    x = batch.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    return slope.square().mean()


def gradient(loss: Any, dropout: float = 0.0) -> tuple[dict[str, Tensor], list[Tensor], bool]:
    """Replayed, by torch's mathematical kernel, and whether a fused kernel ran in the replay."""
    torch.manual_seed(0)
    model, batch = Attends(dropout), torch.randn(2, 1, 5, 4)
    given: dict[str, Any] = {"random": RandomState.seeded(0), "buffers": {}}
    objective = Objective(model=model, loss_fn=loss, batch=batch, **given)
    params = {n: p.detach() for n, p in model.named_parameters()}
    with objective.isolated(), Names() as names:
        found = replayed_gradient(objective, params)
    with sdpa_kernel(SDPBackend.MATH):
        torch.manual_seed(0)
        wanted = torch.autograd.grad(loss(model, batch), list(model.parameters()))
    return found, list(wanted), any("_flash_" in name for name in names.seen)


def test_a_gradient_is_taken_by_the_kernel_that_trains() -> None:
    found, wanted, fused = gradient(plain)
    assert fused
    for mine, its in zip(found.values(), wanted, strict=True):
        assert torch.allclose(mine, its, atol=1e-6)


def test_a_value_alone_is_evaluated_by_the_kernel_that_trains() -> None:
    torch.manual_seed(0)
    model, batch = Attends(0.0), torch.randn(2, 1, 5, 4)
    given: dict[str, Any] = {"random": RandomState.seeded(0), "buffers": {}}
    objective = Objective(model=model, loss_fn=plain, batch=batch, **given)
    params = {n: p.detach() for n, p in model.named_parameters()}
    with torch.no_grad(), Names() as names:
        value = objective.loss(params)
        outputs = predicting(objective, params, lambda f: f.of_inputs(batch))
    assert torch.equal(value, plain(model, batch)) and torch.equal(outputs, model(batch))
    assert any("_flash_" in name for name in names.seen)
    assert not any("_attention_math" in name or "softmax" in name for name in names.seen)


def heads(z: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.unflatten(-1, (2, 2)).transpose(1, 2) for part in z.chunk(3, -1))


def narrow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return attend(q, k, v).float()


attend = F.scaled_dot_product_attention
WAYS: dict[str, Any] = {
    "a mask of truths": lambda *x: attend(*x, attn_mask=torch.ones(5, 5).tril() > 0),
    "a mask of numbers": lambda *x: attend(*x, attn_mask=torch.arange(25.0).view(5, 5) / 9),
    "causal, scaled": lambda *x: attend(*x, is_causal=True, scale=0.3),
    "shared keys": lambda q, k, v: attend(q, k[:, :1], v[:, :1], enable_gqa=True),
    "autocast": narrow,
    "checkpoint": lambda *x: checkpoint(attend, *x, use_reentrant=False),
    "reentrant checkpoint": lambda *x: checkpoint(attend, *x, use_reentrant=True),
    "vmap": lambda *x: torch.func.vmap(attend)(*x),
}


@pytest.mark.parametrize("way", WAYS)
def test_whichever_way_the_replayed_gradient_is_the_training_one_to_the_bit(way: str) -> None:
    torch.manual_seed(0)
    model, batch = nn.Linear(4, 12), torch.randn(3, 5, 4)
    loss = lambda m, b: WAYS[way](*heads(m(b))).square().mean()
    given: dict[str, Any] = {"random": RandomState.seeded(0), "buffers": {}}
    objective = Objective(model=model, loss_fn=loss, batch=batch, **given)
    with objective.isolated():
        found = replayed_gradient(objective, {n: p.detach() for n, p in model.named_parameters()})
    loss(model, batch).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert torch.equal(found[name], p.grad)


def test_a_loss_that_differentiates_what_a_kernel_cannot_gets_the_formula() -> None:
    found, wanted, _ = gradient(of_its_slope)
    assert float(wanted[0].abs().max()) > 1e-3
    for mine, its in zip(found.values(), wanted, strict=True):
        assert torch.allclose(mine, its, atol=1e-6)


def test_masks_of_dropout_are_those_of_second_derivatives() -> None:
    assert not gradient(plain, dropout=0.5)[2]


def test_an_error_of_the_users_own_is_told_as_it_is() -> None:
    def failing(model: nn.Module, batch: Tensor) -> Tensor:
        raise RuntimeError("this is not implemented by me")

    with pytest.raises(RuntimeError, match="by me"):
        gradient(failing)


def test_without_room_for_a_gradient_a_floor_is_what_is_usual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_room(self: Snapshot, objective: Any, copies: float, graphs: float, once: bool = False):  # type: ignore[no-untyped-def]
        if once:
            raise NoRoom("made up")
        return objective

    monkeypatch.setattr(Snapshot, "within", no_room)
    torch.manual_seed(0)
    model, sink = mlp(6, 8, 3), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given: dict[str, Any] = {"probes": [eq.probes.Conservation()], "schedule": 1, "budget": None}
    with eq.attach(model, optimizer, sinks=[sink], on_error="raise", **given) as monitor:
        loss = monitor.loss(lambda m, b: F.cross_entropy(m(b[0]), b[1]))
        loss(model, blobs()).backward()
        optimizer.step()
    (row,) = (r for r in sink.records if r.name == "conservation/first_order/rescale")
    assert row.status == "ok"
    assert row.verdict == "holds"
    assert row.floor == pytest.approx(USUAL * torch.finfo(torch.float32).eps, rel=0.5)
