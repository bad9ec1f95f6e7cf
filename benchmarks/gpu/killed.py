"""A training command that is killed, run again to its end, and compared with one that nobody disturbed."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.gpu.process import end_with_parent

# Without these XLA adds gradients in an order that differs from run to run.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def checksums(workdir: pathlib.Path) -> dict[str, int]:
    """Returns the checksum of every array of the last checkpoint of a run folder, by name."""
    steps = [int(one.name) for one in (workdir / "checkpoints").iterdir() if one.name.isdecimal()]
    file = workdir / "checkpoints" / str(max(steps)) / "run" / "metadata"
    return json.loads(file.read_text())["checksums"]


def differing(workdir: pathlib.Path, wanted: dict[str, int]) -> int:
    """Returns how many arrays of a run's last checkpoint have not the wanted checksums."""
    found = checksums(workdir)
    return sum(found.get(name) != wanted.get(name) for name in found | wanted)


def undisturbed(command: Callable[[pathlib.Path], list[str]], workdir: pathlib.Path) -> float:
    """Runs a training command to its end.

    Args:
      command: run folder -> arguments of Python.
      workdir: the run folder, emptied before.

    Returns:
      The seconds from the first checkpoint to the end.

    Raises:
      RuntimeError: it failed.
    """
    shutil.rmtree(workdir, ignore_errors=True)
    process = _start(command(workdir))
    first = _first_checkpoint(process, workdir)
    _finish(process)
    return time.perf_counter() - first


def killed(
    command: Callable[[pathlib.Path], list[str]], workdir: pathlib.Path, within: float
) -> float:
    """Kills a training command with SIGKILL at a random moment behind its first checkpoint, and runs it again.

    Args:
      command: run folder -> arguments of Python.
      workdir: the run folder, emptied before.
      within: seconds behind the first checkpoint, at most, at which it is killed.

    Returns:
      The seconds behind the first checkpoint at which it was killed.

    Raises:
      RuntimeError: it failed, or was finished before.
    """
    shutil.rmtree(workdir, ignore_errors=True)
    process = _start(command(workdir))
    _first_checkpoint(process, workdir)
    moment = random.uniform(0, within)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError("the command was finished before it could be killed")
    _finish(_start(command(workdir)))
    return moment


def _start(arguments: list[str]) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "XLA_FLAGS": flags},
        preexec_fn=end_with_parent,
    )


def _first_checkpoint(process: subprocess.Popen, workdir: pathlib.Path) -> float:
    """Waits for the first checkpoint, and returns when it was there."""
    folder = workdir / "checkpoints"
    while not any(one.name.isdecimal() for one in folder.glob("*")):
        if process.poll() is not None:
            raise RuntimeError(
                f"the command ended with {process.returncode} and left no checkpoint"
            )
        time.sleep(0.01)
    return time.perf_counter()


def _finish(process: subprocess.Popen) -> None:
    if process.wait():
        raise RuntimeError(f"the command ended with {process.returncode}")
