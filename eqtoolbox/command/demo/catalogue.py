"""The demos by name."""

import difflib

from eqtoolbox.demos import (
    burgers,
    denoiser,
    digits,
    flow,
    graphs,
    molecules,
    robot,
    rotated,
    text,
    tokens,
    volume,
)
from eqtoolbox.demos.demo import Demo

_ALL = (digits, rotated, volume, robot, flow, burgers, graphs, molecules, denoiser, tokens, text)
DEMOS: dict[str, Demo] = {module.DEMO.name: module.DEMO for module in _ALL}


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
