"""What it costs on a due step to note everything that a loss can reach, and to put it back.

Claim: for models that keep no state in plain Python, noting where the step's own evaluation begins
and entering and leaving one replay take at most 2 % of a gradient of the same batch. Gradients and
notes are interleaved in one process on one thread; medians in processor time.

    python benchmarks/replay.py [NAME ...]
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from curvature_models import NAMES, problem
from environment import store
from torch import Tensor

from eqtoolbox.replay.belongings import Belongings
from eqtoolbox.replay.isolation import isolated

ROUNDS, NOTES = 30, 10


def seconds(body: Callable[[], object], times: int = 1) -> float:
    """Processor time of one call."""
    start = time.process_time()
    for _ in range(times):
        body()
    return (time.process_time() - start) / times


def cost(name: str) -> dict[str, float]:
    """Microseconds of a gradient, of noting once and of a scope; slots in reach."""
    made = problem(name, steps=0)
    model, (x, y) = made.model, made.batch
    leaves, criterion = list(model.parameters()), made.criterion

    def loss_fn(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return criterion(model(batch[0]), batch[1])  # type: ignore[no-any-return]

    def gradient() -> None:
        torch.autograd.grad(loss_fn(model, (x, y)), leaves)

    def noted() -> Belongings:
        return Belongings((model, loss_fn), (model,))

    def scope() -> None:
        with isolated(model, expected=(loss_fn,)):
            pass

    rows = [
        (seconds(gradient), seconds(noted, NOTES), seconds(scope, NOTES)) for _ in range(ROUNDS)
    ]
    one, two, three = (1e6 * statistics.median(column) for column in zip(*rows, strict=True))
    share = (two + three) / one
    return {"gradient": one, "noted": two, "scope": three, "share": share,
            "slots": len(noted().slots)}  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    results = {}
    for name in sys.argv[1:] or NAMES:
        results[name] = found = cost(name)
        print(
            f"{name}: gradient {found['gradient']:.0f} us, noting {found['noted']:.0f}, a replay's "
            f"scope {found['scope']:.0f}: {found['share']:.1%}; {found['slots']:.0f} slots",
            flush=True,
        )
    print(store("replay", results))


if __name__ == "__main__":
    main()
