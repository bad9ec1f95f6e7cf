"""A whole configuration, frozen and validated once.

`default_config()` gives the settings of sections.py as a locked `ConfigDict`, a file in configs/ changes what its
recipe changes, the command line overrides single keys, and `freeze()` turns the result into the dataclasses, once.
Nothing behind that line reads a default or a `ConfigDict`.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from flax_resnet.augment.augment_section import Augment
from flax_resnet.config.train_section import Train
from flax_resnet.data.data_section import Data
from flax_resnet.models.model_section import Model
from flax_resnet.optim.distillation import Distill
from flax_resnet.optim.ema import Ema
from flax_resnet.optim.losses import Loss
from flax_resnet.optim.optimizers import Optimizer
from flax_resnet.optim.schedules import Schedule

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    data: Data = dataclasses.field(default_factory=Data)
    augment: Augment = dataclasses.field(default_factory=Augment)
    model: Model = dataclasses.field(default_factory=Model)
    loss: Loss = dataclasses.field(default_factory=Loss)
    distill: Distill = dataclasses.field(default_factory=Distill)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    ema: Ema = dataclasses.field(default_factory=Ema)
    train: Train = dataclasses.field(default_factory=Train)

    def evaluating(self) -> "Config":
        """Returns the configuration with the image size of evaluation as that of its images."""
        size = self.data.eval_size or self.data.image_size
        data = dataclasses.replace(self.data, image_size=size, progressive=())
        return dataclasses.replace(self, data=data)

    def keeps_resident(self, examples: int, crop: str) -> bool:
        """Says whether a split of so many examples, cut so, is decoded once and kept on the device."""
        anew = crop == "random_resized" or self.data.progressive
        if anew or self.train.feed != "auto":
            return not anew and self.train.feed == "resident"
        size = 3 * examples * self.data.image_size**2
        return size <= self.train.resident_gib * 2**30


def default_config() -> "ConfigDict":
    """Returns every setting at its default; locked, so that an unknown key is refused."""
    from ml_collections import ConfigDict  # what trains and measures steps does without it

    return ConfigDict(dataclasses.asdict(Config())).lock()


def settings() -> dict[str, dataclasses.Field]:
    """Returns every field by its dotted key, such as ``train.batch_size``."""
    return {
        f"{name}.{field.name}": field
        for name, section in sections().items()
        for field in dataclasses.fields(section)
    }


def sections() -> dict[str, Any]:
    """Return the class of every section by its name."""
    return {section.name: section.type for section in dataclasses.fields(Config)}


def differences(stored: Config, wanted: Config) -> list[str]:
    """Returns ``key: stored -> wanted`` for every setting that changes the result, bar the length of the run."""
    flat_stored, flat_wanted = flatten(stored), flatten(wanted)
    return [
        f"{key}: {flat_stored[key]!r} -> {flat_wanted[key]!r}"
        for key, field in settings().items()
        if field.metadata["changes_result"]
        and key not in ("train.epochs", "train.steps")
        and flat_stored[key] != flat_wanted[key]
    ]


def flatten(config: Config) -> dict[str, Any]:
    """Returns every value by its dotted key."""
    return {
        f"{section}.{key}": value
        for section, values in dataclasses.asdict(config).items()
        for key, value in values.items()
    }
