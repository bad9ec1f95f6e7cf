"""AdamW."""

import optax

from flax_resnet.optim.optimizer_section import Optimizer, OptimizerRow


def adam(section: Optimizer) -> optax.GradientTransformation:
    """Return Adam's direction, or NAdam's with `nesterov`."""
    return optax.scale_by_adam(*section.betas, section.epsilon, nesterov=section.nesterov)


# What the row of an optimizer with Adam's direction uses.
ADAM = {
    "betas": (0.9, 0.999),
    "nesterov": False,
    "epsilon": 1e-8,
    "weight_decay_form": "decoupled",
}
# Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2.
ROWS = (
    OptimizerRow(
        name="adamw",
        help="Adam with decoupled weight decay",
        uses=ADAM,
        direction=adam,
        elementwise=True,
    ),
)
