"""Blame: what went wrong and where, in one line, for an error that nobody caught."""

import sysconfig
import traceback
from pathlib import Path

from eqtoolbox.report.words import printable

_OURS = str(Path(__file__).parents[1])
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
_TOLD = (ValueError, TypeError, OSError, LookupError, ImportError)  # their words say it all
LONGEST = 1000  # letters


def blame(error: BaseException) -> str:
    """An error in one line, with the file and line of the user's code that it comes from.

    Example:
        >>> blame(ValueError("steps must be >= 1, got 0"))
        'steps must be >= 1, got 0'
        >>> blame(ZeroDivisionError("division by zero"))
        'ZeroDivisionError: division by zero'
    """
    said = _words(error)
    if not said or not isinstance(error, _TOLD):
        said = f"{type(error).__name__}: {said}".rstrip(": ")
    place = _place(error)
    return f"{said} ({place})" if place else said


def _words(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args:
        error = error.args[0]  # its text is the repr of the message
    elif isinstance(error, OSError) and error.strerror and error.filename is None:
        error = error.strerror  # type: ignore[assignment] # without the number
    try:
        said = " ".join(printable(str(error)).split())
    except Exception:  # an error of the user's own may fail at saying what it is
        return "it could not say why"
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."


def _place(error: BaseException) -> str:
    """The innermost line that is neither ours nor of what is installed; empty for none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = frame.filename
        if not file.startswith(("<", _OURS, *_INSTALLED)):
            return f"{file}:{frame.lineno}"
    return _place(error.__cause__) if error.__cause__ is not None else ""
