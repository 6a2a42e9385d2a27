"""Wrong calls of the public functions: each answers when it is made, in words about what came."""

import copy
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import eqtoolbox as eq
from eqtoolbox.attach.config import ConfigError
from eqtoolbox.integrations.attachment import Attachment
from eqtoolbox.linalg import hessian, top_eigenpairs
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.symmetry import Chain, Cyclic, Equivariance, actions, equivariance_error
from eqtoolbox.symmetry.actions.permuting import Permute
from eqtoolbox.symmetry.groups import Product
from eqtoolbox.weights import discover
from tests.expect.public import (
    LINE,
    MATRIX,
    NET,
    ROWS,
    TURNS,
    X,
    attach,
    attached,
    loss_fn,
    quartic,
    state,
)

Wrong = tuple[Callable[[], Any], type[Exception], str]


def watched(model: nn.Module) -> None:
    eq.attach(model, torch.optim.SGD(model.parameters(), lr=0.1)).close()


def of_probe(name: str, **options: Any) -> Callable[[], None]:
    return lambda: attach(probes={name: options})


def on(name: str, *given: Any, **options: Any) -> Callable[[], Any]:
    """A method of a fresh monitor, attached with these options."""

    def call() -> Any:
        with attached(**options) as monitor:
            return getattr(monitor, name)(*given)

    return call


ATTACH: list[Wrong] = [
    (lambda: attach(probes=[]), ConfigError, "at least one probe in probes=, got an empty list"),
    (lambda: attach(probes=()), ConfigError, "at least one probe"),
    (lambda: attach(probes={}), ConfigError, r"expected tables \[probes.NAME\]"),
    (lambda: attach(probes=None), TypeError, r"probes must be one of .* a list of .* got None"),
    (lambda: attach(probes=5), TypeError, "probes must be one of .* got 5"),
    (lambda: attach(probes=Curvature()), TypeError, r"one alone is written \[probe\]"),
    (lambda: attach(probes=[Curvature]), TypeError, r"class Curvature; did you forget \(\)"),
    (lambda: attach(schedule=2.5), TypeError, r"a schedule is an int n .* got 2\.5"),
    (lambda: attach(schedule=True), TypeError, "a schedule is an int n .* got True"),
    (lambda: attach(schedule=lambda: True), TypeError, "schedule must be a function step -> bool"),
    (lambda: attach(schedule=eq.every), TypeError, "schedule must be a function .* class every"),
    (lambda: attach(budget=math.nan), ValueError, "budget is a share .* got nan"),
    (lambda: attach(seed=2**70), ValueError, "seed must be an integer from -9"),
    (lambda: attach(seed=1.0), TypeError, r"seed must be an integer .* got 1\.0"),
    (lambda: attach(seed=True), TypeError, "seed must be an integer .* got True"),
    (lambda: attach(resume="yes"), TypeError, "resume must be True or False, got 'yes'"),
    (lambda: attach(resume=1), TypeError, "resume must be True or False, got 1"),
    (lambda: attach(run_dir=5), TypeError, "run_dir must be a path or None, got 5"),
    (lambda: attach(run_dir="  "), ValueError, "run_dir must be a path or None, got '  '"),
    (lambda: attach(run_dir=""), ValueError, "run_dir must be a path or None, got ''"),
    (lambda: attach(run_dir="a\0b"), ValueError, "run_dir must be a path"),
    (lambda: attach(sinks=print), TypeError, "sinks must be a list"),
    (lambda: attach(sinks=[5]), TypeError, "sinks must each be .* got 5"),
    (lambda: attach(sinks=torch.ones(2)), TypeError, r"sinks\[0\] must be a sink, got"),
    (lambda: attach(sinks=(i for i in range(2))), TypeError, "sinks must each be .* got 0"),
    (lambda: attach(loss_fn=lambda x: x), TypeError, r"loss_fn must be a function \(model, batch"),
    (lambda: attach(loss_fn=nn.MSELoss), TypeError, "class MSELoss"),
    (lambda: attach(loss_fn=nn.MSELoss()), TypeError, "takes outputs and targets; give criterion="),
    (lambda: attach(loss_fn=F.mse_loss), TypeError, "takes outputs and targets; give criterion="),
    (lambda: attach(loss_fn=torch.ones(3)), TypeError, r"got Tensor|got tensor.*targets belong"),
    (
        lambda: attach(criterion=nn.MSELoss(), probe_batch=np.zeros((3, 3))),
        TypeError,
        r"probe_batch as \(inputs, target\) of tensors .* got ndarray",
    ),
    (lambda: watched(nn.Linear(2, 2, device="meta")), ValueError, "weight on the meta device"),
    (lambda: Attachment(probes="standart"), ConfigError, "did you mean 'standard'"),
    (lambda: Attachment(probes=[]), ConfigError, "at least one probe"),
    (lambda: Attachment(schedule=2.5), TypeError, "a schedule is an int n"),
    (lambda: Attachment().load_state_dict(5), TypeError, "state must be a dict, got 5"),
    (lambda: Attachment().load_state_dict({"step": 1}), KeyError, "the state of a Monitor, got"),
    (lambda: Attachment(resume="yes"), TypeError, "resume must be True or False"),
    (lambda: Attachment(seed="1"), TypeError, "got '1'; write it without quotes"),
]
MONITOR: list[Wrong] = [
    (on("loss", 5), TypeError, r"function must be a function \(model, batch, ...\) -> loss, got 5"),
    (on("loss", nn.MSELoss), TypeError, "class MSELoss; did you forget"),
    (on("loss", lambda: 0), TypeError, "function must be a function"),
    (on("observe", ROWS), ValueError, "expected a loss function that takes the batch, got none"),
    (on("observe", ROWS, "1", loss_fn=loss_fn), TypeError, "weight must be a positive number"),
    (on("observe", ROWS, -1.0, loss_fn=loss_fn), ValueError, r"weight must be .* got -1\.0"),
    (on("observe", ROWS, math.nan, loss_fn=loss_fn), ValueError, "weight must be .* got nan"),
    (on("begin", 5, ROWS), TypeError, "loss_fn must be a function"),
    (on("end", 5.0), TypeError, r"loss must be a tensor, .* got 5\.0"),
    (on("count_from", "x"), TypeError, "step must be an integer >= 0, got 'x'"),
    (on("count_from", -5), ValueError, "step must be >= 0, got -5"),
    (on("count_from", 2.0), TypeError, "step must be an integer"),
    (on("add_sink", 5), TypeError, r"sink must be a Sink, got 5; trackers are given to attach"),
    (on("add_sink", eq.Sink), TypeError, r"class Sink; did you forget \(\)"),
    (on("autocast_inside", "gpux", torch.float16), ValueError, "device must be a kind of device"),
    (on("autocast_inside", "cpu", "half"), TypeError, "dtype must be a dtype, got 'half'"),
    (on("load_state_dict", 5), TypeError, "state must be a dict, got 5"),
    (on("load_state_dict", {}), KeyError, "expected the state of a Monitor, got one without"),
]
PROBES: list[Wrong] = [
    (of_probe("curvature", tol=math.nan), ConfigError, "curvature.tol must be a number, got nan"),
    (of_probe("curvature", tol=2.0), ConfigError, "tol > 0, below 1, got"),
    (of_probe("curvature", k=10**18), ConfigError, "k >= 1, at most 10000"),
    (of_probe("curvature", k=10**30), ConfigError, "k must be an integer, got 1000"),
    (of_probe("curvature", split=1), ConfigError, "expected bool, got 1"),
    (of_probe("discrete", near=math.nan), ConfigError, "near must be a number, got nan"),
    (of_probe("conservation", growth=math.nan), ConfigError, "growth must be a number, got nan"),
    (of_probe("equivariance", peak=math.nan), ConfigError, "peak must be a number, got nan"),
    (of_probe("tracking", rtol=math.nan), ConfigError, "rtol must be a number"),
    (lambda: Curvature(k=2.5), TypeError, r"k must be an integer, got 2\.5"),
    (lambda: Curvature(k=True), TypeError, "k must be an integer, got True"),
    (lambda: Curvature(tol="1e-2"), TypeError, "tol must be a number, got '1e-2'; write it withou"),
    (lambda: Curvature(smallest="no"), TypeError, "smallest must be True or False, got 'no'"),
    (lambda: Curvature(engine="fast"), TypeError, "engine must be an Engine, got 'fast'"),
    (lambda: Curvature(stability_scale=5), TypeError, "stability_scale must be a function of a sn"),
    (lambda: EquivarianceError(locate=1), TypeError, "locate must be True or False, got 1"),
    (
        lambda: EquivarianceError(samples=np.zeros(0)), TypeError, "samples must be an integer",
    ),
    (lambda: eq.Scheduled(probe=Curvature, schedule=eq.every(1)), TypeError, "class Curvature; di"),
    (lambda: eq.Scheduled(probe=Curvature(), schedule=5), TypeError, "schedule must be a function"),
    (lambda: eq.Measurement("a", "much"), TypeError, "value must be one number, got 'much'"),
    (lambda: eq.Measurement("a", 1.0, stderr=[1]), TypeError, r"stderr must be one number, got \["),
    (lambda: eq.Measurement("a", 1.0, status="fine"), ValueError, "status must be one of .* 'fine"),
]  # fmt: skip
SCHEDULES: list[Wrong] = [
    (lambda: eq.every(2.5), TypeError, r"n must be an integer, got 2\.5"),
    (lambda: eq.every(True), TypeError, "n must be an integer, got True"),
    (lambda: eq.every("5"), TypeError, "got '5'; write it without quotes"),
    (lambda: eq.every(5, 1.5), TypeError, "offset must be an integer"),
    (lambda: eq.at(5), TypeError, "steps must be a list of integers, got 5"),
    (lambda: eq.at("12"), TypeError, "steps must be a list of integers, got '12'"),
    (lambda: eq.at([2.5]), TypeError, r"steps\[0\] must be an integer, got 2\.5"),
    (lambda: eq.at(i / 2 for i in range(3)), TypeError, r"steps\[0\] must be an integer"),
    (lambda: eq.log_spaced(10**7, until=10), ValueError, "at most 1000000"),
    (lambda: eq.log_spaced(10.0), TypeError, "n must be an integer"),
    (lambda: eq.log_spaced(10, until=math.inf), TypeError, "until must be an integer, got inf"),
]
LINALG: list[Wrong] = [
    (lambda: top_eigenpairs(MATRIX, 1.5), TypeError, r"k must be an integer, got 1\.5"),
    (lambda: top_eigenpairs(MATRIX, True), TypeError, "k must be an integer, got True"),
    (lambda: top_eigenpairs(torch.eye(3), 1), TypeError, "operator must be a LinearOperator, got"),
    (lambda: top_eigenpairs(MATRIX, 1, tol=math.nan), ValueError, "tol must be a number, got nan"),
    (lambda: top_eigenpairs(MATRIX, 1, generator=0), TypeError, "generator must be a torch.Gener"),
    (lambda: top_eigenpairs(MATRIX, 1, start=torch.ones(4)), TypeError, r"start\[0\] must be a di"),
    (lambda: hessian(quartic, [torch.ones(2)]), TypeError, "params must be a dict of Tensors"),
    (lambda: hessian(quartic, LINE.parameters()), TypeError, r"dict\(model.named_parameters\(\)\)"),
    (lambda: hessian(quartic, {"w": np.ones(2)}), TypeError, r"params\['w'\] must be a Tensor, go"),
    (lambda: hessian(quartic, {}), ValueError, "a vector needs at least one entry, got none"),
    (lambda: hessian(5, {"w": torch.ones(2)}), TypeError, "loss must be a function of a dict"),
    (lambda: hessian(lambda: 0, {"w": torch.ones(2)}), TypeError, "loss must be a function of a d"),
    (lambda: MATRIX + 5, TypeError, "right must be a LinearOperator, got 5"),
    (lambda: MATRIX * "2", TypeError, "factor must be a number, got '2'"),
]  # fmt: skip
SYMMETRY: list[Wrong] = [
    (lambda: Cyclic(2.5), ValueError, r"n must be an integer >= 1, got 2\.5"),
    (lambda: Cyclic("4"), TypeError, "n must be an integer >= 1, got '4'; write it without"),
    (lambda: Equivariance(Cyclic, actions.flip, actions.flip), TypeError, "class Cyclic; did you"),
    (lambda: Equivariance(Cyclic(4), Permute, actions.flip), TypeError, "class Permute; did you"),
    (lambda: Equivariance(Cyclic(4), lambda x: x, actions.flip), TypeError, r"input_action must b"),
    (lambda: Product(Cyclic), TypeError, r"factors\[0\] must be a Group, got the class Cyclic"),
    (lambda: Chain(actions.flip, 5), TypeError, r"actions\[1\] must be a function \(g, x\)"),
    (lambda: equivariance_error(NET, X, Cyclic(4)), TypeError, r"write Equivariance\(group, input"),
    (lambda: equivariance_error(NET, X.numpy(), TURNS), TypeError, "inputs must be .* got ndarray"),
    (lambda: equivariance_error(NET, X.to("meta"), TURNS), ValueError, "inputs must hold numbers"),
    (
        lambda: equivariance_error(NET, X[:, :, 1:, 1:], TURNS),
        RuntimeError,
        r"fails on inputs of shape \(8, 1, 5, 5\): mat1 .* give inputs that it takes",
    ),
    (lambda: equivariance_error(nn.Linear, X, TURNS), TypeError, "class Linear; did you forget"),
    (lambda: equivariance_error(NET, X, TURNS, samples=2.5), TypeError, "samples must be an integ"),
    (lambda: discover("net", ROWS), TypeError, "model must be an nn.Module, got 'net'"),
    (lambda: discover(nn.Linear, ROWS), TypeError, "class Linear; did you forget"),
    (lambda: discover(LINE, ROWS, lambda x: x), TypeError, r"loss_fn must be a function \(model"),
    (lambda: discover(LINE, ROWS, nn.MSELoss), TypeError, "class MSELoss"),
    (lambda: actions.flip(True, X.numpy()), TypeError, "x must be a Tensor, got ndarray"),
    (lambda: actions.roll(1, X), TypeError, "g must be 2 integers, got 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "message"), ATTACH + MONITOR + PROBES + SCHEDULES + LINALG + SYMMETRY
)
def test_a_wrong_call_says_what_was_expected_and_what_came(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    attach(seed=np.int64(3), schedule=np.int64(5), budget=np.float64(0.05))
    assert Cyclic(np.int32(4)) == Cyclic(4)
    assert Curvature(k=np.int64(2), tol=np.float32(0.5)).k == 2
    assert eq.at(np.array([0, 5])) == eq.at(torch.tensor([0, 5])) == eq.at([0, 5])
    assert len(top_eigenpairs(MATRIX, np.int64(2)).values) == 2


def test_a_refused_attach_leaves_no_hook() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for options in ({"resume": "yes"}, {"seed": 2**70}, {"probes": []}, {"sinks": 5}):
        with pytest.raises((TypeError, ValueError), match=r"resume|seed|probe|sinks"):
            eq.attach(model, optimizer, **options)  # type: ignore[arg-type]
    assert not optimizer._optimizer_step_post_hooks


def test_a_complex_model_is_watched_and_told_what_does_not_apply(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="eqtoolbox"):
        watched(nn.Linear(2, 2))
        assert not caplog.records
        watched(nn.Linear(2, 2, dtype=torch.complex64))
    assert "weight is complex" in caplog.text and "view_as_real" in caplog.text


# -- states of a monitor ------------------------------------------------------------------------

GARBAGE: list[tuple[str, Any, str]] = [
    ("step", "x", r"state\['step'\] must be an integer >= 0, got 'x'"),
    ("step", -1, r"state\['step'\] must be >= 0, got -1"),
    ("references", 5, r"state\['references'\] must be a dict, got 5"),
    ("disabled", None, r"state\['disabled'\] must be a list of strings, got None"),
    ("disabled", [5], r"state\['disabled'\]\[0\] must be a string, got 5"),
    ("budget", 3, r"state\['budget'\] must be a dict, got 3"),
    ("budget", {}, "the budget of a Monitor's state, got one without"),
    ("halved", 5, r"state\['halved'\] must be a list of strings"),
    ("checked", "no", r"state\['checked'\] must be True or False"),
    ("vitals", "x", r"state\['vitals'\] must be JSON, got 'x'"),
    ("vitals", "[3]", r"what state\['vitals'\] holds must be a dict"),
    ("skipped", {"curvature": -1}, r"state\['skipped'\]\['curvature'\] must be >= 0"),
    ("shapes", {"weight": "ab"}, r"state\['shapes'\]\['weight'\] must be a list"),
]


@pytest.mark.parametrize(("key", "value", "message"), GARBAGE)
def test_garbage_in_a_state_leaves_the_monitor_as_it_was(
    key: str, value: Any, message: str
) -> None:
    with attached() as monitor:
        monitor.count_from(7)
        before = copy.deepcopy(monitor.state_dict())
        with pytest.raises((KeyError, TypeError, ValueError), match=message):
            monitor.load_state_dict({**state(), "step": 99, key: value})
        assert monitor.state_dict() == before
        monitor.load_state_dict({**state(), "step": 99})
        assert monitor.state_dict() != before


def test_a_budget_with_garbage_leaves_the_monitor_as_it_was() -> None:
    with attached() as monitor:
        given = state()
        given["budget"]["costs"] = {"curvature": "dear"}
        before = copy.deepcopy(monitor.state_dict())
        with pytest.raises(TypeError, match=r"\['costs'\]\['curvature'\] must be a number"):
            monitor.load_state_dict({**given, "step": 99})
        assert monitor.state_dict() == before


def test_a_state_of_an_older_version_is_taken_without_what_it_lacks() -> None:
    old = {k: state()[k] for k in ("step", "references", "disabled", "budget")}
    old["budget"].pop("setup")
    with attached() as monitor:
        monitor.load_state_dict({**old, "step": 12, "of a later version": object()})
        assert monitor.step == 12
