"""SGD with momentum and its schedule, as compositions of Optax."""

import jax
import optax

from flax_resnet.config import Config, Plan


def learning_rate(config: Config, plan: Plan) -> optax.Schedule:
    """Returns step -> learning rate: linear warm-up from 0, then the configured shape.

    Source: warm-up, Goyal et al. 2017, section 2.2; cosine, Loshchilov and Hutter 2017, equation 5.
    """
    peak, schedule = config.optimizer.learning_rate, config.schedule
    remaining = plan.total_steps - plan.warmup_steps
    if schedule.name == "cosine":
        main = optax.cosine_decay_schedule(peak, max(1, remaining))
    elif schedule.name == "step":
        drops = range(plan.step_steps, plan.total_steps, plan.step_steps)
        boundaries = {
            d - plan.warmup_steps: schedule.step_factor for d in drops if d > plan.warmup_steps
        }
        main = optax.piecewise_constant_schedule(peak, boundaries)
    else:
        main = optax.constant_schedule(peak)
    if not plan.warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, peak, plan.warmup_steps)
    return optax.join_schedules([warmup, main], [plan.warmup_steps])


def decays(params: optax.Params, which: str) -> optax.Params:
    """Returns a tree of bools: True where weight decay applies ("kernels", or "all")."""
    return jax.tree.map_with_path(
        lambda path, _: which == "all" or path[-1].key == "kernel", params
    )


def make_optimizer(config: Config, plan: Plan) -> optax.GradientTransformation:
    """Returns torch's SGD: ``v = momentum v + (g + weight_decay w)``, ``w = w - lr v``.

    Source: Sutskever et al. 2013, section 2, in torch's form, where the learning rate multiplies last.
    """
    section = config.optimizer
    return optax.chain(
        optax.add_decayed_weights(
            section.weight_decay, mask=lambda params: decays(params, section.decay)
        ),
        optax.sgd(learning_rate(config, plan), section.momentum or None, section.nesterov),
    )
