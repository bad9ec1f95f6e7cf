"""Several networks on the same images: which each gets right, the intervals, and the paired tests."""

import dataclasses
import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flax_resnet.config import Config
from flax_resnet.config.config import flatten, settings
from flax_resnet.data.data_section import Data
from flax_resnet.data.named import DatasetChoice, naming_flags
from flax_resnet.data.open import open_source
from flax_resnet.data.records import Source
from flax_resnet.errors import DataError
from flax_resnet.inference.classifier import load_pretrained
from flax_resnet.inference.evaluation import measure, open_other, with_weights_labels
from flax_resnet.inference.intervals import mcnemar, proportion_interval
from flax_resnet.inference.run_data import run_data
from flax_resnet.models.network import Network
from flax_resnet.optim.evaluation_metrics import monitored
from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.training.runs.load import load_run
from flax_resnet.training.runs.scores import best_step, evaluations, scores

log = logging.getLogger("flax_resnet")

ImageKey = tuple[str, int]  # name of an image, and how many images of this name are before it


class History(NamedTuple):
    """What a run folder says about the training of a checkpoint.

    Attributes:
      step: number of updates of the checkpoint.
      config: the configuration that it was trained with.
      records: all records of the run.
      scores_from: the step from which its evaluations count.
    """

    step: int
    config: Config
    records: list[dict[str, Any]]
    scores_from: int

    @property
    def epochs(self) -> float | None:
        """The epoch of the checkpoint; None without records up to its step."""
        return max((r["epoch"] for r in self.records if r["step"] <= self.step), default=None)


@dataclasses.dataclass(frozen=True)
class Contender:
    """A network to compare, and its images.

    Attributes:
      name: the run folder or the pretrained weights, as the user named them.
      model: the network.
      variables: {"params", "batch_stats"}; of the moving average if the run kept one.
      config: the configuration, whose data section is that of the images.
      source: the images, with the labels of the network.
      truth: name of the class of each image, by the dataset.
      history: the training of the run; None for pretrained weights.
    """

    name: str
    model: Network
    variables: dict[str, Any]
    config: Config
    source: Source
    truth: tuple[str, ...]
    history: History | None = None

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))


class Score(NamedTuple):
    """The accuracy of a network on the images that all networks share.

    Attributes:
      name: as in `Contender`.
      images: number of images.
      top1: share of the images that it gets right.
      low, high: Wilson's 95 % interval of `top1`.
      parameters: number of parameters.
      step: number of updates of the checkpoint; None for pretrained weights, as for all below.
      epochs: length of the run's training so far, in epochs.
      monitor: the metric by which the run chose its best checkpoint.
      best, best_epoch: its best value in the run's own evaluations, and where; None without evaluations.
      last: its value in the run's last evaluation.
    """

    name: str
    images: int
    top1: float
    low: float
    high: float
    parameters: int
    step: int | None = None
    epochs: float | None = None
    monitor: str | None = None
    best: float | None = None
    best_epoch: float | None = None
    last: float | None = None


class Pair(NamedTuple):
    """Two networks on the same images.

    Attributes:
      first, second: their names.
      only_first, only_second: numbers of images that only one of them gets right.
      difference: top-1 of the second minus top-1 of the first.
      p_value: two-sided, by McNemar's exact test.
      adjusted_p_value: by Holm's method for all pairs of the comparison.
    """

    first: str
    second: str
    only_first: int
    only_second: int
    difference: float
    p_value: float
    adjusted_p_value: float


class Comparison(NamedTuple):
    """The result of `compare`: `scores` in the order of the contenders, and each pair of them."""

    scores: tuple[Score, ...]
    pairs: tuple[Pair, ...]


def open_run(
    workdir: str,
    checkpoint: str = "last",
    *,
    dataset: str = "",
    split: str = "",
    data_dir: str = "",
) -> Contender:
    """Load a run and open its images; the arguments are those of `evaluate_run`, as are the errors."""
    run = load_run(workdir, checkpoint)
    with naming_flags(dataset, split):
        data = run_data(run, dataset, split=split, data_dir=data_dir)
        own = data.eval_split
        opened = open_source(data, train=own == data.train_split, split=own)
    where, key = (dataset, "--dataset") if dataset else (workdir, "RUNS")
    folder = RunFolder.at(workdir)
    return Contender(
        name=workdir,
        model=run.model,
        variables=run.best_variables(),
        config=dataclasses.replace(run.config, data=data),
        source=with_weights_labels(opened, run.class_names, where, key=key),
        truth=_truth(opened),
        history=History(run.step, run.config, folder.read_records(), folder.scores_from()),
    )


def open_pretrained(
    name: str, *, dataset: str, weights: str = "", split: str = "", data_dir: str = ""
) -> Contender:
    """Load pretrained weights and open the images; arguments and errors are those of `evaluate_model`."""
    choice = DatasetChoice(dataset, split=split, data_dir=data_dir)
    open_other(Data(), choice)  # raises for wrong data before any download
    classifier = load_pretrained(name, weights=weights)
    data, opened = open_other(classifier.config.data, choice)
    return Contender(
        name=name,
        model=classifier.model,
        variables=classifier.variables,
        config=dataclasses.replace(classifier.config, data=data),
        source=with_weights_labels(opened, classifier.class_names, dataset),
        truth=_truth(opened),
    )


def _truth(source: Source) -> tuple[str, ...]:
    return tuple(source.class_names[label] for label in source.labels())


def compare(contenders: Sequence[Contender], *, common: bool, batch_size: int = 0) -> Comparison:
    """Evaluate networks on the same images, paired by name.

    Args:
      contenders: the networks, with different names.
      common: whether to use the images that all have, if some have others.
      batch_size: images per step; 0 for that of the run, or 64.

    Raises:
      DataError: the images differ and `common` is not set, no image is common to all, or an image has two classes.
    """
    rows = shared_images(contenders, common=common)
    right, readable = [], np.ones(len(rows[0]), bool)
    for contender, own in zip(contenders, rows, strict=True):
        train = contender.config.train
        own_size = train.eval_batch_size or train.batch_size if contender.history else 64
        found = measure(
            contender.model, contender.config, contender.source, {"": contender.variables},
            batch_size or own_size, by_image=True,
        ).predictions  # fmt: skip
        assert found is not None
        right.append((found == contender.source.labels())[own])
        readable &= found[own] >= 0
    right = [one[readable] for one in right]
    return Comparison(
        tuple(map(_score, contenders, right)), _pairs([c.name for c in contenders], right)
    )


def shared_images(contenders: Sequence[Contender], *, common: bool) -> list[np.ndarray]:
    """Return the indices of the shared images in each contender's source, in one order; errors as `compare`."""
    tables = [_by_key(contender.source) for contender in contenders]
    first, *others = contenders
    for other, table in zip(others, tables[1:], strict=True):
        if not common and table.keys() != tables[0].keys():
            raise DataError(
                f"is evaluated on other images ({_described(other)}) than {first.name} ({_described(first)})",
                key="RUNS",
                value=other.name,
                cure="name the images by --dataset, and by --split if they have several",
            )
    keys = [key for key in tables[0] if all(key in table for table in tables[1:])]
    if not keys:
        raise DataError(
            f"no image is in the evaluation images of all: {'; '.join(map(_described, contenders))}",
            key="--dataset",
            cure="name one split of it by --split",
        )
    if len(keys) < max(map(len, tables)):
        log.info("compared on the %s images that all are evaluated on", f"{len(keys):,}")
    rows = [np.array([table[key] for key in keys]) for table in tables]
    for other, table in zip(others, tables[1:], strict=True):
        for key in keys:
            labels = first.truth[tables[0][key]], other.truth[table[key]]
            if labels[0] != labels[1]:
                raise DataError(
                    f"is {labels[0]!r} in the data of {first.name}, and {labels[1]!r} in those of {other.name}",
                    key=key[0],
                    cure="name the images by --dataset",
                )
    return rows


def _by_key(source: Source) -> dict[ImageKey, int]:
    seen: Counter[str] = Counter()
    table = {}
    for index in range(len(source)):
        name = source.describe(index)
        table[name, seen[name]] = index
        seen[name] += 1
    return table


def _described(contender: Contender) -> str:
    data = contender.config.data
    return f"{len(contender.source):,} of {data.dataset}, split {data.eval_split!r}"


def _score(contender: Contender, right: np.ndarray) -> Score:
    hits, count = int(right.sum()), len(right)
    low, high = proportion_interval(hits, count)
    parts = (contender.name, count, hits / max(count, 1), low, high, contender.parameters)
    if (history := contender.history) is None:
        return Score(*parts)
    known = (history.records, history.config, history.scores_from)
    metric, best = history.config.train.monitor, best_step(scores(*known))
    found = {r["step"]: r for r in evaluations(*known) if metric in r}
    return Score(
        *parts,
        step=history.step,
        epochs=history.epochs,
        monitor=metric,
        best=monitored(found[best], metric) if best in found else None,
        best_epoch=found[best]["epoch"] if best in found else None,
        last=monitored(found[max(found)], metric) if found else None,
    )


def _pairs(names: Sequence[str], right: Sequence[np.ndarray]) -> tuple[Pair, ...]:
    pairs = list(itertools.combinations(range(len(names)), 2))
    found = [mcnemar(right[i], right[j]) for i, j in pairs]
    adjusted = holm([p for _, _, p in found])
    count = max(len(right[0]), 1)
    return tuple(
        Pair(names[i], names[j], b, c, (c - b) / count, p, p_all)
        for (i, j), (b, c, p), p_all in zip(pairs, found, adjusted, strict=True)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the number of tests: the probability of any wrong rejection stays below them.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = np.zeros(len(p_values)), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted.tolist()


def differing_settings(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """Return {setting: its value in each configuration} of the settings that differ and change the result."""
    flat = [flatten(config) for config in configs]
    return {
        key: [values[key] for values in flat]
        for key, field in settings().items()
        if field.metadata["changes_result"] and any(v[key] != flat[0][key] for v in flat)
    }
