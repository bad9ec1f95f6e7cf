"""Distillation: a network learns what another, the teacher, makes of the same augmented images."""

import dataclasses
import functools
import logging
import pathlib
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
from flax_resnet.training.pretrained import adopted, is_path, open_pretrained
from flax_resnet.training.state import build_model
from flax_resnet.weights import classes_of, imagenet_classes
from flax_resnet.weights.fill import fill

log = logging.getLogger("flax_resnet")
Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network that stays as it is.

    Attributes:
      model: the network.
      scale: float32 [1, 1, 1, C]; with `offset`, turns images as the student sees them into the teacher's.
      offset: float32 [1, 1, 1, C].
      variables: {"params", "batch_stats"}; an argument of the compiled step, not a constant in it.
    """

    model: Network
    scale: np.ndarray
    offset: np.ndarray
    variables: dict[str, Any]

    @functools.cached_property
    def checksum(self) -> int:
        """The CRC-32 of all that the teacher's outputs depend on beside its network."""
        found = 0
        for leaf in jax.tree.leaves((self.scale, self.offset, self.variables)):
            found = zlib.crc32(np.ascontiguousarray(leaf).data, found)
        return found

    def logits(self, variables: Any, images: Array) -> Array:
        """Returns what the teacher makes, [N, K], of images [N, S, S, C] normalised for the student."""
        seen = images * self.scale + self.offset
        return jax.lax.stop_gradient(self.model.apply(variables, seen, train=False))


def with_absolute_teacher(config: Config) -> Config:
    """Return the configuration with an absolute path to its teacher, if it names one by a path."""
    text = config.distill.teacher
    if not text or not is_path(text):
        return config
    path = str(pathlib.Path(text).expanduser().resolve())
    return dataclasses.replace(config, distill=dataclasses.replace(config.distill, teacher=path))


def open_teacher(config: Config, num_classes: int, class_names: Sequence[str]) -> Teacher:
    """Read the configured teacher; its variables are NumPy arrays.

    Raises:
      ConfigError: it has other classes, or takes images of other channels.
      UserError: there are no such weights.
    """
    section, own = config.distill, config.augment
    model = Model(name=section.teacher_model, pretrained=section.teacher, dtype=config.model.dtype)
    asked = Config(model=model, data=Data(image_size=0), augment=Augment(mean=(), std=()))
    tensors, about = open_pretrained(asked, ("distill.teacher", "distill.teacher_model"))
    theirs = adopted(asked, about)
    if len(about.mean) != len(own.mean):
        raise ConfigError(
            f"distill.teacher={section.teacher!r}: takes images of {len(about.mean)} channels, not of "
            f"model.in_channels={len(own.mean)}"
        )
    classes = classes_of(tensors)
    if classes != num_classes or not _same(about.class_names, class_names):
        raise ConfigError(
            f"distill.teacher={section.teacher!r}: has {classes} classes, {_first(about.class_names)}; must be the "
            f"dataset's {num_classes}, {_first(class_names)}, in the same order"
        )
    network = build_model(theirs, classes)
    scale = np.array(own.std) / np.array(about.std)
    offset = (np.array(own.mean) - np.array(about.mean)) / np.array(about.std)
    scale, offset = (x.astype(np.float32).reshape(1, 1, 1, -1) for x in (scale, offset))
    log.info("learning from %s, %s", section.teacher, about.name)
    return Teacher(network, scale, offset, fill(network, tensors))


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "") if names else "unnamed"


def _same(theirs: Sequence[str], own: Sequence[str]) -> bool:
    """Whether classes are the same in the same order, so far as the teacher names them."""
    theirs, own = tuple(theirs), tuple(own)
    unnamed = theirs in ((), tuple(map(str, range(len(theirs)))))
    # The hub's ImageNet weights have names in words, or the like, for what datasets name by WordNet's ids.
    return unnamed or theirs == own or own == imagenet_classes()[0]
