"""A run: its log, and what it shows in plain words."""

import html

from eqtoolbox.report.finding import Finding
from eqtoolbox.report.findings import find
from eqtoolbox.report.log import Log
from eqtoolbox.report.words import printable


class Run(Log):
    """The records, events and facts of one run directory, and its findings; see `Log`.

    Example:
        >>> import pathlib, tempfile
        >>> home = pathlib.Path(tempfile.mkdtemp())
        >>> line = '{"step": 4, "name": "training/loss", "value": 2.5}'
        >>> _ = (home / "records.jsonl").write_text(line)
        >>> Run(home).series("training/loss")
        (array([4]), array([2.5]))
    """

    def findings(self) -> list[Finding]:
        """What the run shows, in plain words: alarms first, then warnings, notes, good news."""
        return find(self)

    def _repr_html_(self) -> str:
        items = "".join(
            f"<li><b>{f.level}</b>: {html.escape(f.text)}</li>" for f in self.findings()
        )
        return f"<p><code>{html.escape(printable(repr(self)))}</code></p><ul>{items}</ul>"
