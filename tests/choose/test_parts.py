"""What suggestions are made of: gains, fresh and wider networks, augmentation, evidence, mends."""

import math
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn

from eqtoolbox import enforce
from eqtoolbox.choose import Augmented, laplace
from eqtoolbox.choose.folds import Gain, dealt, gain
from eqtoolbox.choose.fresh import fresh
from eqtoolbox.choose.learning import Learning, Recipe
from eqtoolbox.choose.mending import mends
from eqtoolbox.choose.suggestion import Suggestion, ranked
from eqtoolbox.choose.widening import wider
from eqtoolbox.demos.digits import DigitNet
from eqtoolbox.replay.reading import Reading
from eqtoolbox.symmetry.actions.action import flip, quarter_turn, roll, trivial
from eqtoolbox.symmetry.actions.permuting import Permute
from eqtoolbox.symmetry.actions.scaling import Degree
from eqtoolbox.symmetry.causes import Cause
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.culprit import culprit
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.finite import Symmetric
from eqtoolbox.symmetry.groups.group import Cyclic, CyclicTranslation, Flip

TURNS = Equivariance(Cyclic(4), quarter_turn, trivial)


def test_a_gain_has_the_error_of_nadeau_and_bengio() -> None:
    found = gain([0.1, 0.3, 0.2, 0.4], [0.0] * 4, folds=4)
    variance = sum((d - 0.25) ** 2 for d in (0.1, 0.3, 0.2, 0.4)) / 3
    assert found.stderr == pytest.approx(math.sqrt((1 / 4 + 1 / 3) * variance))
    assert found.quantile == pytest.approx(3.18245, abs=1e-5)
    assert found.verdict == "none"  # 0.25 < 3.18 * 0.0986
    assert gain([0.3] * 3 + [0.31], [0.0] * 4, 4).verdict == "gains"
    assert gain([-0.3] * 3 + [-0.31], [0.0] * 4, 4).verdict == "loses"
    assert gain([0.0] * 4, [0.0] * 4, 4).verdict == "none"


def test_noise_is_called_a_gain_at_most_in_one_of_twenty() -> None:
    """Differences that share a part, as trainings on overlapping samples do."""
    rng = torch.Generator().manual_seed(0)
    told = naive = 0
    for _ in range(400):
        own = torch.randn(5, generator=rng)
        shared = torch.randn(1, generator=rng) * 0.5  # correlation 1 / 5, as of five folds
        found = gain((own + shared).tolist(), [0.0] * 5, 5)
        told += found.verdict != "none"
        naive += abs(found.value) > found.quantile * float((own + shared).std()) / math.sqrt(5)
    assert told <= 0.05 * 400 + 3 * math.sqrt(400 * 0.05 * 0.95) < naive


def test_folds_hold_every_sample_out_once_a_deal() -> None:
    deals = list(dealt(23, 5, 2, seed=0))
    assert len(deals) == 10
    for part in (deals[:5], deals[5:]):
        assert sorted(torch.cat([held for _, held in part]).tolist()) == list(range(23))
    assert all(not set(a.tolist()) & set(b.tolist()) for a, b in deals)


class Free(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3))
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(3)


def test_a_fresh_copy_says_what_it_could_not_draw_anew() -> None:
    model = Free()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    new, kept = fresh(model, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert {name.split(".")[0] for name in kept} == {"table", "layer", "frozen"}
    assert not torch.equal(new.attention.in_proj_weight, model.attention.in_proj_weight)
    again, _ = fresh(model, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), again.parameters(), strict=True))


def test_a_wider_network_keeps_inputs_and_outputs() -> None:
    x = torch.randn(2, 1, 8, 8)
    wide = wider(DigitNet(), 1.6, 4, x)
    assert wide(x).shape == (2, 10)
    assert (wide.conv1.out_channels, wide.conv2.out_channels) == (28, 52)
    assert (wide.norm.num_features, wide.hidden.in_features) == (28, 208)
    assert all(isinstance(p, nn.Parameter) for p in wide.parameters())


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.last(self.first(x).view(-1, 4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(3, 1), "no hidden layer"),
        (Fixed(), "does not run|changes the shape"),
        (nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 1)), "PReLU is no plain layer"),
    ],
)
def test_what_cannot_be_widened_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wider(model, 2.0, 4, torch.ones(2, 3))


def test_augmentation_leaves_an_equivariant_network_as_it_is_and_no_other() -> None:
    """Rows come back to their places, moved back."""
    x = torch.randn(13, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    blur = nn.AvgPool2d(3, 1, 1)
    mirror = Equivariance(Flip(), flip, flip)
    assert torch.allclose(Augmented(blur, mirror).train()(x), blur(x), atol=1e-6)
    conv = nn.Conv2d(1, 1, 3, padding=1)
    other = Augmented(conv, mirror, elements=13).train()(x)
    same = (other - conv(x)).flatten(1).abs().amax(1) < 1e-6
    back = (other - flip(True, conv(flip(True, x)))).flatten(1).abs().amax(1) < 1e-6
    assert bool((same | back).all()) and 0 < int(same.sum()) < 13
    assert torch.equal(Augmented(conv, mirror).eval()(x), conv(x))


def test_augmentation_moves_several_arguments_and_names() -> None:
    class Sum(nn.Module):
        def forward(self, a, b):
            return {"sum": a + b}

    from eqtoolbox.symmetry.each import Each

    act, out = Each((Permute(1), Permute(1))), Each({"sum": Permute(1)})
    a, b = torch.randn(6, 4), torch.randn(6, 4)
    model = Augmented(Sum(), Equivariance(Symmetric(4), act, out)).train()
    assert torch.equal(model(a, b)["sum"], a + b)
    named = Each({"a": Permute(1), "b": Permute(1)})
    model = Augmented(Sum(), Equivariance(Symmetric(4), named, out)).train()
    assert torch.equal(model(a=a, b=b)["sum"], a + b)


def test_augmentation_refuses_what_cannot_be_undone() -> None:
    from eqtoolbox.symmetry.groups.irregular import Strengths

    with pytest.raises(ValueError, match="cannot be undone"):
        Augmented(nn.Linear(2, 2), Equivariance(Strengths(), Degree(1), Degree(1)))


def learning(x: torch.Tensor, y: torch.Tensor, model: nn.Module) -> Learning:
    return Learning.of(Reading(model, x), y, model(x[:2]).detach(), None, Recipe(steps=1))


def test_evidence_of_a_linear_model_is_that_of_a_gaussian_process(monkeypatch) -> None:
    """log N(y; 0, s^2 + X X^T / d), at weights that are the posterior mode for s and d."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=rng, dtype=torch.float64)
    y = x @ torch.randn(4, 1, generator=rng, dtype=torch.float64)
    y = y + 0.3 * torch.randn(30, 1, generator=rng, dtype=torch.float64)
    d, noise = 0.7, 0.1
    for _ in range(200):
        w = torch.linalg.solve(x.T @ x / noise + d * torch.eye(4), x.T @ y / noise)
        noise = float((x @ w - y).square().mean())
    model = nn.Linear(4, 1, bias=False).double()
    model.weight.data.copy_(w.T)
    cover = noise * torch.eye(30, dtype=torch.float64) + x @ x.T / d
    exact = torch.distributions.MultivariateNormal(torch.zeros(30).double(), cover).log_prob(
        y[:, 0]
    )
    monkeypatch.setattr(laplace, "_PRECISIONS", torch.tensor([d], dtype=torch.float64))
    found, why = laplace.evidence(model, learning(x, y, model))
    assert why == "" and found == pytest.approx(float(exact) / 30, rel=1e-5)


def test_evidence_of_tied_weights_is_that_of_the_function_they_make() -> None:
    """What an average leaves out is paid for by nobody."""
    torch.manual_seed(0)
    x = torch.randn(20, 1, 4, 4)
    y = (x.sum((1, 2, 3)) > 0).long()
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))
    tied = enforce.tied(net, TURNS, x).eval()
    clean, _ = laplace.evidence(tied, learning(x, y, tied))
    before = tied(x)
    with torch.no_grad():
        held = tied.model[1].parametrizations.weight
        noise = torch.randn_like(held.original)
        free = held[0](noise) / held[0].gain
        held.original.add_(noise - free)  # of which the average sees nothing
    assert torch.allclose(tied(x), before, atol=1e-5)
    found, _ = laplace.evidence(tied, learning(x, y, tied))
    assert found == pytest.approx(clean, rel=1e-4)


def test_evidence_takes_weights_that_are_not_used() -> None:
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    net = nn.Linear(3, 1)
    more = nn.Sequential(net)
    more.register_parameter("idle", nn.Parameter(torch.zeros(4)))
    a, b = (laplace.evidence(m, learning(x, x[:, :1], m))[0] for m in (net, more))
    assert a == pytest.approx(b)


def test_evidence_of_many_samples_is_not_computed_and_says_so() -> None:
    x = torch.randn(3000, 2)
    found, why = laplace.evidence(nn.Linear(2, 1), learning(x, x[:, :1], nn.Linear(2, 1)))
    assert found is None and "3000 samples" in why


def test_evidence_of_labels_pays_for_weights_that_explain_nothing() -> None:
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    small = nn.Linear(2, 2, bias=False)
    small.weight.data = torch.tensor([[-3.0, 0.0], [3.0, 0.0]])
    large = nn.Linear(2, 2, bias=False)
    large.weight.data = torch.tensor([[-3.0, 9.0], [3.0, -9.0]])  # explains by noise, too
    better, worse = (laplace.evidence(m, learning(x, y, m))[0] for m in (small, large))
    assert -math.log(2) < better and worse < better - 0.5


def test_a_mend_goes_by_the_kind_of_the_cause_not_by_its_words() -> None:
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3, padding=1), flat=nn.Flatten()))
    x = torch.randn(2, 1, 5, 5)
    found = culprit(net, x, TURNS)
    assert found.kind == "kernel"
    reworded = replace(found, cause=Cause("in other words", found.kind))
    assert next(mends(net, x, TURNS, reworded)).words == next(mends(net, x, TURNS, found)).words
    unknown = replace(found, cause=str(found.cause))  # a cause of which no kind is known
    assert "average" in next(mends(net, x, TURNS, unknown)).words


def test_padding_is_mended_by_code_that_runs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    x = torch.randn(4, 1, 6, 6)
    claim = Equivariance(CyclicTranslation(6), roll, trivial)
    found = list(mends(model, x, claim, culprit(model, x, claim)))
    assert [(m.layer, m.tried) for m in found] == [("0", True), ("2", True)]
    assert equivariance_error(model, x, claim).verdict == "violated"
    for mend in found:
        exec(mend.code, {"model": model})
    assert equivariance_error(model, x, claim).verdict == "holds"


@pytest.mark.parametrize(("size", "layers"), [(8, ["conv", "pool"]), (9, ["conv", "flat"])])
def test_strides_are_blamed_where_the_grid_is_odd_one_out(size: int, layers: list[str]) -> None:
    """Behind kernels that are symmetric, the pool breaks a grid of 8 and not one of 9."""
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(1, 3, 3, padding=1))
    net.add_module("pool", nn.MaxPool2d(3, 2))
    net.add_module("flat", nn.Flatten())
    net.add_module("head", nn.Linear(3 * ((size - 3) // 2 + 1) ** 2, 2))
    x = torch.randn(4, 1, size, size)
    found = list(mends(net, x, TURNS, culprit(net, x, TURNS)))
    assert [m.layer for m in found] == layers and "tie its kernel" in found[0].words
    words = {"pool": "stride 1", "flat": "AdaptiveAvgPool2d"}[layers[1]]
    assert words in found[1].words and not found[1].tried


def test_claims_are_ranked_by_their_first_way_and_ways_by_their_own_gain() -> None:
    mirror = Equivariance(Flip(), flip, trivial)

    def row(claim: Equivariance, way: str, value: float, outcome: str = "gains") -> Suggestion:
        won = Gain(value=value, stderr=0.02, quantile=2.0)
        return Suggestion(claim=claim, way=way, outcome=outcome, gain=won, decides=won)

    rows = [
        row(mirror, "averaged", 0.05), row(mirror, "tied", 0.3),
        row(TURNS, "averaged", 0.08), row(TURNS, "tied", 0.2),
        row(mirror, "augmented", 0.01, "none"),
    ]  # fmt: skip
    order = [(r.claim.name, r.way) for r in ranked(rows, ())]
    assert order[:2] == [("cyclic4", "tied"), ("cyclic4", "averaged")]
    assert order[2:] == [("flip", "tied"), ("flip", "averaged"), ("flip", "augmented")]
    assert ranked(rows, {"flip"})[0].claim is mirror  # 0.05 + 2 * 0.02 > 0.08
