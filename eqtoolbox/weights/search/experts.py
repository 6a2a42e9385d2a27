"""Experts behind one router, proposed from a trace."""

import re
from collections.abc import Iterator

from eqtoolbox.weights.families.experts import ExpertPermutation
from eqtoolbox.weights.tracing.trace import Trace

_ROUTES = {"softmax", "_softmax", "topk", "sigmoid"}


def propose_experts(trace: Trace) -> Iterator[ExpertPermutation]:
    """Alike branches, as many as a router has results."""
    shapes = {n: v.shape for n, v in trace.parameters.items()}
    makers = {o.number: node for node in trace.nodes for o in node.outputs if o is not None}
    names = {v.number: n for n, v in trace.parameters.items()}
    routers: set[str] = set()
    for node in trace.nodes:
        if node.name in _ROUTES and node.inputs and node.inputs[0].shape:
            experts, maker = node.inputs[0].shape[-1], makers.get(node.inputs[0].number)
            while maker is not None and maker.name in ("view", "_unsafe_view", "_to_copy", "add"):
                maker = makers.get(maker.inputs[0].number)
            if maker is None or maker.name not in ("addmm", "mm"):
                continue
            weight = maker.args[-1]
            turned = makers.get(weight.number)
            if turned is not None and turned.name == "t":
                weight = turned.args[0]
            if weight.number in names and weight.shape[0] == experts > 1:
                routers.add(names[weight.number])
    for router in sorted(routers):
        yield from _behind(router, shapes)


def _behind(router: str, shapes: dict[str, tuple[int, ...]]) -> Iterator[ExpertPermutation]:
    experts = shapes[router][0]
    layer = router.rpartition(".")[0]
    own = tuple(n for n in shapes if n.rpartition(".")[0] == layer and shapes[n][0] == experts)
    root = layer.rpartition(".")[0]
    beside = [n for n in shapes if n.startswith(f"{root}." if root else "") and n not in own]
    roles: dict[str, dict[int, str]] = {}
    for name in beside:
        for found in re.finditer(r"(?<=\.)\d+(?=\.)", name[len(root) :]):
            start, end = found.start() + len(root), found.end() + len(root)
            roles.setdefault(f"{name[:start]}#{name[end:]}", {})[int(found.group())] = name
    lists = tuple(
        tuple(by[k] for k in range(experts))
        for by in roles.values()
        if by.keys() == set(range(experts)) and len({shapes[n] for n in by.values()}) == 1
    )
    stacked = tuple(n for n in beside if len(shapes[n]) == 3 and shapes[n][0] == experts)
    if lists or stacked:
        yield ExpertPermutation(
            name=f"{root or layer} experts",
            dimension=experts - 1,
            lists=lists,
            stacked=(*own, *stacked),
        )
