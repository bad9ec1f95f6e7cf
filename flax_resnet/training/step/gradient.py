"""The loss of a training batch and its gradient; what is special about either is a wrapper in a file of its own."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flax_resnet.config import Config
from flax_resnet.models.network import Network
from flax_resnet.optim.distillation import divergence_sum
from flax_resnet.optim.losses import loss_sum
from flax_resnet.optim.metrics import is_top1
from flax_resnet.training.step.by_device import by_device
from flax_resnet.training.step.loss_scale import scaled
from flax_resnet.training.step.microbatches import microbatched
from flax_resnet.training.teacher import Teacher

Metrics = dict[str, jax.Array]


class LossInputs(NamedTuple):
    """Everything but the parameters that a loss depends on.

    Attributes:
      batch_stats: running statistics before the step.
      images: augmented, float [N, S, S, C].
      targets: soft labels, float32 [N, K].
      weight: what the sum of the losses is divided by: `loss_weight` of the whole batch, of which these may be a
        part; float32 [].
      dropout_key: draws what drops out.
      drop_factor: multiplies the rates of dropout and stochastic depth; 1.0, or float32 [].
      teacher_variables: the teacher's, or None.
      loss_scale: multiplies the loss before it is differentiated (float16); 1.0, or float32 [].
    """

    batch_stats: Any
    images: jax.Array
    targets: jax.Array
    weight: jax.Array | float
    dropout_key: jax.Array
    drop_factor: jax.Array | float = 1.0
    teacher_variables: Any = None
    loss_scale: jax.Array | float = 1.0


class Gradient(Protocol):
    """Computes a gradient."""

    def __call__(self, params: optax.Params, inputs: LossInputs) -> tuple[Any, tuple[Metrics, Any]]:
        """Return the gradient, and (metrics, batch_stats): loss and top1 of the batch, and its new statistics."""


def make_loss(config: Config, model: Network, teacher: Teacher | None = None) -> Callable:
    """Return the loss to differentiate.

    Returns:
      ``loss(params, inputs) -> (loss, (metrics, batch_stats))``. The loss is the sum over these examples divided by
      `inputs.weight`. The metrics are `loss`, and `top1`: the hits among these examples over the size of the whole
      batch; of a mixed label, the larger part counts.
    """
    section, batch_size = config.distill, config.train.batch_size

    def loss_fn(params: optax.Params, inputs: LossInputs) -> tuple[jax.Array, tuple[Metrics, Any]]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": inputs.batch_stats},
            inputs.images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": inputs.dropout_key},
            drop_factor=inputs.drop_factor,
        )
        loss = loss_sum(logits, inputs.targets, config.loss) / inputs.weight
        if teacher:
            wanted = teacher.logits(inputs.teacher_variables, inputs.images)
            divergence = divergence_sum(logits, wanted, section.temperature) / batch_size
            loss = section.weight * divergence + (1 - section.weight) * loss
        hits = is_top1(logits, jnp.argmax(inputs.targets, axis=-1)).sum()
        metrics = {"loss": loss, "top1": hits / batch_size}
        return loss, (metrics, updated.get("batch_stats", {}))

    return loss_fn


def make_gradient(
    config: Config,
    model: Network,
    mesh: Mesh,
    *,
    microbatches: int = 1,
    teacher: Teacher | None = None,
) -> Gradient:
    """Return the gradient of the loss: of the whole batch at once, unless the configuration asks for more.

    Args:
      config: the configuration.
      model: the network.
      mesh: the devices.
      microbatches: into how many the batch is divided, one after the other.
      teacher: the teacher network, or None.
    """
    local = config.model.norm_scope == "local" and mesh.size > 1
    # Where each device sees its own examples only, its batch is its group.
    loss_fn = make_loss(config, model.clone(norm_groups=1) if local else model, teacher)
    if config.model.dtype == "float16":
        loss_fn = scaled(loss_fn)
    gradient = jax.grad(loss_fn, has_aux=True)
    if local:
        gradient = by_device(gradient, model, mesh, config.train.gradient_dtype)
    if microbatches > 1:
        gradient = microbatched(gradient, mesh, microbatches)
    return gradient
