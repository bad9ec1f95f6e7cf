"""Measure the accuracy of recipes on CIFAR-10 over several seeds: python -m benchmarks.accuracy EXPERIMENT

    plain_vs_residual --folder runs/accuracy --data /path/to/cifar10
    fine_tuning --folder runs/accuracy --data /path/to/cifar10 --seeds 0 1 2 3 4
    resnet20 --folder runs/accuracy --data /path/to/cifar10 --output benchmarks/results/accuracy_resnet20.json
    speedrun --folder runs/accuracy --data /path/to/cifar10 --target 0.8

The data are a folder of images, train/CLASS/* and test/CLASS/*. Each run is a separate command, printed before it
starts, and writes to FOLDER/EXPERIMENT/ROW/SEED. Run the same command again after a stop: finished runs are kept.
Prints tables of the finished runs and, with --output, writes JSON; --plot draws the curves. `--collect` trains
nothing, and reports the finished runs. The rows in PyTorch need `pip install '.[parity]'`; without it, they are
left out.

Seconds are the time of the training calls, without decoding and evaluations. A row's first run includes
compilation; the others find its program in FOLDER/EXPERIMENT/compiled. With --target, the table has the seconds
until top-1 reaches the target, with the averaged weights if there are any.
"""

import argparse
import importlib.util
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import app
from benchmarks.accuracy.experiments import DATA, EXPERIMENTS, Row, Run
from benchmarks.accuracy.tables import Result, report
from benchmarks.arguments import absent, count, folder, output, picture, place, seed, share
from flax_resnet.config import Config, differences, freeze, override
from flax_resnet.data.open import open_source
from flax_resnet.errors import DataError, UserError, WorkdirError, writing
from flax_resnet.training.pretrained import adopted
from flax_resnet.training.runs.folder import RunFolder

ROOT = pathlib.Path(__file__).parents[2]


@app.command
def main() -> None:
    """Train the unfinished runs, and report all finished runs."""
    parser = app.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", metavar="EXPERIMENT", help=" or ".join(EXPERIMENTS))
    parser.add_argument("--folder", type=folder, required=True, help="folder for the runs")
    parser.add_argument("--data", type=place, required=True, help="CIFAR-10 as a folder of images")
    parser.add_argument("--seeds", type=seed, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=count, default=0, help="default: the experiment's own")
    parser.add_argument(
        "--limit", type=count, default=0, help="training images (default: the experiment's own)"
    )
    parser.add_argument("--collect", action="store_true", help="only report finished runs")
    parser.add_argument(
        "--target", type=share, default=0.0, help="report the time to this top-1, 0 to 1"
    )
    parser.add_argument("--output", type=output, help="file for the result as JSON")
    parser.add_argument("--plot", type=picture, help="file for the curves, such as curves.png")
    args = parser.parse_args()
    runs = planned(args)
    results = [read(run) for run in runs if run.finished]
    waiting = [] if args.collect else startable(runs)
    for run in waiting:
        link_images(pathlib.Path(args.data), run)
    for train in (True, False) if waiting else ():
        open_source(configuration(waiting[0]).data, train=train)
    for run in waiting:
        train_one(run)
        results.append(read(run))
    if not results:
        raise WorkdirError(
            f"holds no finished run of {args.experiment}", key="--folder", value=args.folder
        )
    labels = [row.label for row in EXPERIMENTS[args.experiment]]
    results.sort(key=lambda result: (labels.index(result.run.row.label), result.run.seed))
    report(args, results)


def planned(args: argparse.Namespace) -> list[Run]:
    """Return the runs of an experiment: all rows with the first seed, then the rows with the next seed.

    Raises:
      UserError: the experiment does not exist.
    """
    if args.experiment not in EXPERIMENTS:
        raise UserError(key="EXPERIMENT", value=args.experiment, allowed=EXPERIMENTS)
    common = DATA | {"data.path": args.data}
    chosen = {"train.epochs": args.epochs, "data.limit": args.limit}
    chosen = {key: value for key, value in chosen.items() if value}
    place, seeds = args.folder / args.experiment, list(dict.fromkeys(args.seeds))

    def run(row: Row, number: int) -> Run:
        own = {"train.seed": number, **row.overrides}
        if row.classes:
            own["data.path"] = str(place / "images" / f"{'_'.join(row.classes)}_{row.images}")
        if row.start:
            own["model.pretrained"] = str(place / row.start / str(seeds[0]))
        return Run(row, number, place / row.label / str(number), common | own | chosen)

    rows = EXPERIMENTS[args.experiment]
    return [run(row, n) for n in seeds for row in rows if n == seeds[0] or not row.once]


def link_images(data: pathlib.Path, run: Run) -> None:
    """Create the image folder of a run that uses only some classes. Its files are symbolic links.

    Raises:
      DataError: a class is missing.
    """
    target, row = pathlib.Path(run.overrides["data.path"]), run.row
    if not row.classes or target.exists():
        return
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for split, most in (("train", row.images), ("test", 0)):
        for name in row.classes:
            files = sorted((data / split / name).glob("*"))
            if not files:
                raise DataError(f"has no {split}/{name}/", key="--data", value=data)
            with writing(part):
                (part / split / name).mkdir(parents=True)
                for file in files[: most or len(files)]:
                    (part / split / name / file.name).symlink_to(file.resolve())
    part.rename(target)


def startable(runs: Sequence[Run]) -> list[Run]:
    """Return the unfinished runs whose system is installed; print which rows are left out."""
    waiting = [run for run in runs if not run.finished]
    if missing := absent("torch", "timm"):
        left_out = [run for run in waiting if run.row.system == "torch"]
        waiting = [run for run in waiting if run.row.system != "torch"]
        if left_out:
            labels = ", ".join(dict.fromkeys(run.row.label for run in left_out))
            print(f"left out, for want of {' and '.join(missing)}: {labels}", flush=True)
    return waiting


def configuration(run: Run) -> Config:
    """Return the configuration that the command of a run uses."""
    name, _, argument = run.row.config.partition(":")
    spec = importlib.util.spec_from_file_location(pathlib.Path(name).stem, ROOT / name)
    assert spec is not None, name
    assert spec.loader is not None, name
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(*([argument] if argument else []))
    return freeze(override(config.to_dict(), run.overrides))


def train_one(run: Run) -> None:
    """Run the command of a run. If it fails or is stopped, exit with its exit code."""
    print(f"\n{run.shown}", flush=True)
    with writing(run.folder):
        run.folder.parent.mkdir(parents=True, exist_ok=True)
    child = subprocess.Popen([sys.executable, *run.command])
    # A signal stops the run, which saves its state. This process waits for it, to print how it ended. Ctrl-C
    # reaches both processes anyway, so SIGINT is not passed on.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: child.terminate()),
    }
    code = child.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if code:
        print(
            f"error: {run.row.label}, seed {run.seed}: its command ended with {code}; its own message is above",
            file=sys.stderr,
        )
        sys.exit(code if code > 0 else 128 - code)


def read(run: Run) -> Result:
    """Read a finished run.

    Raises:
      WorkdirError: the run has another configuration, or is not complete.
    """
    folder = RunFolder.at(run.folder)
    stored, wanted = folder.read_config(), configuration(run)
    if stored and run.row.start:
        wanted = adopted(wanted, stored)
    changed = differences(stored, wanted) if stored else ["no configuration"]
    if stored and stored.train.epochs != wanted.train.epochs:
        changed.append(f"train.epochs: {stored.train.epochs} -> {wanted.train.epochs}")
    if not stored or changed:
        raise WorkdirError(
            f"was trained with another configuration ({'; '.join(changed)})",
            key=run.folder,
            cure="name another --folder",
        )
    result = Result(run, stored, folder.read_records())
    if not result.reaches(stored.train.epochs):
        raise WorkdirError(
            "its metrics.jsonl does not reach the end", key=run.folder, cure="remove the folder"
        )
    return result


if __name__ == "__main__":
    sys.exit(main())
