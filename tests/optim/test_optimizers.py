"""Optimizers against their formulas in NumPy, and which parameter gets what."""

import jax
import numpy as np
import optax
import pytest
from conftest import refused

from flax_resnet import create_model
from flax_resnet.config import freeze
from flax_resnet.config.plan import plan, planned_optimizer
from flax_resnet.errors import ConfigError
from flax_resnet.optim.optimizer_section import OPTIMIZERS
from flax_resnet.optim.parameter_rules import block_factors, factors, names

RATE, DECAY, STEPS = 0.1, 0.01, 4
KERNEL, BIAS, HEAD = "layer1_0/conv1/kernel", "layer1_0/bn1/bias", "fc/kernel"


def optimizer_of(**section):
    config = freeze(
        {
            "optimizer": {"learning_rate": RATE, "weight_decay": DECAY, **section},
            "schedule": {"name": "constant"},
            "train": {"batch_size": 10},
        }
    )
    made = plan(config, num_train=100, num_eval=1, num_classes=2)
    return planned_optimizer(config, made, create_model("resnet18", num_classes=2))


def values():
    """Parameters, and a gradient per step, by name; float64."""
    draw = np.random.default_rng(0)
    shapes = {KERNEL: (3, 3, 2, 4), BIAS: (4,), HEAD: (4, 3)}
    params = {name: draw.normal(size=shape) for name, shape in shapes.items()}
    grads = [
        {name: draw.normal(size=shape) for name, shape in shapes.items()} for _ in range(STEPS)
    ]
    return params, grads


def nested(flat):
    tree = {}
    for name, value in flat.items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def ours(**section):
    """What the parameters become, by name."""
    params, grads = values()
    with jax.enable_x64(True):
        optimizer, tree = optimizer_of(**section), jax.tree.map(jax.numpy.asarray, nested(params))
        state = optimizer.init(tree)
        for grad in grads:
            updates, state = optimizer.update(nested(grad), state, tree)
            tree = optax.apply_updates(tree, updates)
    return dict(
        zip(jax.tree.leaves(names(tree)), map(np.asarray, jax.tree.leaves(tree)), strict=True)
    )


def formula(step_of):
    """The same by a formula, ``step_of(w, g, memory, t, decay) -> what is subtracted``; kernels alone decay."""
    params, grads = values()
    memory = {name: {} for name in params}
    for t, grad in enumerate(grads, 1):
        for name, w in params.items():
            decay = DECAY * name.endswith("kernel")
            params[name] = w - step_of(w, grad[name], memory[name], t, decay)
    return params


def sgd(w, g, memory, t, decay, nesterov=False):
    g = g + decay * w
    memory["v"] = 0.9 * memory.get("v", 0) + g
    return RATE * (g + 0.9 * memory["v"] if nesterov else memory["v"])


def sgdw(w, g, memory, t, decay):
    memory["v"] = 0.9 * memory.get("v", 0) + g
    return RATE * (memory["v"] + decay * w)


def lars(w, g, memory, t, decay):
    """You et al. 2017, algorithm 1, with coefficient 0.001; parameters without weight decay have a ratio of 1."""
    norm_w, norm_g = np.linalg.norm(w), np.linalg.norm(g)
    ratio = 0.001 * norm_w / (norm_g + decay * norm_w + 1e-8) if decay else 1
    memory["v"] = 0.9 * memory.get("v", 0) + RATE * ratio * (g + decay * w)
    return memory["v"]


def adam(g, memory, t):
    memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * g
    memory["s"] = 0.999 * memory.get("s", 0) + 0.001 * g * g
    return memory["m"] / (1 - 0.9**t) / (np.sqrt(memory["s"] / (1 - 0.999**t)) + 1e-8)


def adamw(w, g, memory, t, decay):
    return RATE * (adam(g, memory, t) + decay * w)


def l2_adam(w, g, memory, t, decay):
    return RATE * adam(g + decay * w, memory, t)


def lamb(w, g, memory, t, decay):
    u = adam(g, memory, t) + decay * w
    return RATE * u * (np.linalg.norm(w) / np.linalg.norm(u) if decay else 1)


def l2_lamb(w, g, memory, t, decay):
    u = adam(g + decay * w, memory, t)
    return RATE * u * (np.linalg.norm(w) / np.linalg.norm(u) if decay else 1)


def rmsprop(w, g, memory, t, decay):
    g = g + decay * w
    memory["s"] = 0.9 * memory.get("s", 1) + 0.1 * g * g
    memory["v"] = 0.9 * memory.get("v", 0) + RATE * g / np.sqrt(memory["s"] + 1e-8)
    return memory["v"]


def lion(w, g, memory, t, decay):
    m = memory.get("m", 0)
    memory["m"] = 0.99 * m + 0.01 * g
    return RATE * (np.sign(0.9 * m + 0.1 * g) + decay * w)


def schedule_free(w, g, memory, t, decay):
    """Here w is y; x is the mean of z over the steps, because the learning rate is constant."""
    g = g + decay * w
    z = memory["z"] = memory.get("z", w) - RATE * g
    memory["x"] = (1 - 1 / t) * memory.get("x", w) + z / t
    return w - (0.9 * memory["x"] + 0.1 * z)


@pytest.mark.parametrize(
    ("step_of", "section"),
    [
        (sgd, {}),
        (lambda *a: sgd(*a, nesterov=True), {"nesterov": True}),
        (sgdw, {"weight_decay_form": "decoupled"}),
        (lars, {"name": "lars"}),
        (lars, {"name": "lars", "weight_decay_form": "decoupled"}),
        (adamw, {"name": "adamw"}),
        (l2_adam, {"name": "adamw", "weight_decay_form": "coupled"}),
        (lamb, {"name": "lamb"}),
        (l2_lamb, {"name": "lamb", "weight_decay_form": "coupled"}),
        (rmsprop, {"name": "rmsprop"}),
        (lion, {"name": "lion"}),
        (schedule_free, {"name": "schedule_free_sgd"}),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x.__name__,
)
def test_optimizers_follow_their_formulas(step_of, section):
    found, wanted = ours(**section), formula(step_of)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("w", "g", "expected"),
    [
        ((3.0, 4.0), (0.6, 0.8), 0.001 * 5 / (1 + 0.5 * 5) * np.array((2.1, 2.8))),
        # Opposite: ||g + b w|| is 0.5, but the paper divides by 4.5.
        ((4.0, 0.0), (-2.5, 0.0), 0.001 * 4 / (2.5 + 0.5 * 4) * np.array((-0.5, 0.0))),
        ((3.0, 4.0), (0.0, 0.0), 0.001 * np.array((3.0, 4.0))),
        ((0.0, 0.0), (0.6, 0.8), np.array((0.6, 0.8))),
        ((0.0, 0.0), (0.0, 0.0), np.zeros(2)),
    ],
)
def test_lars_divides_by_the_sum_of_the_norms(w, g, expected):
    """By hand: coefficient ||w|| / (||g|| + b ||w||) (g + b w), and g for weights of 0."""
    optimizer = optimizer_of(name="lars", weight_decay=0.5, epsilon=1e-12)
    params, grads = (
        {"fc": {"kernel": np.float32(x)[:, None], "bias": np.ones(1, np.float32)}} for x in (w, g)
    )
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["fc"]["kernel"][:, 0], -RATE * expected, rtol=1e-5)


def test_schedule_free_sgd_evaluates_the_average_and_keeps_frozen_parameters():
    """The average is that of z over the steps; a frozen parameter stays equal, bit for bit, in both."""
    section = {"name": "schedule_free_sgd", "learning_rate_rules": (("fc", 0.0),)}
    params, grads = values()
    optimizer = optimizer_of(**section)
    tree = first = jax.tree.map(lambda x: jax.numpy.asarray(x, "float32"), nested(params))
    state, iterates = optimizer.init(tree), []
    update = jax.jit(optimizer.update)
    for step in range(200):
        updates, state = update(nested(grads[step % STEPS]), state, tree)
        tree = optax.apply_updates(tree, updates)
        iterates.append(np.asarray(state.z["layer1_0"]["conv1"]["kernel"]))
    average = OPTIMIZERS["schedule_free_sgd"].average(state, tree)
    found = average["layer1_0"]["conv1"]["kernel"]
    np.testing.assert_allclose(found, np.mean(iterates, axis=0), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(tree["fc"]["kernel"], first["fc"]["kernel"])
    np.testing.assert_array_equal(average["fc"]["kernel"], first["fc"]["kernel"])


def test_schedule_free_sgd_needs_momentum_and_no_other_average():
    with refused("optimizer.momentum", 0.0):
        freeze({"optimizer": {"name": "schedule_free_sgd", "momentum": 0.0}})
    with refused("ema.decay", 0.9):
        freeze({"optimizer": {"name": "schedule_free_sgd"}, "ema": {"decay": 0.9}})


def test_muon_orthogonalises_the_kernels_of_convolutions():
    """Its updates have singular values near 1; all else is Adam's."""
    params, grads = values()
    found = ours(name="muon", weight_decay=0.0, learning_rate=RATE)
    adams = formula(lambda w, g, memory, t, decay: RATE * adam(g, memory, t))
    np.testing.assert_allclose(found[HEAD], adams[HEAD], rtol=1e-5)
    np.testing.assert_allclose(found[BIAS], adams[BIAS], rtol=1e-5)
    optimizer = optimizer_of(name="muon", weight_decay=0.0)
    tree = jax.tree.map(lambda x: jax.numpy.asarray(x, "float32"), nested(params))
    updates, _ = optimizer.update(nested(grads[0]), optimizer.init(tree), tree)
    update = np.asarray(updates["layer1_0"]["conv1"]["kernel"]).reshape(18, 4) / RATE
    singular = np.linalg.svd(update, compute_uv=False)
    scale = singular.mean()  # Optax scales by the shape
    assert ((singular / scale > 0.6) & (singular / scale < 1.4)).all()
    left, _, right = np.linalg.svd(grads[0][KERNEL].reshape(18, 4), full_matrices=False)
    along = left.T @ update @ right.T / scale
    assert (np.diag(along) < 0).all()  # it descends
    assert (
        np.abs(along - np.diag(np.diag(along))).max() < 0.01
    )  # along the gradient's own directions


def test_the_whole_gradient_is_clipped():
    def clipped(limit):
        params, grads = values()
        norm = np.sqrt(sum((g**2).sum() for g in grads[0].values()))
        optimizer = optimizer_of(clip_norm=limit, weight_decay=0.0)
        tree, grad = (jax.tree.map(np.float32, nested(x)) for x in (params, grads[0]))
        updates, _ = optimizer.update(grad, optimizer.init(tree), tree)
        return updates["fc"]["kernel"], -RATE * grads[0][HEAD], norm

    update, whole, norm = clipped(0.5)
    np.testing.assert_allclose(update, whole * 0.5 / norm, rtol=1e-5)
    update, whole, norm = clipped(100.0)
    np.testing.assert_allclose(update, whole, rtol=1e-5)


def test_units_are_clipped_by_their_weights_but_the_head():
    params, grads = values()
    optimizer = optimizer_of(agc=0.3, weight_decay=0.0)
    tree = nested(params)
    updates, _ = optimizer.update(nested(grads[0]), optimizer.init(tree), tree)
    w, g = params[KERNEL], grads[0][KERNEL]
    weight, gradient = (np.sqrt((x**2).sum((0, 1, 2))) for x in (w, g))
    limit = 0.3 * np.maximum(weight, 1e-3)
    expected = g * np.where(gradient > limit, limit / gradient, 1)
    np.testing.assert_allclose(updates["layer1_0"]["conv1"]["kernel"], -RATE * expected, rtol=1e-5)
    np.testing.assert_allclose(updates["fc"]["kernel"], -RATE * grads[0][HEAD], rtol=1e-5)


def test_a_rate_of_zero_freezes_and_another_multiplies():
    start, _ = values()
    found = ours(learning_rate_rules=(("^fc", 1.0), ("bn", 0.5), ("^layer1", 0.0)))
    whole = ours()
    np.testing.assert_array_equal(found[KERNEL], start[KERNEL])
    np.testing.assert_allclose(found[HEAD], whole[HEAD])
    np.testing.assert_allclose(found[BIAS] - start[BIAS], 0.5 * (whole[BIAS] - start[BIAS]))


def test_the_first_rule_found_counts():
    params = nested(values()[0])
    got = factors(params, (("bias$", 0.0), ("layer1", 0.5)), "key")
    assert dict(zip(jax.tree.leaves(names(params)), jax.tree.leaves(got), strict=True)) == {
        HEAD: 1.0,
        BIAS: 0.0,
        KERNEL: 0.5,
    }


@pytest.mark.parametrize("key", ["weight_decay_rules", "learning_rate_rules"])
@pytest.mark.parametrize("rules", [(("kernal$", 1.0),), (("", 1.0), ("kernel$", 0.0))])
def test_a_rule_that_matches_nothing_is_refused(key, rules):
    with refused(f"optimizer.{key}", rules[-1], ConfigError):
        optimizer_of(**{key: rules}).init(nested(values()[0]))


def test_the_rate_falls_block_by_block():
    model = create_model("resnet18", num_classes=3)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)[
        "params"
    ]
    got = block_factors(params, 0.5, model)
    assert got["fc"]["kernel"] == 1
    assert got["layer4_1"]["conv2"]["kernel"] == 0.5
    assert got["layer4_0"]["bn1"]["scale"] == 0.25
    assert got["layer1_0"]["conv1"]["kernel"] == 0.5**8
    assert got["conv1"]["kernel"] == got["bn1"]["bias"] == 0.5**9


def test_layer_decay_wants_blocks():
    model = create_model("vgg11", num_classes=3)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)[
        "params"
    ]
    with refused("optimizer.layer_decay", 0.5, ConfigError):
        block_factors(params, 0.5, model)
