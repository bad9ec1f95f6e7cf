import dataclasses
import json
import shutil
import types
import zlib

import jax
import numpy as np
import pytest
from conftest import refused, saved, saved_run

import flax_resnet
from flax_resnet import main
from flax_resnet.cli import commands
from flax_resnet.config import Config, plan
from flax_resnet.errors import CheckpointError, DivergedError, WorkdirError
from flax_resnet.training import experiment, sharding
from flax_resnet.training.runs import checkpoint
from flax_resnet.training.runs.array_checksums import checksums
from flax_resnet.training.runs.checkpoint import Checkpoints
from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.training.runs.load import chosen_step, load_run
from flax_resnet.training.runs.metadata import SCHEMA, RunMetadata


def described():
    return RunMetadata(dataclasses.asdict(Config()), ("a",), 1)


def state_of(number):
    tree = {
        "params": {"w": np.arange(600, dtype=np.float32).reshape(20, 30) + number},
        "step": np.int32(number),
    }
    return jax.device_put(tree, sharding.replicated(sharding.make_mesh()))


def abstract():
    whole = sharding.replicated(sharding.make_mesh())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state_of(0)
    )


@pytest.fixture
def workdir(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        checkpoints.save(step, state_of(step), described(), best=best)
    checkpoints.close()
    return tmp_path


def test_the_last_two_and_the_best_are_kept(workdir):
    checkpoints = Checkpoints(workdir, read_only=True)
    assert checkpoints.steps() == [2, 4, 5]
    assert [chosen_step(checkpoints, name, 2) for name in ("last", "best", 4, "4")] == [5, 2, 4, 4]
    assert chosen_step(checkpoints, "best") == 5  # nothing was evaluated
    with refused("checkpoint", "1", CheckpointError) as error:
        chosen_step(checkpoints, "1")
    assert set(error.value.allowed) == {"2", "4", "5", "best", "last"}
    restored = checkpoints.restore(2, abstract())
    jax.tree.map(np.testing.assert_array_equal, restored.state, state_of(2))


def test_a_restored_state_has_the_requested_sharding(workdir):
    state = Checkpoints(workdir, read_only=True).restore(5, abstract()).state
    assert state["params"]["w"].sharding == sharding.replicated(sharding.make_mesh())


def arrays(workdir, step):
    files = [f for f in (workdir / "checkpoints" / str(step) / "state").rglob("*") if f.is_file()]
    return max(files, key=lambda f: f.stat().st_size if "d" in [p.name for p in f.parents] else 0)


def truncate(workdir):
    file = arrays(workdir, 5)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(workdir):
    file = arrays(workdir, 5)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def remove_a_file(workdir):
    arrays(workdir, 5).unlink()


def remove_the_description(workdir):
    shutil.rmtree(workdir / "checkpoints" / "5" / "run")


def description(workdir, step=5):
    return workdir / "checkpoints" / str(step) / "run" / "metadata"


def change_description(workdir, change, step=5):
    """Apply `change` to the JSON object that describes a checkpoint."""
    values = json.loads(description(workdir, step).read_text())
    change(values)
    description(workdir, step).write_text(json.dumps(values))


def forge_a_checksum(workdir):
    """Change the checksum of an array; the description itself keeps a valid checksum."""
    found = RunMetadata.from_json(json.loads(description(workdir).read_text()))
    sums = {**found.checksums, "params/w": found.checksums["params/w"] ^ 1}
    forged = dataclasses.replace(found, checksums=sums).to_json()
    description(workdir).write_text(json.dumps(forged))


def change_a_digit(workdir):
    before = description(workdir).read_text()
    after = before.replace('"batch_size": 128', '"batch_size": 129')
    assert after != before
    description(workdir).write_text(after)


def remove_a_key(workdir):
    change_description(workdir, lambda values: values.pop("bad_images"))


def remove_a_key_of_a_whole_description(workdir):
    """Remove a key, and update the checksum of the description."""
    values = RunMetadata.from_json(json.loads(description(workdir).read_text())).to_json()
    del values["bad_images"], values["checksum"]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    values["checksum"] = zlib.crc32(text.encode())
    description(workdir).write_text(json.dumps(values))


def remove_its_checksum(workdir):
    change_description(workdir, lambda values: values.pop("checksum"))


def put_a_list_in_its_place(workdir):
    description(workdir).write_text("[1, 2]")


def empty_folder(workdir):
    shutil.rmtree(workdir / "checkpoints" / "5")
    (workdir / "checkpoints" / "5").mkdir()


def newer_empty_folder(workdir):
    (workdir / "checkpoints" / "9").mkdir()


DAMAGES = [
    truncate, flip_a_bit, remove_a_file, remove_the_description, forge_a_checksum, change_a_digit, remove_a_key,
    remove_a_key_of_a_whole_description, remove_its_checksum, put_a_list_in_its_place, empty_folder,
    newer_empty_folder,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_resuming_moves_a_damaged_checkpoint_and_restores_the_previous_one(workdir, damage, caplog):
    damage(workdir)
    checkpoints = Checkpoints(workdir)
    restored = checkpoints.restore_last_good(abstract())
    step = 5 if damage is newer_empty_folder else 4
    assert restored.step == step
    jax.tree.map(np.testing.assert_array_equal, restored.state, state_of(step))
    (moved,) = (workdir / "checkpoints.bad").iterdir()
    assert moved.name in caplog.text
    # Training continues, and can save and restore new checkpoints.
    checkpoints.save(step + 1, state_of(7), described())
    checkpoints.close()
    again = Checkpoints(workdir)
    assert again.restore_last_good(abstract()).step == step + 1
    again.close()


def test_a_folder_whose_checkpoints_are_lost_does_not_start_over_unasked(workdir):
    for step in (2, 4, 5):
        shutil.rmtree(workdir / "checkpoints" / str(step) / "state")
    for _ in range(2):  # the second time, the broken checkpoints have been moved already
        with refused(workdir / "checkpoints", kind=CheckpointError) as error:
            Checkpoints(workdir).restore_last_good(abstract())
        assert "--resume=force" in error.value.cure
    assert len(list((workdir / "checkpoints.bad").iterdir())) == 3
    shutil.rmtree(workdir / "checkpoints.bad")
    with refused(workdir / "checkpoints", kind=CheckpointError):
        Checkpoints(workdir).restore_last_good(abstract())
    checkpoints = Checkpoints(workdir)
    assert checkpoints.restore_last_good(abstract(), starts_over=True) is None
    with refused(workdir / "checkpoints", kind=CheckpointError):  # the forced run has not begun yet
        Checkpoints(workdir).restore_last_good(abstract())
    checkpoints.start_over()
    assert Checkpoints(workdir).restore_last_good(abstract()) is None


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with refused("params/w", kind=DivergedError):
        checkpoints.save(1, {"params": {"w": np.array([1.0, np.nan])}}, described())
    assert checkpoints.steps() == []


def test_a_save_that_orbax_skips_is_an_error(workdir):
    checkpoints = Checkpoints(workdir)
    with refused(workdir / "checkpoints" / "3", kind=CheckpointError):
        checkpoints.save(3, state_of(3), described())


def test_donating_the_state_during_a_save_does_not_change_the_checkpoint(tmp_path):
    """On CPU, the writing thread could share its buffer with the next step, which overwrites it."""
    update = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    state = update(state_of(0))
    checkpoints.save(1, state, described())
    for _ in range(20):
        state = update(state)
    checkpoints.close()
    restored = Checkpoints(tmp_path, read_only=True).restore(1, abstract())
    np.testing.assert_array_equal(restored.state["params"]["w"], state_of(0)["params"]["w"] + 1)


# --- readers of a run folder ---

NETWORK = {"name": "resnet20", "depths": (1, 1, 1)}


@pytest.fixture
def run(tmp_path):
    return saved_run(tmp_path / "run", {"model": NETWORK}, ["a", "b"], step=5)


@pytest.mark.parametrize(
    "damage", [change_a_digit, remove_a_key, remove_a_key_of_a_whole_description]
)
def test_every_reader_reports_a_damaged_description_in_one_line(run, damage):
    damage(run)
    for read in (flax_resnet.load, load_run, lambda run: load_run(run, "best")):
        with refused(run / "checkpoints" / "5" / "run", kind=CheckpointError):
            read(run)
    assert not (run / "checkpoints.bad").exists()  # a reader moves no files


def test_a_missing_key_raises_a_checkpoint_error(run):
    whole = json.loads(description(run).read_text())
    for key in whole:
        change_description(run, lambda values, key=key: values.pop(key))
        with refused(run / "checkpoints" / "5" / "run", kind=CheckpointError):
            Checkpoints(run, read_only=True).metadata(5)
        description(run).write_text(json.dumps(whole))
    assert Checkpoints(run, read_only=True).metadata(5).to_json() == whole


def test_a_checkpoint_of_an_older_version_is_refused_and_not_moved(run, workdir, capsys):
    for folder in (run, workdir):
        change_description(
            folder, lambda values: [values.pop(key) for key in ("schema", "checksum")]
        )
    for read in (flax_resnet.load, load_run):
        with refused(run / "checkpoints" / "5" / "run", kind=WorkdirError) as error:
            read(run)
        assert "flax_resnet==0.1.0" in error.value.cure
    assert commands.main(["evaluate", f"--workdir={run}"]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert "flax_resnet==0.1.0" in line
    with refused(workdir / "checkpoints" / "5" / "run", kind=WorkdirError):
        Checkpoints(workdir).restore_last_good(abstract())
    assert description(workdir).exists()
    assert not (workdir / "checkpoints.bad").exists()


def test_a_run_folder_of_another_version_is_refused(run, tiny, capsys):
    file = run / "config.json"
    values = json.loads(file.read_text())
    assert values.pop("schema") == SCHEMA
    file.write_text(json.dumps(values))
    with refused(file, kind=WorkdirError) as error:
        RunFolder.at(run).read_config()
    assert "flax_resnet==0.1.0" in error.value.cure
    for resume in ("auto", "force"):
        assert main.main([*tiny, f"--workdir={run}", f"--resume={resume}"]) == 5
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"error: {error.value}"
    file.write_text(json.dumps({"schema": SCHEMA + 1, **values}))
    with refused(file, kind=WorkdirError) as error:
        RunFolder.at(run).read_config()
    assert f"newer than {flax_resnet.__version__}" in error.value.cure


@pytest.mark.parametrize("name", ["sgd", "lars", "lamb", "adamw", "muon"])
def test_a_run_is_loaded_without_building_its_optimizer(tmp_path, monkeypatch, name):
    sections = {"model": NETWORK, "optimizer": {"name": name}, "ema": {"decay": 0.9}}
    folder = saved_run(tmp_path / "run", sections, ["a", "b"], step=5)

    def refuse(*args):
        raise AssertionError("no optimizer is needed")

    for module in (plan, experiment):
        monkeypatch.setattr(module, "planned_optimizer", refuse)
    found = load_run(folder)
    assert (found.step, found.class_names) == (5, ("a", "b"))
    stored = saved(folder, 5)["checksums"]
    assert any(key.startswith("opt_state/") for key in stored)
    weights = {key: value for key, value in stored.items() if not key.startswith("opt_state/")}
    del weights["step"]
    assert checksums({**found.variables, "ema": found.ema}) == weights
    jax.tree.map(np.testing.assert_array_equal, flax_resnet.load(folder).variables, found.ema)


def test_old_checkpoints_are_deleted_as_a_whole(tmp_path, monkeypatch):
    """A process that is killed while it deletes leaves no part of a checkpoint where checkpoints are."""
    with monkeypatch.context() as killed:
        killed.setattr(checkpoint, "shutil", types.SimpleNamespace(rmtree=lambda *_, **__: None))
        checkpoints = Checkpoints(tmp_path)
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step), described())
        checkpoints.close()
    place = tmp_path / "checkpoints"
    assert sorted(f.name for f in place.iterdir()) == ["2", "3", "deleted"]
    assert [f.name for f in (place / "deleted").iterdir()] == ["1"]
    assert Checkpoints(tmp_path, read_only=True).steps() == [2, 3]
    checkpoints = Checkpoints(tmp_path)
    assert sorted(f.name for f in place.iterdir()) == ["2", "3"]
    checkpoints.save(4, state_of(4), described())
    checkpoints.close()
    assert sorted(f.name for f in place.iterdir()) == ["3", "4"]
