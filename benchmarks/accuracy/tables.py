"""The results of an experiment: statistics over the seeds, tables, curves."""

import argparse
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.accuracy.experiments import Run
from benchmarks.record import write_record
from flax_resnet.config import Config
from flax_resnet.errors import writing
from flax_resnet.optim.evaluation_metrics import EMA, METRICS, monitored

# Experiments whose plot also shows top-1 over seconds.
TIMED = ("airbench94", "speedrun")


class Result(NamedTuple):
    """A finished run and its records.

    Attributes:
      run: the run.
      config: its configuration.
      records: the records of its metrics.jsonl.
    """

    run: Run
    config: Config
    records: list[dict]

    def of(self, split: str) -> list[dict]:
        """Return the records of a split, in the order of the file."""
        return [record for record in self.records if record["split"] == split]

    @property
    def evaluations(self) -> list[dict]:
        """Return the records of the evaluation split."""
        return self.of(self.config.data.eval_split)

    @property
    def final(self) -> dict:
        """Return the last evaluation."""
        return self.evaluations[-1]

    def reaches(self, epochs: int) -> bool:
        """Return whether the records have the evaluation after the last epoch, and training steps of that epoch."""
        evaluated = bool(self.evaluations) and round(self.final["epoch"]) == epochs
        return evaluated and any(r["epoch"] > self.final["epoch"] - 1 for r in self.of("train"))

    @property
    def images(self) -> int:
        """Return the number of training images, repetitions included."""
        return self.final["step"] * self.config.train.batch_size

    @property
    def training_loss(self) -> float:
        """Return the mean training loss over the records of the last epoch."""
        before = self.final["epoch"] - 1
        return statistics.fmean(r["loss"] for r in self.of("train") if r["epoch"] > before)

    def seconds(self, until: int | None = None) -> float | None:
        """Return the seconds of training, without evaluations; None if a record has no speed.

        Args:
          until: the last step to include; None for all. The time between two records is interpolated linearly.
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
        """Return the top-1 of every evaluation, with the averaged weights if there are any."""
        return [monitored(record) for record in self.evaluations]

    def seconds_to(self, target: float) -> float | None:
        """Return the seconds of training until top-1 reaches `target`, interpolated between evaluations.

        None if top-1 stays below it, or if a record has no speed.
        """
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


def summarized(results: Sequence[Result], target: float = 0.0) -> dict[str, dict[str, Any]]:
    """Return {row label: results over the seeds}.

    A row has the number of runs, the number of training images, and the statistics of `spread` for the final
    metrics and the seconds of training. With `target`, it also has the seconds until top-1 reaches `target`.
    """
    rows: dict[str, dict[str, Any]] = {}
    for label, some in by_row(results).items():
        row = rows[label] = {"n": len(some), "seeds": [result.run.seed for result in some]}
        row["images"] = some[0].images
        seconds = [s for s in (result.seconds() for result in some) if s is not None]
        row["seconds"] = spread(seconds) if len(seconds) == len(some) else None
        reached = [s for s in (result.seconds_to(target) for result in some) if s is not None]
        if target:
            row["target"] = {"top1": target, "reached": len(reached)}
            row["target"] |= {"seconds": spread(reached)} if reached else {}
        row["training_loss"] = spread([result.training_loss for result in some])
        for key in (prefix + name for prefix in ("", EMA) for name in METRICS):
            if all(key in result.final for result in some):
                row[key] = spread([result.final[key] for result in some])
    return rows


def by_row(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return {row label: results}, in the order of the results."""
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(result.run.row.label, []).append(result)
    return rows


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean, min and max; for two or more values, also the sample standard deviation."""
    summary = {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}
    return summary | ({"std": statistics.stdev(values)} if len(values) > 1 else {})


def curve(results: Sequence[Result], split: str, key: str) -> dict[float, list[float]]:
    """Return {epoch: one value per run}, for the epochs that all runs recorded."""
    runs = [{r["epoch"]: r[key] for r in result.of(split) if key in r} for result in results]
    return {
        epoch: [run[epoch] for run in runs] for epoch in runs[0] if all(epoch in r for r in runs)
    }


def tables(results: Sequence[Result], target: float = 0.0) -> str:
    """Return two tables as Markdown: the final results, and the accuracy at each epoch."""
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
    lines = ["mean (min to max) over the seeds; top-1 in %", "", *_head(columns)]
    for label, row in rows.items():
        scores = [_shown(row.get(key), 100, 2) for key in ("top1", "ema_top1")]
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
        for key, title in (("top1", label), ("ema_top1", f"{label}, averaged")):
            if points := curve(some, split, key):
                curves[title] = {epoch: spread(values) for epoch, values in points.items()}
    lines += ["", *_head(["epoch", *curves])]
    for epoch in sorted({epoch for points in curves.values() for epoch in points}):
        cells = [_shown(points.get(epoch), 100, 2) for points in curves.values()]
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
    """Print the tables. Write JSON with --output, and draw the curves with --plot."""
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
    """Draw training loss and top-1 over the epochs: the mean over the seeds, and a band from min to max.

    Args:
      file: path of the picture.
      results: the results of one experiment.
      timed: whether to add a plot of the top-1 of each seed over seconds of training.
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
        axes.set(
            xlabel="seconds of training (for the first seed: with compilation)",
            title="top-1 of each seed",
        )
    for number, (label, some) in enumerate(by_row(results).items()):
        split, color = some[0].config.data.eval_split, f"C{number}"
        for axes, part, key, style, title in (
            (left, "train", "loss", "-", label),
            (right, split, "top1", "-", label),
            (right, split, "ema_top1", "--", f"{label}, averaged"),
        ):
            points = curve(some, part, key)
            if not points:
                continue
            epochs, values = list(points), list(points.values())
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
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=110)
