"""Distillation: the settings, and the divergence from the outputs of a teacher."""

import dataclasses

import jax
import optax

from flax_resnet.settings import (
    ANY,
    above,
    setting,
    within,
)

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Distill:
    """A teacher, whose outputs for the same augmented images are learned beside, or in place of, the labels."""

    teacher: str = setting(
        "",
        ANY,
        "as model.pretrained: a timm name, a run folder, or a file of weights; '' for none",
        changes_result=False,  # its weights do, whose checksum the checkpoint has
    )
    teacher_model: str = setting(
        "", ANY, "of a file: the network that it holds, where no JSON file beside it says so"
    )
    temperature: float = setting(1.0, above(0), "by which both networks' logits are divided")
    weight: float = setting(
        1.0, within(0, 1), "share of the teacher in the loss; the rest is the labels'"
    )


def divergence_sum(logits: Array, teacher_variables: Array, temperature: float) -> Array:
    """Returns ``T^2 sum_n KL(softmax(teacher_variables / T) || softmax(logits / T))``, float32 [].

    T^2 keeps the size of the gradient from one temperature to another.

    Args:
      logits: the student's, [N, K].
      teacher_variables: the teacher's, [N, K].
      temperature: T.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2.
    """
    student, teacher = (jax.nn.log_softmax(x / temperature) for x in (logits, teacher_variables))
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher).sum()
