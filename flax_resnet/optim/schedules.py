"""Schedules of the learning rate, composed of Optax schedules, and of the rates of dropout and stochastic depth."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from flax_resnet.settings import (
    ASCENDING,
    REQUIRED,
    UNSET,
    Registry,
    Row,
    Section,
    above,
    all_of,
    at_least,
    choice,
    one_of,
    setting,
    within,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleRow(Row):
    """One shape of the learning rate after the warm-up.

    Attributes:
      decay: (settings, peak, steps of the decay, milestones in steps of the decay) -> learning rate by step of it.
    """

    decay: Callable[["Schedule", float, int, Sequence[int]], optax.Schedule]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchScalingRow(Row):
    """One rule for the peak learning rate: a factor by (batch size / base batch size)."""

    factor: Callable[[float], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropRatesRow(Row):
    """One schedule of dropout and stochastic depth.

    Attributes:
      factor: (last step of the run, `drop_until` in steps) -> factor on the rates by step.
    """

    factor: Callable[[int, int], optax.Schedule]


SCHEDULES: Registry[ScheduleRow] = Registry("flax_resnet.optim.schedules")
BATCH_SCALINGS: Registry[BatchScalingRow] = Registry(
    "flax_resnet.optim.schedules", "BATCH_SCALING_ROWS"
)
DROP_RATES: Registry[DropRatesRow] = Registry("flax_resnet.optim.schedules", "DROP_RATES_ROWS")


@dataclasses.dataclass(frozen=True)
class Schedule(Section):
    """The schedules of the learning rate and of the drop rates (dropout and stochastic depth).

    The learning rate rises linearly to its peak (warm-up), decays by the named shape, and stays at its final value
    (cooldown). A warm-up and name="linear" together give a triangular schedule.
    """

    name: str = choice("cosine", SCHEDULES, "shape of the learning rate after the warm-up")
    unit: str = setting(
        "epochs",
        one_of("epochs", "steps", "fraction"),
        "unit of warmup, cooldown, milestones, drop_until, optimizer.unfreeze_at and data.progressive; fraction "
        "means a fraction of the run's steps",
    )
    warmup: float = setting(0.0, at_least(0), "length of the linear warm-up")
    warmup_from: float = setting(
        0.0,
        within(0, 1),
        "learning rate at the start of the warm-up, as a share of the peak",
        needs=all_of("warmup"),
    )
    cooldown: float = setting(
        UNSET, at_least(0), "length of the last phase, with a constant learning rate"
    )
    final: float = setting(
        UNSET, within(0, 1), "learning rate at the end of the decay, as a share of the peak"
    )
    power: float = setting(UNSET, above(0), "exponent of the decay")
    milestones: tuple = setting(UNSET, ASCENDING, "positions at which the learning rate drops")
    gamma: float = setting(UNSET, within(0, 1), "factor on the learning rate at each milestone")
    batch_scaling: str = choice(
        "none", BATCH_SCALINGS, "how the peak grows with train.batch_size / base_batch_size"
    )
    base_batch_size: int = setting(
        UNSET, at_least(1), "batch size at which the peak is optimizer.learning_rate"
    )
    drop_rates: str = choice(
        "constant", DROP_RATES, "schedule of the rates model.dropout and model.drop_path"
    )
    drop_until: float = setting(
        UNSET,
        at_least(0),
        "position at which dropout and stochastic depth end (early) or begin (late)",
    )


def learning_rate(
    section: Schedule,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    cooldown_steps: int = 0,
    milestones: tuple[int, ...] = (),
) -> optax.Schedule:
    """Return the learning rate by step, from 0: linear warm-up, decay by `section.name`, constant cooldown.

    As a share of the peak, with t from 0 to 1 over the decay, and f = `section.final`:

        cosine       f + (1 - f) (1 + cos(pi t)) / 2
        linear       f + (1 - f) (1 - t)
        polynomial   f + (1 - f) (1 - t)^power
        multi_step   gamma^(milestones passed)

    Args:
      section: the settings.
      peak: the largest learning rate.
      total_steps: updates of the run.
      warmup_steps: updates of the linear warm-up.
      cooldown_steps: updates at the final learning rate.
      milestones: steps at which the rate drops, for multi_step; after the warm-up.

    Source: warm-up, Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.2; cosine, Loshchilov and Hutter
    2017, "SGDR", equation 5; triangle, Smith 2017, "Cyclical learning rates".
    """
    steps = max(1, total_steps - warmup_steps - cooldown_steps)
    drops = [step - warmup_steps for step in milestones]
    main = SCHEDULES[section.name].decay(section, peak, steps, drops)
    if not warmup_steps:
        return main
    rise = optax.linear_schedule(section.warmup_from * peak, peak, warmup_steps)
    return optax.join_schedules([rise, main], [warmup_steps])


def drop_factor(section: Schedule, *, total_steps: int, drop_until: int) -> optax.Schedule:
    """Return the factor on the rates of dropout and stochastic depth by step, from 0; between 0 and 1.

        constant     1, a Python float: the rates stay constants of the compiled program
        linear       step / (total_steps - 1)
        early        1 before step `drop_until`, then 0
        late         0 before step `drop_until`, then 1

    All but constant return a float32 scalar, computed inside the compiled step from its step.

    Source: linear, Tan and Le 2021, "EfficientNetV2", algorithm 1, at each step instead of a few stages; early and
    late, Liu et al. 2023, "Dropout reduces underfitting", section 4.
    """
    return DROP_RATES[section.drop_rates].factor(max(1, total_steps - 1), drop_until)


def constant(step: jax.Array) -> float:
    """Return 1.0: the constant schedule."""
    del step
    return 1.0


FALLS = {"final": 0.0, "cooldown": 0.0}
ROWS = (
    ScheduleRow(
        name="cosine",
        help="half a cosine to the final rate",
        uses=FALLS,
        decay=lambda section, peak, steps, drops: optax.cosine_decay_schedule(
            peak, steps, alpha=section.final
        ),
    ),
    ScheduleRow(
        name="linear",
        help="a line to the final rate",
        uses=FALLS,
        decay=lambda section, peak, steps, drops: optax.linear_schedule(
            peak, section.final * peak, steps
        ),
    ),
    ScheduleRow(
        name="polynomial",
        help="a power of the remaining share of the decay",
        uses={**FALLS, "power": 2.0},
        decay=lambda section, peak, steps, drops: optax.polynomial_schedule(
            peak, section.final * peak, section.power, steps
        ),
    ),
    ScheduleRow(
        name="multi_step",
        help="drops by the factor gamma at the milestones",
        uses={"milestones": (30.0, 60.0), "gamma": 0.1},
        decay=lambda section, peak, steps, drops: optax.piecewise_constant_schedule(
            peak, dict.fromkeys(drops, section.gamma)
        ),
    ),
    ScheduleRow(
        name="constant",
        help="the peak throughout",
        decay=lambda section, peak, steps, drops: optax.constant_schedule(peak),
    ),
)
BASE = {"base_batch_size": 256}
BATCH_SCALING_ROWS = (
    BatchScalingRow(
        name="none", help="the peak is optimizer.learning_rate", factor=lambda ratio: 1.0
    ),
    BatchScalingRow(name="linear", help="in proportion", uses=BASE, factor=lambda ratio: ratio),
    BatchScalingRow(name="sqrt", help="with the square root", uses=BASE, factor=math.sqrt),
)
DROP_RATES_ROWS = (
    DropRatesRow(name="constant", help="constant", factor=lambda last, until: constant),
    DropRatesRow(
        name="linear",
        help="from 0 to their values over the run",
        factor=lambda last, until: lambda step: jnp.minimum(jnp.float32(step) / last, 1),
    ),
    DropRatesRow(
        name="early",
        help="none from drop_until on",
        uses={"drop_until": REQUIRED},
        factor=lambda last, until: lambda step: jnp.float32(step < until),
    ),
    DropRatesRow(
        name="late",
        help="none until drop_until",
        uses={"drop_until": REQUIRED},
        factor=lambda last, until: lambda step: jnp.float32(step >= until),
    ),
)
