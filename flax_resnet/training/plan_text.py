"""The text of a run's plan, printed before training and by --dry_run."""

import jax

from flax_resnet.augment.augment_section import POLICIES, Augment
from flax_resnet.config import Config
from flax_resnet.config.plan import Plan, planned_drop_factor, planned_learning_rate
from flax_resnet.data.data_section import SOURCES
from flax_resnet.optim.distillation import Distill
from flax_resnet.optim.ema import Ema
from flax_resnet.optim.losses import LOSSES, Loss
from flax_resnet.optim.optimizer_section import OPTIMIZERS, Optimizer
from flax_resnet.optim.schedules import DROP_RATES
from flax_resnet.settings import UNSET, switch_terms, terms
from flax_resnet.training import sharding
from flax_resnet.training.state import TrainState, compute_dtype


def describe(config: Config, plan: Plan, shapes: TrainState, *, resident: bool) -> str:
    """Format the plan as a few lines of text; `resident`: the decoded training set stays on the device."""
    data = config.data
    where = data.dataset or SOURCES[data.source].help
    sizes = f"{plan.sizes[0][1]}x{plan.sizes[0][1]}"
    sizes += "".join(f", {size}x{size} from step {start:,}" for start, size in plan.sizes[1:])
    if data.eval_size not in (0, data.image_size):
        sizes += f" (evaluated at {data.eval_size}x{data.eval_size})"
    ways = ", ".join(
        text
        for on, text in (
            (data.augmentation_repeats > 1, f"each {data.augmentation_repeats} times an epoch"),
            (data.class_balanced, "every class equally often"),
            (config.train.steps_per_call > 1, f"{config.train.steps_per_call} steps a call"),
        )
        if on
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    kinds = {d.device_kind for d in jax.devices()}
    changed = ", ".join(f"{key} {value}" for key, value in config.model.options().items())
    rows = {
        "device": f"{jax.device_count()} x {', '.join(sorted(kinds))} ({jax.default_backend()})",
        "dataset": (
            f"{where}: {plan.num_train:,} images to train on ({data.train_split}), {plan.num_eval:,} to "
            f"evaluate on ({data.eval_split}), {plan.num_classes} classes, {sizes} px"
        ),
        "input": (
            f"{'decoded once, kept on the device' if resident else 'decoded again every epoch'}, crop: "
            f"{data.train_crop}{ways and f', {ways}'}"
        ),
        "augment": ", ".join(augmentations(config.augment)) or "nothing",
        "model": (
            f"{config.model.name}{changed and f' ({changed})'}, {parameters:,} parameters, "
            f"computing in {compute_dtype(config.model)}"
        ),
        "steps": (
            f"{plan.total_steps:,} of {config.train.batch_size} images: "
            f"{plan.total_steps / plan.steps_per_epoch:.4g} epochs of "
            f"{plan.steps_per_epoch:,}{_microbatch_words(config, shapes)}"
        ),
        "state": (
            f"{sharding.bytes_per_device(shapes) / 2**20:,.1f} MiB on each device"
            f"{(config.train.sharding == 'optimizer' and ', with a share of optimizer and ema') or ''}"
        ),
        "loss": ", ".join(loss_terms(config.loss, config.distill)),
        "optimizer": ", ".join(optimizer_terms(config.optimizer)),
        "ema": ", ".join(ema_terms(config.ema)) or "none",
        "rate": ", ".join(schedule_terms(config, plan)),
    }
    if config.schedule.drop_rates != "constant":
        rows["dropping"] = drop_words(config, plan)
    return "\n".join(f"{key:<10}{text}" for key, text in rows.items())


def _microbatch_words(config: Config, shapes: TrainState) -> str:
    size = config.train.microbatch_size
    if size == "whole":
        return ""
    # Ghost groups are groups of the batch, whatever the number of microbatches.
    normalises = bool(shapes.batch_stats) and config.model.norm != "frozen"
    if size == "auto" and normalises and config.model.norm_scope != "ghost":
        return ", microbatch auto (free memory decides which images share batch statistics)"
    return f", microbatch {size}"


def loss_terms(config: Loss, distill: Distill) -> list[str]:
    """Describe the loss and its settings."""
    row = LOSSES[config.name]
    rows = [
        (True, row.help),
        (config.label_smoothing, f"label smoothing {config.label_smoothing:g}"),
        (config.class_weights != "equal", f"class weights {config.class_weights}"),
    ]
    described = [text for on, text in rows if on] + terms(config, row)
    if not distill.teacher:
        return described
    temperature = f"temperature {distill.temperature:g}"
    return [
        f"{distill.weight:g} x divergence from {distill.teacher} ({temperature})",
        *(
            [f"{1 - distill.weight:g} x {described[0]}", *described[1:]]
            if distill.weight < 1
            else []
        ),
    ]


def optimizer_terms(section: Optimizer) -> list[str]:
    """Describe the optimizer and its settings."""
    rates = _rule_terms(section.learning_rate_rules)
    unfreezing = ", ".join(
        f"{pattern or 'all'} at {start:g}" for pattern, start in section.unfreeze_at
    )
    decaying = _rule_terms(section.weight_decay_rules) or "all parameters"
    own = [
        term
        for term in terms(section, OPTIMIZERS[section.name])
        if not term.startswith("weight decay form")  # shown with the weight decay
    ]
    rows = [
        (True, f"weight decay {section.weight_decay:g} ({section.weight_decay_form}; {decaying})"),
        (rates, f"learning rate of {rates}"),
        (unfreezing, f"learning begins for {unfreezing}"),
        (section.layer_decay < 1, f"layer decay {section.layer_decay:g}"),
        (section.clip_norm, f"clipped to norm {section.clip_norm:g}"),
        (section.agc, f"clipped to {section.agc:g} x norm of each unit's weights"),
    ]
    return [section.name, *own, *(text for on, text in rows if on)]


def _rule_terms(rules: tuple[tuple[str, float], ...]) -> str:
    return ", ".join(f"{pattern or 'else'} x {value:g}" for pattern, value in rules)


def ema_terms(section: Ema) -> list[str]:
    """Describe the moving average; [] without one."""
    return switch_terms(section, "decay")


def schedule_terms(config: Config, plan: Plan) -> list[str]:
    """Describe the learning rate over the run."""
    schedule, rate = config.schedule, planned_learning_rate(config, plan)

    def at(step: int) -> str:
        return f"{float(rate(step)):.3g}"

    scaled = (
        f" ({config.optimizer.learning_rate:g} scaled by batch {config.train.batch_size}/"
        f"{schedule.base_batch_size}, {schedule.batch_scaling})"
    )
    shape = schedule.name.replace("_", "-")
    if schedule.power is not UNSET:
        shape += f" of power {schedule.power:g}"
    if schedule.final is not UNSET:
        shape += f" to {at(plan.total_steps - plan.cooldown_steps)}"
    if plan.milestones:
        drops = (
            f"{at(step)} at step {step:,}{'' if step < plan.total_steps else ' (after the end)'}"
            for step in plan.milestones
        )
        shape += f" to {', '.join(drops)}"
    rows = [
        (True, f"peak {at(plan.warmup_steps)}{scaled if schedule.base_batch_size else ''}"),
        (plan.warmup_steps, f"warm-up of {plan.warmup_steps:,} steps from {at(0)}"),
        (True, shape),
        (plan.cooldown_steps, f"constant in the last {plan.cooldown_steps:,} steps"),
    ]
    return [text for on, text in rows if on]


def drop_words(config: Config, plan: Plan) -> str:
    """Describe the rates of dropout and stochastic depth over the run."""
    row, factor = DROP_RATES[config.schedule.drop_rates], planned_drop_factor(config, plan)
    steps = sorted({0, plan.drop_until, plan.total_steps - 1})
    return f"{row.help}: " + ", ".join(
        f"x {float(factor(step)):.3g} at step {step:,}" for step in steps
    )


def augmentations(config: Augment) -> list[str]:
    """Describe the enabled augmentations and their settings."""
    own = ", ".join(terms(config, POLICIES[config.policy]))
    policy = [f"{config.policy}{own and f' ({own})'}"] if config.policy != "none" else []
    jitter = ("brightness", "contrast", "saturation", "hue")
    flip = ["flip"] if config.flip != "none" else []
    first = switch_terms(config, "pad_crop", *flip, *jitter)
    return first + policy + switch_terms(config, "random_erasing", "cutout", "mixup", "cutmix")
