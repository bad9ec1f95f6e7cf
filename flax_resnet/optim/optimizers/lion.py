"""Lion: the sign of an interpolation between the gradient and its running mean."""

import optax

from flax_resnet.optim.optimizer_section import OptimizerRow

# Chen et al. 2023, "Symbolic discovery of optimization algorithms", algorithm 2. Every update has the size of the
# learning rate, so that it is a third to a tenth of AdamW's, and weight decay three to ten times as large.
ROWS = (
    OptimizerRow(
        name="lion",
        help="the sign of an interpolated gradient",
        uses={"betas": (0.9, 0.99), "weight_decay_form": "decoupled"},
        direction=lambda section: optax.scale_by_lion(*section.betas),
    ),
)
