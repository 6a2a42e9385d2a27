"""Rules that say in words why a layer breaks a symmetry."""

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from eqtoolbox.symmetry.actions import dihedral, flip, quarter_turn, roll
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.permuting import Permute
from eqtoolbox.symmetry.resampling import FourierShift, Shift, Turn, Zoom

_CENTRED = (quarter_turn, dihedral, flip)
_SHIFTS = (Shift, FourierShift)


def cause_of(
    module: nn.Module,
    before: Tensor | None,
    after: Tensor,
    symmetry: Equivariance,
) -> str:
    """The likely cause, most specific rule first.

    Args:
        module: the first layer that breaks the claim.
        before: its input, None when it took no tensor.
        after: its output.
        symmetry: the claim.
    """
    kind = type(module).__name__
    action = symmetry.input_action
    if kind.startswith("BatchNorm") and module.training:
        return f"{kind} in train mode: its statistics are those of the batch; use eval mode"
    if "Dropout" in kind and module.training:
        return f"{kind} draws another mask at every run: put the model in eval mode"
    if isinstance(action, Turn | Zoom):
        return (
            f"{kind}, under an interpolated action: low-pass the images (band_limited) and rerun; "
            "what is left is its kernel"
        )
    if before is not None and before.dim() >= 3 and hasattr(module, "kernel_size"):
        return _grid(module, before, symmetry)
    if isinstance(module, nn.Embedding) or "osition" in kind:
        return f"{kind}: a positional embedding tells entries apart; remove it or permute it too"
    if _permutes(symmetry):
        if "Attention" in kind or "Transformer" in kind:
            return (
                f"{kind}: a causal or padding mask that is not permuted with the tokens, or a "
                "positional embedding before it"
            )
        return f"{kind} mixes entries by their place: positional weights, or an order-dependent op"
    if isinstance(module, nn.Flatten | nn.Linear):
        return (
            f"{kind} gives every place its own weights: pool before it, or average over the group"
        )
    return f"{kind} does not commute with the action"


def _permutes(symmetry: Equivariance) -> bool:
    leaves = tree_leaves(getattr(symmetry.input_action, "parts", symmetry.input_action))
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
        return (
            f"{kind} of kernel {kernel} and stride {stride} on size {size} leaves {rest} of the "
            f"rows unread at one side: use {fits}, or stride 1"
        )
    if stride > 1 and shifts:
        return (
            f"{kind} of stride {stride} commutes with shifts by multiples of {stride} only: "
            "low-pass before it, or test those shifts"
        )
    mode = getattr(module, "padding_mode", "zeros")
    if shifts and pad and mode != "circular":
        return (
            f"{kind} pads with {mode}: what leaves on one side does not return on the other; use "
            "padding_mode='circular', or Shift with a margin"
        )
    if hasattr(module, "weight"):
        return (
            f"the kernel of {kind} is not symmetric: average it over the group, or average outputs"
        )
    return f"{kind} does not commute with the action"


def _side(module: nn.Module, word: str, default: int) -> int:
    value = getattr(module, word, default)
    value = value[-1] if isinstance(value, tuple) else value
    return value if isinstance(value, int) else default
