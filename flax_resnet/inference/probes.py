"""Probes: the accuracy of simple classifiers on the frozen features of a network."""

import dataclasses
from typing import Any

from flax_resnet.data.class_order import same_classes
from flax_resnet.data.named import DatasetChoice, data_section, source_of
from flax_resnet.errors import DataError
from flax_resnet.inference.network_choice import NetworkChoice


def probe(
    network: NetworkChoice,
    images: DatasetChoice,
    *,
    k: int = 20,
    temperature: float = 0.07,
    limit: int = 0,
    batch_size: int = 0,
) -> dict:
    """Probe a run, or a network with pretrained weights.

    Args:
      network: the run, or the network. If the run keeps a moving average, the moving average is probed.
      images: the dataset, with any classes; by default that of the run. In a folder or file without splits, the
        share `data.eval_fraction` of the network's configuration is held out for evaluation.
      k: number of neighbours that vote.
      temperature: temperature of the vote.
      limit: largest number of training images, a random subset; 0 for all.
      batch_size: images per step; 0 for that of the run, or 64.

    Returns:
      The record of `measure`, with step or model, dataset, train_split and split.

    Raises:
      UserError: there is no such run, network, weights, dataset or split; or `measure` raises it.
    """
    if not network.workdir:
        source_of(images.dataset)  # raises for a wrong path before any download
    from flax_resnet.data.open import open_source

    workdir, classifier = network.workdir, network.load()
    config = classifier.config
    data = data_section(config.data, images)
    train, test = (open_source(data, train=side) for side in (True, False))
    if shared := train.shared(test):
        raise DataError(
            f"has {shared:,} images in common with --split={data.eval_split}, which would be their own neighbours",
            key="--train_split",
            value=data.train_split,
            cure="choose disjoint splits, such as train[:80%] and train[80%:]",
        )
    own = config.train.eval_batch_size or config.train.batch_size if workdir else 64
    classifier = dataclasses.replace(classifier, config=dataclasses.replace(config, data=data))
    measured = measure(
        classifier,
        train,
        test,
        k=k,
        temperature=temperature,
        limit=limit,
        batch_size=batch_size or own,
    )
    record: dict[str, Any] = {"step": classifier.step} if workdir else {"model": network.model}
    record |= {"dataset": data.dataset}
    record |= {"train_split": data.train_split, "split": data.eval_split, **measured}
    return record


def measure(
    classifier: Any,
    train: Any,
    test: Any,
    *,
    k: int = 20,
    temperature: float = 0.07,
    limit: int = 0,
    batch_size: int = 64,
) -> dict:
    """Fit both probes to the features of one split, and measure their accuracy on another.

    Args:
      classifier: a `Classifier`; its configuration determines the crop and normalisation of images.
      train: the `Source` to fit the probes on.
      test: the `Source` to evaluate on, with the same classes.
      k: number of neighbours that vote.
      temperature: temperature of the vote, above 0.
      limit: largest number of training images, a random subset; 0 for all.
      batch_size: images per step.

    Returns:
      knn_top1 and linear_top1 (0 to 1), linear_c (C of the linear classifier, chosen on a held-out fifth of the
      training images), k, temperature, train_count and count (numbers of images).

    Raises:
      ConfigError: `k` is not between 1 and the number of training images, or `temperature` is not above 0.
      DataError: the classes differ, or all training images have the same class; or `compute_features` raises it.
    """
    from flax_resnet.inference.feature_classifiers import (
        check_neighbours,
        knn_predict,
        linear_predict,
    )
    from flax_resnet.inference.features import compute_features

    check_neighbours(k, temperature, min(limit or len(train), len(train)))
    if not same_classes(train.class_names, test.class_names):
        raise DataError(
            "has other classes than the training images",
            key="test",
            allowed="a split with the same classes",
        )
    if len(train.class_names) < 2:
        raise DataError(
            f"the only class is {train.class_names[0]!r}",
            key="train",
            allowed="a split of at least 2 classes",
        )
    known, tested = (
        compute_features(
            classifier.model,
            classifier.variables,
            classifier.config,
            source,
            batch_size=batch_size,
            limit=most,
            description=f"features of {name}",
        )
        for source, most, name in (
            (train, limit, classifier.config.data.train_split),
            (test, 0, classifier.config.data.eval_split),
        )
    )
    neighbours = knn_predict(tested.vectors, *known, k=k, temperature=temperature)
    linear, c = linear_predict(tested.vectors, *known)
    return {
        "knn_top1": float((neighbours == tested.labels).mean()),
        "linear_top1": float((linear == tested.labels).mean()),
        "linear_c": c,
        "k": k,
        "temperature": temperature,
        "train_count": len(known.labels),
        "count": len(tested.labels),
    }
