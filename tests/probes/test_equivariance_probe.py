"""The equivariance probe on structured inputs, continuous groups, growth and culprits."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry import SO3, Each, Equivariance, Symmetric, layers
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.actions.linear import vectors
from eqtoolbox.symmetry.actions.permuting import Permute
from eqtoolbox.symmetry.layers import activations


class Tokens(nn.Module):
    """Attention with a padding mask; two arguments, a dict of outputs."""

    def __init__(self, positions: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 4), requires_grad=positions)
        self.positions = positions
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = x + self.table if self.positions else x
        tokens = self.attention(x, x, x, key_padding_mask=mask)[0]
        return {"tokens": tokens, "pooled": tokens.masked_fill(mask[..., None], 0).sum(1)}


def measured(model, loss, batch, probe, steps: int = 2):
    torch.manual_seed(0)
    sink = MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(
        model, optimizer, probes=[probe], budget=None, sinks=(sink,), on_error="raise"
    ) as monitor:
        loss_fn = monitor.loss(loss)
        for _ in range(steps):
            loss_fn(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {r.name: r for r in sink.records}


@pytest.mark.parametrize("positions", [False, True])
def test_tuples_of_arguments_and_dicts_of_outputs_are_measured(positions: bool) -> None:
    torch.manual_seed(0)
    claim = Equivariance(
        Symmetric(5),
        Each((Permute(-2), Permute(-1))),
        Each({"tokens": Permute(-2), "pooled": trivial}),
        name="tokens",
    )
    mask = torch.tensor([[False] * 3 + [True] * 2]).expand(6, 5).contiguous()
    loss = lambda model, batch: model(*batch)["pooled"].square().mean()
    model = Tokens(positions)
    probe = EquivarianceError(symmetries=(claim,), locate=True)
    records = measured(model, loss, (torch.randn(6, 5, 4), mask), probe)
    found = records["equivariance/relative_error/tokens"]
    assert found.status == "ok"
    assert found.verdict == ("violated" if positions else "holds")
    assert records["equivariance/growth/tokens"].value >= 1.0


def test_continuous_groups_have_lie_derivatives_and_the_layer_is_named() -> None:
    torch.manual_seed(0)
    claim = Equivariance(SO3(), vectors, trivial, name="turns")
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
    batch = (torch.randn(16, 3), torch.randint(0, 2, (16,)))
    records = measured(model, loss, batch, EquivarianceError(symmetries=(claim,), locate=True))
    for axis in range(3):
        assert records[f"equivariance/lie_derivative/turns.{axis}"].verdict == "violated"
        assert records[f"equivariance/direction_ratio/turns.{axis}"].value > 0.01
    assert 0 <= records["equivariance/consistency/turns"].value <= 1
    assert "first broken at 0: Linear" in records["equivariance/relative_error/turns"].note
    first = records["equivariance/layer_error/turns/00.0"]
    assert first.value > 10 * first.floor > 0
    assert first.note.startswith("Linear, ")


def test_an_error_that_grows_raises_the_alarm() -> None:
    """A model that starts odd and learns a bias."""
    from eqtoolbox.symmetry import Sign
    from eqtoolbox.symmetry.actions.scaling import Parity

    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    nn.init.zeros_(model.bias)
    loss = lambda model, batch: (model(batch) - 5).square().mean()
    probe = EquivarianceError(symmetries=(Equivariance(Sign(), Parity(), Parity(), name="odd"),))
    records = measured(model, loss, torch.randn(8, 3), probe, steps=4)
    assert records["equivariance/growth/odd"].value > 1e4
    assert records["equivariance/growth/odd"].note.startswith("alarm")


def test_layers_of_several_claims_are_those_of_each_by_fewer_runs(monkeypatch) -> None:
    """What the model makes of x itself is shared between claims, and by claim nothing else."""
    names = ("cyclic4", "flip", "translation")
    batch = torch.randn(6, 1, 4, 4), torch.randint(0, 2, (6,))
    loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])

    def blamed(*symmetries: str) -> tuple[dict[str, tuple[float, str]], int]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
        runs: list[int] = []
        run = lambda *given, **options: runs.append(1) or activations(*given, **options)
        monkeypatch.setattr(layers, "activations", run)
        probe = EquivarianceError(symmetries=symmetries, locate=True)
        records = measured(model, loss, batch, probe, steps=1)
        located = {n: r for n, r in records.items() if "/layer_error/" in n}
        return {n: (r.value, r.note) for n, r in located.items()}, len(runs)

    together, runs = blamed(*names)
    apart = [blamed(name) for name in names]
    assert together == {n: found for one, _ in apart for n, found in one.items()}
    assert {n.split("/")[2] for n in together} == set(names)
    assert runs == sum(count for _, count in apart) - 3 * (len(names) - 1)


class Writes(nn.Module):
    """A map of vectors that turns with them, and writes where it is told to."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.layer = nn.Linear(1, 1)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, given, scale: Tensor | None = None):
        x = given["x"] if isinstance(given, dict) else given
        if self.where == "input":
            x.mul_(0.5).div_(1 + x.norm(dim=-1, keepdim=True))
        elif self.where == "second input":
            x = x * scale.mul_(0.5)
        elif self.where == "dict":
            given.setdefault("length", x.norm(dim=-1, keepdim=True))
            return x * self.layer(given["length"])
        elif self.where == "buffer":
            self.seen.mul_(0.9).add_(x.detach().mean(0))
        elif self.where == "array":
            x = x * torch.from_numpy(np.linalg.norm(x.detach().numpy(), axis=-1, keepdims=True))
        return x * self.layer(x.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("where", ["input", "second input", "dict", "buffer"])
def test_a_model_may_write_into_what_it_is_given_or_holds(where: str) -> None:
    torch.manual_seed(0)
    x, scale = torch.randn(8, 3), torch.rand(8, 1)
    given = {"dict": ({"x": x},), "second input": (x, scale)}.get(where, (x,))
    acts = Each({"x": vectors}) if where == "dict" else vectors
    claim = Equivariance(SO3(), acts, vectors, name="turns")
    probe = EquivarianceError(symmetries=(claim,))
    loss = lambda model, batch: model(*batch).square().mean()
    records = measured(Writes(where), loss, given, probe, steps=1)
    assert records["equivariance/relative_error/turns"].verdict == "holds"
    assert [records[f"equivariance/lie_derivative/turns.{k}"].verdict for k in range(3)] == [
        "holds"
    ] * 3


def test_an_error_is_measured_where_no_derivative_can_be_taken() -> None:
    torch.manual_seed(0)
    probe = EquivarianceError(symmetries=(Equivariance(SO3(), vectors, vectors, name="turns"),))
    loss = lambda model, batch: model(batch).square().mean()
    records = measured(Writes("array"), loss, torch.randn(8, 3), probe, steps=1)
    assert records["equivariance/relative_error/turns"].verdict == "holds"
    assert records["equivariance/lie_derivative/turns"].status == "not_applicable"


def test_one_tensor_may_have_several_outputs() -> None:
    class Fields(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                energy = self.layer(x.norm(dim=-1, keepdim=True)).square()[:, 0]
                forces = -torch.autograd.grad(energy.sum(), x, create_graph=True)[0]
            return {"energy": energy, "forces": forces}

    torch.manual_seed(0)
    claims = [
        Equivariance(SO3(), vectors, Each({"energy": trivial, "forces": forces}), name=name)
        for name, forces in (("right", vectors), ("wrong", trivial))
    ]
    loss = lambda model, batch: sum(y.square().mean() for y in model(batch).values())
    probe = EquivarianceError(symmetries=claims)
    records = measured(Fields(), loss, torch.randn(8, 3), probe, steps=1)
    assert records["equivariance/relative_error/right"].verdict == "holds"
    assert records["equivariance/relative_error/wrong"].verdict == "violated"
