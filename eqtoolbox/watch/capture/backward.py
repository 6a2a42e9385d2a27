"""A backward: what it started from, and whether that is a weighted sum of losses that were caught.

The gradient that reaches a loss tells its weight, and not what else was added, or that a root was
drawn from it: sqrt(loss) has a gradient in the same direction and another curvature.
"""

import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor
from torch.autograd import graph

from eqtoolbox.watch.capture.between import Between, NotFollowed, Redoer, same
from eqtoolbox.watch.capture.redone import kind, passed

Key = tuple[int, str]  # of a node, which is not kept alive by it
MANY = 200_000  # nodes that are looked at
_STRAIGHT = frozenset({  # linear where the loss is; what is not known here may be curved
    "Abs", "Add", "Alias", "Amax", "Amin", "Cat", "Clamp", "ClampMax", "ClampMin", "Clone",
    "ConstantPadNd", "Copy", "Cumsum", "Diagonal", "Expand", "Flip", "Gather", "Hardtanh", "Index",
    "IndexAdd", "IndexSelect", "LeakyRelu", "MaskedFill", "MaskedSelect", "Max", "Maximum", "Mean",
    "Median", "Min", "Minimum", "NanToNum", "Nansum", "Neg", "Permute", "Relu", "Repeat",
    "ReshapeAlias", "Roll", "Rsub", "ScatterAdd", "Select", "Slice", "Sort", "Split",
    "SplitWithSizes", "Squeeze", "Stack", "Sub", "Sum", "T", "ToCopy", "Topk", "Trace", "Transpose",
    "Unbind", "Unfold", "UnsafeView", "Unsqueeze", "View", "Where",
    "torch::autograd::CopyBackwards", "torch::autograd::CopySlices",
})  # fmt: skip
_PRODUCTS = frozenset({"Addmm", "Bmm", "Div", "Dot", "Mm", "Mul", "Mv"})


def node_of(tensor: Tensor) -> Key | None:
    """What tells the node of a tensor from others."""
    node = tensor.grad_fn
    return None if node is None else _key(node)


def _key(node: Any) -> Key:
    return node._sequence_nr(), node.name()


@dataclass(frozen=True)
class Backward:
    """A backward that is running.

    Attributes:
        roots: the tensors that are differentiated.
        seeds: what their gradients begin with.
    """

    roots: tuple[Tensor, ...]
    seeds: tuple[Tensor | None, ...]

    @classmethod
    def now(cls, thread: int) -> "Backward | None":
        """The one that the caller is a hook of, or that `thread` waits for; None if unseen.

        Hooks run in the thread of the backward, or of the device while that one waits.
        """
        for ident in dict.fromkeys((threading.get_ident(), thread)):
            frame: FrameType | None = sys._current_frames().get(ident)
            while frame is not None:
                if frame.f_code is graph._engine_run_backward.__code__:
                    roots = tuple(frame.f_locals["t_outputs"])
                    seeds = tuple(frame.f_locals["args"][0])
                    whole = all(isinstance(r, Tensor) for r in roots)
                    return cls(roots, seeds) if whole else None
                frame = frame.f_back
        return None

    def found(self, losses: frozenset[Key], params: Iterable[Tensor]) -> "Running":
        """What makes the roots another function of the parameters than a sum of losses.

        Args:
            losses: those that were caught.
            params: what is trained.
        """
        wanted, parents = {id(p) for p in params}, _parents(self.roots, losses)
        ends = [n for n in parents if id(getattr(n, "variable", None)) in wanted]
        here = [n for n in parents if _key(n) in losses]
        to_loss, to_params = _above(here, parents), _above(ends, parents)
        beside = [
            _named(n)
            for n, above in parents.items()
            if n in to_params and n not in to_loss and any(p in to_loss for p in above)
        ]
        between = [n for n in parents if n in to_loss and _key(n) not in losses]  # outermost first
        curved = [_named(n) for n in between if _curved(n, to_loss)]
        return Running(tuple(here), next(iter(beside), ""), next(iter(curved), ""))

    def made_of(self, found: "Running", value: Tensor, gradient: Tensor) -> Between | None:
        """What the loop made of the only loss it reaches; None if that cannot be done again.

        Args:
            found: how it uses the loss.
            value: what that came to.
            gradient: what arrives at the loss: all there is to know where the rest is linear.
        """
        if len(self.roots) != 1 or self.roots[0].dim() > 0 or len(found.here) != 1 or found.added:
            return None
        ((root,), (seed,)) = self.roots, self.seeds
        if not found.taken:
            factors = gradient.detach() / (1.0 if seed is None else seed)
            rest = root.detach() - (factors * value).sum()
            return Between((), (("mul", (factors,)), ("sum", (None, False)), ("add", (rest, 1))))
        reader = Redoer(value, {(found.here[0], 0): ()})
        try:
            made = reader.way(root.grad_fn, root.output_nr, root.detach())
        except NotFollowed:
            return None
        return made if made is not None and same(made(value), root.detach()) else None


@dataclass(frozen=True)
class Running:
    """How a backward uses the losses that were caught.

    Attributes:
        here: the nodes of those that it reaches.
        added: what depends on the parameters and is added to them; "" for nothing.
        taken: the function that is taken of them, unless it is linear.
    """

    here: tuple[Any, ...]
    added: str
    taken: str

    @property
    def why(self) -> str:
        """Why what is differentiated is no weighted sum of them; "" where it is."""
        if self.added:
            return f"the loop adds {self.added} to it, outside of the loss that was caught"
        return f"the loop differentiates {self.taken} of it" if self.taken else ""


def _parents(roots: Iterable[Tensor], losses: frozenset[Key]) -> dict[Any, list[Any]]:
    """All nodes down to the losses, and by which nodes each is used."""
    tops = [passed(r.grad_fn, r.output_nr)[0] for r in roots]
    parents: dict[Any, list[Any]] = {top: [] for top in tops if top is not None}
    left = list(parents)
    while left and len(parents) < MANY:
        node = left.pop()
        for edge in () if _key(node) in losses else node.next_functions:
            before, _ = passed(*edge)
            if before is not None:
                if before not in parents:
                    parents[before] = []
                    left.append(before)
                parents[before].append(node)
    return parents


def _above(nodes: Iterable[Any], parents: dict[Any, list[Any]]) -> set[Any]:
    """The nodes, and those that use them."""
    found: set[Any] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += parents[node]
    return found


def _curved(node: Any, to_loss: set[Any]) -> bool:
    """Whether an operation is not linear in what comes from a loss."""
    used = [k for k, (n, _) in enumerate(node.next_functions) if n in to_loss]
    if kind(node) in _PRODUCTS:
        return len(used) > 1 or (kind(node) == "Div" and used == [1])
    return kind(node) not in _STRAIGHT


def _named(node: Any) -> str:
    name = kind(node).rpartition("::")[2]
    return "a parameter" if name == "AccumulateGrad" else f"a result of {name}"
