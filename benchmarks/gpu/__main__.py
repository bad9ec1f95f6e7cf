"""Measures a machine with GPUs, in stages: python -m benchmarks.gpu --quick --folder runs/gpu

    --quick                     eight minutes: right gradients, exact resume, speed, profile, variants
    --full                      hours: all networks, beside PyTorch, training end to end, on one GPU to all
    --full --cifar cifar10      and CIFAR-10's recipes, from a folder of train/CLASS/* and test/CLASS/*
    --read runs/gpu             print the report again, and write its page; --against FORMER compares
    --platform cpu --tiny       a rehearsal of tiny sizes, without a GPU

Each stage is a command of its own with a time limit. Its record is on disk after every item; the same command goes
on after a stop. Leaves FOLDER/record.json (all stages), report.html, log.txt, and stages/*.json.
"""

import argparse
import pathlib
import signal
import sys
import time

from benchmarks.arguments import count, duration, folder
from benchmarks.gpu import full, quick, runner
from benchmarks.gpu.report import Report, as_html, as_text
from benchmarks.gpu.stage import Stage
from benchmarks.input_data import make_photographs
from flax_resnet.errors import ConfigError, UserError, suggestion

PAGE = "report.html"


def main() -> int:
    """Runs what is not done, and reports; returns the exit code: 1 where a check or a stage failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--quick", action="store_true", help="eight minutes at most")
    mode.add_argument("--full", action="store_true", help="hours")
    mode.add_argument("--read", type=pathlib.Path, help="a folder, or a record.json: report only")
    parser.add_argument("--folder", type=folder, help="where all is kept (default: runs/gpu)",
                        default=pathlib.Path("runs/gpu"))  # fmt: skip
    parser.add_argument("--against", type=pathlib.Path, help="a former folder or record.json")
    parser.add_argument("--platform", choices=tuple(runner.PLATFORMS), default="gpu")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: a rehearsal")
    parser.add_argument("--stages", nargs="+", default=[], help="these stages only, by name")
    parser.add_argument("--seconds", type=duration, help="of --quick in all (default: 480)")
    parser.add_argument("--cifar", default="", help="CIFAR-10 as a folder of images, for --full")
    parser.add_argument("--images", type=count, default=20_000, help="photographs, for --full")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        former = runner.read(args.against) if args.against else None
        if not args.read:
            run(args)
        where = args.read or args.folder
        report = Report(*runner.read(where), former)
    except UserError as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")
    except KeyboardInterrupt:
        parser.exit(128 + signal.SIGINT, "stopped; the same command goes on\n")
    print(f"\n{as_text(report)}")
    page = (where if where.is_dir() else where.parent) / PAGE
    page.write_text(as_html(report))
    print(f"\n{page} shows this")
    stages = report.stages
    good = all(check.passed for stage in stages for check in stage.checks)
    return (
        0 if good and not any(stage.failures or stage.state == "failed" for stage in stages) else 1
    )


def run(args: argparse.Namespace) -> None:
    """Runs the stages that the arguments ask for.

    Raises:
      UserError: there is no GPU, the folder holds another machine's records, or a name is none.
    """
    began = time.monotonic()
    if args.cifar and not pathlib.Path(args.cifar, "train").is_dir():
        raise ConfigError(f"--cifar={args.cifar}: must be a folder with train/ and test/")
    machine = runner.find_machine(args.platform, args.tiny)
    stages: list[Stage] = list(quick.STAGES)
    deadline = began + (args.seconds or quick.SECONDS)
    if args.full:
        gpus = machine.count if machine.platform == "gpu" else 0
        photographs = args.folder.resolve() / "photographs"
        stages = list(full.stages(args.folder, gpus, args.tiny, photographs, args.cifar))
        deadline = float("inf")
    names = [stage.name for stage in stages]
    for name in args.stages:
        if name not in names:
            raise ConfigError(f"--stages={name}: {suggestion(name, names)}")
    print(f"on {machine}; records go to {args.folder}", flush=True)
    runner.claim(args.folder, machine)
    if args.full:
        make_photographs(photographs, 64 if args.tiny else args.images)
    chosen = [stage for stage in stages if not args.stages or stage.name in args.stages]
    runner.run_all(chosen, stages, args.folder, machine, deadline)


if __name__ == "__main__":
    sys.exit(main())
