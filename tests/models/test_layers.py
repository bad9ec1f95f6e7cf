"""Normalisations and pools against NumPy statements of their papers."""

import jax
import jax.numpy as jnp
import numpy as np


def test_the_norms_and_pools_are_as_their_papers_say():
    """GroupNorm, EvoNorm-S0, FRN, blur and pooling against NumPy; networks against timm: test_parity.py."""
    from flax_resnet.models.layers import normalization, pooling

    draw = np.random.RandomState(0)
    x = (1 + draw.randn(2, 4, 4, 64)).astype(np.float32)

    def run(layer, **more):
        variables = layer.init(jax.random.key(0), x, train=True)
        for name, value in more.items():
            variables["params"][name] = jnp.full((64,), value, jnp.float32)
        return np.asarray(layer.apply(variables, x, train=True))

    grouped = x.reshape(2, 4, 4, 32, 2)
    mean, var = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(run(normalization.GroupNorm()), expected, atol=1e-5)
    gate = (x / (1 + np.exp(-2 * x))).reshape(grouped.shape)
    expected = (gate / np.sqrt(var + 1e-5)).reshape(x.shape)
    evonorm = normalization.EvoNormS0(act=jax.nn.relu)
    np.testing.assert_allclose(run(evonorm, v=2.0), expected, atol=1e-5)
    np.testing.assert_allclose(run(normalization.EvoNormS0(), scale=3.0), 3 * x, atol=1e-5)
    power = (x**2).mean((1, 2), keepdims=True)
    expected = np.maximum(x / np.sqrt(power + 1e-5), 0.3)
    frn = normalization.FilterResponseNorm(act=jax.nn.relu)
    np.testing.assert_allclose(run(frn, tau=0.3), expected, atol=1e-5)

    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    blurred = sum(
        kernel[i, j] * padded[:, i : i + 3 : 2, j : j + 3 : 2] for i in range(3) for j in range(3)
    )
    np.testing.assert_allclose(pooling.blur_pool(jnp.asarray(x), stride=2), blurred, atol=1e-5)
    odd = jnp.asarray(x[:, :3, :3])
    whole = pooling.average_pool(odd, size=2, stride=2, partial=True)
    np.testing.assert_allclose(whole[:, 1, 1], odd[:, 2, 2], atol=1e-6)
    np.testing.assert_allclose(whole[:, 0, 1], odd[:, :2, 2].mean(1), atol=1e-6)
    adapted = pooling.adaptive_average_pool(jnp.asarray(x), 3)
    np.testing.assert_allclose(adapted[:, 1, 0], x[:, 1:3, 0:2].mean((1, 2)), atol=1e-5)
    both = pooling.GLOBAL_POOLS["avgmax"].pool(jnp.asarray(x))
    np.testing.assert_allclose(both, (x.mean((1, 2)) + x.max((1, 2))) / 2, atol=1e-5)
