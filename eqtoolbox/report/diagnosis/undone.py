"""Symptoms of steps that are undone: weights that something in the loop writes back."""

import numpy as np

from eqtoolbox.report.diagnosis.disease import Symptom
from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.finding import Level
from eqtoolbox.report.words import percent

RETURNS = 2  # measured steps that begin where others did: a run is set back once on purpose
MUCH = 0.25  # of the steps: a run that is set back after a spike, or begun anew, loses less
MOST = 0.5  # of the steps: of so many one return is enough where nothing was learned


def written_back(signs: Signs) -> Symptom | None:
    """Steps that begin exactly where earlier ones began, so that those between them count nothing.

    Each return undoes the steps since the earlier one; a step between returns is counted once.
    Where few are undone, as where a training goes back to its last checkpoint, this is a note. What
    is written back at times is seen only where a measured step follows, and so perhaps once.
    """
    name = "vital/written_back"
    if name not in signs.run:
        return None
    rows = signs.run.rows(name)
    undone = np.zeros(signs.length, bool)
    for row in rows:
        undone[row.facts.count("began") or 0 : row.step] = True
    share, first = float(undone.mean()), rows[0]
    much = share >= (MUCH if len(rows) >= RETURNS else MOST)
    once = len(rows) < RETURNS and signs.state in ("learned", "unknown")
    level: Level | None = "note" if once or not much else "alarm" if signs.idle else None
    text = (
        f"Weights are written back: {len(rows)} of {len(signs.told('vital/own_batch', 'loss'))} "
        f"measured steps begin exactly where an earlier one began, step {first.step} first, where "
        f"step {first.facts.count('began')} did. So {percent(share)} of the steps are undone."
    )
    return Symptom(
        text=text,
        names=(name, "vital/own_batch"),
        where="the training loop",
        step=first.step,
        level=level,
    )
