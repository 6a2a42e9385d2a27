"""Interception: one of torch's own functions that a thread may answer for itself meanwhile.

It is exchanged when the first thread asks and put back when the last one is done; every thread that
did not ask gets the function itself. Nothing else of a process is ever exchanged.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Answer = Callable[..., Any]  # (original, *args, **kwargs) -> result
_lock = threading.Lock()


class Intercepted:
    """An attribute of a class or a module that is a function.

    Args:
        path: of the module, and of a class in it; a module that is not loaded is left alone.
        name: of the attribute.
    """

    def __init__(self, path: tuple[str, ...], name: str) -> None:
        self._path, self._name = path, name
        self._asking = 0  # threads, and scopes of them
        self._here = threading.local()
        self._exchanged: Callable[..., Any] | None = None
        self._own: Any = None  # what the owner itself had: None where it inherits

    @contextmanager
    def answered_by(self, answer: Answer) -> Iterator[None]:
        """Scope in which calls of this thread go to `answer(original, *args, **kwargs)`.

        Of scopes inside each other the inner one answers, with the outer one as its original.
        """
        owner: Any = sys.modules.get(self._path[0])
        for word in self._path[1:]:
            owner = getattr(owner, word, None)
        if owner is None or not hasattr(owner, self._name):
            yield
            return
        answers = self._here.__dict__.setdefault("answers", [])
        with _lock:
            self._asking += 1
            if self._asking == 1:
                self._exchange(owner)
        answers.append(answer)
        try:
            yield
        finally:
            answers.pop()
            with _lock:
                self._asking -= 1
                if self._asking == 0:
                    self._put_back(owner)

    def _exchange(self, owner: Any) -> None:
        original, here = getattr(owner, self._name), self._here

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return original(*args, **kwargs)
            asked = original
            for answer in here.__dict__.get("answers", ()):
                asked = functools.partial(answer, asked)
            return asked(*args, **kwargs)

        bound = hasattr(original, "__self__")  # a class method, called with the class it knows
        self._own = vars(owner).get(self._name)
        self._exchanged = call
        setattr(owner, self._name, staticmethod(call) if bound else call)

    def _put_back(self, owner: Any) -> None:
        present = vars(owner).get(self._name)
        if getattr(present, "__func__", present) is not self._exchanged:
            return  # somebody else exchanged it meanwhile: they call ours, which passes on
        if self._own is None:
            delattr(owner, self._name)
        else:
            setattr(owner, self._name, self._own)
