"""The engine: how Hessian products of the model at hand are computed, chosen by a self-test."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from eqtoolbox.expect.checked import checked
from eqtoolbox.linalg.curvature import Hessian
from eqtoolbox.linalg.product_program import ProductProgram
from eqtoolbox.probes.compiled import bind, by_a_program, given, programmed
from eqtoolbox.probes.operators import (
    HALF,
    PARTS,
    DifferentiatedOperator,
    operator,
)
from eqtoolbox.probes.portion import on_few
from eqtoolbox.probes.proving import self_test, valued
from eqtoolbox.probes.self_test import ROUGH, EngineMode, SelfTest
from eqtoolbox.record.record import Status
from eqtoolbox.replay.divided import apart
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import NotApplicable, Snapshot

Memory = Literal["fast", "low"]
Choice = Literal["fastest", "retained", "compiled"]
ProbePrecision = Literal["full", "as_trained"]
EXACT = 1e-5  # change of the loss by splitting the batch that rounding explains


@checked
@dataclass
class Tested:
    """A self-test's result and whether it was recorded: what a run keeps of it."""

    test: SelfTest
    told: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        return {"test": asdict(self.test), "told": self.told}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "Tested":
        """What an earlier run kept."""
        return cls(SelfTest(**state["test"]), state["told"])


@dataclass(frozen=True)
class Engine:
    """Hessian operators for snapshots, by the fastest mode that passed the run's self-test.

    Options only: the result of the self-test belongs to the run (`eqtoolbox.watch.shared`), where
    engines of the same options share it.

    exact: reverse over reverse on a retained graph, 1.5 to 2 gradients a product, or forward over
    reverse where the self-test finds that clearly faster and the same but for rounding (the fact
    `way` says so); a resumed run keeps to what was chosen. differenced:
    central differences of gradients, 2 gradients a product; where an operation has no second
    derivative or a wrong one, and refused at kinks. With `memory="low"` nothing is retained: split,
    exact products over pieces of the batch where the loss is the mean of theirs, else differenced
    where the loss is smooth, else rebuilt, exact products of the whole batch.

    Args:
        memory: "fast" keeps the graph of one gradient (3 times a gradient's memory), "low" not.
        precision: "full" switches autocasts off, around the loss and inside it: a product errs by
            5e-7 in float32, 4e-5 in a ResNet with batch normalisation. "as_trained" keeps them, the
            loss scaled where there is float16 in them: by 0.007 and 0.08 in bfloat16. TF32, by
            0.001 and 0.03 emulated, is as the program sets it: on for convolutions on GPUs.
        way: "fastest" lets the self-test time the ways to exact products; "retained" does not, so
            that two runs cannot differ by rounding; "compiled" has torch's compiler make one
            program of what a product does, which takes a minute and needs a C++ compiler, and uses
            it where it is right and faster than the graph: for thousands of products.
    """

    memory: Memory = "fast"
    precision: ProbePrecision = "full"
    way: Choice = "fastest"

    def __post_init__(self) -> None:
        kinds = ("memory", Memory), ("precision", ProbePrecision), ("way", Choice)
        for name, kind in kinds:
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} must be one of {get_args(kind)}, got {getattr(self, name)!r}"
                )
        if self.way == "compiled" and self.memory == "low":
            raise ValueError('way="compiled" keeps a graph: it needs memory="fast"')

    def operator(self, snapshot: Snapshot) -> DifferentiatedOperator:
        """The Hessian of the snapshot's loss at its parameters.

        Raises:
            NotApplicable: no mode gives right products; the message says what was found.
        """
        test = self.test(snapshot)
        made = operator(self.objective(snapshot), snapshot.before, test)
        if test.measures != "exact":
            snapshot.products.add(test.measures)
        if isinstance(made, Hessian):
            made.instead = lambda _: snapshot.products.add("differenced")
            if test.way == "compiled":
                bind(made, self._program(snapshot), self.objective(snapshot), snapshot.before, test)
        return made

    def test(self, snapshot: Snapshot) -> SelfTest:
        """The self-test's result, tested now if the run has not tested this loss yet.

        Raises:
            NotApplicable: no mode gives right products; the message says what was found.
        """
        return self._tested(snapshot).test

    def objective(self, snapshot: Snapshot) -> Objective:
        """The snapshot's loss in the precision asked for."""
        if self.precision == "as_trained" and snapshot.measured is not None:
            return snapshot.measured
        return snapshot.objective

    def report(self, snapshot: Snapshot) -> Iterator[Measurement]:
        """Results of the self-test, once after each time it ran."""
        tested = self._tested(snapshot)
        if tested.told:
            return
        tested.told = True
        test = tested.test
        mode = "held" if test.held else test.mode
        facts = {"mode": mode, "reason": test.reason, "way": test.way}
        note = f"{mode}: {test.reason}"
        for quantity in ("repeat", "asymmetry", "difference", "jacobian_asymmetry"):
            value = getattr(test, quantity)
            if math.isnan(value) and quantity == "jacobian_asymmetry":  # not asked: products agree
                continue
            status: Status = "not_applicable" if math.isnan(value) else "ok"
            yield Measurement("self_test", value, quantity, status=status, note=note, facts=facts)
        if test.trained > ROUGH:
            note = _mixed(self.precision, test)
            yield Measurement("self_test", test.coarsest, "rounding", note=note)

    def _tested(self, snapshot: Snapshot) -> Tested:
        objective, params = self.objective(snapshot), snapshot.before

        def make() -> Tested:
            if any(p.is_complex() for p in params.values()):
                raise NotApplicable("complex parameters: their Hessian is not supported")
            way = "retained" if snapshot.world.several else self.way  # whose clocks differ
            few = self.objective(on_few(snapshot))
            room = math.inf if snapshot.world.several else snapshot.room
            test = self_test(objective, params, timing=way == "fastest", few=few, room=room)
            if way == "compiled":
                test = by_a_program(objective, params, test, partial(self._program, snapshot))
            if snapshot.measured is not None:
                test = replace(test, trained=valued(snapshot.measured, params)[1])
            return Tested(_thrifty(objective, params, test) if self.memory == "low" else test)

        about = snapshot.identity, self.memory, self.precision, self.way, objective.autocast
        return snapshot.shared.get("self_test", about, make, Tested.restored)

    def _program(self, snapshot: Snapshot) -> ProductProgram | str:
        """The program of products of this loss on data of these shapes, or why there is none."""
        objective = self.objective(snapshot)
        shapes = tuple((x.shape, x.dtype) for x in given(objective))
        about = snapshot.identity, self.precision, objective.autocast, shapes
        make = partial(programmed, objective, snapshot.before)
        return snapshot.shared.get("program", about, make)


def _thrifty(objective: Objective, params: Parameters, test: SelfTest) -> SelfTest:
    """The mode that needs little memory: split if that is exact, else differenced if smooth."""
    if test.mode == "differenced":
        return test
    off, why = apart(objective, params, PARTS)
    if off <= max(EXACT, 10 * test.coarsest):
        return replace(test, mode="split", reason=f"low memory; {test.reason}")
    mode: EngineMode = "differenced" if test.smooth and not test.held else "rebuilt"
    return replace(test, mode=mode, reason=f"low memory, but {why}; {test.reason}")


def _mixed(precision: ProbePrecision, test: SelfTest) -> str:
    """What was done about the half precision that a loss trains in."""
    kind = "float16" if test.trained == HALF else "half precision"
    if precision == "full" and test.coarsest <= ROUGH:
        return f"full: the loss trains under an autocast to {kind}, which is off here"
    if precision == "full":
        return f"full: the loss casts to {kind} by itself, which no autocast does and stays on"
    scaled = ", the loss scaled where it is differentiated" if test.coarsest == HALF else ""
    return f"as_trained: with operations in {kind}{scaled}"
