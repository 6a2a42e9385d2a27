"""A topic: one question to a run, the rules that answer it in words and the charts that show it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eqtoolbox.report.figures import Panel
    from eqtoolbox.report.finding import Finding
    from eqtoolbox.report.log import Log

Rule = Callable[["Log"], Iterable["Finding"]]
Chart = Callable[["Log"], Iterable["Panel"]]


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A question with its rules and charts; a part of the page where it has charts or remarks.

    Rules and charts read values, verdicts and facts of records; notes are for people and may be
    worded anew at any time.

    Raises:
        ValueError: rules or charts are none, or there is no question or slug.

    Example:
        >>> from eqtoolbox.report.trace import trace
        >>> def length(run):
        ...     if (size := trace(run, "update_norm/length")) is not None:
        ...         text = f"The last step is {size.last.value:.2g} long."
        ...         yield Finding(level="note", text=text, evidence=(size.latest(),))
        >>> steps = Topic(question="How long are the steps?", slug="steps", rules=(length,))
        >>> # find(run, topics=[steps]) or Run("runs/first", topics=[steps]).findings()
    """

    question: str
    slug: str  # names its part of the page
    explanation: str = ""  # what is behind the question, in a sentence or two
    rules: tuple[Rule, ...] = ()  # yield findings of a run, in the order in which they are told
    panels: tuple[Chart, ...] = ()  # yield the figures of a run, in the order of the page
    remedy: tuple[str, ...] = ()  # what to try where a rule warns and names nothing better
    probes: tuple[str, ...] = ()  # whose names without a number the page remarks on

    def __post_init__(self) -> None:
        for name in ("question", "slug"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise ValueError(f"{name} must be a text, got {getattr(self, name)!r}")
        for name in ("rules", "panels"):
            given = getattr(self, name)
            if not isinstance(given, tuple) or not all(map(callable, given)):
                raise ValueError(
                    f"{name} must be a tuple of functions of a run, got {given!r}; one alone is "
                    "written (f,)"
                )
