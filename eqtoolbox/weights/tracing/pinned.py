"""Pinned: what the analysis takes for fixed although a symmetry may go through it, by name.

A pin can only make the group found smaller. Where the operation itself allows no scale (a GELU, a
softmax, a loss) nothing is lost; what is named here may lose something.
"""

from dataclasses import dataclass, field

from eqtoolbox.weights.tracing.trace import Node, Value

NAMED = 4  # parameters that a note lists
SMALL = 1e-3  # a bound up to this keeps a division from zero, as the clamp inside F.normalize

_PASSED = frozenset({  # scales go through these, and the analysis has no rule but to stop them
    "glu", "topk", "sort", "cumsum", "scatter", "gather", "argmax", "gt", "lt", "ge", "le", "eq",
    "ne", "sign", "isnan",
})  # fmt: skip
_MIXED = frozenset({"softmax", "_softmax", "_safe_softmax", "logsumexp", "rsub"})
_CLAMPS = ("clamp", "clamp_min", "clamp_max", "hardtanh")


@dataclass
class Pinned:
    """Parameters by what stopped them, nearest first."""

    sources: dict[int, dict[str, None]] = field(default_factory=dict)  # of values, by number
    found: dict[str, dict[str, None]] = field(default_factory=dict)

    def follow(self, node: Node, moving: list[Value]) -> dict[str, None]:
        """The parameters that an operation's moving inputs come from, handed on to its results."""
        nearest = sorted((self.sources.get(v.number, {}) for v in moving), key=len)
        own = {name: None for names in nearest for name in names}
        for output in node.outputs:
            if output is not None:
                self.sources[output.number] = own
        return own

    def note(self, what: str, parameters: dict[str, None]) -> None:
        """Something stopped these parameters."""
        if what:
            self.found.setdefault(what, {}).update(parameters)

    def joined(self, other: "Pinned") -> "Pinned":
        """What either stopped."""
        both = Pinned(found={what: dict(names) for what, names in self.found.items()})
        for what, names in other.found.items():
            both.note(what, names)
        return both

    def notes(self) -> list[str]:
        """What was stopped, in sentences."""
        return [f"{what}: {_few(list(names))}" for what, names in sorted(self.found.items())]


def reason(node: Node, moving: list[Value], labels: bool = False) -> str:
    """What may be lost at an operation that has a rule; empty where nothing is.

    Args:
        node: the operation.
        moving: its inputs that a symmetry could still move.
        labels: whether it is permutations that are looked for, not scales.
    """
    name = node.name
    if labels and name in _MIXED:
        return f"{name} was taken as fixed, so that permutations through it are missed"
    if name in _PASSED:
        return f"{name} was taken as fixed, so that symmetries through it are missed"
    if name in _CLAMPS:
        bounds = [*node.args[1:], *node.kwargs.values()]
        real = [abs(b) for b in bounds if isinstance(b, (int, float)) and b]
        if real and max(real) <= SMALL:
            return (
                f"{name} at {max(real):g}, which may only keep a division from zero, was taken as "
                "fixed, so that scales through it are missed"
            )
    if name == "convolution" and node.args[8] > 1:
        weight, transposed, groups = node.args[1], node.args[6], node.args[8]
        inside = weight.shape[0] // groups if transposed else weight.shape[1]
        if inside > 1:
            return (
                f"convolution in {groups} groups: scales are looked for by channel and not by "
                "group and channel together, so that some are missed"
            )
    if "batch_norm" in name and not _trained(node):
        return (
            "normalisation by running statistics, which would have to move along: scales and "
            "permutations of channels through it are missed"
        )
    joined = [v for v in moving if v in node.args[0]] if name in ("cat", "stack") else []
    if len(joined) > 1:
        return "joined by cat: permutations of the units on either side may be missed"
    if name in ("prelu", "_prelu_kernel") and node.args[1].size > 1:
        return "a slope a channel (prelu) is held in its place: permutations may be missed"
    return ""


def _trained(node: Node) -> bool:
    return node.name != "_batch_norm_no_update" and bool(node.arg(5, "training", True))


def _few(names: list[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest
