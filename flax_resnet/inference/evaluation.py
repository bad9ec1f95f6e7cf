"""Evaluation of a run, or of pretrained weights, on a split."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flax_resnet.data.data_section import Data
from flax_resnet.data.named import DatasetChoice, data_section, naming_flags, source_of
from flax_resnet.data.records import Relabelled, Source
from flax_resnet.errors import DataError
from flax_resnet.settings import UNSET

if TYPE_CHECKING:
    from flax_resnet.inference.classifier import Classifier

log = logging.getLogger("flax_resnet")

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
    dataset: str = "",
    split: str = "",
    data_dir: str = "",
    batch_size: int = 0,
    image_size: int = 0,
    real_labels: str = "",
) -> Evaluation:
    """Evaluate a checkpoint of a run.

    Args:
      workdir: the run folder.
      checkpoint: "last", "best" or a step.
      dataset: other images, or the run's images in another place; see `run_data`. Empty for those of the run.
      split: TFDS split expression or folder split; empty for the run's evaluation split.
      data_dir: TFDS data folder; empty for that of the run.
      batch_size: images per step; 0 for that of the run.
      image_size: image size in pixels; 0 for that of the run.
      real_labels: a file of ImageNet-ReaL's labels, for `real_accuracy`; empty for none.

    Raises:
      UserError: there is no such run, checkpoint or split, or the run lacks a class of the split.
    """
    from flax_resnet.data.open import open_source
    from flax_resnet.inference.real_accuracy import real_accuracy, real_labels_of
    from flax_resnet.inference.run_data import run_data
    from flax_resnet.optim.evaluation_metrics import EMA
    from flax_resnet.training.processes.exchange import in_turns
    from flax_resnet.training.runs.load import load_run

    run = load_run(workdir, checkpoint)
    with naming_flags(dataset, split):
        data = run_data(run, dataset, split=split, data_dir=data_dir)
        data = data.but(eval_size=image_size or data.eval_size)
        split = data.eval_split
        opened = in_turns(lambda: open_source(data, train=split == data.train_split, split=split))
    config = dataclasses.replace(run.config, data=data)
    where, key = (dataset, "--dataset") if dataset else (split, "--split")
    source = with_weights_labels(opened, run.class_names, where, key=key)
    batch_size = batch_size or config.train.eval_batch_size or config.train.batch_size
    variables = {"": run.variables} | ({EMA: run.ema} if run.ema else {})
    real = real_labels_of(opened, run.class_names, real_labels)
    found = measure(run.model, config, source, variables, batch_size, by_image=real is not None)
    metrics, counts = found.metrics | real_accuracy(found.predictions, real), found.confusion
    other = {"dataset": data.dataset} if dataset else {}
    record = {"step": run.step, **other, "split": split, **metrics}
    return Evaluation(record, counts, all_class_names(run.class_names, run.model.num_classes))


def evaluate_model(
    name: str,
    *,
    dataset: str,
    weights: str = "",
    split: str = "",
    data_dir: str = "",
    image_size: int = 0,
    batch_size: int = 0,
    real_labels: str = "",
) -> Evaluation:
    """Evaluate a network with pretrained weights, using their preprocessing.

    Args:
      name: a network, or timm's weights for one.
      dataset: a TFDS dataset, a folder of images, or a CSV file of path, label and optionally split; or
        SOURCE:DATASET, as for `DatasetChoice`. Its classes are matched by name with those of the weights.
      weights: a weights file; empty for timm's weights on the Hugging Face hub.
      split: TFDS split expression or folder split; empty for validation, or for test if there is no validation. A
        folder without train/ has no splits: all its images are used.
      data_dir: TFDS data folder; empty for that of TFDS.
      image_size: image size in pixels; 0 for that of the weights.
      batch_size: images per step; 0 for 64.
      real_labels: a file of ImageNet-ReaL's labels, for `real_accuracy`; empty for none.

    Raises:
      UserError: there is no such network, weights, dataset or split, or the weights lack a class of the dataset.
    """
    from flax_resnet.inference.classifier import load_pretrained
    from flax_resnet.training.processes.exchange import in_turns

    choice = DatasetChoice(dataset, split=split, data_dir=data_dir, image_size=image_size)
    in_turns(lambda: open_other(Data(), choice))  # raises for wrong data before any download
    classifier = in_turns(lambda: load_pretrained(name, weights=weights))
    return evaluate_classifier(
        classifier, name, choice, batch_size=batch_size, real_labels=real_labels
    )


def evaluate_classifier(
    classifier: "Classifier",
    name: str,
    choice: DatasetChoice,
    *,
    batch_size: int = 0,
    real_labels: str = "",
) -> Evaluation:
    """Evaluate pretrained weights that are loaded; `name` is for the record, the rest as for `evaluate_model`."""
    from flax_resnet.inference.real_accuracy import real_accuracy, real_labels_of

    data, opened = open_other(classifier.config.data, choice)
    config = dataclasses.replace(classifier.config, data=data)
    names = _printed_names(opened.class_names, classifier.class_names)
    source = with_weights_labels(opened, classifier.class_names, choice.dataset)
    real = real_labels_of(opened, classifier.class_names, real_labels)
    model, variables, by_image = classifier.model, {"": classifier.variables}, real is not None
    found = measure(model, config, source, variables, batch_size or 64, by_image=by_image)
    metrics, counts = found.metrics | real_accuracy(found.predictions, real), found.confusion
    record = {"model": name, "split": data.eval_split, **metrics}
    return Evaluation(record, counts, all_class_names(names, classifier.model.num_classes))


def open_other(preprocessing: Data, choice: DatasetChoice) -> tuple[Data, Source]:
    """Open data that the weights were not trained on: all images of a folder without splits.

    Args:
      preprocessing: the data section of the weights.
      choice: the data, as flags name them.

    Raises:
      UserError: there is no such dataset or split; the error names the flag.
    """
    from flax_resnet.data.open import open_source

    source_of(choice.dataset)  # raises if none is named
    with naming_flags(choice.dataset, choice.split):
        data = data_section(preprocessing, choice)
        if data.eval_fraction is not UNSET:
            data = data.but(eval_fraction=1.0)
        return data, open_source(data, train=False)


def _printed_names(data: tuple[str, ...], weights: tuple[str, ...]) -> tuple[str, ...]:
    """Return the class names to print: those of the weights, or those of the data if the weights have none."""
    from flax_resnet.weights import is_numbered

    return data if is_numbered(weights) and len(data) == len(weights) else weights


def all_class_names(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Return a name for each of `count` logits; a run may have more logits than class names."""
    return names + tuple(f"class {number}" for number in range(len(names), count))


def with_weights_labels(
    source: Source, own: Sequence[str], where: str, *, key: str = "--dataset"
) -> Source:
    """Return the data with the labels that their classes have in the weights.

    Args:
      source: the data.
      own: names of the classes of the weights.
      where: the dataset or the split, for the message.
      key: the flag that selects the data, for the message.

    Raises:
      DataError: the weights lack a class of the data, or the numbers of classes without names differ.
    """
    from flax_resnet.weights import match_classes

    match = match_classes(source.class_names, own, subset=True)
    if match.problem:
        raise DataError(
            match.problem, key=key, value=where, allowed="data with the classes of the weights"
        )
    if match.note:
        log.info("%s=%s: %s", key, where, match.note)
    if match.changes_order:
        log.info("%s=%s: classes are matched by name with those of the weights", key, where)
        return Relabelled(source, own, match.order)
    return source


class Measured(NamedTuple):
    """What one pass over a split gives; that of the moving average if there is one, but for the metrics.

    Attributes:
      metrics: the METRICS and `count`; those of the moving average are named ema_NAME.
      confusion: [K, K], number of examples by (label, prediction); None for more than MOST_CLASSES classes.
      predictions: int32 [n], the predicted class of each example, -1 for an unreadable one; None if not asked for.
    """

    metrics: dict[str, float]
    confusion: np.ndarray | None
    predictions: np.ndarray | None


def measure(
    model: Any,
    config: Any,
    source: Source,
    variables: dict[str, Any],
    batch_size: int,
    *,
    by_image: bool = False,
) -> Measured:
    """Evaluate a network on all examples of a split, in one pass.

    Args:
      model: the network.
      config: its configuration, with the preprocessing.
      source: the examples.
      variables: {"": of the weights}, with "ema_": of the moving average if there is one.
      batch_size: images per step; rounded up to a multiple of the number of devices.
      by_image: also return the prediction of each example.

    Raises:
      DataError: an example has no label, or too many images are unreadable.
    """
    import jax

    from flax_resnet.optim.evaluation_metrics import (
        CONFUSION,
        EMA,
        PREDICTIONS,
        predictions_by_example,
        record,
    )
    from flax_resnet.training import sharding
    from flax_resnet.training.input.feeds import every_example
    from flax_resnet.training.matmul_precision import matmul_precision
    from flax_resnet.training.step.eval_step import make_eval_step, total

    mesh = sharding.make_mesh()
    if jax.process_count() > 1:
        variables = sharding.replicate(jax.device_get(variables), mesh)
    batches = every_example(source, config, mesh, batch_size=batch_size)
    extra = {
        **(CONFUSION if model.num_classes <= MOST_CLASSES else {}),
        **(predictions_by_example(len(source)) if by_image else {}),
    }
    step = make_eval_step(config, model, mesh, extra=extra)
    with matmul_precision(config):
        sums = total(step, variables, {}, batches)
    last = sums.get(EMA, sums[""])
    predictions = np.asarray(last[PREDICTIONS]) - 1 if by_image else None
    return Measured(record(sums), last.get("confusion"), predictions)
