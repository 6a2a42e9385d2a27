"""Garbage of a demo is collected seldom, and afterwards as often as before."""

import gc

import pytest

from eqtoolbox.command.demo.collecting import APART, seldom


@pytest.mark.parametrize("before", [700, 2 * APART, 0])
def test_a_scope_leaves_the_collector_as_it_was(before: int) -> None:
    known = gc.get_threshold()
    try:
        gc.set_threshold(before, 10, 10)
        with pytest.raises(RuntimeError, match="inside"), seldom():
            assert gc.get_threshold()[0] == (max(before, APART) if before else 0)
            raise RuntimeError("inside")
        assert gc.get_threshold() == (before, 10, 10)
    finally:
        gc.set_threshold(*known)
