"""The collapsed 1x1 convolution and BatchNorm equal the usual two operations.

In bfloat16, limits are distances from float64 results for the same rounded kernel and the same inputs.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    use_abstract_mesh,
)
from operation_results import farthest, normal

from flax_resnet.ops import collapsed, dispatch
from flax_resnet.ops.collapsed import Scope, collapsed_batch_norm, collapses
from flax_resnet.ops.dispatch import operations

EPSILON = 1e-5
PIXELS, INPUTS, OUTPUTS = (8, 6, 6), 16, 64
NAMES = ("z", "mean", "var", "pooled", "dx", "dkernel", "dscale", "dbias")


def usual(x, kernel, scale, bias, groups):
    """Convolve and normalise each group of images by its moments, and return the means of the images, too."""
    y = (x @ kernel).reshape(groups, -1, *x.shape[1:3], kernel.shape[1])
    mean = y.mean(axis=(1, 2, 3), keepdims=True)
    var = jnp.square(y - mean).mean(axis=(1, 2, 3), keepdims=True)
    vectors = (v.reshape(1, 1, 1, 1, -1) for v in (scale, bias))
    factor, bias = next(vectors) / jnp.sqrt(var + EPSILON), next(vectors)
    z = ((y - mean) * factor + bias).reshape(*x.shape[:3], -1)
    return z, mean.reshape(groups, -1), var.reshape(groups, -1), z.mean(axis=(1, 2))


def inputs(ratio=0.5, dtype="float64"):
    """Return x with means of `ratio` deviations, kernel, scale and bias; x is exact in bfloat16."""
    x = (normal((*PIXELS, INPUTS), "float32") + ratio).astype(jnp.bfloat16)
    kernel = normal((INPUTS, OUTPUTS), "float32", 1)
    vectors = [1 + 0.2 * normal((OUTPUTS,), "float32", 2), normal((OUTPUTS,), "float32", 3)]
    wide = jnp.promote_types(dtype, jnp.float32)
    return [x.astype(dtype), kernel.astype(wide), *(v.astype(wide) for v in vectors)]


def cotangents(groups, slope_mean=0.0, statistics=True):
    g = (normal((*PIXELS, OUTPUTS), "float32", 4) + slope_mean).astype(jnp.bfloat16)
    shapes = (groups, OUTPUTS), (groups, OUTPUTS), (PIXELS[0], OUTPUTS)
    others = [int(statistics) * normal(shape, "float32", 5 + n) for n, shape in enumerate(shapes)]
    return g, *others


def outcome(function, arguments, given):
    """Return outputs and gradients by name, in float64."""
    y, pull = jax.vjp(jax.jit(function), *arguments)
    slopes = pull(tuple(g.astype(leaf.dtype) for g, leaf in zip(given, y, strict=True)))
    leaves = [leaf.astype("float64") for leaf in (*y, *slopes)]
    return dict(zip(NAMES, leaves, strict=True))


def compared(ratio=0.5, dtype="float64", groups=1, shards=1, slope_mean=0.0, statistics=True):
    """Return the relative root-mean-square distance of each result from the usual one in float64."""
    with jax.enable_x64(True):
        about = jnp.zeros(OUTPUTS, jnp.promote_types(dtype, jnp.float32))

        def ours(x, kernel, scale, bias):
            scope = Scope(EPSILON, groups, shards, pools=True)
            return collapsed_batch_norm(x, kernel, scale, bias, about, scope)

        given = cotangents(groups, slope_mean, statistics)
        got = outcome(ours, inputs(ratio, dtype), given)
        x, kernel, *vectors = inputs(ratio)
        kernel = kernel.astype(dtype).astype("float64")
        exact = outcome(lambda *a: usual(*a, groups), [x, kernel, *vectors], given)
        return {
            name: float(jnp.linalg.norm(got[name] - exact[name]) / jnp.linalg.norm(exact[name]))
            for name in NAMES
        }


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(
    ("groups", "shards"), [(1, 1), (4, 1), (8, 1), (1, 4), (2, 4), (4, 2), (8, 8)]
)
def test_it_is_the_usual_form_in_exact_arithmetic(groups, shards, statistics):
    distances = compared(groups=groups, shards=shards, statistics=statistics)
    assert max(distances.values()) < 1e-12, distances


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_errors(dtype, groups):
    limits = dict(mean=1e-6, var=2e-6, dkernel=3e-6, dscale=3e-6, dbias=1e-6)
    limits |= (
        dict(z=1e-6, pooled=1e-6, dx=2e-6)
        if dtype == "float32"
        else dict(z=6e-3, pooled=1e-3, dx=5e-3)
    )
    distances = compared(dtype=dtype, groups=groups, statistics=False)
    assert {name: d for name, d in distances.items() if d > limits[name]} == {}


@pytest.mark.parametrize("ratio", [10, 30])
def test_inputs_far_from_zero(ratio):
    """The usual form rounds y, whose mean is far from zero; it is 1.1 and 3.1 % off in z, 0.2 and 0.6 % in var."""
    distances = compared(ratio, "bfloat16", statistics=False)
    assert distances["z"] < 2e-3 * ratio  # limited by the bias, which is one bfloat16
    assert distances["var"] < 1e-5 * ratio
    assert distances["dx"] < 5e-3


def test_gradients_with_a_mean():
    distances = compared(1.0, "bfloat16", slope_mean=3.0, statistics=False)
    assert distances["dkernel"] < 1e-4
    assert (
        distances["dx"] < 1e-2
    )  # XLA rounds twice on CPU; 2.8e-3 with one rounding, as cuDNN does


def test_the_mean_of_each_channel_is_the_bias():
    """It is, because the bias of the product is computed from the rounded product."""
    x, kernel, scale, bias = inputs(1.0, "bfloat16")
    *_, pooled = collapsed_batch_norm(x, kernel, scale, bias, bias, Scope(EPSILON, pools=True))
    np.testing.assert_allclose(pooled.mean(axis=0), bias, atol=1e-5)


def test_zero_scales_give_zeros_and_constant_channels_are_finite():
    x, kernel, scale, bias = inputs(1.0, "bfloat16")
    z, *_ = collapsed_batch_norm(x, kernel, 0 * scale, 0 * bias, bias, Scope(EPSILON))
    assert not z.any()
    for constant in (0.0, 3.0):
        given = jnp.full_like(x, constant), kernel, scale, bias
        y, pull = jax.vjp(lambda *a: collapsed_batch_norm(*a, bias, Scope(EPSILON))[0], *given)
        assert all(jnp.isfinite(leaf).all() for leaf in (y, *pull(jnp.ones_like(y))))


def test_the_variance_has_a_floor():
    """A kernel that is orthogonal to what varies in x gives constant channels, which must not be blown up."""
    direction = normal((INPUTS,), "bfloat16", 1).astype(jnp.float32)
    along = normal((*PIXELS, 1), "float32")
    x = (along * direction.reshape(1, 1, 1, -1) + 5).astype(jnp.bfloat16)
    kernel = normal((INPUTS, OUTPUTS), "float32", 2)
    share = (direction @ kernel) / (direction @ direction)
    kernel -= direction[:, None] * share[None]
    ones = jnp.ones(OUTPUTS)
    z, *_ = collapsed_batch_norm(x, kernel, ones, 0 * ones, ones, Scope(1e-12))
    assert z.astype("float32").std(axis=(0, 1, 2)).max() < 3


def test_sums_over_pixels_of_several_chunks(monkeypatch):
    monkeypatch.setattr(collapsed, "GRAM_CHUNK", 1)
    monkeypatch.setattr(collapsed, "CROSS_CHUNK", 100)
    shapes = []
    monkeypatch.setattr(
        jnp, "einsum", lambda *a, plain=jnp.einsum, **k: shapes.append(a[1].shape) or plain(*a, **k)
    )
    assert max(compared().values()) < 1e-12
    # 288 pixels: sums of 8 x 16 are as near to 1 as divisors allow, those of 100 are 144.
    assert {shape[2:4] for shape in shapes} == {(2, 144)}


def test_each_device_keeps_its_sums_over_pixels():
    """Only vectors cross devices, and the gradient of the kernel."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    count = len(jax.devices())
    x, *others = inputs(dtype="float32")
    given = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))]
    given += [jax.device_put(v, NamedSharding(mesh, PartitionSpec())) for v in others]

    def slopes(shards):
        def loss(x, kernel, scale, bias):
            z, *_ = collapsed_batch_norm(x, kernel, scale, bias, bias, Scope(EPSILON, 1, shards))
            return (z**3).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))

    programs = [slopes(shards).lower(*given).compile() for shards in (count, 1)]
    squares = [(INPUTS, INPUTS) in crossing(program) for program in programs]
    assert squares == [False, True]
    assert (INPUTS, OUTPUTS) in crossing(programs[0])
    assert farthest(programs[0](*given), programs[1](*given)) < 2e-5


def crossing(program):
    """Return the shapes, without axes of length 1, that cross devices."""
    lines = [
        line.split(" all-reduce(")[0]
        for line in program.as_text().splitlines()
        if " all-reduce(" in line
    ]
    shapes = [text for line in lines for text in re.findall(r"f32\[([\d,]*)\]", line)]
    return {
        tuple(int(side) for side in text.split(",") if side not in ("", "1")) for text in shapes
    }


def one_device():
    return use_abstract_mesh(AbstractMesh((1,), ("data",), (AxisType.Auto,)))


def test_where_it_is_taken():
    x = jnp.zeros((8, 16, 16, 64), jnp.bfloat16)
    assert not collapses("auto", x, 256, 1)  # on CPU
    with operations("gpu"), one_device():
        assert collapses("auto", x, 256, 1)
        assert not collapses("off", x, 256, 1)
        assert not collapses("auto", x.astype("float32"), 256, 1)
        assert not collapses("auto", x.astype("float16"), 256, 1)
        assert not collapses("auto", x, 64, 1)
        assert not collapses("auto", x, 256, 8)  # too few pixels for each sum
    assert collapses("on", x.astype("float32"), 65, 8)
    assert not collapses("on", x, 64, 1)
    with operations("plain"):
        assert not collapses("on", x, 256, 1)
    with ambient(AxisType.Auto):
        assert not collapses("on", x, 256, 3)  # groups that no number of whole devices makes
        assert not collapses("on", x[:4], 256, 1)  # images that the devices do not divide


def ambient(kind, axis="data"):
    return use_abstract_mesh(AbstractMesh((8,), (axis,), (kind,)))


def test_without_a_known_number_of_devices_it_is_not_taken_by_itself(monkeypatch):
    """XLA would gather the whole map for sums of which it does not know that they stay on a device."""
    x = jnp.zeros((8, 64, 64, 64), jnp.bfloat16)
    with operations("gpu"):
        assert not collapses("auto", x, 256, 1)
        with ambient(AxisType.Auto):
            assert collapses("auto", x, 256, 1)
        with ambient(AxisType.Explicit):
            assert not collapses("auto", x, 256, 1)
        with ambient(AxisType.Auto, "batch"):
            assert not collapses("auto", x, 256, 1)
        monkeypatch.setattr(dispatch, "backend", lambda: ("gpu", 1))
        assert collapses("auto", x, 256, 1)
