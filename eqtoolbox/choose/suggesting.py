"""Suggest: which symmetry a model should have, asked of model and data, judged held out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from eqtoolbox.choose.folds import dealt
from eqtoolbox.choose.fresh import fresh
from eqtoolbox.choose.inferred import inferred
from eqtoolbox.choose.learning import Learning, Recipe
from eqtoolbox.choose.mending import mends
from eqtoolbox.choose.suggestion import Suggestion, Suggestions, ranked
from eqtoolbox.choose.trial import FoldTrial
from eqtoolbox.choose.ways import Way, free
from eqtoolbox.choose.worth import is_open, judged, with_subgroups
from eqtoolbox.expect.bounds import count, instance, some, takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.deadline import OutOfTime, deadline
from eqtoolbox.expect.kinds import Count, Positive, Seed
from eqtoolbox.replay.isolation import evaluation, isolated
from eqtoolbox.replay.parts import in_parts
from eqtoolbox.replay.reading import Reading, opened
from eqtoolbox.replay.streams import RandomState
from eqtoolbox.symmetry.asymmetry import data_asymmetry
from eqtoolbox.symmetry.audit import audit
from eqtoolbox.symmetry.claim import Claimed, Equivariance
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.orbit import told
from eqtoolbox.symmetry.structure import batch_size, first, floating, on_tensors

_FEWEST = 8  # samples, of which the data can be judged
_MENDED = 3  # claims whose layers are looked at
_AUDITED = 512  # samples that model and data are audited on
_KEPT = (
    "{} could not be drawn anew and start from the values given: if those were trained on these "
    "samples, nothing is held out"
)
_Todo = tuple[Suggestion, Way, Callable[[int], Equivariance | None] | None]

Network = Annotated[nn.Module, instance("a module")]
LossFunction = Annotated[Callable[[Any, Any], Tensor], takes(2, "(outputs, targets) -> loss")]
Trainer = Annotated[Callable[[Any, Any, Any], Any], takes(3, "(network, inputs, targets)")]


@checked
def suggest(
    model: Network,
    inputs: Any,
    targets: Any,
    *,
    claims: Sequence[Claimed] = (),
    ways: Annotated[Sequence[Way], some("ways")] = ("averaged", "tied", "augmented"),
    loss: LossFunction | None = None,
    train: Trainer | None = None,
    steps: Count | None = None,
    folds: Annotated[int, count(2)] = 5,
    repeats: Count = 2,
    infer: bool = True,
    seconds: Positive | None = None,
    seed: Seed = 0,
) -> Suggestions:
    """Which symmetry to build into a model, and how: rows by held-out gain, best first.

    1. The candidates that the shapes suggest, those of `claims`, and an algebra inferred from what
       the model learns (`discover_data`).
    2. The gate: inputs and targets together must look the same when they are moved
       (`data_asymmetry`); p <= 0.01 refuses, and with a claim whatever contains it. An unresolved
       p passes and is marked. That data of so few samples look symmetric proves nothing: the gain
       decides.
    3. The gain: the model as it is and with the claim, at about equal weights (a tied network is
       widened), trained alike from fresh weights and judged on samples held out. A gain within
       noise is none (`Gain`). Of labels the gain in accuracy is told, of values the fall of the
       relative error; what decides and ranks is less noisy, the probability of labels and the
       logarithm of the error. Claims are ranked by their first way. Folds are dealt again only
       where the first deal gains.
       A claim's further ways are not tried once one gains nothing at all.
    4. Evidence (`laplace`) of the first claim beside it, where the network is small; never alone.
    5. The layers that break a claim which the data allow, and what would mend them.

    Nothing is changed: model, buffers, mode and random streams are as before.

    Args:
        model: any module that can be copied; its weights are drawn anew by `reset_parameters`. What
            has none starts from the values given, which is noted.
        inputs: as in `audit`; at least 8 samples, and two a fold.
        targets: labels (n,), or values like the outputs; others with a `loss`.
        claims: tried beside those that the shapes suggest, and before them: of the same outcome,
            one of yours stands above guessed ones up to the end of its 95 % interval.
        ways: to have a claim, of augmented, averaged, canonicalised, tied.
        loss: (outputs, targets) -> scalar; cross entropy of labels, else the mean square.
        train: (network, inputs, targets), trains in place and leaves the choice of everything to
            you; by default Adam at 0.003, falling to zero, in batches of 32.
        steps: of it; 200 for labels and 1000 for values, which are learned slowly, unless given.
        folds: parts, each held out once, dealt `repeats` times.
        infer: whether continuous symmetries of vectors are looked for, in each fold anew.
        seconds: after which what is left is not tried.
        seed: of folds, weights and batches.

    Raises:
        ValueError: too few samples, targets that do not fit or are all the same, NaN, a model that
            cannot be copied, batches whose rows are parts of samples.

    Example:
        >>> x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        >>> net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
        >>> found = suggest(net, x, x[:, :1], ways=["averaged"], steps=9, repeats=1, infer=False)
        >>> row = next(row for row in found if row.claim.name == "mirror0.even")
        >>> row.outcome, row.data.verdict
        ('refused', 'violated')
    """
    ask = Reading(model, inputs)
    tree, asked, streams = opened(inputs), opened(targets), RandomState()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            recipe = train or Recipe(steps=steps or _steps(asked))
            learning = _learning(model, ask, asked, loss, recipe, folds)
            deals = list(dealt(batch_size(tree), folds, repeats, seed))
            with tqdm(total=len(deals), unit="fit", leave=False, disable=None) as bar:
                trial = FoldTrial(
                    model=model, learning=learning, deals=deals, folds=folds, seed=seed, bar=bar
                )
                return _suggested(trial, claims, ways, infer, seconds)
    finally:
        streams.restore()


def _steps(targets: Any) -> int:
    return 1000 if floating(targets) else 200


def _learning(
    model: nn.Module, ask: Reading, targets: Any, loss: Any, train: Any, folds: int
) -> Learning:
    tree = opened(ask.like)
    lazy = nn.parameter.UninitializedParameter
    if any(isinstance(p, lazy) for p in model.parameters()):
        raise ValueError("the model has lazy parameters without a shape; call it on a batch first")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("the model has no weights that are trained; unfreeze some")
    if not floating(tree):
        raise ValueError(
            "inputs must be tensors, some of them floating point, as claims are about moved values;"
            f" got {type(ask.like).__name__}"
        )
    if in_parts(tree, "auto", ask.arguments):
        raise ValueError(
            "inputs must be samples along the first dimension, got nodes and edges of several "
            "graphs; folds cannot be dealt of parts of samples"
        )
    least = max(_FEWEST, 2 * folds)
    if batch_size(tree) < least:
        raise ValueError(
            f"{folds} folds need at least {least} samples, got {batch_size(tree)}; a symmetry "
            "cannot be seen in so few"
        )
    with evaluation(model), isolated(model), torch.no_grad():
        outputs = opened(told(ask, first(tree, 2)))
    return Learning.of(ask, targets, outputs, loss, train)


def _suggested(
    trial: FoldTrial,
    claims: Sequence[Equivariance],
    ways: Sequence[Way],
    infer: bool,
    seconds: float | None,
) -> Suggestions:
    learning, names = trial.learning, {claim.name for claim in claims}
    kept = fresh(trial.model, trial.seed)[1]
    notes = [_KEPT.format(", ".join(kept[:3]) + ", ..." * (len(kept) > 3))] if kept else []
    some = torch.cat(trial.deals[0])[:_AUDITED]  # in random order
    movable = on_tensors(lambda t: t[some.to(t.device)], learning.movable())
    batch = learning.part(some)[0], movable
    audited = audit(trial.model, learning.given(batch[0]), batch[1], claims=claims)
    known = [
        judged(s.symmetry, s.result, audited.data.get(s.symmetry.name), s.note)
        for s in audited.scores
    ]
    known = with_subgroups(known, *(first(x, 2) for x in batch))
    known.sort(key=lambda row: row.claim.name not in names)
    rows = [row for row in known if not is_open(row)]
    left: list[_Todo] = [(row, way, None) for row in known if is_open(row) for way in ways]
    plain: float | None = None
    try:
        with deadline(seconds):
            if infer:
                row, by_fold, said = _inferred(trial, batch)
                notes += [said] if said else []
                rows += [row] if row is not None and not is_open(row) else []
                left += [(row, way, by_fold) for way in ways if row is not None and is_open(row)]
            trial.bar.total = len(trial.deals) * (1 + len(left))
            if left:
                trial.plain.extend(trial.scores(lambda net, _: net, range(len(trial.deals))))
            while left:
                row = trial.row(*left[0])
                rows.append(row)
                left.pop(0)
                if row.decides is not None and row.decides.value <= 0.0:
                    rows += [
                        replace(known, way=way, note=f"{row.way} did not gain")
                        for known, way, _ in left
                        if known.claim is row.claim
                    ]
                    left = [one for one in left if one[0].claim is not row.claim]
            if trial.plain:
                plain, more = trial.as_it_is()
                notes += more
                first_of = ranked(rows, names)[0].claim
                rows = [
                    trial.weighed(row) if row.claim is first_of and plain is not None else row
                    for row in rows
                ]
    except OutOfTime:
        notes.append(f"time was over after {seconds:g} s: not all was tried")
    rows += [replace(row, way=way, note="time was over") for row, way, _ in left]
    rows = ranked(rows, names)
    worth = {row.claim.name: row.claim for row in rows if row.outcome in ("gains", "none")}
    few = learning.given(first(learning.inputs, _FEWEST))
    broken = [
        mend
        for name, claim in [*worth.items()][:_MENDED]
        if name in audited.culprits
        for mend in mends(trial.model, few, claim, audited.culprits[name])
    ]
    return Suggestions(
        rows=tuple(rows),
        unit=learning.unit,
        plain=sum(s for s, _ in trial.plain) / len(trial.plain) if trial.plain else None,
        plain_weights=free(trial.model),
        plain_evidence=plain,
        samples=batch_size(learning.inputs),
        mends=tuple(broken),
        notes=tuple(notes),
    )


def _inferred(
    trial: FoldTrial, batch: tuple[Any, Any]
) -> tuple[Suggestion | None, Callable[[int], Equivariance | None] | None, str]:
    """The claim that the model learns of all samples, and of the training rows of each fold."""
    learning, model, seed = trial.learning, trial.model, trial.seed
    claim, said = inferred(model, learning, torch.arange(batch_size(learning.inputs)), seed)
    if claim is None:
        return None, None, said

    @cache
    def by_fold(j: int) -> Equivariance | None:
        return inferred(model, learning, trial.deals[j][0], seed + j)[0]

    with evaluation(model), isolated(model):
        result = equivariance_error(model, batch[0], claim)
    row = judged(claim, result, data_asymmetry(*batch, claim))
    return row, by_fold, said
