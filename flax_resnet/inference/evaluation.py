"""Evaluation of a run, or of pretrained weights, on a split."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from flax_resnet.data.named import DatasetChoice, data_section, source_of
from flax_resnet.errors import DataError
from flax_resnet.settings import UNSET

MOST_CLASSES = 4096  # the confusion matrix takes 64 MiB for this number of classes


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
      record: step or model, split, count, and the METRICS; those of the moving average are named ema_NAME.
      confusion: [K, K], number of examples by (label, prediction), of the moving average if there is one; None for
        more than MOST_CLASSES classes.
      class_names: names of the K classes.
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
    """Evaluate a checkpoint, and append the record to the run's evaluations.jsonl.

    Args:
      workdir: the run folder.
      checkpoint: "last", "best" or a step.
      split: TFDS split expression or folder split; empty for the run's evaluation split.
      data_dir: TFDS data folder; empty for that of the run.
      batch_size: images per step; 0 for that of the run.
      image_size: image size in pixels; 0 for that of the run.

    Raises:
      UserError: there is no such run, checkpoint or split, or the split has other classes than the run.
    """
    from flax_resnet.data.open import open_source
    from flax_resnet.optim.evaluation_metrics import EMA
    from flax_resnet.training.runs.folder import EVALUATIONS, RunFolder
    from flax_resnet.training.runs.load import load_run

    run = load_run(workdir, checkpoint)
    config = run.config
    data = config.data.but(eval_size=image_size or config.data.eval_size)
    data = data.but(data_dir=data_dir) if data_dir else data
    config = dataclasses.replace(config, data=data)
    split = split or config.data.eval_split
    source = open_source(config.data, train=split == config.data.train_split, split=split)
    check_classes(source.class_names, run.class_names, split, key="--split")
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
    """Evaluate a network with pretrained weights, using their preprocessing.

    Args:
      name: a network, or timm's weights for one.
      dataset: a TFDS dataset, a folder of images, or a CSV file of path, label and optionally split. Its classes
        must be in the order of the logits.
      weights: a weights file; empty for timm's weights on the Hugging Face hub.
      split: TFDS split expression or folder split; empty for validation, or for test if there is no validation. A
        folder without train/ has no splits: all its images are used.
      data_dir: TFDS data folder; empty for that of TFDS.
      image_size: image size in pixels; 0 for that of the weights.
      batch_size: images per step; 0 for 64.

    Raises:
      UserError: there is no such network, weights, dataset or split, or the number of classes differs.
    """
    source_of(dataset)  # raises for a wrong path before any download
    from flax_resnet.data.open import open_source
    from flax_resnet.inference.classifier import load_pretrained

    classifier = load_pretrained(name, weights=weights)
    choice = DatasetChoice(dataset, split=split, data_dir=data_dir, image_size=image_size)
    data = data_section(classifier.config.data, choice)
    # The weights were not trained on this data, so evaluate all images of a folder without splits.
    if data.eval_fraction is not UNSET:
        data = data.but(eval_fraction=1.0)
    config = dataclasses.replace(classifier.config, data=data)
    source = open_source(data, train=False)
    check_classes(source.class_names, classifier.class_names, dataset, key="--dataset")
    variables = {"": classifier.variables}
    metrics, counts = _measure(classifier.model, config, source, variables, batch_size or 64)
    record = {"model": name, "split": data.eval_split, **metrics}
    return Evaluation(record, counts, _named(classifier.class_names, classifier.model.num_classes))


def _named(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Return a name for each of `count` logits; a run may have more logits than class names."""
    return names + tuple(f"class {number}" for number in range(len(names), count))


def check_classes(
    found: tuple[str, ...], own: tuple[str, ...], where: str, *, key: str = "--dataset"
) -> None:
    """Raise DataError if the classes of the data or their order do not match the logits.

    Weights whose classes are named by the words of ImageNet or by numbers match any data with the same number of
    classes, except ImageNet's classes in another order.

    Args:
      found: names of the dataset's classes.
      own: names of the classes of the weights.
      where: the dataset or the split, for the message.
      key: the flag that selects the data, for the message.
    """
    from flax_resnet.weights import imagenet_classes

    wnids, words = imagenet_classes()
    if found == own or (own == words and found == wnids):
        return
    if len(found) != len(own):
        raise DataError(
            f"has {len(found)} classes",
            key=key,
            value=where,
            allowed=f"data with the {len(own)} classes of the weights",
        )
    if set(found) == set(wnids):
        raise DataError(
            "has the ImageNet classes in another order",
            key=key,
            value=where,
            allowed="data with the classes in the order of the weights",
        )
    # Logits named by ImageNet words or by numbers have no class names to compare.
    if own not in (words, tuple(map(str, range(len(own))))):
        odd = next(pair for pair in zip(found, own, strict=True) if pair[0] != pair[1])
        raise DataError(
            f"has the class {odd[0]!r} where the weights have {odd[1]!r}", key=key, value=where
        )


def _labelled(batches: Iterable[Any], split: str) -> Iterator[Any]:
    """Yield the batches. Raises DataError for an image without a label, which TFDS marks by -1."""
    for batch in batches:
        if min(int(part.data.min()) for part in batch["label"].addressable_shards) < 0:
            raise DataError("has images without a label", key="--split", value=split)
        yield batch


def _measure(
    model: Any, config: Any, source: Any, variables: dict[str, Any], batch_size: int
) -> tuple[dict[str, float], np.ndarray | None]:
    """Return the metrics and the confusion matrix; no matrix (None) above MOST_CLASSES classes."""
    from flax_resnet.optim.evaluation_metrics import CONFUSION, EMA, record
    from flax_resnet.training import sharding
    from flax_resnet.training.input.feeds import every_example
    from flax_resnet.training.step.eval_step import make_eval_step, total

    mesh = sharding.make_mesh()
    batches = every_example(source, config, mesh, batch_size=batch_size)
    batches = _labelled(batches, config.data.eval_split)
    extra = CONFUSION if model.num_classes <= MOST_CLASSES else {}
    step = make_eval_step(config, model, mesh, extra=extra)
    sums = total(step, variables, {}, batches)
    return record(sums), sums.get(EMA, sums[""]).get("confusion")
