"""Distillation: the teacher, a trained network, computes the targets for the same augmented images."""

import dataclasses
import functools
import logging
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from flax_resnet.augment.augment_section import Augment
from flax_resnet.config import Config
from flax_resnet.data.data_section import Data
from flax_resnet.errors import ConfigError
from flax_resnet.models.model_section import Model
from flax_resnet.models.network import Network
from flax_resnet.training.pretrained import adopted, open_pretrained
from flax_resnet.training.state import build_model
from flax_resnet.weights import classes_of, match_logits
from flax_resnet.weights.fill import fill

log = logging.getLogger("flax_resnet")
Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained, frozen network.

    Attributes:
      model: the network.
      scale: float32 [1, 1, 1, C]. ``images * scale + offset`` converts the student's normalisation to the
        teacher's.
      offset: float32 [1, 1, 1, C].
      variables: {"params", "batch_stats"}; the compiled step takes them as an argument, not as a constant.
      order: index among the teacher's logits, for each logit of the student; () if they have the same order.
    """

    model: Network
    scale: np.ndarray
    offset: np.ndarray
    variables: dict[str, Any]
    order: tuple[int, ...] = ()

    @functools.cached_property
    def checksum(self) -> int:
        """The CRC-32 of `order`, `scale`, `offset` and `variables`."""
        checksum = zlib.crc32(repr(self.order).encode()) if self.order else 0
        for leaf in jax.tree.leaves((self.scale, self.offset, self.variables)):
            checksum = zlib.crc32(np.ascontiguousarray(leaf).data, checksum)
        return checksum

    def logits(self, variables: Any, images: Array) -> Array:
        """Return the teacher's logits [N, K] for images [N, S, S, C] normalised for the student."""
        normalised = images * self.scale + self.offset
        logits = jax.lax.stop_gradient(self.model.apply(variables, normalised, train=False))
        return logits[:, np.array(self.order)] if self.order else logits


def open_teacher(config: Config, num_classes: int, class_names: Sequence[str]) -> Teacher:
    """Read the configured teacher; its variables are NumPy arrays.

    Raises:
      ConfigError: the teacher has other classes, or takes images with another number of channels.
      UserError: there are no such weights.
    """
    section, own = config.distill, config.augment
    model = Model(name=section.teacher_model, pretrained=section.teacher, dtype=config.model.dtype)
    asked = Config(model=model, data=Data(image_size=0), augment=Augment(mean=(), std=()))
    tensors, about = open_pretrained(asked, ("distill.teacher", "distill.teacher_model"))
    theirs = adopted(asked, about)
    if len(about.mean) != len(own.mean):
        raise ConfigError(
            f"takes images of {len(about.mean)} channels",
            key="distill.teacher",
            value=section.teacher,
            allowed=f"a network for images of model.in_channels={len(own.mean)}",
        )
    classes = classes_of(tensors)
    if classes != num_classes:
        raise ConfigError(
            f"has {classes} classes",
            key="distill.teacher",
            value=section.teacher,
            allowed=f"a network with the {num_classes} classes of the student",
        )
    match = match_logits(class_names, about.class_names, classes)
    if match.problem:
        raise ConfigError(
            f"the dataset {match.problem}",
            key="distill.teacher",
            value=section.teacher,
            allowed="a network with the classes of the dataset",
        )
    if match.note:
        log.info("distill.teacher=%s: %s", section.teacher, match.note)
    network = build_model(theirs, classes)
    scale = np.array(own.std) / np.array(about.std)
    offset = (np.array(own.mean) - np.array(about.mean)) / np.array(about.std)
    scale, offset = (x.astype(np.float32).reshape(1, 1, 1, -1) for x in (scale, offset))
    log.info("learning from %s, %s", section.teacher, about.name)
    order = match.order if match.changes_order else ()
    return Teacher(network, scale, offset, fill(network, tensors), order)
