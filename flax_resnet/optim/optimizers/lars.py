"""LARS: SGD with a trust ratio, which scales the gradient of each layer to the norm of its weights."""

import optax

from flax_resnet.optim.optimizer_section import Optimizer, OptimizerRow
from flax_resnet.optim.optimizers.sgd import MOMENTUM, momentum


def _trust(section: Optimizer) -> optax.GradientTransformation:
    return optax.scale_by_trust_ratio(
        trust_coefficient=section.trust_coefficient, eps=section.epsilon
    )


# You et al. 2017, "Large batch training of convolutional networks", algorithm 1.
ROWS = (
    OptimizerRow(
        name="lars",
        help="SGD with a trust ratio for each layer",
        uses={**MOMENTUM, "trust_coefficient": 0.001, "epsilon": 1e-8},
        direction=lambda section: optax.identity(),
        trust=_trust,
        finish=momentum,
    ),
)
