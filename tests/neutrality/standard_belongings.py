"""Iterators, streams and tables of the standard library, NumPy and pandas that a loss moves."""

import csv
import io
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from tests.neutrality.belongings import Batch, Net, cross_entropy

KINDS: dict[str, Callable[[], tuple[nn.Module, Any, Callable[[], Any]]]] = {}


def _case(make: Any) -> Any:
    KINDS[make.__name__] = make
    return make


def _times(factor: Callable[[], Any], look: Callable[[], Any]) -> Any:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch) * (1 + 0.01 * float(factor()))

    return Net(), loss, look


def _each(*rows: Iterator[Any]) -> Any:
    """A loss that takes one number of each iterator."""
    held = [*rows]
    return _times(lambda: sum(next(it) for it in held), lambda: [next(it) for it in held])


@_case
def iterators_that_go_round() -> Any:
    return _each(itertools.cycle([1, 2, 3]), itertools.cycle(itertools.chain([4, 5], (6,))))


@_case
def iterators_over_others() -> Any:
    shared = iter(range(100))
    pairs = zip(shared, shared, strict=False)
    return _each(
        (itertools.chain([1], [2, 3], itertools.repeat(4))),
        itertools.islice(itertools.count(), 1, None, 2),
        itertools.accumulate(itertools.count()),
        itertools.starmap(pow, zip(itertools.count(), itertools.repeat(2), strict=False)),
        map(sum, itertools.product((1, 2), (3, 4, 5))),
        map(sum, itertools.permutations(range(5), 2)),
        map(sum, itertools.zip_longest([1, 2], range(9), fillvalue=7)),
        itertools.dropwhile(lambda k: k < 3, itertools.count()),
        map(sum, enumerate(itertools.count(3))),
        map(sum, pairs),
    )


@_case
def iterators_over_containers() -> Any:
    table = {k: k + 1 for k in range(9)}
    return _each(
        iter(table), iter(table.values()), reversed(table), iter({*table}), iter(deque(table))
    )


@_case
def children_of_generators() -> Any:
    rng, seeds = np.random.default_rng(0), np.random.SeedSequence(1)

    def factor() -> Any:
        (one,), (two,) = rng.spawn(1), rng.bit_generator.spawn(1)
        (three,) = seeds.spawn(1)
        more = np.random.Generator(two), np.random.default_rng(three)
        return one.random() + sum(child.random() for child in more)

    def look() -> Any:
        return rng.bit_generator.seed_seq.n_children_spawned, seeds.n_children_spawned, rng.random()

    return _times(factor, look)


@_case
def rows_of_a_file_in_memory() -> Any:
    file = io.StringIO()
    write = csv.writer(file).writerow

    def factor() -> int:
        write([1, "two"])
        return len(file.getvalue())

    return _times(factor, file.getvalue)


@_case
def tables_of_pandas() -> Any:
    table = pd.DataFrame({"weight": [1.0, 2.0], "seen": [[], []]})
    held = {"column": pd.Series([0.0, 1.0])}

    def factor() -> Any:
        table.loc[0, "weight"] += 0.1
        table["seen"].iloc[1].append(1)
        held["column"] = pd.concat([held["column"], pd.Series([2.0])])
        return table["weight"].sum() + len(table["seen"].iloc[1]) + len(held["column"])

    return _times(factor, lambda: (table.to_numpy().tolist(), held["column"].tolist()))
