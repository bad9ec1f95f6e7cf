"""The operations for GPU, run on CPU: results and gradients equal those of XLA's operations."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from operation_results import farthest, normal, results

from flax_resnet import create_model
from flax_resnet.ops import conv, dispatch


@pytest.mark.parametrize("shape", [(2, 15, 14, 3), (1, 16, 17, 1)])
@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(7, 2, 3), (3, 2, 1), (4, 4, 0), (2, 2, 0), (5, 3, 4), (3, 4, 1)],
)
def test_the_gpu_form_of_a_stem_equals_xlas_convolution(size, stride, padding, shape, monkeypatch):
    monkeypatch.setenv(dispatch.SWITCH, "gpu")
    geometry = conv.Geometry(stride, padding, 1, 1)
    with jax.enable_x64(True):
        x = normal(shape, jnp.float64)
        kernel = normal((size, size, shape[-1], 6), jnp.float64, 1)
        got = results(jax.jit(partial(conv.convolve, geometry)), x, kernel)
        wanted = results(partial(conv.plain, geometry), x, kernel)
        assert farthest(got, wanted) < 1e-10
        text = jax.jit(partial(conv.convolve, geometry)).lower(x, kernel).as_text()
    # The stem is one convolution at stride 1. Its input channels are a multiple of 8, which cuDNN needs.
    assert text.count("stablehlo.convolution") == 1
    assert f"window = {{stride = [{stride}, {stride}]" not in text
    assert any(f"x{8 * number}xf" in text for number in range(1, 7))


def test_the_gpu_operations_give_the_gradient_of_the_plain_ones(monkeypatch):
    model = create_model("resnet18", widths=(8, 8, 8, 8), num_classes=5)
    images = normal((4, 64, 64, 3), jnp.float32)
    variables = jax.jit(lambda: model.init(jax.random.key(0), images[:1], train=False))()

    def gradient(switch):
        monkeypatch.setenv(dispatch.SWITCH, switch)

        def loss(params):
            given = {**variables, "params": params}
            logits, updated = model.apply(given, images, train=True, mutable=["batch_stats"])
            return jnp.sin(logits).sum(), updated

        return jax.tree.leaves(jax.jit(jax.grad(loss, has_aux=True))(variables["params"]))

    assert farthest(gradient("gpu"), gradient("plain")) < 1e-3
