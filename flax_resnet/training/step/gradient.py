"""The gradient of the loss of a training batch, with the wrappers that the configuration asks for."""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from flax_resnet.config import Config
from flax_resnet.models.network import Network
from flax_resnet.training import sharding
from flax_resnet.training.step.by_device import by_device
from flax_resnet.training.step.loss_scale import scaled
from flax_resnet.training.step.microbatches import microbatched
from flax_resnet.training.step.training_loss import Gradient, make_loss
from flax_resnet.training.teacher import Teacher


def make_gradient(
    config: Config,
    model: Network,
    mesh: Mesh,
    *,
    microbatches: int = 1,
    teacher: Teacher | None = None,
    class_weights: Sequence[float] = (),
) -> Gradient:
    """Return a function that computes the gradient of the loss.

    It applies the configured loss scaling, per-device sums and microbatches.

    Args:
      config: the configuration.
      model: the network.
      mesh: the devices.
      microbatches: number of microbatches per batch; they run one after another. With ghost batch normalisation it
        must divide the groups of the batch (`microbatches_of` checks it).
      teacher: the teacher network, or None.
      class_weights: weights of the classes in the loss; () for equal weights.
    """
    local = config.model.norm_scope == "local" and mesh.size > 1
    groups = config.model.ghost_groups
    own_model = model
    if local:  # each device sees only its own examples: one group
        own_model = model.clone(norm_groups=1)
    elif groups > 1:  # the groups of the batch are divided among the microbatches
        own_model = model.clone(norm_groups=groups // microbatches)
    loss_fn = make_loss(config, own_model, teacher, class_weights)
    if not local:
        loss_fn = sharding.on_mesh(loss_fn, mesh)
    if config.model.dtype == "float16":
        loss_fn = scaled(loss_fn)
    gradient = jax.grad(loss_fn, has_aux=True)
    if local:
        gradient = by_device(gradient, model, mesh, config.train.gradient_dtype)
    if microbatches > 1:
        gradient = microbatched(gradient, mesh, microbatches, groups)
    return gradient
