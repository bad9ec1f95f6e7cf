"""Systems that take turns, each in a process of its own."""

import pytest

from benchmarks.speed.interleave import measure


def steady():
    return lambda number: 10.0 + number


def slow():
    return lambda number: 5.0


def dying():
    raise RuntimeError("no such library")


def test_turns_give_medians_and_ratios_to_the_first():
    rows = measure({"steady": steady, "slow": slow}, rounds=3)
    assert rows["steady"] == {"n": 3, "median": 12.0, "spread": [11.0, 13.0], "ratio": 1.0}
    assert rows["slow"]["ratio"] == 2.4


def test_a_system_that_dies_is_named_in_one_line():
    with pytest.raises(SystemExit, match=r"^error: dying: "):
        measure({"steady": steady, "dying": dying}, rounds=1)
