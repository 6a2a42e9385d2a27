"""What fits an annotation, what does not, and in which words that is said."""

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.expect.bounds import at_least, between, count, instance, some, takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.fit import Unexpected, fitted
from eqtoolbox.expect.kinds import Finite, Location, Positive, Seed
from eqtoolbox.expect.words import said
from eqtoolbox.symmetry.groups.group import Cyclic, Group

GOOD = [
    (3, int, 3),
    (np.int64(3), int, 3),
    (torch.tensor(3), int, 3),
    (True, bool, True),
    (np.bool_(False), bool, False),
    (2, float, 2),
    (np.float32(0.5), float, 0.5),
    (torch.tensor(0.5), float, 0.5),
    (float("inf"), float, float("inf")),
    (None, int | None, None),
    ("a", Literal["a", "b"], "a"),
    (Path("x"), str | PathLike[str], Path("x")),
    ([1, 2], tuple[int, ...], [1, 2]),
    ((1, "a"), tuple[int, str], (1, "a")),
    ({"w": 1}, Mapping[str, int], {"w": 1}),
    ({"a"}, Sequence[str], {"a"}),
    (Cyclic(3), Group, Cyclic(3)),
    (object, Any, object),
    (-1, Seed, -1),
]
BAD = [
    (True, int, "must be an integer, got True"),
    (np.bool_(True), int, "must be an integer"),
    (torch.tensor(True), int, "must be an integer"),
    (3.0, int, r"must be an integer, got 3\.0"),
    ("3", int, "got '3'; write it without quotes"),
    (2**64, int, "must be an integer"),
    (float("nan"), float, "must be a number, got nan"),
    (torch.tensor(float("nan")), float, "must be a number"),
    (1j, float, "must be a number, got 1j"),
    (float("inf"), Finite, "must be a finite number, got inf"),
    (0, Positive, "must be a positive number, got 0"),
    (10**400, float, "must be a number"),
    (1, bool, "must be True or False, got 1"),
    ("yes", bool, "must be True or False, got 'yes'"),
    ("aa", Literal["a", "b"], r"one of \('a', 'b'\), got 'aa'; did you mean 'a'"),
    (3, Literal["a", "b"], "one of"),
    ("ab", Sequence[str], r"must be a list of strings, got 'ab'; one alone is written \['ab'\]"),
    ({"a": 1}, tuple[str, ...], "must be a list of strings, got {'a': 1}"),
    ((1, 2, 3), tuple[int, int], r"must be 2 integers, got \(1, 2, 3\)"),
    ([1, "b"], Sequence[int], r"it\[1\] must be an integer, got 'b'"),
    ({"w": 5}, Mapping[str, Tensor], r"it\['w'\] must be a Tensor, got 5"),
    ([torch.ones(1)], Mapping[str, Tensor], "must be a dict of Tensors, got"),
    (nn.Linear(1, 1).parameters(), Mapping[str, Tensor], r"dict\(model.named_parameters\(\)\)"),
    (np.zeros(2), Tensor, r"must be a Tensor, got ndarray; use torch.as_tensor\(array\)"),
    (Cyclic, Group, r"must be a Group, got the class Cyclic; did you forget \(\)\?"),
    (nn.Linear, nn.Module, r"must be an nn.Module, got the class Linear; did you forget \(\)\?"),
    ("net", nn.Module | None, "must be an nn.Module or None, got 'net'"),
    (0, Annotated[int, at_least(1, "leave it out")] | None, ">= 1 or None, got 0; leave it out"),
    (0.5, Annotated[int, at_least(1)], r"must be an integer >= 1, got 0\.5"),
    (11, Annotated[int, between(0, 10)], "must be from 0 to 10, got 11"),
    (0, Annotated[int, count(1)], "must be an integer >= 1, got 0"),
    ((), Annotated[tuple[int, ...], some("sizes")], r"must be one or more sizes, got \(\)"),
    (lambda x: x, Annotated[Callable[..., Any], takes(2, "(g, x)")], r"a function \(g, x\), got"),
    (dict, Annotated[Callable[..., Any], takes(1, "(x)")], r"class dict; did you forget \(\)"),
    (5, Annotated[Group, instance("a group", "such as Cyclic(4)")], "got 5; such as Cyclic"),
    ("", Location, "must be a path, got ''; name a directory"),
    ("a\0b", Location, "must be a path"),
    (5, Location | None, "must be a path or None, got 5"),
]


@pytest.mark.parametrize(("value", "kind", "expected"), GOOD)
def test_what_fits_comes_back_as_pythons_own(value: Any, kind: Any, expected: Any) -> None:
    found = fitted("it", value, kind)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("value", "kind", "message"), BAD)
def test_what_does_not_fit_is_named_with_what_was_expected(
    value: Any, kind: Any, message: str
) -> None:
    with pytest.raises(Unexpected, match=message) as caught:
        fitted("it", value, kind)
    assert str(caught.value).startswith("it")
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, ValueError)


def test_the_error_survives_the_way_between_processes() -> None:
    with pytest.raises(Unexpected, match="it must be") as caught:
        fitted("it", "a", int)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (Unexpected, str(caught.value))


class Large:
    """What takes long to put into words."""

    asked = 0

    def __repr__(self) -> str:
        Large.asked += 1
        return "Large()"


def test_values_are_put_into_words_only_for_who_reads_them() -> None:
    value = {"w": Large()}
    assert fitted("it", value, int | Sequence[int] | Mapping[str, Large] | None) is value
    assert not Large.asked
    with pytest.raises(Unexpected, match=r"or None, got {'w': Large\(\)}"):
        fitted("it", value, int | Sequence[int] | None)
    assert Large.asked


def test_items_of_an_iterator_are_looked_at_and_kept() -> None:
    assert fitted("it", (i for i in range(3)), Iterable[int]) == [0, 1, 2]
    with pytest.raises(Unexpected, match=r"it\[0\] must be a string, got 0"):
        fitted("it", (i for i in range(3)), Sequence[str])


def test_functions_of_unknown_signature_are_taken() -> None:
    kind = Annotated[Callable[..., Any], takes(2, "(a, b)")]
    for function in (max, torch.add, lambda *given: given, nn.Bilinear(1, 1, 1)):
        assert fitted("f", function, kind) is function
    with pytest.raises(Unexpected, match="f must be a function"):
        fitted("f", nn.Linear(1, 1), kind)  # whose forward takes one


@checked
class Sized:
    def __init__(self, n: int, *sizes: int, name: str = "", free=None, **more: int) -> None:
        self.n, self.sizes = n, sizes


def test_a_decorated_constructor_looks_at_what_is_annotated_and_given() -> None:
    assert Sized(np.int64(2), 3, free="anything").n == 2
    for wrong, message in (
        (lambda: Sized("2"), "n must be an integer"),
        (lambda: Sized(1, 2, "3"), r"sizes\[1\] must be an integer"),
        (lambda: Sized(1, name=5), "name must be a string"),
    ):
        with pytest.raises(Unexpected, match=message):
            wrong()


def test_python_says_itself_what_is_missing_or_too_much() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'n'"):
        Sized()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        checked(lambda x: x)(1, 2)


def test_a_decorated_function_keeps_its_name_and_what_it_says() -> None:
    @checked
    def half(n: int) -> int:
        """n // 2."""
        return n // 2

    assert (half.__name__, half.__doc__, half(5)) == ("half", "n // 2.", 2)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int | None, "an integer or None"),
        (Sequence[float], "a list of numbers"),
        (Mapping[str, Any], "a dict"),
        (Mapping[str, Sequence[int]], "a dict of lists of integers"),
        (str | PathLike[str], "a string or a path"),
        (Callable[[int], int], "a function"),
        (torch.Generator | None, "a torch.Generator or None"),
        (Any, "anything"),
    ],
)
def test_annotations_have_words(kind: Any, words: str) -> None:
    assert said(kind) == words
