"""Zeros: which values of a trace are zero whatever scales them, and where such are joined."""

from collections.abc import Set

from eqtoolbox.weights.tracing.trace import Node

SPREADS = {"expand", "view", "unsqueeze", "clone", "_to_copy", "detach"}
RESHAPES = {"view", "unsqueeze", "squeeze", "reshape", "expand", "_to_copy", "t", "_unsafe_view"}
ZEROS = {"zeros", "zeros_like", "new_zeros", "zero"}
FULL = {"full", "full_like", "new_full", "fill"}
JOINS = {"cat", "stack"}
MOVES = RESHAPES | SPREADS | {"unbind", "select", "slice", "transpose", "permute", "repeat"}


def makes_zeros(node: Node, zeros: Set[int]) -> bool:
    """Whether the operation makes zeros, or only moves, joins or multiplies them.

    Args:
        zeros: numbers of the values before it that are zero.
    """
    if node.name in ("mul", "mm", "bmm"):
        return any(v.number in zeros for v in node.inputs)
    if node.name in JOINS:
        return all(v.number in zeros for v in node.inputs)
    if node.name in ZEROS or (node.name in FULL and 0 in node.args[1:]):
        return True
    return node.name in MOVES and node.args[0].number in zeros


def joins_units(node: Node, alike: Set[int]) -> bool:
    """Whether it joins data to a state that is the same everywhere, where units come later.

    Args:
        alike: numbers of the values before it that are zero, or the same number everywhere.
    """
    if node.name not in JOINS or any(v.integers is not None for v in node.inputs):
        return False
    return 0 < sum(v.number in alike for v in node.inputs) < len(node.inputs)
