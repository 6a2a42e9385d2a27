"""Quiet: what a model or a loss prints, logs or warns of is said once, by the training itself.

Text is kept from where it would come out, not from where it is made: a loss that captures what it
prints or records its own warnings finds them. What goes past `sys.stdout` and `sys.stderr` (their
buffers, file descriptors, a `write` taken off them beforehand) is said again.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from eqtoolbox.replay.thread import interception
from eqtoolbox.replay.thread.interception import Answer, Intercepted
from eqtoolbox.replay.thread.scope import current

_MLFLOW = (
    "log_artifact", "log_artifacts", "log_dict", "log_figure", "log_image", "log_metric",
    "log_metrics", "log_param", "log_params", "log_table", "log_text", "set_tag", "set_tags",
)  # fmt: skip


@dataclass
class _Silenced:
    """One stream while any thread is quiet."""

    stream: Any
    call: Any  # what stands in the place of its `write`
    own: Any  # what the stream's own attributes had there: None where it is its class's
    scopes: int = 0


class _Writing(Intercepted):
    """`write` of whatever a name of `sys` is bound to when a scope begins."""

    def __init__(self, name: str) -> None:
        super().__init__(("sys", name), "write")
        self._silenced: dict[int, _Silenced] = {}

    def begin(self, answer: Answer) -> Any:
        stream = getattr(sys, self._path[1])
        if not hasattr(stream, "write"):
            return None
        with interception._lock:
            known = self._silenced.get(id(stream))
            if known is None:
                own = getattr(stream, "__dict__", {}).get("write")
                known = _Silenced(stream, self._passing(stream.write), own)
                try:
                    stream.write = known.call
                except (AttributeError, TypeError):  # it has no attributes of its own
                    return None
                self._silenced[id(stream)] = known
            known.scopes += 1
        self._here.__dict__.setdefault("answers", []).append(answer)
        return known

    def end(self, known: Any) -> None:
        self._here.answers.pop()
        with interception._lock:
            known.scopes -= 1
            if known.scopes:
                return
            del self._silenced[id(known.stream)]
            if vars(known.stream).get("write") is not known.call:
                return
            if known.own is None:
                del known.stream.write
            else:
                known.stream.write = known.own


_WARNED = Intercepted(("warnings",), "_showwarnmsg")  # after filters: those that are errors raise
_STREAMS = (_Writing("stdout"), _Writing("stderr"))
_SPEAKING = (
    Intercepted(("logging", "Logger"), "callHandlers"),
    Intercepted(("loguru._logger", "Logger"), "_log"),
    Intercepted(("tqdm.std", "tqdm"), "display"),
    Intercepted(("tqdm.std", "tqdm"), "clear"),
    Intercepted(("tqdm.notebook", "tqdm_notebook"), "display"),
    Intercepted(("accelerate", "Accelerator"), "log"),
    Intercepted(("trackio",), "log"),
    Intercepted(("wandb",), "log"),
    Intercepted(("wandb.sdk.wandb_run", "Run"), "log"),
    *(Intercepted(("mlflow",), name) for name in _MLFLOW),
)


@contextmanager
def quiet() -> Iterator[None]:
    """Scope in which evaluations of this thread say nothing; probes themselves may."""
    with ExitStack() as scope:
        for stream in _STREAMS:
            scope.enter_context(stream.answered_by(_kept_back))
        for way in _SPEAKING:
            scope.enter_context(way.answered_by(_untold))
        scope.enter_context(_WARNED.answered_by(partial(_warned, _ways_of_showing())))
        yield


def _evaluating() -> bool:
    """Whether it is the loss that speaks, in its forward or in a backward."""
    replay = current()
    if replay is None:
        return False
    frame: FrameType | None = sys._getframe()
    while frame is not None and not replay.frames:
        if frame.f_code.co_name == "_engine_run_backward":
            return True
        frame = frame.f_back
    return bool(replay.frames)


def _kept_back(original: Any, text: Any) -> Any:
    return len(text) if _evaluating() else original(text)


def _untold(original: Any, *args: Any, **kwargs: Any) -> Any:
    return None if _evaluating() else original(*args, **kwargs)


def _ways_of_showing() -> tuple[Any, ...]:
    """Where warnings go; a loss that records its own exchanges one of these."""
    return warnings.showwarning, getattr(warnings, "_showwarnmsg_impl", None)


def _warned(shown: tuple[Any, ...], original: Any, message: Any) -> None:
    if _evaluating() and _ways_of_showing() == shown:
        _forget(message)
    else:
        original(message)


def _forget(message: Any) -> None:
    """It was said to nobody: the training may still say it for the first time."""
    text, kind = str(message.message), message.category
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename != message.filename:
        frame = frame.f_back
    registry = frame.f_globals.get("__warningregistry__", {}) if frame is not None else {}
    for line in (message.lineno, 0):
        registry.pop((text, kind, line), None)
    getattr(warnings, "onceregistry", {}).pop((text, kind), None)
