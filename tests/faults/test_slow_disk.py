"""A run folder on a slow disk."""

import time

import pytest
from conftest import records_of

from flax_resnet import main
from flax_resnet.training.runs import checkpoint

pytestmark = pytest.mark.faults

STEPS = 10


def test_steps_go_on_while_a_checkpoint_is_written(tiny, tmp_path, monkeypatch):
    """The last file of a checkpoint is not written before some more steps are made, as on a disk that slow.

    The write blocks in the thread that writes checkpoints; if training waited for it, both would wait.
    """
    workdir, write = tmp_path / "run", checkpoint.write_file_checksums
    went_on = []

    def slow(folder):
        before, deadline = len(records_of(workdir, "train")), time.monotonic() + 30
        if before + STEPS <= 60:  # so many steps are left
            while time.monotonic() < deadline and not went_on:
                time.sleep(0.01)
                if len(records_of(workdir, "train")) >= before + STEPS:
                    went_on.append(before)
        write(folder)

    monkeypatch.setattr(checkpoint, "write_file_checksums", slow)
    command = [
        *tiny, "--config.train.epochs=12", "--config.train.checkpoint_every=4",
        "--config.train.eval_every=12", "--config.train.log_every=1", f"--workdir={workdir}",
    ]  # fmt: skip
    assert main.main(command) == 0
    assert went_on
