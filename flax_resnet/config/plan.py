"""The plan of a run: the steps that a configuration and the size of its dataset determine."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import optax

from flax_resnet.config.config import Config
from flax_resnet.errors import ConfigError, DataError
from flax_resnet.models.network import Network
from flax_resnet.optim import schedules
from flax_resnet.optim.losses import class_weights
from flax_resnet.optim.optimizer import make_optimizer
from flax_resnet.optim.schedules import BATCH_SCALINGS
from flax_resnet.settings import LARGEST, SMALLEST, UNSET

MOST_STEPS = 2**31 - 1  # counters of steps are int32


def _steps(length: float, unit: int) -> int:
    """Convert a length to steps, rounded; `unit` is steps per unit of the length."""
    return round(min(length * unit, MOST_STEPS))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a run. All lengths and positions are in optimizer steps."""

    num_train: int
    num_eval: int
    num_classes: int
    steps_per_epoch: int
    total_steps: int
    peak_learning_rate: float
    warmup_steps: int
    cooldown_steps: int
    milestones: tuple[int, ...]
    unit: int  # steps per schedule.unit
    sizes: tuple[tuple[int, int], ...]  # (first step, size of training images from that step on)
    eval_every: int
    checkpoint_every: int
    eval_batch_size: int
    drop_until: int
    class_weights: tuple[float, ...] = ()  # weight of each class in the loss; () for equal weights

    @classmethod
    def nominal(cls, num_classes: int) -> "Plan":
        """Return a plan of one step, for states that need no schedule."""
        return cls(
            num_train=1,
            num_eval=1,
            num_classes=num_classes,
            steps_per_epoch=1,
            total_steps=1,
            peak_learning_rate=1.0,
            warmup_steps=0,
            cooldown_steps=0,
            milestones=(),
            unit=1,
            sizes=((0, 1),),
            eval_every=1,
            checkpoint_every=1,
            eval_batch_size=1,
            drop_until=0,
        )


def plan(
    config: Config,
    *,
    num_train: int,
    num_eval: int,
    num_classes: int,
    class_counts: Sequence[int] | np.ndarray = (),
) -> Plan:
    """Compute the plan of a run.

    Each epoch drops its last partial batch, so no batch spans two epochs.

    Args:
      config: the frozen configuration.
      num_train: examples to train on.
      num_eval: examples to evaluate on.
      num_classes: classes of the dataset.
      class_counts: examples to train on of each class; needed if `loss.class_weights` is computed from them.

    Raises:
      ConfigError: `model.num_classes` is below the dataset's number of classes, or another setting does not fit
        the size of the dataset.
      DataError: the evaluation split is empty.
    """
    _check_data(config, num_train, num_eval, num_classes)
    batch = config.train.batch_size
    logits = config.model.num_classes or num_classes
    steps = num_train // batch
    if config.train.steps_per_call > steps:
        raise ConfigError(
            key="train.steps_per_call",
            value=config.train.steps_per_call,
            allowed=f"at most the {steps} steps of an epoch",
        )

    def in_steps(epochs: float) -> int:
        """Convert epochs to steps, rounded up to whole calls so that a resumed run makes the same calls."""
        calls = math.ceil(max(1, _steps(epochs, steps)) / config.train.steps_per_call)
        return calls * config.train.steps_per_call

    schedule = config.schedule
    total, run = _total_steps(config, steps)
    unit = {"epochs": steps, "steps": 1, "fraction": total}[schedule.unit]
    warmup, cooldown, drop_until = (
        _steps(length or 0, unit)
        for length in (schedule.warmup, schedule.cooldown, schedule.drop_until)
    )
    if warmup + cooldown and warmup + cooldown >= total:
        raise ConfigError(
            key="schedule.warmup",
            value=schedule.warmup,
            allowed=f"below the {total} steps of {run}, together with "
            f"schedule.cooldown={schedule.cooldown or 0:g} (both in {schedule.unit})",
        )
    _check_starts(config, unit, total, drop_until, run)
    counts = np.zeros(logits)
    counts[: len(class_counts)] = class_counts

    return Plan(
        num_train=num_train,
        num_eval=num_eval,
        num_classes=logits,
        steps_per_epoch=steps,
        total_steps=total,
        peak_learning_rate=_peak(config),
        warmup_steps=warmup,
        cooldown_steps=cooldown,
        milestones=_milestones(config, unit, warmup),
        unit=unit,
        sizes=_sizes(config, unit, total, run),
        eval_every=in_steps(config.train.eval_every),
        checkpoint_every=in_steps(config.train.checkpoint_every),
        eval_batch_size=config.train.eval_batch_size or batch,
        drop_until=drop_until,
        class_weights=class_weights(config.loss, counts),
    )


def _peak(config: Config) -> float:
    """Return the peak learning rate. Raises ConfigError if training cannot compute with it."""
    schedule, batch = config.schedule, config.train.batch_size
    scale = BATCH_SCALINGS[schedule.batch_scaling].factor(
        batch / (schedule.base_batch_size or batch)
    )
    peak = config.optimizer.learning_rate * scale
    if not SMALLEST <= peak <= LARGEST:
        raise ConfigError(
            f"schedule.batch_scaling={schedule.batch_scaling!r} makes the peak {peak:g}",
            key="optimizer.learning_rate",
            value=config.optimizer.learning_rate,
            allowed=f"such that the peak is between {SMALLEST:.2g} and {LARGEST:.2g}",
        )
    return peak


def _total_steps(config: Config, steps_per_epoch: int) -> tuple[int, str]:
    """Return the number of steps of the run, and the text KEY=VALUE of the setting that determines it.

    Raises:
      ConfigError: the run has too many steps, or fewer than one call.
    """
    train = config.train
    total = train.steps or train.epochs * steps_per_epoch
    key, value = ("train.steps", total) if train.steps else ("train.epochs", train.epochs)
    if total > MOST_STEPS:
        raise ConfigError(key=key, value=value, allowed=f"at most {MOST_STEPS:,} steps")
    if total < train.steps_per_call:
        raise ConfigError(
            key="train.steps_per_call",
            value=train.steps_per_call,
            allowed=f"at most {key}={value}",
        )
    return total, f"{key}={value}"


def _check_data(config: Config, num_train: int, num_eval: int, num_classes: int) -> None:
    """Raise for a configuration that does not fit the size of the data."""
    batch = config.train.batch_size
    if num_train < batch:
        raise ConfigError(
            key="train.batch_size",
            value=batch,
            allowed=f"at most the {num_train} images used of data.train_split={config.data.train_split!r} "
            f"(data.limit={config.data.limit}, data.fraction={config.data.fraction})",
        )
    if num_eval < 1:
        raise DataError("holds no images", key="data.eval_split", value=config.data.eval_split)
    if config.model.num_classes and config.model.num_classes < num_classes:
        raise ConfigError(
            key="model.num_classes",
            value=config.model.num_classes,
            allowed=f"at least the dataset's {num_classes} classes, or 0 for that number",
        )
    logits = config.model.num_classes or num_classes
    weights = config.loss.weight_per_class
    if weights is not UNSET and len(weights) != logits:
        raise ConfigError(
            key="loss.weight_per_class",
            value=weights,
            allowed=f"{logits} numbers, one per class",
        )


def _check_starts(config: Config, unit: int, total: int, drop_until: int, run: str) -> None:
    """Raise ConfigError if `optimizer.unfreeze_at` or `schedule.drop_until` is outside the run.

    Args:
      config: the configuration.
      unit: steps per `schedule.unit`.
      total: steps of the run.
      drop_until: `schedule.drop_until` in steps.
      run: the setting that determines `total`, for the message.
    """
    schedule = config.schedule
    for pattern, start in config.optimizer.unfreeze_at:
        if _steps(start, unit) >= total:
            raise ConfigError(
                key="optimizer.unfreeze_at",
                value=(pattern, start),
                allowed=f"below the {total} steps of {run} (it is in {schedule.unit})",
                cure="to freeze parameters for the whole run, set their factor in "
                "optimizer.learning_rate_rules to 0",
            )
    if schedule.drop_until is not UNSET and not 0 < drop_until < total:
        raise ConfigError(
            key="schedule.drop_until",
            value=schedule.drop_until,
            allowed=f"at least 1 step and below the {total} steps of {run} (it is in {schedule.unit})",
        )


def _milestones(config: Config, unit: int, warmup: int) -> tuple[int, ...]:
    """Return `Plan.milestones`; `unit` is steps per `schedule.unit`, `warmup` the steps of the warm-up."""
    schedule = config.schedule
    steps = tuple(_steps(start, unit) for start in schedule.milestones or ())
    if len(set(steps)) < len(steps) or (steps and steps[0] <= warmup):
        raise ConfigError(
            f"stand for the steps {', '.join(map(str, steps))}",
            key="schedule.milestones",
            value=schedule.milestones,
            allowed=f"different steps after the {warmup} steps of the warm-up (they are in {schedule.unit})",
        )
    return steps


def _sizes(config: Config, unit: int, total: int, run: str) -> tuple[tuple[int, int], ...]:
    """Return `Plan.sizes`, with starts rounded to whole calls. The arguments are those of `_check_starts`."""
    calls = config.train.steps_per_call
    sizes = tuple(
        (round(min(start * unit, MOST_STEPS) / calls) * calls, int(size))
        for start, size in config.data.progressive or ((0, config.data.image_size),)
    )
    starts = [start for start, _ in sizes]
    if starts[-1] >= total or len(set(starts)) < len(starts):
        raise ConfigError(
            key="data.progressive",
            value=config.data.progressive,
            allowed=f"starts (in {config.schedule.unit}) at least train.steps_per_call={calls} steps apart, "
            f"and below the {total} steps of {run}",
        )
    return sizes


def planned_learning_rate(config: Config, plan: Plan) -> optax.Schedule:
    """Return the learning rate of the run as a function of the update's number, which counts from 0."""
    return schedules.learning_rate(
        config.schedule,
        peak=plan.peak_learning_rate,
        total_steps=plan.total_steps,
        warmup_steps=plan.warmup_steps,
        cooldown_steps=plan.cooldown_steps,
        milestones=plan.milestones,
    )


def planned_drop_factor(config: Config, plan: Plan) -> optax.Schedule:
    """Return the factor on the rates of dropout and stochastic depth as a function of the step, from 0."""
    return schedules.drop_factor(
        config.schedule, total_steps=plan.total_steps, drop_until=plan.drop_until
    )


def planned_optimizer(config: Config, plan: Plan, model: Network) -> optax.GradientTransformation:
    """Return the run's optimizer, including its learning rate."""
    return make_optimizer(config.optimizer, planned_learning_rate(config, plan), model, plan.unit)
