"""What is computed in which dtype: float16 with a scaled loss, and the default of each platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn

from flax_resnet.config import Config, freeze
from flax_resnet.plan import plan
from flax_resnet.sections import Model
from flax_resnet.training import loss_scale, sharding
from flax_resnet.training.optimizer import make_optimizer
from flax_resnet.training.state import TrainState, build_model, compute_dtype, make_state
from flax_resnet.training.step import make_train_step

ROWS = 16


def test_the_platform_says_what_auto_is(monkeypatch):
    assert Config().model.dtype == "auto"
    for platform, dtype in (("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        assert compute_dtype(Model()) == dtype
        assert build_model(Config(), 10).dtype == jnp.dtype(dtype)
        assert compute_dtype(Model(dtype="float16")) == "float16"


def trained(dtype, steps=3, factor=None, parts=1):
    """A small network after some steps, with what they measured."""
    config = freeze(
        {
            "model": {"name": "resnet20", "depths": (1,) * 3, "dtype": dtype},
            "train": {"batch_size": ROWS},
            "average": {"decay": 0.9},
        }
    )
    model, mesh = build_model(config, 10), sharding.make_mesh()
    optimizer = make_optimizer(config, plan(config, num_train=160, num_eval=1, num_classes=10))
    state = drawn(jax.eval_shape(lambda: make_state(config, model, optimizer)))
    if state.loss_scale:
        start = jnp.float32(factor or loss_scale.FIRST)
        state = state.replace(loss_scale={"factor": start, "steps": jnp.int32(0)})
    first = jax.tree.map(jnp.copy, state)
    draw = np.random.default_rng(0)
    batch = {
        "image": draw.integers(0, 256, (1, ROWS, 8, 8, 3), np.uint8),
        "label": draw.integers(0, 10, (1, ROWS)).astype(np.int32),
    }
    step, measured = make_train_step(config, model, optimizer, mesh, parts=parts), []
    state = jax.device_put(state, sharding.replicated(mesh))
    for _ in range(steps):
        state, metrics = step(state, {}, sharding.place(batch, mesh, steps=True))
        measured.append({name: float(value[0]) for name, value in metrics.items()})
    return first, state, measured


def test_float16_learns_as_float32_does():
    _, expected, losses = trained("float32")
    _, found, scaled = trained("float16")
    for before, after in zip(losses, scaled, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=0.01)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found.params)} == {"float32"}
    assert [m["loss_scale"] for m in scaled] == [2.0**15] * 3
    assert int(found.loss_scale["steps"]) == 3
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, atol=0.01)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_whose_gradient_overflows_teaches_nothing_and_halves_the_factor(parts):
    first, state, measured = trained("float16", steps=1, factor=2.0**24, parts=parts)
    assert np.isfinite(measured[0]["loss"])
    assert int(state.step) == 1
    assert state.loss_scale == {"factor": 2.0**23, "steps": 0}
    for name in ("params", "batch_stats", "opt_state", "average"):
        assert jax.tree.all(
            jax.tree.map(np.array_equal, getattr(state, name), getattr(first, name))
        ), name


@pytest.mark.parametrize(
    ("steps", "gradient", "factor", "after"),
    [
        (0, 1.0, 8.0, (8.0, 1)),
        (loss_scale.GROWTH_STEPS - 1, 1.0, 8.0, (16.0, 0)),
        (loss_scale.GROWTH_STEPS - 1, 1.0, loss_scale.MOST, (loss_scale.MOST, 0)),
        (7, np.nan, 8.0, (4.0, 0)),
        (7, np.inf, 1.0, (1.0, 0)),
    ],
)
def test_the_factor_follows_the_gradients(steps, gradient, factor, after):
    scale = {"factor": jnp.float32(factor), "steps": jnp.int32(steps)}
    old = TrainState(jnp.int32(4), {"w": jnp.zeros(2)}, {}, (), {}, scale)
    new = old.replace(step=jnp.int32(5), params={"w": jnp.ones(2)})
    state = loss_scale.advance(old, new, {"w": jnp.array([1.0, gradient])})
    assert (float(state.loss_scale["factor"]), int(state.loss_scale["steps"])) == after
    assert int(state.step) == 5
    assert float(state.params["w"][0]) == float(np.isfinite(gradient))


def test_no_factor_but_for_float16():
    assert loss_scale.start(Model()) == loss_scale.start(Model(dtype="bfloat16")) == {}
    assert loss_scale.factor({}) == 1.0
