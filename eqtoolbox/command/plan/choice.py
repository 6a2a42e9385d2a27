"""What to use at a size: the dearest of each kind that fits a device, and how often it may run."""

from collections.abc import Sequence

from eqtoolbox.command.plan.setting import Training
from eqtoolbox.command.plan.taken import Expense

RARE = 10_000  # steps apart from which on a curve has too few points to be one
CURVATURE = ("tracking, exact", "tracking, differenced", "curvature along the update")


def choice(training: Training, rows: Sequence[Expense]) -> str:
    """One sentence: charges, the best curvature that fits, and the spectrum, with reasons.

    Products are exact where there is room for their graph; else differences of gradients, which
    need a smooth loss; else what two gradients say of the step itself.
    """
    named = {row.name: row for row in rows}
    if training.peak > training.memory * 2**30:
        return (
            "the training step itself does not fit; more ranks, another sharding, a smaller batch "
            "or checkpointing"
        )
    parts = [_paced(named["conservation, every step"], training)]
    found = next((named[n] for n in CURVATURE if _useful(named[n], training)), None)
    if found is None:
        found = named["critical sharpness, warm"]
    why = ""
    exact = named["tracking, exact"]
    if found is not exact:
        why = " (exact products do not fit)" if not exact.fits(training) else " (others are rare)"
    parts.append(_paced(found, training) + why)
    spectrum = named["spectrum"]
    if not spectrum.fits(training):
        parts.append("spectra from a checkpoint, offline: they do not fit")
    elif not _useful(spectrum, training):
        parts.append(f"spectra from a checkpoint: one pays {spectrum.apart(training):,} steps")
    else:
        parts.append(_paced(spectrum, training))
    if exact.fits(training) and training.slowdown > 1 and training.probe_batch > 0.25:
        parts.append('a smaller probe_batch, or probe_precision = "as_trained", costs less')
    return "; ".join(parts)


def _useful(row: Expense, training: Training) -> bool:
    return row.fits(training) and row.apart(training) <= RARE


def _paced(row: Expense, training: Training) -> str:
    apart = row.apart(training)
    name = row.name.removesuffix(", every step")
    return f"{name} {'at every step' if apart == 1 else f'every {apart:,} steps'}"
