"""Names of layers and networks, initialisation, batch normalisation and max-pooling."""

import jax
import jax.numpy as jnp
import numpy as np
from conftest import refused

from flax_resnet import create_model, list_models
from flax_resnet.errors import ConfigError
from flax_resnet.models.layers import convolution, normalization
from flax_resnet.ops.max_pool import max_pool


def shapes_of(model, size=224):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)


def test_names_follow_torchvision():
    params = shapes_of(create_model("resnet50"))["params"]
    assert params["layer3_5"].keys() == {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3"}
    assert params["layer1_0"].keys() > {"downsample_0", "downsample_1"}
    assert params["fc"]["kernel"].shape == (2048, 1000)
    assert params["conv1"]["kernel"].shape == (7, 7, 3, 64)


def test_list_models():
    assert list_models("resnet18*") == ["resnet18", "resnet18_cifar", "resnet18d"]
    assert len(list_models()) == 141


def test_batch_norm_updates_the_running_statistics_like_torch():
    draw = np.random.default_rng(0)
    x = draw.normal(3, 2, (4, 5, 6, 7)).astype(np.float32)
    layer = normalization.BatchNorm(momentum=0.1)
    variables = layer.init(jax.random.key(0), x, train=False)
    y, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=2e-5)
    stats = jax.tree.map(np.asarray, updated["batch_stats"])
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)
    evaluated = layer.apply({**variables, **updated}, x, train=False)
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(evaluated, expected, atol=2e-5)


def test_batch_norm_is_accurate_for_a_mean_far_from_zero():
    draw = np.random.default_rng(0)
    x = (1e4 + draw.normal(size=(8, 4, 4, 3))).astype(np.float32)
    layer = normalization.BatchNorm()
    variables = layer.init(jax.random.key(0), x, train=False)
    y, _ = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    exact = x.astype(np.float64)
    exact = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(y, exact, atol=2e-2)


def test_batch_norm_groups_are_normalised_separately():
    x = np.random.default_rng(0).normal(size=(8, 2, 2, 3)).astype(np.float32)
    whole, grouped = normalization.BatchNorm(), normalization.BatchNorm(groups=4)
    variables = whole.init(jax.random.key(0), x, train=False)
    y, updated = grouped.apply(variables, x, train=True, mutable=["batch_stats"])
    parts = [
        whole.apply(variables, x[i : i + 2], train=True, mutable=["batch_stats"])
        for i in (0, 2, 4, 6)
    ]
    np.testing.assert_allclose(y, np.concatenate([p[0] for p in parts]), atol=1e-6)
    for key in ("mean", "var"):
        expected = np.mean([p[1]["batch_stats"][key] for p in parts], axis=0)
        np.testing.assert_allclose(updated["batch_stats"][key], expected, atol=1e-6)


def test_frozen_batch_norm_ignores_the_batch():
    x = np.random.default_rng(0).normal(size=(8, 2, 2, 3)).astype(np.float32)
    layer = normalization.BatchNorm(frozen=True)
    variables = layer.init(jax.random.key(0), x, train=False)
    y, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])


def test_batch_norm_refuses_one_value_per_channel():
    layer, x = normalization.BatchNorm(), np.ones((1, 1, 1, 3), np.float32)
    variables = layer.init(jax.random.key(0), x, train=False)
    with refused("train.batch_size", kind=ConfigError):
        layer.apply(variables, x, train=True, mutable=["batch_stats"])


def test_a_strided_block_of_constant_width_keeps_its_projection_on_a_1x1_map():
    model = create_model("resnet18", widths=(8, 8, 8, 8), num_classes=2)
    assert "downsample_0" in shapes_of(model, 32)["params"]["layer4_0"]


def test_convolutions_are_initialised_he_normal_by_fan_out():
    kernel = convolution.Conv(256, 3).init(jax.random.key(0), jnp.zeros((1, 8, 8, 64)))["params"][
        "kernel"
    ]
    assert abs(float(kernel.std()) / np.sqrt(2 / (9 * 256)) - 1) < 0.02


def test_zero_init_last_starts_blocks_as_identities():
    model = create_model(
        "resnet18", widths=(4, 8, 16, 32), num_classes=3, zero_init_last=True, stem="cifar"
    )
    init = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))
    params = init()["params"]
    assert not np.asarray(params["layer2_1"]["bn2"]["scale"]).any()
    assert np.asarray(params["layer2_0"]["downsample_1"]["scale"]).all()


def test_max_pool_never_selects_the_padding():
    x = -1 - np.random.default_rng(0).random((1, 4, 4, 1)).astype(np.float32)
    y = max_pool(jnp.asarray(x), size=3, stride=2, padding=1)
    expected = [
        [x[0, 0:2, 0:2].max(), x[0, 0:2, 1:4].max()],
        [x[0, 1:4, 0:2].max(), x[0, 1:4, 1:4].max()],
    ]
    np.testing.assert_array_equal(y[0, :, :, 0], expected)
