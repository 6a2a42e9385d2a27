"""A call of a model as a claim sees it: one tree that moves, however the arguments are given."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import (
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_structure,
    tree_unflatten,
)

from eqtoolbox.replay.parts import in_parts
from eqtoolbox.replay.reading import closed, opened
from eqtoolbox.symmetry.actions.action import Action
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.each import batch_of_one
from eqtoolbox.symmetry.orbit import require_outputs
from eqtoolbox.symmetry.structure import Tree, on_tensors, tensors
from eqtoolbox.symmetry.together import concatenated

Model = Callable[..., Any]


class Calling:
    """The moving tree of one call, and the model as a function of such trees.

    The claim acts on the one argument that holds tensors; on the tuple of arguments where there
    are several, in the order of the signature; on the dict of arguments by their names where its
    action is an `Each` of a dict. Dataclasses are dicts. Flags and None are passed on unmoved.

    Args:
        model: any callable.
        claim: on its inputs and outputs.
        args, kwargs: of the call.

    Raises:
        TypeError: an argument that holds a tensor has no action.
    """

    def __init__(
        self, model: Model, claim: Equivariance, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._model = model
        self._like: Any = None
        if len(args) == 1 and isinstance(args[0], Tensor) and not kwargs:
            self._slots: dict[int | str, Any] = {0: args[0]}
            self._keys: list[int | str] = [0]
            self._names: list[str] | None = None
            self._one = True
            self._called: list[str] = []
        else:
            self._read(_names(model), _parts(claim.input_action), args, kwargs)
        self.parts = claim.rows == "parts"
        tree = self._tree()
        if not isinstance(tree, Tensor):
            self.parts = in_parts(tree, claim.rows, self._called)
        self.tree: Tree = batch_of_one(tree) if self.parts else tree

    def _read(
        self, names: tuple[str, ...], parts: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        args, kwargs = _spread(self._model, args, kwargs)
        self._slots = dict(enumerate(args)) | dict(kwargs)
        place = {name: i for i, name in enumerate(names)}
        order = sorted(self._slots, key=lambda k: place.get(k, len(place)) if type(k) is str else k)
        called = {names[k] if isinstance(k, int) and k < len(names) else str(k): k for k in order}
        lone = opened(args[0]) if len(args) == 1 and not kwargs else None
        self._names, self._one = None, False
        if isinstance(parts, Mapping) and not isinstance(lone, dict):
            self._names = [name for name in parts if name in called]
            self._keys = [called[name] for name in self._names]
        elif isinstance(parts, tuple | list) and not isinstance(lone, tuple | list):
            self._keys = order[: len(parts)]
        else:
            holding = [k for k in order if tensors(opened(self._slots[k]))]
            self._one = len(holding) == 1 or len(order) == 1
            self._keys = (holding or order) if self._one else order
        self._called = [] if self._one else [n for n, k in called.items() if k in self._keys]
        for name, key in called.items():
            if key not in self._keys and tensors(opened(self._slots[key])):
                raise TypeError(
                    f"the claim has no action for the argument {name!r}, which holds a tensor; let "
                    "it act on all arguments by Each((action, ...)) or Each({name: action}), "
                    "trivial where one does not move"
                )

    def _tree(self) -> Tree:
        values = [opened(self._slots[k]) for k in self._keys]
        if self._one:
            return values[0]
        names = self._names
        return tuple(values) if names is None else dict(zip(names, values, strict=True))

    def respond(self, tree: Tree) -> Tree:
        """The model's opened outputs at a tree like that of the call.

        Raises:
            TypeError: outputs that are not floating point.
            ValueError: outputs that do not start with the batch size.
        """
        inner = on_tensors(lambda x: x[0], tree) if self.parts else tree
        slots = self._slots
        if self._one:
            slots = slots | {self._keys[0]: closed(inner, slots[self._keys[0]])}
        else:
            values = inner if self._names is None else [inner[n] for n in self._names]
            pairs = zip(self._keys, values, strict=True)
            slots = slots | {k: closed(x, slots[k]) for k, x in pairs}
        args = [x for k, x in slots.items() if isinstance(k, int)]
        self._like = self._model(*args, **{k: x for k, x in slots.items() if isinstance(k, str)})
        outputs = opened(self._like)
        outputs = batch_of_one(outputs) if self.parts else outputs
        if not isinstance(outputs, Tensor):
            _require_tensors(outputs)
        return require_outputs(outputs, tree)

    def several(self, trees: list[Tree]) -> list[Tree]:
        """The outputs at several trees, as one batch where they can be one."""
        if len(trees) > 1 and not self.parts:
            try:
                joined = concatenated(trees)
            except (RuntimeError, ValueError):  # of shapes that differ, such as neighbour lists
                joined = None
            if joined is not None:
                return _cut(self.respond(joined), len(trees))
        return [self.respond(tree) for tree in trees]

    def closed(self, outputs: Tree) -> Any:
        """Outputs in the containers that the model gave the last ones in."""
        if isinstance(self._like, Tensor):
            return outputs[0] if self.parts else outputs
        return closed(on_tensors(lambda x: x[0], outputs) if self.parts else outputs, self._like)

    def on(self, tree: Tree) -> "Calling":
        """The same call with another tree."""
        other = copy(self)
        other.tree = tree
        return other


def of_tensors(claim: Equivariance, outputs: Tree) -> tuple[Equivariance, Callable[[Tree], Tree]]:
    """The claim on the tensors of such outputs alone, and what leaves these of them."""
    leaves, spec = tree_flatten(outputs)
    if all(isinstance(leaf, Tensor) for leaf in leaves):
        return claim, lambda y: y

    def filled(some: Tree) -> Tree:
        rest = iter(some)
        return tree_unflatten([next(rest) if isinstance(x, Tensor) else x for x in leaves], spec)

    act = claim.output_action
    moved: Action = lambda g, y: tuple(tensors(act(g, filled(y))))
    return replace(claim, output_action=moved), lambda y: tuple(tensors(y))


def arguments_of(model: Model, sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A sample as the arguments of a call: a tuple holds them, as does a dict by their names."""
    if type(sample) is tuple:
        return sample, {}
    if isinstance(sample, Mapping) and sample and {*_names(model)}.issuperset(sample):
        return (), dict(sample)
    return (sample,), {}


def _spread(
    model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call by a probe, which hands over one tuple or one dict of them."""
    lone = args[0] if len(args) == 1 and not kwargs else None
    if not isinstance(lone, tuple | Mapping) or len(lone) < 2:
        return args, kwargs
    try:
        inspect.signature(getattr(model, "forward", model)).bind(*args)
    except TypeError:
        return arguments_of(model, lone)
    return arguments_of(model, lone) if isinstance(lone, Mapping) else (args, kwargs)


def _cut(joined: Tree, count: int) -> list[Tree]:
    """A batch in so many equal pieces; by chunks, as traced shapes are not kept for constants."""
    parts = [x.chunk(count) if isinstance(x, Tensor) else [x] * count for x in tree_leaves(joined)]
    return [tree_unflatten(list(some), tree_structure(joined)) for some in zip(*parts, strict=True)]


def _names(model: Model) -> tuple[str, ...]:
    """What a model calls its arguments."""
    try:
        parameters = inspect.signature(getattr(model, "forward", model)).parameters.values()
    except ValueError:  # built in
        return ()
    return tuple(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))


def _parts(action: Any) -> Any:
    """The actions of the leaves, where an action is made of such; None where it is of one piece."""
    return next(_inner(action), None)


def _inner(action: Any) -> Iterator[Any]:
    if hasattr(action, "parts"):
        yield action.parts
    for inner in (getattr(action, "action", None), *getattr(action, "actions", ())):
        if inner is not None:
            yield from _inner(inner)


def _require_tensors(outputs: Tree) -> None:
    for path, leaf in tree_flatten_with_path(outputs)[0]:
        if leaf is None or isinstance(leaf, str | bool | Tensor):
            continue
        where = "".join(map(str, path))
        raise TypeError(
            f"outputs must be tensors, got {type(leaf).__name__} at {where}; leave it out, as by "
            "use_cache=False"
        )
