"""Criterions called on what was made of the output: replayed exactly, or refused with the line."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.record.record import Record
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry import Equivariance, Sign
from eqtoolbox.symmetry.actions.scaling import Parity
from eqtoolbox.watch.capture.between import Between, NotFollowed

CLASSES = 5


@dataclass
class Answer:
    hidden: Tensor
    logits: Tensor


class Model(nn.Module):
    """Two layers whose output is wrapped by `wrap(hidden, logits)`."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any], width: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.wrap = nn.Linear(4, 6), nn.Linear(6, width), wrap

    def forward(self, x: Tensor) -> Any:
        hidden = self.one(x).tanh()
        return self.wrap(hidden, self.two(hidden))


def trained(
    model: nn.Module, criterion: nn.Module, call: Callable[..., Tensor], x: Any, **options: Any
) -> tuple[list[Record], Tensor]:
    """Records of one step, and the gradient that the loop made."""
    optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.1), MemorySink()
    claim = Equivariance(Sign(), Parity(), Parity(), name="odd")
    probes = [Curvature(k=1), EquivarianceError(symmetries=(claim,))]
    with eq.attach(
        model, optimizer, criterion=criterion, probes=probes, schedule=1, budget=None,
        sinks=[sink], on_error="raise", **options,
    ):  # fmt: skip
        call(criterion, model, x).backward()
        optimizer.step()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return sink.records, torch.cat([torch.zeros(1), *grads])


def number(records: list[Record], name: str) -> float:
    (record,) = [r for r in records if r.name == name]
    assert record.status == "ok", record.note
    return record.value


LOGITS = lambda hidden, logits: logits
BATCH = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(12) % CLASSES
REAL = torch.linspace(-1, 1, 12)
PRIOR = torch.linspace(0.1, 0.4, CLASSES).log()
CE, MSE, BCE = nn.CrossEntropyLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss()

USUAL: dict[str, tuple[nn.Module, nn.Module, Callable[..., Tensor], Tensor]] = {
    "squeeze": (Model(LOGITS, 1), MSE, lambda c, m, x: c(m(x).squeeze(1), REAL), BATCH),
    "squeeze all": (Model(LOGITS, 1), MSE, lambda c, m, x: c(m(x).squeeze(), REAL), BATCH),
    "column": (Model(LOGITS, 2), MSE, lambda c, m, x: c(m(x)[:, 0], REAL), BATCH),
    "last column": (Model(LOGITS, 2), MSE, lambda c, m, x: c(m(x)[..., -1], REAL), BATCH),
    "flatten": (
        Model(LOGITS, 1), BCE, lambda c, m, x: c(m(x).flatten(), (REAL > 0).float()), BATCH,
    ),
    "first of a tuple": (
        Model(lambda h, z: (z, h)), CE, lambda c, m, x: c(m(x)[0], Y), BATCH,
    ),
    "key": (Model(lambda h, z: {"h": h, "out": z}), CE, lambda c, m, x: c(m(x)["out"], Y), BATCH),
    "attribute": (Model(Answer), CE, lambda c, m, x: c(m(x).logits, Y), BATCH),
    "attribute of no container": (
        Model(lambda h, z: SimpleNamespace(logits=z)), CE, lambda c, m, x: c(m(x).logits, Y), BATCH,
    ),
    "tokens": (
        Model(Answer), CE, lambda c, m, x: c(m(x).logits.view(-1, CLASSES), Y.view(-1)), TOKENS,
    ),
    "shifted tokens": (
        Model(Answer), CE,
        lambda c, m, x: c(
            m(x).logits[:, :-1].contiguous().view(-1, CLASSES), Y.view(3, 4)[:, 1:].reshape(-1)
        ), TOKENS,
    ),
    "transposed": (
        Model(LOGITS), CE, lambda c, m, x: c(m(x).transpose(1, 2), Y.view(3, 4)), TOKENS,
    ),
    "permuted": (
        Model(LOGITS), CE, lambda c, m, x: c(m(x).permute(0, 2, 1), Y.view(3, 4)), TOKENS,
    ),
    "keyword": (
        Model(LOGITS, 1), MSE, lambda c, m, x: c(input=m(x).squeeze(1), target=REAL), BATCH,
    ),
    "target first": (Model(LOGITS, 1), MSE, lambda c, m, x: c(REAL, m(x).squeeze(1)), BATCH),
    "log softmax": (
        Model(LOGITS), nn.NLLLoss(), lambda c, m, x: c(F.log_softmax(m(x), dim=-1), Y), BATCH,
    ),
    "doubled": (
        Model(LOGITS, 1), MSE, lambda c, m, x: c(m(x).double()[:, 0], REAL.double()), BATCH,
    ),
    "mean over tokens": (Model(LOGITS), CE, lambda c, m, x: c(m(x).mean(1), Y[:3]), TOKENS),
    "masked": (Model(LOGITS), CE, lambda c, m, x: c(m(x)[Y > 0], Y[Y > 0]), BATCH),
    "two parts": (
        Model(lambda h, z: (z, h)), nn.CosineEmbeddingLoss(),
        lambda c, m, x: (lambda z, h: c(z, h[:, :CLASSES], torch.ones(12)))(*m(x)), BATCH,
    ),
    "temperature": (Model(LOGITS), CE, lambda c, m, x: c(m(x) / 2.5, Y), BATCH),
    "scaled and shifted": (Model(LOGITS), CE, lambda c, m, x: c((m(x) + PRIOR) * 3, Y), BATCH),
    "shifted by rows": (
        Model(LOGITS, 4), MSE, lambda c, m, x: c(m(x) - BATCH, torch.zeros(12, 4)), BATCH,
    ),
    "from above": (Model(LOGITS), CE, lambda c, m, x: c(1.5 - m(x), Y), BATCH),
    "clamped": (Model(LOGITS), CE, lambda c, m, x: c(-m(x).clamp(-0.3, 0.2), Y), BATCH),
    "gathered": (
        Model(LOGITS), MSE, lambda c, m, x: c(m(x).gather(1, Y[:, None]).squeeze(1), REAL), BATCH,
    ),
    "normalised": (
        Model(LOGITS, 4), MSE, lambda c, m, x: c(F.normalize(m(x), dim=1), BATCH), BATCH,
    ),
    "projected": (Model(LOGITS, 4), CE, lambda c, m, x: c(m(x) @ BATCH[:5].T, Y), BATCH),
    "similarities of two parts": (
        Model(lambda h, z: (z, h)), CE,
        lambda c, m, x: (lambda z, h: c(z @ h[:, :CLASSES].t() / 0.5, torch.arange(12)))(*m(x)),
        BATCH,
    ),
    "chunk": (Model(LOGITS, 4), MSE, lambda c, m, x: c(m(x).chunk(2, -1)[1], BATCH[:, :2]), BATCH),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:eqtoolbox. the claim:RuntimeWarning")  # of dicts
@pytest.mark.parametrize("name", USUAL)
def test_usual_calls_are_replayed_exactly(name: str) -> None:
    model, criterion, call, x = USUAL[name]
    records, gradient = trained(model, criterion, call, x)
    assert number(records, "monitor/closure_grad_cos") == pytest.approx(1.0, abs=1e-6)
    assert number(records, "monitor/closure_grad_ratio") == pytest.approx(1.0, abs=1e-5)
    assert gradient.norm() > 0
    sharp = number(records, "curvature/sharpness")
    params = {
        n: p.detach() for n, p in Model(model.wrap, model.two.out_features).named_parameters()
    }

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in params.values()])
        given = {n: v.view(p.shape) for (n, p), v in zip(params.items(), parts, strict=True)}
        return call(criterion, lambda x: torch.func.functional_call(model, given, (x,)), x)

    dense = torch.func.hessian(loss)(torch.cat([p.flatten() for p in params.values()]))
    assert sharp == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=0.02)


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda c, m, x: c(F.elu(m(x)), Y), "after Elu"),
        (lambda c, m, x: c((m(x) + PRIOR).softmax(1), Y), "after Add"),  # read off no result
        (lambda c, m, x: c(m(x) * m.one.weight.sum(), Y), "after Mul"),
        (lambda c, m, x: c(m(x).mul_(2), Y), "after writing into it"),
        (lambda c, m, x: c(F.relu_(m(x)), Y), "after writing into it"),
        (lambda c, m, x: c(torch.cat([m(x)[:6], m(x)[6:]]), Y), "not called"),
        (lambda c, m, x: c(torch.cat([(z := m(x))[:6], z[6:]]), Y), "after Cat"),
        (lambda c, m, x: c(m(x).detach().requires_grad_(), Y), "own output: give"),
    ],
)
@pytest.mark.filterwarnings("ignore:eqtoolbox:RuntimeWarning")
def test_what_cannot_be_done_again_is_refused_with_the_line_to_paste(
    call: Callable[..., Tensor], why: str
) -> None:
    records, _ = trained(Model(LOGITS), CE, call, BATCH)
    (record,) = [r for r in records if r.name == "curvature/sharpness"]
    assert record.status == "not_applicable"
    assert why in record.note
    assert "monitor.loss(lambda model, x, y: criterion(output(model(x)), y))" in record.note


def test_rows_that_a_loop_adds_fit_no_part_of_the_batch() -> None:
    output = nn.Linear(3, 4)(torch.randn(5, 3))
    by_rows, alike = torch.randn(5, 4), torch.randn(4)
    way = Between.of(output, output + by_rows)
    assert way is not None
    assert torch.allclose(way(output), output + by_rows)
    with pytest.raises(ValueError, match="5 rows of its own, got 1 rows"):
        way(torch.randn(1, 4))
    way = Between.of(output, (output + alike) / 2)
    assert way is not None
    assert torch.allclose(way(torch.zeros(1, 4)), alike / 2, atol=1e-6)


def test_a_probe_batch_goes_the_way_of_the_loop() -> None:
    """Not criterion(model(x), y): (batch, 1) against (batch,) would be broadcast."""
    model, criterion, call, x = USUAL["squeeze"]
    other = torch.randn(7, 4), torch.randn(7)
    records, _ = trained(model, criterion, call, x, probe_batch=other)
    assert number(records, "curvature/sharpness") > 0
    model = Model(Answer)
    tokens = torch.randn(2, 4, 4), torch.randint(0, CLASSES, (2, 4))
    records, _ = trained(model, CE, USUAL["tokens"][2], TOKENS, probe_batch=tokens)
    assert number(records, "curvature/sharpness") > 0


def test_a_way_is_found_only_where_it_leads_to_the_output_and_gives_the_same() -> None:
    output = nn.Linear(3, 4)(torch.randn(5, 3))
    assert Between.of(output, torch.randn(5, 4, requires_grad=True) * 2) is None
    assert Between.of(output, output) == Between((), ())
    way = Between.of((1.0, output), output.T[1:3].unsqueeze(0).float())
    assert way is not None and way.path == (1,)
    other = torch.randn(5, 4)
    assert torch.equal(way((1.0, other)), other.T[1:3].unsqueeze(0))
    with pytest.raises(NotFollowed, match="Elu"):
        Between.of(output, F.elu(output))
    far = output
    for _ in range(17):
        far = far.tanh()
    with pytest.raises(NotFollowed, match="more than 16 operations"):
        Between.of(output, far)
