"""What a tracker finds: the values of one update, and what some products from one start showed."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TrackedValue:
    """The largest eigenvalue at one update; a Ritz value, so never above the true one."""

    value: float
    bound: float  # of the error, held by 99.5 % of the "ok" values of a study; unit of the value
    residual: float  # ‖Hv − λv‖
    status: Literal["ok", "uncertain"]  # uncertain: bound above rtol, or the vector turned by 45°
    matvecs: int
    deep: bool  # whether this update looked for other eigenvalues
    values: Tensor  # (k,) float64, descending


@dataclass(frozen=True, kw_only=True)
class Look:
    """What some products from one start showed."""

    values: Tensor  # (k + 1,) or fewer, descending
    residuals: Tensor  # (k,)
    top: list[dict[str, Tensor]]  # k Ritz vectors
    size: float  # largest |value|
    ceiling: float  # of the eigenvalues that are not followed
    bounds: Tensor  # (k,) of the errors
    certain: bool  # whether they are small
    deep: bool
    matvecs: int
