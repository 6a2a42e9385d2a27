"""Code: which names of its module a function reads and rebinds, and whose function it is."""

import dis
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import NamedTuple

import torch

_OURS = str(Path(__file__).parents[1])


class Used(NamedTuple):
    """Names that a piece of code, and what is nested in it, uses of its module and of others."""

    read: frozenset[str]
    rebound: frozenset[str]
    attributes: frozenset[str]
    attributes_set: frozenset[str]


@lru_cache(maxsize=4096)
def used(code: CodeType) -> Used:
    """What the instructions of `code` name.

    Example:
        >>> def f():
        ...     global total
        ...     total = math.pi
        >>> used(f.__code__).rebound, used(f.__code__).attributes
        (frozenset({'total'}), frozenset({'pi'}))
    """
    read, rebound, attributes, written = set(), set(), set(), set()
    for step in dis.get_instructions(code):
        name = str(step.argval)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read.add(name)
        elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            rebound.add(name)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.add(name)
        elif step.opname in ("STORE_ATTR", "DELETE_ATTR"):
            written.add(name)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            more = used(inner)
            read |= more.read
            rebound |= more.rebound
            attributes |= more.attributes
            written |= more.attributes_set
    return Used(*map(frozenset, (read, rebound, attributes, written)))


@lru_cache(maxsize=4096)
def of_a_user(file: str) -> bool:
    """Whether a file is a program's own: no part of Python, of an installed library or of ours."""
    installed = "site-packages" in file or "dist-packages" in file
    return not installed and not file.startswith(_libraries())


@lru_cache(maxsize=1)
def _libraries() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    python = (paths[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    return (*python, str(Path(torch.__file__).parent), _OURS, "<frozen")
