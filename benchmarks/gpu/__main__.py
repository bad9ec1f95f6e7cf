"""Measure a machine with GPUs, in stages: python -m benchmarks.gpu --quick --folder runs/gpu

    --quick                     eight minutes: check gradients and resuming; measure speed, profile, variants
    --full                      hours: all networks, PyTorch, training end to end, on 1, 2, 4, ... and all GPUs
    --full --cifar cifar10      also the recipes for CIFAR-10, a folder of train/CLASS/* and test/CLASS/*
    --read runs/gpu             print the report again, and write report.html; --against FORMER compares
    --platform cpu --tiny       a rehearsal with tiny sizes, without a GPU

Each stage is a command of its own with a time limit. Its record is on disk after every item: after a stop, run the
same command to continue. Leaves FOLDER/record.json (all stages), report.html, log.txt, and stages/*.json.
"""

import argparse
import os
import pathlib
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

from benchmarks import app
from benchmarks.arguments import count, duration, existing, folder
from benchmarks.gpu import full, quick
from benchmarks.gpu.folder import RECORD, claim, read
from benchmarks.gpu.machine import PLATFORMS, Machine, find_machine, first_gpus
from benchmarks.gpu.report import Report, as_html, as_text
from benchmarks.gpu.runner import run_all
from benchmarks.gpu.stage import Stage
from benchmarks.input.photographs import make_photographs
from flax_resnet.errors import ConfigError, one_line, writing
from flax_resnet.training.processes.launcher import find_launch

PAGE, PHOTOGRAPHS = "report.html", 20_000
# {option: the modes that accept it}
OPTIONS = {
    "seconds": ("quick",),
    "stages": ("quick", "full"),
    "cifar": ("full",),
    "images": ("full",),
}


@app.command
def main() -> int:
    """Run the incomplete stages, and report. Return the exit code: 0 if every stage is good."""
    args = _arguments()
    if (launch := find_launch()) and not args.read:
        raise ConfigError(
            f"measures the GPUs of one machine, in stages of its own, and {launch.launcher} started "
            f"{launch.num_processes} processes",
            key="benchmarks.gpu",
            cure="start one process on one machine, such as srun --ntasks=1 --gpus=8",
        )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    return _run_and_report(args)


def _arguments() -> argparse.Namespace:
    parser = app.Parser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--quick", action="store_true", help="eight minutes at most")
    mode.add_argument("--full", action="store_true", help="hours")
    mode.add_argument("--read", type=existing, help="only report this folder or record.json")
    parser.add_argument("--folder", type=folder, help="folder for all results (default: runs/gpu)",
                        default=pathlib.Path("runs/gpu"))  # fmt: skip
    parser.add_argument(
        "--against", type=existing, help="earlier folder or record.json to compare with"
    )
    parser.add_argument("--platform", choices=tuple(PLATFORMS), default="gpu")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for a rehearsal")
    parser.add_argument("--stages", nargs="+", default=[], help="stages to run (default: all)")
    parser.add_argument("--seconds", type=duration, help="time limit of --quick (default: 480)")
    parser.add_argument("--cifar", type=existing, help="CIFAR-10 as a folder of images, for --full")
    parser.add_argument("--images", type=count,
                        help=f"number of photographs, for --full (default: {PHOTOGRAPHS:,})")  # fmt: skip
    return parser.parse_args()


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Raise KeyboardInterrupt at a signal. Ignore later ones, so that the results can be written."""
    del frame
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def _run_and_report(args: argparse.Namespace) -> int:
    """Run and report as the arguments say; return the exit code.

    Raises:
      UserError: the arguments, the machine or the folder do not allow it.
      KeyboardInterrupt: a signal came before there was anything to report.
    """
    _refuse_options_of_another_mode(args)
    former = read(args.against) if args.against else None
    stopped = 0
    if not args.read:
        try:
            run(args)
        except KeyboardInterrupt as stop:
            if not (args.folder / RECORD).exists():
                raise
            stopped = 128 + stop.args[0]
    where = args.read or args.folder
    report = Report(*read(where), former)
    page = _write_page(where, report)
    print(f"\n{as_text(report)}\n\n{page}", flush=True)
    if stopped:
        print("stopped; run the same command to continue", file=sys.stderr)
        return stopped
    good = report.stages and all(stage.is_good for stage in report.stages)
    return 0 if good else 1


def _refuse_options_of_another_mode(args: argparse.Namespace) -> None:
    mode = next(name for name in ("quick", "full", "read") if getattr(args, name))
    for name, modes in OPTIONS.items():
        value = getattr(args, name)
        if value and mode not in modes:
            raise ConfigError(
                f"is an option of {' and '.join(f'--{one}' for one in modes)}, not of --{mode}",
                key=f"--{name}",
                value=... if isinstance(value, list) else value,
                cure="leave it out",
            )


def _write_page(where: pathlib.Path, report: Report) -> str:
    """Write the HTML page if `where` is a folder. Return a line that says where the report is."""
    if not where.is_dir():
        return f"report of {where}"
    page = where / PAGE
    try:
        page.write_text(as_html(report))
    except OSError as error:
        return f"{page} cannot be written: {one_line(error)}"
    return f"the same as a page: {page}"


def run(args: argparse.Namespace) -> None:
    """Run the stages that the arguments ask for.

    Raises:
      UserError: there is no GPU, the folder holds another machine's records, or a stage does not exist.
    """
    began = time.monotonic()
    if args.cifar and not (args.cifar / "train").is_dir():
        raise ConfigError(key="--cifar", value=args.cifar, allowed="a folder with train/ and test/")
    machine = find_machine(args.platform, args.tiny)
    photographs = args.folder.resolve() / "photographs"
    stages = _stages(args, machine, photographs)
    names = [stage.name for stage in stages]
    for name in args.stages:
        if name not in names:
            raise ConfigError("no such stage", key="--stages", value=name, allowed=names)
    print(f"on {machine}; records go to {args.folder}", flush=True)
    claim(args.folder, machine)
    deadline = began + (args.seconds or quick.SECONDS)
    if args.full:
        with writing(photographs):
            make_photographs(photographs, args.images or (64 if args.tiny else PHOTOGRAPHS))
        deadline = float("inf")
    elif machine.platform == "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = first_gpus(1)
    chosen = [stage for stage in stages if not args.stages or stage.name in args.stages]
    run_all(chosen, args.folder, machine, deadline)


def _stages(
    args: argparse.Namespace, machine: Machine, photographs: pathlib.Path
) -> tuple[Stage, ...]:
    if args.quick:
        return quick.STAGES
    gpus = machine.devices if machine.platform == "gpu" else 0
    cifar = str(args.cifar.resolve()) if args.cifar else ""
    return tuple(full.stages(args.folder, gpus, args.tiny, photographs, cifar))


if __name__ == "__main__":
    sys.exit(main())
