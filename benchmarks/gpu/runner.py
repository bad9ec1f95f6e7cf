"""Run stages one after the other within a time limit; keep all measurements, whatever happens."""

import contextlib
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
from collections.abc import Callable, Sequence
from typing import IO, Any

from benchmarks.arguments import absent
from benchmarks.gpu.folder import LOG, stage_file, write_record
from benchmarks.gpu.machine import PLATFORMS, ROOT, Machine
from benchmarks.gpu.parent import end_with_parent
from benchmarks.gpu.record import (
    DONE,
    FAILED,
    NOT_RUN,
    RUNNING,
    SKIPPED,
    TIMED_OUT,
    Measurement,
    StageRecord,
    read_stage,
    write_json,
)
from benchmarks.gpu.stage import Stage
from flax_resnet.errors import one_line, writing

# A stage with less time than this could only import its libraries.
LEAST_SECONDS = 15.0
# A stage may use the time that earlier stages left, but in case it hangs, at most this multiple of its own limit.
MOST_LIMITS = 2


def run_all(
    chosen: Sequence[Stage], folder: pathlib.Path, machine: Machine, deadline: float
) -> None:
    """Run the chosen stages that are not complete, until the deadline; record each as it ends.

    A stage may also use the time that earlier stages left, up to `MOST_LIMITS` times its own limit.

    Args:
      chosen: the stages, in their order.
      folder: the claimed folder of the records.
      machine: the machine that runs the stages.
      deadline: time by which the last stage must have ended, on the clock of `time.monotonic`.
    """
    folder = folder.resolve()
    for stage in chosen:
        file = stage_file(folder, stage.name)
        if not file.exists():
            write_json(file, dataclasses.asdict(StageRecord(stage.name, stage.question)))
    due = time.monotonic()
    try:
        for stage in chosen:
            due += stage.seconds
            now = time.monotonic()
            most = min(max(stage.seconds, due - now), MOST_LIMITS * stage.seconds)
            print(f"\n== {stage.name}: {stage.question}", flush=True)
            record = run_or_skip(stage, folder, machine, min(most, deadline - now))
            write_record(folder, machine)
            print(f"   {record.state} in {record.seconds:.0f} s: {record.summary()}", flush=True)
    finally:
        write_record(folder, machine)


def run_or_skip(
    stage: Stage, folder: pathlib.Path, machine: Machine, seconds: float
) -> StageRecord:
    """Run a stage for at most `seconds`, unless it is complete or cannot be run; return its record."""
    file = stage_file(folder, stage.name)
    record = read_stage(file) or StageRecord(stage.name)
    record.question = stage.question
    if record.is_complete:
        return record
    if missing := absent(*stage.packages):
        record.state = SKIPPED
        record.reason = f"needs {', '.join(missing)}: see benchmarks/README.md"
    elif seconds < min(LEAST_SECONDS, stage.seconds):
        record.state = NOT_RUN
        record.reason = f"only {max(0.0, seconds):.0f} s were left: run the command again"
    else:
        return _run(stage, folder, machine, seconds, record)
    write_json(file, dataclasses.asdict(record))
    return record


def _run(
    stage: Stage, folder: pathlib.Path, machine: Machine, seconds: float, record: StageRecord
) -> StageRecord:
    """Run a stage for at most `seconds`; return its record, which continues an earlier one."""
    file, began, before = stage_file(folder, stage.name), time.monotonic(), record.seconds
    commits = [*record.commit.split(" and "), machine.environment["commit"]]
    record.commit = " and ".join(dict.fromkeys(filter(None, commits)))
    record.versions, record.state = machine.environment["versions"], RUNNING
    write_json(file, dataclasses.asdict(record))
    own = file.with_suffix(".output")
    own.unlink(missing_ok=True)
    where = ["--output", str(own)] if stage.read else ["--record", str(file)]
    tiny = ["--tiny"] if machine.tiny and not stage.read else []
    reason, code = _follow_command(
        stage, ["-m", *stage.command, *where, *tiny], folder, machine, seconds
    )
    record = read_stage(file) or record
    record.seconds = before + time.monotonic() - began
    if reason:
        record.state, record.reason = TIMED_OUT, reason
    elif code:
        record.state, record.reason = FAILED, f"ended with {code}; {folder / LOG} says why"
    elif stage.read:
        _read_output(stage.read, own, record)
    write_json(file, dataclasses.asdict(record))
    return record


def _read_output(
    read: Callable[[Any], list[Measurement]], file: pathlib.Path, record: StageRecord
) -> None:
    """Read the measurements from the file that a command wrote. The stage fails if the file has another format."""
    try:
        record.measurements = read(json.loads(file.read_text()))
        record.state, record.reason, record.failures = DONE, "", []
    except Exception as error:
        record.state = FAILED
        record.reason = f"{file} has another format: {type(error).__name__}: {one_line(error)}"


def _follow_command(
    stage: Stage, command: list[str], folder: pathlib.Path, machine: Machine, seconds: float
) -> tuple[str, int]:
    """Run a stage's command. Return the reason why it was stopped ("" if it ended), and its exit code."""
    print(f"   {shlex.join(['python', *command])}", flush=True)
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    variables = {
        "JAX_PLATFORMS": PLATFORMS[machine.platform],
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "PYTHONPATH": os.pathsep.join(
            map(os.path.abspath, paths)
        ),  # the stage runs in another folder
        **stage.environment,
    }
    with writing(folder / LOG):
        log = (folder / LOG).open("ab", buffering=0)
        log.write(f"\n== {shlex.join(command)}\n".encode())
    with log:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        reason = _follow(process, log, seconds)
    return reason, process.returncode


def _follow(process: subprocess.Popen, log: IO[bytes], seconds: float) -> str:
    """Print and log a stage's output; stop it after `seconds` and return the reason, or "" if it ended."""
    output = process.stdout
    assert output is not None  # it is a pipe

    def pass_on() -> None:
        for line in output:
            with contextlib.suppress(OSError):  # a full disk
                log.write(line)
            # The stage continues when the reader of this output is gone, such as `head`.
            with contextlib.suppress(OSError):
                print(f"   {line.decode('utf-8', 'replace').rstrip()}", flush=True)

    reader = threading.Thread(target=pass_on, daemon=True)
    reader.start()
    try:
        process.wait(timeout=seconds)
        return ""
    except subprocess.TimeoutExpired:
        return f"stopped at its limit of {seconds:.0f} s"
    finally:  # also when this process is interrupted
        _end(process)
        reader.join(timeout=5)


def _end(process: subprocess.Popen) -> None:
    """End a stage and all processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # all processes have ended
            break
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
