"""Unsaved: a value is evaluated without what autograd keeps for a derivative that nobody takes.

Gradients are on all the same, as losses differentiate inside: one that does is evaluated again.
"""

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any, TypeVar

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from eqtoolbox.replay.thread.interception import Intercepted
from eqtoolbox.replay.thread.scope import current

Made = TypeVar("Made")
LARGE = 2**18  # numbers in model and batch from which on memory is worth a call for each tensor
_DISABLED = Intercepted(("torch.autograd.graph",), "disable_saved_tensors_hooks")


def unsaved(evaluate: Callable[[], Made], given: Iterable[Tensor]) -> Made:
    """`evaluate()`, whose value nobody differentiates.

    Args:
        evaluate: begins from the same state each time that it is called, as replays do.
        given: what it evaluates with beside the model; of little everything is saved.
    """
    replay = current()
    if replay is None or replay.differentiates or replay.unsaved or not much(given):
        return evaluate()
    scope = _Unsaved()
    replay.unsaved = True
    try:
        with scope, _DISABLED.answered_by(scope.refuses):
            found = evaluate()
        if not scope.asked:
            replay.differentiates = False
            return found
    except Exception:
        if not scope.asked:
            raise
    finally:
        replay.unsaved = False
    replay.differentiates = True
    return evaluate()


def much(given: Iterable[Tensor]) -> bool:
    """Whether memory is worth a call for each tensor, where a replay evaluates with these."""
    replay = current()
    if replay is None:
        return False
    return any(n >= LARGE for n in accumulate((x.numel() for x in given), initial=replay.numbers))


def plain() -> bool:
    """Whether an evaluation in this replay has shown that nothing inside takes a derivative.

    What is no evaluation from the start, and cannot be repeated, saves nothing only then.
    """
    replay = current()
    return replay is not None and replay.differentiates is False


class _Unsaved(saved_tensors_hooks):
    """Scope in which operations save nothing for a derivative; `asked` says if one was taken."""

    def __init__(self) -> None:
        self.asked = False
        super().__init__(lambda tensor: None, self._ask)

    def _ask(self, nothing: None) -> Tensor:
        self.asked = True
        raise RuntimeError("a derivative inside of the loss needs tensors that were not saved")

    def refuses(self, disabled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What takes no such scope around it, as torch.func, raises, whoever catches that."""
        self.asked = True
        return disabled(*args, **kwargs)
