"""Schedules of the learning rate, composed of Optax schedules, and of the rates of dropout and stochastic depth."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from flax_resnet.settings import (
    ASCENDING,
    above,
    at_least,
    one_of,
    setting,
    within,
)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The schedules of the learning rate and of the drop rates (dropout and stochastic depth).

    The learning rate rises linearly to its peak (warm-up), decays by the named shape, and stays at its final value
    (cooldown). A warm-up and name="linear" together give a triangular schedule.
    """

    name: str = setting(
        "cosine",
        one_of("cosine", "linear", "polynomial", "multi_step", "constant"),
        "shape of the learning rate after the warm-up",
    )
    unit: str = setting(
        "epochs",
        one_of("epochs", "steps", "fraction"),
        "unit of warmup, cooldown, milestones, drop_until, optimizer.unfreeze_at and data.progressive; fraction "
        "means a fraction of the run's steps",
    )
    warmup: float = setting(0.0, at_least(0), "length of the linear warm-up")
    warmup_from: float = setting(
        0.0, within(0, 1), "learning rate at the start of the warm-up, as a share of the peak"
    )
    cooldown: float = setting(
        0.0, at_least(0), "length of the last phase, with a constant learning rate"
    )
    final: float = setting(
        0.0, within(0, 1), "learning rate at the end of the decay, as a share of the peak"
    )
    power: float = setting(2.0, above(0), "for polynomial: exponent of the decay")
    milestones: tuple = setting(
        (30.0, 60.0), ASCENDING, "for multi_step: positions at which the learning rate drops"
    )
    gamma: float = setting(
        0.1, within(0, 1), "for multi_step: factor on the learning rate at each milestone"
    )
    batch_scaling: str = setting(
        "none",
        one_of("none", "linear", "sqrt"),
        "scale the peak by train.batch_size / base_batch_size (linear), or by its square root (sqrt)",
    )
    base_batch_size: int = setting(
        256,
        at_least(1),
        "for batch_scaling: batch size at which the peak is optimizer.learning_rate",
    )
    drop_rates: str = setting(
        "constant",
        one_of("constant", "linear", "early", "late"),
        "schedule of model.dropout and model.drop_path: constant, linear (from 0 to their values over the run), "
        "early (0 after drop_until) or late (0 before drop_until)",
    )
    drop_until: float = setting(
        0.0,
        at_least(0),
        "for drop_rates=early: position at which dropout and stochastic depth end; for late: at which they begin",
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
      milestones: steps at which the rate drops, for multi_step.

    Source: warm-up, Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.2; cosine, Loshchilov and Hutter
    2017, "SGDR", equation 5; triangle, Smith 2017, "Cyclical learning rates".
    """
    end, fall = section.final * peak, max(1, total_steps - warmup_steps - cooldown_steps)
    if section.name == "cosine":
        main = optax.cosine_decay_schedule(peak, fall, alpha=section.final)
    elif section.name == "linear":
        main = optax.linear_schedule(peak, end, fall)
    elif section.name == "polynomial":
        main = optax.polynomial_schedule(peak, end, section.power, fall)
    elif section.name == "multi_step":
        drops = {step - warmup_steps: section.gamma for step in milestones if step > warmup_steps}
        main = optax.piecewise_constant_schedule(peak, drops)
    else:
        main = optax.constant_schedule(peak)
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
    last = max(1, total_steps - 1)
    return {
        "constant": lambda step: 1.0,
        "linear": lambda step: jnp.minimum(jnp.float32(step) / last, 1),
        "early": lambda step: jnp.float32(step < drop_until),
        "late": lambda step: jnp.float32(step >= drop_until),
    }[section.drop_rates]


def constant(step: jax.Array) -> float:
    """Return 1.0: the constant schedule."""
    del step
    return 1.0
