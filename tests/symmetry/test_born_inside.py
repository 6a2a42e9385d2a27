"""Float32 tensors born inside a loss do not stand in the way of a float64 check."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import eqtoolbox as eq
from eqtoolbox.probes import symmetries
from eqtoolbox.probes.noether import Noether
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.weights.discovery import find_symmetries
from eqtoolbox.weights.search.found import Found
from tests.conftest import mlp


class Denoiser(nn.Module):
    """A convolution, a time embedding, a group norm: its scale is free but for epsilon."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.t, self.a = nn.Linear(1, 8), nn.Conv2d(1, 8, 3, padding=1)
        self.n, self.o = nn.GroupNorm(2, 8, eps=eps), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.o(F.silu(self.n(self.a(x) + self.t(t[:, None])[:, :, None, None])))


def diffusion(model: Any, x: Tensor) -> Tensor:
    """The standard loss: times and noise drawn in the default type."""
    t, e = torch.rand(len(x)), torch.randn_like(x)
    a = torch.cos(t * 1.5)[:, None, None, None]
    return F.mse_loss(model(a * x + (1 - a**2).sqrt() * e, t), e)


def image() -> Tensor:
    return torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def scales(model: nn.Module, loss: Any, x: Any) -> list[Any]:
    torch.manual_seed(7)
    return [s for s in eq.weights.discover(model, x, loss) if s.family == "scale"]


def order_1(model: nn.Module) -> float:
    """|g . K| / (|g| |K|) of all scales together, in a float64 copy given the drawn numbers."""
    torch.manual_seed(7)
    t, e = torch.rand(4).double(), torch.randn_like(image()).double()
    x, wide = image().double(), copy.deepcopy(model).double()
    a = torch.cos(t * 1.5)[:, None, None, None]
    value = F.mse_loss(wide(a * x + (1 - a**2).sqrt() * e, t), e)
    params = dict(wide.named_parameters())
    found = torch.autograd.grad(value, list(params.values()))
    free = [n.startswith(("a.", "t.")) for n in params]
    pairs = [(g, p.detach()) for g, p, f in zip(found, params.values(), free, strict=True) if f]
    dot = sum(float((g * p).sum()) for g, p in pairs)
    g2, p2 = (sum(float(x.square().sum()) for x in side) for side in zip(*pairs, strict=True))
    return abs(dot) / (g2 * p2) ** 0.5


def test_the_scale_of_a_denoiser_is_free_but_for_epsilon() -> None:
    found = scales(Denoiser(), diffusion, image())
    assert [s.status for s in found] == ["approximate"]
    assert found[0].residual == pytest.approx(found[0].epsilon, rel=0.05)
    assert order_1(Denoiser()) < 1e-4  # an independent look: small, and epsilon's
    assert order_1(Denoiser(eps=1e-12)) < 1e-3 * order_1(Denoiser())


def test_with_a_tiny_epsilon_it_is_verified() -> None:
    assert [s.status for s in scales(Denoiser(eps=1e-14), diffusion, image())] == ["verified"]


def test_a_penalty_on_what_is_scaled_breaks_it() -> None:
    penalised = lambda m, x: diffusion(m, x) + 1e-3 * m.a.weight.square().sum()
    assert {s.status for s in scales(Denoiser(), penalised, image())} <= {"broken"}


def test_float32_alone_verifies_nothing_that_has_an_epsilon() -> None:
    """The looser check cannot tell 1e-5 from rounding."""
    model, x = Denoiser(), image()

    def loss(params: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(7)
        t, e = torch.rand(len(x)), torch.randn_like(x)
        return F.mse_loss(functional_call(model, params, (x + e, t)), e)

    found = find_symmetries(loss, dict(model.named_parameters()))
    kinds = {s.family: s.status for s in found}
    assert kinds["scale"] == "approximate"
    assert kinds["permutation"] == "verified"


def trained(model: nn.Module, loss: Any) -> dict[str, Any]:
    sink = MemorySink()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    monitor = eq.attach(
        model,
        optimizer,
        probes=[Noether()],
        schedule=1,
        budget=None,
        sinks=[sink],
        on_error="raise",
    )
    wrapped = monitor.loss(loss)
    for k in range(2):
        torch.manual_seed(7 + k)
        optimizer.zero_grad()
        wrapped(model, image()).backward()
        optimizer.step()
    monitor.close()
    return {f"{r.step}/{r.name}": r for r in sink.records}


def test_no_law_of_the_standard_diffusion_loss_is_called_broken() -> None:
    judged = {n: r.verdict for n, r in trained(Denoiser(), diffusion).items() if r.verdict}
    assert any("scale" in name for name in judged)
    assert "violated" not in judged.values()


def test_a_law_that_is_broken_is_still_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The symmetries of the diffusion loss, claimed of one that has them not."""
    find, x = symmetries._find, image()

    def of_another(snapshot: Any, known: Any) -> Any:
        others = [s for s in find(snapshot, known) if s.family != "scale"]
        return Found([*others, *scales(Denoiser(), diffusion, x)])

    monkeypatch.setattr(symmetries, "_find", of_another)
    penalised = lambda m, x: diffusion(m, x) + 1e-1 * m.a.weight.square().sum()
    judged = {n: r.verdict for n, r in trained(Denoiser(), penalised).items() if "scale" in n}
    assert "violated" in judged.values()


def cast(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]).float(), batch[1])


def weighted(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], weight=WEIGHTS)


def scheduled(model: Any, batch: Any) -> Tensor:
    steps = torch.linspace(0.1, 1.0, len(batch[0]))
    each = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return torch.dot(each, steps) / torch.arange(1.0, 4.0).sum()


def distributed(model: Any, batch: Any) -> Tensor:
    noise = torch.distributions.Normal(0.0, 0.1).sample(batch[0].shape)
    return F.cross_entropy(model(batch[0] + noise), batch[1])


def from_numpy(model: Any, batch: Any) -> Tensor:
    mask = torch.from_numpy(torch.linspace(0.5, 1.0, 3).numpy())
    return F.cross_entropy(model(batch[0]) * mask, batch[1])


WEIGHTS = torch.tensor([0.2, 0.3, 0.5])


@pytest.mark.parametrize("loss", [cast, weighted, scheduled, distributed, from_numpy])
def test_wherever_a_narrow_tensor_comes_from_exact_laws_are_verified(loss: Any) -> None:
    torch.manual_seed(0)
    model, batch = mlp(4, 6, 3), (torch.randn(9, 4), torch.arange(9) % 3)
    found = eq.weights.discover(model, batch, loss)
    rescale = [s for s in found if s.family == "rescale"]
    assert [(s.dimension, s.status) for s in rescale] == [(6, "verified")]
    assert all(s.residual < 1e-12 for s in rescale)
