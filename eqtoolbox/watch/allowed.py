"""What a budget may be: a share of training time, and seconds beside it."""

import math


def check_share(budget: float | None) -> None:
    """Refuse what is no share of training time.

    Raises:
        ValueError: it is no number above 0 and up to 1; per cents are recognised.
    """
    if budget is None:
        return
    number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
    if not number or not 0 < budget <= 1:
        percents = number and 1 < budget <= 100
        hint = f"; did you mean {budget / 100:g}?" if percents else ""
        raise ValueError(
            "budget is a share of training time such as 0.05, at most 1, or None for no limit, "
            f"got {budget!r}{hint}"
        )


def check_allowance(allowance: float) -> None:
    """Refuse what is no number of seconds.

    Raises:
        ValueError: it is no number >= 0.
    """
    number = isinstance(allowance, (int, float)) and not isinstance(allowance, bool)
    if not number or not 0 <= allowance < math.inf:
        raise ValueError(f"allowance is a number of seconds >= 0, got {allowance!r}")
