"""eqtoolbox: see how a network learns through its symmetries, while it trains."""

import gc

_collecting = gc.isenabled()
gc.disable()  # a full collection amid these imports walks through all of torch, as long again
try:
    from eqtoolbox import linalg, symmetry, weights
    from eqtoolbox.attach.attach import attach
    from eqtoolbox.record.record import Record
    from eqtoolbox.record.schedule import at, every, log_spaced
    from eqtoolbox.record.sink import Sink
    from eqtoolbox.report.run import Run
    from eqtoolbox.watch.monitor import Monitor
    from eqtoolbox.watch.probe import Measurement, Probe, Scheduled
    from eqtoolbox.watch.snapshot import NotApplicable, Snapshot
finally:
    if _collecting:
        gc.enable()

__version__ = "0.1.0"

__all__ = [
    "Measurement",
    "Monitor",
    "NotApplicable",
    "Probe",
    "Record",
    "Run",
    "Scheduled",
    "Sink",
    "Snapshot",
    "at",
    "attach",
    "every",
    "linalg",
    "log_spaced",
    "symmetry",
    "weights",
]
