"""Lion: each update is the sign of an interpolation between the gradient and its moving average."""

import optax

from flax_resnet.optim.optimizer_section import OptimizerRow

# Chen et al. 2023, "Symbolic discovery of optimization algorithms", algorithm 2. Each element of an update is
# plus or minus the learning rate. So use a learning rate 3 to 10 times smaller than for AdamW, and a weight decay 3
# to 10 times larger.
ROWS = (
    OptimizerRow(
        name="lion",
        help="the sign of an interpolation between the gradient and its moving average",
        uses={"betas": (0.9, 0.99), "weight_decay_form": "decoupled"},
        direction=lambda section: optax.scale_by_lion(*section.betas),
        elementwise=True,
    ),
)
