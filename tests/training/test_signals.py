"""Real processes and real signals."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, records_of, saved

from flax_resnet import main
from flax_resnet.errors import INTERRUPTED
from flax_resnet.training import trainer


def start(arguments, **options):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", "flax_resnet.main", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, **options
    )


def wait_for_step(workdir, step, process, seconds=120):
    deadline = time.time() + seconds
    while time.time() < deadline and process.poll() is None:
        folder = workdir / "checkpoints"
        if folder.is_dir() and any(
            p.name.isdigit() and int(p.name) >= step for p in folder.iterdir()
        ):
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint {step}: {process.stderr.read()}")


@pytest.mark.slow
@pytest.mark.parametrize(("feed", "per_call"), [("resident", 1), ("streaming", 2)])
def test_a_killed_and_resumed_run_gives_the_same_bits(tiny, tmp_path, feed, per_call):
    options = [
        *tiny, "--config.train.batch_size=24", "--config.train.checkpoint_every=0.1",
        f"--config.train.feed={feed}", f"--config.train.steps_per_call={per_call}",
    ]  # fmt: skip
    whole = start([*options, f"--workdir={tmp_path / 'whole'}"])
    assert whole.wait(180) == 0, whole.stderr.read()
    last = 2 * (1437 // 24)

    killed = tmp_path / "killed"
    draw = np.random.default_rng()
    for kill_after in sorted(draw.integers(1, 100, 2)):
        process = start([*options, f"--workdir={killed}"])
        wait_for_step(killed, kill_after // 6 * 6, process)
        time.sleep(draw.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    again = start([*options, f"--workdir={killed}"])
    err = again.communicate(timeout=180)[1]
    assert again.returncode == 0, err
    assert "going on from checkpoint" in err
    assert saved(killed, last)["checksums"] == saved(tmp_path / "whole", last)["checksums"]
    assert records_of(killed, "test")[-1] == records_of(tmp_path / "whole", "test")[-1]


def test_ctrl_c_saves_a_checkpoint_and_exits(tiny, tmp_path):
    workdir = tmp_path / "run"
    options = [*tiny, "--config.train.batch_size=24", "--config.train.epochs=50"]
    process = start([*options, f"--workdir={workdir}", "--config.train.checkpoint_every=0.1"])
    wait_for_step(workdir, 6, process)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == INTERRUPTED
    step = int(re.search(r"interrupted after step (\d+)", err).group(1))
    assert "Traceback" not in err
    assert (workdir / "checkpoints" / str(step)).is_dir()


def test_a_signal_during_an_evaluation_saves_the_next_step(tiny, tmp_path, monkeypatch, capfd):
    """The message names the saved step, and its checkpoint exists."""
    evaluate = trainer.evaluate

    def interrupted(*given):
        monkeypatch.setattr(trainer, "evaluate", evaluate)  # the first evaluation only
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*given)

    monkeypatch.setattr(trainer, "evaluate", interrupted)
    command = [*tiny, f"--workdir={tmp_path / 'run'}", "--config.train.checkpoint_every=10"]
    assert main.main(command) == INTERRUPTED
    assert "interrupted after step 6, which is saved" in capfd.readouterr().err
    folders = (tmp_path / "run" / "checkpoints").iterdir()
    assert [folder.name for folder in folders if folder.name.isdigit()] == ["6"]
