"""Start two processes of one run at the same moment, many times, and count the runs that end well.

python -m benchmarks.lab.starts --starts 50 --output benchmarks/results/starts.json

Each start has a new run folder. A start succeeds if both processes end with exit code 0, and the folder holds one
configuration, one checkpoint at the end, and each record once. The record is written after each start; the same
command with the same output goes on.
"""

import argparse
import datetime
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import app
from benchmarks.arguments import count, output
from benchmarks.record import write_record

COMMAND = (
    "-m", "flax_resnet.main", "--config=resnet18", "--noreport", "--config.model.widths=(4,8,16,32)",
    "--config.model.depths=(1,1,1,1)", "--config.train.batch_size=240", "--config.train.steps=2",
    "--config.train.eval_batch_size=360", "--config.schedule.warmup=0",
)  # fmt: skip
MOST_SECONDS = 300


@app.command
def main(argv: Sequence[str] | None = None) -> int:
    """Start and count; return 1 if a start failed."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=count, default=50)
    parser.add_argument("--processes", type=count, default=2, help="processes of each start")
    parser.add_argument("--output", type=output, help="the record")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        results = _results(arguments, pathlib.Path(place))
    good = sum(result["good"] for result in results)
    print(f"good starts: {good}/{len(results)}")
    return int(good < len(results))


def _results(arguments: argparse.Namespace, place: pathlib.Path) -> list[dict[str, Any]]:
    """Make the starts that the record lacks, and return the results of all."""
    results: list[dict[str, Any]] = []
    if arguments.output and pathlib.Path(arguments.output).is_file():
        results = json.loads(pathlib.Path(arguments.output).read_text())["starts"]
    while len(results) < arguments.starts:
        result = start(place, arguments.processes)
        results.append(result)
        print(f"{len(results)} of {arguments.starts}: {result}", flush=True)
        good = f"{sum(result['good'] for result in results)}/{len(results)}"
        date = datetime.date.today().isoformat()
        write_record(arguments.output, {"date": date, "good starts": good, "starts": results})
    return results


def start(place: pathlib.Path, processes: int) -> dict[str, Any]:
    """Start the processes of a new run at once, and return what came of it: exit codes, seconds, errors.

    Args:
      place: a folder for the run, the data and the compilation cache.
      processes: number of processes.
    """
    workdir = place / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    shared = (
        f"--workdir={workdir}", f"--data_dir={place / 'tfds'}", f"--compilation_cache={place / 'xla'}",
        f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}",
    )  # fmt: skip
    began = time.monotonic()
    started = [
        subprocess.Popen(
            [sys.executable, *COMMAND, *shared, f"--process_id={number}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]
    outputs = [_output(process, began + MOST_SECONDS) for process in started]
    codes = [process.returncode for process in started]
    problem = "" if any(codes) else _problem(workdir)
    result: dict[str, Any] = {
        "good": not any(codes) and not problem,
        "codes": codes,
        "seconds": round(time.monotonic() - began, 1),
    }
    if not result["good"]:
        result["problem"] = problem or [text[-500:] for text in outputs]
    return result


def _output(process: subprocess.Popen, deadline: float) -> str:
    """Return the output of a process at its end. After the deadline, it is killed, and so has an exit code."""
    try:
        return process.communicate(timeout=max(1.0, deadline - time.monotonic()))[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return f"killed after {MOST_SECONDS} s: {process.communicate()[0]}"


def _problem(workdir: pathlib.Path) -> str:
    """Return what is wrong with a folder that should hold a run of two steps, or ""."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = sorted((line["step"], line["split"]) for line in lines)
    if found != [(2, "test"), (2, "train")]:
        return f"records {found}"
    steps = sorted(f.name for f in (workdir / "checkpoints").iterdir())
    if steps != ["2"] or not (workdir / "config.json").is_file():
        return f"checkpoints {steps}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
