"""Dropout and stochastic depth, and the factor that scales their rates."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_resnet import create_model
from flax_resnet.models.baselines import ConvNet
from flax_resnet.models.layers.dropout import Dropout, drop, scaled

KEY = jax.random.key(3)
DROP = jax.jit(drop, static_argnums=3)


def normal(*shape):
    return np.random.RandomState(0).randn(*shape).astype(np.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_traced_rate_of_zero_changes_nothing(dtype):
    x = jnp.asarray(normal(64, 4, 4, 8), dtype)
    for shape in (x.shape, (64, 1, 1, 1)):
        found = DROP(KEY, x, jnp.float32(0), shape)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_kept_values_are_scaled_to_preserve_the_mean(rate):
    draws = 200_000
    found = np.asarray(DROP(KEY, jnp.full((draws, 1), 3.0), jnp.float32(rate), (draws, 1)))
    np.testing.assert_allclose(np.unique(found), [0, 3 / (1 - rate)], rtol=1e-6)
    spread = 3 * np.sqrt(rate / (1 - rate) / draws)  # standard error of the mean
    assert abs(found.mean() - 3) < 5 * spread
    assert abs((found == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / draws)


def test_examples_are_dropped_whole():
    found = np.asarray(DROP(KEY, jnp.ones((512, 2, 2, 3)), jnp.float32(0.5), (512, 1, 1, 1)))
    assert (np.ptp(found.reshape(512, -1), axis=1) == 0).all()
    assert np.ptp(found) == 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_dropout_equals_flax_and_a_traced_rate_drops_the_same_values(rate, dtype):
    class Theirs(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(rate, deterministic=False)(x)

    class Ours(nn.Module):
        @nn.compact
        def __call__(self, x, traced=None):
            return Dropout(rate)(x, True, traced)

    x = jnp.asarray(normal(4096), dtype)
    expected = jax.jit(lambda x: Theirs().apply({}, x, rngs={"dropout": KEY}))(x)
    call = jax.jit(lambda x, traced: Ours().apply({}, x, traced, rngs={"dropout": KEY}))
    np.testing.assert_array_equal(call(x, None), expected)
    found = call(x, jnp.float32(rate))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found == 0, expected == 0)
    # XLA multiplies by the inverse instead of dividing by a constant. This can change the last bit, except for
    # powers of two. In bfloat16, Flax divides by the keep probability rounded to bfloat16.
    error = 0 if rate == 0.5 else 2e-7 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=error)
    assert (np.asarray(expected) == 0).any()
    np.testing.assert_array_equal(Dropout(rate).apply({}, x, False, jnp.float32(rate)), x)


def test_factor_one_and_rate_zero_add_no_operations():
    assert scaled(0.3, 1.0) is None
    assert scaled(0.0, jnp.float32(0.5)) is None
    assert float(scaled(0.5, 0.5)) == 0.25
    model = create_model("resnet18", widths=(4,), depths=(2,), num_classes=3)
    variables = jax.eval_shape(model.init, KEY, jnp.zeros((1, 16, 16, 3)))

    def equations(**options):
        def call(variables, images, factor):
            net = model.clone(**options)
            factors = {} if factor is None else {"drop_factor": factor}
            return net.apply(
                variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": KEY},
                **factors,
            )  # fmt: skip

        images = jnp.zeros((2, 16, 16, 3))
        return [
            len(jax.make_jaxpr(call)(variables, images, factor).eqns)
            for factor in (None, jnp.float32(1))
        ]

    constant, traced = equations()
    assert constant == traced
    constant, traced = equations(drop_path=0.5)
    assert constant < traced


BLOCKS = {"dropout": 0.5, "dropout_at": "blocks", "drop_path": 0.5}
NETWORKS = {
    "basic, at the head": ("resnet18", {"dropout": 0.5, "drop_path": 0.5}),
    "basic, rematerialised": ("resnet18", {**BLOCKS, "remat": "block"}),
    "bottleneck": ("resnet50", BLOCKS),
    "preact": ("resnetv2_18", BLOCKS),
    "preact bottleneck, stages rematerialised": ("resnetv2_50", {**BLOCKS, "remat": "stage"}),
    "scanned": ("resnet18", {**BLOCKS, "scan_blocks": True}),
    "scanned, blocks rematerialised": (
        "resnet18",
        {**BLOCKS, "scan_blocks": True, "remat": "block"},
    ),
    "scanned, stages rematerialised": (
        "resnet18",
        {**BLOCKS, "scan_blocks": True, "remat": "stage"},
    ),
    "AlexNet": (None, {"dropout": 0.5, "dropout_first": True}),
    "VGG": (None, {"dropout": 0.5}),
}


# The quickest of each kind; the others take half a minute each to compile.
QUICK = ("basic, at the head", "AlexNet", "VGG")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in NETWORKS],
)
def test_one_program_serves_all_factors(name):
    """The logits equal those of a network with scaled rates; for factor 1, the gradients are equal too."""
    network, options = NETWORKS[name]
    if network:
        depths = (3,) if "scan_blocks" in options else (2,)
        model = create_model(network, widths=(8,), depths=depths, num_classes=3, **options)
    else:
        layers = ((8, 3, 1, 1), "M")
        model = ConvNet(layers, num_classes=3, map_size=1, **options)
    images = normal(8, 16, 16, 3)
    variables = jax.jit(lambda: model.init(KEY, images[:1]))()

    def logits(params, model, **factor):
        found, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)}, **factor,
        )  # fmt: skip
        return found

    def with_gradient(params, **factor):
        found, pull = jax.vjp(lambda params: logits(params, model, **factor), params)
        return found, pull(jnp.ones_like(found))

    params = variables["params"]
    traced = jax.jit(lambda params, factor: with_gradient(params, drop_factor=factor))
    none, half, whole = (traced(params, jnp.float32(factor)) for factor in (0, 0.5, 1))
    assert traced._cache_size() == 1
    for factor, (found, _) in ((0.0, none), (0.5, half)):
        rates = {k: factor * options[k] for k in ("dropout", "drop_path") if k in options}
        expected = jax.jit(logits, static_argnums=1)(params, model.clone(**rates))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        *map(jax.tree.leaves, (whole, jax.jit(with_gradient)(params))), strict=True
    ):
        size = max(1e-3, float(jnp.abs(theirs).max()))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * size)
    assert np.abs(none[0] - half[0]).max() > 1e-3
    assert np.abs(half[0] - whole[0]).max() > 1e-3


def test_nothing_is_dropped_in_evaluation():
    model = create_model("resnet18", widths=(4,), depths=(2,), num_classes=3, **BLOCKS)
    images = normal(2, 16, 16, 3)
    variables = jax.jit(lambda: model.init(KEY, images[:1]))()
    call = jax.jit(lambda v, **factor: model.apply(v, images, train=False, **factor))
    found = call(variables, drop_factor=jnp.float32(1))
    np.testing.assert_array_equal(found, call(variables))


@pytest.mark.parametrize("rate", ["dropout", "drop_path"])
def test_the_factor_scales_dropout_and_drop_path_separately(rate):
    model = create_model("resnet18", widths=(4,), depths=(2,), num_classes=3, **{rate: 0.5})
    images = normal(8, 16, 16, 3)
    variables = jax.jit(lambda: model.init(KEY, images[:1]))()

    @jax.jit
    def logits(factor):
        return model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": KEY},
            drop_factor=factor,
        )[0]  # fmt: skip

    assert np.abs(logits(jnp.float32(1)) - logits(jnp.float32(0))).max() > 1e-3
