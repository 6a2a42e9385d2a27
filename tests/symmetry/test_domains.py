"""Groups and actions of every domain: laws over all members, each with one that must fail."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.symmetry import Equivariance, equivariance_error
from eqtoolbox.symmetry.actions.action import (
    Action,
    check_action,
    dihedral,
    flip,
    quarter_turn,
    trivial,
)
from eqtoolbox.symmetry.actions.boosts import Boost
from eqtoolbox.symmetry.actions.fields import (
    Field,
    pseudo_scalar_field,
    scalar_field,
    tensor_field,
    vector_field,
)
from eqtoolbox.symmetry.actions.foreign import FromFieldType, FromIrreps
from eqtoolbox.symmetry.actions.linear import (
    Tensors,
    axial_vectors,
    irrep,
    poses,
    positions,
    pseudo_scalars,
    twists,
    vectors,
)
from eqtoolbox.symmetry.actions.permuting import Box, Permute, Relabel, Reverse, Roll, Signed
from eqtoolbox.symmetry.actions.resampling import FourierShift, Shift, Turn, Zoom, band_limited
from eqtoolbox.symmetry.actions.scaling import Degree, Parity
from eqtoolbox.symmetry.actions.tangent import NoTangent, tangent_of
from eqtoolbox.symmetry.each import Chain, Each, batch_of_one, factor
from eqtoolbox.symmetry.groups.finite import Octahedral, Sign, Symmetric
from eqtoolbox.symmetry.groups.group import Cyclic, Dihedral, Flip, Group
from eqtoolbox.symmetry.groups.matrices import (
    E3,
    O2,
    O3,
    SE3,
    SO2,
    SO3,
    Lorentz,
    Orthogonal,
    matrix,
)
from eqtoolbox.symmetry.groups.products import Product, Semidirect
from eqtoolbox.symmetry.groups.unbounded import Scalings, Translations
from eqtoolbox.symmetry.lie import lie_derivative


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def bump(size: int, back: Tensor | None = None) -> Tensor:
    """A smooth picture without symmetry that vanishes at the edge, at back · r for every pixel."""
    at = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / size
    r = torch.stack(torch.broadcast_tensors(at[None], -at[:, None]))
    x, y = r if back is None else torch.einsum("ij,jhw->ihw", back, r)
    return (torch.exp(-60 * ((x - 0.06) ** 2 + 2 * y**2)) * (1 - 3 * y))[None, None]


DIHEDRAL = Semidirect(Cyclic(5), Sign(), lambda s, k: (s * k) % 5)
GROUPS: list[Group] = [
    Symmetric(4), Sign(), Octahedral(), Octahedral((1, 1, 2)), Octahedral(proper=True),
    Product(Sign(), Cyclic(3)), DIHEDRAL, SO2(), O2(), SO3(), O3(), Orthogonal(5), SE3(), E3(2.0),
    Lorentz(), Translations((2, 3)), Translations((2.5,), whole=False), Scalings(),
    Scalings(whole=False), Product(SO3(), Symmetric(3)),
]  # fmt: skip


def apart(group: Group, g, h) -> float:
    flat = lambda e: torch.tensor(
        [float(v) for v in torch.utils._pytree.tree_leaves(e)], dtype=torch.float64
    )
    return float((flat(g) - flat(h)).abs().max())


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
def test_elements_combine_as_a_group(group: Group) -> None:
    drawn = group.sample(4, seeded())
    for g, h, k in product(drawn, repeat=3):
        left, right = group.compose(group.compose(g, h), k), group.compose(g, group.compose(h, k))
        assert apart(group, left, right) < 1e-12
    for g in drawn:
        assert apart(group, group.compose(g, group.inverse(g)), group.identity) < 1e-12
        assert apart(group, group.compose(g, group.identity), g) < 1e-15
        assert hash(g) == hash(g)
    if group.order is not None:
        every = list(group.elements())
        assert len(set(every)) == len(every) == group.order
        assert every[0] == group.identity
        assert {group.compose(g, h) for g, h in product(every, repeat=2)} == set(every)


def test_a_wrong_composition_is_no_group() -> None:
    """The check above sees a product that forgets the twist of a semidirect product."""
    untwisted = Semidirect(Cyclic(5), Sign(), lambda s, k: k)
    g, h = (1, -1), (1, 1)
    assert DIHEDRAL.compose(g, h) != untwisted.compose(g, h)
    assert DIHEDRAL.compose(g, untwisted.inverse(g)) != DIHEDRAL.identity


@pytest.mark.parametrize("proper", [True, False])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_rotations_are_drawn_from_haar_measure(n: int, proper: bool) -> None:
    """E tr R = 0 and E (tr R)^2 = 1 (2 for the rotations of the plane), with z < 4."""
    m = torch.stack([matrix(g) for g in Orthogonal(n, proper).sample(4000, seeded())])
    trace = m.diagonal(dim1=1, dim2=2).sum(1)
    second = 2.0 if n == 2 and proper else 1.0
    for values, mean in ((trace, 0.0), (trace.square(), second)):
        assert abs(float(values.mean()) - mean) < 4 * float(values.std()) / math.sqrt(4000)
    assert torch.allclose(m @ m.mT, torch.eye(n, dtype=torch.float64).expand_as(m), atol=1e-13)
    assert float(torch.linalg.det(m).min()) == pytest.approx(1.0 if proper else -1.0)


def test_qr_without_signs_is_not_haar() -> None:
    q = torch.linalg.qr(normal(4000, 3, 3))[0]
    trace = q.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(float(trace.mean())) > 20 * float(trace.std()) / math.sqrt(4000)


@pytest.mark.parametrize(
    ("group", "count"), [(SO2(), 1), (SO3(), 3), (O3(), 3), (SE3(), 6), (Lorentz(), 6)]
)
def test_generators_lead_to_elements(group, count: int) -> None:
    generators = group.generators()
    assert len(generators) == count
    assert torch.linalg.matrix_rank(torch.stack(generators).flatten(1)) == count
    for a in generators:
        whole = group.element(a, 0.7)
        halves = group.compose(group.element(a, 0.3), group.element(a, 0.4))
        assert apart(group, whole, halves) < 1e-14
        assert apart(group, group.compose(whole, group.inverse(whole)), group.identity) < 1e-13


def test_groups_without_haar_measure_say_so() -> None:
    assert not any(g.uniform for g in (SE3(), E3(), Lorentz(), Translations((1,)), Scalings()))
    assert all(g.uniform for g in (SO3(), O3(), Symmetric(4), Product(Sign(), SO2())))
    times = [matrix(g)[0, 0].item() for g in Lorentz(rapidity=1.5).sample(200, seeded())]
    assert min(times) >= 1.0 and max(times) <= math.cosh(1.5)


MIRROR = Signed((1, 0, 3, 2, 4), (1, 1, -1, -1, -1))
ACTIONS: list[tuple[Group, Action, tuple[int, ...]]] = [
    (SO2(), vectors, (3, 2)), (O3(), vectors, (4, 3)), (O3(), axial_vectors, (4, 3)),
    (O3(), pseudo_scalars, (4, 1)), (E3(), pseudo_scalars, (4, 1)), (O3(), Tensors(2), (3, 3)),
    (SO3(), Tensors(3), (3, 3, 3)), (E3(), positions, (4, 3)), (E3(), vectors, (4, 3)),
    (Lorentz(), vectors, (2, 4)), (SE3(), poses, (4, 4)), (SE3(), twists, (6,)),
    *[(O3(), irrep(degree, parity), (2, 2 * degree + 1)) for degree in range(5)
      for parity in (1, -1)],
    (Symmetric(5), Permute(-2), (5, 3)), (Symmetric(5), Permute(-2, -1), (5, 5)),
    (Flip(), Reverse(-1, sign=-1), (2, 6)), (Cyclic(6), Roll(-1), (2, 6)),
    (MIRROR.group, MIRROR, (5,)),
    (Octahedral(), Box(), (3, 3, 3)), (Octahedral(), Box(vectors=True), (3, 3, 3, 3)),
    (Octahedral((1, 1, 2)), Box(), (3, 3, 5)),
    *[(Dihedral(4), Field(rank, pseudo), (8, 4, 4)) for rank in range(3)
      for pseudo in (False, True)],
    (Cyclic(4), vector_field, (2, 5, 5)), (Flip(), tensor_field, (4, 5, 5)),
    (Translations((2,)), Boost(0.5, cells=1), (7,)),
    (Translations((2.0,), whole=False), Boost(0.5, cells=1.0), (7,)),
    (Scalings(), Degree(3), (2,)), (Sign(), Parity(), (2,)),
    (Translations((1, 2)), Shift((1, 2)), (12, 12)),
    (Translations((2.0, 2.0), whole=False), FourierShift(), (7, 9)),
    (Product(Symmetric(4), SO3()), Chain(factor(0, Permute(-2)), factor(1, vectors)), (4, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("group", "action", "shape"), ACTIONS)
def test_every_action_obeys_its_laws(group: Group, action: Action, shape) -> None:
    check_action(group, action, normal(2, *shape))
    check_action(group, action, normal(2, *shape).float())


@pytest.mark.parametrize(
    ("group", "action", "shape"),
    [
        (O3(), lambda g, x: x @ matrix(g).to(x), (4, 3)),  # R^T instead of R
        (O3(), lambda g, x: vectors(g, x).abs(), (3,)),
        (Dihedral(4), lambda g, x: vector_field(g[0], dihedral((0, g[1]), x)), (2, 4, 4)),
        (Symmetric(5), lambda g, x: x[:, list(g)], (5, 3)),  # g^-1 of a left action
        (Octahedral(), lambda g, x: Box()((g[0], (1, 1, 1)), x) * g[1][0], (3, 3, 3)),
        (Translations((1, 2)), lambda g, x: torch.roll(x, g[0], -1) * 1.1, (12, 12)),
        (SE3(), lambda g, x: positions(g, x) * 2, (4, 3)),
        (Sign(), lambda g, x: x * 2 if g < 0 else x, (3,)),
    ],
)
def test_what_is_no_action_is_refused(group, action, shape) -> None:
    with pytest.raises(ValueError, match="breaks"):
        check_action(group, action, normal(2, *shape))


SMOOTH = [(g, a, s) for g, a, s in ACTIONS if g.generators() and hasattr(a, "tangent")]


@pytest.mark.parametrize(("group", "action", "shape"), SMOOTH)
def test_tangents_are_the_limits_of_small_steps(group, action, shape) -> None:
    x, h = normal(2, *shape), 1e-5
    for generator in group.generators():
        if isinstance(group, Translations):
            plus, minus = ([s * h * v for v in generator.tolist()] for s in (1, -1))
        elif isinstance(group, Scalings):
            plus, minus = h / math.log(2), -h / math.log(2)
        else:
            plus, minus = group.element(generator, h), group.element(generator, -h)
        difference = (action(plus, x) - action(minus, x)) / (2 * h)
        exact = tangent_of(action, generator, x)
        assert torch.allclose(exact, difference, atol=1e-7 * float(1 + exact.abs().max()))


@pytest.mark.parametrize("action", [quarter_turn, Permute(-2), lambda g, x: x.round()])
def test_actions_without_derivative_say_so(action) -> None:
    with pytest.raises(NoTangent, match="would not mean invariance"):
        tangent_of(action, torch.zeros(3, 3), normal(2, 3))


def test_interpolated_turns_agree_with_exact_ones_and_their_tangent() -> None:
    group, x = SO2(), bump(33)
    (generator,) = group.generators()
    quarter = group.element(generator, math.pi / 2)
    assert torch.allclose(Turn()(quarter, x), quarter_turn(1, x), atol=1e-6)
    turn, h = Turn(), 1e-5
    step = [matrix(group.element(generator, s * h)) for s in (-1, 1)]  # the picture at R^-1 r
    difference, exact = (
        (bump(33, step[0]) - bump(33, step[1])) / (2 * h),
        turn.tangent(generator, x),
    )
    assert float((difference - exact).norm() / exact.norm()) < 1e-4
    assert float((difference + exact).norm() / exact.norm()) > 1  # wrong sign
    third = group.element(generator, 1.0)
    moved = bump(33, matrix(third).T)
    assert float((turn(third, x) - moved).norm() / moved.norm()) < 0.02
    check_action(group, turn, torch.cat([x, 2 * x]))
    with pytest.raises(ValueError, match="breaks"):
        check_action(group, turn, normal(2, 1, 33, 33))  # white noise


def test_zoom_tangent_is_the_limit_of_small_steps() -> None:
    x, h, eye = bump(33), 1e-5, torch.eye(2, dtype=torch.float64)
    difference = (bump(33, eye * math.exp(-h)) - bump(33, eye * math.exp(h))) / (2 * h)
    exact = Zoom().tangent(torch.ones(1), x)
    assert float((difference - exact).norm() / exact.norm()) < 1e-3
    doubled = bump(33, eye / 2**0.3)
    near = Zoom().inside(Zoom()(0.3, x) - doubled)
    assert float(near.norm() / doubled.norm()) < 0.02


def test_band_limit_leaves_low_waves_and_drops_high_ones() -> None:
    at = torch.arange(40, dtype=torch.float64)
    low, high = (torch.sin(2 * math.pi * f * at).expand(40, 40) for f in (0.05, 0.25))
    assert torch.allclose(band_limited(low + high, 0.1), low, atol=1e-12)


def test_axial_vectors_are_cross_products_and_pseudo_scalars_triple_ones() -> None:
    a, b, c = normal(3, 5, 3)
    for g in O3().sample(6, seeded()):
        ga, gb, gc = (vectors(g, v) for v in (a, b, c))
        assert torch.allclose(
            torch.linalg.cross(ga, gb), axial_vectors(g, torch.linalg.cross(a, b))
        )
        volume = (torch.linalg.cross(a, b) * c).sum(-1, keepdim=True)
        turned = (torch.linalg.cross(ga, gb) * gc).sum(-1, keepdim=True)
        assert torch.allclose(turned, pseudo_scalars(g, volume))
        assert torch.allclose(
            ga[:, :, None] * gb[:, None], Tensors(2)(g, a[:, :, None] * b[:, None])
        )


def test_irreps_have_the_characters_of_so3() -> None:
    """tr D_l of a turn by t is sin((l + 1/2) t) / sin(t / 2)."""
    group = SO3()
    for degree, angle in product(range(5), (0.4, 2.0)):
        g = group.element(group.generators()[1], angle)
        d = irrep(degree)(g, torch.eye(2 * degree + 1, dtype=torch.float64))
        character = math.sin((degree + 0.5) * angle) / math.sin(angle / 2)
        assert float(d.trace()) == pytest.approx(character, abs=1e-12)


def test_graphs_relabelled_keep_their_edges() -> None:
    g, edges = (2, 0, 1), torch.tensor([[0, 1], [1, 2]])
    dense = torch.zeros(3, 3)
    dense[edges[0], edges[1]] = 1.0
    moved = Relabel()(g, edges)
    other = torch.zeros(3, 3)
    other[moved[0], moved[1]] = 1.0
    assert torch.equal(other, Permute(-2, -1)(g, dense))
    with pytest.raises(ValueError, match="does not fit a graph of 3 nodes"):
        Relabel()(g, edges + 1)


def test_signed_permutations_are_read_from_pairs_objects_and_matrices() -> None:
    swap = Signed((1, 0), (1, -1))
    assert swap.group.n == 4  # its square is minus the identity
    assert Signed.of(((1, 0), (1, -1))) == swap == Signed.of(swap)
    assert Signed.of(swap(1, torch.eye(2)).T) == swap
    with pytest.raises(ValueError, match="is no signed permutation"):
        Signed.of([[1.0, 1.0], [0.0, 1.0]])


def test_each_leaf_needs_an_action() -> None:
    act = Each({"x": flip, "rest": (trivial, Permute(-1))})
    batch = {"x": normal(1, 2, 2), "rest": (normal(1), torch.arange(2)[None])}
    assert torch.equal(Each({"x": flip, "rest": trivial})(True, batch)["x"], batch["x"].flip(-1))
    assert torch.equal(Each(trivial)(True, batch)["x"], batch["x"])
    with pytest.raises(ValueError, match=r"differ in \['rest'\].*trivial if it does not move"):
        act(True, {"x": batch["x"]})
    with pytest.raises(ValueError, match="expected 2 leaves at 'rest', got 1"):
        act(True, {"x": batch["x"], "rest": (batch["x"],)})
    assert batch_of_one(batch)["rest"][1].shape == (1, 1, 2)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: vectors(SO3().identity, normal(2, 5)), "expected matrices of 5 rows"),
        (
            lambda: vectors(O3().sample(1, torch.Generator().manual_seed(0))[0], normal(2, 2)),
            "of a Euclidean group with one row more, got 3",
        ),
        (lambda: Permute(-2)((0, 1), normal(3, 4)), r"take Symmetric\(3\)"),
        (lambda: Box()(((1, 0, 2), (1, 1, 1)), normal(2, 3, 4)), "spacing of the voxels"),
        (lambda: vector_field(1, normal(3, 4, 4)), "multiple of 2 channels"),
        (lambda: vector_field(1, normal(2, 4, 5)), "height == width"),
        (lambda: Shift((3, 3)).inside(normal(8, 8)), "shift less"),
        (lambda: Octahedral((1, 0, 1)), "three positive numbers"),
        (lambda: Lorentz(-1.0), "rapidity must be a positive number"),
        (lambda: Translations((1.5,)), "integer reach"),
        (lambda: irrep(9), "degree must be"),
        (lambda: Product(), "at least one Group"),
        (lambda: list(Symmetric(9).elements()), "draw some with sample"),
        (lambda: Signed((0, 0), (1, 1)), "expected a permutation"),
    ],
)
def test_what_does_not_fit_is_named(act, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()


class Wigner:
    """Two vectors and a scalar, as e3nn would describe them, in the default dtype."""

    def D_from_matrix(self, R: Tensor) -> Tensor:
        R = R.to(torch.get_default_dtype())
        return torch.block_diag(R, R, torch.eye(1))


def test_foreign_irreps_are_built_in_float64() -> None:
    before = torch.get_default_dtype()
    check_action(SO3(), FromIrreps(Wigner()), normal(2, 7), tolerance=1e-13)
    assert torch.get_default_dtype() == before
    rounded = lambda g, x: x @ Wigner().D_from_matrix(matrix(g)).to(x).T
    with pytest.raises(ValueError, match="breaks"):
        check_action(SO3(), rounded, normal(2, 7), tolerance=1e-13)
    for a in SO3().generators():
        both = torch.cat([vectors.tangent(a, normal(2, 7)[:, i : i + 3]) for i in (0, 3)], 1)
        assert torch.allclose(
            FromIrreps(Wigner()).tangent(a, normal(2, 7))[:, :6], both, atol=1e-10
        )
    with pytest.raises(TypeError, match="D_from_matrix"):
        FromIrreps("1x1o")


@pytest.fixture
def default_dtype():
    """Sets torch's default dtype for one test."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def test_e3nn_layers_hold_and_tables_made_in_float32_are_seen(default_dtype) -> None:
    o3 = pytest.importorskip("e3nn.o3")
    features, out = o3.Irreps("2x0e + 1x1o + 1x2e"), o3.Irreps("1x0o + 1x1o")
    claim = Equivariance(O3(), FromIrreps(features), FromIrreps(out))
    wrong = Equivariance(O3(), FromIrreps(features), FromIrreps(o3.Irreps("1x0o + 1x1e")))
    x, errors = normal(8, features.dim), {}
    for dtype in (torch.float64, torch.float32):
        default_dtype(dtype)
        torch.manual_seed(0)
        layer = o3.FullyConnectedTensorProduct(features, features, out).double()
        twice = lambda x, layer=layer: layer(x, x)
        errors[dtype] = equivariance_error(twice, x, claim)
        assert equivariance_error(twice, x, wrong).verdict == "violated"
        if dtype == torch.float64:
            assert {r.verdict for r in lie_derivative(twice, x, claim)} == {"holds"}
    assert errors[torch.float64].verdict == "holds"
    assert errors[torch.float32].verdict == "violated"  # Clebsch-Gordan coefficients
    assert 1e-9 < errors[torch.float32].relative_error < 1e-7


class Regular:
    """A regular representation of C4 on four channels."""

    def representation(self, k: int) -> Tensor:
        return torch.roll(torch.eye(4), k, 0)


def test_foreign_field_types_turn_channels_and_grid() -> None:
    action = FromFieldType(Regular(), lambda k: k, quarter_turn)
    check_action(Cyclic(4), action, normal(2, 4, 5, 5))
    with pytest.raises(ValueError, match="breaks"):
        check_action(Cyclic(4), FromFieldType(Regular(), abs, flip), normal(2, 4, 5, 5))


def test_scalar_and_pseudo_scalar_fields_differ_by_the_mirror_alone() -> None:
    x = normal(2, 3, 5, 5)
    for g in Dihedral(4).elements():
        sign = -1 if g[1] else 1
        assert torch.equal(pseudo_scalar_field(g, x), sign * scalar_field(g, x))


def test_foreign_matrices_are_made_once_an_element() -> None:
    """Inputs, outputs and round trips share them: three elements and their inverses, six in all."""
    made = []

    class Two:
        def D_from_matrix(self, turn: Tensor) -> Tensor:
            made.append(turn)
            return torch.block_diag(turn, turn)

    action = FromIrreps(Two())
    claim = Equivariance(SO3(), action, action)
    result = equivariance_error(torch.tanh, normal(8, 6), claim, samples=4, check=False)
    assert (result.samples, result.verdict) == (3, "violated")
    assert len(made) == 6


def test_a_field_with_y_upwards_is_hinted_at_and_holds_and_another_is_not() -> None:
    def turn(v: Tensor, k: int) -> Tensor:
        """Components (right, up) of an image turned counterclockwise."""
        v = torch.rot90(v, k, (-2, -1))
        for _ in range(k % 4):
            v = torch.stack([-v[:, 1], v[:, 0]], 1)
        return v

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 2, 3, padding=1))
    flow = lambda v: sum(turn(net(turn(v, k)), -k % 4) for k in range(4)) / 4
    x = torch.randn(4, 2, 9, 9)
    down = equivariance_error(flow, x, Equivariance(Cyclic(4), Field(), Field()))
    assert down.verdict == "violated"
    assert down.note == "it holds with y pointing up: give Field(1, up=True)"
    up = Equivariance(Cyclic(4), Field(up=True), Field(up=True))
    assert equivariance_error(flow, x, up).verdict == "holds"
    neither = equivariance_error(net, x, Equivariance(Cyclic(4), Field(), Field()))
    assert neither.verdict == "violated" and "y pointing" not in neither.note
    for field in (Field(up=True), Field(2, up=True)):  # an action, mirrors included
        square = torch.randn(2, 4, 5, 5)
        Equivariance(Dihedral(4), field, field).check(square, square)
