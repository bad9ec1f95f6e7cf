"""Microbatches: the gradient is that of the whole batch, or of ghost batch normalisation; the automatic size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn, refused, saved
from jax.sharding import AxisType

from flax_resnet import main
from flax_resnet.config import freeze
from flax_resnet.config.plan import plan, planned_optimizer
from flax_resnet.errors import ConfigError
from flax_resnet.training import microbatch_size, sharding
from flax_resnet.training.plan_text import describe
from flax_resnet.training.state import abstract_state, build_model
from flax_resnet.training.step.gradient import make_gradient
from flax_resnet.training.step.train_step import loss_inputs, make_train_step

ROWS, CLASSES = 16, 10


def config_of(norm="group", **sections):
    model = {"name": "resnet20", "depths": (1, 1, 1), "norm": norm}
    model |= sections.pop("model", {})
    return freeze({"model": model, "train": {"batch_size": ROWS}, **sections})


def mesh_of(count):
    devices = jax.devices()[:count]
    return jax.make_mesh((count,), ("data",), devices=devices, axis_types=(AxisType.Auto,))


def batch_of(rows=ROWS):
    draw = np.random.default_rng(0)
    return {
        "image": draw.integers(0, 256, (rows, 8, 8, 3), np.uint8),
        "label": draw.integers(0, CLASSES, rows).astype(np.int32),
    }


def gradient_of(config, count, devices=1, batch=None):
    mesh, model = mesh_of(devices), build_model(config, CLASSES)
    made = plan_of(config)
    optimizer, weights = planned_optimizer(config, made, model), made.class_weights
    state = drawn(abstract_state(config, model, optimizer, mesh)).replace(step=jnp.int32(3))
    gradient = make_gradient(config, model, mesh, microbatches=count, class_weights=weights)

    @jax.jit
    def of_batch(state, batch):
        inputs = loss_inputs(config, model, state, batch, seed=0, class_weights=weights)
        return gradient(state.params, inputs)

    placed = sharding.place(batch or batch_of(), mesh)
    return jax.device_get(of_batch(jax.device_put(state, sharding.replicated(mesh)), placed))


def plan_of(config):
    return plan(config, num_train=10 * ROWS, num_eval=1, num_classes=CLASSES)


def assert_same(found, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-3))


@pytest.mark.parametrize(("count", "devices"), [(2, 1), (2, 8)])
def test_microbatches_change_nothing_without_batch_normalisation(count, devices):
    """Includes Mixup partners from other microbatches, and microbatches with different sums of class weights."""
    config = config_of(
        augment={"mixup": 1.0, "mix_mode": "element", "flip": "horizontal", "pad_crop": 1},
        loss={"class_weights": "given", "weight_per_class": tuple(range(1, CLASSES + 1))},
    )
    assert_same(gradient_of(config, count, devices), gradient_of(config, 1))


def test_microbatches_with_batch_normalisation_are_ghost_batch_normalisation():
    count, rows = 2, np.arange(ROWS)
    ghost = config_of("batch", model={"norm_scope": "ghost", "norm_groups": count})
    found = gradient_of(config_of("batch"), count)
    ordered = np.concatenate([rows[start::count] for start in range(count)])
    batch = {name: array[ordered] for name, array in batch_of().items()}
    assert_same(found, gradient_of(ghost, 1, batch=batch))
    whole = gradient_of(config_of("batch"), 1)
    assert not np.allclose(jax.tree.leaves(found[0])[0], jax.tree.leaves(whole[0])[0], rtol=1e-3)


@pytest.mark.parametrize(("count", "devices"), [(2, 1), (4, 1), (2, 2), (2, 8)])
def test_ghost_groups_are_groups_of_the_batch(count, devices):
    """Gradient, metrics and running statistics do not depend on the microbatches."""
    config = config_of("batch", model={"norm_scope": "ghost", "norm_groups": 4})
    assert_same(gradient_of(config, count, devices), gradient_of(config, 1))


@pytest.mark.parametrize("size", ["2", "1"])
def test_microbatches_of_less_than_a_ghost_group_are_refused(size):
    """Each of 4 groups has 4 images."""

    def config(size):
        return config_of(
            "batch",
            model={"norm_scope": "ghost", "norm_groups": 4},
            train={"batch_size": ROWS, "microbatch_size": size},
        )

    assert microbatch_size.microbatches_of(config("4"), mesh_of(1)) == 4
    assert microbatch_size.microbatches_of(config("8"), mesh_of(1)) == 2
    with refused("train.microbatch_size", size, ConfigError) as error:
        microbatch_size.microbatches_of(config(size), mesh_of(1))
    assert "model.norm_groups=4" in error.value.allowed


def test_each_microbatch_has_its_own_dropout_mask():
    """Both microbatches have the same images: with the same mask, the gradient would equal that of one of them."""
    config = config_of(model={"dropout": 0.5})
    half = batch_of(ROWS // 2)
    batch = {name: np.repeat(array, 2, axis=0) for name, array in half.items()}
    found = gradient_of(config, 2, batch=batch)[0]
    alone = gradient_of(
        dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=ROWS // 2)),
        1,
        batch=half,
    )[0]
    kernel = found["fc"]["kernel"]
    assert not np.allclose(kernel, alone["fc"]["kernel"], rtol=1e-3)


class Compiled:
    """A compiled step that needs `size` bytes."""

    def __init__(self, size):
        self.temp_size_in_bytes, self.argument_size_in_bytes = size, 0
        self.output_size_in_bytes = self.alias_size_in_bytes = 0

    def compile(self):
        return self

    def memory_analysis(self):
        return self


def test_auto_chooses_the_largest_microbatch_that_fits(monkeypatch):
    monkeypatch.setattr(microbatch_size, "available_memory", lambda: 1000)
    config, mesh = config_of(), mesh_of(1)
    choose = microbatch_size.choose_microbatches
    assert choose(config, mesh, lambda count: Compiled(800 // count)) == 1
    assert choose(config, mesh, lambda count: Compiled(3000 // count)) == 4
    with refused("train.microbatch_size", "auto", ConfigError) as error:
        choose(config, mesh_of(2), lambda count: Compiled(800_000))
    assert "2 images" in error.value.problem
    assert "2 devices" in error.value.problem


def test_auto_keeps_ghost_groups_whole(monkeypatch):
    monkeypatch.setattr(microbatch_size, "available_memory", lambda: 1000)
    config = config_of("batch", model={"norm_scope": "ghost", "norm_groups": 4})
    choose, mesh = microbatch_size.choose_microbatches, mesh_of(1)
    assert choose(config, mesh, lambda count: Compiled(3000 // count)) == 4
    with refused("train.microbatch_size", "auto", ConfigError) as error:
        choose(config, mesh, lambda count: Compiled(6000 // count))
    assert "model.norm_groups=4" in error.value.problem


def test_a_resumed_run_needs_devices_that_divide_its_automatic_microbatch():
    config = config_of(train={"batch_size": ROWS, "microbatch_size": "auto"})
    assert microbatch_size.microbatches_of(config, mesh_of(1)) is None
    assert microbatch_size.microbatches_of(config, mesh_of(2), resumed=8) == 8
    with refused("train.microbatch_size", "auto", ConfigError):
        microbatch_size.microbatches_of(config, mesh_of(8), resumed=8)


@pytest.mark.parametrize(
    ("size", "model", "says"),
    [
        ("auto", {"norm": "batch"}, True),
        ("auto", {"norm": "batch", "norm_scope": "local"}, True),
        ("8", {"norm": "batch"}, False),
        ("auto", {"norm": "batch", "norm_scope": "ghost", "norm_groups": 4}, False),
        ("auto", {"norm": "frozen"}, False),
        ("auto", {"norm": "group"}, False),
    ],
)
def test_the_plan_says_if_memory_decides_the_batch_statistics(size, model, says):
    config = config_of(model=model, train={"batch_size": ROWS, "microbatch_size": size})
    network = build_model(config, CLASSES)
    optimizer = planned_optimizer(config, plan_of(config), network)
    shapes = abstract_state(config, network, optimizer, mesh_of(1))
    text = describe(config, plan_of(config), shapes, resident=False)
    assert f"microbatch {size}" in text
    assert ("memory" in text) == says


def test_smaller_microbatches_need_less_memory():
    config, mesh = config_of(data={"image_size": 32}), mesh_of(1)
    model = build_model(config, CLASSES)
    optimizer = planned_optimizer(config, plan_of(config), model)
    state = abstract_state(config, model, optimizer, mesh)
    images = jax.ShapeDtypeStruct((ROWS, 32, 32, 3), jnp.uint8)
    batch = {"image": images, "label": jax.ShapeDtypeStruct((ROWS,), jnp.int32)}
    needs = [
        microbatch_size.needed_memory(
            make_train_step(config, model, optimizer, mesh, microbatches=count)
            .lower(state, {"seed": 0}, batch)
            .compile()
        )
        for count in (1, 8)
    ]
    assert needs[1] < 0.7 * needs[0]


RUN = [
    "--config=configs/resnet18.py",
    "--noreport",
    "--config.model.name=resnet20",
    "--config.model.depths=(1,1,1)",
    "--config.data.limit=64",
    "--config.train.epochs=1",
    "--config.train.batch_size=32",
    "--config.schedule.warmup=0.0",
]


@pytest.mark.slow
def test_a_resumed_run_keeps_its_automatic_microbatch_size(tmp_path, data_dir, monkeypatch, capfd):
    """8 images is the smallest microbatch for eight devices. The size stays when the available memory changes."""
    command = [*RUN, f"--workdir={tmp_path / 'run'}", f"--data_dir={data_dir}"]
    command += ["--config.train.microbatch_size=auto", "--config.train.batch_size=16"]
    needs = iter([2e9, 0])
    monkeypatch.setattr(microbatch_size, "available_memory", lambda: 1e9)
    monkeypatch.setattr(microbatch_size, "needed_memory", lambda compiled: next(needs))
    assert main.main(command) == 0
    assert "microbatch: 8 images" in capfd.readouterr().err
    assert saved(tmp_path / "run", 4)["microbatches"] == 2
    assert main.main([*command, "--config.train.epochs=2"]) == 0
    assert saved(tmp_path / "run", 8)["microbatches"] == 2


@pytest.mark.parametrize("value", ["12", "4", "0", "most"])
def test_an_invalid_microbatch_size_is_one_line(tmp_path, data_dir, capsys, value):
    """32 is not a multiple of 12, and 4 is not a multiple of the eight devices."""
    command = [*RUN, f"--workdir={tmp_path / 'run'}", f"--data_dir={data_dir}"]
    assert main.main([*command, f"--config.train.microbatch_size={value}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert f"train.microbatch_size='{value}'" in error[0]
    assert not (tmp_path / "run").exists()
