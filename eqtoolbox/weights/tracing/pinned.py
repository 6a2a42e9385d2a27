"""Pinned: what the analysis takes for fixed although a symmetry may go through it, by name.

A pin can only make the group found smaller. Where the operation itself allows no scale (a GELU, a
softmax, a loss) nothing is lost; what is named here may lose something.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from eqtoolbox.weights.tracing.trace import Node, Value

NAMED = 4  # parameters that a note lists


@dataclass
class Pinned:
    """Parameters by what stopped them, nearest first."""

    parameters: dict[int, str] = field(default_factory=dict)  # names by number
    inputs: dict[int, list[int]] = field(default_factory=dict)  # of every value that moves
    found: dict[str, dict[str, None]] = field(default_factory=dict)

    def follow(self, node: Node, moving: list[Value]) -> None:
        """Remembers what an operation's results come from."""
        own = [v.number for v in moving]
        self.inputs.update((o.number, own) for o in node.outputs if o is not None)

    def behind(self, values: Iterable[Value]) -> dict[str, None]:
        """The parameters that values come from, nearest first."""
        found: dict[str, None] = {}
        level, seen = {v.number: None for v in values}, set[int]()
        while level:
            found.update((self.parameters[n], None) for n in level if n in self.parameters)
            seen.update(level)
            before = (m for n in level for m in self.inputs.get(n, ()))
            level = {m: None for m in before if m not in seen}
        return found

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


def _few(names: list[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest
