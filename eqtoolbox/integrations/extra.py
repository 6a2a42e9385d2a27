"""An extra: an optional package, and what to install when it is missing."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str, user: str) -> Iterator[None]:
    """Scope of the imports that `pip install "eqtoolbox[name]"` provides for `user`.

    Raises:
        ImportError: a package is missing; the message names the extra that brings it.

    Example:
        >>> with extra("lightning", "eqtoolbox.integrations.lightning"):
        ...     import a_package_that_is_not_there
        Traceback (most recent call last):
        ImportError: eqtoolbox.integrations.lightning needs a_package_that_is_not_there: \
pip install "eqtoolbox[lightning]"
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f'{user} needs {error.name}: pip install "eqtoolbox[{name}]"', name=error.name
        ) from error
