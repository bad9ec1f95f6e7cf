"""RMSProp, in TensorFlow's form."""

import optax

from flax_resnet.optim.optimizer_section import Optimizer, OptimizerRow
from flax_resnet.optim.optimizers.sgd import MOMENTUM, momentum


def _direction(section: Optimizer) -> optax.GradientTransformation:
    # As in TensorFlow: epsilon is inside the root, and the mean square starts at 1.
    return optax.scale_by_rms(section.rms_decay, section.epsilon, initial_scale=1.0)


# Tieleman and Hinton 2012.
ROWS = (
    OptimizerRow(
        name="rmsprop",
        help="the gradient divided by the root of its mean square",
        uses={**MOMENTUM, "rms_decay": 0.9, "epsilon": 1e-8},
        direction=_direction,
        elementwise=True,
        finish=momentum,
    ),
)
