"""Compute dtypes: float16 with loss scaling, and the default of each platform."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import drawn, records_of

from flax_resnet.config import Config, freeze
from flax_resnet.config.plan import Plan, plan, planned_optimizer
from flax_resnet.errors import DivergedError
from flax_resnet.models.model_section import Model
from flax_resnet.optim.optimizer import updates_made
from flax_resnet.optim.optimizer_section import OPTIMIZERS
from flax_resnet.training import sharding
from flax_resnet.training.experiment import Experiment
from flax_resnet.training.ledger import Ledger
from flax_resnet.training.programs import Programs
from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.training.start import Start
from flax_resnet.training.state import TrainState, abstract_state, build_model, compute_dtype
from flax_resnet.training.step import loss_scale, nonfinite
from flax_resnet.training.step.train_step import make_train_step
from flax_resnet.training.trainer import Trainer

ROWS = 16


def test_the_platform_sets_the_automatic_dtype(monkeypatch):
    assert Config().model.dtype == "auto"
    for platform, dtype in (("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        assert compute_dtype(Model()) == dtype
        assert build_model(Config(), 10).dtype == jnp.dtype(dtype)
        assert compute_dtype(Model(dtype="float16")) == "float16"


def trained(dtype, steps=3, factor=None, microbatches=1):
    """Train a small network; return the first state, the last state, and the metrics of each step."""
    config = freeze(
        {
            "model": {"name": "resnet20", "depths": (1,) * 3, "dtype": dtype},
            "train": {"batch_size": ROWS},
            "ema": {"decay": 0.9},
        }
    )
    model, mesh = build_model(config, 10), sharding.make_mesh()
    made = plan(config, num_train=160, num_eval=1, num_classes=10)
    optimizer = planned_optimizer(config, made, model)
    state = drawn(abstract_state(config, model, optimizer, mesh))
    if state.loss_scale:
        start = jnp.float32(factor or loss_scale.FIRST)
        state = state.replace(loss_scale={"factor": start, "steps": jnp.int32(0)})
    first = jax.tree.map(jnp.copy, state)
    draw = np.random.default_rng(0)
    batch = {
        "image": draw.integers(0, 256, (ROWS, 8, 8, 3), np.uint8),
        "label": draw.integers(0, 10, ROWS).astype(np.int32),
    }
    step = make_train_step(config, model, optimizer, mesh, microbatches=microbatches)
    measured, batch = [], sharding.place(batch, mesh)
    state = jax.device_put(state, sharding.replicated(mesh))
    for _ in range(steps):
        state, metrics = step(state, {"seed": 0}, batch)
        measured.append({name: float(value) for name, value in metrics.items()})
    return first, state, measured


def test_float16_and_float32_train_alike():
    _, expected, losses = trained("float32")
    _, found, scaled = trained("float16")
    for before, after in zip(losses, scaled, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=0.01)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found.params)} == {"float32"}
    assert [(m["loss_scale"], m["skipped"]) for m in scaled] == [(2.0**15, 0)] * 3
    assert int(found.loss_scale["steps"]) == 3
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, atol=0.01)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_step_with_an_overflow_skips_the_update_and_halves_the_factor(microbatches):
    first, state, measured = trained("float16", steps=1, factor=2.0**24, microbatches=microbatches)
    assert np.isfinite(measured[0]["loss"])
    assert measured[0]["skipped"] == 1
    assert updates_made(state.opt_state) == 0
    assert int(state.step) == 1
    assert state.loss_scale == {"factor": 2.0**23, "steps": 0}
    for name in ("params", "batch_stats", "opt_state", "ema"):
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
def test_the_factor_grows_after_finite_gradients_and_halves_after_an_overflow(
    steps, gradient, factor, after
):
    scale = {"factor": jnp.float32(factor), "steps": jnp.int32(steps)}
    finite = nonfinite.is_finite({"w": jnp.array([1.0, gradient])})
    adjusted = loss_scale.adjusted(scale, finite)
    assert (float(adjusted["factor"]), int(adjusted["steps"])) == after


class Checkpoints:
    """The checkpoints of a run folder, with one checkpoint at step 7."""

    def steps(self):
        return [7]


class Numbers:
    """A feed that yields only the numbers of the steps."""

    data = None

    def training(self, start, total):
        return iter(range(start, total))


def overflowing(folder, factors):
    """Run a trainer whose step overflows, except at steps with factor 0; return its error and its records.

    The learning rate equals the number of the update.
    """

    def step(state, data, number):
        factor = factors[number]
        values = {"loss": 1.0, "top1": 0.5, "loss_scale": factor or 1.0}
        values["skipped"] = float(factor > 0)
        return state, {name: jnp.float32(value) for name, value in values.items()}

    end = 10**6
    made = dataclasses.replace(
        Plan.nominal(10), total_steps=end, eval_every=end, checkpoint_every=end,
        peak_learning_rate=end / 2, warmup_steps=end // 2,
    )  # fmt: skip
    schedule = {"warmup": 0.5, "unit": "fraction", "warmup_from": 0.0}
    experiment = Experiment(
        config=freeze(
            {"model": {"dtype": "float16"}, "train": {"log_every": 1}, "schedule": schedule}
        ),
        splits=None, plan=made, mesh=None, model=None, optimizer=None, abstract_state=None,
    )  # fmt: skip
    programs = Programs(
        step, eval_step=None, measure_statistics=None, microbatches=1, data={}, compile_largest=None
    )
    trainer = Trainer(
        experiment, programs, Numbers(), eval_feed=None, folder=RunFolder.at(folder), checkpoints=Checkpoints(),
        teacher_checksum=None, observers=(),
    )  # fmt: skip
    state = TrainState(jnp.int32(0), {}, {}, optax.ScaleByScheduleState(jnp.int32(0)), {})
    with pytest.raises((DivergedError, IndexError)) as error:
        trainer.run(Start(0, state), Ledger())
    return error.value, records_of(folder, "train")


def test_too_many_overflows_in_a_row_stop_the_run(tmp_path):
    """Only consecutive overflows count. Records have the learning rate of the last update."""
    most = loss_scale.PATIENCE
    factors = [4.0, 0, 2.0, 0, 0, *[1.0] * (most - 1), 0, *[1.0] * most]
    error, records = overflowing(tmp_path, [*factors, 1.0, 1.0])
    assert isinstance(error, DivergedError)
    assert (error.key, error.value) == ("gradient", ...)
    for part in (f"{most} times", f"step {len(factors)};", f"checkpoint 7 in {tmp_path}"):
        assert part in error.problem
    for part in ("model.dtype='bfloat16'", "optimizer.learning_rate=0.1"):
        assert part in error.cure
    assert len(records) == len(factors) - 1
    assert [r["learning_rate"] for r in records[:7]] == [0, 0, 0, 1, 2, 2, 2]
    assert records[-1]["learning_rate"] == 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_counts_its_updates(name):
    config = freeze(
        {"optimizer": {"name": name, "unfreeze_at": (("", 1.0),)}, "schedule": {"unit": "steps"}}
    )
    made = plan(config, num_train=1000, num_eval=1, num_classes=10)
    optimizer = planned_optimizer(config, made, build_model(config, 10))
    params = {"fc": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    state = optimizer.init(params)
    assert updates_made(state) == 0
    for _ in range(2):
        _, state = optimizer.update(params, state, params)
    assert updates_made(state) == 2


def test_only_float16_has_a_loss_scale():
    assert loss_scale.start(Model()) == loss_scale.start(Model(dtype="bfloat16")) == {}
    assert loss_scale.factor({}) == 1.0
