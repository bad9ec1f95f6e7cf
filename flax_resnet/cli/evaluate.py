"""Evaluate a saved run, or a network with pretrained weights.

python -m flax_resnet evaluate --workdir /tmp/run
    Prints the metrics and the weakest classes on the run's evaluation split, and appends the metrics to
    evaluations.jsonl in the workdir. --confusion=FILE.csv or .png also writes the confusion matrix. --dataset=PATH
    evaluates other images, or finds the run's images where they are now.
python -m flax_resnet evaluate --model resnet50.a1_in1k --dataset imagenet2012
    Evaluates timm's weights, or a weights file (--weights), on a TFDS dataset or a folder of images.
python -m flax_resnet evaluate --model 'resnet50*' --dataset imagenet2012 --output models.csv --append
    Evaluates several networks into one table: those that match a pattern, or those of a file of names (--models);
    with --weights=FOLDER, its files NAME.safetensors.
    A network that cannot be evaluated is named, and the others go on. --append skips the networks that have a row.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from flax_resnet.cli import app, model_table, network_flags, process_flags
from flax_resnet.cli.plots import confusion
from flax_resnet.errors import ConfigError
from flax_resnet.settings import LARGEST_IMAGE

if TYPE_CHECKING:
    from flax_resnet.inference.evaluation import Evaluation


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    return app.run("flax-resnet evaluate", __doc__, _define, _evaluate, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    app.define_common(values)
    process_flags.define(values)
    network_flags.define(values)
    network_flags.define_batch_size(values)
    for name, help in (
        ("dataset", "a TFDS dataset, a folder of images, or a CSV file (default: that of the run)"),
        (
            "split",
            "split to evaluate (default: the run's evaluation split; with --model validation or test)",
        ),
        (
            "real_labels",
            "ImageNet-ReaL's labels (real.json) of ImageNet's validation images: also prints the top-1 by them",
        ),
        ("models", "instead of --model: a file of names or patterns of networks, one a line"),
        ("output", "with --model or --models: .csv or .jsonl file with a row for each network"),
        ("confusion", "file for the confusion matrix: .csv, or .png (needs matplotlib)"),
    ):
        flags.DEFINE_string(name, "", help, flag_values=values)
    flags.DEFINE_bool(
        "append", False, "skip the networks that have a row in --output", flag_values=values
    )
    flags.DEFINE_integer(
        "image_size",
        0,
        "image size in pixels (default: that of the run or of the weights)",
        lower_bound=0,
        upper_bound=LARGEST_IMAGE,
        flag_values=values,
    )


def _evaluate(values: flags.FlagValues) -> None:
    model_only = ("weights", "output", "append")
    selecting = ("workdir", "model", "models")
    network_flags.check(values, purpose="evaluate", model_only=model_only, sources=selecting)
    if model_table.is_asked_for(values):
        process_flags.check_alone(values, "a table of several networks")
        model_table.evaluate(values)
        return
    sources = {name: app.flag(values, name) for name in ("workdir", "model")}
    file = confusion.checked(app.flag(values, "confusion"))
    own = "weights" if sources["model"] else "checkpoint"
    given = ("dataset", "split", "data_dir", "batch_size", "image_size", "real_labels", own)
    options = {name: app.flag(values, name) for name in given}
    app.set_up_jax(app.flag(values, "compilation_cache"), app.flag(values, "device"), joins=True)
    with process_flags.joined(values) as process:
        from flax_resnet.inference.evaluation import evaluate_model, evaluate_run
        from flax_resnet.training.processes.exchange import check_same
        from flax_resnet.training.runs.metadata import versions

        check_same("the command", {**sources, **options, "versions": versions()})
        run = evaluate_model if sources["model"] else evaluate_run
        evaluation = run(sources["model"] or sources["workdir"], **options)
        if process == 0:
            _show(evaluation, sources["workdir"], file)


def _show(evaluation: "Evaluation", workdir: str, file: pathlib.Path | None) -> None:
    """Print an evaluation, draw its confusion matrix, and append it to the records of its run.

    Args:
      evaluation: the evaluation.
      workdir: the run folder, or "" for pretrained weights.
      file: the file for the confusion matrix, or None.
    """
    from flax_resnet.inference.evaluation import MOST_CLASSES
    from flax_resnet.inference.intervals import proportion_interval
    from flax_resnet.optim.evaluation_metrics import EMA, monitored, shown
    from flax_resnet.training.runs.folder import EVALUATIONS, RunFolder

    record, counts, names = evaluation
    if file and counts is None:
        raise ConfigError(
            f"there are {len(names)} classes, and the matrix has at most {MOST_CLASSES}",
            key="--confusion",
            value=file,
            cure="leave it out",
        )
    what = f"checkpoint {record['step']}" if "step" in record else record["model"]
    where = f"{record['split']} ({record['count']} images), {what}"
    print(f"{shown(record)} on {where}")
    if f"{EMA}top1" in record:
        print(f"moving average: {shown(record, EMA)}")
    if "real_top1" in record:
        count = int(record["real_count"])
        low, high = proportion_interval(round(record["real_top1"] * count), count)
        shown_real = f"{record['real_top1']:.2%} (95 % interval {low:.2%} to {high:.2%})"
        print(f"top-1 by ImageNet-ReaL's labels: {shown_real} on {count} images with labels")
    if counts is not None and (weakest := confusion.weakest(counts, names)):
        print(f"weakest classes: {weakest}")
    if file and counts is not None:
        confusion.write(file, counts, names, f"{monitored(record):.2%} top-1 on {where}")
        print(file)
    sys.stdout.flush()  # print the result also if it cannot be written
    if workdir:
        RunFolder.at(workdir).append_record(EVALUATIONS, record)


if __name__ == "__main__":
    sys.exit(main())
