"""The rules of all operations, registered: what propagates with them."""

from eqtoolbox.weights.tracing import (
    rules_backward,
    rules_entries,
    rules_linear,
    rules_norms,
    rules_picked,
    rules_shape,
    rules_tables,
)
from eqtoolbox.weights.tracing.propagation import propagate

__all__ = ["FILES", "propagate"]

FILES = (
    rules_backward,
    rules_entries,
    rules_linear,
    rules_norms,
    rules_picked,
    rules_shape,
    rules_tables,
)
