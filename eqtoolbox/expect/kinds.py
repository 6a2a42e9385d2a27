"""Kinds: bounded annotations that many functions share."""

import math
from os import PathLike
from typing import Annotated

from eqtoolbox.expect.bounds import Bound, at_least, between, count

Positive = Annotated[
    float, Bound("a positive number", lambda x: 0.0 < x < float("inf"), whole=True)
]
Finite = Annotated[float, Bound("a finite number", math.isfinite, whole=True)]
NotNegative = Annotated[float, at_least(0)]
Count = Annotated[int, count(1)]
Natural = Annotated[int, at_least(0)]
Seed = Annotated[int, between(-(2**63), 2**64 - 1)]  # what torch takes
Location = Annotated[
    str | PathLike[str],
    Bound(
        "a path",
        lambda path: str(path).strip() != "" and "\0" not in str(path),
        'name a directory, such as "runs/first"',
        whole=True,
    ),
]
