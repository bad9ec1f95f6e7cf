"""What changes over time: the learning rate, as compositions of Optax, and the rates of dropping."""

import jax.numpy as jnp
import optax

from flax_resnet.config import Config
from flax_resnet.plan import Plan


def learning_rate(config: Config, plan: Plan) -> optax.Schedule:
    """Returns step (0-based) -> learning rate: a linear rise to the peak, the configured shape, a level end.

    With t the share of the fall that is over, and f the share of the peak that it ends on:

        cosine       f + (1 - f) (1 + cos(pi t)) / 2
        linear       f + (1 - f) (1 - t)
        polynomial   f + (1 - f) (1 - t)^power
        multi_step   factor^(milestones passed)

    Source: warm-up, Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.2; cosine, Loshchilov and Hutter
    2017, "SGDR", equation 5; triangle, Smith 2017, "Cyclical learning rates".
    """
    peak, schedule, warmup = plan.peak_learning_rate, config.schedule, plan.warmup_steps
    end, fall = schedule.final * peak, max(1, plan.total_steps - warmup - plan.cooldown_steps)
    if schedule.name == "cosine":
        main = optax.cosine_decay_schedule(peak, fall, alpha=schedule.final)
    elif schedule.name == "linear":
        main = optax.linear_schedule(peak, end, fall)
    elif schedule.name == "polynomial":
        main = optax.polynomial_schedule(peak, end, schedule.power, fall)
    elif schedule.name == "multi_step":
        drops = {step - warmup: schedule.factor for step in plan.milestones if step > warmup}
        main = optax.piecewise_constant_schedule(peak, drops)
    else:
        main = optax.constant_schedule(peak)
    if not warmup:
        return main
    rise = optax.linear_schedule(schedule.warmup_from * peak, peak, warmup)
    return optax.join_schedules([rise, main], [warmup])


def drop_factor(config: Config, plan: Plan) -> optax.Schedule:
    """Returns step (0-based) -> what the network's rates of dropping are multiplied by, from 0 to 1.

        constant     1, a float: rates stay numbers of the compiled program
        linear       step / (steps of the run - 1)
        early        1 before step `drop_until`, then 0
        late         0 before step `drop_until`, then 1

    All but constant give a float32 scalar, computed in the compiled step where its step is.

    Source: linear, Tan and Le 2021, "EfficientNetV2", algorithm 1, of each step instead of a few stages; early and
    late, Liu et al. 2023, "Dropout reduces underfitting", section 4.
    """
    name, until, last = config.schedule.drop_rates, plan.drop_until, max(1, plan.total_steps - 1)
    return {
        "constant": lambda step: 1.0,
        "linear": lambda step: jnp.minimum(jnp.float32(step) / last, 1),
        "early": lambda step: jnp.float32(step < until),
        "late": lambda step: jnp.float32(step >= until),
    }[name]
