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
from typing import NamedTuple

from benchmarks.gpu.parent import end_with_parent
from benchmarks.gpu.record import Recorder

# Without these XLA adds gradients in an order that differs from run to run.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# A kill comes within this share of the time from the first checkpoint to the last: the last must not be there yet.
KILLED_WITHIN = 0.7

Command = Callable[[pathlib.Path], list[str]]  # run folder -> arguments of Python


class Undisturbed(NamedTuple):
    """A training run that nobody disturbed.

    Attributes:
      last: step of its last checkpoint.
      seconds: from its first checkpoint to its last.
      checksums: of every array of the last checkpoint, by name.
    """

    last: int
    seconds: float
    checksums: dict[str, int]


def reference(recorder: Recorder, command: Command, workdir: pathlib.Path) -> Undisturbed:
    """Run a command undisturbed, unless an earlier start of this commit's stage did; return what it left.

    Raises:
      RuntimeError: it failed.
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
      command: of the run.
      workdir: the run folder, emptied before.

    Raises:
      RuntimeError: it failed, or left fewer than two checkpoints.
    """
    shutil.rmtree(workdir, ignore_errors=True)
    process = _start(command(workdir))
    seen: dict[int, float] = {}  # step -> moment
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
    """Kill a command with SIGKILL at a random moment, run it again, and check that its arrays are those wanted.

    Args:
      recorder: of the check "killed and resumed", which is not made again.
      command: of the run.
      folder: of the run folder, which is emptied before.
      wanted: the run that nobody disturbed.

    Raises:
      RuntimeError: it failed, or had saved its last step before it could be killed.
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
    """Check that a run's last checkpoint has the arrays wanted; record the names of those that differ."""
    found = checksums(workdir)
    names = found.keys() | wanted.checksums.keys()
    differing = sorted(one for one in names if found.get(one) != wanted.checksums.get(one))
    recorder.record.details[name] = differing
    recorder.check(name, len(differing), 0, f"of {len(names)} arrays differ; {note}")


def remove_where_passed(recorder: Recorder, folder: pathlib.Path) -> None:
    """Remove the run folders, unless somebody must look at them or the next start needs them."""
    record = recorder.record
    if not record.failures and all(check.passed for check in record.checks):
        shutil.rmtree(folder, ignore_errors=True)


def checksums(workdir: pathlib.Path) -> dict[str, int]:
    """Return the checksum of every array of the last checkpoint of a run folder, by name."""
    file = workdir / "checkpoints" / str(_last_step(workdir)) / "run" / "metadata"
    return json.loads(file.read_text())["checksums"]


def _last_step(workdir: pathlib.Path) -> int:
    """Return the step of the last checkpoint; 0 where there is none."""
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
