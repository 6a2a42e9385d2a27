"""The table of diseases as a page of the documentation."""

from eqtoolbox.report.diagnosis.diseases import DISEASES

_HEAD = """# What can be wrong with a run

A finding of level alarm or warning says where, since when and what to try; its `id` is one of
these where it is a disease: a signature joined over records, behind the question whether the run
learned. Those further up account for those below that follow from them. `python
benchmarks/diseases.py` trains runs that have them, and healthy ones. What model, batch and loss
cannot show stays unseen: wrong augmentation, leaks, and overfitting without a loss on other data.

| id | level | told from what looks alike | what to try | source |
|---|---|---|---|---|"""


def markdown() -> str:
    """`docs/diseases.md`."""
    rows = (
        f"| `{d.id}` | {d.level} | {d.told_from} | {'; '.join(d.remedy)} | {d.source} |"
        for d in DISEASES
    )
    return "\n".join([_HEAD, *rows, ""])
