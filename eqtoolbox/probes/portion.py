"""Portion: some of a batch, for what is true of a loss on any samples, as its symmetries are."""

from dataclasses import replace
from random import Random  # of a step: whatever their period, no steps keep to one portion

from torch.nn.modules.batchnorm import _BatchNorm

from eqtoolbox.watch.memory import samples
from eqtoolbox.watch.snapshot import Snapshot, refused

DEAR = 2**20  # bytes that one evaluation saves, from which on samples take longer than Python does
LEAST = 4  # samples
SPREAD = 8  # samples where batch normalisation divides by how they vary, which enlarges rounding
MOST = 8  # portions


def on_few(snapshot: Snapshot) -> Snapshot:
    """The same step, measured on a half to an eighth of its batch: another one from step to step.

    As little as keeps a quarter of `DEAR` and `LEAST` samples, or `SPREAD`. The whole batch where
    that takes no longer, has too few samples, cannot be cut, or where the loss takes no such part
    of it or is not finite there, as means over what no sample of it has; and where ranks measure
    together, whose batches are parts already.
    """
    measured = snapshot.measured
    if measured is None or snapshot.once < DEAR or snapshot.world.several:
        return snapshot
    modules = measured.calls[0].model.modules()
    least = SPREAD if any(isinstance(m, _BatchNorm) and m.training for m in modules) else LEAST
    parts = min(samples(measured) // least, int(4 * snapshot.once / DEAR), MOST)
    if len(measured.calls) > 1 or parts < 2:
        return snapshot
    try:
        part = measured.calls[0].split(parts)[Random(snapshot.step).randrange(parts)][0]
    except ValueError:  # rows that belong together
        return snapshot
    few = replace(snapshot, measured=part)
    return snapshot if refused(few.objective, few.before) else few
