"""Airbench: its layers, and its whitening filters, which are computed from the training images."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn

from flax_resnet import create_model
from flax_resnet.augment.apply import normalize
from flax_resnet.config import freeze
from flax_resnet.data.sources.arrays import ArraySource
from flax_resnet.models.airbench import identity_first, patch_moments, whitening_filters
from flax_resnet.models.folding import fold_batch_norm
from flax_resnet.models.summary import summarize
from flax_resnet.training.runs.load import load_run
from flax_resnet.training.train import train
from flax_resnet.weights import from_torch, to_torch


def photographs(count, size):
    """Return crops of a photograph, uint8 [count, size, size, 3]; neighbouring pixels are similar."""
    from sklearn.datasets import load_sample_images

    draw, image = np.random.default_rng(0), load_sample_images().images[0]
    corners = draw.integers(0, 350, (count, 2))
    return np.stack([image[top : top + size, left : left + size] for top, left in corners])


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_are_uncorrelated_with_unit_variance(channels):
    images = photographs(64, 16)[..., :channels] / np.float32(255) - 0.4
    kernel = whitening_filters(np.asarray(patch_moments(jnp.asarray(images))))
    assert kernel.shape == (2, 2, channels, 8 * channels)
    model = create_model("airbench94", in_channels=channels)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    assert variables["batch_stats"]["conv1"]["kernel"].shape == kernel.shape
    assert set(variables["params"]["conv1"]) == {"bias"}

    half = 4 * channels
    patches = np.lib.stride_tricks.sliding_window_view(images, (2, 2), axis=(1, 2))
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, half).astype(np.float64)
    outputs = patches @ kernel.reshape(half, 2 * half)
    np.testing.assert_allclose(outputs[:, :half], -outputs[:, half:])
    moments = outputs[:, :half].T @ outputs[:, :half] / len(outputs)
    assert np.abs(moments - np.diag(np.diag(moments))).max() < 1e-3
    variances = np.linalg.eigvalsh(patches.T @ patches / len(patches))[::-1]
    np.testing.assert_allclose(np.diag(moments), variances / (variances + 5e-4), rtol=1e-3)
    assert moments[0, 0] == pytest.approx(1, abs=0.01)


def test_identity_first_copies_the_inputs_to_the_first_outputs():
    kernel = identity_first(jax.random.key(0), (3, 3, 4, 6))
    image = jax.random.normal(jax.random.key(1), (1, 5, 5, 4))
    dimensions = jax.lax.conv_dimension_numbers(image.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    output = jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=dimensions
    )
    np.testing.assert_allclose(output[..., :4], image, rtol=1e-6)
    assert np.abs(kernel[..., 4:]).max() <= 1 / 6


def test_the_logits_equal_a_numpy_implementation():
    """The weights and the running statistics are random."""
    model = create_model("airbench94", widths=(3, 5), num_classes=2)
    images = np.random.default_rng(0).normal(size=(2, 9, 9, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    variables = drawn(shapes)

    def convolved(x, kernel, padding):
        x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
        return np.einsum("nhwikl,klio->nhwo", windows, kernel)

    def gelu(x):
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / 2**0.5))

    def normalized(x, place, name):
        params, stats = (variables[kind][place][name] for kind in ("params", "batch_stats"))
        y = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-12) * params["scale"] + params["bias"]
        return gelu(y)

    params = variables["params"]
    x = convolved(images, variables["batch_stats"]["conv1"]["kernel"], 0) + params["conv1"]["bias"]
    x = gelu(x)
    for place in ("layer1_0", "layer2_0"):
        x = convolved(x, params[place]["conv1"]["kernel"], 1)
        half = x.shape[1] // 2
        x = x[:, : 2 * half, : 2 * half].reshape(2, half, 2, half, 2, -1).max(axis=(2, 4))
        x = normalized(x, place, "bn1")
        x = normalized(convolved(x, params[place]["conv2"]["kernel"], 1), place, "bn2")
    expected = x.max(axis=(1, 2)) @ params["fc"]["kernel"] / 9
    np.testing.assert_allclose(model.apply(variables, images), expected, rtol=1e-4, atol=1e-5)

    folded = fold_batch_norm(model, jax.tree.map(jnp.asarray, variables))
    np.testing.assert_allclose(model.apply(folded, images), expected, rtol=1e-4, atol=1e-5)
    tensors = to_torch(variables)
    assert tensors["conv1.weight"].shape == (24, 3, 2, 2)
    jax.tree.map(np.testing.assert_array_equal, from_torch(tensors, shapes), variables)


def test_the_summary_counts_the_whitening_layer():
    summary = summarize("airbench94")
    assert summary.input_shape == (1, 32, 32, 3)
    assert summary.layers[0].macs == 31 * 31 * 24 * 12
    assert (summary.parameters, summary.running_statistics) == (1_972_504, 2_592)


@pytest.mark.slow
def test_a_run_computes_the_whitening_filters_and_keeps_them(tmp_path):
    images, labels = photographs(48, 16), np.arange(48) % 2
    source = ArraySource(images, labels, class_names=("even", "odd"))
    sections = {
        "data": {"source": "python", "image_size": 16},
        "model": {"name": "airbench94", "widths": (4, 8, 8)},
        "train": {"batch_size": 48, "epochs": 2},
        "ema": {"decay": 0.7, "warmup": False, "decay_power": 3.0, "lookahead": 2},
    }
    config = freeze(sections)
    train(config, tmp_path / "run", train_source=source, eval_source=source)
    run = load_run(tmp_path / "run")
    # The batch holds all images, so the filters do not depend on the order of the images.
    moments = np.asarray(patch_moments(normalize(jnp.asarray(images), config.augment)))
    variances = np.linalg.eigvalsh(moments)[::-1]
    for batch_stats in (run.variables["batch_stats"], run.ema["batch_stats"]):
        half = batch_stats["conv1"]["kernel"].reshape(12, 24)[:, :12]
        expected = np.diag(variances / (variances + 5e-4))
        np.testing.assert_allclose(half.T @ moments @ half, expected, atol=1e-3)
    assert not np.array_equal(run.variables["params"]["conv1"]["bias"], np.zeros(24))
