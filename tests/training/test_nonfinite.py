"""Steps whose loss or gradient is not finite: stopped, or skipped up to a limit."""

import json

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn, records_of, refused, saved
from test_signals import send, without_times

from flax_resnet import main
from flax_resnet.config import freeze
from flax_resnet.config.plan import plan, planned_optimizer
from flax_resnet.config.train_section import Train
from flax_resnet.errors import INTERRUPTED, ConfigError, DivergedError
from flax_resnet.training import sharding
from flax_resnet.training.ledger import Ledger
from flax_resnet.training.state import abstract_state, build_model
from flax_resnet.training.step import loss_scale, train_step
from flax_resnet.training.step.loops import several_steps
from flax_resnet.training.step_metrics import StepMetrics

ROWS = 16
SKIPPED_STATE = ("params", "batch_stats", "opt_state", "ema", "loss_scale")


def spoiled(monkeypatch, bad, rows=slice(None)):
    """Put NaN into the augmented images of these steps."""
    original = train_step.loss_inputs

    def inputs(config, model, state, *more):
        found = original(config, model, state, *more)
        value = jnp.where(jnp.isin(state.step, jnp.array(bad)), jnp.nan, 0.0)
        return found._replace(images=found.images.at[rows].add(value))

    monkeypatch.setattr(train_step, "loss_inputs", inputs)


def steps_of(sections, count, microbatches=1):
    """Train a small network on one batch; return the state before each step and after the last, and the metrics."""
    config = freeze(
        {
            "train": {"batch_size": ROWS, "on_nonfinite": "skip"},
            "ema": {"decay": 0.9},
            **sections,
            "model": {
                "name": "resnet20",
                "depths": (1,) * 3,
                **sections.get("model", {}),
            },
        }
    )
    model, mesh = build_model(config, 10), sharding.make_mesh()
    made = plan(config, num_train=160, num_eval=1, num_classes=10)
    optimizer = planned_optimizer(config, made, model)
    state = drawn(abstract_state(config, model, optimizer, mesh))
    # The optimizer's second moments are at least 0.
    state = state.replace(opt_state=jax.tree.map(np.abs, state.opt_state))
    if state.loss_scale:
        state = state.replace(loss_scale=loss_scale.start(config.model))
    draw = np.random.default_rng(0)
    batch = {
        "image": draw.integers(0, 256, (ROWS, 8, 8, 3), np.uint8),
        "label": draw.integers(0, 10, ROWS).astype(np.int32),
    }
    step = train_step.make_train_step(config, model, optimizer, mesh, microbatches=microbatches)
    batch = sharding.place(batch, mesh)
    state = jax.device_put(state, sharding.replicated(mesh))
    states, measured = [jax.device_get(state)], []
    for _ in range(count):
        state, metrics = step(state, {"seed": 0}, batch)
        states.append(jax.device_get(state))
        measured.append({name: float(value) for name, value in metrics.items()})
    for leaf in jax.tree.leaves(state):
        copies = {np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards}
        assert len(leaf.addressable_shards) == 8
        assert len(copies) == 1  # all devices skip alike
    return states, measured


def same(before, after):
    return {
        name: jax.tree.all(
            jax.tree.map(np.array_equal, getattr(before, name), getattr(after, name))
        )
        for name in SKIPPED_STATE
    }


CASES = {
    "microbatches": ({"optimizer": {"name": "adamw"}}, 2),
    "local statistics": ({"model": {"norm_scope": "local"}}, 1),
    "float16": ({"model": {"dtype": "float16"}}, 1),
}


@pytest.mark.parametrize(
    "case",
    ["microbatches", *(pytest.param(name, marks=pytest.mark.slow) for name in [*CASES][1:])],
)
def test_a_step_with_one_bad_image_leaves_the_state_as_it_is(monkeypatch, case):
    """The bad image is on one device of eight. float16 keeps its loss scale, which is not to blame."""
    sections, microbatches = CASES[case]
    spoiled(monkeypatch, [1], rows=slice(3, 4))
    states, measured = steps_of(sections, 3, microbatches)
    assert [m["skipped"] for m in measured] == [0, 1, 0]
    assert [np.isfinite(m["loss"]) for m in measured] == [True, False, True]
    assert [int(state.step) for state in states] == [0, 1, 2, 3]
    assert all(same(states[1], states[2]).values()), same(states[1], states[2])
    for name in ("params", "batch_stats", "opt_state", "ema"):
        assert not same(states[0], states[1])[name]
        assert not same(states[2], states[3])[name]
    finite = jax.tree.map(lambda leaf: bool(np.isfinite(leaf).all()), states[-1].params)
    assert jax.tree.all(finite)


def test_several_steps_a_call_skip_one_by_one():
    """`several_steps` scans the step, so a skipped step in the middle of a call leaves the others."""

    @flax.struct.dataclass
    class State:
        step: int
        w: float

    from flax_resnet.training.step.nonfinite import is_finite, unless_finite

    def step(state, data, call):
        new = State(state.step + 1, state.w + call)
        return unless_finite(state, new, is_finite(call)), {"skipped": ~is_finite(call)}

    calls = jnp.array([1.0, jnp.nan, 2.0])
    state, metrics = several_steps(step, sharding.make_mesh())(State(0, jnp.float32(0)), {}, calls)
    assert (int(state.step), float(state.w)) == (3, 3.0)
    assert metrics["skipped"].tolist() == [False, True, False]


def read(metrics, losses, start=0, scale=None):
    """Read one call whose steps have these losses; a loss that is not finite is skipped."""
    values = {"loss": losses, "top1": [0.5] * len(losses)}
    values["skipped"] = [float(not np.isfinite(loss)) for loss in losses]
    if scale:
        values |= {"loss_scale": [scale] * len(losses), "skipped": [1.0] * len(losses)}
    metrics.add(start, {name: jnp.array(value, jnp.float32) for name, value in values.items()})
    metrics.read(lambda step: None, all_calls=True)


def test_the_limit_counts_skipped_steps_in_a_row_across_a_resume():
    section = Train(on_nonfinite="skip", most_skipped=3)
    metrics = StepMetrics(0, section, Ledger())
    read(metrics, [1.0, np.nan, np.inf, 2.0, np.nan, np.nan])
    assert metrics.updates == 2
    means = metrics.means()
    assert (means["loss"], means["top1"], means["skipped"]) == (1.5, 0.5, pytest.approx(4 / 6))
    # As saved in a checkpoint, in the middle of a row.
    resumed = StepMetrics(2, section, Ledger(), json.loads(json.dumps(metrics.unrecorded)))
    assert resumed.means()["loss"] == 1.5
    with refused("loss", ..., DivergedError) as caught:
        read(resumed, [np.nan, 1.0], start=6)
    assert np.isnan(caught.value.value)
    assert "step 7" in caught.value.problem
    assert "most_skipped" in caught.value.cure


def test_without_a_finite_loss_the_record_has_none():
    metrics = StepMetrics(0, Train(on_nonfinite="skip"), Ledger())
    read(metrics, [np.nan])
    assert metrics.means().keys() == {"skipped", "images_per_second"}


def test_the_search_for_a_loss_scale_does_not_count():
    metrics = StepMetrics(0, Train(on_nonfinite="skip", most_skipped=3), Ledger())
    read(metrics, [1.0] * 20, scale=2.0)
    assert metrics.updates == 0
    with refused("gradient", ..., DivergedError):
        read(metrics, [1.0] * 3, scale=loss_scale.LEAST)


def test_stop_stops_at_the_first_step():
    with refused("loss", ..., DivergedError) as caught:
        read(StepMetrics(0, Train(), Ledger()), [1.0, np.inf])
    assert "step 2" in caught.value.problem
    assert "on_nonfinite" in caught.value.cure


def test_the_limit_is_used_only_with_skip():
    with refused("train.most_skipped", 5, ConfigError):
        freeze({"train": {"most_skipped": 5}})
    freeze({"train": {"most_skipped": 5, "on_nonfinite": "skip"}})


@pytest.fixture
def skipping(tiny, monkeypatch):
    """A run of 2 epochs x 5 steps that skips steps 3, 4 and 5."""
    spoiled(monkeypatch, [2, 3, 4])
    return [*tiny, "--config.train.on_nonfinite=skip", "--config.train.log_every=1"]


@pytest.mark.slow
def test_a_run_resumed_among_skipped_steps_equals_an_undisturbed_one(
    skipping, tmp_path, monkeypatch
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main.main([*skipping, f"--workdir={whole}"]) == 0
    skipped = [record["skipped"] for record in records_of(whole, "train")]
    assert skipped == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    with monkeypatch.context() as patch:
        send(10, patch, "train_step", 4)
        assert main.main([*skipping, f"--workdir={stopped}"]) == INTERRUPTED
    assert saved(stopped, 4)["unrecorded"]["in_a_row"] == 2
    # The limit of 3 in a row counts the two before the stop.
    limited = [*skipping, f"--workdir={stopped}", "--config.train.most_skipped=3"]
    assert main.main(limited) == DivergedError.exit_code
    assert main.main([*skipping, f"--workdir={stopped}"]) == 0
    assert without_times(stopped) == without_times(whole)
    assert saved(stopped, 10)["checksums"] == saved(whole, 10)["checksums"]
