"""Runs stages one after the other within a time limit; whatever happens, keeps what was measured."""

import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

from benchmarks.arguments import absent
from benchmarks.gpu.process import end_with_parent
from benchmarks.gpu.record import (
    DONE,
    FAILED,
    SKIPPED,
    TIMED_OUT,
    StageRecord,
    read_stage,
    write_json,
)
from benchmarks.gpu.stage import Stage
from benchmarks.record import environment
from flax_resnet.errors import ConfigError, WorkdirError, one_line

RECORD, LOG, STAGES = "record.json", "log.txt", "stages"
# A stage with less time than this could only import its libraries.
LEAST_SECONDS = 15.0
PLATFORMS = {"gpu": "cuda,cpu", "cpu": "cpu"}


class Machine(NamedTuple):
    """The device that everything in a folder was measured on.

    Attributes:
      platform: "gpu" or "cpu".
      device: its name, such as "NVIDIA H100 80GB HBM3".
      count: number of devices that JAX sees.
      tiny: whether sizes are those of a rehearsal.
      environment: processor, versions, commit.
    """

    platform: str
    device: str
    count: int
    tiny: bool
    environment: dict[str, Any]

    def __str__(self) -> str:
        """Returns number and name, as "1 x NVIDIA H100 80GB HBM3"."""
        return f"{self.count} x {self.device}"


def find_machine(platform: str, tiny: bool) -> Machine:
    """Asks JAX for its devices, in a process of its own, which leaves them free.

    Raises:
      ConfigError: there are none of the platform.
    """
    code = "import jax; d = jax.devices(); print(d[0].platform, len(d), d[0].device_kind, sep='|')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": PLATFORMS[platform]},
    )
    found = done.stdout.strip().rpartition("\n")[2].split("|")
    if done.returncode or found[0] != platform:
        raise ConfigError(
            "no GPU: JAX sees none. It needs an NVIDIA GPU with its driver and "
            "`pip install '.[cuda13]'`. `--platform cpu --tiny` rehearses on the CPU"
        )
    known = environment()
    device = known["cpu"] if platform == "cpu" else found[2]
    return Machine(platform, device, int(found[1]), tiny, known)


def claim(folder: pathlib.Path, machine: Machine) -> None:
    """Makes the folder, or finds that its records are of this machine.

    Raises:
      WorkdirError: they are of another one, or the folder cannot be written.
    """
    try:
        (folder / STAGES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkdirError(f"--folder={folder}: cannot be written: {one_line(error)}") from error
    former = read(folder)[0] if (folder / RECORD).exists() else machine
    if (str(former), former.tiny) != (str(machine), machine.tiny):
        raise WorkdirError(
            f"--folder={folder}: holds records of {former}{', tiny' if former.tiny else ''}; this is "
            f"{machine}{', tiny' if machine.tiny else ''}: name another folder"
        )


def run_all(
    chosen: Sequence[Stage],
    stages: Sequence[Stage],
    folder: pathlib.Path,
    machine: Machine,
    deadline: float,
) -> None:
    """Runs the chosen stages that are not done, until the deadline; records each as it ends.

    Args:
      chosen: in their order.
      stages: all that may have a record in the folder.
      folder: of the records.
      machine: that they run on.
      deadline: of `time.monotonic`, at which the last one must have ended.
    """
    _save(folder, machine, stages)
    for stage in chosen:
        record = _run_or_skip(stage, folder, machine, deadline)
        print(f"   {record.state} in {record.seconds:.0f} s: {record.summary()}", flush=True)
        _save(folder, machine, stages)


def _save(folder: pathlib.Path, machine: Machine, stages: Sequence[Stage]) -> None:
    """Writes the record of all stages, those of earlier starts included."""
    records = [read_stage(_file(folder, stage)) for stage in stages]
    rows = [dataclasses.asdict(record) for record in records if record]
    write_json(folder / RECORD, {"machine": machine._asdict(), "stages": rows})


def read(path: pathlib.Path) -> tuple[Machine, list[StageRecord]]:
    """Reads the record of all stages: of a folder, or a file that was taken from one.

    Raises:
      ConfigError: it is none.
    """
    file = path / RECORD if path.is_dir() else path
    try:
        values = json.loads(file.read_text())
        stages = [StageRecord.from_json(one) for one in values["stages"]]
        return Machine(**values["machine"]), stages
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: holds no record of these benchmarks: {one_line(error)}"
        ) from error


def _file(folder: pathlib.Path, stage: Stage) -> pathlib.Path:
    return folder / STAGES / f"{stage.name}.json"


def _run_or_skip(
    stage: Stage, folder: pathlib.Path, machine: Machine, deadline: float
) -> StageRecord:
    """Runs a stage, unless it is done or cannot be run; returns its record."""
    file, left = _file(folder, stage), deadline - time.monotonic()
    former = read_stage(file)
    print(f"\n== {stage.name}: {stage.question}", flush=True)
    if former and former.state == DONE:
        return former
    reason = ""
    if missing := absent(*stage.packages):
        reason = f"needs {', '.join(missing)}: see benchmarks/README.md"
    elif left < min(LEAST_SECONDS, stage.seconds):
        reason = f"{max(0.0, left):.0f} s were left: run the command again"
    if not reason:
        return _run(stage, folder, machine, min(stage.seconds, left))
    record = former or StageRecord(stage.name, stage.question)
    record.state, record.reason = SKIPPED, reason
    write_json(file, dataclasses.asdict(record))
    return record


def _run(stage: Stage, folder: pathlib.Path, machine: Machine, seconds: float) -> StageRecord:
    """Runs a stage for so many seconds at most."""
    file, began = _file(folder, stage), time.monotonic()
    before = former.seconds if (former := read_stage(file)) else 0.0
    own = file.with_suffix(".output")
    where = ["--output", str(own)] if stage.read else ["--record", str(file)]
    tiny = ["--tiny"] if machine.tiny and not stage.read else []
    command = ["-m", *stage.command, *where, *tiny]
    print(f"   {shlex.join(['python', *command])}", flush=True)
    variables = {"JAX_PLATFORMS": PLATFORMS[machine.platform], **stage.environment}
    with (folder / LOG).open("ab") as log:
        log.write(f"\n== {shlex.join(command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        reason = _follow(process, log, seconds)
    code = process.returncode
    record = read_stage(file) or StageRecord(stage.name)
    record.question = stage.question
    record.seconds = before + time.monotonic() - began
    if reason:
        record.state, record.reason = TIMED_OUT, reason
    elif code:
        record.state, record.reason = FAILED, f"ended with {code}; {folder / LOG} says why"
    elif stage.read:
        record.state, record.measurements = DONE, stage.read(json.loads(own.read_text()))
    write_json(file, dataclasses.asdict(record))
    return record


def _follow(process: subprocess.Popen, log: IO[bytes], seconds: float) -> str:
    """Passes on what a stage prints; stops it after so many seconds, and says so; "" where it ended."""

    def pass_on() -> None:
        for line in process.stdout:
            log.write(line)
            log.flush()
            print(f"   {line.decode('utf-8', 'replace').rstrip()}", flush=True)

    reader = threading.Thread(target=pass_on, daemon=True)
    reader.start()
    try:
        process.wait(timeout=seconds)
        return ""
    except subprocess.TimeoutExpired:
        return f"stopped at its limit of {seconds:.0f} s"
    finally:  # of an interruption of this process too
        _end(process)
        reader.join(timeout=5)


def _end(process: subprocess.Popen) -> None:
    """Ends a stage and all processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # all have ended
            break
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
