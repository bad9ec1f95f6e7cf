import json
import shutil

import jax
import numpy as np
import pytest

from flax_resnet.errors import CheckpointError, DivergedError
from flax_resnet.training import sharding
from flax_resnet.training.runs.checkpoint import Checkpoints

RUN = {"config": {}, "class_names": ["a"]}


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
    for step, top1 in ((1, 0.5), (2, 0.9), (3, 0.6), (4, None), (5, 0.7)):
        checkpoints.save(step, state_of(step), RUN, None if top1 is None else {"top1": top1})
    checkpoints.close()
    return tmp_path


def test_the_last_two_and_the_best_are_kept(workdir):
    checkpoints = Checkpoints(workdir, read_only=True)
    assert checkpoints.steps() == [2, 4, 5]
    assert [checkpoints.resolve(name) for name in ("last", "best", 4, "4")] == [5, 2, 4, 4]
    with pytest.raises(CheckpointError, match="allowed: 2, 4, 5, best, last"):
        checkpoints.resolve("1")
    restored = checkpoints.restore(2, abstract())
    assert restored.run["metrics"] == {"top1": 0.9}
    jax.tree.map(np.testing.assert_array_equal, restored.state, state_of(2))


def test_what_comes_back_is_sharded_as_asked(workdir):
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


def forge_a_checksum(workdir):
    file = workdir / "checkpoints" / "5" / "run" / "metadata"
    run = json.loads(file.read_text())
    run["checksums"]["params/w"] ^= 1
    file.write_text(json.dumps(run))


def empty_folder(workdir):
    shutil.rmtree(workdir / "checkpoints" / "5")
    (workdir / "checkpoints" / "5").mkdir()


def newer_empty_folder(workdir):
    (workdir / "checkpoints" / "9").mkdir()


DAMAGES = [
    truncate, flip_a_bit, remove_a_file, remove_the_description, forge_a_checksum, empty_folder, newer_empty_folder,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_serves(workdir, damage, caplog):
    damage(workdir)
    checkpoints = Checkpoints(workdir)
    restored = checkpoints.restore_last_good(abstract())
    step = 5 if damage is newer_empty_folder else 4
    assert restored.step == step
    jax.tree.map(np.testing.assert_array_equal, restored.state, state_of(step))
    (moved,) = (workdir / "checkpoints.bad").iterdir()
    assert moved.name in caplog.text
    # Training goes on, and its saves are real.
    checkpoints.save(step + 1, state_of(7), RUN, {"top1": 0.1})
    checkpoints.close()
    again = Checkpoints(workdir)
    assert again.restore_last_good(abstract()).step == step + 1
    again.close()


def test_with_none_left_there_is_none(workdir):
    for step in (2, 4, 5):
        shutil.rmtree(workdir / "checkpoints" / str(step) / "state")
    assert Checkpoints(workdir).restore_last_good(abstract()) is None
    assert len(list((workdir / "checkpoints.bad").iterdir())) == 3


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(DivergedError, match="params/w is not finite"):
        checkpoints.save(1, {"params": {"w": np.array([1.0, np.nan])}}, RUN, None)
    assert checkpoints.steps() == []


def test_a_save_that_orbax_skips_is_an_error(workdir):
    checkpoints = Checkpoints(workdir)
    with pytest.raises(CheckpointError, match="checkpoint 3 was not written"):
        checkpoints.save(3, state_of(3), RUN, None)


def test_donating_the_state_while_it_is_written_changes_nothing(tmp_path):
    """On CPU the buffer handed to the writing thread could be the one that the next step overwrites."""
    update = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    state = update(state_of(0))
    checkpoints.save(1, state, RUN, None)
    for _ in range(20):
        state = update(state)
    checkpoints.close()
    restored = Checkpoints(tmp_path, read_only=True).restore(1, abstract())
    np.testing.assert_array_equal(restored.state["params"]["w"], state_of(0)["params"]["w"] + 1)
