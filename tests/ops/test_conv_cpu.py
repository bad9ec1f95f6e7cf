"""What convolutions are made of on CPU equals XLA's own operation, gradients included; and where that is done."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import AS_USERS, refused
from operation_results import SWITCHES, farthest, normal, results

from flax_resnet import create_model
from flax_resnet.errors import ConfigError
from flax_resnet.models.layers import convolution
from flax_resnet.ops import conv, dispatch, winograd
from flax_resnet.ops.max_pool import max_pool

# 80 and 72 tiles of 4x4 outputs, then 64, 60 and 44: as many as there are channels and more, and fewer.
WINOGRAD_LARGE = {
    "3x3": ((5, 13, 13, 64), 72, 3, 1, 1),
    "3x3, whole tiles": ((8, 12, 12, 64), 72, 3, 1, 1),
}
WINOGRAD_SMALL = {
    "3x3, few tiles": ((4, 13, 13, 64), 80, 3, 1, 1),
    "3x3, not square": ((5, 9, 14, 72), 64, 3, 1, 1),
    "3x3, small map": ((11, 7, 7, 64), 72, 3, 1, 1),
}
WINOGRAD = WINOGRAD_LARGE | WINOGRAD_SMALL
# name: x [N, H, W, I], output channels, kernel size, stride, groups
CONVOLUTIONS = {
    **{
        f"{size}x{size}, {kernel}x{kernel}/{stride}": ((3, size, size, 5), 7, kernel, stride, 1)
        for size in (1, 2, 4)
        for kernel in (1, 3, 7)
        for stride in (1, 2)
    },
    "pointwise, wide to narrow": ((2, 9, 7, 24), 8, 1, 1, 1),
    "pointwise, strided": ((2, 9, 8, 8), 24, 1, 2, 1),
    **WINOGRAD,
    "3x3, narrow": ((4, 13, 13, 32), 40, 3, 1, 1),
    "3x3, few pixels": ((2, 13, 13, 32), 40, 3, 1, 1),
    "3x3/2, few pixels": ((2, 13, 13, 32), 40, 3, 2, 1),
    "3x3, 24, 24 and 22 images at a time": ((70, 9, 9, 8), 12, 3, 1, 1),
    "grouped": ((2, 9, 9, 96), 96, 3, 1, 12),
    "grouped, strided, widening": ((2, 9, 9, 24), 48, 3, 2, 6),
    "grouped, wide groups": ((2, 7, 7, 256), 256, 3, 1, 2),
    "grouped, sixteen blocks": ((4, 7, 7, 1024), 1024, 3, 1, 32),
    "one channel a group": ((2, 9, 9, 16), 16, 3, 2, 16),
    "stem": ((2, 33, 33, 3), 16, 7, 2, 1),
}
# x, kernel size, stride and padding, where the taps that see the map have gaps, or are none.
ODD = {
    "gap": ((2, 1, 1, 4), 3, 2, 2),
    "nothing": ((2, 1, 1, 4), 1, 2, 1),
}


@pytest.mark.parametrize(
    ("switch", "dtype", "limit"),
    [("cpu", "float64", 1e-10), *((switch, "float32", 1e-5) for switch in SWITCHES)],
)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_equal_xlas_own(name, switch, dtype, limit, monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, switch)
    shape, features, size, stride, groups = CONVOLUTIONS[name]
    geometry = conv.Geometry(stride, size // 2, 1, groups)
    with jax.enable_x64(True):
        x = normal(shape, dtype)
        kernel = normal((size, size, shape[-1] // groups, features), dtype, 1)

        def ours(x, kernel):
            return convolution.convolution(
                x, kernel, stride=stride, padding=size // 2, groups=groups
            )

        def plain(x, kernel):
            return conv.plain(geometry, x, kernel)

        got, wanted = (
            jax.jit(partial(results, function), compiler_options=AS_USERS)(x, kernel)
            for function in (ours, plain)
        )
        assert farthest(got, wanted) < limit
        assert all(leaf.dtype == dtype for leaf in got)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_in_bfloat16_are_as_close_as_its_digits(name, monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "cpu")
    shape, features, size, stride, groups = CONVOLUTIONS[name]
    geometry = conv.Geometry(stride, size // 2, 1, groups)
    x = normal(shape, jnp.bfloat16)
    kernel = normal((size, size, shape[-1] // groups, features), jnp.bfloat16, 1)
    exact = results(partial(conv.plain, geometry), *(a.astype(jnp.float32) for a in (x, kernel)))
    got = results(jax.jit(partial(conv.convolve, geometry)), x, kernel)
    assert farthest(got, exact) < 2**-8
    assert all(leaf.dtype == jnp.bfloat16 for leaf in got)


@pytest.mark.parametrize("name", WINOGRAD)
def test_the_transform_follows_the_number_of_tiles(name):
    shape, features, *_ = WINOGRAD[name]
    wanted = winograd.LARGE if name in WINOGRAD_LARGE else winograd.SMALL
    assert winograd.transform_for(jax.ShapeDtypeStruct(shape, jnp.float32), features) is wanted


@pytest.mark.parametrize("t", [winograd.SMALL, winograd.LARGE], ids=["F(2, 3)", "F(4, 3)"])
def test_winograd_matrices_convolve(t):
    draw = np.random.default_rng(0)
    tile, kernel = draw.normal(size=len(t.inputs)), draw.normal(size=3)
    got = t.outputs.T @ ((t.kernel @ kernel) * (t.inputs @ tile))
    np.testing.assert_allclose(got, np.correlate(tile, kernel, "valid"), atol=1e-12)


def operations(function, *arguments):
    """The operations of a compiled program, and how often each stands in it."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    names = re.findall(r" = (?:\S+|\([^()]*\)) ([a-z-]+)\(", text)  # of one result, or of several
    return {name: names.count(name) for name in names}


def test_the_lowering_is_used(monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "cpu")

    def found(size, features=64, dtype=jnp.float32, groups=1, kernel_size=3):
        def run(x, k):
            return convolution.convolution(x, k, padding=kernel_size // 2, groups=groups)

        x = jnp.zeros((4, size, size, 64), dtype)
        kernel = jnp.zeros((kernel_size, kernel_size, 64 // groups, features), dtype)
        # A new function each time: jit keeps what was traced under the other switch.
        return operations(lambda x, k: results(run, x, k), x, kernel)

    assert "convolution" not in found(14)
    assert "convolution" not in found(2)
    assert "convolution" not in found(14, kernel_size=1)
    assert found(14, groups=16)["convolution"] == 12  # four dense blocks
    assert found(14, features=63)["convolution"] == 3
    assert "convolution" not in found(14, dtype=jnp.bfloat16)
    with jax.enable_x64(True):
        assert found(14, dtype=jnp.float64)["convolution"] == 3  # exact
    monkeypatch.setenv(dispatch.SWITCH, "plain")
    assert found(14)["convolution"] == 3


def test_the_gradient_of_the_images_is_not_computed(monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "cpu")
    x, kernel = jnp.zeros((2, 32, 32, 3)), jnp.zeros((7, 7, 3, 8))

    def kernel_gradient(x, kernel):
        run = lambda k: convolution.convolution(x, k, stride=2, padding=3).sum()  # noqa: E731
        return jax.grad(run)(kernel)

    assert operations(kernel_gradient, x, kernel)["convolution"] == 1


def test_several_devices_gather_nothing(monkeypatch):
    from flax_resnet.training import sharding

    monkeypatch.delenv(dispatch.SWITCH, raising=False)
    mesh = sharding.make_mesh()
    spread = jax.NamedSharding(mesh, jax.P("data"))
    x = jax.ShapeDtypeStruct((16, 14, 14, 64), jnp.float32, sharding=spread)
    for size in (1, 3):
        kernel = jax.ShapeDtypeStruct(
            (size, size, 64, 64), jnp.float32, sharding=sharding.replicated(mesh)
        )

        def loss(x, kernel, size=size):
            y = convolution.convolution(jnp.sin(x), kernel, padding=size // 2)
            return jnp.sin(max_pool(y, size=3, stride=2, padding=1)).sum()

        found = operations(jax.grad(loss, (0, 1)), x, kernel)
        assert found["all-reduce"]
        assert not {"all-gather", "all-to-all"} & found.keys()


def test_a_network_exported_for_gpu_holds_no_lowering_of_the_cpu(monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "cpu")
    model = create_model("resnet18", widths=(64, 64, 64, 64), num_classes=3)
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)  # pixels enough for Winograd's
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    run = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    text = jax.export.export(run, platforms=["cuda"])(variables, x).mlir_module()
    assert text.count("stablehlo.convolution") == 20
    assert text.count("stablehlo.dot_general") == 1


@pytest.mark.parametrize("name", ["resnet18", "airbench94"])
def test_a_gradient_exports_for_gpu(name, monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "cpu")
    model = create_model(name, num_classes=3)
    x = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)

    def loss(params, variables, x):
        given = {**variables, "params": params}
        logits, updated = model.apply(given, x, train=True, mutable=["batch_stats"])
        return jnp.sin(logits).sum(), updated

    slope = jax.jit(jax.grad(loss, has_aux=True))
    exported = jax.export.export(slope, platforms=["cuda"])(variables["params"], variables, x)
    assert len(exported.serialize())


def test_inference_exports_from_gpu_for_cpu(monkeypatch):
    monkeypatch.setattr(dispatch, "backend", lambda: ("gpu", 1))
    model = create_model("resnet18", num_classes=3)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    run = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    exported = jax.export.export(run, platforms=["cpu", "cuda"])(variables, x)
    assert len(exported.serialize())


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_a_network_exports_with_a_symbolic_batch(platform, monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "cpu")
    model = create_model("resnet18", widths=(32, 32, 32, 32), num_classes=3)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, 64, 64, 3), jnp.float32)
    run = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    exported = jax.export.export(run, platforms=[platform])(variables, x)
    assert exported.out_avals[0].shape == (batch, 3)


@pytest.mark.parametrize("name", ODD)
def test_kernels_whose_taps_see_little(name, monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "cpu")
    shape, size, stride, padding = ODD[name]
    x, kernel = normal(shape, jnp.float32), normal((size, size, 4, 5), jnp.float32, 1)
    got = convolution.convolution(x, kernel, stride=stride, padding=padding)
    wanted = conv.plain(conv.Geometry(stride, padding, 1, 1), x, kernel)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_a_window_larger_than_its_map_gives_an_empty_map(monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "cpu")
    assert max_pool(jnp.zeros((1, 1, 1, 2)), size=3, stride=2).shape == (1, 0, 0, 2)
    model = create_model("alexnet", num_classes=3)
    init = lambda x: model.init(jax.random.key(0), x, train=False)  # noqa: E731
    with refused("images", (1, 32, 32, 3), ConfigError):
        jax.eval_shape(init, jnp.zeros((1, 32, 32, 3)))


def test_forward_mode_works_without_the_lowering(monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "plain")
    x, kernel = normal((1, 8, 8, 4), jnp.float32), normal((3, 3, 4, 4), jnp.float32)
    run = lambda x: convolution.convolution(x, kernel, padding=1)  # noqa: E731
    y, tangent = jax.jvp(run, (x,), (x,))
    np.testing.assert_allclose(y, tangent, rtol=1e-5)


def test_second_derivatives(monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "cpu")
    shape, features, *_ = WINOGRAD["3x3, whole tiles"]
    x, kernel = normal(shape, jnp.float32), normal((3, 3, shape[-1], features), jnp.float32, 1)

    def curvature(run):
        slope = jax.grad(lambda k: jnp.sin(run(x, k)).sum())
        return jax.grad(lambda k: (slope(k) * k).sum())(kernel)

    def ours(x, k):
        return convolution.convolution(x, k, padding=1)

    def plain(x, k):
        return conv.plain(conv.Geometry(1, 1, 1, 1), x, k)

    assert farthest([curvature(ours)], [curvature(plain)]) < 1e-3  # sin'' of sums of hundreds


def test_a_switch_of_another_name_is_refused(monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "fast")
    with refused("FLAX_RESNET_OPS", "fast", ConfigError) as error:
        convolution.convolution(jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 1, 1, 1)))
    assert error.value.allowed == ("auto", "plain", "cpu", "gpu")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18d", {"depths": (1, 1), "widths": (4, 8), "attention": "se"}),
        ("resnetv2_50x1_bit", {"depths": (1, 1), "widths": (32, 32)}),
        ("airbench94", {"widths": (8, 16, 16)}),
    ],
)
def test_networks_take_numpy_arrays_outside_of_jit(name, options, monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "cpu")
    model = create_model(name, num_classes=3, **options)
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), images, train=False)
    expected = model.apply(variables, jnp.asarray(images), train=False)
    for given in (variables, jax.device_get(variables)):
        found = model.apply(given, images, train=False)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
