"""Move: one element of a symmetry, applied to the live model or refused by name."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox import act
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.weights import ContinuousSymmetry, ParameterSymmetry, discover
from eqtoolbox.weights.families.discrete import Permuting, SignFlip
from tests.act.networks import NETWORKS, batch, loss_of, network, train
from tests.act.test_transaction import OPTIMIZERS, everything, plain, same


def element(s: ParameterSymmetry, generator: torch.Generator) -> torch.Tensor:
    if isinstance(s, ContinuousSymmetry):
        return 0.3 * torch.randn(s.dimension, generator=generator)
    if isinstance(s, SignFlip):
        return torch.randint(0, 2, (s.dimension,), generator=generator) * 2 - 1
    assert isinstance(s, Permuting)
    return torch.arange(s.dimension + 1).roll(1)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_keeps_the_loss_and_moves_the_parameters(name: str) -> None:
    model, given = network(name, torch.float64), batch(name, torch.float64)
    expected, generator = float(loss_of(model, given).detach()), torch.Generator().manual_seed(0)
    for s in discover(model, given, loss_of):
        if s.status != "verified" or getattr(s, "equivariant", False):
            continue
        there = copy.deepcopy(model)
        done = act.move(there, s, element(s, generator), batch=given, loss_fn=loss_of)
        moved = float(loss_of(there, given).detach())
        assert moved == pytest.approx(expected, rel=1e-10), s
        assert done.distance > 0 or isinstance(s, SignFlip)
        assert s.family in str(done)
        if isinstance(s, ContinuousSymmetry) and s.form.balance == "equal sides":
            own = s.names[0]  # the twin: one leg left behind
            with torch.no_grad():
                there.get_parameter(own).copy_(model.get_parameter(own))
            assert float(loss_of(there, given).detach()) != pytest.approx(expected, rel=1e-6)


def test_channels_take_their_running_statistics_along() -> None:
    model, given = network("residual", torch.float64).eval(), batch("residual", torch.float64)
    found = [s for s in discover(model, given, loss_of) if isinstance(s, Permuting) and s.buffers]
    before = model(given[0])
    for s in found:
        act.move(model, s, torch.arange(s.dimension + 1).flip(0))
        assert torch.allclose(model(given[0]), before)
    assert found and found[0].buffers[0] in dict(model.named_buffers())
    model.get_buffer(found[0].buffers[0]).normal_()
    assert not torch.allclose(model(given[0]), before)


def test_there_and_back_again() -> None:
    model = plain()
    optimizer = OPTIMIZERS["amsgrad"](model.parameters())
    given = torch.randn(16, 4).double(), torch.arange(16) % 3
    train(model, optimizer, given, 3)
    reference = train(*copy.deepcopy((model, optimizer)), given, 4)
    rescale = next(s for s in discover(model, given) if s.family == "rescale")
    c = torch.randn(rescale.dimension)
    act.move(model, rescale, c, optimizer)
    act.move(model, rescale, (-c).tolist(), optimizer)
    assert train(model, optimizer, given, 4) == pytest.approx(reference, rel=1e-6)


Refusal = tuple[ParameterSymmetry, Any, dict[str, Any], str]


def refusals(model: nn.Module, given: Any) -> list[Refusal]:
    found = discover(model, given)
    rescale = next(s for s in found if s.family == "rescale")
    permutation = next(s for s in found if s.family == "permutation")
    head = next(s for s in found if s.family == "head_scale")
    inputs = next(s for s in found if s.family == "input_rotation")
    c = torch.ones(rescale.dimension)
    return [
        (rescale, c[:-1], {}, "expected 6 numbers"),
        (rescale, c[None], {}, "expected 6 numbers"),
        (rescale, c * torch.nan, {}, "finite real"),
        (rescale, c.to(torch.complex64), {}, "finite real"),
        (rescale, 1e4 * c, {}, "not be finite"),
        (permutation, torch.zeros(6), {}, "a permutation of 0 to 5"),
        (permutation, torch.arange(6) + 0.5, {}, "a permutation of 0 to 5"),
        (head, torch.ones(1), {}, "moves the outputs, too"),
        (inputs, torch.ones(inputs.dimension), {}, "moves the inputs, too"),
        (replace(rescale, status="broken"), c, {}, "which is broken"),
        (replace(rescale, status="proposed"), c, {}, "verify=True"),
        (replace(rescale, status="approximate", residual=1e-5), c, {}, "approximate=True"),
        (rescale, c, {"optimizer": torch.optim.SGD([torch.ones(1)])}, "of others"),
    ]


def test_what_does_not_fit_is_refused_by_name_and_nothing_is_changed() -> None:
    model = plain()
    given = torch.randn(16, 4).double(), torch.arange(16) % 3
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, given, 2)
    before = everything(model, optimizer)
    for symmetry, coefficients, options, match in refusals(model, given):
        with pytest.raises(ValueError, match=match):
            act.move(model, symmetry, coefficients, **{"optimizer": optimizer, **options})
        assert same(before, everything(model, optimizer)), match


def test_what_moves_inputs_or_outputs_is_moved_when_stated() -> None:
    model = plain()
    given = torch.randn(16, 4).double(), torch.arange(16) % 3
    head = next(s for s in discover(model, given) if s.family == "head_scale")
    before = model(given[0]).detach()
    act.move(model, head, [0.5], equivariant=True)
    assert torch.allclose(model(given[0]), before * torch.e**0.5)


def test_statistics_of_what_moves_need_a_batch() -> None:
    model, given = network("residual", torch.float64), batch("residual", torch.float64)
    train(model, torch.optim.SGD(model.parameters(), 0.0), given, 40)
    shift = next(
        s for s in discover(model, given, loss_of) if s.family == "translation" and "c1" in s.name
    )
    before = copy.deepcopy(model).eval()(given[0])
    with pytest.raises(ValueError, match="give batch"):
        act.move(model, shift, torch.ones(shift.dimension))
    act.move(model, shift, torch.ones(shift.dimension), batch=given, loss_fn=loss_of)
    assert torch.allclose(model.eval()(given[0]), before)


def test_the_drift_budget_of_an_attached_run_names_the_act_and_closes() -> None:
    model, sink = network("mlp"), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    monitor = eq.attach(
        model, optimizer, probes=[Conservation(growth=0.0)], schedule=1, budget=None,
        sinks=[sink], on_error="raise",
    )  # fmt: skip
    given = batch("mlp")
    for step in range(8):
        if step == 4:
            act.balance(model, given, optimizer, loss_fn=loss_of, curvature=False)
        loss = monitor.loss(loss_of)(model, given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    monitor.close()
    assert [e[:3] for e in sink.events if e[2] == "act.balance"] == [(4, "info", "act.balance")]
    rows = [r for r in sink.records if r.name == "conservation/closure/rescale"]
    assert rows and all(r.verdict == "holds" for r in rows)
    shares = [r.value for r in sink.records if r.name == "conservation/share_act/rescale"]
    assert shares and abs(shares[0]) > 0.5
