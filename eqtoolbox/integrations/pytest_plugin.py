"""A plugin of pytest: fixtures that assert what networks and trainings should keep.

It comes with the package (`-p no:eqtoolbox.integrations.pytest_plugin` leaves it out), and imports
torch in the first test that asks for it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from eqtoolbox.report.words import CAUSES, listing, percent, words

if TYPE_CHECKING:
    from eqtoolbox.report.run import Run

_DRIFT, _SHARE = "conservation/drift", "conservation/share_"


@pytest.fixture(scope="session", name="assert_equivariant")
def fixture_of_equivariance() -> Callable[..., Any]:
    """`eqtoolbox.symmetry.testing.assert_equivariant(model, inputs, claim or group)`."""
    return equivariant


@pytest.fixture(scope="session", name="assert_conserved")
def fixture_of_conservation() -> Callable[..., dict[str, float]]:
    """`conserved(run, tolerance=...)`: no charge of a run has drifted further."""
    return conserved


def equivariant(function: Any, inputs: Any, symmetry: Any, **options: Any) -> Any:
    """`eqtoolbox.symmetry.testing.assert_equivariant`, whose frames a failure does not show.

    Example:
        >>> import torch
        >>> from eqtoolbox.symmetry import Flip
        >>> equivariant(lambda x: x.mean((2, 3)), torch.randn(4, 1, 8, 8), Flip()).verdict
        'holds'
    """
    __tracebackhide__ = True
    from eqtoolbox.symmetry import testing

    try:
        return testing.assert_equivariant(function, inputs, symmetry, **options)
    except AssertionError as failed:
        raise AssertionError(str(failed)) from None


def conserved(run: Any, *, tolerance: float, family: str | None = None) -> dict[str, float]:
    """Pass when no charge of a run has drifted by more than `tolerance` since the start.

    Args:
        run: the directory of a run with the probe `conservation`, or its `Run`.
        tolerance: largest drift, relative to the size that the charges could have.
        family: of the symmetries, such as "rescale"; all that were measured unless given.

    Returns:
        The last drift of each family.

    Raises:
        AssertionError: a drift is larger or not finite, with its causes; or none was measured.
    """
    __tracebackhide__ = True
    from eqtoolbox.report.run import Run

    run = run if isinstance(run, Run) else Run(run)
    there = run.targets(_DRIFT)
    wanted = there if family is None else [family]
    drifts = {name: _last(run, f"{_DRIFT}/{name}") for name in wanted}
    lost = [name for name, drift in drifts.items() if drift is None]
    if lost or not drifts:
        raise AssertionError(
            f"no drift of {listing(lost or ['any charge'])} was measured in {run.path}, but of "
            f"{listing(there or ['none'])}\nTo do: attach with the probe 'conservation', which the "
            "presets 'standard' and 'full' have"
        )
    known = {name: drift for name, drift in drifts.items() if drift is not None}
    moved = [_told(run, name, drift) for name, drift in known.items() if not drift <= tolerance]
    if moved:
        raise AssertionError(
            f"not conserved to {percent(tolerance)}:\n"
            + "\n".join(moved)
            + "\nTo do: a smaller learning rate against the finite step, less of weight decay "
            "against decay; a broken symmetry is a fault of the model or the loss"
        )
    return known


def _last(run: "Run", name: str) -> float | None:
    """The newest number, NaN where it is none; what was left out for time or memory is no news."""
    found = run.records(name) if name in run else []
    values = [r.value for r in found if not r.status.startswith("skipped")]
    return values[-1] if values else None


def _told(run: "Run", family: str, drift: float) -> str:
    """One charge that drifted, and the causes by what they moved."""
    found = {said: _last(run, f"{_SHARE}{cause}/{family}") for cause, said in CAUSES.items()}
    shares = {said: share for said, share in found.items() if share and abs(share) >= 0.01}
    ranked = sorted(shares.items(), key=lambda item: -abs(item[1]))
    by = ", ".join(f"{percent(share)} {said}" for said, share in ranked)
    return f"  {words(family)} drifted {percent(drift)}" + (f": {by}" if by else "")
