"""Evaluates a saved run: python -m flax_resnet.evaluate --workdir /tmp/run

Prints top-1 and loss over every example of the split, and appends them to evaluations.jsonl in the workdir.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from flax_resnet import command
from flax_resnet.errors import ConfigError, DataError, WorkdirError, one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; `argv` without the program's name."""
    return command.run("flax_resnet.evaluate", __doc__, _define, _evaluate, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    command.define_common(values)
    flags.DEFINE_string("workdir", "", "folder of the run", flag_values=values)
    flags.DEFINE_string("checkpoint", "last", "last, best, or a step", flag_values=values)
    flags.DEFINE_string(
        "split", "", "split to evaluate on (default: the run's own)", flag_values=values
    )
    flags.DEFINE_integer(
        "batch_size",
        0,
        "images per step (default: the run's own)",
        lower_bound=0,
        flag_values=values,
    )


def _evaluate(values: flags.FlagValues) -> None:
    if not values["workdir"].value:
        raise ConfigError("--workdir is needed: the folder of the run to evaluate")
    command.set_up_jax(values["compilation_cache"].value)
    record = evaluate_run(
        values["workdir"].value,
        checkpoint=values["checkpoint"].value,
        split=values["split"].value,
        data_dir=values["data_dir"].value,
        batch_size=values["batch_size"].value,
    )
    print(
        f"top-1 {record['top1']:.2%}, loss {record['loss']:.4f} on {record['split']} "
        f"({record['count']} images), checkpoint {record['step']}"
    )


def evaluate_run(
    workdir: str,
    *,
    checkpoint: str = "last",
    split: str = "",
    data_dir: str = "",
    batch_size: int = 0,
) -> dict:
    """Evaluates a checkpoint and appends the record to the run's evaluations.jsonl.

    Args:
      workdir: the run folder.
      checkpoint: "last", "best" or a step.
      split: TFDS split expression or folder split; empty for the run's own.
      data_dir: TFDS data folder; empty for the run's own.
      batch_size: images per step; 0 for the run's own.

    Returns:
      step, split, loss, top1 (0 to 1) and count.

    Raises:
      UserError: no such run, checkpoint or split; classes that are not the run's.
    """
    from flax_resnet.classifier import load_state
    from flax_resnet.data.source import open_source
    from flax_resnet.training import sharding
    from flax_resnet.training.feed import StreamingFeed
    from flax_resnet.training.step import evaluate, make_eval_step

    classifier, state = load_state(workdir, checkpoint)
    config = classifier.config
    if data_dir:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, data_dir=data_dir)
        )
    split = split or config.data.eval_split
    source = open_source(config.data, train=split == config.data.train_split, split=split)
    if source.class_names != classifier.class_names:
        raise DataError(f"split {split!r} has other classes than {workdir} was trained on")
    mesh = sharding.make_mesh()
    batch_size = batch_size or config.train.eval_batch_size or config.train.batch_size
    batch_size = sharding.round_up(mesh, batch_size)
    feed = StreamingFeed(source, config, mesh)
    metrics = evaluate(
        make_eval_step(config, classifier.model, mesh), state, feed.evaluation(batch_size)
    )
    record = {"step": classifier.step, "split": split, **metrics}
    try:
        with (pathlib.Path(workdir).expanduser() / "evaluations.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise WorkdirError(f"workdir {workdir} cannot be written: {one_line(error)}") from error
    return record


if __name__ == "__main__":
    sys.exit(main())
