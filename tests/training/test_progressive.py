"""Training images that grow during a run: the size at each step, compilation ahead of time, and exact resuming."""

import jax
import numpy as np
import pytest
from conftest import records_of, refused, saved

from flax_resnet import main
from flax_resnet.config import freeze
from flax_resnet.config.config import settings
from flax_resnet.config.plan import plan
from flax_resnet.data.sampling import EpochSampler
from flax_resnet.data.sources.arrays import ArraySource
from flax_resnet.errors import ConfigError
from flax_resnet.training import sharding
from flax_resnet.training.input.feeds import StreamingFeed, make_feed
from flax_resnet.training.runs.load import load_run
from flax_resnet.training.step.train_step import compiled_ahead

GROWING = ((0, 8), (1.0, 12), (2.0, 16))


def planned(images=64, **sections):
    config = freeze({"train": {"batch_size": 16, "epochs": 3}, **sections})
    return config, plan(config, num_train=images, num_eval=1, num_classes=10)


def test_sizes_become_steps():
    assert planned(data={"progressive": GROWING})[1].sizes == ((0, 8), (4, 12), (8, 16))
    _, made = planned(
        data={"progressive": ((0, 8), (0.5, 12))},
        schedule={"unit": "fraction"},
        train={"batch_size": 16, "epochs": 3, "steps_per_call": 4},
    )
    assert made.sizes == (
        (0, 8),
        (8, 12),
    )  # step 6 is in the middle of a call, so the size changes at 8
    assert planned(data={"image_size": 20})[1].sizes == ((0, 20),)


def test_each_step_has_images_of_its_size_from_any_start():
    """A batch equals the batch of a run with only that size, at the same step."""
    config, made = planned(data={"progressive": GROWING, "train_crop": "random_resized"})
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (64, 24, 24, 3)).astype(np.uint8)
    source, mesh = ArraySource(images, np.arange(64) % 10), sharding.make_mesh()

    def batches(start, sizes):
        feed = StreamingFeed(source, EpochSampler(64, seed=0), config, mesh, sizes=sizes)
        return [jax.device_get(call) for call in feed.training(start, 12)]

    alone = {size: batches(0, ((0, size),)) for _, size in GROWING}
    for start in (0, 3, 6, 9):
        for step, call in enumerate(batches(start, made.sizes), start):
            size = (8, 12, 16)[step // 4]
            assert call["image"].shape == (16, size, size, 3)
            for name, array in alone[size][step].items():
                np.testing.assert_array_equal(call[name], array)


@pytest.mark.parametrize(
    ("kind", "start", "seen"),
    [
        ("streaming", 0, [(5, 8), (5, 12), (5, 16), (2, 16)]),
        ("streaming", 6, [(4, 12), (5, 16), (2, 16)]),
        ("resident", 0, [(5, 8), (2, 8)]),
        ("resident", 15, [(2, 8)]),
    ],
)
def test_all_shapes_that_the_feed_yields_are_compiled_ahead(kind, start, seen):
    """17 steps, five per call: running them, also the shorter calls, compiles nothing more."""
    growing = {"data": {"progressive": GROWING}} if kind == "streaming" else {}
    config, made = planned(
        images=80, train={"batch_size": 16, "steps": 17, "steps_per_call": 5}, **growing
    )
    images = np.zeros((80, 8, 8, 3), np.uint8)
    source, mesh = ArraySource(images, np.arange(80) % 10), sharding.make_mesh()
    feed = make_feed(
        source, EpochSampler(80, seed=0), config, mesh, crop="resize", sizes=made.sizes
    )
    traced = []

    @jax.jit
    def step(state, data, steps):
        batches = jax.vmap(lambda one: feed.training_batch(data, one))(steps)
        traced.append(batches["image"].shape[:3:2])
        return state + batches["image"].mean(), {"loss": batches["label"].sum()}

    shape = jax.ShapeDtypeStruct((), np.float32, sharding=sharding.replicated(mesh))
    run = compiled_ahead(step, shape, feed.data, feed.calls(start, 17))
    assert traced == seen
    state = jax.device_put(np.float32(0), sharding.replicated(mesh))
    for call in feed.training(start, 17):
        state, _ = run(state, feed.data, call)
    assert traced == seen


@pytest.mark.parametrize(
    "progressive",
    [
        ((1, 8), (2, 12)),  # the first position is not 0
        ((0, 8), (2, 12), (1, 16)),  # not ascending
        ((0, 8.5),),  # not a whole number of pixels
        (0, 8),  # not a tuple of pairs
    ],
)
def test_invalid_sizes_are_refused(progressive):
    with refused("data.progressive", progressive, ConfigError) as error:
        freeze({"data": {"progressive": progressive}})
    assert error.value.allowed.startswith(settings()["data.progressive"].metadata["rule"].words)


@pytest.mark.parametrize("progressive", [((0, 8), (3, 12)), ((0, 8), (0.1, 12))])
def test_sizes_that_do_not_fit_the_run_are_refused(progressive):
    """The second size starts after the end of the run, or at the same step as the first."""
    config = freeze({"data": {"progressive": progressive}})
    assert config.data.progressive == progressive
    with refused("data.progressive", progressive, ConfigError) as error:
        planned(data={"progressive": progressive})
    assert "12 steps" in error.value.allowed


@pytest.mark.parametrize(
    ("sections", "key", "value", "field", "other"),
    [
        (
            {"data": {"progressive": GROWING, "image_size": 32}, "augment": {"pad_crop": 8}},
            "augment.pad_crop", 8, "allowed", "8 px",
        ),
        (
            {"data": {"progressive": GROWING}, "train": {"feed": "resident"}},
            "train.feed", "resident", "problem", "data.progressive",
        ),
    ],
)  # fmt: skip
def test_sizes_that_conflict_with_other_settings_are_refused(sections, key, value, field, other):
    with refused(key, value, ConfigError) as error:
        freeze(sections)
    assert other in getattr(error.value, field)


@pytest.mark.slow
def test_a_growing_run_resumes_exactly(tiny, tmp_path, capfd):
    """A run of 3 epochs equals a run of 2 epochs that is extended to 3."""
    command = [*tiny, "--config.train.batch_size=120", "--config.data.limit=240"]
    command += ["--config.data.progressive=((0,8),(1,12))", "--config.data.eval_size=12"]
    command += ["--config.schedule.name=constant", "--config.schedule.unit=epochs"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main.main([*command, f"--workdir={whole}", "--config.train.epochs=3"]) == 0
    said = capfd.readouterr().err
    assert "8x8, 12x12 from step 2 (evaluated at 12x12) px" in said
    assert "compiling for 2 sizes of image or numbers of steps a call" in said
    for epochs in (2, 3):
        assert main.main([*command, f"--workdir={parts}", f"--config.train.epochs={epochs}"]) == 0
    one, other = load_run(whole), load_run(parts)
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)
    whole_state, parts_state = (saved(folder, one.step)["checksums"] for folder in (whole, parts))
    assert whole_state == parts_state
    assert records_of(whole, "test")[-1]["loss"] == records_of(parts, "test")[-1]["loss"]
