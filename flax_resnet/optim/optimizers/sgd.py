"""SGD with momentum."""

import optax

from flax_resnet.optim.optimizer_section import Optimizer, OptimizerRow


def momentum(section: Optimizer) -> optax.GradientTransformation:
    """Return the transformation ``v = momentum v + g``. As in PyTorch, v does not include the learning rate."""
    if not section.momentum:
        return optax.identity()
    return optax.trace(section.momentum, section.nesterov)


# What the row of an optimizer with momentum uses.
MOMENTUM = {"momentum": 0.9, "nesterov": False, "weight_decay_form": "coupled"}
# Sutskever et al. 2013, "On the importance of initialization and momentum", section 2.
ROWS = (
    OptimizerRow(
        name="sgd",
        help="SGD with momentum",
        uses=MOMENTUM,
        direction=momentum,
        elementwise=True,
    ),
)
