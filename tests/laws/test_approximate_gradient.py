"""The training gradient of an approximate symmetry: what its epsilon may leave is no verdict."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.epsilon import predictions, pull, rates
from eqtoolbox.probes.noether import Noether
from eqtoolbox.record.record import Record
from eqtoolbox.replay.isolation import RandomState
from eqtoolbox.replay.objective import Objective
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.watch.probe import Probe
from eqtoolbox.weights.discovery import find_symmetries

LAW = "conservation/first_order/scale"


def trained(
    eps: float,
    decay: float = 0.0,
    penalty: float = 0.0,
    lr: float = 0.05,
    beside: tuple[Probe, ...] = (),
    gains: bool = False,
    steps: int = 60,
) -> tuple[list[Record], float]:
    """First-order law of the scales at every step, with the shrinking of |w|^2."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(16, eps=eps)
    model = nn.Sequential(nn.Linear(8, 16), norm, nn.ReLU(), nn.Linear(16, 3))
    if gains:  # which what the next normalisation is given shrinks by
        model = nn.Sequential(
            *model[:3], nn.Linear(16, 16), nn.BatchNorm1d(16, eps=eps), *model[2:]
        )
    x, w = torch.randn(64, 8), model[0].weight
    y, before = (x @ torch.randn(8, 3)).argmax(1), float(w.detach().square().sum())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=decay)
    sink = MemorySink()
    with eq.attach(
        model, optimizer, probes=[Conservation(), *beside], budget=None, sinks=[sink],
        on_error="raise",
    ) as monitor:  # fmt: skip
        loss = monitor.loss(lambda m, b: F.cross_entropy(m(b[0]), b[1]))
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model, (x, y)).backward()
            w.grad.add_(w.detach(), alpha=penalty)
            optimizer.step()
    return [r for r in sink.records if r.name == LAW], before / float(w.detach().square().sum())


def test_a_slope_that_grows_as_weights_shrink_is_no_violation() -> None:
    laws, shrunk = trained(1e-5, decay=0.5)
    assert shrunk > 10 and laws[-1].value > 10 * laws[0].value > 30 * laws[0].floor
    assert {r.verdict for r in laws} == {"unresolved"}
    assert all("noether/epsilon tells" in r.note for r in laws)


@pytest.mark.filterwarnings("ignore:eqtoolbox. the replayed loss:RuntimeWarning")
def test_a_penalty_within_what_epsilon_may_leave_is_undecided_and_a_larger_one_a_violation() -> (
    None
):
    hidden, _ = trained(1e-2, penalty=1e-3)
    assert {r.verdict for r in hidden} == {"unresolved"}
    shown, _ = trained(1e-5, penalty=1e-2)
    assert {r.verdict for r in shown} == {"violated"} and not any(r.note for r in shown)


@pytest.mark.filterwarnings("ignore:eqtoolbox. the replayed loss:RuntimeWarning")
@pytest.mark.parametrize(
    ("eps", "penalty", "said"),
    [(1e-3, 1e-2, "violated"), (1e-4, 1e-2, "violated"), (1e-3, 1e-3, "unresolved")],
)
def test_the_allowance_of_an_epsilon_is_about_its_size(eps: float, penalty: float, said) -> None:
    """What the penalty adds is 14, 135 and 1.4 times what is allowed; the verdict turns at 10."""
    laws, _ = trained(eps, penalty=penalty)
    assert {r.verdict for r in laws} == {said}


def test_an_approximate_law_within_rounding_holds() -> None:
    laws, _ = trained(1e-12)
    assert {r.verdict for r in laws} == {"holds"} and not any(r.note for r in laws)


def test_gains_that_shrink_make_no_violation_of_the_weights_that_follow_them() -> None:
    laws, _ = trained(1e-5, decay=0.5, gains=True)
    assert laws[-1].value > 30 * laws[0].value
    assert "violated" not in {r.verdict for r in laws}


def test_epsilon_predicts_the_slope_of_the_training_gradient_and_nothing_else_is_left() -> None:
    """Beside noether, which finds the prediction: one number has one verdict."""
    laws, shrunk = trained(1e-2, decay=0.5, beside=(Noether(),))
    assert shrunk > 10 and min(r.value for r in laws) > 1000 * laws[0].floor
    assert {r.verdict for r in laws} == {"holds"}
    assert all("the epsilon of normalisations predicts" in r.note for r in laws)


@pytest.mark.filterwarnings("ignore:eqtoolbox. the replayed loss:RuntimeWarning")
def test_a_penalty_that_epsilon_would_hide_is_found_beside_its_prediction() -> None:
    """The must-fail twin: the same slopes, a thousandth of |w|^2 added to the gradient."""
    found, _ = trained(1e-2, penalty=1e-3, beside=(Noether(),), steps=20)
    assert {r.verdict for r in found} == {"violated"}


def test_the_pull_of_epsilons_gives_every_generator_its_prediction() -> None:
    """<K, q> = p, of weights whose outputs a later normalisation sees as well."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8, eps=1e-2), nn.ReLU(), nn.Linear(8, 7),
        nn.LayerNorm(7, eps=1e-2), nn.Tanh(), nn.Linear(7, 3),
    ).double()  # fmt: skip
    batch = torch.randn(32, 6).double(), torch.randint(0, 3, (32,))
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1])
    objective = Objective(
        model=model,
        loss_fn=loss,
        batch=batch,
        random=RandomState(),
        buffers=dict(model.named_buffers()),
    )
    params = {n: p.detach() for n, p in model.named_parameters()}
    found = find_symmetries(
        objective.loss, params, run=objective.output_and_loss, dtype=torch.float64
    )
    scales = [s for s in found if s.family == "scale"]
    rng = torch.Generator().manual_seed(1)
    drawn = [torch.randn(s.dimension, generator=rng, dtype=torch.float64) for s in scales]
    families, elements = {"scale": scales}, {"scale": drawn}
    slopes: list[list[Tensor]] = []
    along_rates = rates(objective, params, families, elements)
    p = predictions(objective, params, along_rates, slopes)["scale"].value
    q = pull(objective, params, slopes)
    along = sum(
        float((part * q[name]).sum())
        for s, c in zip(scales, drawn, strict=True)
        for name, part in s.tangent(params, c).items()
    )
    assert abs(p) > 1e-4 and along == pytest.approx(p, rel=1e-9)
