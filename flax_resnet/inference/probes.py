"""Probes: how well the features of a trained network classify other images, without training it."""

import dataclasses
from typing import Any

from flax_resnet.data.sources.named import DatasetChoice, data_section, kind_of
from flax_resnet.errors import DataError
from flax_resnet.inference.classifier import NetworkChoice


def probe(
    network: NetworkChoice,
    images: DatasetChoice,
    *,
    k: int = 20,
    temperature: float = 0.07,
    limit: int = 0,
    batch_size: int = 0,
) -> dict:
    """Probe a run, and append the record to its probes.jsonl; or a network with weights made elsewhere.

    Args:
      network: the run, or the network. Of a run that keeps a moving average, that is probed.
      images: of any classes; by default the run's own. Files that come without splits are split as the data section
        says: a fixed fifth is kept for evaluation.
      k: neighbours that vote.
      temperature: of the vote.
      limit: most training images, a random subset; 0 for all.
      batch_size: images per step; 0 for the run's own, or 64.

    Returns:
      What `measure` returns, with step or model, dataset, train_split and split.

    Raises:
      UserError: no such run, network, weights, dataset or split; or as `measure`.
    """
    if not network.workdir:
        kind_of(images.dataset)  # a wrong path costs no download
    from flax_resnet.data.sources.open import open_source
    from flax_resnet.training.runs.folder import PROBES, RunFolder

    workdir, classifier = network.workdir, network.load()
    config = classifier.config
    data = data_section(config.data, images)
    train, test = (open_source(data, train=side) for side in (True, False))
    if shared := train.shared(test):
        raise DataError(
            f"--train_split={data.train_split}, --split={data.eval_split}: have images in common ({shared:,}), "
            "which would find themselves; allowed: splits that have none, such as train[:80%] and train[80%:]"
        )
    own = config.train.eval_batch_size or config.train.batch_size if workdir else 64
    classifier = dataclasses.replace(classifier, config=dataclasses.replace(config, data=data))
    found = measure(
        classifier,
        train,
        test,
        k=k,
        temperature=temperature,
        limit=limit,
        batch_size=batch_size or own,
    )
    record: dict[str, Any] = {"step": classifier.step} if workdir else {"model": network.model}
    record |= {"dataset": data.name if data.source == "tfds" else data.path}
    record |= {"train_split": data.train_split, "split": data.eval_split, **found}
    if workdir:
        RunFolder.at(workdir).append_record(PROBES, record)
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
    """Classifies one set of images by the features of another.

    Args:
      classifier: a `Classifier`; its configuration says how images are cut and normalised.
      train: the `Source` to learn from.
      test: the `Source` to be judged on, of the same classes.
      k: neighbours that vote.
      temperature: of the vote, above 0.
      limit: most training images, a random subset; 0 for all.
      batch_size: images per step.

    Returns:
      knn_top1 and linear_top1 (0 to 1), linear_c (of the linear classifier's regularisation, chosen on a held-out
      fifth of the training images), k, temperature, train_count and count (images).

    Raises:
      ConfigError: `k` is not between 1 and the number of training images, or `temperature` not above 0.
      DataError: the classes differ, or the training images are of one class only; or as `compute_features`.
    """
    from flax_resnet.inference.feature_classifiers import (
        check_neighbours,
        knn_predict,
        linear_predict,
    )
    from flax_resnet.inference.features import compute_features

    check_neighbours(k, temperature, min(limit or len(train), len(train)))
    if train.class_names != test.class_names:
        raise DataError("the classes of the split learnt from and of the one judged on differ")
    if len(train.class_names) < 2:
        raise DataError(f"the only class is {train.class_names[0]!r}: two are needed")
    known, judged = (
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
    neighbours = knn_predict(judged.vectors, *known, k=k, temperature=temperature)
    linear, c = linear_predict(judged.vectors, *known)
    return {
        "knn_top1": float((neighbours == judged.labels).mean()),
        "linear_top1": float((linear == judged.labels).mean()),
        "linear_c": c,
        "k": k,
        "temperature": temperature,
        "train_count": len(known.labels),
        "count": len(judged.labels),
    }
