"""The optimizer state and the moving average on several devices: whole on each, or a share on each."""

import dataclasses
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn, records_of, refused
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flax_resnet
from flax_resnet import main
from flax_resnet.cli import evaluate, predict
from flax_resnet.config import Config, differences, freeze
from flax_resnet.config.plan import plan, planned_optimizer
from flax_resnet.errors import DivergedError
from flax_resnet.training import sharding
from flax_resnet.training.plan_text import describe
from flax_resnet.training.runs.array_checksums import checksums
from flax_resnet.training.runs.checkpoint import Checkpoints
from flax_resnet.training.runs.metadata import RunMetadata
from flax_resnet.training.runs.split_crc import crc32_combine, joined
from flax_resnet.training.state import abstract_state, build_model, initial_state
from flax_resnet.training.step.train_step import make_train_step

ROWS, CLASSES = 16, 10


def mesh_of(count):
    devices = jax.devices()[:count]
    return jax.make_mesh((count,), ("data",), devices=devices, axis_types=(AxisType.Auto,))


def config_of(kind, **sections):
    sections = {"ema": {"decay": 0.9}, "train": {}, "model": {}, **sections}
    sections["model"] = {"name": "resnet20", "depths": (1, 1, 1), **sections["model"]}
    sections["train"] = {"batch_size": ROWS, "sharding": kind, **sections["train"]}
    return freeze(sections)


def parts_of(config):
    model = build_model(config, CLASSES)
    made = plan(config, num_train=10 * ROWS, num_eval=1, num_classes=CLASSES)
    return model, planned_optimizer(config, made, model), made


def held(tree, device):
    """The bytes that a device holds of a tree of arrays."""
    shards = [x for leaf in jax.tree.leaves(tree) for x in leaf.addressable_shards]
    return sum(x.data.nbytes for x in shards if x.device == device)


def stepped(config, steps=2, mesh=None, **options):
    """The state after some steps from random weights, and the metrics of each step."""
    mesh = mesh or mesh_of(8)
    model, optimizer, _ = parts_of(config)
    shapes = abstract_state(config, model, optimizer, mesh)
    state = drawn(shapes).replace(step=np.int32(0))
    if state.loss_scale:
        state = state.replace(loss_scale={"factor": np.float32(2**15), "steps": np.int32(0)})
    state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, shapes))
    step, draw, metrics = (
        make_train_step(config, model, optimizer, mesh, **options),
        np.random.default_rng(0),
        [],
    )
    for _ in range(steps):
        images = draw.integers(0, 256, (ROWS, 8, 8, 3), np.uint8)
        labels = draw.integers(0, CLASSES, ROWS).astype(np.int32)
        batch = sharding.place({"image": images, "label": labels}, mesh)
        state, of_step = step(state, {"seed": 0}, batch)
        metrics.append(jax.device_get(of_step))
    assert (
        step._cache_size() == 1
    )  # a state in other shardings than before would be compiled for again
    return state, metrics


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 16, 64), PartitionSpec(None, None, "data")),
        ((7, 7, 3, 64), PartitionSpec(None, None, None, "data")),
        ((64, 10), PartitionSpec("data")),
        ((3, 10), PartitionSpec()),
        ((64,), PartitionSpec()),
        ((), PartitionSpec()),
    ],
)
def test_the_first_axis_that_the_devices_divide_is_split(shape, spec):
    assert sharding.split_parameter(mesh_of(8), shape).spec == spec
    assert sharding.split_parameter(mesh_of(1), shape).spec == PartitionSpec()


@pytest.mark.slow
def test_a_step_is_that_of_the_replicated_state_and_keeps_the_state_split():
    """The state is an eighth before and after the step; parameters and statistics are whole on every device."""
    whole, expected = stepped(config_of("replicated"))
    split, found = stepped(config_of("optimizer"))
    for a, b in zip(
        jax.tree.leaves((split, found)), jax.tree.leaves((whole, expected)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for device in jax.devices():
        assert held(split.params, device) == held(whole.params, device)
        assert held(split.ema["batch_stats"], device) == held(whole.ema["batch_stats"], device)
        for name in ("opt_state", "ema"):
            assert held(getattr(split, name), device) < held(getattr(whole, name), device) / 6
    assert sharding.bytes_per_device(split) == held(split, jax.devices()[3])


OPTIONS = {
    "lookahead": {"ema": {"decay": 0.9, "lookahead": 2}},
    "loss scale": {"model": {"dtype": "float16"}},
    "local statistics": {"model": {"norm_scope": "local"}},
    "stacked blocks": {"model": {"depths": (3, 3, 3), "scan_blocks": True}},
    "averaging optimizer": {"optimizer": {"name": "schedule_free_sgd"}, "ema": {}},
    "matrix products": {"optimizer": {"name": "muon"}},
    "norms": {"optimizer": {"name": "lars", "clip_norm": 0.1}},
    "dropped blocks in microbatches": {"model": {"drop_path": 0.5}, "microbatches": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_reads_or_writes_the_optimizer_state_works_with_shares(options):
    options = dict(options)
    more = {"microbatches": options.pop("microbatches", 1)}
    whole, expected = stepped(config_of("replicated", **options), **more)
    split, found = stepped(config_of("optimizer", **options), **more)
    limit = 5e-3 if "float16" in str(options) else 1e-4
    for a, b in zip(
        jax.tree.leaves((split, found)), jax.tree.leaves((whole, expected)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=limit, atol=limit)
    device = jax.devices()[0]
    assert held(split.opt_state, device) < held(whole.opt_state, device) / 3


def test_the_plan_says_what_a_device_holds():
    sizes = {}
    for kind in sharding_kinds():
        config = config_of(kind)
        model, optimizer, made = parts_of(config)
        shapes = abstract_state(config, model, optimizer, mesh_of(8))
        sizes[kind] = f"{sharding.bytes_per_device(shapes) / 2**20:,.1f} MiB"
        assert sizes[kind] in describe(config, made, shapes, resident=False)
    assert sizes["replicated"] != sizes["optimizer"]


def sharding_kinds():
    return ("replicated", "optimizer")


def test_the_setting_does_not_belong_to_the_identity_of_a_run():
    assert differences(*map(config_of, sharding_kinds())) == []


# --- checksums of split arrays ---


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 8, 1000])
@pytest.mark.parametrize("length", [1, 4, 1023])
def test_the_crc_of_parts_is_that_of_the_whole(parts, length):
    text = np.random.default_rng(parts).integers(0, 256, (parts, length), np.uint8)
    crcs = np.array([zlib.crc32(part) for part in text], np.uint32)
    assert joined(crcs, length) == zlib.crc32(text)
    first, second = zlib.crc32(text[:1]), zlib.crc32(text[1:])
    combined = crc32_combine(np.uint32([first]), np.uint32([second]), text[1:].nbytes)
    assert int(combined[0]) == zlib.crc32(text)


SPECS = [
    PartitionSpec(),
    PartitionSpec("a"),
    PartitionSpec(None, "b"),
    PartitionSpec(None, None, ("a", "b")),
    PartitionSpec("b", None, "a"),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32, np.bool_])
def test_a_checksum_does_not_depend_on_the_sharding(spec, dtype):
    array = (10 * np.random.default_rng(0).normal(size=(4, 4, 16))).astype(dtype)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    placed = jax.device_put(array, NamedSharding(mesh, spec))
    assert checksums({"x": placed}) == checksums({"x": array}) == {"x": zlib.crc32(array.tobytes())}


@pytest.mark.parametrize("row", [0, 5, 15])
def test_a_number_that_is_not_finite_is_seen_on_every_device(row):
    array = np.ones((16, 3), np.float32)
    array[row, 1] = np.inf
    placed = jax.device_put(array, sharding.split_parameter(mesh_of(8), array.shape))
    with refused("x", kind=DivergedError):
        checksums({"x": placed}, must_be_finite=True)


# --- checkpoints ---


@pytest.mark.slow
def test_a_state_moves_between_numbers_of_devices_and_both_settings(tmp_path):
    """Each checkpoint of a chain is restored for the next number of devices; the checksums stay the same."""
    checkpoints, state, sums = Checkpoints(tmp_path), None, []
    chain = [(8, "optimizer"), (1, "replicated"), (2, "optimizer"), (4, "optimizer")]
    chain += [(8, "replicated"), (8, "optimizer")]
    for step, (count, kind) in enumerate(chain, 1):
        config = config_of(kind)
        model, optimizer, _ = parts_of(config)
        shapes = abstract_state(config, model, optimizer, mesh_of(count))
        where = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        if state is None:
            first = drawn(shapes)
            state = jax.device_put(first, where)
        else:
            state = checkpoints.restore_last_good(shapes).state
            assert jax.tree.map(lambda leaf: leaf.sharding, state) == where
        metadata = RunMetadata(dataclasses.asdict(Config()), ("a",), 1)
        checkpoints.save(step, state, metadata)
        checkpoints.wait()
        sums.append(checkpoints.metadata(step).checksums)
    checkpoints.close()
    assert all(one == sums[0] for one in sums)
    assert sums[0] == checksums(first)
    jax.tree.map(np.testing.assert_array_equal, state, first)


@pytest.mark.slow
def test_a_fresh_state_is_made_in_shares():
    config = config_of("optimizer")
    model, optimizer, _ = parts_of(config)
    shapes = abstract_state(config, model, optimizer, mesh_of(8))
    state = initial_state(config, model, optimizer, mesh_of(8))
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
        assert leaf.sharding == wanted.sharding
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.ema))


@pytest.mark.slow
def test_a_run_with_shares_is_loaded_evaluated_used_and_resumed_without(tmp_path, tiny, pictures):
    workdir = tmp_path / "run"
    command = [*tiny, "--config.ema.decay=0.5", "--config.ema.bn_batches=2", f"--workdir={workdir}"]
    assert main.main([*command, "--config.train.sharding=optimizer"]) == 0
    loaded = flax_resnet.load(workdir)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(loaded.variables))
    assert evaluate.main([f"--workdir={workdir}", tiny[-1]]) == 0
    evaluated = json.loads((workdir / "evaluations.jsonl").read_text())
    for name in ("top1", "ema_top1"):
        assert evaluated[name] == records_of(workdir, "test")[-1][name]
    assert predict.main([f"--workdir={workdir}", tiny[-1], *map(str, pictures)]) == 0
    assert main.main([*command, "--config.train.epochs=3"]) == 0  # replicated
    assert [r["step"] for r in records_of(workdir, "test")] == [5, 10, 15]
