"""The orbit of a prediction: f_g(x) = R_g^-1 f(S_g x) over a group, its moments and its price.

Every sum is in float64 over deviations from f(x), so that a small violation survives a large f.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from eqtoolbox.expect.bounds import takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.deadline import check
from eqtoolbox.expect.words import shown
from eqtoolbox.replay.gradients import required, valued
from eqtoolbox.symmetry.claim import Claimed, Equivariance
from eqtoolbox.symmetry.groups.group import Element
from eqtoolbox.symmetry.structure import Tree, batch_size, floating, on_tensors, tensors

# of a batch: a tensor, or a dict, tuple or list of them
Function = Annotated[Callable[[Any], Any], takes(1, "of a batch")]
Respond = Callable[[Tree], Tree]  # f of one batch
Several = Callable[[Respond, Iterator[Tree]], Iterator[Tree]]  # of several, in order


@checked
def pulled_back(
    function: Function, inputs: Tree, symmetry: Claimed, elements: Iterable[Element]
) -> Tree:
    """Predictions f_g(x) = R_g^-1 f(S_g x), all equal to f(x) exactly when f is equivariant.

    Gradients flow when they are enabled.

    Args:
        function: f, (batch, ...) -> (batch, ...).
        inputs: x, (batch, ...), floating point, or a tree of tensors, some of them so.
        symmetry: the claim.
        elements: K elements of its group, K >= 1.

    Returns:
        (K, batch, ...), in the order of the elements; a tree of such for a structured output.

    Raises:
        TypeError, ValueError, FloatingPointError: as in `equivariance_error`; no elements.

    Example:
        >>> from eqtoolbox.symmetry.actions.action import flip
        >>> from eqtoolbox.symmetry.groups.group import Flip
        >>> claim = Equivariance(Flip(), flip, flip)
        >>> x = torch.ones(2, 1, 3, 3)
        >>> pulled_back(torch.sin, x, claim, claim.group.elements()).shape
        torch.Size([2, 2, 1, 3, 3])
    """
    require_inputs(inputs)
    function = marked(function, inputs)
    if not symmetry.group.invertible:
        raise ValueError(f"{symmetry.group.name} cannot be undone: nothing can be pulled back")
    found = orbit(function, inputs, symmetry, elements)
    pulled = [on_tensors(torch.clone, fg) for _, _, fg in found]
    if not pulled:
        raise ValueError("elements must hold at least one group element, got none")
    predictions = tree_map(_stacked, *pulled)
    require_finite(predictions, "on the orbit of x")
    return predictions


def _stacked(*leaves: Any) -> Any:
    return torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0]


def orbit(
    function: Function,
    inputs: Tree,
    symmetry: Equivariance,
    elements: Iterable[Element],
    several: Several | None = None,
) -> Iterator[tuple[Element, Tree, Tree]]:
    """Yields g, f(S_g x) and f_g(x) = R_g^-1 f(S_g x), which is None where g has no inverse.

    Args:
        function, inputs, symmetry, elements: f, x, and what is done to x.
        several: evaluates f at several batches; one by one unless given.
    """
    group, act, drawn = symmetry.group, symmetry.output_action, list(elements)
    alone = lambda x: told(lambda y: respond(function, y), x)
    moved = (symmetry.input_action(g, inputs) for g in drawn)
    responses = map(alone, moved) if several is None else several(alone, moved)
    for g, response in zip(drawn, responses, strict=True):
        yield g, response, act(group.inverse(g), response) if group.invertible else None


def settled(function: Function, inputs: Tree, outputs: Tree | None) -> Tree:
    """f(x), evaluated unless it is known, as a copy of its own and finite."""
    if outputs is None:
        found = told(lambda x: respond(function, x), inputs)
    elif not tensors(outputs):
        raise TypeError(f"outputs must be those of the function, tensors, got {shown(outputs)}")
    else:
        found = require_outputs(outputs, inputs)
    require_finite(found, "from f(x)")
    return on_tensors(lambda y: y.detach().clone(), found)  # f may reuse its buffer


def told(function: Function, inputs: Tree) -> Tree:
    """f(x) for the first time: an error of torch inside says which inputs it was given."""
    try:
        return valued(function, inputs)
    except Exception as error:
        if type(error) not in (RuntimeError, IndexError, TypeError, AttributeError):
            raise
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors(inputs))
        raise type(error)(
            f"the function fails on inputs of shape {shapes}: {error}; give inputs that it takes"
        ) from error


def respond(function: Function, inputs: Tree) -> Tree:
    """f on a copy of x, which it may write into."""
    check()
    return require_outputs(valued(function, on_tensors(torch.clone, inputs)), inputs)


def marked(function: Function, inputs: Tree) -> Function:
    """f, whose inputs require gradients where these do, for one that differentiates by them."""
    marks = tensors(inputs)
    if not any(x.requires_grad for x in marks):
        return function

    def asked(x: Tree) -> Tree:
        like = iter(marks)
        return function(on_tensors(lambda y: required(y, next(like)), x))

    return asked


def require_outputs(outputs: Tree, inputs: Tree) -> Tree:
    samples, found = batch_size(inputs), tensors(outputs)
    if not found:
        raise TypeError(
            f"function must return one tensor, or a dict, tuple or list of tensors, got "
            f"{type(outputs).__name__}; wrap it to pick them, as in lambda x: model(x).logits"
        )
    for x in found:
        if not x.is_floating_point():
            raise TypeError(
                f"outputs must be floating point, got {x.dtype}; take logits, not classes"
            )
        if x.dim() > 0 and len(x) == samples and x.numel() == 0:
            raise ValueError(
                f"outputs hold no numbers, got shape {tuple(x.shape)}: an empty graph or set? "
                "Leave it out of the batch"
            )
        if x.dim() == 0 or len(x) != samples:
            raise ValueError(
                f"outputs must start with the batch size {samples} of the inputs, "
                f"got shape {tuple(x.shape)}; return one output per sample"
            )
    return outputs


def require_finite(outputs: Tree, where: str) -> None:
    if not all(torch.isfinite(x).all() for x in tensors(outputs)):
        raise FloatingPointError(
            f"outputs must be finite, got NaN or infinity {where}; measure before training diverges"
        )


def require_inputs(inputs: Tree) -> None:
    if not tensors(inputs):
        raise TypeError(
            "inputs must be one tensor, or a dict, tuple or list of tensors, "
            f"got {type(inputs).__name__}"
        )
    if not floating(inputs):
        kinds = ", ".join(sorted({str(x.dtype) for x in tensors(inputs)}))
        raise TypeError(
            f"inputs must be floating point, got {kinds}; convert images by "
            "x.float() / 255, or let the function start after the embedding"
        )
    if any(x.is_meta for x in tensors(inputs)):
        raise ValueError("inputs must hold numbers, got a tensor on the meta device")
    if batch_size(inputs) == 0:
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors(inputs))
        raise ValueError(f"inputs must hold at least one sample, got shape {shapes}")
    if all(x.numel() == 0 for x in floating(inputs)):
        shapes = ", ".join(str(tuple(x.shape)) for x in floating(inputs))
        raise ValueError(
            f"inputs hold no numbers, got shape {shapes}: an empty graph or set has no symmetry "
            "to measure; leave it out of the batch"
        )


def wide(x: Tensor) -> torch.device:
    return torch.device("cpu") if x.device.type == "mps" else x.device  # mps has no float64


def double(x: Tensor) -> Tensor:
    """(batch, features) in float64."""
    return x.detach().reshape(len(x), -1).to(wide(x), torch.float64)


def square(x: Tensor) -> Tensor:
    flat = x.flatten()
    return torch.dot(flat, flat)


def distance(left: Tree, right: Tree) -> float:
    """|left - right| / |right|, the largest of all tensors; 0 where right vanishes."""
    return furthest([left], right)


def furthest(lefts: Sequence[Tree], right: Tree) -> float:
    """The largest `distance` of several from one."""
    leaves = zip(*map(tensors, lefts), strict=True)
    return max(_furthest(some, x) for some, x in zip(leaves, tensors(right), strict=True))


def _furthest(lefts: Sequence[Tensor], right: Tensor) -> float:
    right = double(right).flatten()
    gaps, size = (double(torch.stack(list(lefts))) - right).norm(dim=1), float(right.norm())
    return float(gaps.max()) / size if size > 0 else 0.0
