"""What balancing did, for better or worse."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from eqtoolbox.expect import notebook

_MOST = 6  # units that are listed


@dataclass(frozen=True, kw_only=True)
class Balanced:
    """The least-norm point that parameters were moved to; prints as a table.

    Example:
        >>> print(Balanced(families=("rescale",), keep="function", norm_before=2766.0,
        ...     norm_after=33.5, sharpness_before=11.2, sharpness_after=0.447,
        ...     conditioning_before=9.0, conditioning_after=3.0, change=1.3e-7, floor=1.2e-7,
        ...     rounds=24, imbalance=4e-14, left={}, out={}))
        balanced along rescale, 24 rounds, imbalance 4e-14
        norm^2                    2766 -> 33.5
        sharpness                 11.2 -> 0.447
        conditioning              9 -> 3
        change of the function    1.3e-07 (floor 1.2e-07)
    """

    families: tuple[str, ...]
    keep: Literal["function", "loss"]
    norm_before: float  # |theta|^2 of what trains
    norm_after: float
    sharpness_before: float  # largest eigenvalue of the Hessian; NaN: not asked for
    sharpness_after: float
    conditioning_before: float  # largest by fifth-largest; inf: that is not above 0
    conditioning_after: float
    change: float  # relative, of the outputs, or of the loss
    floor: float  # what rounding makes of the outputs
    rounds: int
    imbalance: float  # largest |n+ - n-| / (n+ + n-) of a unit that is left; rounding is 1e-16
    left: Mapping[str, tuple[int, ...]]  # units by symmetry that have no minimum and stayed
    out: Mapping[str, str]  # symmetries that were not balanced, and why

    def __str__(self) -> str:
        rows = [("norm^2", self.norm_before, self.norm_after)]
        if self.sharpness_before == self.sharpness_before:
            rows.append(("sharpness", self.sharpness_before, self.sharpness_after))
            rows.append(("conditioning", self.conditioning_before, self.conditioning_after))
        lines = [
            f"balanced along {', '.join(self.families)}, {self.rounds} rounds, "
            f"imbalance {self.imbalance:.0e}",
            *(f"{name:25} {old:.4g} -> {new:.4g}" for name, old, new in rows),
            f"{f'change of the {self.keep}':25} {self.change:.1e} (floor {self.floor:.1e})",
            *(
                f"left alone: {_units(units)} of {name}, which have no minimum"
                for name, units in self.left.items()
            ),
            *(f"not balanced: {name} {why}" for name, why in self.out.items()),
        ]
        return "\n".join(lines)

    _repr_html_ = notebook.text


def _units(units: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, units[:_MOST]))
    more = f" and {len(units) - _MOST} more" if len(units) > _MOST else ""
    return f"{'unit' if len(units) == 1 else 'units'} {shown}{more}"
