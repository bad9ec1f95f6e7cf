"""Max-pools with a gradient by taps equal XLA's own, on CPU and in the form for GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operation_results import SWITCHES, normal, results

from flax_resnet.ops import dispatch
from flax_resnet.ops.max_pool import max_pool, plain_max_pool

# size, stride, padding
POOLS = [
    (3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 2, 0), (3, 3, 0), (2, 3, 0), (4, 3, 2), (3, 5, 1), (5, 2, 2), (5, 1, 2),
]  # fmt: skip


@pytest.mark.parametrize(("size", "stride", "padding"), POOLS)
@pytest.mark.parametrize("shape", [(2, 15, 13, 8), (2, 16, 16, 8)])
@pytest.mark.parametrize("switch", [*SWITCHES, "gpu"])
def test_max_pools_equal_xlas_own(switch, shape, size, stride, padding, monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, switch)
    x = jnp.maximum(
        normal(shape, jnp.float32), 0
    )  # many windows hold several zeros: the first wins

    def plain(x):
        return plain_max_pool(x, size, stride, padding)

    def ours(x):
        return max_pool(x, size=size, stride=stride, padding=padding)

    got, wanted = results(jax.jit(ours), x), results(plain, x)
    np.testing.assert_array_equal(got[0], wanted[0])
    np.testing.assert_allclose(got[1], wanted[1], atol=1e-6)


@pytest.mark.parametrize(("size", "stride", "padding"), POOLS)
def test_second_derivatives_of_max_pools_are_those_of_the_first(size, stride, padding, monkeypatch):
    """Where values are equal the gradient is the first one's; that of the gradient is, too."""
    x = jnp.asarray(np.random.default_rng(0).integers(1, 4, (2, 15, 13, 8)), jnp.float32)

    def curvature(switch):
        monkeypatch.setenv(dispatch.SWITCH, switch)

        def value(x):
            return (max_pool(x, size=size, stride=stride, padding=padding) ** 3).sum()

        return jax.jit(jax.grad(lambda x: jnp.sin(jax.grad(value)(x)).sum()))(x)

    np.testing.assert_allclose(curvature("cpu"), curvature("plain"), atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("size", [3, 16, 17])
def test_max_pools_of_other_dtypes_and_large_windows(size, dtype, monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "cpu")
    with jax.enable_x64(True):
        x = normal((2, 19, 18, 4), dtype)
        run = lambda x: max_pool(x, size=size, stride=size)  # noqa: E731
        plain = lambda x: plain_max_pool(x, size, size, 0)  # noqa: E731
        got, wanted = results(jax.jit(run), x), results(plain, x)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("switch", ["cpu", "gpu"])
def test_what_is_no_number_stays_so_in_a_max_pool(switch, monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, switch)
    x = jnp.arange(16.0).reshape(1, 4, 4, 1).at[0, 0, 1, 0].set(jnp.nan)
    y, dx = results(jax.jit(lambda x: max_pool(x, size=2, stride=2)), x)
    assert np.isnan(y[0, 0, 0, 0])
    assert np.isfinite(y).sum() == 3
    assert dx[0, 0, 1, 0] != 0
    assert dx[0, 0, 0, 0] == dx[0, 1, 1, 0] == 0
