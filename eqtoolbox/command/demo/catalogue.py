"""The demos by name."""

import difflib

from eqtoolbox.demos import burgers, digits, flow, graphs, molecules, robot, rotated, text, tokens
from eqtoolbox.demos.demo import Demo

DEMOS: dict[str, Demo] = {
    d.DEMO.name: d.DEMO
    for d in (digits, rotated, robot, flow, burgers, graphs, molecules, tokens, text)
}


def demo(name: str) -> Demo:
    """The demo of this name.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if name not in DEMOS:
        near = difflib.get_close_matches(name, DEMOS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no demo {name!r}; there are {', '.join(DEMOS)}{hint}")
    return DEMOS[name]


def listing() -> str:
    """Every demo with what it trains, one a line."""
    width = max(map(len, DEMOS))
    return "\n".join(f"{name.ljust(width)}  {found.title}" for name, found in DEMOS.items())
