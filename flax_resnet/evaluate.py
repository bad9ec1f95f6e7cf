"""Evaluates a saved run, or a network with weights made elsewhere.

python -m flax_resnet.evaluate --workdir /tmp/run
    top-1, top-5 and loss over every example of the run's split; appended to evaluations.jsonl in the workdir.
python -m flax_resnet.evaluate --model resnet50.a1_in1k --dataset imagenet2012
    timm's weights, or a file of weights (--weights), on a TFDS dataset or a folder of images.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from flax_resnet import command, subject
from flax_resnet.errors import DataError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; `argv` without the program's name."""
    return command.run("flax_resnet.evaluate", __doc__, _define, _evaluate, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    command.define_common(values)
    subject.define(values)
    for name, help in (
        ("dataset", "with --model: a TFDS dataset, a folder of images, or a CSV file"),
        ("split", "split to evaluate on (default: the run's own; or validation, or test)"),
    ):
        flags.DEFINE_string(name, "", help, flag_values=values)
    flags.DEFINE_integer(
        "image_size",
        0,
        "with --model: side in pixels (default: that of the weights)",
        lower_bound=0,
        flag_values=values,
    )


def _evaluate(values: flags.FlagValues) -> None:
    model_only = ("weights", "dataset", "image_size")
    subject.check(values, purpose="evaluate", model_only=model_only)
    given = {name: values[name].value for name in ("workdir", "model")}
    own = model_only if given["model"] else ("checkpoint",)
    options = {name: values[name].value for name in ("split", "data_dir", "batch_size", *own)}
    command.set_up_jax(values["compilation_cache"].value)
    run = evaluate_model if given["model"] else evaluate_run
    record = run(given["model"] or given["workdir"], **options)
    what = f"checkpoint {record['step']}" if "step" in record else record["model"]
    prefixes = {"": "", "average_": "averaged weights: "}
    scores = "; ".join(
        f"{words}top-1 {record[p + 'top1']:.2%}, top-5 {record[p + 'top5']:.2%}, loss {record[p + 'loss']:.4f}"
        for p, words in prefixes.items()
        if p + "top1" in record
    )
    print(f"{scores} on {record['split']} ({record['count']} images), {what}")


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
      step, split, loss, top1 and top5 (0 to 1), and count.

    Raises:
      UserError: no such run, checkpoint or split; classes that are not the run's.
    """
    from flax_resnet.classifier import load_state
    from flax_resnet.data.source import open_source
    from flax_resnet.training.workdir import EVALUATIONS, append_record

    classifier, state = load_state(workdir, checkpoint)
    config = classifier.config
    if data_dir:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, data_dir=data_dir)
        )
    split = split or config.data.eval_split
    source = open_source(config.data, train=split == config.data.train_split, split=split)
    _check_classes(source.class_names, classifier.class_names, f"split {split!r}")
    batch_size = batch_size or config.train.eval_batch_size or config.train.batch_size
    metrics = _measure(classifier.model, config, source, state, batch_size)
    record = {"step": classifier.step, "split": split, **metrics}
    append_record(pathlib.Path(workdir).expanduser(), EVALUATIONS, record)
    return record


def evaluate_model(
    name: str,
    *,
    dataset: str,
    weights: str = "",
    split: str = "",
    data_dir: str = "",
    image_size: int = 0,
    batch_size: int = 0,
) -> dict:
    """Evaluates a network with weights made elsewhere, under the preprocessing that belongs to them.

    Args:
      name: a network, or timm's weights for one.
      dataset: a TFDS dataset, a folder of images, or a CSV file of path and label (and split, where it says
        so itself); its classes in the order of the logits.
      weights: file of weights; empty for timm's on the Hugging Face hub.
      split: TFDS split expression or folder split; empty for validation, or test where there is none. A
        folder without train/ has none, and is read whole.
      data_dir: TFDS data folder; empty for TFDS's own.
      image_size: side in pixels; 0 for that of the weights.
      batch_size: images per step; 0 for 64.

    Returns:
      model, split, loss, top1 and top5 (0 to 1), and count.

    Raises:
      UserError: no such network, weights, dataset or split; another number of classes.
    """
    subject.kind_of(dataset)  # a wrong path costs no download
    import jax.numpy as jnp

    from flax_resnet.classifier import load_pretrained
    from flax_resnet.data.source import open_source
    from flax_resnet.training.state import TrainState

    classifier = load_pretrained(name, weights=weights)
    data = subject.data_section(
        classifier.config.data, dataset, split=split, data_dir=data_dir, image_size=image_size
    )
    # Nothing of a folder without splits was ever trained on: all of it counts.
    data = dataclasses.replace(data, holdout=1.0)
    config = dataclasses.replace(classifier.config, data=data)
    opened = open_source(data, train=False)
    _check_classes(opened.class_names, classifier.class_names, dataset)
    variables = classifier.variables
    state = TrainState(jnp.int32(0), **variables, opt_state=(), average={})
    metrics = _measure(classifier.model, config, opened, state, batch_size or 64)
    return {"model": name, "split": data.eval_split, **metrics}


def _check_classes(found: tuple[str, ...], own: tuple[str, ...], where: str) -> None:
    """Raises DataError where data has other classes, or in another order, than the logits."""
    from flax_resnet.weights import imagenet_classes

    wnids, words = imagenet_classes()
    if found == own or (own == words and found == wnids):
        return
    if len(found) != len(own):
        raise DataError(f"{where} has {len(found)} classes, the weights {len(own)}")
    if set(found) == set(wnids):
        raise DataError(f"{where}: its ImageNet classes are in another order than the weights'")
    if own not in (words, tuple(map(str, range(len(own))))):  # these name no classes of their own
        odd = next(pair for pair in zip(found, own, strict=True) if pair[0] != pair[1])
        raise DataError(f"{where} has the class {odd[0]!r} where the weights have {odd[1]!r}")


def _measure(model: Any, config: Any, source: Any, state: Any, batch_size: int) -> dict[str, float]:
    from flax_resnet.training import sharding
    from flax_resnet.training.feed import every_example
    from flax_resnet.training.step import evaluate, make_eval_step

    mesh = sharding.make_mesh()
    batches = every_example(source, config, mesh, batch_size=batch_size)
    return evaluate(make_eval_step(config, model, mesh), state, {}, batches)


if __name__ == "__main__":
    sys.exit(main())
