"""Accuracy that networks reach on CIFAR-10, over several seeds: python -m benchmarks.accuracy EXPERIMENT

    plain_vs_residual --folder runs/accuracy --data /path/to/cifar10
    fine_tuning --folder runs/accuracy --data /path/to/cifar10 --seeds 0 1 2 3 4
    resnet20 --folder runs/accuracy --data /path/to/cifar10 --output benchmarks/results/accuracy_resnet20.json
    speedrun --folder runs/accuracy --data /path/to/cifar10 --target 0.8

The data are a folder of images, train/CLASS/* and test/CLASS/*. Each run is a command of its own, printed before it
starts, in FOLDER/EXPERIMENT/ROW/SEED; runs that are finished are kept, and the same command goes on after a stop.
Prints tables of the runs that are finished and, with --output, writes JSON; --plot draws the curves. `--collect`
trains nothing. Needs `pip install '.[parity]'` for the rows in PyTorch; without, they are left out.

Seconds are those of the training calls, compilation among them; decoding, which is done before, and evaluations are
not. With --target, the table has the seconds until that top-1, of the averaged weights where there are such.
"""

import argparse
import importlib.util
import pathlib
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.arguments import absent, count, folder, output, picture, seed, share
from benchmarks.record import write_record
from flax_resnet.config import Config, differences, freeze
from flax_resnet.data.source import open_source
from flax_resnet.errors import DataError, UserError, WorkdirError, suggestion
from flax_resnet.training.pretrained import adopted
from flax_resnet.training.workdir import SUMMARY, read_config, read_records

ROOT = pathlib.Path(__file__).parents[1]
SYSTEMS = {"flax_resnet": "flax_resnet.main", "torch": "benchmarks.accuracy_torch"}
DATA = {"data.source": "folder", "data.limit": 10_000}


class Row(NamedTuple):
    """What is trained with every seed.

    Attributes:
      label: of the table, and name of its folder.
      config: file of the configuration, with its argument after a colon.
      overrides: by dotted key, beside those of `DATA`.
      system: of `SYSTEMS`.
      classes: that are trained and evaluated on; none for all.
      images: of each of these to train on, the first by name; 0 for all.
      start: label of the row whose network is fine-tuned, that of the first seed; "" for none.
      once: whether the first seed alone is run.
    """

    label: str
    config: str
    overrides: Mapping[str, Any]
    system: str = "flax_resnet"
    classes: tuple[str, ...] = ()
    images: int = 0
    start: str = ""
    once: bool = False


def he2016(network: str, overrides: Mapping[str, Any]) -> Row:
    """Returns a row of the recipe of the papers of He et al."""
    drops = {"schedule.unit": "fraction", "schedule.milestones": (0.5, 0.75)}
    return Row(network, f"configs/cifar_he2016.py:{network}", drops | overrides)


EIGHT = {"train.epochs": 8}
# At the paper's 0.1 from the first step, resnet56 loses hundreds of steps to a loss of 5, more than there are here.
GENTLE = {
    "train.epochs": 2,
    "train.batch_size": 64,
    "optimizer.learning_rate": 0.05,
    "schedule.warmup": 0.2,
}
FIRST = ("airplane", "automobile", "bird", "cat", "deer")
LAST = ("dog", "frog", "horse", "ship", "truck")
FEW = {
    "train.epochs": 60,
    "train.batch_size": 50,
    "train.eval_every": 20,
    "train.checkpoint_every": 60,
    "train.eval_batch_size": 1000,
}
CIFAR = {"data.train_crop": "resize", "data.eval_crop": "resize", "augment.shift": 4}
SPEEDRUN = {
    "data.limit": 0,
    "augment.eval_flip": False,
    "augment.eval_shift": 0,
    "model.widths": (32, 128, 128),
    "train.batch_size": 500,
    "train.epochs": 1,
    "train.eval_every": 0.25,
}
EXPERIMENTS = {
    # He et al. 2016, figure 6: deeper is worse without shortcuts, and better with them.
    "plain_vs_residual": [
        he2016(network, GENTLE) for network in ("plain20", "resnet20", "plain56", "resnet56")
    ],
    # The same recipe, initial weights and batches in both; the averaged weights are beside the last.
    "resnet20": [
        he2016("resnet20", EIGHT | {"average.decay": 0.99, "average.recalibrate": 16}),
        he2016("resnet20", EIGHT)._replace(label="torch", system="torch"),
    ],
    # 94 % in ten epochs: for a GPU.
    "airbench94": [
        Row(label, "configs/cifar_speedrun.py", {"data.limit": 0}, system=label)
        for label in ("flax_resnet", "torch")
    ],
    # Smaller, shorter and judged on single views, for two cores of a CPU.
    "speedrun": [
        Row(label, "configs/cifar_speedrun.py", SPEEDRUN, system=label)
        for label in ("flax_resnet", "torch")
    ],
    # Five classes with 50 images each, by a network that has learned the five others, and from scratch.
    "fine_tuning": [
        he2016("resnet20", {"train.epochs": 8})._replace(
            label="pretrained", classes=FIRST, once=True
        ),
        he2016("resnet20", FEW)._replace(label="scratch", classes=LAST, images=50),
        Row(
            "fine-tuned",
            "configs/finetune.py:folder=images",
            FEW | CIFAR,
            classes=LAST,
            images=50,
            start="pretrained",
        ),
    ],
}


TIMED = ("airbench94", "speedrun")  # drawn over seconds, too


class Run(NamedTuple):
    """A row with a seed.

    Attributes:
      row: of the experiment.
      seed: of weights, order and augmentation.
      folder: where it is written.
      overrides: of its configuration, by dotted key.
    """

    row: Row
    seed: int
    folder: pathlib.Path
    overrides: dict[str, Any]

    @property
    def command(self) -> list[str]:
        """Returns the command without the interpreter."""
        changed = [
            f"--config.{k}={v}".replace(" ", "")
            for k, v in self.overrides.items()
            if k != "data.path"
        ]
        path = f"--config.data.path={self.overrides['data.path']}"  # which may hold spaces
        start = ["-m", SYSTEMS[self.row.system], "--config", self.row.config]
        return [*start, "--workdir", str(self.folder), path, *changed]  # fmt: skip

    @property
    def shown(self) -> str:
        """Returns the command as a person types it."""
        return shlex.join(["python", *self.command])

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.folder / SUMMARY).exists()


class Result(NamedTuple):
    """What a finished run left behind.

    Attributes:
      run: whose it is.
      config: its configuration.
      records: of its metrics.jsonl.
    """

    run: Run
    config: Config
    records: list[dict]

    def of(self, split: str) -> list[dict]:
        """Returns the records of a split, in their order."""
        return [record for record in self.records if record["split"] == split]

    @property
    def evaluations(self) -> list[dict]:
        """Returns the records of the evaluation split."""
        return self.of(self.config.data.eval_split)

    @property
    def final(self) -> dict:
        """Returns the last evaluation."""
        return self.evaluations[-1]

    @property
    def images(self) -> int:
        """Returns how many images were trained on, each as often as it was shown."""
        return self.final["step"] * self.config.train.batch_size

    @property
    def training_loss(self) -> float:
        """Returns the mean loss of training, augmented, over the windows that end in the last epoch."""
        before = self.final["epoch"] - 1
        return statistics.fmean(r["loss"] for r in self.of("train") if r["epoch"] > before)

    def seconds(self, until: int | None = None) -> float | None:
        """Returns the time of the training steps, evaluation apart; None where it is not known.

        Args:
          until: the last of them; None for that of the run. Between two records time passes evenly.
        """
        total, before, until = 0.0, 0, until or self.final["step"]
        for record in self.of("train"):
            if not record.get("images_per_second"):
                return None
            steps = max(0, min(record["step"], until) - before)
            total += steps * self.config.train.batch_size / record["images_per_second"]
            before = record["step"]
        return total

    @property
    def scores(self) -> list[float]:
        """Returns top-1 of every evaluation, that of the averaged weights where there are such."""
        return [record.get("average_top1", record["top1"]) for record in self.evaluations]

    def seconds_to(self, target: float) -> float | None:
        """Returns the seconds until a top-1, on straight lines between evaluations; None where it is never."""
        before = (0.0, 0.0)
        for record, score in zip(self.evaluations, self.scores, strict=True):
            seconds = self.seconds(record["step"])
            if seconds is None:
                return None
            if score >= target:
                part = (target - before[1]) / (score - before[1]) if score > before[1] else 1.0
                return before[0] + part * (seconds - before[0])
            before = (seconds, score)
        return None


def main() -> None:
    """Trains what is not there yet, and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", metavar="EXPERIMENT", help=" or ".join(EXPERIMENTS))
    parser.add_argument("--folder", type=folder, required=True, help="where runs are kept")
    parser.add_argument("--data", required=True, help="CIFAR-10 as a folder of images")
    parser.add_argument("--seeds", type=seed, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=count, default=0, help="instead of the experiment's own")
    parser.add_argument(
        "--limit", type=count, default=0, help="images instead of the experiment's own"
    )
    parser.add_argument("--collect", action="store_true", help="report what is finished, no more")
    parser.add_argument("--target", type=share, default=0.0, help="top-1 to be timed, 0 to 1")
    parser.add_argument("--output", type=output, help="file for the result as JSON")
    parser.add_argument("--plot", type=picture, help="file for the curves, such as curves.png")
    args = parser.parse_args()
    try:
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
            raise WorkdirError(f"no run of {args.experiment} in {args.folder} is finished")
    except UserError as error:
        parser.error(" ".join(str(error).split()))
    labels = [row.label for row in EXPERIMENTS[args.experiment]]
    results.sort(key=lambda result: (labels.index(result.run.row.label), result.run.seed))
    report(args, results)


def planned(args: argparse.Namespace) -> list[Run]:
    """Returns the runs of an experiment, a seed of every row before the next seed.

    Raises:
      UserError: there is no such experiment.
    """
    if args.experiment not in EXPERIMENTS:
        raise UserError(f"{args.experiment}: {suggestion(args.experiment, EXPERIMENTS)}")
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
    """Makes the folder of some classes of which a run is, by links to the images.

    Raises:
      DataError: a class is not there.
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
                raise DataError(f"--data={data}: has no {split}/{name}/")
            (part / split / name).mkdir(parents=True)
            for file in files[: most or len(files)]:
                (part / split / name / file.name).symlink_to(file.resolve())
    part.rename(target)


def startable(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs that are not finished, but those whose system is not installed, of which it says so."""
    waiting = [run for run in runs if not run.finished]
    if missing := absent("torch", "timm"):
        left_out = [run for run in waiting if run.row.system == "torch"]
        waiting = [run for run in waiting if run.row.system != "torch"]
        if left_out:
            labels = ", ".join(dict.fromkeys(run.row.label for run in left_out))
            print(f"left out, for want of {' and '.join(missing)}: {labels}", flush=True)
    return waiting


def configuration(run: Run) -> Config:
    """Returns the configuration of a run, as its command makes it."""
    name, _, argument = run.row.config.partition(":")
    spec = importlib.util.spec_from_file_location(pathlib.Path(name).stem, ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(*([argument] if argument else []))
    config.update_from_flattened_dict(run.overrides)
    return freeze(config)


def train_one(run: Run) -> None:
    """Runs the command of a run; ends this one where it fails, or is stopped, with its exit code."""
    print(f"\n{run.shown}", flush=True)
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    child = subprocess.Popen([sys.executable, *run.command])
    # A signal stops the run, which saves its state; this process outlives it to say how it ended. Ctrl-C reaches
    # both of them, and is passed on to neither.
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
    """Reads a finished run.

    Raises:
      WorkdirError: it was trained with another configuration, or is not complete.
    """
    stored, wanted = read_config(run.folder), configuration(run)
    if stored and run.row.start:
        wanted = adopted(wanted, stored)
    changed = differences(stored, wanted) if stored else ["no configuration"]
    if stored and stored.train.epochs != wanted.train.epochs:
        changed.append(f"train.epochs: {stored.train.epochs} -> {wanted.train.epochs}")
    if changed:
        raise WorkdirError(
            f"{run.folder} was trained with another configuration ({'; '.join(changed)}): name another --folder"
        )
    result = Result(run, stored, read_records(run.folder))
    if not result.evaluations or round(result.final["epoch"]) != stored.train.epochs:
        raise WorkdirError(f"{run.folder}: its metrics.jsonl does not reach the end: remove it")
    return result


def summarized(results: Sequence[Result], target: float = 0.0) -> dict[str, dict]:
    """Returns by row: n, images, and statistics of the final figures, and of the seconds, over the seeds."""
    rows = {}
    for label, some in by_row(results).items():
        rows[label] = row = {"n": len(some), "seeds": [result.run.seed for result in some]}
        row["images"] = some[0].images
        seconds = [result.seconds() for result in some]
        row["seconds"] = None if None in seconds else spread(seconds)
        reached = [s for s in (result.seconds_to(target) for result in some) if s is not None]
        if target:
            row["target"] = {"top1": target, "reached": len(reached)}
            row["target"] |= {"seconds": spread(reached)} if reached else {}
        row["training_loss"] = spread([result.training_loss for result in some])
        for key in ("top1", "average_top1"):
            if all(key in result.final for result in some):
                row[key] = spread([result.final[key] for result in some])
    return rows


def by_row(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Returns results by the label of their row, in the order in which they come."""
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(result.run.row.label, []).append(result)
    return rows


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns mean, least, most, and the sample's standard deviation where there are two or more."""
    found = {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}
    return found | ({"std": statistics.stdev(values)} if len(values) > 1 else {})


def curve(results: Sequence[Result], split: str, key: str) -> dict[float, list[float]]:
    """Returns epoch -> a value of each run, of the epochs that all of them recorded."""
    runs = [{r["epoch"]: r[key] for r in result.of(split) if key in r} for result in results]
    return {
        epoch: [run[epoch] for run in runs] for epoch in runs[0] if all(epoch in r for r in runs)
    }


def tables(results: Sequence[Result], target: float = 0.0) -> str:
    """Returns the final figures and the accuracy of every epoch, as Markdown."""
    rows = summarized(results, target)
    columns = [
        "row",
        "seeds",
        "images trained on",
        "training loss",
        "top-1",
        "averaged top-1",
        "seconds",
        *([f"seconds to {target:.2%}"] if target else []),
    ]
    lines = ["mean (least to most) over the seeds; top-1 in %", "", *_head(columns)]
    for label, row in rows.items():
        scores = [_shown(row.get(key), 100, 2) for key in ("top1", "average_top1")]
        cells = [
            label,
            row["n"],
            f"{row['images']:,}",
            _shown(row["training_loss"], 1, 3),
            *scores,
            _shown(row["seconds"], 1, 0),
        ]
        if target:
            reached = row["target"]["reached"]
            times = _shown(row["target"].get("seconds"), 1, 0)
            cells.append(f"{times}; {reached} of {row['n']} reach it".removeprefix("; "))
        lines.append(_line(cells))
    curves = {}
    for label, some in by_row(results).items():
        split = some[0].config.data.eval_split
        for key, title in (("top1", label), ("average_top1", f"{label}, averaged")):
            if found := curve(some, split, key):
                curves[title] = {epoch: spread(values) for epoch, values in found.items()}
    lines += ["", *_head(["epoch", *curves])]
    for epoch in sorted({epoch for found in curves.values() for epoch in found}):
        cells = [_shown(found.get(epoch), 100, 2) for found in curves.values()]
        lines.append(_line([f"{epoch:g}", *cells]))
    return "\n".join(lines)


def _head(columns: Sequence[str]) -> list[str]:
    return [_line(columns), f"|{'---|' * len(columns)}"]


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _shown(found: dict[str, float] | None, scale: float, digits: int) -> str:
    if found is None:
        return ""
    mean, least, most = (f"{scale * found[key]:.{digits}f}" for key in ("mean", "min", "max"))
    return f"{mean} ({least} to {most})"


def report(args: argparse.Namespace, results: Sequence[Result]) -> None:
    """Prints the tables, writes the JSON and draws the curves where asked."""
    print(f"\n{tables(results, args.target)}")
    runs = [
        {
            "row": result.run.row.label,
            "system": result.run.row.system,
            "seed": result.run.seed,
            "command": result.run.shown,
            "images": result.images,
            "seconds": result.seconds(),
            "training_loss": result.training_loss,
            "evaluations": [
                record | {"seconds": result.seconds(record["step"])}
                for record in result.evaluations
            ],
        }
        for result in results
    ]
    record = {"experiment": args.experiment, "rows": summarized(results, args.target), "runs": runs}
    write_record(args.output, record)
    if args.plot:
        draw(pathlib.Path(args.plot), results, timed=args.experiment in TIMED)


def draw(file: pathlib.Path, results: Sequence[Result], *, timed: bool = False) -> None:
    """Draws training loss and top-1 over the epochs: the mean of the seeds, and a band from least to most.

    Args:
      file: a picture.
      results: of an experiment.
      timed: draw the top-1 of every seed over its seconds too.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(18 if timed else 12, 4.5), layout="constrained")
    left, right, *others = figure.subplots(1, 3 if timed else 2)
    for axes in others:
        for number, (label, some) in enumerate(by_row(results).items()):
            for result in some:
                seconds = [result.seconds(record["step"]) for record in result.evaluations]
                name = f"{label} (n={len(some)})" if result is some[0] else None
                axes.plot(
                    seconds, result.scores, "o-", color=f"C{number}", markersize=4, label=name
                )
        axes.set(xlabel="seconds of training, with compilation", title="top-1 of each seed")
    for number, (label, some) in enumerate(by_row(results).items()):
        split, color = some[0].config.data.eval_split, f"C{number}"
        for axes, part, key, style, title in (
            (left, "train", "loss", "-", label),
            (right, split, "top1", "-", label),
            (right, split, "average_top1", "--", f"{label}, averaged"),
        ):
            found = curve(some, part, key)
            if not found:
                continue
            epochs, values = list(found), list(found.values())
            means = [statistics.fmean(some) for some in values]
            marker = "" if part == "train" else "o"
            name = f"{title} (n={len(some)})"
            axes.plot(epochs, means, style, color=color, marker=marker, markersize=4, label=name)
            axes.fill_between(
                epochs, list(map(min, values)), list(map(max, values)), color=color, alpha=0.2
            )
    left.set(xlabel="epoch", title="training loss")
    right.set(xlabel="epoch", title=f"top-1 ({results[0].config.data.eval_split})")
    for axes in (left, right, *others):
        axes.grid(alpha=0.3)
        axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
