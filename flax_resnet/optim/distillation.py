"""Knowledge distillation: the settings, and the divergence between the outputs of teacher and student."""

import dataclasses

import jax
import optax

from flax_resnet.settings import (
    ANY,
    Section,
    above,
    all_of,
    setting,
    within,
)

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Distill(Section):
    """Settings of distillation. The network learns the teacher's outputs for the same augmented images."""

    teacher: str = setting(
        "",
        ANY,
        "weights of the teacher: a timm name, a run folder or a weights file; '' for no teacher",
        # The same weights at another path give the same result. Checkpoints store the checksum of the weights.
        changes_result=False,
    )
    teacher_model: str = setting(
        "",
        ANY,
        "name of the teacher's network; needed for a weights file, unless a JSON file next to it names the network",
        needs=all_of("teacher"),
    )
    temperature: float = setting(
        1.0, above(0), "divisor of the logits of teacher and student", needs=all_of("teacher")
    )
    weight: float = setting(
        1.0,
        within(0, 1),
        "weight of the distillation loss; the loss on the labels has weight 1 - weight",
        needs=all_of("teacher"),
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
