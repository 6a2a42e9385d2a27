"""The first broken layer and its cause, planted one by one; assertions for test suites."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.demos import burgers
from eqtoolbox.demos.burgers import BOOSTS, STEP, BurgersSurrogate, Moving
from eqtoolbox.symmetry import Equivariance
from eqtoolbox.symmetry.actions.action import quarter_turn, roll, trivial
from eqtoolbox.symmetry.actions.boosts import Boost
from eqtoolbox.symmetry.actions.linear import axial_vectors, vectors
from eqtoolbox.symmetry.actions.permuting import Permute
from eqtoolbox.symmetry.actions.resampling import FourierShift, Shift, Turn, band_limited
from eqtoolbox.symmetry.culprit import better_output_action, culprit
from eqtoolbox.symmetry.each import Each
from eqtoolbox.symmetry.groups.finite import Symmetric
from eqtoolbox.symmetry.groups.group import Cyclic, CyclicTranslation
from eqtoolbox.symmetry.groups.matrices import O3, SE3, SO2, SO3
from eqtoolbox.symmetry.groups.unbounded import Translations
from eqtoolbox.symmetry.testing import assert_equivariant

TURN = Equivariance(Cyclic(4), quarter_turn, trivial)
ROLL = Equivariance(CyclicTranslation(8), roll, trivial)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tied(inputs: int, outputs: int, **options) -> nn.Conv2d:
    """A convolution whose kernel equals its quarter turns."""
    conv = nn.Conv2d(inputs, outputs, 3, **options)
    kernel = sum(torch.rot90(conv.weight.detach(), k, (-2, -1)) for k in range(4)) / 4
    conv.weight = nn.Parameter(kernel)
    return conv


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Positions(nn.Module):
    """Adds a positional embedding to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(normal(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


def network(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*layers, Pooled()).eval()


@pytest.mark.parametrize(
    ("model", "size", "claim", "layer", "cause"),
    [
        (lambda: network(tied(1, 3), tied(3, 3, stride=2, padding=1)), 10, TURN, "1",
         r"stride 2 on size 8 leaves 1 .* use size 7"),
        (lambda: network(tied(1, 3), nn.MaxPool2d(2)), 9, TURN, "1", "MaxPool2d of kernel 2"),
        (lambda: network(tied(1, 3), nn.ReLU(), nn.Conv2d(3, 3, 3)), 8, TURN, "2",
         "not symmetric: average it"),
        (lambda: network(nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"),
                         nn.Conv2d(3, 3, 3, padding=1)), 8, ROLL, "1", "pads with zeros"),
        (lambda: network(nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"),
                         nn.AvgPool2d(2)), 8, ROLL, "1", "multiples of 2"),
        (lambda: network(tied(1, 3), nn.ReLU(), nn.Dropout(0.5)).train(), 8, TURN, "2",
         "random: put the model in eval mode"),
    ],
)  # fmt: skip
def test_the_planted_layer_is_named_with_its_cause(model, size, claim, layer, cause) -> None:
    found = culprit(model(), normal(4, 1, size, size), claim)
    assert found.layer == layer
    assert re.search(cause, found.cause)


class Added(nn.Module):
    """A vision transformer's habit: the positional parameter is added outside of any layer."""

    def __init__(self, embedding: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        if embedding:
            self.places = nn.Embedding(6, 4)
        else:
            self.pos_embed = nn.Parameter(normal(1, 6, 4))
        self.embedding = embedding

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        place = self.places(torch.arange(6)).expand_as(x) if self.embedding else self.pos_embed
        return self.last(x + place)


class Attending(nn.Module):
    """Attention with a padding mask, its own or an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.attention(x, x, x, key_padding_mask=mask)[0]


class Nearest(nn.Module):
    """Adds the three entries of largest first feature, numbered by rank."""

    def forward(self, x: Tensor) -> Tensor:
        which = x[..., 0].topk(3, dim=1).indices
        rank = torch.arange(1.0, 4.0)[None, :, None]
        return (x.gather(1, which[..., None].expand(-1, -1, x.shape[-1])) * rank).sum(1)


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


PERMUTED = Equivariance(Symmetric(6), Permute(-2), Permute(-2))


@pytest.mark.parametrize(
    ("embedding", "word"), [(False, "parameter 'pos_embed'"), (True, "table 'places'")]
)
def test_positions_added_outside_of_layers_are_named(embedding: bool, word: str) -> None:
    torch.manual_seed(0)
    found = culprit(Added(embedding), normal(2, 6, 4), PERMUTED)
    assert found.layer == "last"
    assert word in found.cause
    assert "positional embedding" in found.cause


def test_a_mask_that_stays_is_named() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[False] * 4 + [True] * 2]).expand(3, 6).contiguous()
    batch, model = (normal(3, 6, 4), mask), Attending().eval()
    still = Equivariance(Symmetric(6), Each((Permute(-2), trivial)), Permute(-2))
    found = culprit(model, batch, still)
    assert found.layer == "attention"
    assert "mask is not permuted with the tokens" in found.cause
    moved = Equivariance(Symmetric(6), Each((Permute(-2), Permute(-1))), Permute(-2))
    assert culprit(model, batch, moved).layer is None


def test_ties_are_named_and_without_ties_the_order_of_values_is_an_invariant() -> None:
    claim = Equivariance(Symmetric(6), Permute(-2), trivial)
    model = nn.Sequential(nn.ReLU(), Nearest())
    negative = torch.cat([normal(4, 6, 1) - 3.0, normal(4, 6, 3, seed=1).abs()], 2)
    found = culprit(model, negative, claim)
    assert found.layer == "1"
    assert "ties in topk" in found.cause
    assert culprit(model, normal(4, 6, 4).abs(), claim).layer is None


def test_a_nonlinearity_that_aliases_is_named_and_below_a_quarter_of_the_rate_is_sound() -> None:
    sub_pixel = FourierShift((-1,))
    claim = Equivariance(Translations((2.0,), whole=False), sub_pixel, sub_pixel)
    at = torch.arange(25.0, dtype=torch.float64)
    for waves, layer in ((3, None), (8, "1")):
        x = torch.cos(2 * math.pi * waves * at / 25 + torch.arange(4.0).double()[:, None])
        found = culprit(nn.Sequential(nn.Identity(), Square()), x, claim)
        assert found.layer == layer
        assert ("aliasing" in found.cause) == (layer is not None)


def test_batch_statistics_are_named_when_shifts_lose_pixels() -> None:
    torch.manual_seed(0)
    shift = Shift((2, 2))
    claim = Equivariance(Translations((2, 2)), shift, Shift((2, 2), margin=2))
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3))
    x = normal(4, 1, 20, 20)
    hidden = {"0": Shift((2, 2), margin=2), "1": Shift((2, 2), margin=2)}
    assert culprit(model.eval(), x, claim, hidden=hidden).layer is None
    found = culprit(model.train(), x, claim, hidden=hidden)
    assert found.layer == "1"
    assert "BatchNorm2d in train mode" in found.cause


def test_interpolation_is_told_from_a_kernel_that_does_not_turn() -> None:
    turn = Equivariance(SO2(), Turn(), Turn(radius=0.6))
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False).double()
    layer.weight = nn.Parameter(torch.tensor([[[[0.0, 0, 0], [-1, 0, 1], [0, 0, 0]]]]).double())
    noise = normal(2, 1, 65, 65).double()
    rough = culprit(nn.Sequential(layer), noise, turn, hidden={"0": Turn(radius=0.6)})
    assert rough.layer is None
    assert rough.cause.startswith("interpolation: the action itself is off by 0.")
    smooth = band_limited(noise, 0.05)
    found = culprit(nn.Sequential(layer), smooth, turn, hidden={"0": Turn(radius=0.6)})
    assert found.layer == "0"
    assert "the kernel of Conv2d is not symmetric" in found.cause


def test_no_culprit_in_a_network_that_obeys() -> None:
    model = network(tied(1, 3), nn.ReLU(), nn.MaxPool2d(2))
    found = culprit(model, normal(4, 1, 8, 8), TURN)
    assert (found.layer, found.cause) == (None, "")
    assert [layer.layer for layer in found.layers] == ["0", "1", "2", "3"]
    assert_equivariant(model, normal(4, 1, 8, 8), TURN)


def test_a_positional_embedding_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Positions(), nn.Linear(4, 4))
    found = culprit(model, normal(2, 6, 4), Equivariance(Symmetric(6), Permute(-2), Permute(-2)))
    assert found.layer == "1"
    assert "positional embedding" in found.cause


class Moment(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.cross(x[:, 0], x[:, 1])


class Volume(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.det(x)[:, None]


def test_a_pseudo_scalar_claimed_to_be_a_scalar_is_named() -> None:
    found = culprit(Volume(), normal(8, 3, 3), Equivariance(O3(), vectors, trivial))
    assert "it holds for pseudo_scalars; check R" in found.cause


def test_a_wrong_output_action_is_named() -> None:
    claim = Equivariance(O3(), vectors, vectors)
    found = culprit(Moment(), normal(8, 2, 3), claim)
    assert "it holds for axial_vectors; check R" in found.cause
    right = Equivariance(O3(), vectors, axial_vectors)
    assert culprit(Moment(), normal(8, 2, 3), right).cause == ""
    assert better_output_action(lambda x: x.tanh().sum(1), normal(8, 2, 3), claim) == ""


def test_the_model_is_left_as_it_was() -> None:
    model = network(tied(1, 3), nn.BatchNorm2d(3)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    culprit(model, normal(4, 1, 8, 8), TURN)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_assertions_have_no_absolute_tolerance() -> None:
    claim, weight = Equivariance(O3(), vectors, vectors), normal(3, 3)
    for factor in (1e-4, 1.0, 1e4):
        assert_equivariant(lambda x, c=factor: c * x, normal(8, 3), claim)
        with pytest.raises(AssertionError, match=r"o3 violated: relative error .* worst"):
            assert_equivariant(lambda x, c=factor: c * x @ weight, normal(8, 3), claim)


def test_a_failed_assertion_names_the_layer() -> None:
    model = network(tied(1, 3), nn.MaxPool2d(2))
    with pytest.raises(AssertionError, match="first broken at 1: MaxPool2d"):
        assert_equivariant(model, normal(4, 1, 9, 9), TURN)
    assert assert_equivariant(model, normal(4, 1, 9, 9), TURN, tolerance=2.0).verdict == "violated"


def test_under_boosts_the_layer_that_bends_the_wind_is_named_and_affine_ones_are_not() -> None:
    """A convolution adds to every channel a constant for the wind; an activation does not."""
    torch.manual_seed(0)
    u = burgers.waves(16, torch.Generator().manual_seed(0)).float()
    found = culprit(BurgersSurrogate(), u, BOOSTS)
    assert (found.layer, found.layers[0].broken) == ("layers.1", False)
    assert found.layers[0].action.startswith("a constant of each channel")
    assert "GELU bends what a wind adds" in found.cause
    assert culprit(Moving(), u, BOOSTS).layer is None

    padded = BurgersSurrogate()
    padded.layers[0] = nn.Conv1d(1, 16, 9, padding=4)
    found = culprit(padded, u, BOOSTS)
    assert found.layer == "layers.0"
    assert "pads with zeros, which no wind blows through" in found.cause


@pytest.mark.parametrize(("cells", "word"), [(0, "carries nothing"), (-1, "carries the other way")])
def test_an_output_boost_of_the_wrong_motion_is_named(cells: int, word: str) -> None:
    """A network that obeys a boost of one motion, judged by another; by its own it has no cause."""
    torch.manual_seed(0)
    u = burgers.waves(16, torch.Generator().manual_seed(0)).float()

    claims = {c: Equivariance(BOOSTS.group, Boost(STEP), Boost(STEP, cells=c)) for c in (-1, 0, 1)}
    model, own, judged = (nn.Identity(), 0, 1) if cells == 0 else (Moving(), 1, -1)
    assert culprit(model, u, claims[own]).cause == ""
    found = culprit(model, u, claims[judged])
    assert f"wrong output action: it holds for a boost that {word}" in found.cause


def test_a_group_alone_acts_as_is_usual_on_its_inputs_and_outputs() -> None:
    points = normal(4, 5, 3)
    for group in (SO3(), O3(), Symmetric(5)):
        assert assert_equivariant(
            lambda x: x * x.square().sum((1, 2))[:, None, None], points, group
        )
        assert assert_equivariant(lambda x: x.square().sum((1, 2)), points, group)
    assert assert_equivariant(lambda x: x[:, 0] - x[:, 1], points, SE3()).verdict == "holds"
    with pytest.raises(AssertionError, match=r"(?s)se3 violated.*To do: mend"):
        assert_equivariant(lambda x: x[:, 0] + x[:, 1], points, SE3())
    with pytest.raises(AssertionError, match=r"(?s)so3 violated.*it holds for trivial"):
        assert_equivariant(Lengths(), points, SO3())
    with pytest.raises(ValueError, match="no action of so2 is known for tensors of these shapes"):
        assert_equivariant(lambda x: x, points, SO2())


class Lengths(nn.Module):
    """Three invariants of a set of vectors, which look like a vector."""

    def forward(self, x: Tensor) -> Tensor:
        r = x.norm(dim=-1)
        return torch.stack([r.sum(1), r.square().sum(1), r.amax(1)], 1)


def test_the_worst_element_is_told_in_a_few_digits() -> None:
    with pytest.raises(AssertionError) as failed:
        assert_equivariant(lambda x: x[:, 0] + x[:, 1], normal(4, 5, 3), SE3())
    told = str(failed.value).split(" at ")[1].split("\n")[0]
    assert re.fullmatch(r"[(), \d.e-]+", told) and not re.search(r"\d{5}", told)
