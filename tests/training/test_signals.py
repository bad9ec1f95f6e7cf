"""Real processes and real signals."""

import dataclasses
import itertools
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, records_of, saved

import flax_resnet
from flax_resnet import main
from flax_resnet.errors import INTERRUPTED
from flax_resnet.training import trainer
from flax_resnet.training.runs.folder import RunFolder


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


MOMENTS = {
    "between two records": ("train_step", 4),
    "at an evaluation, before it": ("train_step", 5),
    "during the measurement of statistics": ("measure", 5),
    "during an evaluation": ("evaluate", 5),
    "during the last evaluation": ("evaluate", 10),
}


@pytest.fixture(scope="module")
def command(tiny):
    """A run of 2 epochs x 5 steps whose records, evaluations and checkpoints fall on different steps."""
    return [
        *tiny, "--config.train.log_every=3", "--config.train.eval_batch_size=120",
        "--config.train.checkpoint_every=10", "--config.ema.decay=0.5", "--config.ema.bn_batches=2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("signals") / "undisturbed"
    assert main.main([*command, f"--workdir={workdir}"]) == 0
    return workdir


def without_times(workdir):
    """Return all records of a run, in order, without what depends on the clock."""
    records = RunFolder.at(workdir).read_records()
    return [{k: v for k, v in r.items() if k != "images_per_second"} for r in records]


def send(number, monkeypatch, stage, step):
    """Send a signal to this process in a stage of a run, after `step` updates."""
    make, evaluate = trainer.make_programs, trainer.evaluate
    made, sent = 0, []

    def kill():
        if not sent:
            sent.append(step)
            os.kill(os.getpid(), number)

    def counted(train_step):
        def call(*given):
            nonlocal made
            made += 1
            if stage == "train_step" and made == step:
                kill()
            return train_step(*given)

        return call

    def measured(measure):
        def call(variables, data, calls, at):
            calls = iter(calls)
            first = next(calls)
            if stage == "measure" and made == step:
                kill()
            return measure(variables, data, itertools.chain([first], calls), at)

        return call

    def programs(*given, **more):
        found = make(*given, **more)
        return dataclasses.replace(
            found,
            train_step=counted(found.train_step),
            measure_statistics=measured(found.measure_statistics),
        )

    def evaluated(eval_step, variables, data, batches):
        def stopped():
            for number, batch in enumerate(batches):
                if stage == "evaluate" and made == step and number == 1:
                    kill()
                yield batch

        return evaluate(eval_step, variables, data, stopped())

    monkeypatch.setattr(trainer, "make_programs", programs)
    monkeypatch.setattr(trainer, "evaluate", evaluated)


ORDINARY = ("during an evaluation",)


@pytest.mark.parametrize(
    "moment",
    [name if name in ORDINARY else pytest.param(name, marks=pytest.mark.slow) for name in MOMENTS],
)
def test_a_signal_saves_at_once_and_the_resumed_run_equals_an_undisturbed_one(
    command, undisturbed, tmp_path, monkeypatch, capfd, moment
):
    """The records too: their windows, and the evaluation that the signal prevented."""
    stage, step = MOMENTS[moment]
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        send(signal.SIGUSR1, patch, stage, step)
        assert main.main([*command, f"--workdir={workdir}"]) == INTERRUPTED
    assert f"interrupted after step {step}, which is saved" in capfd.readouterr().err
    assert (workdir / "checkpoints" / str(step)).is_dir()
    assert step not in [r["step"] for r in records_of(workdir, "test")]
    assert without_times(workdir) == [
        r
        for r in without_times(undisturbed)
        if r["step"] < step or (r["split"] == "train" and r["step"] == step)
    ]
    assert main.main([*command, f"--workdir={workdir}"]) == 0
    assert without_times(workdir) == without_times(undisturbed)
    assert saved(workdir, 10)["checksums"] == saved(undisturbed, 10)["checksums"]
    assert flax_resnet.load(workdir, "best").step == flax_resnet.load(undisturbed, "best").step


@pytest.mark.slow
def test_a_checkpoint_without_measured_statistics_is_said_when_it_is_loaded(
    command, tmp_path, monkeypatch, capfd, caplog
):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        send(signal.SIGTERM, patch, "evaluate", 5)
        assert main.main([*command, f"--workdir={workdir}"]) == INTERRUPTED
    flax_resnet.load(workdir)
    assert "ema.bn_batches" in caplog.text
    caplog.clear()
    assert main.main([*command, f"--workdir={workdir}"]) == 0
    # The resumed run has replaced the checkpoint, because its score is that of the measured statistics.
    for checkpoint in ("5", "last", "best"):
        flax_resnet.load(workdir, checkpoint)
    assert "ema.bn_batches" not in caplog.text
