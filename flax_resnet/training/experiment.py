"""An experiment: data, plan, network and optimizer of a configuration, before compilation and any writes."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from flax_resnet.config import Config
from flax_resnet.config.plan import Plan, planned_optimizer
from flax_resnet.config.plan import plan as make_plan
from flax_resnet.data.class_order import same_classes
from flax_resnet.data.fingerprint import Fingerprint, fingerprint_of
from flax_resnet.data.open import open_source
from flax_resnet.data.records import (
    Source,
    Unlabelled,
    check_labels,
    read_labelled,
)
from flax_resnet.data.sampling import EpochSampler
from flax_resnet.errors import ConfigError, DataError
from flax_resnet.models.network import Network
from flax_resnet.optim.losses import CLASS_WEIGHTS
from flax_resnet.training import sharding
from flax_resnet.training.microbatch_size import microbatches_of
from flax_resnet.training.plan_text import describe
from flax_resnet.training.processes.exchange import check_same, in_turns
from flax_resnet.training.state import TrainState, abstract_state, build_model, check_training


class Splits(NamedTuple):
    """The data of an experiment.

    Attributes:
      train: the training split.
      eval: the evaluation split, with the same classes.
      sampler: the order of the training examples.
    """

    train: Source
    eval: Source
    sampler: EpochSampler

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.train.class_names


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a configuration and its data determine; see `build_experiment`.

    Attributes:
      config: the configuration, with all open settings filled in (`adopted`).
      splits: the data.
      plan: the steps of the run.
      mesh: the devices.
      model: the network.
      optimizer: the optimizer of the network's parameters.
      abstract_state: shapes, dtypes and shardings of the training state.
    """

    config: Config
    splits: Splits
    plan: Plan
    mesh: Mesh
    model: Network
    optimizer: optax.GradientTransformation
    abstract_state: TrainState

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the training split. Raises DataError if the examples cannot be read now."""
        return fingerprint_of(self.splits.train)

    def check(self) -> None:
        """Raise ConfigError for errors that can be found before training starts."""
        sharding.check_batch(self.mesh, self.config.train.batch_size, "train.batch_size")
        microbatches_of(self.config, self.mesh)
        for size in {size for _, size in self.plan.sizes}:
            check_training(self.config, self.model, self.abstract_state, size)

    def summary(self) -> str:
        """Format the plan as a few lines for printing."""
        examples = self.splits.sampler.epoch_size
        resident = self.config.keeps_resident(examples, self.config.data.train_crop)
        return describe(self.config, self.plan, self.abstract_state, resident=resident)


def build_experiment(config: Config, splits: Splits) -> Experiment:
    """Return the experiment of a configuration. Nothing is compiled or written.

    Args:
      config: the configuration; `adopted` has filled its open settings from pretrained weights.
      splits: the data, from `open_splits`.

    Raises:
      ConfigError: the network, the optimizer or the plan is invalid, or does not fit the data.
      DataError: the evaluation split is empty.
    """
    row = CLASS_WEIGHTS[config.loss.class_weights]
    plan = make_plan(
        config,
        num_train=splits.sampler.epoch_size,
        num_eval=len(splits.eval),
        num_classes=len(splits.class_names),
        class_counts=class_counts(splits) if row.needs_counts else (),
    )
    mesh = sharding.make_mesh()
    padded = sharding.round_up(mesh, plan.eval_batch_size)  # evaluation pads its batches anyway
    plan = dataclasses.replace(plan, eval_batch_size=padded)
    model = build_model(config, plan.num_classes)
    optimizer = planned_optimizer(config, plan, model)
    return Experiment(
        config, splits, plan, mesh, model, optimizer, abstract_state(config, model, optimizer, mesh)
    )


def class_counts(splits: Splits) -> np.ndarray:
    """Return the number of examples to train on of each class, int64 [K]. This reads all labels."""
    labels = splits.train.labels()[splits.sampler.used]
    check_labels(splits.train, splits.sampler.used, labels)
    return np.bincount(labels, minlength=len(splits.class_names))


def open_splits(
    config: Config, train_source: Source | None = None, eval_source: Source | None = None
) -> Splits:
    """Open the data of a configuration.

    Args:
      config: the configuration.
      train_source: the training examples; only with ``data.source='python'``.
      eval_source: the evaluation examples; only with ``data.source='python'``.

    Raises:
      ConfigError: `data.source` is "python" and a source is missing, or it is another and a source is passed.
      DataError: a dataset or split is unknown, missing or empty, or the classes of the two splits differ.
    """
    from_python = config.data.source == "python"
    if any((source is not None) != from_python for source in (train_source, eval_source)):
        raise ConfigError(
            key="data.source",
            value=config.data.source,
            allowed="'python' if train() receives train_source and eval_source, another source if it receives none",
        )
    if train_source is None or eval_source is None:
        train_source = open_source(config.data, train=True)
        eval_source = open_source(config.data, train=False)
    if not same_classes(train_source.class_names, eval_source.class_names):
        raise DataError(
            f"has other classes than data.train_split={config.data.train_split!r}, or the same in another order",
            key="data.eval_split",
            value=config.data.eval_split,
        )
    distill = config.distill
    uses_labels = not distill.teacher or distill.weight < 1 or config.data.class_balanced
    if uses_labels:
        check_first_labels(train_source)
    elif not _has_labels(train_source):
        train_source = Unlabelled(train_source)
    check_first_labels(eval_source)
    return Splits(train_source, eval_source, make_sampler(train_source, config))


def open_same_splits(
    config: Config, train_source: Source | None = None, eval_source: Source | None = None
) -> Splits:
    """Open the data in all processes of a run: in process 0 first, which downloads and prepares them.

    Raises:
      UserError: as for `open_splits`.
      ProcessError: a process finds other data than process 0.
    """
    splits = in_turns(lambda: open_splits(config, train_source, eval_source))
    if jax.process_count() == 1:
        return splits
    for name, source in (("data.train_split", splits.train), ("data.eval_split", splits.eval)):
        facts = {
            "classes": list(source.class_names),
            "number of examples": len(source),
            "fingerprint": fingerprint_of(source),
        }
        check_same(name, facts)
    return splits


def check_first_labels(source: Source) -> None:
    """Check the labels of some examples, so that data without labels are refused before anything is compiled.

    The labels of all others are checked when they are read (`data.pipeline`).

    Raises:
      DataError: as for `check_labels`.
    """
    some = np.linspace(0, len(source) - 1, min(len(source), 64)).astype(np.int64)
    read_labelled(source, some)


def _has_labels(source: Source) -> bool:
    try:
        check_first_labels(source)
    except DataError:
        return False
    return True


def make_sampler(source: Source, config: Config) -> EpochSampler:
    """Return the sampler of the training examples for a configuration."""
    data, size = config.data, len(source)
    labels = source.labels() if data.class_balanced else None
    if labels is not None:
        check_labels(source, np.arange(size), labels)
    used = max(1, round(data.fraction * size))
    return EpochSampler(
        size,
        config.train.seed,
        subset_size=min(used, data.limit) if data.limit else used,
        subset_seed=data.split_seed,
        repeats=data.augmentation_repeats,
        labels=labels,
    )
