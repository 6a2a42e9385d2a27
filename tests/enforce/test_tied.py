"""Tied weights: exact for every layer kind, group and wiring, whatever the weights become."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqtoolbox.enforce import Tied, tied
from eqtoolbox.symmetry import Cyclic, Dihedral, Each, Equivariance, Flip, Sign, Symmetric
from eqtoolbox.symmetry.actions.action import dihedral, flip, quarter_turn, trivial
from eqtoolbox.symmetry.actions.permuting import Box, Permute, Reverse, Signed
from eqtoolbox.symmetry.actions.scaling import Parity
from eqtoolbox.symmetry.each import Chain, factor
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.finite import Octahedral
from eqtoolbox.symmetry.groups.products import Product

C4 = Equivariance(Cyclic(4), quarter_turn, trivial)
C4_MAPS = Equivariance(Cyclic(4), quarter_turn, quarter_turn)
D4 = Equivariance(Dihedral(4), dihedral, trivial)
MIRROR = Equivariance(Flip(), flip, trivial)
TURNED = Equivariance(Flip(), Reverse(), trivial)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def third(g: int, x: Tensor) -> Tensor:
    """Vectors of the plane turned by 120 degrees."""
    a = 2 * math.pi * g / 3
    turn = [[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]
    return x @ torch.tensor(turn, dtype=torch.float64).to(x).T


class Residual(nn.Module):
    """Norms, scales, skips and a squeeze-and-excite gate, written by hand."""

    def __init__(self, inputs: int = 3, width: int = 8, groups: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, width, 3, stride=2, padding=1)
        self.first = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=2, dilation=2)
        self.scale = nn.Parameter(torch.rand(width, 1, 1))
        self.squeeze = nn.Linear(width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = F.silu(self.norm(self.first(x)))
        x = x + self.scale * self.second(inner)
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3))))[:, :, None, None]
        y: Tensor = self.head(F.adaptive_max_pool2d(F.relu(x), 1).view(x.size(0), -1))
        return y


class Joined(nn.Module):
    """A concatenation, a gate by halves, and a positional table."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(1, 4, 1)
        self.place = nn.Parameter(torch.randn(1, 12, 6, 6))
        self.gate = nn.Conv2d(12, 16, 3, padding=1)
        self.out = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x)], dim=1) + self.place
        value, gate = self.gate(F.gelu(y)).chunk(2, dim=1)
        z: Tensor = self.out(value * torch.sigmoid(gate)) + x
        return z


class Pair(nn.Module):
    """An image and a vector that mirrors with it, in a dict; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = nn.Conv2d(1, 4, 3), nn.Linear(2, 4)
        self.both = nn.Linear(8, 3)
        self.back = nn.Linear(8, 2)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        seen = F.relu(self.image(batch["image"])).amax((-2, -1))
        both = F.relu(torch.cat([seen, self.vector(batch["vector"])], dim=1))
        return {"class": self.both(both), "force": self.back(both)}


ACROSS = Signed((0, 1), (-1, 1))
PAIR = Equivariance(
    Cyclic(2),
    Each({"image": lambda g, x: x.flip(-1) if g else x, "vector": ACROSS}),
    Each({"class": trivial, "force": ACROSS}),
)
BOTH = Equivariance(
    Product(Cyclic(4), Sign()),
    Chain(factor(0, quarter_turn), factor(1, Parity())),
    factor(1, Parity()),
)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    claim: Equivariance
    sample: Any


def cnn(width: int = 8, size: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(width * (size // 2) ** 2, 16), nn.ReLU(), nn.Linear(16, 3),
    )  # fmt: skip


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 48, 3, padding=1), nn.InstanceNorm3d(48, affine=True), nn.ReLU(),
        nn.AvgPool3d(2), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(48, 3),
    )  # fmt: skip


def hourglass() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8), nn.GELU(), nn.Dropout2d(),
        nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1), nn.PReLU(8),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 1, 2, stride=2),
    )  # fmt: skip


def bag() -> nn.Module:
    return nn.Sequential(
        nn.Linear(2, 12), nn.ReLU(), nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 1)
    )


def patch() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 2)
    )


def series() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, padding="same", padding_mode="circular"), nn.BatchNorm1d(8),
        nn.Hardtanh(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(40, 2),
    )  # fmt: skip


def slab() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def mlp(given: int, made: int, width: int = 12, norm: bool = True) -> nn.Module:
    middle = nn.LayerNorm(width) if norm else nn.RMSNorm(width)
    return nn.Sequential(
        nn.Linear(given, width), middle, nn.ReLU(), nn.Linear(width, width), nn.BatchNorm1d(width),
        nn.Tanh(), nn.Linear(width, made),
    )  # fmt: skip


SWAP = Equivariance(Cyclic(2), Signed((1, 0, 3, 2), (-1,) * 4), Signed((1, 0), (-1, -1)))
QUARTER = Equivariance(Cyclic(4), Signed((1, 0, 2), (1, -1, 1)), Signed((1, 0), (1, -1)))
CASES = {
    "cnn under turns": Case(cnn, C4, draw(4, 1, 8, 8)),
    "cnn under turns and mirrors": Case(lambda: cnn(16), D4, draw(4, 1, 8, 8)),
    "residual": Case(Residual, D4, draw(4, 3, 17, 17)),
    "depthwise": Case(lambda: Residual(groups=8), C4, draw(4, 3, 17, 17)),
    "in groups": Case(lambda: Residual(groups=2), C4, draw(4, 3, 9, 9)),
    "joined, to an image": Case(Joined, C4_MAPS, draw(3, 1, 6, 6)),
    "hourglass, to an image": Case(hourglass, C4_MAPS, draw(3, 1, 9, 9)),
    "wide image, mirrored": Case(lambda: Residual(1), MIRROR, draw(3, 1, 9, 13)),
    "volume": Case(volume, Equivariance(Octahedral(), Box(), trivial), draw(2, 1, 4, 4, 4)),
    "slab": Case(slab, Equivariance(Octahedral((1, 1, 2)), Box(), trivial), draw(2, 1, 4, 4, 3)),
    "series": Case(series, TURNED, draw(3, 2, 10)),
    "robot": Case(lambda: mlp(4, 2), SWAP, draw(5, 4)),
    "robot of order four": Case(lambda: mlp(3, 2), QUARTER, draw(5, 3)),
    "turned vectors": Case(lambda: mlp(2, 2), Equivariance(Cyclic(3), third, third), draw(5, 2)),
    "permuted entries": Case(
        lambda: mlp(3, 3, norm=False),
        Equivariance(Symmetric(3), Permute(-1), Permute(-1)),
        draw(5, 3),
    ),
    "set of vectors": Case(bag, Equivariance(Symmetric(3), Permute(-2), trivial), draw(4, 3, 2)),
    "odd": Case(lambda: mlp(3, 2), Equivariance(Sign(), Parity(), Parity()), draw(5, 3)),
    "product": Case(patch, BOTH, draw(3, 1, 5, 5)),
    "dict": Case(Pair, PAIR, {"image": draw(4, 1, 5, 5), "vector": draw(4, 2)}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    found: Case = request.param
    return found


def tree(change: Callable[[Tensor], Tensor], x: Any) -> Any:
    return torch.utils._pytree.tree_map(change, x)


def shaken(model: nn.Module, rate: float = 0.3) -> nn.Module:
    """The model with every parameter moved at random, in float64."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += rate * torch.randn(p.shape, generator=rng)
    return model.double().eval()


def verdict(model: nn.Module, case: Case, claim: Equivariance | None = None) -> str:
    x = tree(Tensor.double, case.sample)
    found = equivariance_error(model, x, claim or case.claim, samples=64)
    return "holds" if found.relative_error < 1e-11 else str(found.verdict)


def train(model: nn.Module, case: Case, steps: int = 3) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        made = torch.utils._pytree.tree_leaves(model(case.sample))
        sum((y - 1).square().sum() for y in made).backward()
        optimizer.step()
    model.eval()


def test_obeys_after_training_whatever_the_weights_become(case: Case) -> None:
    made = tied(case.make(), case.claim, case.sample)
    train(made, case)
    assert verdict(deepcopy(made).double(), case) == "holds"
    assert verdict(shaken(made), case) == "holds"


def test_the_same_network_untied_does_not_obey(case: Case) -> None:
    assert verdict(shaken(case.make()), case) == "violated"


def test_with_all_averages_taken_off_it_does_not_obey(case: Case) -> None:
    freed = shaken(tied(case.make(), case.claim, case.sample).relax([case.claim.group.identity]))
    assert verdict(freed, case) == "violated"


def test_export_is_plain_with_the_same_keys_and_answers(case: Case) -> None:
    plain = case.make()
    made = tied(plain, case.claim, case.sample)
    train(made, case)
    before = made(case.sample)
    out = made.export()
    assert list(out.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in out.modules()] == [type(m) for m in plain.modules()]
    same = torch.utils._pytree.tree_map(torch.equal, out.eval()(case.sample), before)
    assert all(torch.utils._pytree.tree_leaves(same))
    plain.load_state_dict(out.state_dict())
    train(made, case, steps=1)  # the tied one lives on
    assert verdict(made.double().export(), case) == "holds"


def test_the_original_is_untouched(case: Case) -> None:
    plain = case.make()
    before = deepcopy(plain.state_dict())
    tied(plain, case.claim, case.sample)
    assert all(torch.equal(x, before[name]) for name, x in plain.state_dict().items())
    assert not any(hasattr(m, "parametrizations") for m in plain.modules())


def test_batch_norms_in_training_do_not_see_how_the_others_of_the_batch_lie() -> None:
    torch.manual_seed(0)
    x = draw(4, 3, 9, 9).double()
    some = torch.cat([quarter_turn(1, x[:1]), x[1:]])
    made = shaken(tied(Residual(), C4, x.float())).train()
    assert torch.allclose(made(x), made(some), atol=1e-12)
    statistics = made.model.norm.running_var
    assert torch.allclose(statistics.reshape(2, 4), statistics[::4, None].expand(2, 4))
    out = made.export()
    out.norm.train()
    assert not torch.allclose(out(x), out(some), atol=1e-3)


def test_kept_statistics_are_those_of_the_plain_norm_where_fields_have_one_channel() -> None:
    """With the trivial representation nothing is pooled, and torch's norm is the reference."""
    from eqtoolbox.enforce.average import Average, Duty
    from eqtoolbox.enforce.pooled import PooledBatchNorm1d
    from eqtoolbox.enforce.representation import still

    plain, pooled = nn.BatchNorm1d(3), PooledBatchNorm1d(3)
    pooled.pool = Average(Duty((still(2, 3),)), range(2))
    x = draw(8, 3, 5)
    assert torch.allclose(plain(x), pooled(x), atol=1e-6)
    assert torch.allclose(plain.running_mean, pooled.running_mean, atol=1e-6)
    assert torch.allclose(plain.running_var, pooled.running_var, atol=1e-6)


HALF_TURNS = [0, 2]


def test_relax_keeps_the_function_and_obeys_the_subgroup_alone() -> None:
    torch.manual_seed(0)
    case = CASES["cnn under turns"]
    made = tied(case.make(), C4, case.sample)
    train(made, case)
    before, free = made(case.sample), made.weights[1]
    assert made.relax(Cyclic(2)).elements == (0, 2)
    assert torch.allclose(made(case.sample), before, atol=1e-6)
    assert made.weights[1] > free
    assert made.obeyed is not None
    train(made, case, steps=5)
    shaken(made)
    assert verdict(made, case, made.obeyed) == "holds"
    assert verdict(made, case) == "violated"
    out = made.export()
    assert verdict(out, case, made.obeyed) == "holds"


@pytest.mark.parametrize(
    ("part", "kept"),
    [(Cyclic(2), [(0, False), (2, False)]), (Flip(), [(0, False), (0, True)]),
     ([(0, False), (3, True)], [(0, False), (3, True)])],
)  # fmt: skip
def test_subgroups_of_a_dihedral_group(part: Any, kept: list[Any]) -> None:
    made = tied(cnn(), D4, draw(2, 1, 8, 8)).relax(part)
    assert list(made.elements) == kept


@pytest.mark.parametrize(("part", "words"), [([0, 1], "make 2"), ([0, 7], "among"), ([], "none")])
def test_what_is_no_subgroup_is_refused(part: list[int], words: str) -> None:
    made = tied(cnn(), C4, draw(2, 1, 8, 8))
    with pytest.raises(ValueError, match=words):
        made.relax(part)


def test_optimizers_made_before_and_after_go_on() -> None:
    torch.manual_seed(0)
    case = CASES["robot"]
    model = case.make()
    before = torch.optim.SGD(model.parameters(), lr=0.1)
    made = tied(model, case.claim, case.sample, copy=False)
    assert made.model is model
    held = {id(p) for group in before.param_groups for p in group["params"]}
    assert held == {id(p) for p in made.parameters()}
    start = made(case.sample).detach()
    made(case.sample).square().sum().backward()
    before.step()
    assert not torch.allclose(made(case.sample), start)
    assert verdict(deepcopy(made).double().eval(), case) == "holds"


def test_layers_get_back_the_norm_that_averaging_takes() -> None:
    torch.manual_seed(0)
    plain = cnn(16)
    made = tied(plain, C4, draw(2, 1, 8, 8))
    for at in (0, 4, 6):
        assert torch.allclose(made.model[at].weight.norm(), plain[at].weight.norm(), rtol=1e-5)


def test_tying_what_is_tied_already_changes_nothing() -> None:
    torch.manual_seed(0)
    x = draw(3, 1, 8, 8)
    once = tied(cnn(), D4, x).export()
    twice = tied(once, D4, x)
    assert torch.allclose(once(x), twice(x), atol=1e-6)


def test_free_weights_are_the_dimension_of_what_obeys() -> None:
    """Counted by characters; the rank of the projection is the same number."""
    made = tied(mlp(4, 2), SWAP, draw(5, 4))
    held = made.model[0].parametrizations.weight
    n = held.original.numel()
    projection = torch.stack([held[0].mean(e.reshape(12, 4)).flatten() for e in torch.eye(n)])
    assert torch.allclose(projection @ projection, projection, atol=1e-6)
    free = made.plan.laws["0", "weight"].free(range(2))
    assert int(torch.linalg.matrix_rank(projection)) == free == 24


def test_widened_nets_have_as_many_free_weights() -> None:
    plain = cnn(8)
    total, free = tied(plain, C4, draw(2, 1, 8, 8)).weights
    wide = nn.Sequential(*(m for m in cnn(16)))
    wide[4], wide[6] = nn.Linear(16 * 16, 32), nn.Linear(32, 3)
    made = tied(wide, C4, draw(2, 1, 8, 8))
    assert free < total / 3
    assert made.weights[1] == pytest.approx(total, rel=0.1)
    assert tied(plain, C4, draw(2, 1, 8, 8)).widen == pytest.approx(2, rel=0.1)


def test_the_table_says_layers_counts_and_costs() -> None:
    shown = str(tied(cnn(), C4, draw(2, 1, 8, 8)))
    for words in ("tied to cyclic4", "1 still", "2 regular", "Conv2d", "weights free", "cost: 1"):
        assert words in shown


class Twice(nn.Module):
    """One layer called on what is turned and on what is not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(torch.relu(self.one(torch.relu(self.one(x)))))
        return y


class Same(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(torch.relu(self.two(torch.relu(self.one(x)))))
        return y


class Branching(nn.Module):
    """Which way depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x) if (x > 0).all() else self.one(-x)
        return y


class Running(nn.Sequential):
    """What no rule knows."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x.cumsum(1))
        return y


class Constant(nn.Module):
    """Adds a buffer that the group would move."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 2)
        self.register_buffer("shift", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x + self.shift)
        return y


def strided() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


def normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))


def old_normed() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))


SIGNED = Signed((1, 0, 3, 2), (-1,) * 4)
INVARIANT = Equivariance(Cyclic(2), SIGNED, trivial)
SERIES = Equivariance(Flip(), Reverse(dim=-2), Reverse(dim=-2))
REFUSED: dict[str, tuple[Callable[[], nn.Module], Equivariance, Tensor, str]] = {
    "stride at 16": (strided, C4, draw(2, 1, 16, 16), "0: a stride of 2 over 16 .* 15 and 17"),
    "pool at 7": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)),
        C4, draw(2, 1, 7, 7), "1: a stride of 2 over 7",
    ),
    "even window, same padding": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 2, padding="same"), nn.Flatten(), nn.Linear(64, 2)),
        C4, draw(2, 1, 4, 4), "0: padding='same'",
    ),
    "long window": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, (1, 3)), nn.Flatten(), nn.Linear(32, 2)),
        C4, draw(2, 1, 4, 4), r"0: kernel \(1, 3\)",
    ),
    "width": (lambda: mlp(4, 2, width=7), SWAP, draw(3, 4), "0: width 7 .* 2 elements.* 6 or 8"),
    "groups": (
        lambda: Residual(groups=4), C4, draw(2, 3, 9, 9), "first: 4 groups of 2 channels"
    ),
    "attention": (
        lambda: nn.TransformerEncoderLayer(8, 2, dropout=0.0, batch_first=True),
        SERIES, draw(2, 5, 8), "self_attn: MultiheadAttention",
    ),
    "recurrent": (lambda: nn.GRU(4, 4), INVARIANT, draw(3, 4), "GRU cannot be tied"),
    "called on two things": (Twice, INVARIANT, draw(3, 4), "one: it is called more than once"),
    "one weight in two places": (Same, INVARIANT, draw(3, 4), "shared by one.weight and two.wei"),
    "branches": (Branching, INVARIANT, draw(3, 4), "branches or picks by values"),
    "a constant": (Constant, INVARIANT, draw(3, 4), "a constant of shape"),
    "weight_norm": (normed, INVARIANT, draw(3, 4), "0 is parametrised already"),
    "weight_norm of old": (old_normed, INVARIANT, draw(3, 4), "0 makes its weight anew"),
    "no layers": (nn.ReLU, C4_MAPS, draw(2, 1, 4, 4), "no linear or convolutional layer"),
    "no group": (lambda: mlp(4, 2), C4, draw(3, 4), "input_action"),
    "outputs that cannot turn": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()),
        C4, draw(2, 1, 4, 4), "the output: .* moves differently",
    ),
    "softmax over what is turned": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 4), nn.Softmax(1)),
        Equivariance(Cyclic(2), SIGNED, SIGNED), draw(3, 4), "3: softmax",
    ),
    "nothing but zero": (lambda: nn.Linear(3, 3), Equivariance(Sign(), Parity(), trivial),
                         draw(3, 3), "no weight but zero"),
    "in order": (Running, INVARIANT, draw(3, 4), "forward: cumsum: no rule"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "claim", "x", "words"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.filterwarnings("ignore:Using padding='same' with even")
@pytest.mark.parametrize("copy", [True, False], ids=["a copy", "in place"])
def test_what_cannot_be_tied_is_refused_by_name_and_left_alone(
    make: Callable[[], nn.Module], claim: Equivariance, x: Tensor, words: str, copy: bool
) -> None:
    model = make()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    kinds = [type(m) for m in model.modules()]
    stream = torch.get_rng_state()
    with pytest.raises(ValueError, match=words):
        tied(model, claim, x, copy=copy)
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(stream, torch.get_rng_state())
    assert not any(m._forward_pre_hooks for m in model.modules() if not hasattr(m, "weight_g"))


def test_a_stride_is_exact_at_17() -> None:
    assert tied(strided(), C4, draw(2, 1, 17, 17)).report.result.verdict == "holds"


def test_half_and_infinite_are_refused() -> None:
    from eqtoolbox.symmetry.actions.linear import vectors
    from eqtoolbox.symmetry.groups.matrices import SO2

    with pytest.raises(TypeError, match=r"0.weight is torch.float16"):
        tied(mlp(4, 2).half(), SWAP, draw(3, 4))
    with pytest.raises(ValueError, match="finite group"):
        tied(mlp(2, 2), Equivariance(SO2(), vectors, vectors), draw(3, 2))


def test_dead_duplicated_and_zero_units_are_tied_as_others() -> None:
    model = mlp(4, 2)
    with torch.no_grad():
        model[0].weight[0] = model[0].weight[1]
        model[3].bias.fill_(-100.0)
        model[6].weight.zero_()
    made = tied(model, SWAP, draw(3, 4))
    assert torch.equal(made.model[6].weight, torch.zeros(2, 12))
    assert verdict(shaken(made), CASES["robot"]) == "holds"


def test_pretrained_embeddings_and_frozen_weights_keep_their_flags() -> None:
    model = mlp(4, 2).requires_grad_(False)
    made = tied(model, SWAP, draw(3, 4))
    assert not any(p.requires_grad for p in made.parameters())
    assert not any(p.requires_grad for p in made.export().parameters())


def test_a_tied_model_can_be_saved_copied_and_told() -> None:
    made = tied(cnn(), C4, draw(2, 1, 8, 8))
    other = tied(cnn(), C4, draw(2, 1, 8, 8))
    other.load_state_dict(made.state_dict())
    x = draw(2, 1, 8, 8)
    assert torch.equal(made(x), other(x))
    assert torch.equal(deepcopy(made)(x), made(x))
    assert isinstance(made, Tied)
    assert "<pre>" in made._repr_html_()
