"""The probe of discrete symmetries on mixtures of experts, against exchanges made by hand."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from eqtoolbox.probes.discrete import Discrete
from tests.probes.test_discrete import of, run

Params = dict[str, Tensor]


class Mixture(nn.Module):
    """Experts weighted by the softmax of a gate, all of them or the best two."""

    def __init__(self, experts: int, *, hidden: int = 0, best: int = 0, bias: bool = True) -> None:
        super().__init__()
        self.gate = nn.Linear(6, experts, bias=bias)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 3))
            if hidden
            else nn.Linear(6, 3)
            for _ in range(experts)
        )
        self.best = best

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x)
        if self.best:
            kept, chosen = scores.topk(self.best, dim=-1)
            scores = torch.full_like(scores, -math.inf).scatter(-1, chosen, kept)
        weights = scores.softmax(-1)
        return sum(weights[:, i : i + 1] * e(x) for i, e in enumerate(self.experts))  # type: ignore


BATCH = (
    torch.randn(12, 6, generator=torch.Generator().manual_seed(1)).double(),
    torch.arange(12) % 3,
)
KINDS: dict[str, dict[str, Any]] = {
    "two": {"experts": 2},
    "four": {"experts": 4},
    "eight": {"experts": 8},
    "without bias": {"experts": 4, "bias": False},
    "mlp": {"experts": 3, "hidden": 5},
    "top two": {"experts": 4, "best": 2},
}


def mixture(kind: str) -> Mixture:
    torch.manual_seed(0)
    return Mixture(**KINDS[kind]).double()


def exchanged(params: Params, i: int, j: int) -> Params:
    """Experts i and j change places by hand, with their rows of the gate."""
    moved = {n: p.clone() for n, p in params.items()}
    for name in params:
        if name.startswith("gate."):
            moved[name][[i, j]] = params[name][[j, i]]
        for here, there in ((i, j), (j, i)):
            if name.startswith(f"experts.{here}."):
                moved[name] = params[name.replace(f"experts.{here}.", f"experts.{there}.")].clone()
    return moved


def loss_at(model: nn.Module, params: Params) -> float:
    return F.cross_entropy(functional_call(model, params, (BATCH[0],)), BATCH[1]).item()


def parameters(model: nn.Module) -> Params:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def apart(params: Params, i: int, j: int) -> float:
    """|u_i - u_j| / sqrt(|u_i|^2 + |u_j|^2), u all that an expert owns."""

    def whole(k: int) -> Tensor:
        own = [p.flatten() for n, p in params.items() if n.startswith(f"experts.{k}.")]
        return torch.cat([*own, *(p[k].flatten() for n, p in params.items() if "gate" in n)])

    one, two = whole(i), whole(j)
    return float((one - two).norm() / math.hypot(float(one.norm()), float(two.norm())))


@pytest.mark.parametrize("kind", KINDS)
def test_the_laws_hold_and_the_distance_is_that_of_the_nearest_experts(kind: str) -> None:
    model = mixture(kind)
    params = parameters(model)
    # the independent fact: exchanging two experts leaves the loss, forgetting the gate does not
    before, moved = loss_at(model, params), exchanged(params, 0, 1)
    assert loss_at(model, moved) == pytest.approx(before, rel=1e-12)
    forgotten = {n: params[n] if n.startswith("gate") else p for n, p in moved.items()}
    assert loss_at(model, forgotten) != pytest.approx(before, rel=1e-6)

    records = run(model, BATCH, Discrete())
    assert {r.status for r in records if r.name.startswith("discrete/")} <= {"ok", "not_applicable"}
    for order in ("first", "second"):
        law = of(records, f"{order}_order/permutation")
        assert (law.status, law.verdict) == ("ok", "holds")
    experts = len(model.experts)
    pairs = {(i, j): apart(params, i, j) for i in range(experts) for j in range(i)}
    found = of(records, "distance/permutation")
    nearest = min(pairs.values())
    if "units" in found.note:  # of an expert's own hidden layer
        assert kind == "mlp" and found.value < nearest
    else:
        assert found.value == pytest.approx(nearest, rel=1e-9)
        i, j = min(pairs, key=lambda pair: pairs[pair])
        assert found.note == f"gate experts {j} and {i}"


class Stacked(nn.Module):
    """Experts as slices of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.weight = nn.Parameter(torch.randn(4, 6, 3))

    def forward(self, x: Tensor) -> Tensor:
        each = torch.einsum("bi,eio->beo", x, self.weight)
        return (self.gate(x).softmax(-1)[:, :, None] * each).sum(1)


def test_stacked_experts_are_measured_like_those_in_a_list() -> None:
    torch.manual_seed(0)
    stacked, listed = Stacked().double(), mixture("four")
    with torch.no_grad():
        listed.gate.load_state_dict(stacked.gate.state_dict())
        for expert, weight in zip(listed.experts, stacked.weight, strict=True):
            expert.weight.copy_(weight.T)  # type: ignore[union-attr, operator]
            expert.bias.zero_()  # type: ignore[union-attr, operator]
    first, second = (of(run(m, BATCH), "distance/permutation") for m in (stacked, listed))
    assert first.value == pytest.approx(second.value, rel=1e-9)
    assert first.note == second.note


def test_equal_experts_are_duplicates_and_merge_or_part_by_the_margin() -> None:
    model = mixture("four")
    with torch.no_grad():
        model.gate.weight[2] = model.gate.weight[0]
        model.gate.bias[2] = model.gate.bias[0]
        model.experts[2].load_state_dict(model.experts[0].state_dict())  # type: ignore[union-attr]
        model.experts[2].weight[0, 0] += 1e-3  # type: ignore[union-attr]
    params = parameters(model)
    records = run(model, BATCH, Discrete(pairs=1))
    assert of(records, "nearest/1").value == pytest.approx(apart(params, 2, 0), rel=1e-6)
    assert of(records, "nearest/1").note == "gate experts 0 and 2"
    assert of(records, "block/1").verdict == "holds"
    assert of(records, "margin/1").value == pytest.approx(smallest(model, params, 0, 2), rel=1e-3)


def smallest(model: Mixture, params: Params, i: int, j: int) -> float:
    """Least eigenvalue of the dense Hessian on antisymmetric directions, at the symmetric point."""
    moved = exchanged(params, i, j)
    names, middle = list(params), {n: (p + moved[n]) / 2 for n, p in params.items()}
    sizes = [params[n].numel() for n in names]

    def loss(flat: Tensor) -> Tensor:
        parts = dict(zip(names, flat.split(sizes), strict=True))
        shaped = {n: x.view(params[n].shape) for n, x in parts.items()}
        return F.cross_entropy(functional_call(model, shaped, (BATCH[0],)), BATCH[1])

    flat = torch.cat([middle[n].flatten() for n in names])
    hessian = torch.autograd.functional.hessian(loss, flat)
    columns = []
    for unit in torch.eye(len(flat), dtype=torch.float64):
        point = {n: x.view(params[n].shape) for n, x in zip(names, unit.split(sizes), strict=True)}
        columns.append(torch.cat([exchanged(point, i, j)[n].flatten() for n in names]))
    turn = torch.stack(columns, dim=1)
    values, vectors = torch.linalg.eigh(turn)
    odd = vectors[:, values < 0]
    return float(torch.linalg.eigvalsh(odd.T @ hessian @ odd)[0])


def test_an_exchange_that_is_no_symmetry_breaks_the_law() -> None:
    """The same gate with one expert of another kind: what is alike is exchanged, the loss moves."""
    model = mixture("two")
    params = parameters(model)
    odd = {**params, "experts.1.bias": params["experts.1.bias"] + 1}
    assert loss_at(model, exchanged(odd, 0, 1)) == pytest.approx(loss_at(model, odd), rel=1e-12)

    class Uneven(Mixture):
        def forward(self, x: Tensor) -> Tensor:
            weights = self.gate(x).softmax(-1)
            return weights[:, :1] * self.experts[0](x) - weights[:, 1:] * self.experts[1](x)

    torch.manual_seed(0)
    uneven = Uneven(2).double()
    own = parameters(uneven)
    assert loss_at(uneven, exchanged(own, 0, 1)) != pytest.approx(loss_at(uneven, own), rel=1e-6)
    found = run(uneven, BATCH, Discrete())
    assert not any("experts" in r.note for r in found), "a broken exchange is not reported"
