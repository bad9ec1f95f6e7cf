"""The plan of a run: the steps that a configuration and the size of its dataset determine."""

import dataclasses
import math

import optax

from flax_resnet.config.config import Config
from flax_resnet.errors import ConfigError, DataError
from flax_resnet.models.network import Network
from flax_resnet.optim import schedules
from flax_resnet.optim.optimizers import make_optimizer


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

    @classmethod
    def nominal(cls, num_classes: int) -> "Plan":
        """Return a plan of one step, for states that need no schedule."""
        return cls(1, 1, num_classes, 1, 1, 1.0, 0, 0, (), 1, ((0, 1),), 1, 1, 1, 0)


def plan(config: Config, *, num_train: int, num_eval: int, num_classes: int) -> Plan:
    """Compute the plan of a run.

    Each epoch drops its last partial batch, so no batch crosses an epoch.

    Args:
      config: the frozen configuration.
      num_train: examples to train on.
      num_eval: examples to evaluate on.
      num_classes: classes of the dataset.

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
            f"train.steps_per_call={config.train.steps_per_call}: must be at most the {steps} steps of an epoch"
        )

    def in_steps(epochs: float) -> int:
        """Convert epochs to steps, rounded up to whole calls so that a resumed run makes the same calls."""
        calls = math.ceil(max(1, round(epochs * steps)) / config.train.steps_per_call)
        return calls * config.train.steps_per_call

    schedule, total = config.schedule, config.train.steps or config.train.epochs * steps
    length = f"train.steps={total}" if config.train.steps else f"train.epochs={config.train.epochs}"
    if total < config.train.steps_per_call:
        raise ConfigError(
            f"train.steps_per_call={config.train.steps_per_call}: must be at most {length}"
        )
    unit = {"epochs": steps, "steps": 1, "fraction": total}[schedule.unit]
    warmup, cooldown = round(schedule.warmup * unit), round(schedule.cooldown * unit)
    if warmup + cooldown and warmup + cooldown >= total:
        raise ConfigError(
            f"schedule.warmup={schedule.warmup:g} and schedule.cooldown={schedule.cooldown:g} {schedule.unit}: "
            f"must be below the {total} steps of {length}, together"
        )
    drop_until = round(schedule.drop_until * unit)
    _check_starts(config, unit, total, drop_until, length)
    scale = batch / schedule.base_batch_size
    peak = (
        config.optimizer.learning_rate
        * {"none": 1.0, "linear": scale, "sqrt": math.sqrt(scale)}[schedule.batch_scaling]
    )

    return Plan(
        num_train=num_train,
        num_eval=num_eval,
        num_classes=logits,
        steps_per_epoch=steps,
        total_steps=total,
        peak_learning_rate=peak,
        warmup_steps=warmup,
        cooldown_steps=cooldown,
        milestones=tuple(round(m * unit) for m in schedule.milestones),
        unit=unit,
        sizes=_sizes(config, unit, total, length),
        eval_every=in_steps(config.train.eval_every),
        checkpoint_every=in_steps(config.train.checkpoint_every),
        eval_batch_size=config.train.eval_batch_size or batch,
        drop_until=drop_until,
    )


def _check_data(config: Config, num_train: int, num_eval: int, num_classes: int) -> None:
    """Raise for a configuration that does not fit the size of the data."""
    batch = config.train.batch_size
    if num_train < batch:
        raise ConfigError(
            f"train.batch_size={batch}: must be at most the {num_train} images used of data.train_split="
            f"{config.data.train_split!r} (data.limit={config.data.limit}, "
            f"data.fraction={config.data.fraction})"
        )
    if num_eval < 1:
        raise DataError(f"data.eval_split={config.data.eval_split!r} holds no images")
    if config.model.num_classes and config.model.num_classes < num_classes:
        raise ConfigError(
            f"model.num_classes={config.model.num_classes}: must be at least the dataset's "
            f"{num_classes} classes, or 0 for that number"
        )
    logits = config.model.num_classes or num_classes
    if config.loss.class_weights and len(config.loss.class_weights) != logits:
        raise ConfigError(
            f"loss.class_weights={config.loss.class_weights}: must be {logits} numbers, one per class"
        )


def _check_starts(config: Config, unit: int, total: int, drop_until: int, length: str) -> None:
    """Raise for settings that begin or end outside the run.

    Args:
      config: the configuration.
      unit: steps per `schedule.unit`.
      total: steps of the run.
      drop_until: `schedule.drop_until` in steps.
      length: the setting that determines `total`, for the message.
    """
    schedule = config.schedule
    for pattern, start in config.optimizer.unfreeze_at:
        if round(start * unit) >= total:
            raise ConfigError(
                f"optimizer.unfreeze_at: ({pattern!r}, {start:g}) {schedule.unit}: must be below the {total} steps "
                f"of {length}; to freeze parameters for the whole run, set their factor in "
                "optimizer.learning_rate_rules to 0"
            )
    if schedule.drop_until and not 0 < drop_until < total:
        raise ConfigError(
            f"schedule.drop_until={schedule.drop_until:g} {schedule.unit}: must be at least 1 step and below the "
            f"{total} steps of {length}"
        )


def _sizes(config: Config, unit: int, total: int, length: str) -> tuple[tuple[int, int], ...]:
    """Return `Plan.sizes`, with starts rounded to whole calls. The arguments are those of `_check_starts`."""
    calls = config.train.steps_per_call
    sizes = tuple(
        (round(start * unit / calls) * calls, int(size))
        for start, size in config.data.progressive or ((0, config.data.image_size),)
    )
    starts = [start for start, _ in sizes]
    if starts[-1] >= total or len(set(starts)) < len(starts):
        raise ConfigError(
            f"data.progressive={config.data.progressive} {config.schedule.unit}: starts must be apart by a call "
            f"(train.steps_per_call steps) or more, and below the {total} steps of {length}"
        )
    return sizes


def planned_learning_rate(config: Config, plan: Plan) -> optax.Schedule:
    """Return the run's learning rate by update, from 0."""
    return schedules.learning_rate(
        config.schedule,
        peak=plan.peak_learning_rate,
        total_steps=plan.total_steps,
        warmup_steps=plan.warmup_steps,
        cooldown_steps=plan.cooldown_steps,
        milestones=plan.milestones,
    )


def planned_drop_factor(config: Config, plan: Plan) -> optax.Schedule:
    """Return the run's factor on the rates of dropout and stochastic depth by step, from 0."""
    return schedules.drop_factor(
        config.schedule, total_steps=plan.total_steps, drop_until=plan.drop_until
    )


def planned_optimizer(config: Config, plan: Plan, model: Network) -> optax.GradientTransformation:
    """Return the run's optimizer, including its learning rate."""
    return make_optimizer(config.optimizer, planned_learning_rate(config, plan), model, plan.unit)
