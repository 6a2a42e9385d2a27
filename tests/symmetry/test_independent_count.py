"""The group found is all that changes no output: against Jacobians at other points, on other data.

Where a nullspace is larger, the directions beyond the catalogue (`beyond.py`) fill it exactly.
"""

from functools import cache

import pytest
import torch
from torch import Tensor

from eqtoolbox.weights.parameter import ContinuousSymmetry, DiscreteSymmetry, ParameterSymmetry
from tests.symmetry.architectures import Rotary
from tests.symmetry.beyond import BEYOND
from tests.symmetry.expected import EXPECTED, LIMITED, TOKENS, TWINS, Case, found_in
from tests.symmetry.jacobian import Elsewhere, rank, unit_rows

CASES: dict[str, Case] = {
    **EXPECTED,
    **TWINS,
    # smaller, for the size of the Jacobian
    "rotary": (lambda: Rotary(width=8), TOKENS, {}),
    "rotary: clamp on what is gated": (lambda: Rotary(width=8, gated=LIMITED), TOKENS, {}),
    "rotary: stream read past the last normalisation": (
        lambda: Rotary(width=8, leak=0.1),
        TOKENS,
        {},
    ),
}
# points at which every unit of ReLU is now on, now off
SEEDS = {
    "relu": 5, "relu: clamp": 5, "vgg": 5, "vgg: one SiLU": 5, "depthwise": 4, "skip": 11,
    "skip: GELU in the branch": 5, "skip: clamp on the stream": 17, "messages": 4,
    "messages: one GELU": 4,
}  # fmt: skip
# 4 -> 5 -> 2: GL(5) moves the head along the one column that the 4 units do not reach, as a bias
# shift and a translation of the head do together
OVERLAPS = {"deep linear": 4, "deep linear: one tanh": 4}


def elsewhere(kind: str) -> Elsewhere:
    make, shape, _ = CASES[kind]

    def inputs(generator: torch.Generator) -> Tensor:
        if shape == TOKENS:
            return torch.randint(0, 20, (8, 7), generator=generator)
        return 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)

    return Elsewhere(make, inputs, SEEDS.get(kind, 3))


@cache
def found(kind: str) -> tuple[ParameterSymmetry, ...]:
    make, shape, _ = CASES[kind]
    return tuple(s for s in found_in(make, shape) if s.status != "broken")


@pytest.mark.parametrize("kind", CASES)
def test_what_is_found_and_known_beyond_is_the_whole_nullspace(kind: str) -> None:
    place = elsewhere(kind)
    jacobian, own = place.jacobian(), unit_rows(place.tangents(list(found(kind))))
    directions = BEYOND[kind](place.params) if kind in BEYOND else ()
    known = [place.flat(direction) for direction in directions]
    every = torch.cat([own, unit_rows(torch.stack(known))]) if known else own
    moved = (jacobian @ every.mT).norm(dim=0).max() / torch.linalg.matrix_norm(jacobian, 2)
    assert moved < 1e-12
    assert rank(own) == len(own) - OVERLAPS.get(kind, 0)
    assert rank(every) == jacobian.shape[1] - rank(jacobian)


@pytest.mark.parametrize("kind", CASES)
def test_what_is_found_holds_at_another_point_on_other_data(kind: str) -> None:
    place = elsewhere(kind)
    x, generator = place.batch(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        before = place.outputs(place.params, x)
        for symmetry in found(kind):
            if isinstance(symmetry, DiscreteSymmetry):
                first = {**place.params, **symmetry.element(place.params, 0)}
                moved = {**first, **symmetry.draw(generator)(first)}
            else:
                assert isinstance(symmetry, ContinuousSymmetry)
                if symmetry.equivariant or symmetry.joint:
                    continue
                c = torch.randn(symmetry.dimension, generator=generator, dtype=torch.float64)
                moved = symmetry.transform(place.params, 0.3 * c)
            after = place.outputs({**place.params, **moved}, x)
            assert (after - before).abs().max() < 1e-9, symmetry


def test_the_nullspace_refuses_a_direction_that_changes_outputs() -> None:
    place = elsewhere("gelu")
    first, last = "0.weight", "2.weight"
    rescale = place.flat({first: place.params[first], last: -place.params[last]})
    jacobian = place.jacobian()
    moved = (jacobian @ rescale).norm() / rescale.norm() / torch.linalg.matrix_norm(jacobian, 2)
    assert moved > 1e-3
