"""Evaluation of a split, by a saved run or by weights made elsewhere."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from flax_resnet.data.sources.named import DatasetChoice, data_section, kind_of
from flax_resnet.errors import DataError

MOST_CLASSES = 4096  # a matrix of more would take 64 MiB and above


class Evaluation(NamedTuple):
    """An evaluation.

    Attributes:
      record: what was evaluated; the METRICS of optim/metrics.py, also with ema_ before; count.
      confusion: [K, K], how often the class of the row was taken for that of the column, by the averaged weights
        where there are such; None for thousands of classes.
      class_names: of the K classes.
    """

    record: dict[str, Any]
    confusion: np.ndarray | None
    class_names: tuple[str, ...]


def evaluate_run(
    workdir: str,
    *,
    checkpoint: str = "last",
    split: str = "",
    data_dir: str = "",
    batch_size: int = 0,
    image_size: int = 0,
) -> Evaluation:
    """Evaluates a checkpoint and appends the record to the run's evaluations.jsonl.

    Args:
      workdir: the run folder.
      checkpoint: "last", "best" or a step.
      split: TFDS split expression or folder split; empty for the run's own.
      data_dir: TFDS data folder; empty for the run's own.
      batch_size: images per step; 0 for the run's own.
      image_size: side in pixels; 0 for the run's own.

    Raises:
      UserError: no such run, checkpoint or split; classes that are not the run's.
    """
    from flax_resnet.data.sources.open import open_source
    from flax_resnet.optim.metrics import EMA
    from flax_resnet.training.runs.folder import EVALUATIONS, RunFolder
    from flax_resnet.training.runs.load import load_run

    run = load_run(workdir, checkpoint)
    config = run.config
    data = dataclasses.replace(
        config.data,
        data_dir=data_dir or config.data.data_dir,
        eval_size=image_size or config.data.eval_size,
    )
    config = dataclasses.replace(config, data=data)
    split = split or config.data.eval_split
    source = open_source(config.data, train=split == config.data.train_split, split=split)
    _check_classes(source.class_names, run.class_names, f"split {split!r}")
    batch_size = batch_size or config.train.eval_batch_size or config.train.batch_size
    variables = {"": run.variables} | ({EMA: run.ema} if run.ema else {})
    metrics, counts = _measure(run.model, config, source, variables, batch_size)
    record = {"step": run.step, "split": split, **metrics}
    RunFolder.at(workdir).append_record(EVALUATIONS, record)
    return Evaluation(record, counts, _named(run.class_names, run.model.num_classes))


def evaluate_model(
    name: str,
    *,
    dataset: str,
    weights: str = "",
    split: str = "",
    data_dir: str = "",
    image_size: int = 0,
    batch_size: int = 0,
) -> Evaluation:
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

    Raises:
      UserError: no such network, weights, dataset or split; another number of classes.
    """
    kind_of(dataset)  # a wrong path costs no download
    from flax_resnet.data.sources.open import open_source
    from flax_resnet.inference.classifier import load_pretrained

    classifier = load_pretrained(name, weights=weights)
    choice = DatasetChoice(dataset, split=split, data_dir=data_dir, image_size=image_size)
    data = data_section(classifier.config.data, choice)
    # Nothing of a folder without splits was ever trained on: all of it counts.
    data = dataclasses.replace(data, eval_fraction=1.0)
    config = dataclasses.replace(classifier.config, data=data)
    opened = open_source(data, train=False)
    _check_classes(opened.class_names, classifier.class_names, dataset)
    variables = {"": classifier.variables}
    metrics, counts = _measure(classifier.model, config, opened, variables, batch_size or 64)
    record = {"model": name, "split": data.eval_split, **metrics}
    return Evaluation(record, counts, _named(classifier.class_names, classifier.model.num_classes))


def _named(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Returns a name for each of `count` logits, of which a run may have more than its data have classes."""
    return names + tuple(f"class {number}" for number in range(len(names), count))


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


def _labelled(batches: Iterable[Any], split: str) -> Iterator[Any]:
    """Yields batches. Raises DataError at an image without a label, which TFDS says by -1."""
    for batch in batches:
        if min(int(part.data.min()) for part in batch["label"].addressable_shards) < 0:
            raise DataError(f"split {split!r} has images without a label")
        yield batch


def _measure(
    model: Any, config: Any, source: Any, variables: dict[str, Any], batch_size: int
) -> tuple[dict[str, float], np.ndarray | None]:
    """Returns the metrics, and the confusion matrix unless it would be very large."""
    from flax_resnet.optim.metrics import EMA, record
    from flax_resnet.training import sharding
    from flax_resnet.training.input.feeds import every_example
    from flax_resnet.training.step.eval_step import make_eval_step, total

    mesh = sharding.make_mesh()
    batches = every_example(source, config, mesh, batch_size=batch_size)
    batches = _labelled(batches, config.data.eval_split)
    drawn = model.num_classes <= MOST_CLASSES
    step = make_eval_step(config, model, mesh, confusion=drawn)
    sums = total(step, variables, {}, batches)
    return record(sums), sums.get(EMA, sums[""]).get("confusion")
