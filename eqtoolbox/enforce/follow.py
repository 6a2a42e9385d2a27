"""Follow a forward pass: which representation every tensor carries, and what each weight owes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from eqtoolbox.enforce.average import Average, Duty
from eqtoolbox.enforce.bearing import Bearing
from eqtoolbox.enforce.representation import Representation, Unfit, still
from eqtoolbox.enforce.torch_calls import TorchCall, TorchCalls
from eqtoolbox.enforce.unifying import Block, Unknown, leaves, moves, seen
from eqtoolbox.symmetry.orbit import Function
from eqtoolbox.symmetry.structure import Tree

_BRANCHES = """item tolist numpy __bool__ __float__ __int__ __index__ is_nonzero any all equal
    allclose nonzero gt lt ge le eq ne argmax argmin sort argsort topk unique"""

_OTHERS = "use averaged or canonicalised, which take any model"

Rule = Callable[["Follow", TorchCall], Any]  # a Bearing, or a tuple of them as the results


@dataclass(eq=False)
class Met:
    """A layer as it was met."""

    weight: tuple[str, str]  # module and attribute
    given: Block
    made: Block


@dataclass(eq=False)
class Follow:
    """Runs a model with `rules` beside every torch function that it calls.

    Seen are the functions as the model calls them (`linear`, `max_pool2d`, `view`), so nothing has
    to be rewritten or traced by symbols. Two runs: the first finds which outputs must be alike, the
    second, after `choose`, writes down the law of every weight.
    """

    model: nn.Module
    order: int  # |G|
    rules: Mapping[str, Rule]
    final: bool = False
    laws: dict[tuple[str, str], Duty] = field(default_factory=dict)
    spread: dict[tuple[str, str], int] = field(default_factory=dict)  # hidden sides of a weight
    rows: list[Met] = field(default_factory=list)
    outs: dict[int, Block] = field(default_factory=dict)  # of weights
    unknowns: list[Unknown] = field(default_factory=list)
    chosen: set[int] = field(default_factory=set)  # ids of representations that were free
    pooled: dict[str, Representation] = field(default_factory=dict)  # batch norms, by module
    _seen: dict[int, tuple[Tensor, Bearing]] = field(default_factory=dict)
    _made: dict[int, Any] = field(default_factory=dict)  # out of weights alone
    _places: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Who owns which weight."""
        self.owners: dict[int, list[tuple[str, str]]] = {}
        for name, module in self.model.named_modules(remove_duplicate=False):
            held = {**module._parameters, **module._buffers}
            for attribute, x in held.items():
                if x is not None:
                    self.owners.setdefault(id(x), []).append((name, attribute))

    @property
    def place(self) -> str:
        """The module at work."""
        return self._places[-1] if self._places else "forward"

    def run(self, respond: Function, inputs: Tree, carried: Sequence[Bearing | None]) -> Tree:
        """The outputs, `carried` being the bearings of the leaves of the inputs.

        Args:
            respond: inputs -> outputs, by a call of the model.
        """
        self._seen.clear()
        for x, bearing in zip(tree_leaves(inputs), carried, strict=True):
            if bearing is not None:
                self.carry(x, bearing)
        with torch.no_grad(), self._placed(), TorchCalls(self._heard):
            return respond(inputs)

    def carry(self, x: Tensor, bearing: Bearing) -> None:
        """Note what a tensor carries."""
        self._seen[id(x)] = (x, bearing)

    def of(self, x: Any) -> Bearing | None:
        """What a tensor carries."""
        return self._seen[id(x)][1] if id(x) in self._seen else None

    def is_weight(self, x: Any) -> bool:
        """Whether it is a parameter, or made of parameters alone."""
        return isinstance(x, nn.Parameter) or id(x) in self._made

    def owner(self, x: Tensor, what: str) -> tuple[str, str]:
        """Module and attribute of a weight or buffer that belongs to one module alone.

        Raises:
            Unfit: it is shared, or is made of others at each call.
        """
        names = self.owners.get(id(x), [])
        if not names:
            raise Unfit(
                f"its {what} is no parameter of its own but made of others at each call "
                "(weight_norm, spectral_norm, a parametrisation): remove that first"
            )
        if len(names) > 1:
            several = " and ".join(".".join(filter(None, pair)) for pair in names)
            raise Unfit(f"its {what} is shared by {several}: tie them to one or part them first")
        return names[0]

    def out(self, weight: Tensor, size: int, *, moved: bool, given: Block) -> Block:
        """The representation of a layer's outputs, the same at every call."""
        if id(weight) not in self.outs:
            name = self.owner(weight, "weight")[0]
            moved = moved or moves(given)
            unknown = Unknown(name=name, size=size, moved=moved, order=self.order, inputs=[given])
            self.outs[id(weight)] = unknown
            self.unknowns.append(unknown)
        return self.outs[id(weight)]

    def tie(self, weight: Tensor | None, *parts: Block, dual: Sequence[int] = ()) -> None:
        """Demand that a weight moves with its inputs (`dual` among its parts) and outputs.

        Raises:
            Unfit: it is shared, or used before in another way.
        """
        if weight is None or not self.final:
            return
        where = self.owner(weight, "weight")
        known = [sure(part) for part in parts]
        law = Duty(tuple(p.dual() if i in dual else p for i, p in enumerate(known)))
        if not isinstance(weight, nn.Parameter):
            demand_still(law, weight)
            return
        if where in self.laws and not self.laws[where].same(law):
            raise Unfit("it is called more than once, on inputs that the group moves differently")
        self.laws[where] = law
        own = [any(id(leaf) in self.chosen for leaf in leaves(part)) for part in parts]
        self.spread[where] = sum(own)

    def layer(self, weight: Tensor, given: Block, made: Block) -> None:
        """Note a layer for the table."""
        where = self.owner(weight, "weight")
        if self.final and all(row.weight != where for row in self.rows):
            self.rows.append(Met(where, given, made))

    def choose(self, regular: Callable[[int], Representation]) -> None:
        """Give the outputs that are still free a representation: trivial where nothing moves.

        Raises:
            Unfit: a width is no multiple of |G|, naming the layer.
        """
        every = [leaf for u in self.unknowns for leaf in leaves(u)]
        free = [u for u in every if isinstance(u, Unknown)]
        while sum(_spread(u) for u in free):
            pass
        for u in free:
            if u.bound is not None:
                continue
            if u.moved and u.size > 1 and u.size % self.order:
                n, k = u.size, self.order
                near = sorted({max(n // k, 1) * k, -(-n // k) * k})
                raise Unfit(
                    f"{u.name}: width {n} is no multiple of the {k} elements of the group; "
                    f"take {' or '.join(map(str, near))}"
                )
            made = regular(u.size) if u.moved and u.size > 1 else still(self.order, u.size)
            u.bound = made
            self.chosen.add(id(made))

    @contextmanager
    def _placed(self) -> Iterator[None]:
        """Modules tell when they begin and end."""
        handles = []
        for name, module in self.model.named_modules():
            begin = lambda m, a, name=name: self._places.append(name or "forward")
            end = lambda m, a, y: self._places.pop() and None
            handles += [
                module.register_forward_pre_hook(begin),
                module.register_forward_hook(end),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _heard(self, call: TorchCall) -> None:
        try:
            self._called(call)
        except Unfit as why:
            raise Unfit(f"{self.place}: {why}") from None

    def _called(self, call: TorchCall) -> None:
        """Note what the result of a call carries."""
        name = call.name
        given = [x for x in tree_leaves((call.args, call.kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(call.result) if isinstance(x, Tensor)]
        if not any(id(x) in self._seen for x in given):
            if any(self.is_weight(x) for x in given):
                self._made.update((id(x), x) for x in made if not isinstance(x, nn.Parameter))
            return
        if name in _BRANCHES.split():
            raise Unfit(
                f"{name}: it branches or picks by values of the data, which is not followed"
            )
        if not made and name != "__setitem__":
            return  # a question about a shape
        rule = self.rules.get(name)
        if rule is None:
            raise Unfit(f"{name}: no rule says how it commutes with a group; {_OTHERS}")
        found = rule(self, call)
        for x, bearing in zip(made, found if isinstance(found, tuple) else (found,), strict=True):
            if bearing is None:
                continue
            if bearing.shape != tuple(x.shape[1:]):
                raise Unfit(f"{name}: it folds the batch into {tuple(x.shape)}")
            self.carry(x, bearing)


def _spread(u: Unknown) -> bool:
    """Whether an unknown is found to move because its inputs do."""
    found = u.bound is None and not u.moved and any(map(moves, u.inputs))
    u.moved = u.moved or found
    return found


def demand_still(law: Duty, x: Tensor) -> None:
    """What is no weight must obey as it is.

    Raises:
        Unfit: the group moves it.
    """
    still = x if law.rests else Average(law, range(law.parts[0].order))(x.double()).to(x)
    if not torch.allclose(still, x):
        raise Unfit(f"a constant of shape {tuple(x.shape)} is met that the group moves")


def sure(part: Block) -> Representation:
    """A block in the second run, when every representation is known."""
    known = seen(part)
    assert isinstance(known, Representation)
    return known
