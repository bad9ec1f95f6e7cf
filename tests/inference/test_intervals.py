"""Intervals of proportions and the exact test of McNemar, against published and hand-computed values."""

import math

import numpy as np
import pytest

from flax_resnet.inference.intervals import mcnemar, proportion_interval


def wilson(successes, count, z=1.959963984540054):
    """Wilson 1927, as in Newcombe 1998, method 3."""
    p = successes / count
    middle = p + z * z / (2 * count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return [(middle + sign * half) / (1 + z * z / count) for sign in (-1, 1)]


@pytest.mark.parametrize(("successes", "count"), [(81, 263), (15, 148), (0, 20), (1, 29), (29, 29)])
def test_the_interval_is_wilsons(successes, count):
    assert proportion_interval(successes, count) == pytest.approx(wilson(successes, count))


def test_intervals_of_newcombes_table():
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    assert proportion_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert proportion_interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert proportion_interval(0, 0) == (0, 1)


def test_mcnemar_is_the_two_sided_binomial_test_of_the_images_that_differ():
    draw = np.random.default_rng(0)
    for _ in range(20):
        first, second = draw.random((2, 40)) < draw.random((2, 1))
        b = int((first & ~second).sum())
        c = int((~first & second).sum())
        tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
        assert mcnemar(first, second) == (b, c, pytest.approx(min(1.0, 2 * tail)))
    same = np.array([True, False])
    assert mcnemar(same, same) == (0, 0, 1.0)
