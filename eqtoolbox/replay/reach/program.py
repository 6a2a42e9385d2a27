"""The program: what functions, classes and modules that a user wrote hold and name.

Of a function: its closure, defaults, attributes, and of its module what its code names. Of a class:
its attributes and its metaclass. Of a module: what is named, or all of it where code may name
things by strings.
"""

import functools
import gc
import os
import sys
import types
from collections.abc import Iterable
from typing import Any

from eqtoolbox.replay.reach import slots
from eqtoolbox.replay.reach.code import Used, of_a_user, used
from eqtoolbox.replay.reach.kinds import (
    ATOMS,
    GLOBAL,
    functions_of,
    of_a_library,
    of_the_program,
    users_classes,
)
from eqtoolbox.replay.reach.names import Definition, Names, Namespace
from eqtoolbox.replay.reach.walk import Walk, space_of

_ENVIRONMENT = frozenset({"environ", "environb", "putenv", "unsetenv"})


def function(walk: Walk, thing: types.FunctionType, path: Any) -> None:
    names = thing.__code__.co_freevars
    for name, cell in zip(names, thing.__closure__ or (), strict=True):
        walk.look(cell, (path, name))
    given, of_user = thing.__defaults__ or (), of_a_user(thing.__code__.co_filename)
    if of_user or not ATOMS.issuperset(map(type, given)):
        walk.slots.append(Definition(thing, path))
        walk.look(given, path)
    walk.look(thing.__kwdefaults__, path)
    if of_user or vars(thing):
        walk.look(vars(thing), path)
    if of_user:
        _names(walk, thing.__globals__, used(thing.__code__))


def cell(walk: Walk, thing: types.CellType, path: Any) -> None:
    walk.slots.append(slots.Cell(thing, path))
    walk.look(slots.contents(thing), path)


def bound(walk: Walk, thing: Any, path: Any) -> None:
    """A method of one thing, Python's or made in C."""
    owner = thing.__self__
    if isinstance(owner, types.ModuleType | type | None) or any(owner is one for one in GLOBAL):
        walk.look(getattr(thing, "__func__", None), path)
        walk.look(owner if isinstance(owner, type) else None, path)
    else:
        walk.held(thing, (owner, getattr(thing, "__func__", None)), path)


def partial(walk: Walk, thing: Any, path: Any) -> None:
    walk.held(thing, (thing.func,), path)
    walk.look(thing.keywords, path)
    if not ATOMS.issuperset(map(type, thing.args)):
        walk.slots.append(slots.Given(thing, path))
        walk.look(thing.args, path)


def cache(walk: Walk, thing: Any, path: Any) -> None:
    """What `functools.lru_cache` has remembered; one with a limit keeps its order in C."""
    if thing.cache_parameters()["maxsize"] is not None:
        walk.loose.append((thing, path))
    for part in gc.get_referents(thing):
        if type(part) is not dict or thing.cache_parameters()["maxsize"] is None:
            walk.look(part, path)


def kind(walk: Walk, thing: type, path: Any) -> None:
    """A class of the program with its bases and its metaclass."""
    for one in users_classes(thing):
        if not walk.first(one):
            continue
        walk.slots.append(slots.Class(one, (None, one.__name__)))
        for name, value in vars(one).items():
            for inner in functions_of(value):
                if type(inner) not in ATOMS:
                    walk.look(inner, (None, f"{one.__name__}.{name}"))
        kind(walk, type(one), path)


def derived(walk: Walk) -> bool:
    """Walk on to what derives from the classes met, if some code asks for it; whether it does."""
    before = len(walk.slots)
    if "__subclasses__" in walk.marks:
        for one in [mark for mark in walk.marks if isinstance(mark, type)]:
            below: list[type] = type.__subclasses__(one)
            for other in below:
                kind(walk, other, None)
    return len(walk.slots) > before


def loaded(walk: Walk, thing: types.ModuleType, path: Any) -> None:
    """A module that is held as a value: whatever it has may be used."""
    if of_the_program(thing):
        _whole(walk, space_of(thing), thing.__name__)


def frame(walk: Walk, thing: types.FrameType, path: Any) -> None:
    """A call that goes on in another thread: its variables, and what its code names."""
    walk.look_named(thing.f_locals.items(), path)
    _names(walk, thing.f_globals, used(thing.f_code))


def _names(walk: Walk, space: dict[str, Any], code: Used) -> None:
    """What code names in its module, and in modules of the program."""
    if not walk.first((id(space), code)):
        return
    path = (None, str(space.get("__name__")))
    _keep(walk, space, (code.read & space.keys()) | code.rebound, path)
    if code.open:
        _by_strings(walk, space, code)
    if not _ENVIRONMENT.isdisjoint(code.attributes):
        walk.look(os.environ, (None, "os.environ"))
    if "__subclasses__" in code.attributes:
        walk.marks.add("__subclasses__")
    for name in code.read & space.keys():
        value = space[name]
        if issubclass(type(value), types.ModuleType):
            _of_module(walk, value, code)
        elif not of_a_library(value):
            walk.look(value, (None, name))
    for name in code.imported:
        for module in _imported(name, space):
            _of_module(walk, module, code)


def _keep(walk: Walk, space: dict[str, Any], names: Iterable[str], path: Any) -> None:
    """What names of a module are bound to."""
    new = [name for name in names if walk.first((id(space), name))]
    if new:
        walk.slots.append(Names(space, path, new))


def _of_module(walk: Walk, module: types.ModuleType, code: Used) -> None:
    """What code names of a module, and of modules in it."""
    if not of_the_program(module) or not walk.first((id(module), code)):
        return
    space, path = space_of(module), (None, module.__name__)
    if code.open:
        _whole(walk, space, module.__name__)
        return
    _keep(walk, space, (code.attributes | code.attributes_set) & space.keys(), path)
    for name in code.attributes & space.keys():
        value = space[name]
        if issubclass(type(value), types.ModuleType):
            _of_module(walk, value, code)
        elif not of_a_library(value):
            walk.look(value, (path, name))


def _by_strings(walk: Walk, space: dict[str, Any], code: Used) -> None:
    """Code that may name anything by a string: of its own module, and of modules it spells."""
    if code.read & {"globals", "eval", "exec"} or "__globals__" in code.attributes:
        _whole(walk, space, str(space.get("__name__")))
    for name in code.strings:
        module = sys.modules.get(name)
        if isinstance(module, types.ModuleType) and of_the_program(module):
            _whole(walk, space_of(module), name)


def _whole(walk: Walk, space: dict[str, Any], name: str) -> None:
    if walk.first((id(space), "whole")):
        walk.slots.append(Namespace(space, (None, name)))
        for key, value in space.items():
            if not of_a_library(value):
                walk.look(value, ((None, name), key))


@functools.lru_cache(maxsize=4096)
def _spellings(name: str, package: str) -> tuple[str, ...]:
    """The modules that an import statement of a package may mean."""
    parents = package.split(".") if package else []
    before = [".".join(parents[:k]) for k in range(len(parents), 0, -1)]
    parts = name.split(".")
    full = [".".join(parts[:k]) for k in range(1, len(parts) + 1)]
    return tuple(dict.fromkeys([*full, *(f"{one}.{name}".rstrip(".") for one in before)]))


def _imported(name: str, space: dict[str, Any]) -> list[types.ModuleType]:
    package = str(space.get("__package__") or "")
    found = (sys.modules.get(one) for one in _spellings(name, package))
    return [module for module in found if isinstance(module, types.ModuleType)]
