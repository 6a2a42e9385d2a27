"""Checked: a decorator by which calls are refused that the annotations exclude."""

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar, get_type_hints

from eqtoolbox.expect.fit import fitted

T = TypeVar("T", bound=Callable[..., Any])


def checked(thing: T) -> T:
    """Decorate a function, or a class for its constructor: arguments must fit their annotations.

    Defaults, and what has no annotation or `Any`, are not looked at. See `fitted` for what fits.

    Raises:
        Unexpected: at the call.

    Example:
        >>> @checked
        ... def half(n: int) -> int:
        ...     return n // 2
        >>> half(True)
        Traceback (most recent call last):
        eqtoolbox.expect.fit.Unexpected: n must be an integer, got True
    """
    if isinstance(thing, type):
        thing.__init__ = checked(thing.__init__)  # type: ignore[misc]
        return thing
    signature = inspect.signature(thing)

    @functools.cache
    def kinds() -> dict[str, Any]:  # when first called: an annotation may name what comes later
        own = {n: k for n, k in thing.__annotations__.items() if n != "return"}
        names = getattr(inspect.unwrap(thing), "__globals__", {})
        told: Any = SimpleNamespace(__annotations__=own, __globals__=names)
        return get_type_hints(told, include_extras=True)

    @functools.wraps(thing)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return thing(*args, **kwargs)  # Python says what is missing or too much
        given = bound.arguments
        for name in [n for n in given if n in kinds()]:
            how, kind = signature.parameters[name].kind, kinds()[name]
            if how is inspect.Parameter.VAR_POSITIONAL:
                numbered = enumerate(given[name])
                given[name] = tuple(fitted(f"{name}[{i}]", x, kind) for i, x in numbered)
            elif how is not inspect.Parameter.VAR_KEYWORD:
                given[name] = fitted(name, given[name], kind)
        return thing(*bound.args, **bound.kwargs)

    return call  # type: ignore[return-value]
