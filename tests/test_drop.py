"""Dropout and stochastic depth at rates that change over time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import one_device

from flax_resnet import create_model, main
from flax_resnet.config import freeze
from flax_resnet.errors import ConfigError
from flax_resnet.models.baselines import ConvNet
from flax_resnet.models.dropping import Dropout, drop, scaled
from flax_resnet.plan import plan
from flax_resnet.training import loop
from flax_resnet.training.description import describe, drop_words
from flax_resnet.training.optimizer import make_optimizer
from flax_resnet.training.schedule import drop_factor
from flax_resnet.training.state import build_model, initial_state, make_state
from flax_resnet.training.step import make_recalibration, make_train_step

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
def test_what_is_kept_is_scaled_so_that_the_mean_stays(rate):
    draws = 200_000
    found = np.asarray(DROP(KEY, jnp.full((draws, 1), 3.0), jnp.float32(rate), (draws, 1)))
    np.testing.assert_allclose(np.unique(found), [0, 3 / (1 - rate)], rtol=1e-6)
    spread = 3 * np.sqrt(rate / (1 - rate) / draws)  # of the mean of so many draws
    assert abs(found.mean() - 3) < 5 * spread
    assert abs((found == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / draws)


def test_examples_are_dropped_whole():
    found = np.asarray(DROP(KEY, jnp.ones((512, 2, 2, 3)), jnp.float32(0.5), (512, 1, 1, 1)))
    assert (np.ptp(found.reshape(512, -1), axis=1) == 0).all()
    assert np.ptp(found) == 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_our_dropout_is_that_of_flax_bit_for_bit_and_a_traced_rate_draws_the_same(rate, dtype):
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
    # XLA divides by a constant as it multiplies by its inverse: a last bit, but for powers of two. Flax divides
    # bfloat16 by what bfloat16 makes of the rate.
    error = 0 if rate == 0.5 else 2e-7 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=error)
    assert (np.asarray(expected) == 0).any()
    np.testing.assert_array_equal(Dropout(rate).apply({}, x, False, jnp.float32(rate)), x)


def test_a_factor_of_one_and_a_rate_of_zero_stay_out_of_the_program():
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
    "scanned": ("resnet18", {**BLOCKS, "scan": True}),
    "scanned, blocks rematerialised": ("resnet18", {**BLOCKS, "scan": True, "remat": "block"}),
    "scanned, stages rematerialised": ("resnet18", {**BLOCKS, "scan": True, "remat": "stage"}),
    "AlexNet": (None, {"dropout": 0.5, "dropout_first": True}),
    "VGG": (None, {"dropout": 0.5}),
}


# The quickest of each kind; the others take half a minute each to compile.
QUICK = ("basic, at the head", "AlexNet", "VGG")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in NETWORKS],
)
def test_the_factor_multiplies_both_rates_in_one_program(name):
    """At 0, 1/2 and 1, the network whose rates are that much; at 1, its gradient too."""
    network, options = NETWORKS[name]
    if network:
        depths = (3,) if "scan" in options else (2,)
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


def test_nothing_drops_at_evaluation():
    model = create_model("resnet18", widths=(4,), depths=(2,), num_classes=3, **BLOCKS)
    images = normal(2, 16, 16, 3)
    variables = jax.jit(lambda: model.init(KEY, images[:1]))()
    call = jax.jit(lambda v, **factor: model.apply(v, images, train=False, **factor))
    found = call(variables, drop_factor=jnp.float32(1))
    np.testing.assert_array_equal(found, call(variables))


@pytest.mark.parametrize("rate", ["dropout", "drop_path"])
def test_the_factor_reaches_each_rate_alone(rate):
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


def planned(schedule, **sections):
    """The configuration, and its plan of 100 steps: 10 epochs of 10."""
    config = freeze(
        {
            "train": {"batch_size": 16, "epochs": 10},
            "schedule": {"name": "constant", **schedule},
            **sections,
        }
    )
    return config, plan(config, num_train=160, num_eval=1, num_classes=10)


STEPS = np.arange(100)
SHAPES = {
    "linear": ({}, STEPS / 99),
    "early": ({"drop_until": 2.5}, np.where(STEPS < 25, 1.0, 0.0)),
    "late": ({"drop_until": 0.3, "unit": "fraction"}, np.where(STEPS < 30, 0.0, 1.0)),
    "late, in steps": ({"drop_until": 1, "unit": "steps"}, np.where(STEPS < 1, 0.0, 1.0)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_shapes(name):
    section, expected = SHAPES[name]
    config, made = planned({"drop_rates": name.split(",")[0], **section})
    factor = jax.jit(drop_factor(config, made))
    found = [factor(jnp.int32(step)) for step in STEPS]
    assert {(f.dtype, f.shape) for f in found} == {(jnp.dtype("float32"), ())}
    np.testing.assert_allclose(np.array(found), expected, atol=1e-6)
    # Statistics are measured anew after the last step, too.
    assert float(factor(jnp.int32(100))) == expected[-1]


def test_constant_is_a_number_of_the_program():
    assert type(drop_factor(*planned({}))(jnp.int32(3))) is float


def test_a_run_of_one_step_rises_from_zero():
    config = freeze({"train": {"batch_size": 1, "epochs": 1}, "schedule": {"drop_rates": "linear"}})
    made = plan(config, num_train=1, num_eval=1, num_classes=2)
    assert float(drop_factor(config, made)(0)) == 0


SMALL = {"stem": "cifar", "widths": (8,), "depths": (2,)}
LATE = {"drop_rates": "late", "drop_until": 2, "unit": "steps"}
MESH = one_device()


def batches(count):
    draw = np.random.default_rng(0)
    whole = {
        "image": draw.integers(0, 256, (count, 16, 8, 8, 3)).astype(np.uint8),
        "label": draw.integers(0, 10, (count, 16)).astype(np.int32),
    }
    return [{k: v[i : i + 1] for k, v in whole.items()} for i in range(count)]


def test_late_dropping_leaves_the_steps_before_it_as_they_are():
    results = []
    for rates, schedule in (({}, {}), ({"drop_path": 0.5, "dropout": 0.5}, LATE)):
        config, made = planned(schedule, model={**SMALL, **rates})
        model, optimizer = build_model(config, 10), make_optimizer(config, made)
        step = make_train_step(config, model, optimizer, MESH, drop=drop_factor(config, made))
        state, after = initial_state(config, model, optimizer, MESH), []
        for batch in batches(3):
            state, _ = step(state, {"seed": 0}, batch)
            after.append(jax.device_get(state.params))
        assert step._cache_size() == 1
        results.append(after)
    for number, (plain, late) in enumerate(zip(*results, strict=True)):
        pairs = zip(*map(jax.tree.leaves, (plain, late)), strict=True)
        far = max(np.abs(a - b).max() for a, b in pairs)
        assert far < 1e-6 if number < 2 else far > 1e-4, number


def test_statistics_are_measured_dropping_as_at_that_step():
    average = {"decay": 0.5, "recalibrate": 1}
    model = {
        **SMALL,
        "depths": (3,),
        "drop_path": 0.5,
    }  # the third block sees what the second drops
    config, made = planned(LATE, model=model, average=average)
    model, optimizer = build_model(config, 10), make_optimizer(config, made)
    state = initial_state(config, model, optimizer, MESH)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    measure = make_recalibration(config, model, MESH, drop=drop_factor(config, made))
    same = model.clone(drop_path=0.0)
    expected = make_recalibration(config, same, MESH)(variables, {"seed": 0}, batches(1), 0)

    def distance(step):
        found = measure(variables, {"seed": 0}, batches(1), jnp.int32(step))
        pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
        return max(float(jnp.abs(a - b).max()) for a, b in pairs)

    assert distance(1) < 1e-6
    assert distance(2) > 1e-3


def test_a_run_drops_as_planned_and_says_so(tiny, tmp_path, monkeypatch, capsys):
    class Stopped(Exception):
        pass

    def made(*args, drop, **options):
        given.append(drop)

    def last(*args, drop, **options):
        given.append(drop)
        raise Stopped

    given = []
    monkeypatch.setattr(loop, "make_train_step", made)
    monkeypatch.setattr(loop, "make_recalibration", last)
    options = ["model.dropout=0.5", "schedule.drop_rates=late", "schedule.unit=steps"]
    options += ["schedule.drop_until=3", "average.decay=0.5", "average.recalibrate=1"]
    options = [f"--config.{option}" for option in options]
    with pytest.raises(Stopped):
        main.main([*tiny, *options, f"--workdir={tmp_path / 'run'}"])
    assert "dropping  after the first 3 steps only" in capsys.readouterr().err
    assert [[float(drop(step)) for step in (2, 3)] for drop in given] == [[0, 1], [0, 1]]


def test_the_plan_says_what_changes_and_nothing_else():
    config, made = planned({"drop_rates": "linear"})
    assert drop_words(config, made) == "rates rise from 0 over the 100 steps"
    config, made = planned({"drop_rates": "early", "drop_until": 3})
    assert drop_words(config, made) == "in the first 30 steps only"
    config, made = planned({}, model=SMALL)
    model, optimizer = build_model(config, 10), make_optimizer(config, made)
    shapes = jax.eval_shape(lambda: make_state(config, model, optimizer, jax.random.key(0)))
    assert "dropping" not in describe(config, made, shapes, resident=False)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"drop_rates": "sometimes"}, "one of constant, linear, early, late"),
        ({"drop_rates": "early"}, r"schedule.drop_until=0: must be above 0"),
        ({"drop_until": 2}, r"drop_until=2: .* 0 without \(drop_rates='constant'\)"),
        ({"drop_rates": "linear", "drop_until": 2}, r"0 without \(drop_rates='linear'\)"),
        ({"drop_rates": "late", "drop_until": -1}, "drop_until=-1.0: must be at least 0"),
        ({"drop_rates": "late", "drop_until": 10}, "drop_until=10 epochs: .* below the 100 steps"),
        ({"drop_rates": "early", "drop_until": 0.04}, "drop_until=0.04 epochs: .* at least 1 step"),
    ],
)
def test_wrong_schedules_are_refused(schedule, words):
    with pytest.raises(ConfigError, match=words) as error:
        planned(schedule)
    assert "\n" not in str(error.value)


def test_a_schedule_of_nothing_is_refused():
    for shape in ({"drop_rates": "linear"}, LATE):
        with pytest.raises(ConfigError, match=r"schedule.drop_rates='(linear|late)': goes with"):
            build_model(planned(shape, model=SMALL)[0], 10)
        for rate in ("dropout", "drop_path"):
            build_model(planned(shape, model={**SMALL, rate: 0.1})[0], 10)
        build_model(planned(shape, model={"name": "alexnet"})[0], 10)  # its own rate is 0.5
    config, _ = planned({"drop_rates": "linear"}, model={"name": "alexnet", "dropout": 0.0})
    with pytest.raises(ConfigError, match="alexnet has both at 0"):
        build_model(config, 10)
