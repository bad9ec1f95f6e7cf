"""Signals in stages of a command that have nothing to save, during a save, and twice."""

import os
import signal
import sys
import time

import pytest
from processes import ended, start, wait_until

import flax_resnet
from flax_resnet.errors import INTERRUPTED
from flax_resnet.training.runs.file_checksums import proof_of_damage

pytestmark = pytest.mark.faults


@pytest.fixture
def many(photographs):
    """The photographs, each under many names."""

    def copied(copies):
        for file in sorted(photographs.rglob("*.jpg")):
            for number in range(copies):
                os.link(file, file.with_name(f"{file.stem}_{number}.jpg"))
        return photographs

    return copied


def run_of(workdir, tiny, *more):
    return [*tiny, "--config.train.batch_size=24", f"--workdir={workdir}", *more]


def test_a_signal_while_a_dataset_is_decoded_ends_the_run_at_once(tiny, many, tmp_path):
    workdir = tmp_path / "run"
    data = ["--config.data.source=folder", f"--config.data.path={many(3000)}"]
    others = [argument for argument in tiny if not argument.startswith("--data_dir")]
    process = start(*run_of(workdir, others, *data, "--config.train.feed=resident"))
    wait_until((workdir / ".lock").exists, process)
    process.send_signal(signal.SIGINT)
    code, output = ended(process)
    assert code == INTERRUPTED, output
    assert not list(workdir.glob("events.*")), "the signal came too late"
    assert not list((workdir / "checkpoints").glob("*"))


def test_a_signal_during_the_first_compilation_ends_the_run_at_once(tiny, tmp_path):
    workdir = tmp_path / "run"
    slow = ["--compilation_cache=off"]
    process = start(*run_of(workdir, tiny, *slow))
    wait_until(lambda: any(workdir.glob("events.*")), process)
    time.sleep(0.5)  # to be inside XLA, which no handler of Python interrupts
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert code == INTERRUPTED, output
    assert not list((workdir / "checkpoints").glob("*"))
    assert (workdir / "metrics.jsonl").read_text() == ""


def saves(workdir, first=1):
    """Return a function that tells whether a checkpoint after the first is being written."""
    folder = workdir / "checkpoints"

    def begun():
        names = [entry.name for entry in folder.glob("*")]
        finished = [name for name in names if name.isdigit() and int(name) > first]
        return finished and any("orbax-checkpoint-tmp" in name for name in names)

    return begun


def pending(process, number):
    """Return whether a process has not received a signal yet. A second one would be lost then."""
    with open(f"/proc/{process.pid}/status") as status:
        (line,) = [line for line in status if line.startswith("ShdPnd")]
    return int(line.split()[1], 16) >> (number - 1) & 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_signals_during_a_save(tiny, tmp_path):
    """Twice at once: the process ends immediately. Once: it saves. Every checkpoint is intact after both."""
    workdir = tmp_path / "run"
    command = run_of(
        workdir, tiny, "--config.train.epochs=200", "--config.train.checkpoint_every=0.05"
    )
    process = start(*command)
    wait_until(saves(workdir), process)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: not pending(process, signal.SIGTERM), process)
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert code == 128 + signal.SIGTERM, output
    last = flax_resnet.load(workdir).step

    process = start(*command)
    wait_until(saves(workdir, last), process)
    process.send_signal(signal.SIGUSR1)
    code, output = ended(process)
    assert code == INTERRUPTED, output
    assert f"interrupted after step {flax_resnet.load(workdir).step}" in output
    checkpoints = [f for f in (workdir / "checkpoints").iterdir() if f.name.isdigit()]
    assert len(checkpoints) >= 2
    assert not any(proof_of_damage(folder) for folder in checkpoints)


def test_a_signal_during_packing_keeps_the_finished_files(many, tmp_path):
    command = [
        "prepare", "--pack=packed", f"--path={many(200)}", f"--data_dir={tmp_path / 'tfds'}",
        "--shard_size=100", "--max_side=80", "--threads=1",
    ]  # fmt: skip
    work = tmp_path / "tfds" / "packed"
    process = start(*command, module="flax_resnet")
    wait_until(lambda: any(work.glob("*/ledger/*.json")), process)
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert code == INTERRUPTED, output
    finished = {f.stem: os.stat(f).st_ino for f in work.glob("*/packed-*")}
    code, output = ended(start(*command, module="flax_resnet"))
    assert code == 0, output
    files = {f.stem: os.stat(f).st_ino for f in work.glob("1.0.0/packed-*")}
    assert finished
    assert finished.items() < files.items()
