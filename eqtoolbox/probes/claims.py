"""Claims of data symmetries as probes take them: by name for images, or as Equivariance objects."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

from torch import Tensor

from eqtoolbox.expect.bounds import at_least
from eqtoolbox.symmetry import actions
from eqtoolbox.symmetry.actions.action import Action
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.each import Chain, Each, Factor, Rebuilt
from eqtoolbox.symmetry.groups.group import Cyclic, CyclicTranslation, Dihedral, Flip, Group
from eqtoolbox.watch.probe import UNMEASURED, Measurement
from eqtoolbox.watch.snapshot import NotApplicable

Claim = str | Equivariance
OutputAction = Literal["auto", "invariant", "same"]
Elements = Annotated[int, at_least(2, "use every(0) to switch off")]  # of a group, to try
IMAGE_SYMMETRIES = ("cyclic4", "dihedral4", "flip", "translation")


def as_claims(entries: Any) -> tuple[Claim, ...]:
    """The claims of a probe, refused when they are none.

    Raises:
        TypeError: no collection, or something in it that is neither a name nor an Equivariance.
        ValueError: an unknown name, the same name twice, or an empty collection.
    """
    if isinstance(entries, str | Equivariance) or not isinstance(entries, Iterable):
        raise TypeError(
            f"symmetries must be a tuple of names or Equivariance objects, got {entries!r}; "
            "one alone is written (claim,)"
        )
    given: tuple[Any, ...] = tuple(entries)
    names = ", ".join(IMAGE_SYMMETRIES)
    for entry in given:
        if not isinstance(entry, str | Equivariance):
            hint = "; a group needs its actions: Equivariance(group, input_action, output_action)"
            raise TypeError(
                f"symmetries must be names among {names} or Equivariance objects, got {entry!r}"
                + (hint if isinstance(entry, Group) else "")
            )
    unknown = [s for s in given if isinstance(s, str) and s not in IMAGE_SYMMETRIES]
    if unknown or not given:
        raise ValueError(
            f"expected symmetries among {names} or Equivariance objects, got {list(given)}"
        )
    called = [name_of(entry) for entry in given]
    twice = sorted({name for name in called if called.count(name) > 1})
    if twice:
        raise ValueError(
            f"symmetries must have different names, got {twice[0]!r} twice; set name= of one"
        )
    return given


def name_of(entry: Claim) -> str:
    """The claim's name in records."""
    return entry if isinstance(entry, str) else entry.name


def told_unmeasured(entry: Claim, rows: Sequence[Measurement]) -> Iterator[Measurement]:
    """The rows of one entry; first one that says so where a claim of the user's has no number.

    Names stand for what the shapes of images suggest, an `Equivariance` for what somebody claims.
    """
    none = [r for r in rows if r.status == "not_applicable"]
    if isinstance(entry, Equivariance) and none and len(none) == len(rows):
        why = none[0].note
        yield Measurement(UNMEASURED, 1.0, entry.name, note=why, facts={"why": why})
    yield from rows


def structured(entry: Claim) -> bool:
    """Whether the claim speaks of all arguments of the model's call, and of its whole output."""
    actions = (entry.input_action, entry.output_action) if isinstance(entry, Equivariance) else ()
    return any(map(_moves_trees, actions))


def _moves_trees(action: Any) -> bool:
    if isinstance(action, Chain):
        return any(map(_moves_trees, action.actions))
    return (
        _moves_trees(action.action)
        if isinstance(action, Factor)
        else isinstance(action, Each | Rebuilt)
    )


def claimed(entry: Claim, inputs: Any, outputs: Tensor, output: OutputAction) -> Equivariance:
    """The claim that an entry stands for, on tensors like these.

    Args:
        entry: a name of IMAGE_SYMMETRIES, or the claim itself.
        inputs, outputs: x and f(x).
        output: the output action of named ones; auto takes the same if the output is an image.

    Raises:
        NotApplicable: the inputs are no images, or not square where they must be.
    """
    if isinstance(entry, Equivariance):
        return entry
    require_tensor(inputs)
    if inputs.dim() < 4:
        raise NotApplicable(
            f"{entry} acts on images (batch, channels, height, width), got inputs of shape "
            f"{tuple(inputs.shape)}"
        )
    height, width = inputs.shape[-2:]
    if entry in ("cyclic4", "dihedral4") and height != width:
        raise NotApplicable(f"quarter turns need height == width, got {height}x{width}")
    same = outputs.dim() >= 4 and outputs.shape[-2:] == inputs.shape[-2:]
    if output != "auto":
        same = output == "same"
    claims: dict[str, tuple[Group, Action]] = {
        "cyclic4": (Cyclic(4), actions.quarter_turn),
        "dihedral4": (Dihedral(4), actions.dihedral),
        "flip": (Flip(), actions.flip),
        "translation": (CyclicTranslation((height, width)), actions.roll),
    }
    group, action = claims[entry]
    return Equivariance(group, action, action if same else actions.trivial, name=entry)


def require_tensor(inputs: Any) -> None:
    """Refuse first arguments that are no floating-point tensor.

    Raises:
        NotApplicable: says what to give instead.
    """
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        return
    kind = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
    raise NotApplicable(
        f"the model's first input is {kind}: image symmetries need a floating-point tensor; "
        "give an Equivariance with Each for structured inputs"
    )
