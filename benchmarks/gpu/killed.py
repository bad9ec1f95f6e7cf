"""Kill a training command, resume it to its end, and compare it with an undisturbed run."""

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
from typing import NamedTuple

from benchmarks.gpu.parent import end_with_parent
from benchmarks.gpu.record import Recorder

# Without this flag, XLA sums gradients in an order that differs between runs.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# The kill happens within this fraction of the time from the first to the last checkpoint, before the last is saved.
KILLED_WITHIN = 0.7

Command = Callable[[pathlib.Path], list[str]]  # run folder -> arguments of Python


class Undisturbed(NamedTuple):
    """An undisturbed training run.

    Attributes:
      last: step of its last checkpoint.
      seconds: time between its first and its last checkpoint.
      checksums: {array name: checksum} of the last checkpoint.
    """

    last: int
    seconds: float
    checksums: dict[str, int]


def reference(recorder: Recorder, command: Command, workdir: pathlib.Path) -> Undisturbed:
    """Return the undisturbed run of a command. Reuse the run of an earlier start at the same commit.

    Raises:
      RuntimeError: the command failed.
    """
    known, commit = recorder.record.details.get("undisturbed", {}), recorder.record.commit
    if known.get("commit") == commit and workdir.is_dir():
        return Undisturbed(known["last"], known["seconds"], checksums(workdir))
    run = undisturbed(command, workdir)
    recorder.record.details["undisturbed"] = {
        "commit": commit,
        "last": run.last,
        "seconds": run.seconds,
    }
    recorder.save()
    return run


def undisturbed(command: Command, workdir: pathlib.Path) -> Undisturbed:
    """Run a training command to its end.

    Args:
      command: returns the arguments of the run.
      workdir: the run folder; it is emptied first.

    Raises:
      RuntimeError: the command failed, or left fewer than two checkpoints.
    """
    shutil.rmtree(workdir, ignore_errors=True)
    process = _start(command(workdir))
    seen: dict[int, float] = {}  # {step of a checkpoint: time when it was first seen}
    while process.poll() is None:
        seen.setdefault(_last_step(workdir), time.perf_counter())
        time.sleep(0.01)
    _finish(process)
    last = _last_step(workdir)
    moments = [moment for step, moment in seen.items() if step]
    if len(moments) < 2:
        raise RuntimeError(
            f"the command left {len(moments)} checkpoints: there is no time for a kill"
        )
    return Undisturbed(last, moments[-1] - moments[0], checksums(workdir))


def check_killed(
    recorder: Recorder, command: Command, folder: pathlib.Path, wanted: Undisturbed
) -> None:
    """Kill a command with SIGKILL at a random moment, run it again, and check that it ends with the wanted arrays.

    Args:
      recorder: records the check "killed and resumed"; a check that it already has is not repeated.
      command: returns the arguments of the run.
      folder: parent of the run folder; the run folder is emptied first.
      wanted: the undisturbed run.

    Raises:
      RuntimeError: the command failed, or saved its last step before it was killed.
    """
    if recorder.has("killed and resumed"):
        return
    workdir = folder / "killed"
    shutil.rmtree(workdir, ignore_errors=True)
    process = _start(command(workdir))
    while not _last_step(workdir):
        if process.poll() is not None:
            raise RuntimeError(
                f"the command ended with {process.returncode} and left no checkpoint"
            )
        time.sleep(0.01)
    moment = random.uniform(0, KILLED_WITHIN * wanted.seconds)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = _last_step(workdir)
    if saved >= wanted.last:
        raise RuntimeError(f"the command had saved step {saved}, its last, before it was killed")
    _finish(_start(command(workdir)))
    note = f"killed {moment:.2f} s after the first checkpoint, when step {saved} of {wanted.last} was saved"
    check_arrays(recorder, "killed and resumed", workdir, wanted, note)


def check_arrays(
    recorder: Recorder, name: str, workdir: pathlib.Path, wanted: Undisturbed, note: str
) -> None:
    """Check that a run's last checkpoint has the wanted arrays; record the names of differing arrays."""
    found = checksums(workdir)
    names = found.keys() | wanted.checksums.keys()
    differing = sorted(one for one in names if found.get(one) != wanted.checksums.get(one))
    recorder.record.details[name] = differing
    recorder.check(name, len(differing), 0, f"number of differing arrays, of {len(names)}; {note}")


def remove_where_passed(recorder: Recorder, folder: pathlib.Path) -> None:
    """Remove the run folders if all checks passed. Otherwise keep them to find the cause, or for the next start."""
    record = recorder.record
    if not record.failures and all(check.passed for check in record.checks):
        shutil.rmtree(folder, ignore_errors=True)


def checksums(workdir: pathlib.Path) -> dict[str, int]:
    """Return {array name: checksum} of the last checkpoint of a run folder."""
    file = workdir / "checkpoints" / str(_last_step(workdir)) / "run" / "metadata"
    return json.loads(file.read_text())["checksums"]


def _last_step(workdir: pathlib.Path) -> int:
    """Return the step of the last checkpoint; 0 if there is none."""
    found = (workdir / "checkpoints").glob("*")
    return max((int(one.name) for one in found if one.name.isdecimal()), default=0)


def _start(arguments: list[str]) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "XLA_FLAGS": flags},
        preexec_fn=end_with_parent,
    )


def _finish(process: subprocess.Popen) -> None:
    if process.wait():
        raise RuntimeError(f"the command ended with {process.returncode}")
