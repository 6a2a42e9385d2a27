"""Rules that say in words why a layer breaks a symmetry."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eqtoolbox.replay.gradients import valued
from eqtoolbox.replay.streams import random_streams
from eqtoolbox.symmetry.actions.action import dihedral, flip, quarter_turn, roll, trivial
from eqtoolbox.symmetry.actions.boosts import Boost
from eqtoolbox.symmetry.actions.permuting import Permute
from eqtoolbox.symmetry.actions.resampling import FourierShift, Shift
from eqtoolbox.symmetry.actions.scaling import Degree, Parity
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.layers import Activation, Layers, label
from eqtoolbox.symmetry.structure import Tree, floating

Kind = Literal["", "unread", "stride", "padding", "kernel", "position", "constant", "row"]


class Cause(str):
    """Why a layer breaks a claim, in words, and of which kind: what a mend goes by.

    Example:
        >>> cause = Cause("Conv2d pads with zeros", "padding")
        >>> cause, cause.kind
        ('Conv2d pads with zeros', 'padding')
    """

    kind: Kind

    def __new__(cls, words: str, kind: Kind = "") -> "Cause":
        made = super().__new__(cls, words)
        made.kind = kind
        return made


ORDERED = {"topk", "sort", "argsort", "argmax", "argmin", "kthvalue", "median", "mode"}
_CENTRED = (quarter_turn, dihedral, flip)
_SHIFTS = (Shift, FourierShift)


def cause_of(module: nn.Module, name: str, layers: Layers, symmetry: Equivariance) -> str:
    """The likely cause, most specific rule first.

    Args:
        module: the first layer that breaks the claim, its input being sound.
        name: the layer's.
        layers: what ran.
        symmetry: the claim.
    """
    at = layers.base[name]
    kind, before = type(module).__name__, at.given
    if kind.startswith("BatchNorm") and module.training:
        return f"{kind} in train mode: its statistics are those of the batch; use eval mode"
    if "Dropout" in kind and module.training:
        return f"{kind} draws another mask at every run: put the model in eval mode"
    if before is not None and before.dim() >= 3 and hasattr(module, "kernel_size"):
        return _grid(module, before, symmetry)
    if isinstance(module, nn.Embedding) or "osition" in kind:
        words = f"{kind}: a positional embedding tells entries apart; remove it or permute it too"
        return Cause(words, "position")
    if _permutes(symmetry):
        return _order(module, at, [m[name] for m in layers.moved])
    if boosts(symmetry) and _pointwise(module, at):
        return (
            f"{kind} bends what a wind adds to every value, and its output has no action of the "
            "group: take the mean flow off before the network and put it back after, carried along"
        )
    if isinstance(symmetry.input_action, FourierShift) and _pointwise(module, at):
        return (
            f"{kind} makes frequencies above what the grid holds, which come back as others "
            "(aliasing): upsample before it and low-pass after it, or keep its input below half "
            "the band (a quarter of the sampling rate for squares)"
        )
    if isinstance(symmetry.input_action, Parity | Degree) and _shifts(module):
        return Cause(
            f"{kind} adds a constant (a bias or a running mean), which no sign and no scale "
            "passes: leave it out",
            "constant",
        )
    if isinstance(module, nn.Flatten | nn.Linear):
        return (
            f"{kind} gives every place its own weights: pool before it, or average over the group"
        )
    return f"{kind} does not commute with the action"


def cause_between(model: nn.Module, name: str, layers: Layers, inputs: Tree) -> str:
    """The likely cause of a loss that no layer makes, seen at the input of the layer `name`."""
    before = layers.base[name].given
    if before is not None and before.dim() == 2 and _in_one_row(before, inputs):
        kind = type(model.get_submodule(name)).__name__
        return Cause(
            "before it the entries are laid out in one row, where no action fits any more, and "
            f"{kind} gives every place its own weights: pool, or feed it what does not move",
            "row",
        )
    parent = model.get_submodule(name.rpartition(".")[0])
    shape = layers.base[name].given
    tables = [
        f"the parameter {label!r} of {type(parent).__name__}"
        for label, p in parent.named_parameters(recurse=False)
        if shape is not None and p.dim() >= 2 and p.shape[-1] == shape.shape[-1]
    ]
    still = {e.layer for e in layers.errors if e.action == label(trivial)}
    tables += [
        f"the table {other!r}"
        for other, module in model.named_modules()
        if isinstance(module, nn.Embedding) and other in still
    ]
    if tables:
        return Cause(
            f"an operation before it, outside of any layer: {tables[0]} looks like a positional "
            "embedding, which tells entries apart; remove it or permute it too",
            "position",
        )
    return "an operation before it, outside of any layer; wrap it in a module to have it named"


def _in_one_row(rows: Tensor, inputs: Tree) -> bool:
    """Whether rows (batch, features) have room for all entries of an input of several."""
    entries = [x for x in floating(inputs) if x.dim() > 2 and len(x) == len(rows)]
    return any(rows.shape[1] >= x[0].numel() for x in entries)


def operations(body: Callable[[], Any]) -> set[str]:
    """Names of the ATen operations that `body` runs, such as topk.

    Example:
        >>> sorted(operations(lambda: torch.ones(3).sort()) & ORDERED)
        ['sort']
    """
    with torch.no_grad(), random_streams(), _Names() as seen:
        valued(body)
    names: set[str] = seen.names
    return names


class _Names(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _order(module: nn.Module, at: Activation, moved: list[Activation]) -> str:
    """Masks that stay, ties, and other ways to tell entries by their place."""
    kind = type(module).__name__
    masks = [x for x in tree_leaves((at.args, at.kwargs)) if _mask(x)]
    if masks:
        others = [[x for x in tree_leaves((m.args, m.kwargs)) if _mask(x)] for m in moved]
        if all(torch.equal(a, b) for other in others for a, b in zip(masks, other, strict=True)):
            return (
                f"{kind}: its padding or attention mask is not permuted with the tokens; give the "
                "mask its own action (Permute(-1)); a causal mask never can"
            )
    if "Attention" in kind or "Transformer" in kind:
        return (
            f"{kind}: a causal or padding mask that is not permuted with the tokens, or a "
            "positional embedding before it"
        )
    ordered = sorted(operations(lambda: module(*at.args, **at.kwargs)) & ORDERED)
    if ordered and at.given is not None:
        repeated = 1.0 - len(set(at.given.flatten().tolist())) / at.given.numel()
        if repeated > 0:
            return (
                f"{kind}: ties in {ordered[0]}, {repeated:.0%} of whose input are repeated values "
                "and chosen among by their place; break ties by something that moves with them"
            )
        return f"{kind} calls {ordered[0]} and keeps the order of places"
    return f"{kind} mixes entries by their place: positional weights, or an order-dependent op"


def _mask(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.bool


def _pointwise(module: nn.Module, at: Activation) -> bool:
    """Whether a layer looks like an activation function: no weights, and the shape stays."""
    weightless = next(module.parameters(), None) is None
    return weightless and at.given is not None and at.given.shape == at.made.shape


def _shifts(module: nn.Module) -> bool:
    words = ("bias", "running_mean")
    return any(isinstance(getattr(module, word, None), Tensor) for word in words)


def _permutes(symmetry: Equivariance) -> bool:
    action = getattr(symmetry.input_action, "action", symmetry.input_action)
    leaves = tree_leaves(getattr(action, "parts", action))
    return any(isinstance(leaf, Permute) for leaf in leaves)


def _grid(module: nn.Module, before: Tensor, symmetry: Equivariance) -> str:
    """Stride against size, parity of pooling, zero padding, the kernel itself."""
    kind = type(module).__name__
    size = int(before.shape[-1])
    kernel, stride, pad = (_side(module, word, 0) for word in ("kernel_size", "stride", "padding"))
    stride = stride or kernel
    shifts = symmetry.input_action is roll or isinstance(symmetry.input_action, _SHIFTS)
    rest = (size + 2 * pad - kernel) % stride
    if stride > 1 and symmetry.input_action in _CENTRED and rest:
        sizes = [n for n in (size - 1, size + 1) if (n + 2 * pad - kernel) % stride == 0]
        fits = (
            f"size {sizes[0]}"
            if sizes
            else f"a size with (size + {2 * pad - kernel}) % {stride} = 0"
        )
        return Cause(
            f"{kind} of kernel {kernel} and stride {stride} on size {size} leaves {rest} of the "
            f"rows unread at one side: use {fits}, or stride 1",
            "unread",
        )
    if stride > 1 and shifts:
        return Cause(
            f"{kind} of stride {stride} commutes with shifts by multiples of {stride} only: "
            "low-pass before it, or test those shifts",
            "stride",
        )
    mode = getattr(module, "padding_mode", "zeros")
    if boosts(symmetry) and pad and mode != "circular":
        return Cause(
            f"{kind} pads with {mode}, which no wind blows through: use padding_mode='circular', "
            "or take the mean flow off before it",
            "padding",
        )
    if shifts and pad and mode != "circular":
        return Cause(
            f"{kind} pads with {mode}: what leaves on one side does not return on the other; use "
            "padding_mode='circular', or Shift with a margin",
            "padding",
        )
    if hasattr(module, "weight"):
        return Cause(
            f"the kernel of {kind} is not symmetric: average it over the group, or average outputs",
            "kernel",
        )
    return f"{kind} does not commute with the action"


def boosts(symmetry: Equivariance) -> bool:
    """Whether the claim is one of Galilean boosts."""
    action = getattr(symmetry.input_action, "action", symmetry.input_action)
    return any(isinstance(a, Boost) for a in tree_leaves(getattr(action, "parts", action)))


def _side(module: nn.Module, word: str, default: int) -> int:
    value = getattr(module, word, default)
    value = value[-1] if isinstance(value, tuple) else value
    return value if isinstance(value, int) else default
