"""Candidate symmetries of a function by the shapes of its inputs and outputs, scored and ranked."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eqtoolbox.symmetry.actions.action import Action, dihedral, flip, quarter_turn, roll, trivial
from eqtoolbox.symmetry.actions.fields import vector_field
from eqtoolbox.symmetry.actions.linear import positions, vectors
from eqtoolbox.symmetry.actions.permuting import Box, Permute, Reverse, Roll, Signed
from eqtoolbox.symmetry.actions.scaling import Degree, Negated, Parity
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.finite import Octahedral, Sign, Symmetric
from eqtoolbox.symmetry.groups.group import Cyclic, CyclicTranslation, Dihedral, Flip, Group
from eqtoolbox.symmetry.groups.matrices import Euclidean, MatrixGroup, Orthogonal
from eqtoolbox.symmetry.groups.unbounded import Scalings
from eqtoolbox.symmetry.orbit import Function
from eqtoolbox.symmetry.result import EquivarianceResult
from eqtoolbox.symmetry.structure import Tree
from eqtoolbox.symmetry.structured import structured_candidates

_AXES = 8  # coordinates whose single mirrors and exchanges are tried
_RANK = {"holds": 0, "trivial": 1, "unresolved": 2, "violated": 3}


@dataclass(frozen=True, kw_only=True)
class Score:
    """A candidate and how far the function is from it."""

    symmetry: Equivariance
    result: EquivarianceResult | None  # None: it does not fit, see note
    note: str = ""


def candidates(
    inputs: Tree, outputs: Tree, arguments: Sequence[str] = (), parts: bool = False
) -> list[Equivariance]:
    """Symmetries whose actions fit tensors of these shapes, as invariances and equivariances.

    Args:
        inputs: (batch, channels, H, W) images, (batch, channels, D, H, W) volumes, (batch, n, d)
            sets, point clouds or series, (batch, d); or a tree, see `structured_candidates`.
        outputs: of the function.
        arguments: what the entries of a tuple are called.
        parts: whether it is a batch of one, see `structured_candidates`.

    Example:
        >>> [c.name for c in candidates(torch.ones(2, 9), torch.ones(2, 1))][:2]
        ['sign.even', 'sign.odd']
    """
    if not isinstance(inputs, Tensor) or not isinstance(outputs, Tensor):
        return structured_candidates(inputs, outputs, arguments, parts)
    found = list(_candidates(inputs, outputs))
    names = [c.name for c in found]
    assert len(set(names)) == len(names), names
    return found


def suggested(group: Group, inputs: Tree, outputs: Tree) -> Equivariance:
    """The claim that a group alone makes on tensors of these shapes, by the usual actions.

    Outputs move with the inputs where they are of their kind, as images and vectors are; else they
    stay.

    Raises:
        ValueError: no action of the group is known for these shapes.

    Example:
        >>> suggested(Cyclic(4), torch.ones(2, 1, 8, 8), torch.ones(2, 10)).output_action is trivial
        True
    """

    def same(other: Group) -> bool:  # or the proper part of it: SO(3) acts as O(3) does
        if isinstance(group, MatrixGroup) and isinstance(other, MatrixGroup):
            return type(other) is type(group) and other.size == group.size
        return other == group

    fitting = [c for c in candidates(inputs, outputs) if same(c.group)]
    if not fitting:
        raise ValueError(
            f"no action of {group.name} is known for tensors of these shapes; write "
            "Equivariance(group, input_action, output_action)"
        )
    moving = [c for c in fitting if c.name.endswith(".equivariant")]
    return replace((moving or fitting)[0], group=group, name=group.name)


def rank(
    function: Function,
    inputs: Tree,
    claims: Iterable[Equivariance],
    *,
    samples: int = 8,
) -> list[Score]:
    """Every claim measured; those that hold first, then by relative error.

    Args:
        function: f, (batch, ...) -> (batch, ...).
        inputs: x, floating point.
        claims: such as `candidates(x, f(x))`.
        samples: group elements at most, of each.

    Example:
        >>> x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        >>> norm = lambda x: x.norm(dim=1, keepdim=True)
        >>> scores = rank(norm, x, candidates(x, norm(x)))
        >>> holding = {s.symmetry.name for s in scores if s.result.verdict == "holds"}
        >>> sorted(name for name in holding if "mirror" not in name)
        ['o2.invariant', 'scalings.degree1', 'sign.even', 'symmetric2.invariant']
    """
    scores = []
    for claim in claims:
        rng = torch.Generator().manual_seed(0)
        try:
            result = equivariance_error(function, inputs, claim, samples=samples, generator=rng)
            scores.append(Score(symmetry=claim, result=result, note=result.note))
        except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError) as reason:
            scores.append(Score(symmetry=claim, result=None, note=str(reason)))
    return sorted(scores, key=_order)


def _order(score: Score) -> tuple[int, float]:
    if score.result is None:
        return len(_RANK), 0.0
    return _RANK[score.result.verdict], score.result.relative_error


def _candidates(x: Tensor, y: Tensor) -> Iterator[Equivariance]:
    spatial = x.dim() >= 4
    if x.dim() == 5:
        same = y.dim() == 5 and y.shape[-3:] == x.shape[-3:]
        sizes = x.shape[-3:]  # axes of different length are not exchanged
        box = Octahedral((float(sizes[0]), float(sizes[1]), float(sizes[2])))
        yield from _pair(box, Box(), Box() if same else None)
    elif spatial:
        height, width = x.shape[-2:]
        same = y.dim() >= 4 and y.shape[-2:] == x.shape[-2:]
        grids: list[tuple[Group, Action]] = [(Flip(), flip)]
        if height == width:
            grids = [(Cyclic(4), quarter_turn), (Dihedral(4), dihedral), *grids]
        grids.append((CyclicTranslation((height, width)), roll))
        for group, action in grids:
            yield from _pair(group, action, action if same else None)
        if height == width and x.shape[-3] % 2 == 0:
            field = vector_field if same and y.shape[-3] % 2 == 0 else None
            yield from _pair(Dihedral(4), vector_field, field, kind="field-")
    d = x.shape[-1]
    if not spatial and d in (2, 3):
        turned = vectors if y.dim() > 1 and y.shape[-1] == d else None
        yield from _pair(Orthogonal(d), vectors, turned)
        if x.dim() == 3:
            yield from _pair(Euclidean(d), positions, turned)
    if x.dim() == 3 and x.shape[1] > 1:
        moved = Permute(1) if y.dim() > 1 and y.shape[1] == x.shape[1] else None
        yield from _pair(Symmetric(x.shape[1]), Permute(1), moved)
        along = y.dim() == 3 and y.shape[1] == x.shape[1]
        series: list[tuple[Group, Action, str]] = [
            (Flip(), Reverse(1), "reversal"), (Cyclic(x.shape[1]), Roll(1), "roll"),
        ]  # fmt: skip
        for group, action, kind in series:
            claim = Equivariance(group, action, trivial)
            yield replace(claim, name=f"{kind}.invariant")
            if along:
                yield replace(claim, output_action=action, name=f"{kind}.equivariant")
    if x.dim() == 2 and 1 < d <= _AXES:
        for axis in range(d):
            sign = [-1 if i == axis else 1 for i in range(d)]
            mirror = Signed(tuple(range(d)), tuple(sign))
            yield Equivariance(mirror.group, mirror, trivial, name=f"mirror{axis}.even")
            yield Equivariance(mirror.group, mirror, Negated(), name=f"mirror{axis}.odd")
        yield from _pair(Symmetric(d), Permute(-1), Permute(-1) if y.shape == x.shape else None)
    yield Equivariance(Sign(), Parity(), trivial, name="sign.even")
    yield Equivariance(Sign(), Parity(), Parity(), name="sign.odd")
    for degree in (0, 1, 2):
        yield Equivariance(Scalings(), Degree(1), Degree(degree), name=f"scalings.degree{degree}")


def _pair(
    group: Group, action: Action, out: Action | None, kind: str = ""
) -> Iterator[Equivariance]:
    claim = Equivariance(group, action, trivial)
    yield replace(claim, name=f"{kind}{group.name}.invariant")
    if out is not None:
        yield replace(claim, output_action=out, name=f"{kind}{group.name}.equivariant")
