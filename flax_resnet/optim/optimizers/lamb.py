"""LAMB: Adam with a trust ratio, which scales the update of each layer to the norm of its weights."""

import optax

from flax_resnet.optim.optimizer_section import OptimizerRow
from flax_resnet.optim.optimizers.adamw import adam

# You et al. 2020, "Large batch optimization for deep learning", algorithm 2.
ROWS = (
    OptimizerRow(
        name="lamb",
        help="Adam with a trust ratio for each layer",
        uses={
            "betas": (0.9, 0.999),
            "nesterov": False,
            "epsilon": 1e-8,
            "weight_decay_form": "decoupled",
        },
        direction=adam,
        trust=lambda section: optax.scale_by_trust_ratio(),
    ),
)
