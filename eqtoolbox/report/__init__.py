"""Reports: read a run directory back, say in plain words what it shows, and draw it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eqtoolbox.report.finding import Finding
    from eqtoolbox.report.model_card import model_card_section
    from eqtoolbox.report.page import write_page
    from eqtoolbox.report.run import Run
    from eqtoolbox.report.terminal import summary_data, summary_text
    from eqtoolbox.report.topic import Topic

__all__ = [
    "Finding",
    "Run",
    "Topic",
    "model_card_section",
    "summary_data",
    "summary_text",
    "write_page",
]

_HOME = {
    "Finding": "finding",
    "Run": "run",
    "Topic": "topic",
    "model_card_section": "model_card",
    "summary_data": "terminal",
    "summary_text": "terminal",
    "write_page": "page",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
