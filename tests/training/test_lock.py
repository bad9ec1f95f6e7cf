"""The lock of a run folder, with real processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import refused

import flax_resnet
from flax_resnet import main
from flax_resnet.errors import WorkdirError
from flax_resnet.training.runs import lock
from flax_resnet.training.runs.lock import LOCK, locked

HOLD = """
import pathlib, sys, time
from flax_resnet.training.runs.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_told_who_holds_the_lock(tmp_path, holder):
    with refused(tmp_path, kind=WorkdirError) as error, locked(tmp_path):
        pass
    owner = json.loads((tmp_path / LOCK).read_text())
    assert owner["pid"] == holder.pid
    for part in (str(holder.pid), owner["host"], owner["user"], owner["since"]):
        assert part in error.value.problem


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == holder.pid
    began = time.monotonic()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert time.monotonic() - began < lock.STALE_AFTER / 2
    assert (tmp_path / LOCK).read_text() == ""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "RENEWAL", 0.05)
    monkeypatch.setattr(lock, "STALE_AFTER", 1.0)


def test_the_lock_of_another_machine_is_taken_when_its_owner_is_silent(tmp_path, quick):
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1, "user": "x"}))
    began = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - began >= lock.STALE_AFTER


@pytest.mark.parametrize("flock_works", [True, False])
def test_the_lock_of_another_machine_is_respected_while_it_is_renewed(
    tmp_path, quick, monkeypatch, flock_works
):
    """The other process is one of this machine whose flock is not seen, as on some network file systems."""

    def unseen(file, operation):
        if not flock_works:
            raise OSError("flock is not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unseen)
    monkeypatch.setattr(lock.socket, "gethostname", lambda: threading.current_thread().name)
    held, done = threading.Event(), threading.Event()

    def hold():
        with locked(tmp_path):
            held.set()
            done.wait(20)

    other = threading.Thread(target=hold, name="elsewhere")
    other.start()
    try:
        assert held.wait(20)
        with refused(tmp_path, kind=WorkdirError) as error, locked(tmp_path):
            pass
        assert "elsewhere" in error.value.problem
    finally:
        done.set()
        other.join()
    with locked(tmp_path):
        pass


@pytest.mark.slow
def test_two_commands_do_not_train_in_one_folder_and_readers_do_not_wait(tiny, tmp_path, capfd):
    workdir = tmp_path / "run"
    assert main.main([*tiny, f"--workdir={workdir}", "--config.train.epochs=1"]) == 0
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "locked\n"
        before = {file: file.read_bytes() for file in workdir.iterdir() if file.is_file()}
        capfd.readouterr()
        assert main.main([*tiny, f"--workdir={workdir}", "--config.train.epochs=2"]) == 5
        (line,) = [at for at in capfd.readouterr().err.splitlines() if at.startswith("error")]
        assert str(process.pid) in line
        assert {file: file.read_bytes() for file in before} == before
        assert flax_resnet.load(workdir).step == 5
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert main.main([*tiny, f"--workdir={workdir}", "--config.train.epochs=2"]) == 0
