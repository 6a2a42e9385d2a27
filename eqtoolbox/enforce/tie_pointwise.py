"""How functions of single entries, and of pairs of them, commute with a group."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from eqtoolbox.enforce.average import Duty
from eqtoolbox.enforce.bearing import Bearing, permuting
from eqtoolbox.enforce.follow import Follow, Rule, demand_still
from eqtoolbox.enforce.representation import Representation, Unfit
from eqtoolbox.enforce.torch_calls import TorchCall
from eqtoolbox.enforce.unifying import Block, seen, unify

_SAME = """alias_copy clone contiguous data detach double float to type dropout dropout1d dropout2d
    dropout3d alpha_dropout feature_alpha_dropout neg negative positive requires_grad identity"""
_ODD = """tanh sin sinh asin asinh atan atanh tan erf erfinv softsign tanhshrink sign sgn
    hardshrink softshrink"""
_EVEN = "abs square cos cosh absolute"
_ANY = """celu clamp clip elu exp exp2 expm1 gelu hardsigmoid hardswish leaky_relu log log10 log1p
    log2 logit logsigmoid mish reciprocal relu relu6 rrelu rsqrt selu sigmoid silu softplus sqrt
    threshold nan_to_num ceil floor round"""


def held(f: Follow, c: TorchCall) -> Bearing:
    """What the first argument carries.

    Raises:
        Unfit: it does not depend on the inputs.
    """
    found = f.of(c.x)
    if found is None:
        raise Unfit(f"{c.name}: the first argument does not depend on the inputs, another does")
    return found


def _same(f: Follow, c: TorchCall) -> Bearing:
    """x as it is, or times a number."""
    return held(f, c)


def _odd(f: Follow, c: TorchCall) -> Bearing:
    """f(-x) = -f(x) for every entry."""
    x = held(f, c)
    if any(isinstance(b, Representation) and b.matrix is not None for b in x.blocks):
        permuting(x, c.name)
    return x


def _any(f: Follow, c: TorchCall) -> Bearing:
    """A function of every entry."""
    x = held(f, c)
    permuting(x, c.name)
    return x


def unsigned(held: Bearing) -> Bearing:
    """With signs forgotten, as sizes and factors move.

    Raises:
        Unfit: entries are mixed.
    """
    parts = []
    for block, shape in held.parts:
        known = seen(block)
        parts.append((known.unsigned() if isinstance(known, Representation) else known, shape))
    return Bearing(held.order, tuple(parts))


def _even(f: Follow, c: TorchCall) -> Bearing:
    """f(-x) = f(x) for every entry."""
    return unsigned(held(f, c))


def _power(f: Follow, c: TorchCall) -> Bearing:
    exponent = c.arg(1, "exponent")
    if isinstance(exponent, int) and isinstance(c.arg(0, "input"), Tensor):
        return _even(f, c) if exponent % 2 == 0 else _odd(f, c)
    return _any(f, c)


def _sum(f: Follow, c: TorchCall) -> Bearing:
    """x + y: both move alike, a weight is left as it is, a number is the same all over."""
    return _pair(f, c, signed=True)


def _times(f: Follow, c: TorchCall) -> Bearing:
    """x y: both exchange alike, signs multiply."""
    return _pair(f, c, signed=False)


def _over(f: Follow, c: TorchCall) -> Bearing:
    """x / y likewise."""
    return _pair(f, c, signed=False)


def _most(f: Follow, c: TorchCall) -> Bearing:
    """The larger or smaller of two."""
    held = _pair(f, c, signed=True)
    permuting(held, c.name)
    return held


def _pair(f: Follow, c: TorchCall, *, signed: bool) -> Bearing:
    pair = [c.arg(0, "input"), c.arg(1, "other")]
    held = [f.of(x) for x in pair]
    if held[0] is not None and held[1] is not None:
        return _both(held[0], held[1], signed=signed)
    mine, other = (held[0], pair[1]) if held[0] is not None else (held[1], pair[0])
    assert mine is not None
    if not isinstance(other, Tensor):
        if signed and other != 0:
            permuting(mine, f"{c.name} of a number")
        return mine
    constant(f, other, mine, signed=signed)
    return mine


def _both(a: Bearing, b: Bearing, *, signed: bool) -> Bearing:
    """Two tensors of which each dimension is equal or one long in one of them."""
    if len(a.shape) != len(b.shape):
        raise Unfit(f"shapes {a.shape} and {b.shape} of samples meet")
    made, at = Bearing(a.order, ()), 0
    kinds = [(m != n) * (1 + (m == 1)) for m, n in zip(a.shape, b.shape, strict=True)]
    while at < len(kinds):
        end = next((i for i in range(at, len(kinds)) if kinds[i] != kinds[at]), len(kinds))
        (mine, a), (its, b) = a.split(end - at), b.split(end - at)
        if kinds[at] == 0 and signed:
            mine.unify(its)
            made += mine
        elif kinds[at] == 0:
            made += _product(mine, its)
        else:
            one, many = (its, mine) if kinds[at] == 1 else (mine, its)
            if not one.rests:
                raise Unfit("a factor that changes sign is spread over other entries")
            made += many
        at = end
    return made


def _product(a: Bearing, b: Bearing) -> Bearing:
    one, two = a.block, b.block
    if isinstance(one, Representation) and isinstance(two, Representation):
        unify(one.unsigned(), two.unsigned())
        return Bearing.of(a.order, (replace(one, sign=one.sign * two.sign), a.shape))
    a.unify(b)
    return a


def constant(f: Follow, x: Tensor, held: Bearing, *, signed: bool) -> None:
    """A tensor without samples beside one: a weight is tied, anything else must lie still.

    Raises:
        Unfit: it does not, or has its own batch.
    """
    extra = x.dim() - len(held.shape)
    if extra > 1 or (extra == 1 and x.shape[0] != 1):
        raise Unfit(f"a tensor of shape {tuple(x.shape)} meets samples of shape {held.shape}")
    shape = x.shape[extra:] if extra > 0 else (1,) * -extra + tuple(x.shape)
    if signed and any(n == 1 != m for n, m in zip(shape, held.shape, strict=True)):
        _demand_plain(held, shape)
    parts = parts_of(held if signed else unsigned(held), shape)
    if f.is_weight(x):
        f.tie(x, *parts)
    elif f.final and x.numel() > 1:
        demand_still(Duty(tuple(p for p in map(seen, parts) if isinstance(p, Representation))), x)


def _demand_plain(held: Bearing, shape: Sequence[int]) -> None:
    """What is spread over entries must not be spread over changing signs."""
    for at, n in enumerate(shape):
        if n == 1:
            permuting(held.around(at)[1], "adding what is spread")


def parts_of(held: Bearing, shape: Sequence[int]) -> list[Block]:
    """How a tensor of this shape, which is spread over the entries, moves along."""
    parts: list[Block] = []
    at = 0
    while at < len(shape):
        spread = shape[at] == 1 != held.shape[0]
        run = next(
            (i for i in range(at, len(shape)) if (shape[i] == 1 != held.shape[i - at]) != spread),
            len(shape),
        )
        head, held = held.split(run - at)
        if not spread:
            parts.append(head.block)
        at = run
    return parts


def _prelu(f: Follow, c: TorchCall) -> Bearing:
    x = _any(f, c)
    weight = c.arg(1, "weight")
    if weight.numel() > 1:
        f.tie(weight, x.split(1)[0].block)
    return x


def _clamp(f: Follow, c: TorchCall) -> Bearing:
    """hardtanh is odd where its bounds are."""
    low, high = c.arg(1, "min_val", -1.0), c.arg(2, "max_val", 1.0)
    return _odd(f, c) if low == -high else _any(f, c)


def _table(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Any] = {
    **_table(_SAME, _same),
    **_table(_ODD, _odd),
    **_table(_EVEN, _even),
    **_table(_ANY, _any),
    **_table("add sub rsub subtract", _sum),
    **_table("mul multiply", _times),
    **_table("div divide true_divide truediv rdiv", _over),
    **_table("maximum minimum", _most),
    "pow": _power,
    "prelu": _prelu,
    "hardtanh": _clamp,
}
