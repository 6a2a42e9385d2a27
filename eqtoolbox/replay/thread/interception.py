"""Interception: a function of torch's or Python's that a thread may answer for itself meanwhile.

It is exchanged when the first thread asks and put back when the last one is done; every thread that
did not ask gets the function itself. Nothing else of a process is ever exchanged.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

Answer = Callable[..., Any]  # (original, *args, **kwargs) -> result
_lock = threading.RLock()
_known: list["Intercepted"] = []


class Intercepted:
    """An attribute of a class or a module that is a function.

    Args:
        path: of the module, and of a class in it; a module that is not loaded is left alone.
        name: of the attribute.
    """

    def __init__(self, path: tuple[str, ...], name: str) -> None:
        self._path, self._name = path, name
        self._asking = 0  # scopes, of all threads
        self._here = threading.local()
        self._original: Callable[..., Any] | None = None
        self._exchanged: Any = None  # what stands in its place
        self._own: Any = None  # what the owner itself had: None where it inherits
        _known.append(self)

    def answers(self) -> list[Answer]:
        """What answers in this thread, the inner one last."""
        found: list[Answer] = self._here.__dict__.get("answers", [])
        return found

    def answered_by(self, answer: Answer) -> "_Answered":
        """Scope in which calls of this thread go to `answer(original, *args, **kwargs)`.

        Of scopes inside each other the inner one answers, with the outer one as its original.
        """
        return _Answered(self, answer)

    def begin(self, answer: Answer) -> Any:
        """This thread answers from now on; returns what holds the function, None if not loaded."""
        owner: Any = sys.modules.get(self._path[0])
        for word in self._path[1:]:
            owner = getattr(owner, word, None)
        if owner is None or not hasattr(owner, self._name):
            return None
        with _lock:
            self._asking += 1
            if self._asking == 1:
                self._exchange(owner)
        self._here.__dict__.setdefault("answers", []).append(answer)
        return owner

    def end(self, owner: Any) -> None:
        """The last answer of this thread is over."""
        self._here.answers.pop()
        with _lock:
            self._asking -= 1
            if self._asking == 0:
                self._put_back(owner)

    def _exchange(self, owner: Any) -> None:
        original, self._own = getattr(owner, self._name), vars(owner).get(self._name)
        if original != self._original:
            self._original = original
            call = self._passing(original)
            own = getattr(original, "__self__", None)
            bound = isinstance(owner, type) and isinstance(own, type)  # a class method
            self._exchanged = staticmethod(call) if bound else call
        setattr(owner, self._name, self._exchanged)

    def _passing(self, original: Any) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return original(*args, **kwargs)
            asked = original
            for answer in self.answers():
                asked = functools.partial(answer, asked)
            return asked(*args, **kwargs)

        return call

    def _put_back(self, owner: Any) -> None:
        if vars(owner).get(self._name) is not self._exchanged:
            return  # somebody else exchanged it meanwhile: they call ours, which passes on
        if self._own is None:
            delattr(owner, self._name)
        else:
            setattr(owner, self._name, self._own)


class InterceptedMethods(Intercepted):
    """An attribute that is an object, whose methods are answered for."""

    def _passing(self, original: Any) -> Any:
        return _Methods(original, super()._passing)


class _Methods:
    def __init__(self, thing: Any, passing: Callable[[Any], Any]) -> None:
        self._thing, self._passing = thing, passing

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._thing)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._thing, name)
        return self._passing(found) if callable(found) else found


def inherited() -> AbstractContextManager[Any]:
    """Scope for another thread, in which all that this one answers for is answered the same way."""
    answers = [(one, [*one.answers()]) for one in _known if one.answers()]

    @contextmanager
    def scope() -> Iterator[None]:
        with ExitStack() as entered:
            for one, here in answers:
                for answer in here:
                    entered.enter_context(one.answered_by(answer))
            yield

    return scope()


class _Answered:
    def __init__(self, function: Intercepted, answer: Answer) -> None:
        self._function, self._answer = function, answer
        self._owner: Any = None

    def __enter__(self) -> None:
        self._owner = self._function.begin(self._answer)

    def __exit__(self, *error: object) -> None:
        if self._owner is not None:
            self._function.end(self._owner)
