"""Reports: read a run directory back, say in plain words what it shows, and draw it."""

from typing import TYPE_CHECKING

from eqtoolbox.report.finding import Finding
from eqtoolbox.report.run import Run
from eqtoolbox.report.topic import Topic

if TYPE_CHECKING:
    from eqtoolbox.report.page import write_page
    from eqtoolbox.report.terminal import summary_data, summary_text

__all__ = ["Finding", "Run", "Topic", "summary_data", "summary_text", "write_page"]

_LAZY = {"write_page": "page", "summary_data": "terminal", "summary_text": "terminal"}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
