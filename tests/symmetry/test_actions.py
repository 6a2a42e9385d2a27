"""Actions of the groups on images, against index formulas, and actions that must fail."""

from itertools import product

import pytest
import torch
from torch import Tensor

from eqtoolbox.symmetry.actions.action import (
    Action,
    check_action,
    dihedral,
    flip,
    quarter_turn,
    roll,
    trivial,
)
from eqtoolbox.symmetry.groups.group import (
    Cyclic,
    CyclicTranslation,
    Dihedral,
    Element,
    Flip,
    Group,
)

PAIRS: list[tuple[Group, Action, tuple[int, int]]] = [
    (Cyclic(4), quarter_turn, (5, 5)),
    (Cyclic(2), lambda g, x: quarter_turn(2 * g, x), (4, 4)),
    (Dihedral(4), dihedral, (5, 5)),
    (Dihedral(4), dihedral, (4, 4)),
    (Flip(), flip, (3, 6)),
    (CyclicTranslation((3, 4)), roll, (3, 4)),
    (CyclicTranslation(4), roll, (2, 4)),
    (Cyclic(9), trivial, (3, 2)),
]


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("group", "action", "size"), PAIRS)
def test_actions_are_homomorphisms_bit_by_bit(group: Group, action: Action, size) -> None:
    x = image(2, 3, *size)
    assert torch.equal(action(group.identity, x), x)
    for g, h in product(group.elements(), repeat=2):
        assert torch.equal(action(g, action(h, x)), action(group.compose(g, h), x))


@pytest.mark.parametrize(("group", "action", "size"), PAIRS)
def test_check_accepts_every_member(group: Group, action: Action, size) -> None:
    check_action(group, action, image(2, 3, *size))
    check_action(group, action, image(1, *size).bfloat16())


@pytest.mark.parametrize(("group", "action", "size"), PAIRS[:-1])
def test_only_the_identity_leaves_an_image_without_symmetry(group, action, size) -> None:
    x = image(*size)
    still = [g for g in group.elements() if torch.equal(action(g, x), x)]
    assert still[0] == group.identity
    assert len(still) == (2 if size == (2, 4) else 1)  # a period of 2 in a group of 4


@pytest.mark.parametrize(("group", "action", "size"), PAIRS)
def test_the_adjoint_of_an_action_is_its_inverse(group: Group, action: Action, size) -> None:
    x, v = image(2, *size).requires_grad_(), image(2, *size, seed=1)
    for g in group.elements():
        (pulled,) = torch.autograd.grad(action(g, x), x, v)
        assert torch.equal(pulled, action(group.inverse(g), v))


def test_actions_move_pixels_where_their_formula_says() -> None:
    x, n = image(4, 4), 4
    height, width = 3, 5
    z = image(height, width)
    for i, j in product(range(n), repeat=2):
        assert quarter_turn(1, x)[i, j] == x[j, n - 1 - i]
        assert dihedral((0, True), x)[i, j] == x[i, n - 1 - j]
        assert dihedral((1, True), x)[i, j] == x[j, i]
    for i, j in product(range(height), range(width)):
        assert flip(True, z)[i, j] == z[i, width - 1 - j]
        assert roll((1, 3), z)[(i + 1) % height, (j + 3) % width] == z[i, j]


@pytest.mark.parametrize("action", [quarter_turn, dihedral])
def test_turned_images_can_be_viewed(action: Action) -> None:
    g: Element = (1, True) if action is dihedral else 1
    assert action(g, image(2, 1, 3, 3)).view(2, 9).shape == (2, 9)


def test_turns_refuse_what_is_not_square() -> None:
    message = "expected height == width, got 28x20; use flip or roll, or crop"
    for action, g in ((quarter_turn, 1), (dihedral, (0, True))):
        with pytest.raises(ValueError, match=message):
            action(g, image(1, 28, 20))


@pytest.mark.parametrize(
    ("group", "action", "g"),
    [
        (Cyclic(4), quarter_turn, 1),
        (Dihedral(4), dihedral, (1, False)),
        (Flip(), flip, True),
        (CyclicTranslation(10), roll, (1, 1)),
    ],
)
def test_spatial_actions_refuse_what_is_no_image(group: Group, action: Action, g: Element) -> None:
    with pytest.raises(ValueError, match=r"expected at least 2 dimensions, got shape \(3,\)"):
        action(g, image(3))
    with pytest.raises(ValueError, match=r"a sample has shape \(10,\); use trivial"):
        check_action(group, action, image(10, 10))


def turn_then_mirror(g: tuple[int, bool], x: Tensor) -> Tensor:
    turned = torch.rot90(x, g[0], dims=(-2, -1))
    return torch.flip(turned, dims=(-1,)) if g[1] else turned


def rolled_over_the_batch(g: int, x: Tensor) -> Tensor:
    return torch.roll(x, g, dims=0)


def rotated_by_a_single_precision_matrix(g: int, x: Tensor) -> Tensor:
    angle = torch.tensor(2 * torch.pi * g / 8, dtype=torch.float32)
    c, s = torch.cos(angle).double(), torch.sin(angle).double()
    return x @ torch.stack([torch.stack([c, -s]), torch.stack([s, c])])


def rotated_by_a_double_precision_matrix(g: int, x: Tensor) -> Tensor:
    angle = torch.tensor(2 * torch.pi * g / 8, dtype=torch.float64)
    c, s = torch.cos(angle), torch.sin(angle)
    return x @ torch.stack([torch.stack([c, -s]), torch.stack([s, c])])


@pytest.mark.parametrize(
    ("group", "action", "shape", "law"),
    [
        (Cyclic(2), quarter_turn, (2, 4, 4), r"S_g\^-1 S_g = id at 1"),
        (Cyclic(3), quarter_turn, (2, 4, 4), r"S_g S_h = S_gh|S_g\^-1 S_g = id"),
        (CyclicTranslation(4), roll, (2, 6, 6), r"S_g\^-1 S_g = id"),
        (Dihedral(4), turn_then_mirror, (2, 4, 4), r"S_g S_h = S_gh at \(\(1, False\), "),
        (Cyclic(4), lambda g, x: (1 + g) * x, (2, 3), r"S_g\^-1 S_g = id at 1"),
        (Cyclic(4), lambda g, x: x + 1, (2, 3), "S_e = id at 0: relative defect"),
        (Cyclic(4), lambda g, x: x.flatten(1), (2, 3, 3), r"S_e = id at 0: shape \(2, 9\)"),
        (Cyclic(2), rolled_over_the_batch, (2, 3), "one sample at a time at 1"),
        (Cyclic(8), rotated_by_a_single_precision_matrix, (2, 2), "relative defect .*e-0[78]"),
    ],
)
def test_check_names_the_law_that_a_wrong_action_breaks(group, action, shape, law) -> None:
    with pytest.raises(ValueError, match=law):
        check_action(group, action, image(*shape))


def test_check_lets_rounding_pass_and_takes_a_tolerance() -> None:
    check_action(Cyclic(8), rotated_by_a_double_precision_matrix, image(2, 2))
    check_action(Cyclic(8), rotated_by_a_single_precision_matrix, image(2, 2), tolerance=1e-5)


def test_only_groups_that_round_may_be_off_by_the_root_of_a_rounding() -> None:
    class Angles(Cyclic):
        exact = False

    drifting = lambda g, x: (1 + 1e-10 * g) * x
    check_action(Angles(4), drifting, image(2, 3))
    with pytest.raises(ValueError, match=r"tolerance 2\.2e-14"):
        check_action(Cyclic(4), drifting, image(2, 3))


def test_check_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="cyclic2 does not belong to it: take the group"):
        check_action(Cyclic(2), quarter_turn, image(2, 4, 4))
    with pytest.raises(ValueError, match=r"input of dihedral4 .* fails at \(0, False\)"):
        check_action(Dihedral(4), quarter_turn, image(2, 4, 4), name="input")
    with pytest.raises(ValueError, match="expected at least one sample"):
        check_action(Cyclic(4), quarter_turn, image(0, 4, 4))
