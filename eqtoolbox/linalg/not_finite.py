"""Not finite: in which operation a loss, its gradient or its second derivative stops being finite.

Second derivatives are NaN where a first one is finite by convention only: the norm at 0, `sinc`
at 0, a root at 0. The search runs the loss and its two backwards once more and looks into them.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from eqtoolbox.linalg.tape import nodes, operation
from eqtoolbox.linalg.vectors import random_like
from eqtoolbox.world.reducing import agreed

ORDERS = (
    "the loss is not finite",
    "the gradient is not finite, though the loss is",
    "the second derivative is not finite, though loss and gradient are",
)
REMEDY = (
    "add a small eps inside of it, such as (x.square().sum() + eps).sqrt() for a norm, or leave "
    "out the entries where it is not differentiable before it (a mask behind it passes NaN on)"
)


@dataclass
class Search:
    """What is seen of one evaluation; operations are ordered by torch's own counter of nodes."""

    culprit: str = ""
    modules: list[tuple[int, int, str]] = field(default_factory=list)  # first and last node, name
    spans: list[tuple[int, int, Any]] = field(default_factory=list)  # made by the backward of

    def module_of(self, place: int) -> str:
        """The module that made a node."""
        return next((m for start, end, m in self.modules if start < place < end), "")

    def blame(self, node: Any) -> None:
        """The first node whose result is not finite though what it was given is."""
        place = node._sequence_nr()
        of = [one for start, end, one in self.spans if start < place < end]
        node = of[-1] if of else node  # the operation whose backward made it
        module = self.module_of(node._sequence_nr())
        self.culprit = self.culprit or _worded(operation(node), module)


def not_finite(
    loss: Callable[[dict[str, Tensor]], Tensor],
    at: Mapping[str, Tensor],
    along: Mapping[str, Tensor] | None = None,
    model: object = None,
) -> str:
    """What is not finite, where it begins and what to do about it, as a sentence; "" if all is.

    Args:
        loss: as `hessian` takes it.
        at: parameters that require gradients; call it inside of the loss's scope.
        along: direction v of the product Hv; random if None.
        model: whose modules are named, if it is one.

    Example:
        >>> x = torch.zeros(2, requires_grad=True)
        >>> print(not_finite(lambda p: p["x"].norm() ** 2, {"x": x}).split(": ")[1][:27])
        first in linalg_vector_norm
    """
    search = Search()
    with torch.enable_grad():
        with _Values(search, model):
            value = loss(dict(at))
        if not _finite([value]):
            return _sentence(0, search.culprit)
        search.culprit = ""  # an infinity on the way, such as that of a mask
        rows = list(at.values())
        with _nodes_told([value], search):
            first = torch.autograd.grad(value, rows, create_graph=True, allow_unused=True)
        if not agreed(at, _finite(first)):
            return _sentence(1, search.culprit)
        search.culprit = ""
        known = [(g, n) for g, n in zip(first, at, strict=True) if g is not None]
        known = [(g, n) for g, n in known if g.requires_grad]
        if not known:
            return ""
        gradients = [g for g, _ in known]
        along = random_like(at, torch.Generator().manual_seed(0)) if along is None else along
        directions = [along[n].detach() for _, n in known]
        with _nodes_told(gradients, search):
            second = torch.autograd.grad(gradients, rows, directions, allow_unused=True)
    return "" if _finite(second) else _sentence(2, search.culprit)


def _sentence(order: int, culprit: str) -> str:
    return f"{ORDERS[order]}: first in {culprit or 'an operation that is not known'}; {REMEDY}"


def _worded(operation: str, module: str) -> str:
    return f"{operation} of module {module}" if module else operation


class _Values(TorchFunctionMode):
    """Notes which module calls each operation, and which one first makes NaN, or else infinity.

    The module is the nearest `self` of the calls that led there: hooks on modules would be seen
    by what watches them.
    """

    def __init__(self, search: Search, model: object) -> None:
        super().__init__()
        named = model.named_modules() if isinstance(model, nn.Module) else ()
        self._names = {id(module): name or type(module).__name__ for name, module in named}
        self._search, self._nan = search, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start, result = _place(), func(*args, **(kwargs or {}))
        module, made = self._module(), tree_leaves(result)
        self._search.modules.append((start, _place(), module))
        if self._nan or _finite(made):
            return result
        given, nan = tree_leaves((args, kwargs)), _has_nan(made)
        if (nan and not _has_nan(given)) or _finite(given):
            here = _worded(str(getattr(func, "__name__", func)).strip("_"), module)
            infinite = nan and not _finite(given) and bool(self._search.culprit)
            before = f" of the infinity from {self._search.culprit}" if infinite else ""
            self._search.culprit, self._nan = here + before, nan
        return result

    def _module(self) -> str:
        frame: Any = sys._getframe(2) if self._names else None
        while frame is not None:
            name = self._names.get(id(frame.f_locals.get("self")))
            if name is not None:
                return name
            frame = frame.f_back
        return ""


@contextmanager
def _nodes_told(roots: Sequence[Tensor], search: Search) -> Iterator[None]:
    """Scope in which a backward from `roots` tells each of its nodes to the search."""
    with ExitStack() as hooks:
        for node in nodes(roots):
            begun: list[int] = []

            def starts(_: Any, begun: list[int] = begun) -> None:
                begun.append(_place())

            def ends(made: Any, given: Any, node: Any = node, begun: list[int] = begun) -> None:
                if begun:
                    search.spans.append((begun.pop(), _place(), node))
                if not search.culprit and _finite(given) and not _finite(made):
                    search.blame(node)

            hooks.callback(node.register_prehook(starts).remove)
            hooks.callback(node.register_hook(ends).remove)
        yield


def _place() -> int:
    """Torch's counter of nodes in this thread, which all nodes made later are above."""
    with torch.enable_grad():
        node: Any = torch.zeros((), requires_grad=True).clone().grad_fn
    return int(node._sequence_nr())


def _finite(values: Sequence[Any]) -> bool:
    return all(bool(x.isfinite().all()) for x in values if _number(x))


def _has_nan(values: Sequence[Any]) -> bool:
    return any(bool(x.isnan().any()) for x in values if _number(x))


def _number(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided and x.is_floating_point()
