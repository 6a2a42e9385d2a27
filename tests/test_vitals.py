"""Vital signs: what a due step holds, in numbers that a hand could work out."""

import copy
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import eqtoolbox as eq
from eqtoolbox.replay.thread.scope import unobserved
from eqtoolbox.report.topics.health import vital_panels
from eqtoolbox.watch.snapshot import Snapshot
from eqtoolbox.watch.vitals.attention import Attention
from eqtoolbox.watch.vitals.evaluation import listen
from eqtoolbox.watch.vitals.hearing import MOST, Hearing, thinned
from eqtoolbox.watch.vitals.inputs import Inputs
from eqtoolbox.watch.vitals.sameness import are_alike
from eqtoolbox.watch.vitals.tally import Labels
from eqtoolbox.watch.vitals.targets import Targets

PROBES = {"curvature": {"k": 1}}


def trained(home: Path, steps: int = 12, **model: nn.Module) -> eq.Run:
    """Regression of random numbers with a held-out loss after every second step."""
    torch.manual_seed(0)
    net = model.get("net") or nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    with eq.attach(net, optimizer, run_dir=home, budget=None, schedule=4, probes=PROBES) as monitor:

        @monitor.loss
        def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return F.mse_loss(model(batch[0]), batch[1])

        for step in range(steps):
            loss(net, (x, y)).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 2:
                with torch.no_grad():
                    loss(net, (x[:16], y[:16]))
    return eq.Run(home)


def test_every_loss_is_heard_and_held_out_ones_apart(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    told = [row.facts["losses"] for row in run.records("vital/losses")]
    assert [len(losses) for losses in told] == [1, 4, 4, 3]  # at steps 0, 4 and 8, and the rest
    assert told[1][-1] == pytest.approx(run.records("training/loss")[1].value)
    assert [len(r.facts["losses"]) for r in run.records("vital/held_out")] == [2, 2, 2]


class OwnLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": F.mse_loss(self.net(x), y)}


@pytest.mark.parametrize("way", ["criterion", "own", "begin"])
def test_losses_of_every_way_are_heard_at_all_steps(tmp_path: Path, way: str) -> None:
    torch.manual_seed(0)
    net: nn.Module = OwnLoss() if way == "own" else nn.Linear(4, 1)
    criterion = nn.MSELoss()
    x, y, losses = torch.randn(32, 4), torch.randn(32, 1), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    options = {"criterion": criterion} if way == "criterion" else {}
    monitor = eq.attach(
        net, optimizer, run_dir=tmp_path / "run", budget=None, schedule=4, probes=PROBES, **options
    )
    for _ in range(10):
        if way == "begin":
            monitor.begin(lambda model, pair: criterion(model(pair[0]), pair[1]), (x, y))
        loss = net(x, y)["loss"] if way == "own" else criterion(net(x), y)
        if way == "begin":
            monitor.end(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    monitor.close()
    criterion(net(x), y) if way != "own" else net(x, y)
    told = [row.facts["losses"] for row in eq.Run(tmp_path / "run").records("vital/losses")]
    assert [len(part) for part in told] == [1, 4, 4, 1]
    assert [x for part in told for x in part] == pytest.approx(losses)
    assert not any(m._forward_hooks for m in (*net.modules(), criterion))


def test_the_numbers_of_a_step_are_those_of_its_parameters(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    weights = [net[0].weight.detach().clone(), net[2].weight.detach().clone()]
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    loss = F.mse_loss(net(x), y)
    slopes = torch.autograd.grad(loss, [*net.parameters()])
    run = trained(tmp_path / "run")
    first = {n: run.records(f"vital/{n}")[0] for n in ("gradient_norm", "update_ratio")}
    length = math.sqrt(sum(float(g.square().sum()) for g in slopes))
    assert first["gradient_norm"].value == pytest.approx(length, rel=1e-5)
    assert run.records("vital/update_norm")[0].value == pytest.approx(0.1 * length, rel=1e-4)
    ratios = [0.1 * float(slopes[2 * k].norm() / w.norm()) for k, w in enumerate(weights)]
    assert first["update_ratio"].facts["least"] == pytest.approx(min(ratios), rel=1e-4)
    assert first["update_ratio"].facts["most"] == pytest.approx(max(ratios), rel=1e-4)
    one, two = (
        torch.cat([g.flatten() for g in torch.autograd.grad(part, [*net.parameters()])])
        for part in (F.mse_loss(net(x[:16]), y[:16]), F.mse_loss(net(x[16:]), y[16:]))
    )
    cosine = float(F.cosine_similarity(one, two, dim=0))
    assert run.records("vital/halves")[0].value == pytest.approx(cosine, abs=1e-5)
    assert run.records("vital/own_batch")[0].value < 0
    assert run.records("vital/constant_loss")[0].value == pytest.approx(float(y.var()), rel=1e-5)


@pytest.mark.parametrize("heavy", [None, 3.0], ids=["alike", "weighted"])
@pytest.mark.parametrize("shape", [(64,), (64, 3), (4, 2, 8, 8)], ids=len)
def test_the_best_constant_of_binary_targets_is_that_of_each_channel(
    shape: tuple[int, ...], heavy: float | None
) -> None:
    """Pixels are pooled: a few samples would fit a constant each."""
    target = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.2).double()
    heaviness = None if heavy is None else torch.tensor(heavy, dtype=torch.float64)
    size = [1, shape[1], *[1] * (len(shape) - 2)] if len(shape) > 1 else [1]
    logit = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    value = lambda x: F.binary_cross_entropy_with_logits(
        x.expand(shape), target, pos_weight=heaviness
    )
    for _ in range(400):  # Newton's method would need a Hessian
        (slope,) = torch.autograd.grad(value(logit), logit)
        logit = (logit - 2.0 * logit.numel() * slope).detach().requires_grad_()
    heard, least = Targets(), value(logit).detach()
    given = {"self": logit, "target": target, "pos_weight": heaviness}
    heard.note("binary_cross_entropy_with_logits", given, least)
    assert heard.of(float(least)) == pytest.approx(float(least), rel=1e-6)


COUNT = 4000  # samples: so many that best constants in and out of the batch agree
DRAW = torch.Generator().manual_seed(0)
CLASSES = torch.multinomial(torch.tensor([0.8, 0.15, 0.05]), COUNT, True, generator=DRAW)
HIDDEN = torch.where(torch.rand(COUNT, generator=DRAW) < 0.85, -100, CLASSES)
BITS = (torch.rand(COUNT, 2, generator=DRAW) < torch.tensor([0.1, 0.4])).double()
REALS = torch.randn(COUNT, 2, generator=DRAW).double() ** 3
HEAVY = torch.rand(COUNT, 2, generator=DRAW).double() * (1 + 3 * BITS)
OF_CLASS = torch.tensor([0.4, 2.0, 7.0]).double()
PIXELS = CLASSES.reshape(40, 10, 10)
LOSSES = {
    "classes": (F.cross_entropy, CLASSES, {}),
    "hidden classes": (F.cross_entropy, HIDDEN, {}),
    "hidden by a class": (F.cross_entropy, CLASSES, {"ignore_index": 0}),
    "weighted classes": (F.cross_entropy, CLASSES, {"weight": OF_CLASS}),
    "hidden weighted classes": (F.cross_entropy, HIDDEN, {"weight": OF_CLASS}),
    "pixels": (F.cross_entropy, PIXELS, {"weight": OF_CLASS}),
    "squares": (F.mse_loss, REALS, {}),
    "smooth distances": (F.smooth_l1_loss, REALS, {"beta": 0.3}),
    "huber": (F.huber_loss, REALS, {"delta": 2.0}),
    "bits": (F.binary_cross_entropy_with_logits, BITS, {}),
    "weighted ones": (F.binary_cross_entropy_with_logits, BITS, {"pos_weight": OF_CLASS[:2]}),
    "weighted bits": (F.binary_cross_entropy_with_logits, BITS, {"weight": HEAVY}),
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", LOSSES)
def test_the_best_constant_is_the_least_of_this_very_loss(kind: str, reduction: str) -> None:
    loss, target, options = LOSSES[kind]
    width = 3 if loss is F.cross_entropy else 2
    free = torch.zeros([1, width, *[1] * (target.dim() - 1 if width == 3 else 0)]).double()
    shape = [len(target), width, *target.shape[1 if width == 3 else 2 :]]
    value = lambda: loss(free.expand(shape), target, reduction=reduction, **options)
    search = torch.optim.LBFGS([free.requires_grad_()], max_iter=200, line_search_fn="strong_wolfe")

    def slope() -> torch.Tensor:
        search.zero_grad()
        least = value() / (COUNT if reduction == "sum" else 1)
        least.backward()
        return least

    search.step(slope)
    least = float(value().detach())
    with torch.no_grad():
        assert listen(value, {}).targets.of(least) == pytest.approx(least, rel=6e-3)


def test_of_a_loss_of_which_nothing_counts_no_constant_is_known() -> None:
    nothing = torch.full((4,), -100)
    for reduction in ("mean", "sum"):
        value = lambda how=reduction: F.cross_entropy(torch.zeros(4, 3), nothing, reduction=how)
        assert listen(value, {}).targets.of(0.0) is None
    smooth = lambda: F.cross_entropy(
        3 * F.one_hot(CLASSES, 3).double(), CLASSES, label_smoothing=0.3
    )
    assert listen(smooth, {}).targets.of(float(smooth())) is None


KINDS = {
    "uniform": (torch.ones(300), 300),
    "words": (1 / torch.arange(1.0, 2001.0), 1200),
    "well seen": (torch.tensor([0.8, 0.15, 0.05]), 400),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_entropy_of_classes_is_known_from_few_labels(kind: str) -> None:
    often, count = KINDS[kind]
    share = (often / often.sum()).double()
    draw = torch.Generator().manual_seed(0)
    found = [Labels(torch.multinomial(share, count, True, generator=draw)) for _ in range(9)]
    middle = statistics.median(labels.entropy() for labels in found)
    assert middle == pytest.approx(float(torch.special.entr(share).sum()), rel=0.04)


@pytest.mark.parametrize("weighted", [False, True])
def test_rare_classes_are_counted_over_batches(weighted: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, weight = nn.Linear(4, 200), torch.full((200,), 3.0) if weighted else None
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    how = {"run_dir": tmp_path, "budget": None, "schedule": 2, "probes": PROBES}
    with eq.attach(net, optimizer, **how) as monitor:
        loss = monitor.loss(lambda model, b: F.cross_entropy(model(b[0]), b[1], weight=weight))
        for _ in range(50):
            loss(net, (torch.randn(16, 4), torch.randint(0, 200, (16,)))).backward()
            optimizer.step()
            optimizer.zero_grad()
        kept = json.loads(monitor.state_dict()["vitals"])["labels"]
    rows = eq.Run(tmp_path).records("vital/constant_loss")
    assert rows[0].facts["once"] > 0.8 and sum(kept) == 16 * len(rows)
    assert rows[-1].facts["once"] < 1 / 3
    assert rows[-1].value == pytest.approx(math.log(200), rel=0.03)


def test_labels_of_pairs_within_a_batch_are_known_exactly() -> None:
    pairs = lambda: F.cross_entropy(torch.zeros(64, 64), torch.arange(64).flip(0))
    assert listen(pairs, {}).targets.of(math.log(64)) == pytest.approx(math.log(64), rel=1e-9)
    many = listen(lambda: F.cross_entropy(torch.zeros(64, 300), torch.arange(64)), {}).targets
    assert many.labels is not None and many.labels.once == 1


def test_labels_of_one_class_are_no_guess_of_which_anything_is_above() -> None:
    """As of one positive beside many negatives, each of which has a column (MoCo)."""
    assert Labels(torch.zeros(64, dtype=torch.int64)).entropy() == 0.0
    assert Labels(torch.tensor([0] * 63 + [1])).entropy() > 0.05


def test_a_batch_that_has_all_classes_is_not_judged_by_others() -> None:
    """In sorted data each batch has few classes, which a constant output may follow."""
    others = Labels(torch.arange(300).repeat(20))
    sorted_batch = lambda: F.cross_entropy(torch.zeros(32, 300), torch.arange(32) % 2)
    heard = listen(sorted_batch, {}).targets
    assert heard.of(heard.value, others) == pytest.approx(math.log(2), rel=0.05)


def test_no_copy_of_the_update_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Snapshot) -> None:
        raise AssertionError("the update as a whole")

    monkeypatch.setattr(Snapshot, "update", property(refused))
    monkeypatch.setitem(globals(), "PROBES", {"tracking": {}})
    run = trained(tmp_path / "run")
    assert len(run.records("vital/update_ratio")) == 3
    assert not [e for e in run.events if e["kind"] == "error"]


def test_of_many_losses_few_are_told_and_the_one_that_stands_out_is_kept() -> None:
    hearing = Hearing()
    for step in range(1000):
        hearing.heard(torch.tensor(50.0 if step == 700 else 1.0))
    told = hearing.told(held_out=False)
    assert len(told) == MOST and max(told) == 50.0 and sorted(told)[-2] == 1.0
    assert hearing.told(held_out=False) == []


def test_a_loss_that_is_nan_is_told() -> None:
    assert thinned(torch.tensor([1.0] * 50 + [math.nan] * 50)).isnan().sum() >= MOST // 2 - 1


def test_what_is_no_scalar_is_not_heard() -> None:
    hearing = Hearing()
    for thing in (None, 3.0, torch.ones(2)):
        hearing.heard(thing)
    assert hearing.told(held_out=False) == []


def elsewhere(kind: str, loss: nn.Module) -> None:
    """Evaluate a loss where it has no number of its own."""
    one = torch.ones(3)
    if kind == "vmap":
        torch.func.vmap(loss)(one.expand(5, 3), torch.zeros(5, 3))
    elif kind == "vmap of grad":
        torch.func.vmap(torch.func.grad(loss))(one.expand(5, 3), torch.zeros(5, 3))
    elif kind == "fake":
        with FakeTensorMode():
            loss(torch.ones(3), torch.ones(3))
    elif kind == "meta":
        loss(one.to("meta"), one.to("meta"))
    else:
        loss(one * 1j, one)


class Squares(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).square().mean()


@pytest.mark.parametrize("way", ["criterion", "decorated"])
@pytest.mark.parametrize("kind", ["vmap", "vmap of grad", "fake", "meta", "complex"])
def test_a_loss_without_a_number_of_its_own_costs_no_other_number(
    tmp_path: Path, kind: str, way: str
) -> None:
    net, criterion = nn.Linear(4, 1), Squares()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    monitor = eq.attach(
        net, optimizer, criterion=criterion if way == "criterion" else None,
        run_dir=tmp_path / "run", budget=None, schedule=4, probes=PROBES,
    )  # fmt: skip
    other, losses = criterion, []
    if way == "decorated":
        other = monitor.loss(lambda x, y: criterion(x, y))
        training = monitor.loss(lambda model, x, y: criterion(model(x), y))
    for _ in range(6):
        optimizer.zero_grad()
        x, y = torch.randn(8, 4), torch.randn(8, 1)
        loss = criterion(net(x), y) if way == "criterion" else training(net, x, y)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        for _ in range(50):
            elsewhere(kind, other)
    monitor.close()
    run = eq.Run(tmp_path / "run")
    told = [x for row in run.records("vital/losses") for x in row.facts["losses"]]
    assert told == losses and len(run.records("curvature/sharpness")) == 2
    assert not [e for e in run.events if e["kind"] == "error"]


def test_what_the_loop_writes_into_its_loss_is_not_heard() -> None:
    hearing, large = Hearing(), torch.arange(4.0)
    for loss in (torch.tensor(3.0), large[1]):
        hearing.heard(loss)
        loss /= 10
    assert hearing.told(held_out=False) == [3.0, 1.0]


def test_losses_of_other_types_are_heard_as_numbers() -> None:
    hearing = Hearing()
    for value in (1.5, 2):
        hearing.heard(torch.tensor(value))

    def inside(x: torch.Tensor) -> torch.Tensor:
        with unobserved():
            hearing.heard(x)
        return x

    torch.func.grad(inside)(torch.tensor(8.0))
    assert hearing.told(held_out=False) == [1.5, 2.0, 8.0]


@pytest.mark.parametrize(("scale", "entropy"), [(0.0, 1.0), (1e4, 0.0)])
def test_attention_of_equal_keys_is_uniform_and_of_huge_ones_one_hot(
    scale: float, entropy: float
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 8, 4) for _ in range(3))
    fused = listen(lambda: F.scaled_dot_product_attention(scale * q, k, v, is_causal=True), {})
    assert fused.attention.entropy == pytest.approx(entropy, abs=1e-3)
    plain = listen(lambda: (scale * q @ k.mT).softmax(-1) @ v, {})
    assert plain.attention.entropy == pytest.approx(entropy, abs=1e-3)


def test_a_softmax_of_scores_that_are_no_product_of_two_inputs_is_no_attention() -> None:
    torch.manual_seed(0)
    x, gate, experts = torch.randn(8, 6), torch.randn(4, 6), torch.randn(8, 4, 3)
    mixed = listen(lambda: F.linear(x, gate).softmax(-1)[:, None] @ experts, {"gate.weight": gate})
    assert not mixed.attention.calls
    attended = torch.randn(2, 5, 6)
    scores = lambda q: (q @ attended.mT / 2).masked_fill(torch.ones(5, 5).triu(1) > 0, -1e9)
    query = torch.randn(6, 6)
    found = listen(
        lambda: scores(F.linear(attended, query)).softmax(-1) @ attended, {"q.weight": query}
    )
    assert found.attention.calls == 1


def test_hidden_keys_do_not_count() -> None:
    attention = Attention()
    weights = torch.tensor([[[0.5, 0.5, 0.0, 0.0]]])
    attention.weights(weights, weights > 0)
    assert attention.entropy == pytest.approx(1.0)


def test_units_that_give_nothing_are_seen_behind_products_and_convolutions() -> None:
    w, kernel = torch.ones(3, 2), torch.ones(2, 1, 3, 3)
    w[1], kernel[0] = -1, -1
    x, image = torch.ones(4, 2), torch.ones(4, 1, 5, 5)
    assert listen(lambda: F.relu(F.linear(x, w)), {"w": w}).silent["w"].tolist() == [
        False, True, False
    ]  # fmt: skip
    heard = listen(lambda: F.relu(F.conv2d(image, kernel)), {"k.weight": kernel})
    assert heard.silent["k"].tolist() == [True, False]
    clamped = listen(lambda: F.linear(x, w).clamp_min(1e-12), {"w": w})
    assert clamped.silent == {}


class OwnHinge(nn.Module):
    """A model that gives out its own loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(-100 - self.net(x)).mean()


def test_units_are_those_of_the_model_and_not_what_its_loss_rectifies() -> None:
    torch.manual_seed(0)
    x, critic = torch.randn(64, 3), nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU())
    nn.init.constant_(net[2].bias, -100.0)  # dead is what it gives out
    params = dict(net.named_parameters())
    met = lambda f: F.relu(-1e3 - f)  # a margin that every sample keeps
    head = dict(critic.named_parameters(prefix="head"))
    nn.init.constant_(critic[0].bias, -100.0)  # and a layer of the criterion
    losses = {
        "hinge": lambda: met(net(x)).mean(),
        "two calls": lambda: met(net(x)).mean() + met(net(-x)).mean(),
        "another's": lambda: met(critic(net(x))).mean(),
    }
    for name, loss in losses.items():
        silent = listen(loss, params, net).silent
        assert {layer: bool(of.all()) for layer, of in silent.items()} == {"0": False, "2": True}, (
            name
        )
    trained = listen(lambda: met(critic(net(x))).mean(), params | head, net).silent
    assert bool(trained["head.0"].all()) and set(trained) == {"0", "2", "head.0"}
    own = OwnHinge(net[:3])
    assert set(listen(lambda: own(x), dict(own.named_parameters()), own).silent) == {"net.0"}


def test_saturation_of_what_is_given_out_is_told_from_that_of_hidden_layers() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Sigmoid())
    nn.init.constant_(net[2].bias, 100.0)
    heard = listen(lambda: net(torch.zeros(8, 3)), dict(net.named_parameters()), net)
    assert heard.saturated == {"0": 0.0, "2": 1.0} and heard.hidden == {"0": 0.0}


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_are_heard(kind: str) -> None:
    torch.manual_seed(0)
    net = getattr(nn, kind)(4, 4)
    x = torch.randn(5, 3, 4)
    heard = listen(lambda: net(x)[0].mean(), dict(net.named_parameters()))
    assert "weight_hh_l0" in heard.order and heard.scales
    assert all(0 < float(size) < 2 for size in heard.scales.values())


def test_probabilities_are_told_from_logits() -> None:
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert listen(lambda: F.cross_entropy(x.softmax(-1), y), {}).probabilities
    assert not listen(lambda: F.cross_entropy(x, y), {}).probabilities
    assert not listen(lambda: F.cross_entropy(x.log_softmax(-1), y), {}).probabilities
    binary, logit = F.binary_cross_entropy_with_logits, x[:, :1]
    assert listen(lambda: binary(logit.sigmoid()[:, 0], y % 2.0), {}).probabilities == "sigmoid"
    assert not listen(lambda: binary(logit.abs().clamp(max=1)[:, 0], y % 2.0), {}).probabilities
    assert not listen(
        lambda: F.binary_cross_entropy(logit.sigmoid()[:, 0], y % 2.0), {}
    ).probabilities


def test_what_a_step_of_several_micro_batches_did_is_told_of_the_last(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, loss_fn = nn.Linear(4, 1), lambda model, batch: F.mse_loss(model(batch[0]), batch[1])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    batches = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(2)]
    how = {"budget": None, "schedule": 1, "probes": PROBES}
    with eq.attach(net, optimizer, run_dir=tmp_path / "run", **how) as monitor:
        watched = monitor.loss(loss_fn)
        for batch in batches:
            (watched(net, batch) / 2).backward()
        before = [float(loss_fn(net, batch).detach()) for batch in batches]
        optimizer.step()
        after = [float(loss_fn(net, batch).detach()) for batch in batches]
    changes = [b - a for a, b in zip(before, after, strict=True)]
    (row,) = eq.Run(tmp_path / "run").records("vital/own_batch")
    assert row.value == pytest.approx(changes[-1], rel=1e-4)
    assert row.value != pytest.approx(sum(changes) / 2, rel=1e-2)


def test_columns_that_never_vary_have_no_scale() -> None:
    x = torch.randn(50, 3) * torch.tensor([1.0, 0.0, 100.0])
    found = Inputs.of(x)
    assert found is not None and found.constant == 1
    assert 30 < found.ratio < 300
    assert Inputs.of(x[:3]) is None


@pytest.mark.parametrize(
    ("norm", "samples", "counts"),
    [
        (nn.BatchNorm2d(3), 2, [(8, True)]),
        (nn.BatchNorm2d(3).eval(), 2, [(8, False)]),
        (nn.BatchNorm2d(3), 1, [(4, True)]),
        (nn.BatchNorm2d(3, affine=False), 2, [(8, True)]),
        (nn.InstanceNorm2d(3), 2, []),
        (nn.InstanceNorm2d(3, affine=True), 2, []),
        (nn.InstanceNorm2d(3, affine=True, track_running_stats=True), 1, []),
        (nn.GroupNorm(1, 3), 2, []),
    ],
)
def test_statistics_of_a_batch_norm_are_of_samples_and_of_patches(
    norm: nn.Module, samples: int, counts: list[tuple[int, bool]]
) -> None:
    x = torch.randn(samples, 3, 16, 16)
    assert listen(lambda: norm(x), dict(norm.named_parameters())).batch_norms == counts


def test_the_spread_of_outputs_is_told_beside_their_size(tmp_path: Path) -> None:
    net = nn.Linear(4, 1)
    nn.init.constant_(net.bias, 50.0)
    with torch.no_grad():
        torch.manual_seed(0)
        outputs = net(torch.randn(32, 4))  # the data of `trained`, as `net` draws nothing there
    row = trained(tmp_path / "run", net=net).records("vital/output_spread")[0]
    assert row.facts["spread"] == pytest.approx(float(outputs.std()), rel=1e-4)
    assert row.value == pytest.approx(float(outputs.std() / outputs.abs().mean()), rel=1e-4)


class Conditioned(nn.Module):
    """Embeds one context of the whole batch before its input."""

    def __init__(self) -> None:
        super().__init__()
        self.context, self.enter, self.out = nn.Linear(1, 8), nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.context(torch.full((len(x), 1), 0.3))
        return self.out(F.silu(self.enter(x) * scale))


def test_an_input_that_varies_is_found_behind_a_context_that_does_not() -> None:
    torch.manual_seed(0)
    net = Conditioned()
    blind = nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 1))
    for model, x, constant in (
        (net, torch.randn(32, 3), 0),
        (net, torch.ones(32, 3), 1),  # the context is told, and nothing varies behind it
        (blind, torch.ones(32, 3), 3),  # what dropout varies is no input
    ):
        found = listen(lambda m=model, x=x: m(x), dict(model.named_parameters()), model).inputs
        assert found is not None and found.constant == constant
        assert found.columns == (3 if model is blind or not constant else 1)


def test_a_model_in_evaluation_mode_is_told(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    facts = trained(tmp_path / "run", net=net.eval()).records("vital/eval_mode")[-1].facts
    assert facts.flag("root") and facts.texts("named") == ("1",)


def test_the_noise_scale_of_gradients_that_are_the_data_is_their_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Linear(6, 1, bias=False)
    x = torch.randn(4000, 6, dtype=torch.float64).float() * 3 + 1  # tr S = 54, |g|^2 = 6
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    with eq.attach(net, optimizer, run_dir=tmp_path / "run", budget=None, schedule=1) as monitor:
        linear = monitor.loss(lambda model, batch: model(batch).mean())
        for batch in x.split(200):
            linear(net, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    run = eq.Run(tmp_path / "run")
    rows = run.records("vital/noise_scale")
    assert rows[-1].facts["batch"] == 200 and rows[-1].facts["measurements"] == 20
    assert rows[0].stderr is None and all(row.stderr for row in rows[1:])
    last = rows[-1]
    assert abs(last.value - 9.0) < 3 * last.stderr, "tr S / |g|^2 = 54 / 6"
    # by hand: 9 chi^2_6 / 20 gives tr S to 13 %, two means of 100 each |g|^2 to 4 %: 1.22 of 9
    assert last.stderr == pytest.approx(1.22, rel=0.5)  # of 20 measurements: 16 % a sigma
    times, rates = run.series("cost/step_time"), run.series("cost/samples_per_second")
    assert times[1].min() > 0 and list(rates[0]) == list(times[0])
    assert rates[1] == pytest.approx(200 / times[1])


def test_layers_of_a_deep_network_are_told_evenly_and_drawn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [m for _ in range(20) for m in (nn.Linear(8, 8, bias=False), nn.ReLU())]
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), *layers, nn.Linear(8, 1))
    run = trained(tmp_path / "run", net=net)
    for name, fact in (("update_ratio", "ratios"), ("activation_scale", "scales")):
        facts = run.records(f"vital/{name}")[-1].facts
        assert len(facts["layers"]) == len(facts[fact]) == 16
        assert facts["layers"][0].startswith("0") and facts["layers"][-1].startswith("42")
    x = torch.randn(32, 4)
    heard = listen(lambda: net(x), dict(net.named_parameters()))
    for dtype in (torch.float64, torch.bfloat16):
        other, data = copy.deepcopy(net).to(dtype), x.to(dtype)
        wide = listen(lambda o=other, d=data: o(d), dict(other.named_parameters())).scales["0"]
        assert wide.item() == pytest.approx(heard.scales["0"].item(), rel=0.02)
    assert heard.scales["0"].item() == pytest.approx(net[0](x).square().mean().sqrt().item())
    panels = {p.slug: p for p in vital_panels(run)}
    drawn = [key.label for key in panels["vital-activation_scale"].keys]
    assert len(drawn) == 5 and drawn[0] == "0" and drawn[-1] == "42"
    assert "5 of 16 layers" in panels["vital-update_ratio"].reading


def test_the_scale_of_a_gradient_scaler_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, scaler = nn.Linear(4, 1), torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    with eq.attach(net, optimizer, run_dir=tmp_path / "run", budget=None, schedule=2) as monitor:
        loss = monitor.loss(lambda model, pair: F.mse_loss(model(pair[0]), pair[1]))
        for _ in range(5):
            scaler.scale(loss(net, (x, y))).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert eq.Run(tmp_path / "run").series("vital/loss_scale")[1].tolist() == [256.0] * 3


class Cut(nn.Module):
    """Two layers, of which the first may be detached, and a second head for odd steps."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.first, self.head, self.other = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 1)
        self.cut = cut

    def forward(self, x: torch.Tensor, odd: bool) -> torch.Tensor:
        h = self.first(x).tanh()
        return (self.other if odd else self.head)(h.detach() if self.cut else h)


@pytest.mark.parametrize("case", ["cut", "frozen", "no optimizer", "never called", "in turns"])
def test_parameters_that_never_get_a_gradient_are_told(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Cut(case != "in turns" and case != "never called")
    net.first.requires_grad_(case != "frozen")
    held = [*net.head.parameters(), *net.other.parameters()]
    held += [*net.first.parameters()] if case not in ("frozen", "no optimizer") else []
    optimizer = torch.optim.SGD(held, lr=0.1)
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    how = {"run_dir": tmp_path, "budget": None, "schedule": 4, "probes": PROBES}
    with eq.attach(net, optimizer, **how) as monitor:
        loss = monitor.loss(lambda model, batch: F.mse_loss(model(batch[0], batch[2]), batch[1]))
        for step in range(17):  # those that are measured are even
            odd = case != "never called" and bool(step % 2)
            loss(net, (x, y, odd)).backward()
            optimizer.step()
            optimizer.zero_grad()
    row = eq.Run(tmp_path).records("vital/no_gradient")[-1]
    left = {"cut": ("first",), "never called": ("other",)}.get(case, ())
    assert row.facts.texts("layers") == left
    assert row.value == {"cut": 40, "never called": 9}.get(case, 0)
    assert row.facts.flag("before") is (case == "cut") and row.facts["steps"] == 5


OF_LABELS = {
    "cross_entropy": F.cross_entropy,
    "mse": lambda out, y: F.mse_loss(out[:, 0], y.float()),
}


@pytest.mark.parametrize("kind", OF_LABELS)
@pytest.mark.parametrize("case", ["one label", "several", "the loss's own"])
def test_labels_that_are_all_the_same_are_told(case: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3), torch.randn(32, 4)
    y = torch.randint(0, 3, (32,)) if case == "several" else torch.full((32,), 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    how = {"run_dir": tmp_path, "budget": None, "schedule": 2, "probes": PROBES}
    with eq.attach(net, optimizer, **how) as monitor:
        loss = monitor.loss(
            lambda model, batch: OF_LABELS[kind](
                model(batch[0]), y.clone() if case == "the loss's own" else batch[1]
            )
        )
        for _ in range(4):
            loss(net, (x, x if case == "the loss's own" else y)).backward()
            optimizer.step()
            optimizer.zero_grad()
    rows = eq.Run(tmp_path).records("vital/constant_loss")
    assert [row.facts.flag("alike") for row in rows] == [case == "one label"] * 2


@pytest.mark.parametrize("case", ["of the batch", "of a residual"])
def test_zeros_that_the_batch_brings_for_the_output_are_labels(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x, zeros = nn.Linear(4, 1), torch.randn(32, 4), torch.zeros(32, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    how = {"run_dir": tmp_path, "budget": None, "schedule": 2, "probes": PROBES}
    off = 1.0 if case == "of a residual" else 0.0
    with eq.attach(net, optimizer, **how) as monitor:
        loss = monitor.loss(
            lambda model, b: F.mse_loss(model(b[0]) - b[0][:, :1] if off else model(b[0]), b[1])
        )
        for _ in range(4):
            loss(net, (x, zeros)).backward()
            optimizer.step()
            optimizer.zero_grad()
    rows = eq.Run(tmp_path).records("vital/constant_loss")
    assert [row.facts.flag("alike") for row in rows] == [case == "of the batch"] * 2


SQUARED = {
    "mse_loss": F.mse_loss,
    "l1_loss": F.l1_loss,
    "huber_loss": F.huber_loss,
    "by hand": lambda one, two: (one - two).square().mean(),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("kind", SQUARED)
def test_a_column_that_is_compared_with_a_row_is_told(kind: str) -> None:
    net, x, y, loss = nn.Linear(4, 1), torch.randn(16, 4), torch.randn(16), SQUARED[kind]
    params = dict(net.named_parameters())
    heard = lambda run: listen(run, params, net)
    assert heard(lambda: loss(net(x), y)).squared == ((16, 1), (16,))
    assert heard(lambda: loss(net(x)[:, 0], y[:, None])).squared == ((16,), (16, 1))
    assert heard(lambda: loss(net(x)[:, 0], y)).squared is None
    assert heard(lambda: loss(net(x), y[:, None])).squared is None
    assert heard(lambda: loss(net(x), y[0].expand(16, 1))).squared is None
    assert heard(lambda: loss(net(x), net(x)[:, 0])).squared is None  # all pairs of outputs
    if kind == "mse_loss":
        constant = heard(lambda: loss(net(x), y)).targets.constant
        assert constant == pytest.approx(float(y.var()), rel=1e-5)


@pytest.mark.parametrize("case", ["minus", "itself", "targets of the loss", "in part"])
def test_the_sign_of_a_known_loss_is_told(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x, y = nn.Linear(4, 3), torch.randn(32, 4), torch.randint(0, 3, (32,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    how = {"run_dir": tmp_path, "budget": None, "schedule": 2, "probes": PROBES}
    value = {
        "minus": lambda out, y: -F.cross_entropy(out, y),
        "itself": F.cross_entropy,
        "targets of the loss": lambda out, y: -F.cross_entropy(out, torch.zeros_like(y)),
        "in part": lambda out, y: out.square().mean() - F.cross_entropy(out, y),
    }[case]
    with eq.attach(net, optimizer, **how) as monitor:
        loss = monitor.loss(lambda model, b: value(model(b[0]), b[1]))
        for _ in range(4):
            loss(net, (x, y)).backward()
            optimizer.step()
            optimizer.zero_grad()
    run, name = eq.Run(tmp_path), "vital/loss_sign"
    signs = {"minus": [-1.0] * 2, "itself": [1.0] * 2}.get(case, [])
    assert [row.value for row in (run.records(name) if name in run.names() else ())] == signs


def test_labels_are_compared_with_what_the_batch_holds_in_any_shape() -> None:
    x, two = torch.randn(8, 3), torch.full((8,), 2)
    assert are_alike(two[:, None].float(), [x, two]) and are_alike(two, [x, two[None, :]])
    assert not are_alike(two, [x, two + 1]) and not are_alike(two[:1], [two])
    column = torch.tensor([1.0, 5.0]).expand(8, 2)  # each column is a number of its own
    assert are_alike(column, [x, column]) and not are_alike(column, [x, torch.ones(8, 2)])
    assert not are_alike(torch.zeros(8, 0), [x])


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("late", [False, True])
def test_a_gradient_that_is_cleared_before_the_step_is_told(
    late: bool, to_none: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    x, y = torch.randn(32, 4), torch.randn(32, 1) + 3
    with eq.attach(
        net, optimizer, run_dir=tmp_path, budget=None, schedule=2, probes=PROBES
    ) as monitor:
        loss = monitor.loss(lambda model, batch: F.mse_loss(model(batch[0]), batch[1]))
        for _ in range(20):
            if late:
                optimizer.zero_grad(to_none)
            loss(net, (x, y)).backward()
            if not late:
                optimizer.zero_grad(to_none)
            optimizer.step()
    run = eq.Run(tmp_path)
    assert [r.facts["cleared"] for r in run.records("vital/gradient_norm")] == [not late] * 10
    grave = [f.id for f in run.findings() if f.level in ("alarm", "warning")]
    assert (grave == ["gradient-cleared"]) is not late


def test_the_size_mean_and_variance_of_targets_are_told(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    torch.manual_seed(0)
    nn.Linear(4, 8), nn.Linear(8, 1), torch.randn(32, 4)
    y = torch.randn(32, 1)
    facts = run.records("vital/constant_loss")[0].facts
    assert facts["samples"] == 32 and facts["mean"] == pytest.approx(float(y.mean()), rel=1e-5)
    assert facts["variance"] == pytest.approx(float(y.var()), rel=1e-5)
    assert facts["size"] == pytest.approx(float(y.square().mean().sqrt()), rel=1e-5)
    heard = listen(lambda: F.nll_loss(torch.randn(6, 4), torch.tensor([0, 2, -100, 2, 0, 1])), {})
    assert heard.targets.moments["mean"] == 1 and heard.targets.moments["samples"] == 5


def test_probabilities_over_the_batch_are_told_from_those_over_classes() -> None:
    torch.manual_seed(0)
    x, y, pairs = torch.randn(8, 5), torch.randint(0, 5, (8,)), torch.randn(8, 8)
    across = lambda loss: listen(loss, {}).across
    assert across(lambda: F.nll_loss(x.log_softmax(0), y))
    assert across(lambda: F.nll_loss(x.softmax(0).log(), y))
    assert across(lambda: F.cross_entropy(x.softmax(0), y))
    assert not across(lambda: F.cross_entropy(x, y))
    assert not across(lambda: F.nll_loss(x.log_softmax(1), y))
    assert not across(lambda: F.nll_loss(pairs.log_softmax(0), torch.arange(8)))


def test_a_rectifier_of_logits_is_told_from_one_between_layers() -> None:
    torch.manual_seed(0)
    x, y, w = torch.randn(8, 5), torch.randint(0, 5, (8,)), torch.randn(5, 5)
    logits = listen(lambda: F.cross_entropy(F.relu(x), y), {}).rectified
    assert logits is not None and torch.equal(logits, x.relu())
    assert listen(lambda: F.cross_entropy(F.relu(x) @ w, y), {"w": w}).rectified is None
    bits = (x > 0).float()
    assert (
        listen(lambda: F.binary_cross_entropy_with_logits(F.relu(x), bits), {}).rectified
        is not None
    )


@pytest.mark.parametrize("way", ["module", "function", "evaluation"])
def test_the_rate_of_dropout_is_heard(way: str) -> None:
    torch.manual_seed(0)
    layer, drop, x = nn.Linear(4, 64), nn.Dropout(0.9), torch.randn(8, 4)
    drop.train(way != "evaluation")
    run = (lambda: F.dropout(layer(x), 0.9)) if way == "function" else (lambda: drop(layer(x)))
    rate, behind = listen(run, {"0.weight": layer.weight}).dropout
    assert rate == pytest.approx(0.0 if way == "evaluation" else 0.9)
    assert behind == ("" if way == "evaluation" else "0")


def test_zeros_and_ones_that_a_loss_draws_are_no_dropout() -> None:
    assert listen(lambda: torch.empty(8, 4).bernoulli_(0.05), {}).dropout == (0.0, "")


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("way", ["loss", "criterion"])
def test_what_a_replayed_model_gives_out_is_told_from_what_its_loss_computes(
    way: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), nn.Tanh())
    x, y = torch.randn(32, 4), torch.randn(32)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        given = model(batch[0])
        return F.mse_loss(given, batch[1]) + F.relu(-100 - given).mean()  # a margin always kept

    how: dict[str, Any] = {"budget": None, "schedule": 2, "probes": PROBES}
    how |= {"criterion": (criterion := nn.MSELoss())} if way == "criterion" else {}
    with eq.attach(net, optimizer, run_dir=tmp_path / "run", **how) as monitor:
        replayed = monitor.loss(loss) if way == "loss" else lambda net, _: criterion(net(x), y)
        for _ in range(4):
            value = replayed(net, (x, y))
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
    run = eq.Run(tmp_path / "run")
    told = run.records("vital/broadcast")[0].facts
    assert (told["prediction"], told["target"]) == ((32, 1), (32,))
    assert [r.facts["layers"] for r in run.records("vital/silent")] == [("0",)] * 2
    assert run.records("vital/saturated")[0].facts["layer"] == "2"
    hidden = {r.facts["hidden_layer"] for r in run.records("vital/saturated")}
    assert hidden == {""}  # what is given out is not hidden


def test_units_that_a_replayed_model_gives_out_are_heard(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), nn.ReLU())
    nn.init.constant_(net[2].bias, -100.0)
    shares = [row.facts for row in trained(tmp_path / "run", net=net).records("vital/silent")]
    assert all("2" in facts["layers"] and facts["shares"][0] == 1 for facts in shares)
