"""Rates of dropout and drop-path that change during a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import one_device, refused

from flax_resnet import main
from flax_resnet.config import freeze
from flax_resnet.config.plan import plan, planned_drop_factor, planned_optimizer
from flax_resnet.errors import ConfigError
from flax_resnet.training import programs
from flax_resnet.training.plan_text import describe, drop_words
from flax_resnet.training.state import abstract_state, build_model, initial_state
from flax_resnet.training.step.bn_statistics import make_statistics_measurement
from flax_resnet.training.step.train_step import make_train_step


def planned(schedule, **sections):
    """Return the configuration, and its plan of 100 steps: 10 epochs of 10 steps."""
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
def test_the_factor_follows_each_schedule(name):
    section, expected = SHAPES[name]
    config, made = planned({"drop_rates": name.split(",")[0], **section})
    factor = jax.jit(planned_drop_factor(config, made))
    found = [factor(jnp.int32(step)) for step in STEPS]
    assert {(f.dtype, f.shape) for f in found} == {(jnp.dtype("float32"), ())}
    np.testing.assert_allclose(np.array(found), expected, atol=1e-6)
    # `ema.bn_batches` measures statistics after the last step.
    assert float(factor(jnp.int32(100))) == expected[-1]


def test_a_constant_factor_is_a_python_float():
    assert type(planned_drop_factor(*planned({}))(jnp.int32(3))) is float


def test_in_a_run_of_one_step_the_linear_factor_is_zero():
    config = freeze({"train": {"batch_size": 1, "epochs": 1}, "schedule": {"drop_rates": "linear"}})
    made = plan(config, num_train=1, num_eval=1, num_classes=2)
    assert float(planned_drop_factor(config, made)(0)) == 0


SMALL = {"stem": "cifar", "widths": (8,), "depths": (2,)}
LATE = {"drop_rates": "late", "drop_until": 2, "unit": "steps"}
MESH = one_device()


def batches(count):
    draw = np.random.default_rng(0)
    whole = {
        "image": draw.integers(0, 256, (count, 16, 8, 8, 3)).astype(np.uint8),
        "label": draw.integers(0, 10, (count, 16)).astype(np.int32),
    }
    return [{k: v[i] for k, v in whole.items()} for i in range(count)]


def test_late_dropping_does_not_change_the_steps_before_it():
    results = []
    for rates, schedule in (({}, {}), ({"drop_path": 0.5, "dropout": 0.5}, LATE)):
        config, made = planned(schedule, model={**SMALL, **rates})
        model = build_model(config, 10)
        optimizer = planned_optimizer(config, made, model)
        step = make_train_step(
            config, model, optimizer, MESH, drop=planned_drop_factor(config, made)
        )
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


def test_statistics_are_measured_with_the_drop_rates_of_the_step():
    ema = {"decay": 0.5, "bn_batches": 1}
    # Three blocks: if the second is dropped, the statistics of the third change.
    model = {**SMALL, "depths": (3,), "drop_path": 0.5}
    config, made = planned(LATE, model=model, ema=ema)
    model = build_model(config, 10)
    optimizer = planned_optimizer(config, made, model)
    state = initial_state(config, model, optimizer, MESH)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    measure = make_statistics_measurement(
        config, model, MESH, drop=planned_drop_factor(config, made)
    )
    same = model.clone(drop_path=0.0)
    expected = make_statistics_measurement(config, same, MESH)(
        variables, {"seed": 0}, batches(1), 0
    )

    def distance(step):
        found = measure(variables, {"seed": 0}, batches(1), jnp.int32(step))
        pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
        return max(float(jnp.abs(a - b).max()) for a, b in pairs)

    assert distance(1) < 1e-6
    assert distance(2) > 1e-3


def test_a_run_uses_and_prints_the_planned_drop_rates(tiny, tmp_path, monkeypatch, capsys):
    class Stopped(Exception):
        pass

    def made(*args, drop, **options):
        given.append(drop)

    def last(*args, drop, **options):
        given.append(drop)
        raise Stopped

    given = []
    monkeypatch.setattr(programs, "make_train_step", made)
    monkeypatch.setattr(programs, "make_statistics_measurement", last)
    options = ["model.dropout=0.5", "schedule.drop_rates=late", "schedule.unit=steps"]
    options += ["schedule.drop_until=3", "ema.decay=0.5", "ema.bn_batches=1"]
    options = [f"--config.{option}" for option in options]
    with pytest.raises(Stopped):
        main.main([*tiny, *options, f"--workdir={tmp_path / 'run'}"])
    assert "x 0 at step 0, x 1 at step 3" in capsys.readouterr().err
    assert [[float(drop(step)) for step in (2, 3)] for drop in given] == [[0, 1], [0, 1]]


def test_the_plan_describes_drop_rates_only_if_they_change():
    config, made = planned({"drop_rates": "linear"})
    assert drop_words(config, made).endswith("x 0 at step 0, x 1 at step 99")
    config, made = planned({"drop_rates": "early", "drop_until": 3})
    assert drop_words(config, made).endswith("x 1 at step 0, x 0 at step 30, x 0 at step 99")
    config, made = planned({}, model=SMALL)
    model = build_model(config, 10)
    optimizer = planned_optimizer(config, made, model)
    shapes = abstract_state(config, model, optimizer, MESH)
    assert "dropping" not in describe(config, made, shapes, resident=False)


@pytest.mark.parametrize(
    ("schedule", "key", "value", "other"),
    [
        ({"drop_rates": "sometimes"}, "drop_rates", "sometimes", "linear"),
        ({"drop_rates": "early", "drop_until": 0}, "drop_until", 0, "1 step"),
        ({"drop_rates": "late", "drop_until": -1}, "drop_until", -1, "at least 0"),
        ({"drop_rates": "late", "drop_until": 10}, "drop_until", 10, "100 steps"),
        ({"drop_rates": "early", "drop_until": 0.04}, "drop_until", 0.04, "1 step"),
    ],
)
def test_invalid_schedules_are_refused(schedule, key, value, other):
    with refused(f"schedule.{key}", value, ConfigError) as error:
        planned(schedule)
    assert other in error.value.allowed


def test_a_schedule_without_drop_rates_is_refused():
    for shape in ({"drop_rates": "linear"}, LATE):
        with refused("schedule.drop_rates", shape["drop_rates"], ConfigError):
            build_model(planned(shape, model=SMALL)[0], 10)
        for rate in ("dropout", "drop_path"):
            build_model(planned(shape, model={**SMALL, rate: 0.1})[0], 10)
        build_model(
            planned(shape, model={"name": "alexnet"})[0], 10
        )  # AlexNet's default rate is 0.5
    config, _ = planned({"drop_rates": "linear"}, model={"name": "alexnet", "dropout": 0.0})
    with refused("schedule.drop_rates", "linear", ConfigError) as error:
        build_model(config, 10)
    assert "alexnet" in error.value.problem
