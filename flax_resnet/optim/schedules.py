"""What changes over time: the learning rate, as compositions of Optax, and the rates of dropping."""

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
    """The learning rate over time: a rise to the peak, a shape, and what it ends on. And the rates of dropping.

    A warm-up and a linear fall are together the triangle of fast recipes.
    """

    name: str = setting(
        "cosine",
        one_of("cosine", "linear", "polynomial", "multi_step", "constant"),
        "shape after the warm-up",
    )
    unit: str = setting(
        "epochs",
        one_of("epochs", "steps", "fraction"),
        "of warmup, cooldown, milestones, drop_until, optimizer.unfreeze_at, data.progressive; fraction of the run",
    )
    warmup: float = setting(0.0, at_least(0), "length of the linear rise")
    warmup_from: float = setting(0.0, within(0, 1), "share of the peak it rises from")
    cooldown: float = setting(0.0, at_least(0), "length of the end at the final learning rate")
    final: float = setting(0.0, within(0, 1), "share of the peak that a fall ends on")
    power: float = setting(2.0, above(0), "for polynomial: of the share of the fall that is left")
    milestones: tuple = setting((30.0, 60.0), ASCENDING, "for multi_step: when it drops")
    gamma: float = setting(0.1, within(0, 1), "for multi_step: what a drop multiplies by")
    batch_scaling: str = setting(
        "none",
        one_of("none", "linear", "sqrt"),
        "the peak times train.batch_size / base_batch_size, or the square root of that",
    )
    base_batch_size: int = setting(
        256, at_least(1), "the batch size that learning_rate is meant for"
    )
    drop_rates: str = setting(
        "constant",
        one_of("constant", "linear", "early", "late"),
        "model.dropout and model.drop_path over the run: as they are, rising from 0, or only before or only "
        "after drop_until",
    )
    drop_until: float = setting(
        0.0, at_least(0), "for drop_rates=early and late: when dropping ends, or begins"
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
    """Return the learning rate by step (from 0): a linear rise to the peak, the chosen shape, a level end.

    With t the share of the fall that is over, and f the share of the peak that it ends on:

        cosine       f + (1 - f) (1 + cos(pi t)) / 2
        linear       f + (1 - f) (1 - t)
        polynomial   f + (1 - f) (1 - t)^power
        multi_step   gamma^(milestones passed)

    Args:
      section: shape, and the share of the peak that it starts from and ends on.
      peak: the largest learning rate.
      total_steps: updates of the run.
      warmup_steps: of the linear rise.
      cooldown_steps: of the level end.
      milestones: steps at which multi_step drops.

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
    """Return the factor of dropout's and stochastic depth's rates by step (from 0), between 0 and 1.

        constant     1, a float: rates stay numbers of the compiled program
        linear       step / (steps of the run - 1)
        early        1 before step `drop_until`, then 0
        late         0 before step `drop_until`, then 1

    All but constant give a float32 scalar, computed in the compiled step where its step is.

    Source: linear, Tan and Le 2021, "EfficientNetV2", algorithm 1, of each step instead of a few stages; early and
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
    """Is the schedule of what does not change."""
    del step
    return 1.0
