"""Tie a module tree: plan what every weight owes to a claim, apply it, take it off again."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import product as pairs
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from eqtoolbox.enforce import tie_layers, tie_pointwise, tie_shape, tie_windows
from eqtoolbox.enforce.average import Average, Duty
from eqtoolbox.enforce.follow import Follow
from eqtoolbox.enforce.pooled import POOLED
from eqtoolbox.enforce.probed import bearings
from eqtoolbox.enforce.representation import Representation, Unfit
from eqtoolbox.enforce.unifying import Block, seen
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.groups.group import Element, Group
from eqtoolbox.symmetry.orbit import Function
from eqtoolbox.symmetry.structure import Tree, on_tensors

Where = tuple[str, str]  # module and attribute
RULES = tie_pointwise.RULES | tie_shape.RULES | tie_windows.RULES | tie_layers.RULES
_ROUNDING = 1e-5  # share of a norm under which an average is rounding


@dataclass(frozen=True, kw_only=True)
class TiedLayer:
    """One layer of a tied model, for the table."""

    layer: str
    kind: str
    given: str  # representation of the inputs
    made: str  # of the outputs
    before: int  # weights
    after: int  # free ones


@dataclass(frozen=True, kw_only=True, eq=False)
class Ties:
    """What a claim asks of every weight of a model."""

    laws: Mapping[Where, Duty]
    pooled: Mapping[str, Representation] = field(default_factory=dict)
    weights: frozenset[Where] = frozenset()  # of layers, whose norm is given back
    spread: Mapping[Where, int] = field(default_factory=dict)  # hidden sides of each
    lines: tuple[TiedLayer, ...] = ()


def regular(group: Group, elements: Sequence[Element], n: int) -> Representation:
    """Copies of the regular representation on n entries: (h y)[b, h g] = y[b, g].

    Example:
        >>> from eqtoolbox.symmetry.groups.group import Cyclic
        >>> regular(Cyclic(3), [0, 1, 2], 6).source.tolist()
        [[0, 1, 2, 3, 4, 5], [2, 0, 1, 5, 3, 4], [1, 2, 0, 4, 5, 3]]
    """
    k = len(elements)
    number = {g: i for i, g in enumerate(elements)}
    source = torch.empty(k, n, dtype=torch.int64)
    starts = torch.arange(0, n, k)
    for (a, h), (j, g) in pairs(enumerate(elements), enumerate(elements)):
        source[a, starts + number[group.compose(h, g)]] = starts + j
    return Representation(source=source, sign=torch.ones(k, n, dtype=torch.float64))


def plan(model: nn.Module, claim: Equivariance, respond: Function, sample: Tree) -> Ties:
    """Follow a model twice and note what every weight owes.

    Args:
        model: in eval mode, float64; it is only run.
        claim: of a finite group.
        respond: sample -> outputs, by a call of the model.
        sample: a few inputs in float64.

    Raises:
        Unfit: which layer cannot be tied, and why.
    """
    elements = list(claim.group.elements())
    follow = Follow(model, len(elements), RULES)
    given = _carried(claim, "input_action", elements, sample)
    wanted: Any = None
    for final in (False, True):
        follow.final = final
        output = follow.run(respond, sample, given)
        if wanted is None:
            wanted = _carried(claim, "output_action", elements, output)
        _meet(follow, output, wanted)
        if not final:
            follow.choose(partial(regular, claim.group, elements))
    _demand_free(follow.laws, {row.weight for row in follow.rows}, len(elements))
    return Ties(
        laws={w: law for w, law in follow.laws.items() if not law.rests},
        pooled={name: block for name, block in follow.pooled.items() if not block.rests},
        weights=frozenset(row.weight for row in follow.rows),
        spread=follow.spread,
        lines=tuple(_lines(model, follow)),
    )


def _carried(claim: Equivariance, name: str, elements: Sequence[Element], x: Tree) -> Any:
    try:
        return bearings(getattr(claim, name), elements, x)
    except Unfit as why:
        raise Unfit(f"{name}: {why}") from None


def _meet(follow: Follow, output: Any, wanted: Sequence[Any]) -> None:
    """The output must move as claimed."""
    for x, bearing in zip(tree_leaves(output), wanted, strict=True):
        found = follow.of(x)
        if bearing is None:
            continue
        if found is None:
            raise Unfit("an output does not depend on the inputs by torch functions of the model")
        try:
            found.unify(bearing)
        except Unfit as why:
            raise Unfit(
                f"the output: {why}; what stands before it has no weights that could turn it so"
            ) from None


def _demand_free(laws: Mapping[Where, Duty], layers: set[Where], order: int) -> None:
    for where in layers & laws.keys():
        if not laws[where].free(range(order)):
            raise Unfit(
                f"{where[0]}: no {where[1]} but zero obeys; claim another output action, or let a "
                "layer with more channels come between"
            )


def apply(model: nn.Module, plan: Ties, elements: Sequence[int], *, refill: bool = True) -> None:
    """Parametrise every weight of a model by its average.

    Args:
        model: of the tree that was planned for.
        plan: what it owes.
        elements: numbers of the group elements that are averaged over.
        refill: give the weights of layers the norm that averaging takes from them.
    """
    for name, block in plan.pooled.items():
        module: Any = model.get_submodule(name)
        module.pool = Average(Duty((block,)), elements).to(_device(module))
        module.__class__ = POOLED[type(module)]
        module.settle()
    for where, law in plan.laws.items():
        module, weight = model.get_submodule(where[0]), owned(model, where)
        free = law.free(elements)
        gain = sqrt(weight.numel() / free) if free else 1.0
        average = Average(law, elements, gain).to(weight.device)
        with torch.no_grad():
            made = average.mean(weight)
            if refill and where in plan.weights and made.norm() > _ROUNDING * weight.norm():
                weight.mul_(weight.norm() / made.norm())
        parametrize.register_parametrization(module, where[1], average)


def relax(model: nn.Module, plan: Ties, elements: Sequence[int]) -> None:
    """Average over fewer elements from now on, at the same weights."""
    for where, law in plan.laws.items():
        held: Any = model.get_submodule(where[0]).parametrizations
        with torch.no_grad():
            held[where[1]].original.copy_(owned(model, where) / held[where[1]][0].gain)
        average = Average(law, elements, held[where[1]][0].gain)
        held[where[1]][0] = average.to(held[where[1]].original.device)
    for name, block in plan.pooled.items():
        module: Any = model.get_submodule(name)
        module.pool = Average(Duty((block,)), elements).to(_device(module))


def plain(model: nn.Module, plan: Ties, order: Mapping[str, Sequence[str]]) -> nn.Module:
    """A copy whose weights are what they average to, with modules as they were."""
    copied = deepcopy(model)
    for name in dict.fromkeys(name for name, _ in plan.laws):
        _unparametrised(copied.get_submodule(name))
    for name in plan.pooled:
        module = copied.get_submodule(name)
        module.__class__ = type(module).plain  # type: ignore[attr-defined]
        del module.pool
    for name, names in order.items():
        held = copied.get_submodule(name)._parameters
        for attribute in names:
            held[attribute] = held.pop(attribute)
    return copied


def _unparametrised(module: Any) -> None:
    """Values in place of averages; torch would mend the class, which other copies share."""
    held = module.parametrizations
    values = {
        name: nn.Parameter(getattr(module, name).detach().clone(), one.original.requires_grad)
        for name, one in held.items()
    }
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    for name, value in values.items():
        module.register_parameter(name, value)


def owned(model: nn.Module, where: Where) -> Tensor:
    """The weight at a place, as the model sees it."""
    weight: Tensor = getattr(model.get_submodule(where[0]), where[1])
    return weight


def _device(module: nn.Module) -> torch.device:
    held = next((x for x in (*module.parameters(), *module.buffers())), None)
    return torch.device("cpu") if held is None else held.device


def few(sample: Tree, count: int) -> Tree:
    """So many samples in float64, the first ones, repeated where there are fewer."""

    def some(x: Tensor) -> Tensor:
        x = x.detach()[torch.arange(count) % len(x)].cpu()
        return x.double() if x.is_floating_point() else x

    return on_tensors(some, sample)


def _lines(model: nn.Module, follow: Follow) -> list[TiedLayer]:
    order = range(follow.order)
    found = []
    for row in follow.rows:
        name = row.weight[0]
        here = [w for w in follow.laws if w[0] == name]
        found.append(
            TiedLayer(
                layer=name or "model",
                kind=type(model.get_submodule(name)).__name__,
                given=_words(row.given),
                made=_words(row.made),
                before=sum(owned(model, w).numel() for w in here),
                after=sum(follow.laws[w].free(order) for w in here),
            )
        )
    return found


def _words(block: Block) -> str:
    """A representation in a few words."""
    known = seen(block)
    assert isinstance(known, Representation)
    if known.rests:
        return f"{known.size} still"
    traces = known.characters()[1:].abs()
    if bool((traces < 1e-6).all()):
        return f"{known.size // known.order} regular"
    if known.matrix is not None:
        return f"{known.size} mixed"
    return f"{known.size} exchanged" if known.permutes else f"{known.size} signed"
