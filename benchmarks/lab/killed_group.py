"""A training command as one process or a group of processes, and an archive of the checkpoints that it writes."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np

import flax_resnet
from flax_resnet.errors import UserError

POLL = 0.002  # seconds
ROOT = pathlib.Path(__file__).parents[2]


class Survivors(NamedTuple):
    """How the other processes of a group ended after one was killed."""

    seconds: float
    exit_codes: list[int]


class Group:
    """The processes of one training run, a context manager that kills those that still run at its end.

    Args:
      arguments: arguments of ``flax_resnet.main``.
      count: number of processes; above 1, they join by --coordinator, --num_processes and --process_id.
      log: the output of all processes is appended to this file.
    """

    def __init__(self, arguments: Sequence[str], count: int, log: pathlib.Path):
        self._log = log
        port = _free_port()
        with log.open("ab") as output:
            self.processes = [
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "flax_resnet.main",
                        *arguments,
                        *_joined(count, port, k),
                    ],
                    cwd=ROOT,
                    stdout=output,
                    stderr=output,
                )
                for k in range(count)
            ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def running(self) -> bool:
        """Return whether all processes still run."""
        return all(process.poll() is None for process in self.processes)

    def kill(self, number: int, seconds: float) -> Survivors:
        """Kill one process with SIGKILL, and wait for the others to end by themselves.

        Args:
          number: index of the process.
          seconds: longest time to wait.

        Raises:
          RuntimeError: the process had ended before, or another one still runs after this time.
        """
        began = time.perf_counter()
        killed = self.processes[number]
        killed.send_signal(signal.SIGKILL)
        if killed.wait() != -signal.SIGKILL:
            raise RuntimeError(f"process {number} ended with {killed.returncode} before its kill")
        others = [process for process in self.processes if process is not killed]
        codes = self._wait(others, seconds)
        return Survivors(round(time.perf_counter() - began, 2), codes)

    def finish(self, seconds: float) -> None:
        """Wait for the end of all processes. Raises RuntimeError if one fails, or does not end in this time."""
        if any(codes := self._wait(self.processes, seconds)):
            raise RuntimeError(f"exit codes {codes}: {self._log.read_text()[-2000:]}")

    def _wait(self, processes: list[subprocess.Popen], seconds: float) -> list[int]:
        deadline = time.perf_counter() + seconds
        try:
            return [p.wait(max(0.0, deadline - time.perf_counter())) for p in processes]
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"processes still run after {seconds:g} s") from error

    def _end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def _joined(count: int, port: int, number: int) -> list[str]:
    if count == 1:
        return []
    return [
        f"--coordinator=127.0.0.1:{port}",
        f"--num_processes={count}",
        f"--process_id={number}",
        # The others notice a killed process, or one that never comes, after these seconds.
        "--lost_after=10",
        "--join_timeout=60",
    ]


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def newest(workdir: pathlib.Path) -> int:
    """Return the step of the newest complete checkpoint; -1 if there is none."""
    return max(steps(workdir), default=-1)


def steps(workdir: pathlib.Path) -> list[int]:
    """Return the steps of the complete checkpoints, oldest first."""
    return sorted(int(p.name) for p in _entries(workdir) if p.name.isdecimal())


def is_saving(workdir: pathlib.Path) -> bool:
    """Return whether the folder of an incomplete checkpoint exists."""
    return any("orbax-checkpoint-tmp" in path.name for path in _entries(workdir))


def _entries(workdir: pathlib.Path) -> list[pathlib.Path]:
    try:
        return list((workdir / "checkpoints").iterdir())
    except OSError:  # not made yet
        return []


@contextlib.contextmanager
def archived(workdir: pathlib.Path, archive: pathlib.Path) -> Iterator[None]:
    """Within this context, link every checkpoint of a run into a run folder `archive` before the run removes it."""
    ended = threading.Event()
    (archive / "checkpoints").mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        while not ended.wait(POLL):
            _link_new(workdir, archive)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _link_new(workdir, archive)


def _link_new(workdir: pathlib.Path, archive: pathlib.Path) -> None:
    for step in steps(workdir):
        place = archive / "checkpoints" / str(step)
        unfinished = archive / f"{step}.part"
        if place.exists():
            continue
        try:
            shutil.copytree(workdir / "checkpoints" / str(step), unfinished, copy_function=os.link)
            unfinished.rename(place)
        except OSError:  # removed meanwhile; `differences` tells if its copy is needed
            shutil.rmtree(unfinished, ignore_errors=True)


def checksum_differences(found: pathlib.Path, wanted: pathlib.Path) -> tuple[list[int], list[str]]:
    """Compare the checksums in the metadata of all checkpoints that two run folders both have.

    Returns:
      The compared steps, and a line for each checkpoint that differs.
    """
    both = sorted({*steps(found)} & {*steps(wanted)})
    lines = []
    for step in both:
        one, other = _checksums(found, step), _checksums(wanted, step)
        odd = sorted(name for name in one.keys() | other if one.get(name) != other.get(name))
        if odd:
            lines.append(f"checkpoint {step}: {len(odd)} arrays differ, such as {odd[0]}")
    return both, lines


def loaded_differences(found: pathlib.Path, wanted: pathlib.Path, step: int) -> list[str]:
    """Load the weights of a checkpoint from two run folders; return a line if a bit differs."""
    try:
        one, other = (_weights(folder, step) for folder in (found, wanted))
    except UserError as error:
        return [str(error)]
    odd = sorted(name for name in one.keys() | other if one.get(name) != other.get(name))
    return [f"checkpoint {step}, loaded: {len(odd)} arrays differ, such as {odd[0]}"] if odd else []


def record_differences(found: pathlib.Path, wanted: pathlib.Path) -> list[str]:
    """Compare the records of two runs, except `images_per_second`; return a line if they differ."""
    one, other = (_records(folder) for folder in (found, wanted))
    if one == other:
        return []
    odd = [number for number, pair in enumerate(zip(one, other, strict=False)) if len({*pair}) > 1]
    first = odd[0] if odd else min(len(one), len(other))
    return [f"metrics.jsonl: {len(one)} and {len(other)} records, which differ from number {first}"]


def _checksums(folder: pathlib.Path, step: int) -> dict[str, int]:
    file = folder / "checkpoints" / str(step) / "run" / "metadata"
    return json.loads(file.read_text())["checksums"]


def _weights(folder: pathlib.Path, step: int) -> dict[str, bytes]:
    import jax

    leaves = jax.tree.leaves_with_path(flax_resnet.load(folder, step).variables)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def _records(folder: pathlib.Path) -> list[str]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = ({**json.loads(line), "images_per_second": None} for line in lines)
    return [json.dumps(record, sort_keys=True) for record in records]
