"""The moving average of the weights: its formula, its batch statistics, and its use in a run."""

import json

import jax
import numpy as np
import pytest
from conftest import refused, saved

import flax_resnet
from flax_resnet import main
from flax_resnet.augment import training_batch
from flax_resnet.config import Config, freeze
from flax_resnet.config.plan import plan, planned_optimizer
from flax_resnet.errors import ConfigError
from flax_resnet.ops import dispatch
from flax_resnet.optim import ema
from flax_resnet.optim.ema import Ema
from flax_resnet.training import sharding
from flax_resnet.training.input.feeds import stacked
from flax_resnet.training.runs.load import load_run
from flax_resnet.training.state import build_model, initial_state
from flax_resnet.training.step.bn_statistics import make_statistics_measurement
from flax_resnet.training.step.train_step import AUGMENT_STREAM, stream_key


def values(seed):
    draw = np.random.default_rng(seed)
    return {
        "params": {"w": draw.normal(size=3).astype(np.float32)},
        "batch_stats": {"mean": draw.normal(size=2).astype(np.float32)},
    }


@pytest.mark.parametrize(
    ("section", "decays"),
    [
        (Ema(decay=0.9, warmup=False), [0.9] * 3),
        (Ema(decay=0.22), [2 / 11, 0.22, 0.22]),  # the warm-up limits it to 2/11, 3/12, 4/13
        (Ema(decay=0.9, warmup=False, decay_power=2.0), [0.1, 0.4, 0.9, 0.9]),  # total_steps is 3
    ],
)
def test_the_moving_average_uses_the_decay_of_each_step(section, decays):
    mean = expected = ema.start(values(0))
    for step, decay in enumerate(decays, 1):
        mean, same = ema.advance(mean, values(step), np.int32(step), section, 3)
        jax.tree.map(np.testing.assert_array_equal, same, values(step))
        expected = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, expected, values(step))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), mean, expected)


def test_measured_statistics_are_not_averaged():
    section = Ema(decay=0.9, bn_batches=4)
    mean, _ = ema.advance(values(0), values(1), np.int32(1), section, 1)
    assert (mean["batch_stats"]["mean"] == values(0)["batch_stats"]["mean"]).all()
    assert (mean["params"]["w"] != values(0)["params"]["w"]).all()


def test_without_decay_there_is_no_moving_average():
    assert not Config().averages_weights
    assert Config(ema=Ema(decay=0.5)).averages_weights
    assert ema.advance({}, values(0), np.int32(1), Ema(), 1)[0] == {}


def test_lookahead_copies_the_moving_average_to_the_weights():
    section = Ema(decay=0.75, warmup=False, lookahead=2)
    mean, kept = ema.advance(values(0), values(1), np.int32(1), section, 4)
    jax.tree.map(np.testing.assert_array_equal, (mean, kept), (values(0), values(1)))
    mean, kept = ema.advance(mean, values(2), np.int32(2), section, 4)
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, values(0), values(2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), mean, expected)
    jax.tree.map(np.testing.assert_array_equal, kept, mean)


@pytest.mark.parametrize(
    ("section", "key", "field", "other"),
    [
        ({"decay_power": 3.0}, "decay_power", "cure", "ema.decay"),
        ({"lookahead": 5}, "lookahead", "cure", "ema.decay"),
        ({"lookahead": 5, "decay": 0.9, "bn_batches": 4}, "lookahead", "allowed", "ema.bn_batches"),
        ({"bn_batches": 3}, "bn_batches", "cure", "ema.decay"),
    ],
)
def test_settings_that_conflict_are_refused(section, key, field, other):
    with refused(f"ema.{key}", section[key], ConfigError) as error:
        freeze({"ema": section})
    assert other in getattr(error.value, field)


def measured_config(steps_per_call=1, **model):
    return freeze(
        {
            "model": {"stem": "cifar", "widths": (16,) * 4, "depths": (1,) * 4, **model},
            "train": {"batch_size": 16, "steps_per_call": steps_per_call},
            "augment": {"flip": "horizontal"},
            "ema": {"decay": 0.9, "bn_batches": 3},
        }
    )


@pytest.mark.parametrize("steps_per_call", [1, 2])
@pytest.mark.slow
def test_measured_statistics_are_the_mean_over_the_batches(steps_per_call):
    config = measured_config(steps_per_call)
    model, mesh = build_model(config, 10), sharding.make_mesh()
    made = plan(config, num_train=160, num_eval=1, num_classes=10)
    optimizer = planned_optimizer(config, made, model)
    state = initial_state(config, model, optimizer, mesh)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    draw = np.random.default_rng(0)
    batches = [
        {
            "image": draw.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8),
            "label": draw.integers(0, 10, 16).astype(np.int32),
        }
        for _ in range(3)
    ]
    if steps_per_call == 1:
        calls = [sharding.place(batch, mesh, steps=False) for batch in batches]
    else:
        parts = [stacked(part) for part in (batches[:2], batches[2:])]
        calls = [sharding.place(part, mesh, steps=True) for part in parts]
    found = make_statistics_measurement(config, model, mesh)(variables, {"seed": 0}, calls, 0)

    sums = []
    for number, batch in enumerate(batches):
        key = stream_key(0, AUGMENT_STREAM, number)
        images, _ = training_batch(key, batch["image"], batch["label"], 10, config.augment)
        _, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        # new = 0.9 old + 0.1 batch, solved for the batch's statistics
        sums.append(
            jax.tree.map(
                lambda new, old: (new - 0.9 * old) / 0.1,
                updated["batch_stats"],
                variables["batch_stats"],
            )
        )
    expected = jax.tree.map(lambda *parts: sum(parts) / 3, *sums)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected
    )


@pytest.mark.parametrize("name", ["vgg11_bn", "airbench94", "resnet18"])
def test_statistics_of_every_family_are_measured_with_momentum_1(name, monkeypatch):
    monkeypatch.setenv(
        dispatch.SWITCH, "plain"
    )  # without compiler options, so that JAX can trace it
    size, rows = 32, 2 * jax.device_count()
    config = freeze(
        {
            "model": {"name": name, "norm_scope": "local"},
            "data": {"image_size": size},
            "ema": {"decay": 0.9, "bn_batches": 3},
            "train": {"batch_size": rows},
        }
    )
    model, mesh = build_model(config, 10), sharding.make_mesh()
    assert (model.norm_momentum, model.norm_groups) != (1.0, 1)
    measure = make_statistics_measurement(config, model, mesh)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((rows, size, size, 3), np.float32)
    )
    batch = {"image": np.zeros((rows, size, size, 3), np.uint8), "label": np.zeros(rows, np.int32)}
    measured = jax.eval_shape(
        lambda variables: measure(variables, {"seed": 0}, [batch], 0), dict(shapes)
    )
    assert measured == shapes["batch_stats"]


def test_measuring_statistics_needs_batch_normalisation():
    config = measured_config(norm="group")
    with refused("ema.bn_batches", 3, ConfigError) as error:
        make_statistics_measurement(config, build_model(config, 10), sharding.make_mesh())
    assert error.value.allowed == "0"
    assert "norm='group'" in error.value.problem


AVERAGES = {
    "ema": ("--config.ema.decay=0.5", "--config.ema.warmup=False"),
    "schedule_free_sgd": ("--config.optimizer.name=schedule_free_sgd",),
}


@pytest.mark.slow
@pytest.mark.parametrize("average", AVERAGES)
def test_a_run_evaluates_saves_resumes_and_loads_its_average(average, tiny, tmp_path, capsys):
    arguments = [
        *tiny, *AVERAGES[average], "--config.schedule.name=constant", "--config.ema.bn_batches=2",
        "--config.augment.flip=horizontal",
    ]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main.main([*arguments, f"--workdir={whole}", "--config.train.epochs=2"]) == 0
    for epochs in (1, 2):
        run = [*arguments, f"--workdir={parts}", f"--config.train.epochs={epochs}"]
        assert main.main(run) == 0
    run = load_run(whole)
    one, other = (saved(folder, run.step) for folder in (whole, parts))
    assert one["checksums"] == other["checksums"]  # these cover the whole state
    assert one["shapes"] == other["shapes"]

    mean, last = flax_resnet.load(whole), flax_resnet.load(whole, ema=False)
    jax.tree.map(np.testing.assert_array_equal, mean.variables, run.ema)
    jax.tree.map(np.testing.assert_array_equal, mean.variables, run.best_variables())
    jax.tree.map(np.testing.assert_array_equal, last.variables, run.best_variables(ema=False))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), mean.variables, last.variables)
    assert all(jax.tree.leaves(moved))

    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    final = records[-1]
    assert {"top1", "ema_top1", "ema_top5", "ema_loss"} <= final.keys()
    assert f"final top-1 {final['ema_top1']:.2%}" in (whole / "summary.txt").read_text()
    assert "averaged top-1" in capsys.readouterr().err
