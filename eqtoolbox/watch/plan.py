"""The plan: how far apart the runs of each probe are, by what is left and what lies ahead."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

VITAL = "vital"  # the vital signs, taken where a loss is evaluated anyway
LIGHT = "/light"  # behind the name of a probe that measures less, for less
BRIEF = 400  # steps that a run of unknown length is planned for at least
POINTS = 10  # measurements of such a plan, of what can be paid
AFTER = 2.5  # and of the time behind it
SOON = 0.5  # of an even gap: so long vital signs wait at most, of which diagnoses need several
STEADY = 0.4  # part of what is left that all spend alike in a plan, before the dear ones' curves
WHOLE = 0.5  # part of what curves leave that is for measurements that could be light


@dataclass(kw_only=True)
class Wish:
    """What one probe asked for, and what it got."""

    due: int = 0  # how often it was due
    runs: int = 0
    points: int = 0  # runs that gave a number
    last: float = -1.0  # step at which the last run was planned
    cost: float | None = None  # seconds that the next run may take; None before the first


def gaps(
    wishes: Mapping[str, Wish],
    income: float,
    left: float,
    step: int,
    first: int,
    end: int | None,
) -> Callable[[str], float]:
    """How many steps apart the runs of a probe are, as a function of its name.

    Args:
        wishes: of all probes.
        income: seconds that training earned so far.
        left: seconds that are not spent.
        step: the present one.
        first: the one at which something was due first.
        end: of the run, where it is known and not over.

    Example:
        >>> wishes = {"dear": Wish(due=9, cost=2.0), "cheap": Wish(due=9, cost=0.01)}
        >>> gap = gaps(wishes, income=0.0, left=10.0, step=99, first=0, end=199)
        >>> gap("cheap"), round(gap("dear"), 1)
        (1.0, 19.9)
    """
    steps, ahead, known = (
        step + 1 - first,
        (end or 0) - step - 1,
        end is not None and end > step + 1,
    )
    ahead = ahead if known else max(steps, BRIEF - steps)
    more, left = ahead / steps, max(left, 0.0)
    income = income * more
    even = (steps + ahead if known or steps >= BRIEF else BRIEF) / POINTS
    points = ahead / even if known or steps >= BRIEF else (BRIEF - steps) / even + AFTER
    light = [wish for name, wish in wishes.items() if name + LIGHT not in wishes]
    curves = sum(min((wish.due + 1) * more, points) * (wish.cost or 0.0) for wish in light)
    sparse = max(curves / max(income + left, 1e-9), 1.0)  # as many points for each as are paid
    calm = part(wishes.values(), income + (1.0 if known else STEADY) * left, more)
    spare = max(income + left - curves, 0.0)  # pays for whole measurements that could be light
    whole = part(wishes.values(), WHOLE * spare, more)

    def gap(name: str) -> float:
        wish = wishes[name]
        cost = max(wish.cost or 0.0, 1e-9)
        if (wish.due + 1) * more * cost <= calm:  # all that it wants
            return 1.0
        need = ahead * cost
        if name + LIGHT in wishes:
            return max(need / max(whole, 1e-9), 1.0)
        if name == VITAL:
            return max(min(need / max(calm, 1e-9), SOON * even * sparse), 1.0)
        # the first search is in the dark: what it took tells little of the next ones
        soon = even if wish.runs == 1 else even * sparse
        return max(min(need / max(calm, 1e-9), soon), 1.0)

    return gap


def part(wishes: Iterable[Wish], seconds: float, more: float = 1.0) -> float:
    """What each may spend of these, if who wants less than an even share leaves the rest.

    Args:
        wishes: of those who spend.
        seconds: for all.
        more: times as often as so far is each due.

    Example:
        >>> part([Wish(due=9, cost=0.1), Wish(due=9, cost=5.0)], 10.0)
        9.0
    """
    wanted = sorted((wish.due + 1) * more * (wish.cost or 0.0) for wish in wishes)
    for place, want in enumerate(wanted):
        even = seconds / (len(wanted) - place)
        if want > even:
            return even
        seconds -= want
    return math.inf


def room(steps: int) -> float:
    """How many measurements the plans of so many steps of unknown length have room for.

    Example:
        >>> room(200), room(400), round(room(1500), 1)
        (5.0, 10.0, 16.6)
    """
    plans = steps / BRIEF
    return max(POINTS * (plans if plans < 1 else 1 + math.log(plans) / 2), 1.0)
