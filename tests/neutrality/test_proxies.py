"""Objects whose classes answer for others, or raise, are kept by what they hold themselves."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor, nn

from eqtoolbox.interrupts import for_the_loop
from eqtoolbox.replay.attributes import attributes_of, in_slot
from eqtoolbox.sinks.memory import MemorySink
from tests.neutrality.belongings import Batch, Net, cross_entropy
from tests.neutrality.test_python_state import trained


class Unbound:
    """As a proxy of a web framework outside of its context."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("unbound proxy")


UNBOUND = Unbound()
PROXIES: dict[str, Callable[[], Any]] = {}


def _case(make: Callable[[], Any]) -> Any:
    PROXIES[make.__name__.strip("_")] = make
    return make


@_case
def names_an_unbound_proxy_everywhere() -> Any:
    mine, things = Unbound(), [Unbound(), (Unbound(), 1)]

    def loss(model: nn.Module, batch: Batch, other: Any = Unbound()) -> Tensor:  # noqa: B008
        _ = (mine, UNBOUND, other)
        things.append(1)
        return cross_entropy(model, batch) * (1 + 0.01 * len(things))

    return Net(), loss, lambda: len(things)


@_case
def slots_beside_a_getattr_that_raises_key_errors() -> Any:
    class Slotted:
        __slots__ = ("data", "later")

        def __init__(self) -> None:
            self.data = {"calls": 0}

        def __getattr__(self, name: str) -> Any:
            return self.data[name]

    model, slotted = Net(), Slotted()
    model.held = slotted

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        slotted.data["calls"] += 1
        return cross_entropy(model, batch) * (1 + 0.01 * slotted.calls)

    return model, loss, lambda: slotted.calls


@_case
def a_dict_that_its_class_shows_otherwise() -> Any:
    class Shown:
        __dict__ = property(lambda self: {"x": 1})  # type: ignore[assignment]

        def __init__(self) -> None:
            object.__setattr__(self, "calls", 0)

    shown = Shown()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        shown.calls += 1
        return cross_entropy(model, batch) * (1 + 0.01 * shown.calls)

    return Net(), loss, lambda: shown.calls


@_case
def a_slot_below_a_property_that_raises() -> Any:
    class Below:
        __slots__ = ("calls",)

    class Above(Below):
        asked = 0

        @property
        def calls(self) -> Any:  # type: ignore[override]
            Above.asked += 1
            raise KeyError("calls")

    one, held = Above(), Below.calls  # type: ignore[attr-defined]
    held.__set__(one, [0])

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        held.__set__(one, [*held.__get__(one), 1])
        return cross_entropy(model, batch) * (1 + 0.01 * len(held.__get__(one)))

    return Net(), loss, lambda: (held.__get__(one), Above.asked)


@_case
def a_class_that_is_said_to_be_another() -> Any:
    class Lying:
        calls = 0
        __class__ = property(lambda self: list)  # type: ignore[assignment]

    lying = Lying()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        lying.calls += 1
        return cross_entropy(model, batch) * (1 + 0.01 * lying.calls)

    return Net(), loss, lambda: lying.calls


@_case
def a_proxy_that_passes_everything_on() -> Any:
    class Passing:
        def __init__(self, other: Any) -> None:
            object.__setattr__(self, "_other", other)

        def __getattribute__(self, name: str) -> Any:
            return getattr(object.__getattribute__(self, "_other"), name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(object.__getattribute__(self, "_other"), name, value)

    behind = SimpleNamespace(calls=0)
    proxy = Passing(behind)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        proxy.calls += 1
        return cross_entropy(model, batch) * (1 + 0.01 * proxy.calls)

    return Net(), loss, lambda: behind.calls


@_case
def an_iterator_with_slots() -> Any:
    class Rows:
        __slots__ = ("seen",)

        def __init__(self) -> None:
            self.seen: list[int] = []

        def __iter__(self) -> "Rows":
            return self

        def __next__(self) -> int:
            self.seen.append(1)
            return len(self.seen)

    rows = Rows()
    loss = lambda model, batch: cross_entropy(model, batch) * (1 + 0.01 * next(rows))
    return Net(), loss, lambda: rows.seen


@_case
def attributes_that_a_function_gets_later() -> Any:
    def scaled(x: Tensor) -> Tensor:
        scaled.calls = getattr(scaled, "calls", 0) + 1  # type: ignore[attr-defined]
        return x * (1 + 0.01 * scaled.calls)  # type: ignore[attr-defined]

    return Net(scaled), cross_entropy, lambda: vars(scaled)


@pytest.mark.parametrize("kind", PROXIES.values(), ids=PROXIES.keys())
def test_objects_that_answer_for_others_are_kept_and_measured(kind: Any) -> None:
    sink = MemorySink()
    watched = trained(kind, "decorator", {"curvature": {"k": 1, "max_matvecs": 6}}, sink)
    assert watched == trained(kind)
    values = {r.name: r.value for r in sink.records if r.step == 0}
    assert values["monitor/closure_grad_cos"] == pytest.approx(1.0, abs=1e-6)
    assert values["monitor/closure_grad_ratio"] == pytest.approx(1.0, abs=1e-5)


def test_what_an_object_holds_is_read_past_its_class() -> None:
    assert attributes_of(UNBOUND) == {}
    assert attributes_of(3) is None
    assert in_slot(UNBOUND, "anything", "missing") == "missing"
    with pytest.raises(RuntimeError, match="unbound proxy"):
        vars(UNBOUND)


def test_an_error_among_proxies_is_not_for_the_loop() -> None:
    def fails(one: Any, other: Any) -> None:
        raise ValueError("it fails")

    with pytest.raises(ValueError, match="it fails") as error:
        fails(UNBOUND, UNBOUND)
    assert not for_the_loop(error.value)


def _metaclass(name: str, answer: Any) -> Any:
    """A class of which `name` cannot be asked, with a counter in an object of it."""

    def kind() -> Any:
        class Meta(type):
            pass

        setattr(Meta, name, answer)
        made = Meta("Made", (), {"calls": 0})
        holder = [made()]

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            holder[0].calls += 1
            return cross_entropy(model, batch) * (1 + 0.01 * holder[0].calls)

        return Net(), loss, lambda: holder[0].calls

    return kind


def _raises(*_: Any) -> Any:
    raise KeyError("no answer")


@pytest.mark.parametrize("name", ["__getattribute__", "__getattr__", "__hash__"])
def test_a_class_whose_metaclass_raises_is_refused_by_name(name: str) -> None:
    kind = _metaclass(name, _raises)
    with pytest.warns(RuntimeWarning, match=r"the loss can reach .*holder.* cannot be looked into"):
        watched = trained(kind, "decorator")
    assert watched == trained(kind)


@pytest.mark.parametrize("name", ["__instancecheck__", "__repr__", "__bool__", "unrelated"])
def test_a_metaclass_that_raises_where_nobody_asks_is_no_reason_to_refuse(name: str) -> None:
    sink = MemorySink()
    assert trained(_metaclass(name, _raises), "decorator", sink=sink) == trained(
        _metaclass(name, _raises)
    )
    assert "monitor/closure_grad_cos" in {r.name for r in sink.records}
