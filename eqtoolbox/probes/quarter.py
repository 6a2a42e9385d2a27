"""Quarter: a part of a batch, for what is true of a loss on any samples, as its symmetries are."""

from dataclasses import replace

from eqtoolbox.watch.memory import samples
from eqtoolbox.watch.snapshot import Snapshot, refused

DEAR = 2**20  # bytes that one evaluation saves, from which on samples take longer than Python does
LEAST = 4  # samples, of which batch normalisation makes something


def on_few(snapshot: Snapshot) -> Snapshot:
    """The same step, measured on a quarter of its batch: another one from step to step.

    The whole batch where that takes no longer, has too few samples, cannot be cut, or where the
    loss takes no such part of it or is not finite there, as means over what no sample of it has;
    and where ranks measure together, whose batches are parts already.
    """
    measured = snapshot.measured
    if measured is None or snapshot.once < DEAR or snapshot.world.several:
        return snapshot
    if len(measured.calls) > 1 or samples(measured) < 4 * LEAST:
        return snapshot
    try:
        part = measured.calls[0].split(4)[snapshot.step % 4][0]
    except ValueError:  # rows that belong together
        return snapshot
    few = replace(snapshot, measured=part)
    return snapshot if refused(few.objective, few.before) else few
