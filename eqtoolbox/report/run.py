"""A run: its log, and what it shows in plain words."""

import html
import os
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from eqtoolbox.report.finding import Findings
from eqtoolbox.report.findings import find
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.topics import TOPICS
from eqtoolbox.report.words import printable


class Run(Log):
    """The records, events and facts of one run directory, and its findings; see `Log`.

    Args:
        path: the run directory.
        topics: questions of your own, asked after those of the toolbox in findings, summary and
            page. A run directory names none: reading one imports no code.

    Raises:
        TypeError: something is no `Topic`.
        ValueError: two topics have one slug.

    Example:
        >>> import pathlib, tempfile
        >>> home = pathlib.Path(tempfile.mkdtemp())
        >>> line = '{"step": 4, "name": "training/loss", "value": 2.5}'
        >>> _ = (home / "records.jsonl").write_text(line)
        >>> Run(home).series("training/loss")
        (array([4]), array([2.5]))
    """

    def __init__(self, path: str | os.PathLike[str], *, topics: Iterable[Topic] = ()) -> None:
        self.topics = tuple(topics)
        slugs = [topic.slug for topic in TOPICS]
        for topic in self.topics:
            if not isinstance(topic, Topic):
                raise TypeError(f"topics must be Topic objects, got {topic!r}")
            if topic.slug in slugs:
                raise ValueError(
                    f"slugs of topics must differ, got {topic.slug!r} twice; give yours another"
                )
            slugs.append(topic.slug)
        super().__init__(path)

    def findings(self) -> Findings:
        """What the run shows, in plain words: alarms first, then warnings, notes, good news."""
        return Findings(self._found)

    @cached_property
    def _found(self) -> Findings:
        return find(self, self.topics)

    def plot(self, name: str) -> Any:
        """A record over the steps, or all targets of a quantity, as the page of the run draws it.

        Errors are bands, noise floors dotted lines; marks on the lower edge are steps without a
        number. The axis is logarithmic where positive values span more than a factor of 20.

        Args:
            name: "curvature/sharpness"; or "conservation/drift" for all families in one figure.

        Returns:
            A `plotly.graph_objects.Figure`; a notebook shows it.

        Raises:
            KeyError: no record has this name; the message names the nearest.
            ImportError: plotly is not installed.
        """
        from eqtoolbox.report.plotting import figure

        return figure(self, name)

    def _repr_html_(self) -> str:
        said = html.escape(printable(repr(self)))
        return f"<p><code>{said}</code></p>{self.findings()._repr_html_()}"
