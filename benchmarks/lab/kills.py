"""Kill training with SIGKILL at random moments, and compare the resumed runs with undisturbed ones, bit by bit.

python -m benchmarks.lab.kills --runs 10 --kills 10 --output benchmarks/results/kills.json

Each run trains a small network on the digits with the command `flax_resnet.main`. It is killed `--kills` times and
resumed each time. Some kills hit the start of the process, some a random moment between two checkpoints, and some a
save, while the folder of an incomplete checkpoint exists. Compared with an undisturbed run are

- after each kill, the weights of all checkpoints that are left, loaded from the disk;
- at the end, the checksums of all arrays of every checkpoint that the run ever had, and all records.

A kill counts as equal if no checkpoint left by it differs, and neither does its run at its end. The record is
written after each run; the same command with the same output goes on after the last complete run.

With `--processes 4`, each run has four processes on this machine. A random one is killed; the others must end by
themselves before all start again.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import app
from benchmarks.arguments import count, folder, output, seed
from benchmarks.lab.killed_group import (
    POLL,
    Group,
    archived,
    checksum_differences,
    is_saving,
    loaded_differences,
    newest,
    record_differences,
    steps,
)
from benchmarks.record import write_record
from flax_resnet.errors import ConfigError

COMMON = (
    "--config=resnet18", "--noreport", "--config.model.widths=(4,8,16,32)", "--config.model.depths=(1,1,1,1)",
    "--config.train.batch_size=24", "--config.train.eval_batch_size=360", "--config.schedule.warmup=0",
    "--config.train.checkpoint_every=0.1",
)  # fmt: skip
CASES = {
    "resident": ("--config.train.feed=resident", "--config.augment.pad_crop=1"),
    "streaming": ("--config.train.feed=streaming", "--config.train.steps_per_call=2"),
    "averaged": (
        "--config.ema.decay=0.9",
        "--config.ema.bn_batches=2",
        "--config.train.microbatch_size=12",
    ),
}
# About the time from the start of a process to its first step.
START_SECONDS = 10
AIMS, SHARES = ("start", "moment", "save"), (0.2, 0.4, 0.4)
# Kills happen before this fraction of the steps, so that the process does not finish before it is killed.
KILLED_WITHIN = 0.9
# Longest time for a whole run; and for the other processes to end after a kill.
MOST_SECONDS, MOST_SURVIVAL = 1200, 300


@dataclasses.dataclass(frozen=True)
class Aim:
    """The moment of a kill, drawn at random.

    Attributes:
      kind: "start": `delay` x START_SECONDS after the process started; "moment": `delay` x 0.3 s after checkpoint
        `step`; "save": `delay` x 0.05 s after the first sight of an incomplete checkpoint after checkpoint `step`.
      step: a checkpoint at or after this step must be complete first.
      delay: in [0, 1).
      process: index of the killed process.
    """

    kind: str
    step: int
    delay: float
    process: int


@dataclasses.dataclass(frozen=True)
class Laboratory:
    """The folder and the settings that all runs share.

    Attributes:
      place: the folder.
      epochs: epochs of each run.
      processes: processes of each run.
    """

    place: pathlib.Path
    epochs: int
    processes: int

    def start(self, case: str, workdir: pathlib.Path) -> Group:
        """Start a run, or resume it."""
        arguments = (
            *COMMON,
            *CASES[case],
            f"--config.train.epochs={self.epochs}",
            f"--data_dir={self.place / 'tfds'}",
            f"--compilation_cache={self.place / 'xla'}",
            f"--workdir={workdir}",
        )
        return Group(arguments, self.processes, workdir.with_suffix(".log"))

    def undisturbed(self, case: str) -> pathlib.Path:
        """Return the archive of the undisturbed run of a case; the first call makes the run."""
        workdir, archive = self.place / case, self.place / f"{case}_archive"
        if not (archive / "metrics.jsonl").exists():
            for path in (workdir, archive):
                shutil.rmtree(path, ignore_errors=True)
            with archived(workdir, archive), self.start(case, workdir) as group:
                group.finish(MOST_SECONDS)
            shutil.copy(workdir / "metrics.jsonl", archive)
        return archive


@app.command
def main(argv: Sequence[str] | None = None) -> int:
    """Kill and compare; return 1 if a bit differs."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=count, default=10)
    parser.add_argument("--kills", type=count, default=10, help="kills of each run")
    parser.add_argument("--processes", type=count, default=1, help="processes of each run")
    parser.add_argument("--epochs", type=count, default=12, help="epochs of 59 steps of each run")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the moments of the kills")
    parser.add_argument(
        "--folder", type=folder, help="folder for the runs; a temporary one if left out"
    )
    parser.add_argument("--output", type=output, help="the record")
    options = parser.parse_args(argv)
    rows = _earlier(options)
    if options.folder:
        return _kill_all(options, options.folder, rows)
    with tempfile.TemporaryDirectory() as place:
        return _kill_all(options, pathlib.Path(place), rows)


def _drawn(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that decide which kills are drawn."""
    names = ("kills", "processes", "epochs", "seed")
    return {name: getattr(options, name) for name in names}


def _earlier(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the complete runs of an earlier start of this command.

    Raises:
      ConfigError: the file holds something else, which is kept.
    """
    file = pathlib.Path(options.output or "")
    if not options.output or not file.exists():
        return []
    try:
        record = json.loads(file.read_text())
        if record["drawn"] == _drawn(options):
            return record["runs"]
    except (ValueError, KeyError, TypeError):
        pass
    raise ConfigError(
        "holds something else than runs with these options", key="--output", value=options.output
    )


def _kill_all(options: argparse.Namespace, place: pathlib.Path, rows: list[dict[str, Any]]) -> int:
    place.mkdir(parents=True, exist_ok=True)
    laboratory = Laboratory(place.resolve(), options.epochs, options.processes)
    for number in range(len(rows), options.runs):
        rows.append(killed_run(laboratory, number, options.kills, options.seed))
        kills = [kill for run in rows for kill in run["kills"]]
        equal = sum(kill["equal"] for kill in kills)
        summary = f"bitwise equal: {equal}/{len(kills)}"
        seconds = round(sum(run["seconds"] for run in rows))
        print(f"run {number + 1} of {options.runs}: {summary}, {seconds} s", flush=True)
        write_record(
            options.output,
            {
                "date": datetime.date.today().isoformat(),
                "drawn": _drawn(options),
                "summary": summary,
                "seconds": seconds,
                "runs": rows,
            },
        )
    return int(any(run["differences"] for run in rows))


def killed_run(laboratory: Laboratory, number: int, kills: int, first: int) -> dict[str, Any]:
    """Kill a run several times, resume it to its end, and compare it with the undisturbed one.

    Args:
      laboratory: the folder.
      number: index of the run; chooses the case and the moments.
      kills: number of kills.
      first: seed of the moments of all runs.

    Returns:
      The run as a JSON object: case, seconds, kills, number of compared checkpoints, and differences.
    """
    began = time.perf_counter()
    case = list(CASES)[number % len(CASES)]
    archive = laboratory.undisturbed(case)
    aims = _aims(
        kills, steps(archive), laboratory.processes, np.random.default_rng([first, number])
    )
    workdir = laboratory.place / f"killed_{number}"
    own = laboratory.place / f"killed_{number}_archive"
    for path in (workdir, own):
        shutil.rmtree(path, ignore_errors=True)
    rows, differences = [], []
    with archived(workdir, own):
        for aim in aims:
            try:
                with laboratory.start(case, workdir) as group:
                    seconds = _wait_for(group, workdir, aim)
                    survivors = group.kill(aim.process, MOST_SURVIVAL)
            except RuntimeError as error:
                differences.append(str(error))
                break
            left = steps(workdir)
            lines = [x for step in left for x in loaded_differences(workdir, archive, step)]
            rows.append(
                {
                    **dataclasses.asdict(aim),
                    "seconds": round(seconds, 2),
                    "left": left,
                    "left_incomplete": is_saving(workdir),
                    "others": survivors._asdict(),
                    "differences": lines,
                }
            )
        try:
            with laboratory.start(case, workdir) as group:
                group.finish(MOST_SECONDS)
            differences += record_differences(workdir, archive)
        except RuntimeError as error:
            differences.append(str(error))
    compared, lines = checksum_differences(own, archive)
    differences += lines
    if newest(workdir) != newest(archive) or newest(archive) not in compared:
        differences.append(f"the last checkpoint is {newest(workdir)}, not {newest(archive)}")
    if is_saving(workdir):
        differences.append("the folder of an incomplete checkpoint is left at the end")
    for row in rows:
        row["equal"] = not row["differences"] and not differences
    for path in (workdir, own):
        shutil.rmtree(path, ignore_errors=True)
    return {
        "case": case,
        "seconds": round(time.perf_counter() - began, 1),
        "checkpoints_compared": len(compared),
        "differences": differences + [line for row in rows for line in row["differences"]],
        "kills": rows,
    }


def _aims(kills: int, saved: list[int], processes: int, draw: np.random.Generator) -> list[Aim]:
    """Draw the moments of the kills of a run, in order."""
    last = KILLED_WITHIN * saved[-1]
    at = np.sort(draw.uniform(0, last, kills))
    return [
        Aim(
            kind=str(draw.choice(AIMS, p=SHARES)),
            step=max(step for step in (0, *saved) if step <= target),
            delay=round(draw.random(), 3),
            process=int(draw.integers(processes)),
        )
        for target in at
    ]


def _wait_for(group: Group, workdir: pathlib.Path, aim: Aim) -> float:
    """Wait for the moment of a kill, and return the seconds since the call.

    Raises:
      RuntimeError: a process ended before.
    """
    began = time.perf_counter()

    def reached() -> bool:
        if aim.kind == "start":
            return time.perf_counter() - began >= aim.delay * START_SECONDS
        return newest(workdir) >= aim.step and (aim.kind == "moment" or is_saving(workdir))

    while not reached():
        if not group.running():
            raise RuntimeError(f"the run ended before the kill at {aim}")
        time.sleep(POLL)
    if aim.kind != "start":
        time.sleep(aim.delay * (0.3 if aim.kind == "moment" else 0.05))
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
