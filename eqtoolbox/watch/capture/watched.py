"""What is watched: the parameters of the model, and those of its loss that are trained with it."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.replay.graph import leaves_of
from eqtoolbox.replay.loss_parameters import LossParameters, clones
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.replay.reach.reach import modules_in
from eqtoolbox.world.layout import local
from eqtoolbox.world.placement import accumulates, gathered_now


class Watched:
    """The parameters theta of a training: what the attached optimizers move and the loss uses.

    A loss may have parameters of its own: uncertainty weights, proxies, a temperature. Those that
    an attached optimizer trains belong to theta, as `criterion.<name>` or `loss.<name>`; others
    are held at the values they had when the loss was evaluated.

    Args:
        model: the one that was attached.
        optimizers: that train it.
        criterion: the module that makes the loss, where the user named one.
        sharded: whether this process holds shards of the model's parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        criterion: nn.Module | None = None,
        sharded: bool = False,
    ) -> None:
        self.model = model
        # FSDP2 has others in their place while they are whole
        self._own = dict(model.named_parameters()) if sharded else None
        self.optimizers = optimizers
        self._criterion = criterion
        self._names: dict[int, str] = {}  # of tensors of the loss, by identity
        self._trained: dict[str, Tensor] = {}  # those of them that belong to theta
        self._looked = False
        self._news: list[str] = []

    def named(self) -> dict[str, Any]:
        """All parameters of the model, and those of the loss that are trained with it, by name."""
        own = dict(self.model.named_parameters()) if self._own is None else self._own
        return {**own, **self._trained}

    @property
    def cut(self) -> bool:
        """Whether parameters became parts of larger ones since they were attached."""
        kinds = {type(p).__name__ for p in self.model.parameters()} if self._own is None else set()
        return "DTensor" in kinds

    def copied(self) -> Parameters:
        """Copies of the trainable parameters as they are now."""
        return {n: local(p.detach()).clone() for n, p in self.trainable().items()}

    def trainable(self) -> dict[str, Any]:
        """Those that require gradients."""
        return {n: p for n, p in self.named().items() if p.requires_grad}

    def clear(self) -> bool:
        """Whether no gradient is accumulated in what an attached optimizer holds."""
        clear = gradients_are_clear(self.held().values())
        return clear and (self._own is None or not accumulates(self.model))

    def fresh(self) -> dict[str, Any]:
        """What is held, and what is not if its gradients are clear: nobody may clear these."""
        held = self.held()
        rest = {n: p for n, p in self.trainable().items() if n not in held}
        return {**held, **rest} if gradients_are_clear(rest.values()) else held

    def held(self) -> dict[str, Any]:
        """Those of them that an attached optimizer holds; all, where it holds none as they are."""
        groups = (g for optimizer in self.optimizers for g in optimizer.param_groups)
        own = {id(p) for g in groups for p in g["params"]}
        trainable = self.trainable()
        return {n: p for n, p in trainable.items() if id(p) in own} or trainable

    def of_loss(self, loss: Tensor, loss_fn: Any, batch: Any) -> LossParameters | None:
        """The parameters that a loss, as the loop evaluated it, has besides the model's."""
        own = self._beside()
        if self._looked and not own and not self._names:
            return None
        self._looked = True
        model = {id(p) for p in self.model.parameters()}
        if self._own is not None:
            model |= {id(p) for p in (*self._own.values(), *gathered_now(self.model))}
        found = [
            t
            for t in leaves_of(loss)
            if id(t) not in model and (id(t) in own or isinstance(t, nn.Parameter))
        ]
        return self._taken(found, own, loss_fn, batch)

    def in_reach(self, loss_fn: Any, batch: Any) -> LossParameters | None:
        """Those that an optimizer trains and a loss that was not evaluated yet can reach."""
        own = self._beside()
        if not own:
            return None
        found = {id(t): t for _, t in self._reachable(loss_fn, batch) if id(t) in own}
        return self._taken([*found.values()], own, loss_fn, batch)

    def tell(self, event: Callable[[str, str, str], None]) -> None:
        """What was found since the last time."""
        for message in self._news:
            event("info", "monitor", message)
        self._news.clear()

    def _beside(self) -> set[int]:
        """Identities of what the attached optimizers train and the model has not."""
        model = {
            id(p) for p in (self.model.parameters() if self._own is None else self._own.values())
        }
        groups = (g for optimizer in self.optimizers for g in optimizer.param_groups)
        return {id(p) for g in groups for p in g["params"] if id(p) not in model}

    def _taken(
        self, found: list[Tensor], own: set[int], loss_fn: Any, batch: Any
    ) -> LossParameters | None:
        if any(id(t) not in self._names for t in found):
            self._name(found, own, loss_fn, batch)
        if not found:
            return None
        live = {self._names[id(t)]: t for t in found}
        return LossParameters(live=live, held=clones(live))

    def _name(self, found: list[Tensor], own: set[int], loss_fn: Any, batch: Any) -> None:
        """Give new tensors a name, and say what they are."""
        titles = {id(t): name for name, t in reversed([*self._reachable(loss_fn, batch)])}
        around = getattr(loss_fn, "owner", None)  # of a larger model the user chose a part
        around = {id(p) for p in around.parameters()} if isinstance(around, nn.Module) else set()
        taken = {*dict(self.model.named_parameters()), *self._names.values()}
        new: dict[bool, list[str]] = {True: [], False: []}
        for t in found:
            if id(t) in self._names:
                continue
            title = titles.get(id(t), "loss.parameter")
            name = next(n for n in _numbered(title) if n not in taken)
            taken.add(name)
            self._names[id(t)] = name
            trained = id(t) in own and id(t) not in around
            new[trained].append(f"{name} {tuple(t.shape)}")
            if trained:
                self._trained[name] = t
        if new[True]:
            self._news.append(
                f"the loss has parameters of its own that the optimizer trains: {_few(new[True])}; "
                "they are part of what is measured: curvature, gradients and updates are those of "
                "the model and these together"
            )
        if new[False]:
            self._news.append(
                "the loss uses parameters that are not of the watched model and that no attached "
                f"optimizer trains: {_few(new[False])}; they are held at their values of the step"
            )

    def _reachable(self, loss_fn: Any, batch: Any) -> Iterator[tuple[str, Tensor]]:
        """Tensors of modules and variables that a loss function can reach, with a name."""
        if self._criterion is not None:
            yield from ((f"criterion.{n}", p) for n, p in self._criterion.named_parameters())
        for module in modules_in((loss_fn, batch)):
            yield from ((f"loss.{n}", p) for n, p in module.named_parameters())
        for name, value in _variables(loss_fn).items():
            if isinstance(value, Tensor):
                yield f"loss.{name}", value


def _variables(function: Any) -> dict[str, Any]:
    """Closed-over and global variables of a function by name."""
    while not isinstance(function, FunctionType):
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        elif hasattr(function, "function"):
            function = function.function
        else:
            return {}
    with suppress(ValueError):  # a name that is not bound yet
        closed = inspect.getclosurevars(function)
        return {**closed.globals, **closed.nonlocals}
    return {}


def _numbered(name: str) -> Iterator[str]:
    yield name
    count = 2
    while True:
        yield f"{name}_{count}"
        count += 1


def _few(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def gradients(
    named: Mapping[str, nn.Parameter], known: Parameters | None = None
) -> Parameters | None:
    """Detached `.grad` of every trainable parameter, zero where unset; None if none is set.

    Args:
        named: the model's parameters.
        known: gradients that were noted before they were thrown away.
    """
    parameters = {n: p for n, p in named.items() if p.requires_grad}
    found = dict(known or {})
    for name, p in parameters.items():
        if name not in found and p.grad is not None:
            own = local(p.grad.detach())
            found[name] = own if own.layout == torch.strided else own.to_dense()
    if not found:
        return None
    return {
        n: found[n] if n in found else torch.zeros_like(local(p)) for n, p in parameters.items()
    }


def gradients_are_clear(parameters: Iterable[Tensor]) -> bool:
    """Whether nothing is accumulated in `.grad`: none set, or zeros only."""
    grads = [local(p.grad) for p in parameters if p.grad is not None]
    # a sparse gradient that several backwards added to has no operation of its own for this
    values = [g._values() if g.is_sparse else g for g in grads]
    return not any(bool(v.count_nonzero()) for v in values)
