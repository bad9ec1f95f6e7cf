"""Compare runs on the same images: python -m flax_resnet compare RUNS...

RUNS are two or more run folders. Prints their top-1 with 95 % intervals, the paired test of each two (McNemar,
exact), and the settings that differ. The images are paired by name; runs with other data need --dataset.
python -m flax_resnet compare runs/a runs/b runs/c --output compare.png
    Also draws the curves laid over each other, and the intervals.
python -m flax_resnet compare runs/a --model resnet50.a1_in1k --dataset photos/
    Also compares pretrained weights, on a dataset that is named.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from flax_resnet.cli import app
from flax_resnet.cli.text_table import aligned
from flax_resnet.errors import ConfigError, printable

if TYPE_CHECKING:
    from flax_resnet.inference.comparison import Comparison, Contender

FORMATS = ("table", "csv", "json")
LONGEST = 40  # characters of a value of a setting in the table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    return app.run("flax-resnet compare", __doc__, _define, _compare, argv, rest="runs")


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    app.define_common(values)
    for name, help in (
        ("runs", "run folders"),
        ("model", "pretrained weights of timm to compare, such as resnet50.a1_in1k"),
    ):
        flags.DEFINE_multi_string(name, [], help, flag_values=values)
    for name, default, help in (
        ("checkpoint", "last", "checkpoint of each run: last, best, or a step"),
        (
            "dataset",
            "",
            "images to compare on (default: those of the runs, which must be the same)",
        ),
        ("split", "", "split of the images (default: the runs' evaluation split)"),
        ("weights", "", "with --model: folder with a weights file NAME.safetensors for each"),
        ("output", "", "picture to write: .png, .pdf or .svg (needs matplotlib)"),
    ):
        flags.DEFINE_string(name, default, help, flag_values=values)
    flags.DEFINE_enum(
        "format", "table", FORMATS, "format of what is printed; csv has the networks only",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "batch_size", 0, "images per step (default: that of each run, or 64)", 0, 2**20,
        flag_values=values,
    )  # fmt: skip


def _compare(values: flags.FlagValues) -> None:
    runs, models = app.flag(values, "runs"), app.flag(values, "model")
    data = {name: app.flag(values, name) for name in ("dataset", "split", "data_dir")}
    _check(runs, models, data["dataset"])
    if app.flag(values, "weights") and not models:
        raise ConfigError(
            "is an option of --model",
            key="--weights",
            value=app.flag(values, "weights"),
            cure="leave it out",
        )
    output = app.flag(values, "output")
    picture = app.picture(output) if output else None
    app.set_up_jax(app.flag(values, "compilation_cache"), app.flag(values, "device"))
    from flax_resnet.inference.comparison import (
        compare,
        differing_settings,
        open_pretrained,
        open_run,
    )
    from flax_resnet.inference.several_models import select_models

    contenders = [open_run(run, app.flag(values, "checkpoint"), **data) for run in runs]
    files = select_models(models, app.flag(values, "weights"), "--model")
    contenders += [open_pretrained(m, weights=files.file_of(m), **data) for m in files.names]
    size = app.flag(values, "batch_size")
    found = compare(contenders, common=bool(data["dataset"]), batch_size=size)
    trained = [(c.name, c.history.config) for c in contenders if c.history]
    differing = {
        key: dict(zip((name for name, _ in trained), values, strict=True))
        for key, values in differing_settings([config for _, config in trained]).items()
    }
    format = app.flag(values, "format")
    if picture:  # first: the reader of the table may end, such as `| head`
        from flax_resnet.cli.plots import overlaid_runs

        overlaid_runs.draw(contenders, found, picture)
        print(picture, file=sys.stdout if format == "table" else sys.stderr)
    print(_printed(format, found, differing, contenders[0]))


def _check(runs: Sequence[str], models: Sequence[str], dataset: str) -> None:
    """Raise ConfigError if there are fewer than two networks, one is named twice, or images are not named."""
    if len(runs) + len(models) < 2:
        raise app.needed("RUNS", "two or more run folders")
    places = [os.path.realpath(os.path.expanduser(run)) for run in runs]
    for kind, names, same in (("RUNS", runs, places), ("--model", models, models)):
        for number, (name, place) in enumerate(zip(names, same, strict=True)):
            if place in same[:number]:
                raise ConfigError("is named twice", key=kind, value=name, cure="name it once")
    if models and not dataset:
        raise app.needed(
            "--dataset", "the images, because pretrained weights have none of their own"
        )


def _printed(
    format: str, found: "Comparison", differing: dict[str, Any], first: "Contender"
) -> str:
    if format == "json":
        content = {
            "dataset": first.config.data.dataset,
            "split": first.config.data.eval_split,
            "images": found.scores[0].images,
            "networks": [score._asdict() for score in found.scores],
            "pairs": [pair._asdict() for pair in found.pairs],
            "settings": differing,
        }
        return json.dumps(content, indent=2)
    if format == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, found.scores[0]._fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(score._asdict() for score in found.scores)
        return text.getvalue().rstrip("\n")
    data = first.config.data
    title = f"{found.scores[0].images:,} images of {data.dataset}, split {data.eval_split!r}"
    parts = [title, _scores_table(found), _pairs_table(found)]
    if differing:
        head = ["setting", *next(iter(differing.values()))]
        rows = [[key, *map(_short, by_run.values())] for key, by_run in differing.items()]
        parts.append("\n".join(aligned([list(map(printable, head)), *rows], left=len(head))))
    elif sum(score.step is not None for score in found.scores) > 1:
        parts.append("all settings that change the result are the same")
    return "\n\n".join(parts)


def _scores_table(found: "Comparison") -> str:
    from flax_resnet.optim.evaluation_metrics import METRICS

    head = ["network", "top-1", "95 % interval", "parameters", "step", "epochs", "best", "last"]
    rows = [head]
    for score in found.scores:
        best = last = "-"
        if score.monitor and score.best is not None and score.last is not None:
            metric = METRICS[score.monitor]
            best = f"{metric.label} {score.best:{metric.format}} (epoch {score.best_epoch:g})"
            last = f"{score.last:{metric.format}}"
        rows.append([
            printable(score.name), f"{score.top1:.2%}", f"{score.low:.2%} to {score.high:.2%}",
            f"{score.parameters:,}", "-" if score.step is None else f"{score.step:,}",
            "-" if score.epochs is None else f"{score.epochs:g}", best, last,
        ])  # fmt: skip
    return "\n".join(aligned(rows, left=1))


def _pairs_table(found: "Comparison") -> str:
    several = len(found.pairs) > 1
    rows = [
        ["first", "second", "only first right", "only second right", "difference", "p (McNemar)",
         *(["p (Holm)"] if several else [])]
    ]  # fmt: skip
    for pair in found.pairs:
        adjusted = [f"{pair.adjusted_p_value:.3g}"] if several else []
        rows.append([
            printable(pair.first), printable(pair.second), f"{pair.only_first:,}",
            f"{pair.only_second:,}", f"{pair.difference:+.2%}", f"{pair.p_value:.3g}", *adjusted,
        ])  # fmt: skip
    return "\n".join(aligned(rows, left=2))


def _short(value: Any) -> str:
    text = "-" if value is None else printable(str(value) or "''")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


if __name__ == "__main__":
    sys.exit(main())
