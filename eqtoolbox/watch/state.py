"""A state: what a probe remembers from one due step to the next, and in a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from eqtoolbox.expect.fit import fitted


@dataclass(kw_only=True, eq=False)
class State:
    """What a probe remembers of a run: a dataclass whose fields all have a default.

    A checkpoint has the fields by name, those of states inside beside them: tensors, numbers,
    texts, and dicts and lists of them. A state that others are inside of owns none of theirs.

    Example:
        >>> @dataclass(kw_only=True, eq=False)
        ... class Count(State):
        ...     steps: int = 0
        >>> count = Count()
        >>> count.load_state_dict({"steps": 3})
        >>> count.state_dict()
        {'steps': 3}
    """

    large: ClassVar[bool] = False  # whether it holds vectors as long as the parameters: where these
    # are sharded each process has pieces, from which no other one can go on

    def state_dict(self) -> dict[str, Any]:
        """Plain values, which stay as they are while the run goes on."""
        found: dict[str, Any] = {}
        for name, value in self._own():
            found |= value.state_dict() if isinstance(value, State) else {name: _kept(value)}
        return found

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take what was saved; what it does not have stays as it is.

        Raises:
            TypeError: `saved` is no dict.
        """
        fitted("saved", saved, Mapping[str, Any])
        for name, value in self._own():
            if isinstance(value, State):
                value.load_state_dict(saved)
            elif name in saved:
                setattr(self, name, _kept(saved[name]))

    def _own(self) -> list[tuple[str, Any]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self)]


def _kept(value: Any) -> Any:
    """The value with containers of its own; tensors of a state are replaced, never written."""
    if isinstance(value, dict):
        return {key: _kept(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_kept, value))
    return value
