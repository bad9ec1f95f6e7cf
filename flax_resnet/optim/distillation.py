"""Distillation: the settings, and the divergence between the teacher's and the student's outputs."""

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
    """The teacher. The network learns its outputs for the same augmented images, with or without the labels."""

    teacher: str = setting(
        "",
        ANY,
        "the teacher: a timm name, a run folder, or a weights file, as model.pretrained; '' for no teacher",
        # The weights change the result, not their path; the checkpoint holds the checksum of the weights.
        changes_result=False,
    )
    teacher_model: str = setting(
        "",
        ANY,
        "network of a teacher given as a weights file; needed if no JSON file beside it names the network",
    )
    temperature: float = setting(1.0, above(0), "divides the logits of teacher and student")
    weight: float = setting(
        1.0, within(0, 1), "weight of the teacher's term in the loss; 1 - weight for the labels"
    )


def divergence_sum(logits: Array, teacher_logits: Array, temperature: float) -> Array:
    """Return ``T^2 sum_n KL(softmax(teacher_logits / T) || softmax(logits / T))``, float32 [].

    The factor T^2 keeps the gradient's scale independent of the temperature.

    Args:
      logits: the student's logits, [N, K].
      teacher_logits: the teacher's logits, [N, K].
      temperature: T.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2.
    """
    student, teacher = (jax.nn.log_softmax(x / temperature) for x in (logits, teacher_logits))
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher).sum()
