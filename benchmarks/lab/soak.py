"""Watch a process that trains for a long time: python -m benchmarks.lab.soak --minutes 30 --output soak.json

Trains a small network on the digits in a process of its own, with an evaluation and a checkpoint every few seconds,
and reads its memory, threads and open files from /proc every second (Linux). After the time, SIGTERM ends the run,
as a scheduler does. The first half of the time is warm-up: allocators and caches fill. The result compares the
second half with limits, and is "flat" if memory, threads and files keep to them. The exit code is 1 if they do not.
"""

import argparse
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.arguments import minutes, output
from benchmarks.record import write_record
from flax_resnet.errors import INTERRUPTED
from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.training.runs.time_account import read_account

FEEDS = ("resident", "streaming")
MIB_PER_MINUTE = 1.0  # the run keeps its records in memory, about 1 KiB each
RISE = 1  # of the median number of threads or files; what leaks with every checkpoint rises by many
START = 600.0  # seconds until the first checkpoint, at most
ROWS = 60  # of the samples, the record keeps this many rows


class Sample(NamedTuple):
    """A look at a process.

    Attributes:
      seconds: time since the first sample.
      mib: resident memory in MiB.
      threads: number of threads.
      files: number of open files, sockets and pipes.
    """

    seconds: float
    mib: float
    threads: int
    files: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` excludes the program's name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=minutes, default=30.0, help="time to watch")
    parser.add_argument("--feed", choices=FEEDS, default="streaming", help="train.feed")
    parser.add_argument("--note", default="", help="a remark for the record, on the machine")
    parser.add_argument("--output", type=output, default="", help="file for the result as JSON")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        found = soak(pathlib.Path(scratch), args.minutes, args.feed)
    print("\n".join(f"{key:28}{value}" for key, value in found.items() if key != "samples"))
    write_record(args.output, {"note": args.note, **found})
    return 0 if found["flat"] else 1


def soak(folder: pathlib.Path, length: float, feed: str) -> dict[str, Any]:
    """Train in a process of its own, watch it, and return the result.

    Args:
      folder: an empty folder for the run and its data.
      length: minutes to watch.
      feed: the value of `train.feed`.

    Raises:
      RuntimeError: the run ended by itself, or did not end as it should.
    """
    workdir, log = RunFolder.at(folder / "run"), folder / "log"
    with log.open("w") as text:
        process = subprocess.Popen(_command(folder, feed), stderr=text, stdout=text)
        try:
            _wait_for_checkpoint(workdir, process, log)
            samples = watch(process, 60 * length, log)
            process.send_signal(signal.SIGTERM)
            code = process.wait(START)
        finally:
            process.kill()
            process.wait()
    if code != INTERRUPTED:
        raise RuntimeError(f"the run ended with exit code {code}: {log.read_text()[-2000:]}")
    (start,) = read_account(workdir).starts
    records = workdir.read_records()
    return {
        "feed": feed,
        "minutes": length,
        "steps": start.last_step,
        "evaluations": sum(record["split"] != "train" for record in records),
        "seconds_by_stage": start.seconds,
        **judged(samples),
    }


def _command(folder: pathlib.Path, feed: str) -> list[str]:
    """Return the command of a run without end, with evaluations and checkpoints every few seconds."""
    settings = {
        "model.widths": "(4,8,16,32)",
        "model.depths": "(1,1,1,1)",
        "schedule.name": "constant",
        "schedule.warmup": "0",
        "optimizer.learning_rate": "0.01",
        "train.feed": feed,
        "train.batch_size": "24",
        "train.epochs": "100000",
        "train.eval_every": "4",
        "train.checkpoint_every": "4",
        "train.log_every": "59",
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    return [
        *(sys.executable, "-m", "flax_resnet.main", "--config=resnet18", "--noreport"),
        *(f"--data_dir={folder / 'data'}", f"--workdir={folder / 'run'}", *flags),
    ]


def _wait_for_checkpoint(workdir: RunFolder, process: subprocess.Popen, log: pathlib.Path) -> None:
    deadline = time.monotonic() + START
    while not (workdir.path / ".has_checkpoints").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no checkpoint: {log.read_text()[-2000:]}")
        time.sleep(0.1)


def watch(process: subprocess.Popen, seconds: float, log: pathlib.Path) -> list[Sample]:
    """Return a sample of a process for each second. Raises RuntimeError if the process ends."""
    samples, began = [], time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        try:
            samples.append(sample(process.pid, elapsed))
        except (OSError, KeyError) as error:
            raise RuntimeError(f"the run has ended: {log.read_text()[-2000:]}") from error
        time.sleep(max(0.0, len(samples) - (time.monotonic() - began)))
    return samples


def sample(pid: int, seconds: float) -> Sample:
    """Look at a process. Raises OSError or KeyError if it has ended."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    mib = int(fields["VmRSS"].split()[0]) / 1024
    return Sample(seconds, mib, int(fields["Threads"]), len(os.listdir(f"/proc/{pid}/fd")))


def judged(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return figures of the second half of the samples, whether it is flat, and rows over all samples.

    Memory is flat if a line through it rises by at most `MIB_PER_MINUTE`. Threads and files come and go with each
    checkpoint, so their medians over the third and the last quarter of the time are compared.
    """
    half = samples[len(samples) // 2 :]
    third, fourth = half[: len(half) // 2], half[len(half) // 2 :]
    slope = statistics.linear_regression([s.seconds / 60 for s in half], [s.mib for s in half])[0]
    counts = {
        name: {
            middle.__name__: [middle(getattr(s, name) for s in part) for part in (third, fourth)]
            for middle in (statistics.median, max)
        }
        for name in ("threads", "files")
    }
    flat = {"mib": slope <= MIB_PER_MINUTE}
    for name, count in counts.items():
        before, last = count["median"]
        flat[name] = last - before <= RISE
    return {
        "mib_per_minute": round(slope, 3),
        "mib": [round(f(s.mib for s in half), 1) for f in (min, max)],
        **{f"{name}_in_last_quarters": count for name, count in counts.items()},
        "limit_mib_per_minute": MIB_PER_MINUTE,
        "flat_by_part": flat,
        "flat": all(flat.values()),
        "samples": [
            {key: round(value, 1) for key, value in row._asdict().items()}
            for row in samples[:: -(-len(samples) // ROWS)]
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
