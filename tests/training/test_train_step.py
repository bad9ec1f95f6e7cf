import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import farthest_leaf, one_device

from flax_resnet.augment import training_batch
from flax_resnet.augment.augment_section import Augment
from flax_resnet.config import freeze
from flax_resnet.config.plan import plan, planned_optimizer
from flax_resnet.inference.classifier import Classifier
from flax_resnet.ops import dispatch
from flax_resnet.optim.losses import loss_sum, loss_weight
from flax_resnet.training import sharding
from flax_resnet.training.input.feeds import stacked
from flax_resnet.training.state import build_model, initial_state, variables_by_prefix
from flax_resnet.training.step.bn_statistics import make_statistics_measurement
from flax_resnet.training.step.eval_step import evaluate, make_eval_step
from flax_resnet.training.step.train_step import AUGMENT_STREAM, make_train_step

CONFIG = freeze(
    {
        "model": {"stem": "cifar", "widths": (16, 32, 32, 32), "depths": (1, 1, 1, 1)},
        "train": {"batch_size": 16, "epochs": 4},
        "loss": {"label_smoothing": 0.1},
        "augment": {"pad_crop": 1, "flip": "horizontal"},
        "optimizer": {"learning_rate": 0.05, "nesterov": True},
    }
)
PLAN = plan(CONFIG, num_train=160, num_eval=40, num_classes=10)


def plan_of(**sections):
    return plan(freeze(sections), num_train=100, num_eval=1, num_classes=2)


def batch_of(rows, draw=None):
    draw = draw or np.random.default_rng(0)
    return {
        "image": draw.integers(0, 256, (rows, 8, 8, 3)).astype(np.uint8),
        "label": draw.integers(0, 10, rows).astype(np.int32),
        "index": np.arange(rows, dtype=np.int32),
        "mask": np.ones(rows, bool),
    }


def two_meshes():
    return one_device(), sharding.make_mesh()


@pytest.fixture(scope="module")
def machinery():
    model = build_model(CONFIG, 10)
    optimizer = planned_optimizer(CONFIG, PLAN, model)
    state = initial_state(CONFIG, model, optimizer, one_device())
    return model, optimizer, lambda: jax.tree.map(jnp.copy, state)


def test_one_device_and_eight_give_the_same_step(machinery):
    model, optimizer, init = machinery
    results = []
    for mesh in two_meshes():
        step = make_train_step(CONFIG, model, optimizer, mesh)
        state = jax.device_put(init(), sharding.replicated(mesh))
        state, metrics = step(state, {"seed": 0}, sharding.place(batch_of(16), mesh))
        assert {name: value.shape for name, value in metrics.items()} == {"loss": (), "top1": ()}
        results.append(jax.device_get((state, metrics)))
    assert int(results[0][0].step) == 1
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_two_steps_in_one_call_equal_two_calls(machinery):
    model, optimizer, init = machinery
    mesh, draw = sharding.make_mesh(), np.random.default_rng(0)
    batches = [batch_of(16, draw) for _ in range(2)]
    step = make_train_step(CONFIG, model, optimizer, mesh)
    state, expected = jax.device_put(init(), sharding.replicated(mesh)), []
    for batch in batches:
        state, metrics = step(state, {"seed": 0}, sharding.place(batch, mesh))
        expected.append(jax.device_get(metrics))
    double = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, steps_per_call=2))
    found, metrics = make_train_step(double, model, optimizer, mesh)(
        jax.device_put(init(), sharding.replicated(mesh)),
        {"seed": 0},
        sharding.place(stacked(batches), mesh, steps=True),
    )
    assert int(found.step) == 2
    pairs = zip((found, metrics), (state, stacked(expected)), strict=True)
    for a, b in (pair for both in pairs for pair in zip(*map(jax.tree.leaves, both), strict=True)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_local_statistics_on_eight_devices_equal_eight_groups_on_one(dtype, limit, machinery):
    _, optimizer, init = machinery
    section = dataclasses.replace(CONFIG.model, norm_scope="local")
    train = dataclasses.replace(CONFIG.train, gradient_dtype=dtype)
    local = dataclasses.replace(CONFIG, model=section, train=train)
    batch = batch_of(64)
    first, changes = jax.device_get(init()), []
    for config, mesh in zip((CONFIG, local), two_meshes(), strict=True):
        model = build_model(local, 10)  # eight groups, also on one device
        step = make_train_step(config, model, optimizer, mesh)
        state = jax.device_put(init(), sharding.replicated(mesh))
        state, _ = step(state, {"seed": 0}, sharding.place(batch, mesh))
        state = jax.device_get(state)
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state.params))
        changes.append(jax.tree.map(np.subtract, (state.params, state.batch_stats),
                                    (first.params, first.batch_stats)))  # fmt: skip
    for a, b in zip(*map(jax.tree.leaves, changes), strict=True):
        assert np.abs(a - b).max() <= limit * np.abs(a).max()


def test_programs_are_compiled_with_the_options_of_the_platform(machinery, monkeypatch):
    monkeypatch.setattr(dispatch, "compiler_options", lambda: {"no_such_option": "1"})
    model, optimizer, init = machinery
    mesh, state = one_device(), init()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    batch = sharding.place(batch_of(16), mesh)
    classifier = Classifier(model, variables, tuple("abcdefghij"), CONFIG, step=0)
    programs = (
        lambda: make_train_step(CONFIG, model, optimizer, mesh)(state, {"seed": 0}, batch),
        lambda: make_eval_step(CONFIG, model, mesh)({"": variables}, {}, batch),
        lambda: make_statistics_measurement(CONFIG, model, mesh)(
            variables, {"seed": 0}, [batch], 0
        ),
        lambda: classifier.predict(batch_of(2)["image"]),
    )
    for program in programs:
        with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
            program()


def test_the_state_is_donated_and_the_loss_falls(machinery):
    model, optimizer, init = machinery
    mesh = sharding.make_mesh()
    step = make_train_step(CONFIG, model, optimizer, mesh)
    state = jax.device_put(init(), sharding.replicated(mesh))
    first, batch, losses = state, sharding.place(batch_of(16), mesh), []
    for _ in range(40):
        state, metrics = step(state, {"seed": 0}, batch)
        losses.append(float(metrics["loss"]))
    assert first.params["conv1"]["kernel"].is_deleted()
    assert np.mean(losses[-5:]) < 0.8 * losses[0]  # 0.48-0.70 over five seeds


def test_evaluation_is_exact_for_any_batch_size_and_number_of_devices(machinery):
    model, _, init = machinery
    examples = batch_of(40)
    scores = []
    for mesh, size in zip((*two_meshes(), two_meshes()[0]), (40, 16, 7), strict=True):
        step = make_eval_step(CONFIG, model, mesh)
        state = jax.device_put(init(), sharding.replicated(mesh))

        def batches(size=size, mesh=mesh):
            for start in range(0, 40, size):
                rows = np.arange(start, start + size)
                part = {k: v[rows % 40] for k, v in examples.items()}
                yield sharding.place({**part, "mask": rows < 40}, mesh)

        scores.append(evaluate(step, variables_by_prefix(state), {}, batches()))
    variables = {"params": init().params, "batch_stats": init().batch_stats}
    images = (examples["image"] / 255 - CONFIG.augment.mean) / CONFIG.augment.std
    logits = model.apply(variables, jnp.asarray(images, jnp.float32), train=False)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, examples["label"])
    for score in scores:
        assert score["count"] == 40
        assert score["loss"] == pytest.approx(float(expected.mean()), rel=1e-5)
        assert score["top1"] == pytest.approx((np.argmax(logits, 1) == examples["label"]).mean())


def test_the_step_trains_on_the_augmented_images_and_labels(machinery):
    """With Mixup, top1 compares with the class that has the larger part of the mixed label."""
    model, optimizer, init = machinery
    config = dataclasses.replace(CONFIG, augment=Augment(mixup=1.0, mix_mode="element"))
    batch, state = batch_of(16), init()
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), AUGMENT_STREAM), 0)
    images, targets = training_batch(key, batch["image"], batch["label"], 10, config.augment)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    top1 = (np.argmax(logits, 1) == np.argmax(targets, 1)).mean()
    loss = loss_sum(logits, targets, config.loss) / loss_weight(targets, config.loss)

    mesh = two_meshes()[0]
    step = make_train_step(config, model, optimizer, mesh)
    _, metrics = step(state, {"seed": 0}, sharding.place(batch, mesh))
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["top1"]) == pytest.approx(top1)
    assert (np.argmax(targets, 1) != batch["label"]).any()


@pytest.mark.slow
def test_the_step_with_the_operations_for_gpus_is_that_with_plain_ones(machinery):
    model, optimizer, state = machinery

    def after(operations):
        with dispatch.operations(operations):
            step = make_train_step(CONFIG, model, optimizer, one_device())
            return step(state(), {"seed": 0}, batch_of(16))

    (got, metrics), (wanted, plain) = after("gpu"), after("plain")
    assert float(metrics["loss"]) == pytest.approx(float(plain["loss"]), rel=1e-5)
    assert farthest_leaf(got.params, wanted.params) < 1e-4
    assert farthest_leaf(got.batch_stats, wanted.batch_stats) < 1e-4
