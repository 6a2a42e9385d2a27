"""Floors of the laws at the last measurement that found them, kept for those that do not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.state import State


@dataclass(kw_only=True, eq=False)
class Floors(State):
    """Floor of each quantity of each family, relative as its value is.

    Example:
        >>> floors = Floors()
        >>> floors.begin(step=7)
        >>> floors.keep(7, Measurement("first_order", 1e-9, "rescale", floor=1e-8))
        >>> floors.of("first_order", "rescale"), floors.of("first_order", "scale")
        (1e-08, 0.0)
        >>> floors.found("first_order")
        7
    """

    step: int = -1  # at which all of them were found
    kept: dict[str, float] = field(default_factory=dict)
    anew: dict[str, int] = field(default_factory=dict)  # steps at which some were since

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> "Floors":
        """What an earlier run kept."""
        made = cls()
        made.load_state_dict(saved)
        return made

    def begin(self, step: int) -> None:
        """A measurement begins that finds them all."""
        self.step, self.kept, self.anew = step, {}, {}

    def keep(self, step: int, row: Measurement) -> None:
        """Keep the floor of this row, if it has one."""
        if row.floor is not None:
            self.kept[f"{row.quantity}/{row.target}"] = row.floor
            if step != self.step:
                self.anew[row.quantity] = step

    def found(self, quantity: str) -> int:
        """The step at which the floors of this quantity were found."""
        return self.anew.get(quantity, self.step)

    def of(self, quantity: str, target: str) -> float:
        """The floor that was found; 0 where none was, by which nothing holds."""
        return self.kept.get(f"{quantity}/{target}", 0.0)
