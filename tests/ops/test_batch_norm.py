"""BatchNorm's gradient as it is written for CPU and GPU is that of its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operation_results import farthest, normal

from flax_resnet.models.layers.activations import ACTIVATIONS
from flax_resnet.models.layers.normalization import BatchNorm
from flax_resnet.ops import batch_norm, dispatch


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-10), ("float32", 2e-5)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("act", [None, "relu", "silu"])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_batch_normalisation_equals_the_plain_one(platform, act, groups, dtype, limit, monkeypatch):
    with jax.enable_x64(True):
        layer = BatchNorm(groups=groups, act=act and ACTIVATIONS[act].apply, dtype=dtype)
        x = 3 + 2 * normal((4, 5, 6, 8), dtype)
        scale, bias, mean = (normal((8,), dtype, seed) for seed in (1, 2, 3))
        statistics = {"mean": mean, "var": jnp.ones(8, dtype)}

        def run(switch):
            monkeypatch.setenv(dispatch.SWITCH, switch)

            def apply(x, scale, bias):
                variables = {
                    "params": {"scale": scale, "bias": bias},
                    "batch_stats": statistics,
                }
                return layer.apply(variables, x, train=True, mutable=["batch_stats"])

            y, pull, new = jax.vjp(jax.jit(apply), x, scale, bias, has_aux=True)
            return [y, *pull(normal(y.shape, dtype, 9)), *jax.tree.leaves(new)]

        got, wanted = run(platform), run("plain")
        assert farthest(got, wanted) < limit
        assert [leaf.dtype for leaf in got] == [leaf.dtype for leaf in wanted]


def test_batch_normalisation_takes_moments_about_the_running_mean(monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "gpu")
    x = 1e4 + normal((8, 4, 4, 3), jnp.float32)
    layer = BatchNorm()
    near = {"mean": jnp.full(3, 1e4 + 10.0), "var": jnp.ones(3)}
    variables = {"params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}, "batch_stats": near}
    y, _ = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.std(axis=(0, 1, 2)), 1, atol=1e-4)
    np.testing.assert_allclose(y.mean(axis=(0, 1, 2)), 0, atol=1e-3)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_gradient_of_the_statistics_themselves(platform, monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, platform)
    with jax.enable_x64(True):
        x = 3 + 2 * normal((4, 5, 6, 8), "float64")
        given = [x, *(normal((8,), "float64", seed) for seed in (1, 2, 3))]
        static = 1e-5, ACTIVATIONS["silu"].apply, "float64"

        def slopes(function):
            y, pull = jax.vjp(lambda *arrays: function(*arrays, *static), *given)
            return pull(tuple(normal(leaf.shape, "float64", 9) for leaf in y))[:3]

        got = slopes(batch_norm.with_own_gradient)
        assert farthest(got, slopes(batch_norm.by_moments)) < 1e-10


def test_second_derivatives_of_batch_normalisation_on_cpu(monkeypatch):
    layer = BatchNorm(act=ACTIVATIONS["silu"].apply)
    x = 3 + 2 * normal((4, 5, 6, 8), jnp.float32)
    variables = jax.jit(lambda x: layer.init(jax.random.key(0), x, train=True))(x)

    def curvature(switch):
        monkeypatch.setenv(dispatch.SWITCH, switch)

        def value(x):
            y, _ = layer.apply(variables, x, train=True, mutable=["batch_stats"])
            return (y**3).sum()

        return jax.jit(jax.grad(lambda x: jnp.sin(jax.grad(value)(x)).sum()))(x)

    assert farthest([curvature("cpu")], [curvature("plain")]) < 1e-4


def test_bfloat16_rounds_once_for_any_mean(monkeypatch):
    """On GPU, mean and bias are one vector in bfloat16; that must not cost digits."""
    monkeypatch.setenv(dispatch.SWITCH, "gpu")
    layer = BatchNorm(act=ACTIVATIONS["relu"].apply, dtype=jnp.bfloat16)
    x = (30 + normal((8, 6, 6, 16), "float32")).astype(jnp.bfloat16)
    variables = {
        "params": {"scale": normal((16,), "float32", 1), "bias": normal((16,), "float32", 2)},
        "batch_stats": {"mean": jnp.full(16, 30.0), "var": jnp.ones(16)},
    }
    y, _ = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    wide = np.asarray(x, np.float64)
    scale, bias = (np.asarray(variables["params"][name], np.float64) for name in ("scale", "bias"))
    exact = (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + layer.epsilon)
    exact = np.maximum(exact * scale + bias, 0)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8, atol=1e-4)
