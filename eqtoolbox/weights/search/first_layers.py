"""First layers: rotations of the inputs that they undo, proposed from a trace."""

import math
from collections.abc import Iterator

import torch

from eqtoolbox.weights.families.input_rotation import InputRotation
from eqtoolbox.weights.forms.gram import MatrixLeg
from eqtoolbox.weights.tracing.trace import Node, Trace, Value

_LARGEST = 1024  # features; beyond, d (d - 1) / 2 generators serve no purpose


_THROUGH = {
    "_to_copy", "view", "_unsafe_view", "reshape", "clone", "alias", "detach", "contiguous",
}  # fmt: skip


def propose_input_rotation(trace: Trace) -> Iterator[InputRotation]:
    """Rotations of an input that only linear maps with own weights read."""
    nodes = trace.live(trace.loss)
    names = {v.number: n for n, v in trace.parameters.items()}
    makers = {o.number: node for node in nodes for o in node.outputs if o is not None}
    uses: dict[int, list[Node]] = {}
    for node in nodes:
        for value in node.inputs:
            uses.setdefault(value.number, []).append(node)
    counts = {n: len(uses.get(v.number, [])) for n, v in trace.parameters.items()}
    for number in uses:
        if number in names or number in makers:
            continue
        read = list(_first_layers(number, uses, makers, names))
        if not read or None in read:
            continue
        layers = dict.fromkeys(r for r in read if r is not None)
        sizes = {(trace.parameters[n].shape[axis], inputs) for n, axis, inputs in layers}
        if len(sizes) != 1 or any(counts[n] != 1 for n, _, _ in layers):
            continue
        size, axis = sizes.pop()
        if not 1 < size <= _LARGEST:
            continue
        every = torch.arange(size)[None, None]
        yield InputRotation(
            name="-".join(n.rpartition(".")[0] or n for n, _, _ in layers),
            dimension=math.comb(size, 2),
            legs=tuple(MatrixLeg(n, a, every, -1) for n, a, _ in layers),
            axis=axis,
        )


def _first_layers(
    number: int, uses: dict[int, list[Node]], makers: dict[int, Node], names: dict[int, str]
) -> Iterator[tuple[str, int, int] | None]:
    """(weight, its axis, the inputs' axis) of every reader; None for one that is not linear."""
    for node in uses.get(number, []):
        if node.name in _THROUGH and node.outputs[0] is not None:
            yield from _first_layers(node.outputs[0].number, uses, makers, names)
            continue
        weight, axis, inputs = None, 0, -1
        if node.name in ("mm", "addmm") and node.args[-2].number == number:
            weight = node.args[-1]
            maker = makers.get(weight.number)
            if maker is not None and maker.name == "t":
                weight, axis = maker.args[0], 1
        elif node.name == "convolution" and node.args[0].number == number:
            plain = node.args[8] == 1 and not node.args[6]  # one group, not transposed
            weight, axis, inputs = (node.args[1] if plain else None), 1, 1
        name = names.get(weight.number) if isinstance(weight, Value) else None
        yield (name, axis, inputs) if name is not None else None
