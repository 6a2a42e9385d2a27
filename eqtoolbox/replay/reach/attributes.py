"""Attributes: those that an object holds itself, whatever its class answers in their place."""

import ctypes
from collections.abc import Callable
from functools import lru_cache
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any

_read_by_c = ctypes.pythonapi.PyObject_GenericGetDict
_read_by_c.restype, _read_by_c.argtypes = ctypes.py_object, (ctypes.py_object, ctypes.c_void_p)


def attributes_of(thing: Any) -> dict[str, Any] | None:
    """The dict of an object's attributes, None if it has none.

    `__getattr__`, `__getattribute__` and properties of its class are not asked: proxies answer for
    others there, or raise.

    Example:
        >>> class Proxy:
        ...     def __getattribute__(self, name):
        ...         raise KeyError(name)
        >>> attributes_of(Proxy()), attributes_of(1)
        ({}, None)
    """
    kind: Any = type(thing)
    read = _reader(kind)
    own = None if read is None else read(thing)
    return own if type(own) is dict else None


@lru_cache(maxsize=4096)
def slot(kind: Any, name: str) -> Any:
    """What reads and writes a name of `__slots__`, whatever a property of a subclass does."""
    found = (_of(base, "__dict__").get(name) for base in _of(kind, "__mro__"))
    return next((one for one in found if type(one) is MemberDescriptorType), None)


def in_slot(thing: Any, name: str, missing: Any) -> Any:
    """What an object holds in one of its slots; `missing` while that is empty."""
    kind: Any = type(thing)
    one = slot(kind, name)
    try:
        return missing if one is None else one.__get__(thing)
    except AttributeError:
        return missing


@lru_cache(maxsize=4096)
def _reader(kind: Any) -> Callable[[Any], Any] | None:
    for base in _of(kind, "__mro__"):
        found = _of(base, "__dict__").get("__dict__")
        if type(found) is GetSetDescriptorType:
            return found.__get__
    return (lambda thing: _read_by_c(thing, None)) if _of(kind, "__dictoffset__") else None


def _of(kind: type, name: str) -> Any:
    """Of a class itself, whatever its metaclass says."""
    return type.__dict__[name].__get__(kind)
