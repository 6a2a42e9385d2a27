"""The claim of an equivariance: a function obeys f(S_g x) = R_g f(x) for every g of a group."""

import re
from dataclasses import dataclass, field

from eqtoolbox.symmetry.actions import Action, check_action
from eqtoolbox.symmetry.group import Group
from eqtoolbox.symmetry.structure import Tree, first, on_tensors


@dataclass(frozen=True)
class Equivariance:
    """The claim that a function obeys f(S_g x) = R_g f(x) for every g of a group.

    Args:
        group: the elements g.
        input_action: S, a function `(g, x) -> gx`.
        output_action: R, likewise on outputs; `trivial` claims invariance.
        name: for records, letters of [A-Za-z0-9_.-]; the group's name unless given.
        tolerance: relative defect up to which `check` accepts the laws of an action; derived from
            the dtype unless given, which suits every action that does not interpolate.

    Raises:
        TypeError: the group is no Group, or an action cannot be called.
        ValueError: the group is trivial, the name has other letters, the tolerance is negative.

    Example:
        >>> from eqtoolbox.symmetry.actions import quarter_turn, trivial
        >>> from eqtoolbox.symmetry.group import Cyclic
        >>> Equivariance(Cyclic(4), quarter_turn, trivial).name
        'cyclic4'
    """

    group: Group
    input_action: Action
    output_action: Action
    name: str = field(default="", kw_only=True)
    tolerance: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.group, Group):
            raise TypeError(f"group must be a Group such as Cyclic(4), got {self.group!r}")
        for side, action in (("input", self.input_action), ("output", self.output_action)):
            if not callable(action):
                raise TypeError(f"{side}_action must be a function (g, x) -> gx, got {action!r}")
        if self.group.order == 1:
            raise ValueError(
                f"{self.group.name} has only the identity: nothing to be equivariant to"
            )
        object.__setattr__(self, "name", self.name or self.group.name)
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise ValueError(f"name must be letters of [A-Za-z0-9_.-], got {self.name!r}")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ValueError(f"tolerance must be >= 0 or None, got {self.tolerance}")

    def check(self, inputs: Tree, outputs: Tree) -> None:
        """Verify on examples that both actions are actions of the group and fit their tensors.

        Args:
            inputs: (batch, ...) or a tree of such, at least one sample; the first two are used.
            outputs: (batch, ...), likewise.

        Raises:
            ValueError: which action breaks which law of `check_action`, where, by how much.
        """
        for name, x in (("input_action", inputs), ("output_action", outputs)):
            action = self.input_action if name == "input_action" else self.output_action
            few = on_tensors(lambda t: t.detach(), first(x, 2))
            check_action(self.group, action, few, name=name, tolerance=self.tolerance)
