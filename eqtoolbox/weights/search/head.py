"""The last layer: what a head's outputs leave free, proposed from a trace."""

from collections.abc import Iterator

import torch

from eqtoolbox.weights.families.head import HeadRotation, HeadScale, HeadShift
from eqtoolbox.weights.forms.gram import MatrixLeg
from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search.constants import Uses
from eqtoolbox.weights.tracing.trace import Node, Trace, layer_name

_THROUGH = {"view", "_unsafe_view", "clone", "unsqueeze", "squeeze", "reshape", "alias", "detach"}


_LARGEST_ROTATION = 128  # classes; beyond, C (C - 1) / 2 generators serve no purpose


def _through(uses: Uses, node: Node | None) -> Node | None:
    """The operation whose result this one only reshapes."""
    while node is not None and node.name in _THROUGH:
        node = uses.makers.get(node.args[0].number)
    return node


def propose_head(trace: Trace) -> Iterator[ContinuousSymmetry]:
    """The equivariances of the linear map whose result is the model's output."""
    if trace.output is None:
        return
    uses = Uses.of(trace)
    last = _through(uses, uses.makers.get(trace.output.number))
    bias = None
    if last is not None and last.name == "add":
        made, bias = last.args[0], uses.names.get(getattr(last.args[1], "number", -1))
        if bias is None or len(last.args[1].shape) != 1:
            return
        last = _through(uses, uses.makers.get(made.number))
    elif last is not None and last.name == "addmm":
        bias = uses.names.get(last.args[0].number)
        if bias is None:
            return
    if last is None or last.name not in ("addmm", "mm", "bmm"):
        return
    weight = uses.matrix(last.args[2] if last.name == "addmm" else last.args[1])
    if weight is None:
        return
    moved = (weight[0], *((bias,) if bias else ()))
    if any(len(uses.readers[trace.parameters[n].number]) > 1 for n in moved):
        return
    layer = layer_name(weight[0])
    axis = 0 if weight[1] else 1
    classes = trace.parameters[weight[0]].shape[axis]
    yield HeadScale(name=layer, dimension=1, rates=tuple((n, 1.0) for n in moved))
    if bias:
        yield HeadShift(name=layer, dimension=classes, bias=bias)
    if 1 < classes <= _LARGEST_ROTATION:
        every = torch.arange(classes)[None, None]
        legs = [MatrixLeg(weight[0], axis, every, 1)]
        if bias:
            legs.append(MatrixLeg(bias, 0, every, 1))
        dimension = classes * (classes - 1) // 2
        yield HeadRotation(name=layer, dimension=dimension, legs=tuple(legs))
