"""The largest, smallest or outermost eigenpairs of a symmetric operator, each with its residual."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from eqtoolbox.expect import notebook
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.deadline import now
from eqtoolbox.expect.kinds import NotNegative
from eqtoolbox.linalg.accept import Accept, Until, error_bounds, product_errors
from eqtoolbox.linalg.basis import Basis
from eqtoolbox.linalg.chain import Largest, largest
from eqtoolbox.linalg.krylov import Krylov, Ritz
from eqtoolbox.linalg.operator import LinearOperator
from eqtoolbox.linalg.vectors import Vector, norm
from eqtoolbox.linalg.warm import WarmStart, begun

MANY = 3  # pairs from which on two chains side by side cost less than one after the other
DEEPER = 2  # products of each of two, beyond those of a chain that starts beside what was found
ROOM = 1 << 24  # entries that a search of a small model may take for what spares it restarts

Start = Vector | Sequence[Vector] | WarmStart | None
Which = Literal["largest", "smallest", "both", "magnitude"]


@dataclass(frozen=True, kw_only=True)
class EigenResult(WarmStart):
    """Eigenpairs with what is known about their errors; K = k, or k + k_smallest for "both"."""

    values: Tensor  # (K,) float64, outermost first; for "both" descending, the smallest last
    vectors: list[dict[str, Tensor]]  # K orthonormal vectors of the operator's space
    # (K,) float64, ‖Hv − λv‖ in the unit of λ, and what Hv may be off by: an eigenvalue is as near
    residuals: Tensor
    # (K,) float64, and what |λ − eigenvalue| is at most where the gaps hide no other eigenvalue, as
    # members of a cluster that was met as one do, and what Hv may be off by
    error_bounds: Tensor
    converged: Tensor  # (K,) bool, residual (of "values" the bound) <= tol · scale but for that
    scale: float  # largest |eigenvalue| known
    asymmetry: float  # largest |⟨u,Hv⟩ − ⟨v,Hu⟩| met, relative to ‖H‖
    confirmed: bool  # a fresh random chain orthogonal to the vectors found nothing missing
    matvecs: int  # products spent

    _repr_html_ = notebook.by_fields


@checked
def top_eigenpairs(
    operator: LinearOperator,
    k: int,
    *,
    which: Which = "largest",
    k_smallest: int = 1,
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    generator: torch.Generator | None = None,
    start: Start = None,
    until: Until = "pairs",
    max_vectors: int | None = None,
    confirm: int | None = None,
    seconds: NotNegative = math.inf,
) -> EigenResult:
    """The k outermost eigenpairs H v = λ v, by thick-restart Lanczos with full reorthogonalisation.

    The residuals are those of the returned vectors, not estimates: HQᵀ = QᵀT + βq e_mᵀ makes
    ‖Hv − λv‖ equal to |β z_m|; the measured asymmetry and eps‖H‖ are added for what rounding does
    to that relation, and for products that are differences what `product_error` says. Everything is
    relative to the operator's own size: scaling H changes no digit.

    A small residual proves an eigenpair, not the wanted one: one Krylov chain meets each eigenspace
    once, a `start` may lack the wanted vectors, and in a cluster a loose `tol` is met too early. So
    fresh random chains orthogonal to what was found follow, until one of them finds nothing new. Of
    three pairs and more the first two chains go side by side and serve each other, if there is time
    for both; a third follows where two values may be one eigenvalue, met twice.

    Args:
        operator: H.
        k: number of eigenpairs, 1 … n.
        which: "largest" and "smallest" are algebraic, "magnitude" is by |λ|, "both" takes k largest
            and `k_smallest` smallest in one run.
        k_smallest: pairs from the lower end for "both".
        tol: a pair is converged when its residual is at most tol times the largest |eigenvalue|.
            Where tol is larger the search goes on to 3e-3, or to 1e-2 from an earlier one, unless
            it begins afresh with confirm=0.
        max_matvecs: budget in products; default 100 + 20 per pair. Of products that are
            differences the errors are estimated within it, for two products a pair. Pairs that are
            not there yet are returned with `converged` False.
        generator: of the random start; default a new one with seed 0.
        start: a vector to start from, such as the last step's; the sum of several; or what was
            found of an operator like this one, to begin with all of it (`eqtoolbox.linalg.warm`).
        until: a pair is there when its residual is small ("pairs"), or as soon as the bound of its
            value is ("values"), with the residual at most 3e-3 of the largest |eigenvalue|, or
            1e-2 in a search that goes on from an earlier one.
        max_vectors: Krylov vectors in memory, at least K + 2; default K + 8, and up to 2K + 20 as
            far as these have 2^24 entries. One more is the vector to go on with, and one for each
            fresh chain; K + 2 more with a result to start from. 2 for a single largest eigenvalue
            with a random start, which comes without its vector.
        confirm: products of each fresh chain, two more where two go side by side; 0 for none, after
            which `confirmed` stays False. Default 8, but 0 for a single pair (from each end) with a
            random start: its value cannot be affected.
        seconds: after which no further product is begun, once there are as many as pairs.

    Raises:
        ValueError: k, tol or a budget out of range; the operator is not symmetric; a zero start.
        FloatingPointError: a product is not finite.

    Reference:
        Wu & Simon 2000, Thick-restart Lanczos method for large symmetric eigenvalue problems.

    Example:
        >>> from eqtoolbox.linalg import MatrixOperator
        >>> H = MatrixOperator(torch.diag(torch.tensor([1.0, -3.0, 2.0])))
        >>> found = top_eigenpairs(H, 1, which="both")
        >>> [round(x, 5) for x in found.values.tolist()], found.converged.tolist()
        ([2.0, -3.0], [True, True])
    """
    lower = k_smallest if which == "both" else 0
    count = k + lower
    room = min(2 * count + 20, ROOM // operator.size)
    capacity = max(count + 8, room) if max_vectors is None else max_vectors
    budget = 100 + 20 * count if max_matvecs is None else max_matvecs
    alone = max_vectors == 2 and (count, which, start) == (1, "largest", None) and not confirm
    _validate(operator.size, k, lower, which, tol, budget, 3 if alone else capacity, confirm)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    if alone:
        return _by_chain(operator, largest(operator, tol, budget, generator, seconds), tol)
    warm = isinstance(start, WarmStart)
    accept = Accept(until=until, tol=tol, warm=warm, loose=confirm == 0 and not warm)
    if confirm is None:
        confirm = 0 if start is None and k == 1 and lower <= 1 else 8
    ends = (began := now()) + seconds
    krylov = _krylov(operator, capacity, generator, start)
    side = 2 * (confirm + DEEPER) if confirm and start is None and count >= MANY else 0
    if side:  # products that two chains take in turn
        krylov.step()
        side = side if side * (now() - began) < seconds else 0
    if side:
        krylov.refresh()

    def step() -> bool:
        return krylov.step(0 if krylov.matvecs < side else -1)

    settled: Tensor | None = None  # wanted values when the present fresh chain began
    confirmed, left, pending = False, 0, krylov.size > 0
    while not warm and krylov.size < count - 1:  # too few to look at
        step()
    while True:
        goes_on = pending or step()
        pending, ritz = False, krylov.ritz()
        order = _preference(ritz.values, which, k, lower)
        wanted = order[:count]
        size = float(ritz.values.abs().max())
        converged = accept.enough(ritz, wanted, krylov.asymmetry)
        there = len(wanted) == count and bool(converged.all())
        left -= 1
        if settled is not None and (not there or left == 0 or not goes_on):
            moved = (ritz.values[wanted].sort().values - settled).abs().max() if there else 1
            confirmed, settled = there and float(moved) <= tol * size, None
        both = krylov.matvecs >= side  # have gone as far as they shall
        if there and side and both and settled is None:
            confirmed = confirmed or _apart(ritz, wanted, 100 * operator.space.eps * size)
        everything = krylov.size == operator.size
        left_over = budget - count * operator.error_products
        most = left_over if now() < ends else count
        spent = krylov.matvecs >= max(count, most)
        if everything or confirmed or spent or (there and not confirm):
            break
        if both and settled is None:
            krylov.turn(ritz.weights[:, wanted[~converged]])
        elif both:
            krylov.follow()
        if there and both and settled is None:
            settled, left = ritz.values[wanted].sort().values, confirm
            krylov.restart(ritz, wanted)
            krylov.refresh()
        elif krylov.full:
            krylov.restart(ritz, order[: count + (capacity - count) // 2])
    ordered = torch.cat([wanted[:k], wanted[k:].flip(0)])  # the smallest last
    return _result(operator, krylov, ritz, ordered, order[count:], accept, confirmed or everything)


def _apart(ritz: Ritz, wanted: Tensor, rounding: float) -> bool:
    """Whether no two of them may be one eigenvalue, met by two chains in its eigenspace."""
    values, residuals = ritz.values[wanted], ritz.residuals[wanted]
    gaps = (values[:, None] - values).abs() - residuals[:, None] - residuals
    return bool((gaps.fill_diagonal_(math.inf) > rounding).all())


def _result(
    operator: LinearOperator,
    krylov: Krylov,
    ritz: Ritz,
    wanted: Tensor,
    beyond: Tensor,
    accept: Accept,
    confirmed: bool,
) -> EigenResult:
    vectors = krylov.basis.combine(ritz.weights[:, wanted])
    guard = krylov.image(ritz.weights[:, beyond[0]]) if len(beyond) else None
    errors = product_errors(operator, vectors)
    values, residuals = ritz.values[wanted], ritz.residuals[wanted] + errors
    size, bounds = float(ritz.values.abs().max()), error_bounds(ritz, wanted)
    return EigenResult(
        values=values,
        vectors=vectors,
        residuals=residuals,
        error_bounds=bounds + errors,
        converged=accept.reached(ritz, wanted, bounds),
        scale=size,
        asymmetry=krylov.asymmetry / krylov.scale if krylov.scale else 0.0,
        confirmed=confirmed,
        matvecs=krylov.matvecs + len(vectors) * operator.error_products,
        guard=guard if guard is not None and norm(guard) > 0 else None,
    )


def _by_chain(operator: LinearOperator, found: Largest, tol: float) -> EigenResult:
    """Of a single value whose vector was not formed."""
    error = operator.accuracy * found.size if operator.error_products else 0.0
    told = [[found.value], [found.residual + error], [found.bound + error]]
    value, residual, bound = torch.tensor(told, dtype=torch.float64)
    return EigenResult(
        values=value,
        vectors=[],
        residuals=residual,
        error_bounds=bound,
        converged=torch.tensor([found.residual <= tol * found.size]),
        scale=found.size,
        asymmetry=found.asymmetry,
        confirmed=False,
        matvecs=found.matvecs,
    )


def _preference(values: Tensor, which: Which, k: int, lower: int) -> Tensor:
    """Indices of ascending values, the most wanted first; "both" alternates beyond the wanted."""
    up = list(range(len(values)))
    down = up[::-1]
    if which == "largest":
        order = down
    elif which == "smallest":
        order = up
    elif which == "magnitude":
        order = values.abs().argsort(descending=True).tolist()
    else:
        beyond = [i for pair in zip(down[k:], up[lower:], strict=False) for i in pair]
        order = list(dict.fromkeys(down[:k] + up[:lower] + beyond + down))
    return torch.tensor(order)


def _krylov(
    operator: LinearOperator,
    capacity: int,
    generator: torch.Generator,
    start: Start,
) -> Krylov:
    """The space that a search begins with."""
    if isinstance(start, WarmStart):
        return begun(operator, capacity, generator, start)
    return Krylov(operator, capacity, generator, _single(start))


def _single(start: Vector | Sequence[Vector] | None) -> Vector | None:
    if start is None or isinstance(start, Mapping):
        return start
    basis = Basis.spanning(start)
    return basis.combine(torch.ones(len(basis), 1, dtype=torch.float64))[0]


def _validate(
    n: int,
    k: int,
    lower: int,
    which: str,
    tol: float,
    budget: int,
    capacity: int,
    confirm: int | None,
) -> None:
    count = k + lower
    if which not in get_args(Which):
        raise ValueError(f"which must be one of {get_args(Which)}, got {which!r}")
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and n={n}, got {k}; ask for fewer eigenpairs")
    if which == "both" and not 1 <= lower <= n - k:
        raise ValueError(
            f"k_smallest must be between 1 and n-k={n - k}, got {lower}; ask for fewer eigenpairs"
        )
    if not 0 < tol < 1:
        raise ValueError(f"tol must be between 0 and 1, got {tol}; 1e-3 is a common choice")
    if budget < count:
        raise ValueError(f"max_matvecs must be >= {count}, one per eigenpair, got {budget}")
    if capacity < min(count + 2, n):
        raise ValueError(f"max_vectors must be >= {min(count + 2, n)} for {count}, got {capacity}")
    if confirm is not None and confirm < 0:
        raise ValueError(f"confirm must be >= 0, got {confirm}; use 0 to switch it off")
