"""The loss of a training batch, and the inputs of loss and gradient."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from flax_resnet.config import Config
from flax_resnet.models.network import Network
from flax_resnet.optim.distillation import divergence_sum
from flax_resnet.optim.evaluation_metrics import is_top1
from flax_resnet.optim.losses import loss_sum
from flax_resnet.training.teacher import Teacher

Metrics = dict[str, jax.Array]


class LossInputs(NamedTuple):
    """The inputs of the loss function, besides the parameters. The examples are a whole batch or a part of it.

    Attributes:
      batch_stats: running statistics before the step.
      images: augmented images, float [N, S, S, C].
      targets: soft labels, float32 [N, K].
      weight: divisor of the sum of the losses: `loss_weight` of the whole batch, float32 [].
      dropout_key: random key of dropout and stochastic depth.
      drop_factor: factor on the rates of dropout and stochastic depth; 1.0, or float32 [].
      teacher_variables: variables of the teacher, or None.
      loss_scale: factor on the loss before differentiation (float16); 1.0, or float32 [].
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
    """A function that computes the gradient of a loss."""

    def __call__(self, params: optax.Params, inputs: LossInputs) -> tuple[Any, tuple[Metrics, Any]]:
        """Return (gradient, (metrics, batch_stats)): metrics `loss` and `top1`, and the new running statistics."""


def make_loss(
    config: Config,
    model: Network,
    teacher: Teacher | None = None,
    class_weights: Sequence[float] = (),
) -> Callable:
    """Return the loss to differentiate.

    Returns:
      ``loss(params, inputs) -> (loss, (metrics, batch_stats))``. The loss is the sum over the examples of `inputs`
      divided by `inputs.weight`. The metrics are `loss` and `top1`, the number of correct examples of `inputs`
      divided by the size of the whole batch. For a mixed label, the class with the larger share is correct.
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
        loss = loss_sum(logits, inputs.targets, config.loss, class_weights) / inputs.weight
        if teacher:
            wanted = teacher.logits(inputs.teacher_variables, inputs.images)
            divergence = divergence_sum(logits, wanted, section.temperature) / batch_size
            loss = section.weight * divergence + (1 - section.weight) * loss
        hits = is_top1(logits, jnp.argmax(inputs.targets, axis=-1)).sum()
        metrics = {"loss": loss, "top1": hits / batch_size}
        return loss, (metrics, updated.get("batch_stats", {}))

    return loss_fn
