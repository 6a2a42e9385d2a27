"""What a measurement of equivariance found: errors, shares, floor and verdict."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from eqtoolbox.expect import notebook
from eqtoolbox.record.record import Verdict
from eqtoolbox.symmetry.groups.group import Element


@dataclass(frozen=True, kw_only=True)
class EquivarianceResult:
    """How far a function is from equivariance; read the numbers together, each alone misleads."""

    relative_error: float  # [0, inf], 0 holds, sqrt(2) unrelated; NaN: all outputs are zero
    stderr: float  # of relative_error over group samples; 0 when enumerated, NaN for one sample
    worst: float  # largest relative error of one element used
    worst_element: Element  # the element of `worst`
    orbit_variance: float  # [0, 1], 0 invariant, 1 noise of g; NaN: cannot be said
    orbit_variance_floor: float  # what rounding alone makes of it; NaN as above
    orbit_variance_stderr: float  # over group samples; 0 when enumerated, NaN for fewer than 3
    floor: float  # relative error that rounding, noise and the actions alone produce
    verdict: Verdict  # of relative_error against the floor
    samples: int  # non-identity elements used
    enumerated: bool  # True: these are all of them
    percent_of_loss: float | None = None  # %, None without a loss; NaN when the loss is zero
    mean_square: float = math.nan  # of f(S_g x) - R_g f(x) per compared number, one tensor only
    consistency: float | None = None  # [0, 1], same argmax as f(x); for (batch, K >= 2), R trivial
    parts: Mapping[str, float] = field(default_factory=dict)  # relative error of each output tensor
    mean_loss: float = math.nan  # over the elements used; NaN without a loss
    loss_parts: Mapping[str, float] = field(default_factory=dict)  # %, of each; sums to the whole
    # for each element, of one output tensor: |f(S_g x) - R_g f(x)|^2 and |R_g f(x)|^2, summed over
    # the batch, so that those of several batches add up
    sums: tuple[list[float], ...] = field(default=(), repr=False)
    note: str = ""  # what to mend before the numbers can be trusted

    _repr_html_ = notebook.by_fields

    def stderr_of(self, part: float) -> float:
        """Standard error of a share that is quadratic in the violation, such as percent of loss.

            2 |part| stderr / relative_error, to leading order in a small violation

        Example:
            >>> nothing = EquivarianceResult(
            ...     relative_error=0.2, stderr=0.01, worst=0.2, worst_element=1, floor=1e-7,
            ...     orbit_variance=0.04, orbit_variance_floor=1e-14, orbit_variance_stderr=0.004,
            ...     verdict="violated", samples=7, enumerated=False)
            >>> round(nothing.stderr_of(4.0), 6)
            0.4
        """
        relative = self.stderr / self.relative_error if self.relative_error > 0 else 0.0
        return 2.0 * abs(part) * relative if self.stderr > 0 or math.isnan(self.stderr) else 0.0

    def decibels(self, peak: float = 2.0) -> float:
        """EQ-T or EQ-R: peak signal-to-noise of the violation, 20 log10(peak / rms error), in dB.

        Args:
            peak: range of the output values; 2 for images in [-1, 1].

        Returns:
            dB, larger is better, infinite for no violation; NaN for several output tensors.

        Reference: Karras et al. 2021, arXiv 2106.12423, appendix E.
        """
        if self.mean_square == 0.0:
            return math.inf
        return 20.0 * math.log10(peak) - 10.0 * math.log10(self.mean_square)
