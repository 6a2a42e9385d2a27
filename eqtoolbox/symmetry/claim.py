"""The claim of an equivariance: a function obeys f(S_g x) = R_g f(x) for every g of a group."""

import re
from dataclasses import dataclass, field
from typing import Annotated

from eqtoolbox.expect.bounds import instance
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import NotNegative
from eqtoolbox.symmetry.actions.action import Action, check_action
from eqtoolbox.symmetry.groups.group import Group
from eqtoolbox.symmetry.structure import Tree, first, on_tensors


@checked
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
        rows: whether rows of the batch are "samples", or "parts" of them as nodes and edges of
            several graphs are; or the name of the leaf that numbers the sample of each row, which
            "auto" finds under the names of PyG, MACE and SchNet. A batch of parts is taken whole,
            as one sample: actions see a leading dimension of one.

    Raises:
        TypeError: the group is no Group, or an action cannot be called.
        ValueError: the group is trivial, the name has other letters, the tolerance is negative.

    Example:
        >>> from eqtoolbox.symmetry.actions.action import quarter_turn, trivial
        >>> from eqtoolbox.symmetry.groups.group import Cyclic
        >>> Equivariance(Cyclic(4), quarter_turn, trivial).name
        'cyclic4'
    """

    group: Annotated[Group, instance("a Group", "such as Cyclic(4)")]
    input_action: Action
    output_action: Action
    name: str = field(default="", kw_only=True)
    tolerance: NotNegative | None = field(default=None, kw_only=True)
    rows: str = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        if self.group.order == 1:
            raise ValueError(
                f"{self.group.name} has only the identity: nothing to be equivariant to"
            )
        object.__setattr__(self, "name", self.name or self.group.name)
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise ValueError(f"name must be letters of [A-Za-z0-9_.-], got {self.name!r}")

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


Claimed = Annotated[
    Equivariance,
    instance("an Equivariance", "write Equivariance(group, input_action, output_action)"),
]
