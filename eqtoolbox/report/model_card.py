"""A section of a model card: what a training showed, in Markdown that strangers may read."""

import re
from collections.abc import Iterator
from typing import Any

from eqtoolbox.record.chosen import main
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.run import Run
from eqtoolbox.report.trace import trace
from eqtoolbox.report.words import number, percent, printable

TITLE = "## Training diagnostics"
PROJECT = "https://pypi.org/project/eqtoolbox/"
ON_TOP = 3  # findings
BEGIN, END = "<!-- eqtoolbox -->", "<!-- /eqtoolbox -->"
VERDICTS = {
    "alarm": "something is badly wrong",
    "warning": "something looks wrong",
    "note": "nothing wrong was found",
    "good": "nothing wrong was found",
    "nothing": "too little was measured to judge",
}


def level(run: Run) -> str:
    """Level of the gravest finding; "nothing" where there is none."""
    return next((f.level for f in run.findings()), "nothing")


def model_card_section(run: Run) -> str:
    """Verdict, the three gravest findings with what to try, the last values, how it was measured.

    Whatever a run directory says (names of layers, notes) is escaped: it is shown as it is and
    formats nothing.

    Args:
        run: that was recorded.

    Returns:
        Markdown between two comments, by which `with_section` finds it again.

    Example:
        >>> import pathlib, tempfile
        >>> home = pathlib.Path(tempfile.mkdtemp())
        >>> line = '{"step": 4, "name": "training/loss", "value": 2.5}'
        >>> _ = (home / "records.jsonl").write_text(line)
        >>> print(model_card_section(Run(home)).splitlines()[2])
        ## Training diagnostics
    """
    findings = run.findings()
    gravest = findings[0].level if findings else "nothing"
    parts = [TITLE, f"**Verdict: {VERDICTS[gravest]}.**"]
    parts += ["\n".join(_item(f) for f in findings[:ON_TOP])] if findings else []
    more = len(findings) - ON_TOP
    parts += [f"{more} more in the report of the run."] if more > 0 else []
    rows = list(_rows(run))
    if rows:
        head = ["| measured | last value | floor | step |", "|---|---|---|---|"]
        parts.append("\n".join(head + rows))
    parts.append(_how(run))
    return "\n\n".join([BEGIN, *parts, END]) + "\n"


def with_section(card: str, section: str) -> str:
    """The text of a model card with this section in the place of an earlier one, or at its end.

    Example:
        >>> text = with_section("# Model", f"{BEGIN} old {END}")
        >>> with_section(text, f"{BEGIN} new {END}")
        '# Model\\n\\n<!-- eqtoolbox --> new <!-- /eqtoolbox -->\\n'
    """
    earlier = re.compile(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", re.DOTALL)
    before, after = [*earlier.split(card, maxsplit=1), ""][:2]
    parts = (before.rstrip("\n"), section.strip("\n"), after.strip("\n"))
    return "\n\n".join(filter(None, parts)) + "\n"


def escaped(text: Any) -> str:
    """A text that Markdown shows as it is, in one line.

    Example:
        >>> print(escaped("a_b <i>*c*</i> | d"))
        a\\_b &lt;i&gt;\\*c\\*&lt;/i&gt; \\| d
    """
    line = " ".join(printable(str(text)).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~$!])", r"\\\1", line)


def _item(finding: Finding) -> str:
    tried = f" Try: {escaped('; '.join(finding.remedy))}." if finding.remedy else ""
    return f"- **{finding.level}**: {escaped(finding.text)}{tried}"


def _rows(run: Run) -> Iterator[str]:
    """The dozen numbers that matter, at their last certified values."""
    traces = {name: trace(run, name) for name in run.names()}
    for c in main({name: t.last for name, t in traces.items() if t is not None}):
        of = "" if c.name == c.record.name else f" (`{c.record.name}`)"
        floor = "" if c.record.floor is None else number(c.record.floor, 2)
        yield f"| `{c.name}`{of} | {number(c.value)} | {floor} | {c.record.step} |"


def _how(run: Run) -> str:
    info, model = run.info, run.info.get("model") or {}
    optimizer = info.get("optimizer") or {}
    of = f"{escaped(model.get('class', 'The model'))}"
    of += f" trained by {escaped(optimizer['class'])}" if optimizer.get("class") else ""
    place = ", ".join(
        f"{word}{escaped(info[key])}"
        for key, word in (("eqtoolbox", "eqtoolbox "), ("torch", "torch "), ("device", ""))
        if info.get(key)
    )
    cost = trace(run, "cost/overhead") if "cost/overhead" in run else None
    took = f"; measuring took {percent(cost.last.value)} of the training time" if cost else ""
    probes = ", ".join(f"`{p}`" for p in info.get("probes") or {} if re.fullmatch(r"[\w.-]+", p))
    asked = f" Probes: {probes}." if probes else ""
    return (
        f"{of} was watched by [eqtoolbox]({PROJECT}) up to step {run.last_step}"
        f"{f' ({place})' if place else ''}{took}.{asked} A value below its floor is rounding."
    )
