"""Networks with `scan_blocks`: the updates are those of the same network without it, for every optimizer."""

import jax
import numpy as np
import optax
import pytest
from conftest import drawn, refused
from jax.sharding import AxisType

from flax_resnet import create_model
from flax_resnet.config import freeze
from flax_resnet.config.plan import plan, planned_optimizer
from flax_resnet.errors import ConfigError
from flax_resnet.models.stacking import stack_blocks, unstack_blocks
from flax_resnet.optim.optimizer import parameter_average, sees_blocks
from flax_resnet.optim.optimizer_section import OPTIMIZERS
from flax_resnet.training.state import abstract_state, build_model
from flax_resnet.training.step.train_step import make_train_step

NETWORK = {"depths": (3,), "widths": (8,), "stem": "cifar"}
CLASSES, STEPS = 5, 3
CLIPS = ({"agc": 0.01}, {"clip_norm": 0.5})
# The numbers of single blocks, which are one stack with `scan_blocks`.
RULES = (
    {"layer_decay": 0.5},
    {"learning_rate_rules": (("layer1_[01]/", 0.1), ("", 1.0))},
    {"weight_decay_rules": (("layer1_2/.*kernel$", 1.0), ("fc", 0.5), ("", 0.0))},
    {"weight_decay_rules": (("", 1.0),)},
    {"unfreeze_at": (("layer1_1/", 0.2),)},
)
ALL = {key: value for settings in (*CLIPS, *RULES[:3], RULES[4]) for key, value in settings.items()}
CASES = [
    *((name, settings) for name in OPTIMIZERS for settings in ({}, ALL)),
    *(("sgd", settings) for settings in (*CLIPS, *RULES)),
]


def config_of(name, **settings):
    return freeze(
        {
            "model": {"name": "resnet18", **NETWORK},
            "data": {"image_size": 8},
            "optimizer": {"name": name, "weight_decay": 0.01, **settings},
            "schedule": {"name": "constant", "warmup": 0.0},
            "train": {"batch_size": 10},
        }
    )


def plan_of(config):
    return plan(config, num_train=100, num_eval=1, num_classes=CLASSES)


def normal(shapes, seed):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.1 * draw.normal(size=leaf.shape), shapes)


def stacked(params):
    return stack_blocks({"params": params})["params"]


def separate(params):
    return unstack_blocks({"params": params})["params"]


def trained(config, model, params, grads):
    """The parameters after a few updates, and what the optimizer says to evaluate."""
    optimizer = planned_optimizer(config, plan_of(config), model)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for grad in grads:
        updates, state = update(grad, state, params)
        params = optax.apply_updates(params, updates)
    average = parameter_average(config.optimizer, model)
    return params, average(state, params) if average else params


@pytest.fixture(scope="module")
def models():
    return [
        create_model("resnet18", num_classes=CLASSES, **NETWORK, scan_blocks=scan)
        for scan in (False, True)
    ]


@pytest.fixture(scope="module")
def values(models):
    """Parameters, and a gradient per step; blocks of different sizes, so that a norm over all of them shows."""
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
    init = jax.eval_shape(lambda x: models[0].init(jax.random.key(0), x, train=False), image)
    params, *grads = (normal(init["params"], seed) for seed in range(1 + STEPS))
    params["layer1_1"] = jax.tree.map(lambda leaf: 10 * leaf, params["layer1_1"])
    return params, grads


@pytest.mark.parametrize(
    ("name", "settings"), CASES, ids=lambda x: x if isinstance(x, str) else "+".join(x)
)
def test_stacked_blocks_get_the_updates_of_separate_blocks(name, settings, models, values):
    config = config_of(name, **settings)
    params, grads = values
    with jax.enable_x64(True):
        expected = trained(config, models[0], params, grads)
        found = trained(config, models[1], stacked(params), [stacked(grad) for grad in grads])
        pairs = jax.device_get(list(zip(map(separate, found), expected, strict=True)))
    for pair in pairs:
        for a, b, start in zip(*map(jax.tree.leaves, (*pair, params)), strict=True):
            change = b - start
            np.testing.assert_allclose(a - start, change, rtol=0, atol=1e-6 * np.abs(change).max())


def test_an_elementwise_optimizer_leaves_stacks_alone(models):
    """No copies without need: the state of SGD has the layout of the parameters."""
    unrolled, scanned = models
    assert not sees_blocks(config_of("sgd", clip_norm=1.0).optimizer, scanned)
    assert not sees_blocks(config_of("lamb").optimizer, unrolled)
    assert all(sees_blocks(config_of("sgd", **rules).optimizer, scanned) for rules in RULES)


def test_rules_know_no_names_of_stacks(models, values):
    rules = (("layer1_rest", 0.5),)
    config = config_of("sgd", learning_rate_rules=rules)
    optimizer = planned_optimizer(config, plan_of(config), models[1])
    with refused("optimizer.learning_rate_rules", rules[0], ConfigError):
        optimizer.init(stacked(values[0]))


def test_a_step_averages_and_updates_stacked_blocks():
    """The whole step, for an optimizer whose state holds the average of its iterates."""
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1], axis_types=(AxisType.Auto,))
    config = config_of("schedule_free_sgd", layer_decay=0.5)
    draw = np.random.default_rng(0)
    batch = {
        "image": draw.integers(0, 256, (10, 8, 8, 3), np.uint8),
        "label": draw.integers(0, CLASSES, 10).astype(np.int32),
    }

    def stepped(model, convert):
        """Parameters and average after a step from drawn values, in the layout of separate blocks."""
        optimizer = planned_optimizer(config, plan_of(config), model)
        shapes = abstract_state(config, model.clone(scan_blocks=False), optimizer, mesh)
        first = drawn({"params": shapes.params, "batch_stats": shapes.batch_stats})
        first = convert(first)
        state = shapes.replace(
            **first,
            step=np.int32(0),
            opt_state=optimizer.init(first["params"]),
            ema=jax.tree.map(np.array, first),
        )
        step = make_train_step(config, model, optimizer, mesh)
        state = jax.device_get(step(state, {"seed": 0}, batch)[0])
        return unstack_blocks({"params": state.params, "average": state.ema["params"]})

    model = build_model(config, CLASSES)
    expected = stepped(model, dict)
    found = stepped(model.clone(scan_blocks=True), stack_blocks)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
