"""Collectives: an evaluation exchanges nothing with other processes over groups of the training."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.distributed as dist

from eqtoolbox.replay.thread.interception import Intercepted
from eqtoolbox.replay.thread.scope import current
from eqtoolbox.world.control import OWN

_METHODS = (
    "allgather", "_allgather_base", "allgather_coalesced", "allgather_into_tensor_coalesced",
    "allreduce", "allreduce_coalesced", "alltoall", "alltoall_base", "barrier", "broadcast",
    "gather", "monitored_barrier", "recv", "recv_anysource", "reduce", "reduce_scatter",
    "_reduce_scatter_base", "reduce_scatter_tensor_coalesced", "scatter", "send",
)  # fmt: skip
_GROUPS = [Intercepted(("torch.distributed.distributed_c10d", "ProcessGroup"), m) for m in _METHODS]


@contextmanager
def no_exchanges() -> Iterator[None]:
    """Scope in which this thread's exchanges go over the monitor's own groups, or are refused.

    One that a rank runs for a probe would pair with the training's next one on another rank that
    does not, and replace an averaged gradient without an error.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        yield
        return
    with ExitStack() as scope:
        for method in _GROUPS:
            scope.enter_context(method.answered_by(_asked))
        yield


def _asked(original: Any, group: Any, *args: Any, **kwargs: Any) -> Any:
    replay = current()
    if replay is not None and group.group_desc != OWN:
        what = getattr(original, "__name__", "exchanges").strip("_")
        replay.refuse(
            f"the loss talks to the other processes ({what}): evaluated again its exchange would "
            "meet one of the training's, so that probes that do are switched off; give "
            "loss_fn=, a function (model, batch) -> loss without it"
        )
    return original(group, *args, **kwargs)
