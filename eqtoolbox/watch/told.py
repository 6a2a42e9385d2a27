"""What a training loop tells its monitor, as annotations that are checked."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from torch import Tensor
from torch.amp import is_autocast_available

from eqtoolbox.expect.bounds import Bound, instance, takes
from eqtoolbox.record.sink import Sink


def _holds_loss(told: Any) -> bool:
    if isinstance(told, Tensor):
        return not told.is_complex()
    return told is None or isinstance(told, (Mapping, tuple, list)) or hasattr(told, "loss")


Decorated = Annotated[Callable[..., Any], takes(1, "(model, batch, ...) -> loss", more=True)]
Evaluated = Annotated[Any, Bound("a tensor, or what holds one as .loss", _holds_loss, whole=True)]
Device = Annotated[str, Bound("a kind of device with autocast", is_autocast_available, whole=True)]
Place = Annotated[Sink, instance("a Sink", "trackers are given to attach(sinks=[...])")]
