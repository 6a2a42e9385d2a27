"""The loss barrier: how far the loss rises along the straight line between two models."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from eqtoolbox.act.twins import check_twins
from eqtoolbox.expect import notebook
from eqtoolbox.expect.bounds import count
from eqtoolbox.expect.checked import checked
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import LossFunction, Objective
from eqtoolbox.replay.statistics import running
from eqtoolbox.replay.tree import check_batch, tensors
from eqtoolbox.replay.unwrap import unwrapped
from eqtoolbox.weights.discovery import default_loss


@dataclass(frozen=True, kw_only=True)
class Barrier:
    """Losses along the line, and the largest rise over the straight line between its ends."""

    at: tuple[float, ...]  # t in [0, 1], of (1 - t) a + t b
    losses: tuple[float, ...]  # means over the samples, at every t
    accuracies: tuple[float, ...] | None  # likewise; None: no classes
    barrier: float  # max of 0 and L(t) - (1 - t) L(0) - t L(1) over t; of the loss's unit
    stderr: float  # over batches, at the same t; NaN for a single batch
    highest: float  # that t, between the ends
    samples: int
    batches: int
    recomputed: bool  # running statistics made anew at every t

    def __str__(self) -> str:
        lines = ["   t      loss" + ("  accuracy" if self.accuracies else "")]
        for k, (t, loss) in enumerate(zip(self.at, self.losses, strict=True)):
            share = f"  {self.accuracies[k]:8.3f}" if self.accuracies else ""
            lines.append(f"{t:4.2f}  {loss:8.4g}{share}")
        error = "" if math.isnan(self.stderr) else f" ± {self.stderr:.2g}"
        lines.append(
            f"barrier {self.barrier:.4g}{error} at t = {self.highest:.2f}, {self.samples} samples"
            f" in {self.batches} batch{'es' * (self.batches > 1)}"
            + (", running statistics recomputed" if self.recomputed else "")
        )
        return "\n".join(lines)

    _repr_html_ = notebook.text


@checked
def barrier(
    a: nn.Module,
    b: nn.Module,
    data: Any,
    *,
    points: Annotated[int, count(3)] = 11,
    loss_fn: LossFunction | None = None,
    recompute: Any = True,
) -> Barrier:
    """Loss along (1 - t) a + t b, in evaluation mode; both models, and random streams, stay.

    Running statistics of normalisations are no function of the weights between: at every t they
    are made anew, or the barrier is one of statistics (Jordan et al.). Other buffers go straight.

    Args:
        a: a model.
        b: another of its architecture.
        data: a batch, as `discover` takes it, or batches: a list of such, or a loader, gone
            through once.
        points: values of t, at equal distances, both ends included.
        loss_fn: (model, batch) -> scalar; None: as `discover`.
        recompute: batches for the statistics, better of the training; True: `data`; False: the
            statistics go straight, too.

    Returns:
        The barrier with all losses, and accuracies where targets are classes; prints as a table.

    Raises:
        ValueError: models that do not fit, a parameter that is not finite, or no data.

    References:
        Frankle et al. 2020 (arXiv 1912.05671); Jordan et al. 2023 (arXiv 2211.08403).

    Example:
        >>> a, b = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))
        >>> batch = (torch.randn(32, 4), torch.randint(0, 3, (32,)))
        >>> barrier(a, a, batch).barrier < 1e-6
        True
        >>> len(barrier(a, b, batch, points=5).losses)
        5
    """
    a, b = unwrapped(a), unwrapped(b)
    check_twins(a, b)
    batches = each_batch(data)
    given = batches if recompute is True else [] if recompute is False else each_batch(recompute)
    for batch in (*batches, *given):
        check_batch(batch, a)
    ends = end_of(a), end_of(b)
    line = Segment(a, ends, default_loss if loss_fn is None else loss_fn, given)
    at = [k / (points - 1) for k in range(points)]
    rows = [line.losses(t, batches) for t in at]
    losses, right = (torch.tensor([[r[k] for r in row] for row in rows]).double() for k in (0, 1))
    sizes = torch.tensor([r[2] for r in rows[0]]).double()
    weights = sizes / sizes.sum()
    where = torch.tensor(at).double()[:, None]
    rises = losses - (1 - where) * losses[:1] - where * losses[-1:]  # (points, batches)
    top = 1 + int((rises @ weights)[1:-1].argmax())
    known = not bool(right.isnan().any())
    return Barrier(
        at=tuple(at),
        losses=tuple((losses @ weights).tolist()),
        accuracies=tuple((right @ weights).tolist()) if known else None,
        barrier=max(float(rises[top] @ weights), 0.0),
        stderr=_stderr(rises[top], weights),
        highest=at[top],
        samples=int(sizes.sum()),
        batches=len(batches),
        recomputed=line.recomputes,
    )


End = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]  # parameters and buffers


def end_of(model: nn.Module) -> End:
    """Where a model stands."""
    return {n: p.detach() for n, p in model.named_parameters()}, dict(model.named_buffers())


class Segment:
    """Two points of one architecture and what is evaluated between them."""

    def __init__(
        self, model: nn.Module, ends: tuple[End, End], loss_fn: LossFunction, statistics: list[Any]
    ) -> None:
        self.ends, self.statistics = ends, statistics
        self.recomputes = bool(statistics and running(ends[0][1]))
        self.objective = Objective(
            model=model,
            loss_fn=loss_fn,
            batch=None,
            random=RandomState(),
            buffers={},
            flags=(False,) * len(list(model.modules())),
        )

    def losses(self, t: float, batches: list[Any]) -> list[tuple[float, float, int]]:
        """Loss, accuracy (NaN: no classes) and samples of every batch at t."""
        (pa, ba), (pb, bb) = self.ends
        params, buffers = _between(pa, pb, t), _between(ba, bb, t)
        with torch.no_grad(), self.objective.isolated():
            if self.recomputes:
                buffers |= self._recomputed(params, buffers)
            found = []
            for batch in batches:
                here = replace(self.objective, batch=batch, buffers=buffers)
                with torch.no_grad():
                    output, loss = here.output_and_loss(params)
                found.append((float(loss), _accuracy(output, batch), samples(batch)))
            return found

    def _recomputed(self, params: dict[str, Tensor], buffers: dict[str, Tensor]) -> dict[str, Any]:
        """Means of the statistics of single batches."""

        def body(model: nn.Module) -> dict[str, Tensor]:
            with _averaging(model), torch.no_grad():
                for batch in self.statistics:
                    self.objective.loss_fn(model, batch)
                return {n: x.clone() for n, x in running(dict(model.named_buffers())).items()}

        found: dict[str, Tensor] = replace(self.objective, buffers=buffers).within(params, body)
        return found


@contextmanager
def _averaging(model: nn.Module) -> Iterator[None]:
    """Scope in which normalisations keep the mean of what they are given from now on."""
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    momenta = [m.momentum for m in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum, norm.training = momentum, False


def each_batch(data: Any) -> list[Any]:
    """One batch, or those of a list of batches or of a loader.

    Raises:
        ValueError: there is none.

    Example:
        >>> x = torch.zeros(4, 2)
        >>> [len(each_batch(d)) for d in (x, (x, x), [x, x], [(x, x), (x, x), (x, x)])]
        [1, 1, 1, 3]
    """
    whole = isinstance(data, (Tensor, Mapping, tuple)) or not isinstance(data, Iterable)
    if whole or (isinstance(data, list) and data and isinstance(data[0], Tensor)):
        return [data]
    streams = RandomState()
    try:
        found = list(data)
    finally:
        streams.restore()
    if not found:
        raise ValueError(
            "expected a batch, or batches, got none: a loader that is used up is empty"
        )
    return found


def samples(batch: Any) -> int:
    """How many the first tensor has."""
    return next((len(x) for x in tensors(batch) if x.dim()), 1)


def _between(a: Mapping[str, Tensor], b: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
    """(1 - t) a + t b of what is real."""

    def mean(x: Tensor, y: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x.detach()
        return torch.lerp(x.detach().double(), y.detach().to(x.device).double(), t).to(x.dtype)

    return {n: mean(x, b[n]) for n, x in a.items()}


def _accuracy(output: Tensor | None, batch: Any) -> float:
    """Share of targets that are the largest output; NaN where they are no classes."""
    if output is None or not isinstance(batch, (tuple, list)) or not isinstance(batch[-1], Tensor):
        return math.nan
    targets = batch[-1]
    if targets.is_floating_point() or output.dim() != targets.dim() + 1:
        return math.nan
    for axis in (-1, 1):
        guess = output.argmax(axis)
        if guess.shape == targets.shape:
            return float((guess == targets).double().mean())
    return math.nan


def _stderr(values: Tensor, weights: Tensor) -> float:
    """Of a weighted mean of batches."""
    if len(values) < 2:
        return math.nan
    spread = (values - values @ weights).square() * weights.square()
    return float((spread.sum() * len(values) / (len(values) - 1)).sqrt())
