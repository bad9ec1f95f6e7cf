"""Checkpoints that are intact but cannot be read now, and runs whose disk is full."""

import contextlib
import errno
import os
import pathlib
import resource

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from flax_resnet.errors import BrokenCheckpointError, CheckpointError
from flax_resnet.training import sharding
from flax_resnet.training.runs import checkpoint
from flax_resnet.training.runs.checkpoint import Checkpoints
from flax_resnet.training.runs.metadata import RunMetadata


def a_state():
    state = {"params": {"w": np.ones((20, 30), np.float32)}}
    return jax.device_put(state, sharding.replicated(sharding.make_mesh()))


def abstract():
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), a_state()
    )


@pytest.fixture
def workdir(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (4, 5):
        checkpoints.save(step, a_state(), RunMetadata({}, ("a",), 1))
    checkpoints.close()
    return tmp_path


@contextlib.contextmanager
def no_memory(workdir, monkeypatch):
    """Orbax raises the error of XLA for a full memory."""
    reader = ocp.CheckpointManager
    message = "RESOURCE_EXHAUSTED: Out of memory allocating 1024 bytes."

    def restore(manager, step, args):
        if "state" in args:
            raise jax.errors.JaxRuntimeError(message)
        return original(manager, step, args=args)

    original = reader.restore
    monkeypatch.setattr(reader, "restore", restore)
    yield
    monkeypatch.setattr(reader, "restore", original)


@contextlib.contextmanager
def no_file_handles(workdir, monkeypatch):
    """The process may open no more files."""
    Checkpoints(workdir).close()  # what it imports late needs handles
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextlib.contextmanager
def stale_network(workdir, monkeypatch):
    """The files are on a network that has lost them for now."""
    stale = OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def fail(*given, **more):
        raise stale

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "restore", fail)
        patch.setattr(pathlib.Path, "open", fail)
        patch.setattr(pathlib.Path, "read_text", fail)
        yield


@contextlib.contextmanager
def other_library(workdir, monkeypatch):
    """Another version of a library does not understand intact files."""
    with monkeypatch.context() as patch:
        patch.setattr(
            ocp.CheckpointManager, "restore", lambda *given, **more: {}["a field of the future"]
        )
        yield


@pytest.mark.parametrize("trouble", [no_memory, no_file_handles, stale_network, other_library])
def test_a_checkpoint_that_cannot_be_read_now_stops_the_run(workdir, monkeypatch, trouble):
    before = sorted(workdir.rglob("*"))
    checkpoints = Checkpoints(workdir)
    with trouble(workdir, monkeypatch), pytest.raises(CheckpointError) as error:
        checkpoints.restore_last_good(abstract())
    assert not isinstance(error.value, BrokenCheckpointError)
    assert error.value.key.startswith(str(workdir / "checkpoints" / "5"))
    assert sorted(workdir.rglob("*")) == before
    assert Checkpoints(workdir).restore_last_good(abstract()).step == 5


def test_a_checkpoint_is_kept_until_its_replacement_is_complete(workdir, monkeypatch):
    """A replacement that fails, or a process that is killed meanwhile, loses nothing."""
    other = jax.tree.map(lambda x: x + 1, a_state())

    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_file_checksums", full)
        checkpoints = Checkpoints(workdir)
        checkpoints.save(5, other, RunMetadata({}, ("a",), 1))
        with pytest.raises(CheckpointError), contextlib.closing(checkpoints):
            checkpoints.wait()
    checkpoints = Checkpoints(workdir)
    assert checkpoints.steps() == [4, 5]
    restored = checkpoints.restore_last_good(abstract())
    np.testing.assert_array_equal(restored.state["params"]["w"], a_state()["params"]["w"])
    checkpoints.save(5, other, RunMetadata({}, ("a",), 1))
    checkpoints.close()
    restored = Checkpoints(workdir).restore_last_good(abstract())
    np.testing.assert_array_equal(restored.state["params"]["w"], other["params"]["w"])
    assert not (workdir / "checkpoints.replaced").exists()


def test_a_full_disk_is_one_error_that_names_the_checkpoint(workdir, monkeypatch):
    """Orbax raises the error of its writing thread again when it is closed."""

    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_file_checksums", full)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(6, a_state(), RunMetadata({}, ("a",), 1))
    with pytest.raises(CheckpointError) as error, contextlib.closing(checkpoints):
        checkpoints.wait()
    assert error.value.key == str(workdir / "checkpoints" / "6")
    monkeypatch.undo()
    checkpoints = Checkpoints(workdir)
    assert checkpoints.restore_last_good(abstract()).step == 5
    checkpoints.save(6, a_state(), RunMetadata({}, ("a",), 1))
    checkpoints.close()
    assert Checkpoints(workdir, read_only=True).steps() == [5, 6]
