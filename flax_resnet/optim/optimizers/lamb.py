"""LAMB: Adam with a trust ratio, which scales the update of each layer to the norm of its weights."""

import optax

from flax_resnet.optim.optimizer_section import OptimizerRow
from flax_resnet.optim.optimizers.adamw import ADAM, adam

# You et al. 2020, "Large batch optimization for deep learning", algorithm 2.
ROWS = (
    OptimizerRow(
        name="lamb",
        help="Adam with a trust ratio for each layer",
        uses=ADAM,
        direction=adam,
        trust=lambda section: optax.scale_by_trust_ratio(),
    ),
)
