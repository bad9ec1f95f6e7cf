"""GELU against its formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from flax_resnet.models.layers.activations import gelu

POINTS = np.linspace(-6, 6, 241)
SHARES = np.array([0.5 * math.erfc(-point / math.sqrt(2)) for point in POINTS])
DENSITIES = np.exp(-(POINTS**2) / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize(
    ("dtype", "limit"), [("float64", 1e-15), ("float32", 1e-6), ("bfloat16", 2**-6)]
)
def test_gelu_and_its_slope_are_the_formula(dtype, limit):
    with jax.enable_x64(True):
        x = jnp.asarray(POINTS, dtype)
        y, slope = jax.jvp(gelu, (x,), (jnp.ones_like(x),))
        assert y.dtype == slope.dtype == dtype
        np.testing.assert_allclose(np.float64(y), POINTS * SHARES, rtol=0, atol=limit)
        np.testing.assert_allclose(
            np.float64(slope), SHARES + POINTS * DENSITIES, rtol=0, atol=limit
        )


def test_gelu_has_gradients_of_any_order():
    with jax.enable_x64(True):
        test_util.check_grads(gelu, (jnp.asarray(POINTS[::40]),), order=3)


def test_gelu_keeps_one_array_for_its_gradient():
    x = jnp.ones((4, 8))
    kept = jax.tree.leaves(jax.vjp(gelu, x)[1])
    assert sum(leaf.size for leaf in kept) == x.size
