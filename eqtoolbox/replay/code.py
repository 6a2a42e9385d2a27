"""Code: which names of its module a function reads and rebinds, and whose function it is."""

import dis
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import NamedTuple

import torch

OURS = str(Path(__file__).parents[1])
_BY_STRINGS = frozenset({  # functions and attributes by which code names things that dis cannot see
    "globals", "vars", "getattr", "setattr", "delattr", "eval", "exec", "__import__",
    "import_module", "modules", "__dict__", "__globals__", "attrgetter",
})  # fmt: skip


class Used(NamedTuple):
    """Names that a piece of code, and what is nested in it, uses of its module and of others."""

    read: frozenset[str] = frozenset()
    rebound: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()
    attributes_set: frozenset[str] = frozenset()
    imported: frozenset[str] = frozenset()  # modules, as its import statements write them
    strings: frozenset[str] = frozenset()  # constants of code that may name things by strings

    @property
    def open(self) -> bool:
        """Whether it may name more than its instructions do: `getattr`, `globals()`, `eval`."""
        return not _BY_STRINGS.isdisjoint(self.read | self.attributes)


_FIELDS = {
    "LOAD_GLOBAL": 0, "LOAD_NAME": 0, "STORE_GLOBAL": 1, "DELETE_GLOBAL": 1, "LOAD_ATTR": 2,
    "LOAD_METHOD": 2, "LOAD_SUPER_ATTR": 2, "IMPORT_FROM": 2, "STORE_ATTR": 3, "DELETE_ATTR": 3,
    "IMPORT_NAME": 4,
}  # fmt: skip


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
    found: list[set[str]] = [set() for _ in Used._fields]
    for step in dis.get_instructions(code):
        field = _FIELDS.get(step.opname)
        if field is not None:
            found[field].add(str(step.argval))
    found[5] |= {x for x in code.co_consts if isinstance(x, str)}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            for mine, its in zip(found, used(inner), strict=True):
                mine |= its
    return Used(*map(frozenset, found))


@lru_cache(maxsize=4096)
def of_a_user(file: str) -> bool:
    """Whether a file is a program's own: no part of Python, of an installed library or of ours."""
    installed = "site-packages" in file or "dist-packages" in file
    return not installed and not file.startswith(_libraries())


@lru_cache(maxsize=1)
def _libraries() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    python = (paths[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    return (*python, str(Path(torch.__file__).parent), OURS, "<frozen")
