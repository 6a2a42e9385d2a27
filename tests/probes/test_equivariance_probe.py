"""The equivariance probe on structured inputs, continuous groups, growth and culprits."""

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
