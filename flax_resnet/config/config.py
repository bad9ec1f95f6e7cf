"""The configuration of a run: one frozen dataclass per section.

    default_config()    the default settings of all sections, a locked `ConfigDict`
    configs/*.py        a recipe changes some of them
    --config.KEY=...    the command line overrides single keys
    freeze()            checks the result and converts it to `Config`, once

Code after `freeze()` reads no defaults and no `ConfigDict`.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, get_type_hints

from flax_resnet.augment.augment_section import Augment
from flax_resnet.config.train_section import Train
from flax_resnet.data.data_section import Data
from flax_resnet.models.model_section import Model
from flax_resnet.optim.distillation import Distill
from flax_resnet.optim.ema import Ema
from flax_resnet.optim.losses import Loss
from flax_resnet.optim.optimizer_section import OPTIMIZERS, Optimizer
from flax_resnet.optim.schedules import Schedule
from flax_resnet.settings import UNSET
from flax_resnet.trackers.log_section import Log

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run, by section."""

    data: Data = dataclasses.field(default_factory=Data)
    augment: Augment = dataclasses.field(default_factory=Augment)
    model: Model = dataclasses.field(default_factory=Model)
    loss: Loss = dataclasses.field(default_factory=Loss)
    distill: Distill = dataclasses.field(default_factory=Distill)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    ema: Ema = dataclasses.field(default_factory=Ema)
    train: Train = dataclasses.field(default_factory=Train)
    log: Log = dataclasses.field(default_factory=Log)

    def evaluating(self) -> "Config":
        """Return the configuration for evaluation: `data.image_size` is the size of evaluation images."""
        size = self.data.eval_size or self.data.image_size
        data = self.data.but(image_size=size, progressive=())
        return dataclasses.replace(self, data=data)

    @property
    def averages_weights(self) -> bool:
        """Whether a moving average of the weights is kept, by `ema` or by the optimizer itself."""
        return bool(self.ema.decay or OPTIMIZERS[self.optimizer.name].average)

    def keeps_resident(self, examples: int, crop: str) -> bool:
        """Return whether to decode a split once and keep it on the device.

        Args:
          examples: number of examples of the split.
          crop: crop of its images: `data.train_crop` or `data.eval_crop`.
        """
        crops_vary = crop == "random_resized" or self.data.progressive
        if crops_vary or self.train.feed != "auto":
            return not crops_vary and self.train.feed == "resident"
        size = 3 * examples * self.data.image_size**2
        return size <= self.train.resident_gib * 2**30


def default_config() -> "ConfigDict":
    """Return all settings at their defaults, as a ConfigDict that is locked: setting an unknown key raises.

    Some settings belong to others, as the momentum to the optimizer. Such a setting is a placeholder: its value is
    None until it is set.
    """
    from ml_collections import ConfigDict, config_dict  # imported here: training does not need it

    return ConfigDict(
        {
            name: {
                field.name: config_dict.placeholder(get_type_hints(section)[field.name])
                if field.default is UNSET
                else field.default
                for field in dataclasses.fields(section)
            }
            for name, section in sections().items()
        }
    ).lock()


def settings() -> dict[str, dataclasses.Field]:
    """Return {dotted key: field} of all settings; a key looks like ``train.batch_size``."""
    return {
        f"{name}.{field.name}": field
        for name, section in sections().items()
        for field in dataclasses.fields(section)
    }


def owners() -> dict[str, tuple[str, ...]]:
    """Return {dotted key: dotted keys of the settings that it belongs to}: optimizer.momentum -> optimizer.name."""
    owned = {}
    for key, field in settings().items():
        section = key.partition(".")[0]
        if needs := field.metadata.get("needs"):
            owned[key] = tuple(f"{section}.{name}" for name in needs.values)
        elif registry := field.metadata.get("registry"):
            owned |= {f"{section}.{name}": (key,) for name in registry.settings}
    return owned


def sections() -> dict[str, Any]:
    """Return {name: class} of all sections."""
    return {section.name: section.type for section in dataclasses.fields(Config)}


def differences(stored: Config, wanted: Config) -> list[str]:
    """Return ``key: stored -> wanted`` for settings that differ and change the result, except the run's length."""
    flat_stored, flat_wanted = flatten(stored), flatten(wanted)
    return [
        f"{key}: {flat_stored[key]!r} -> {flat_wanted[key]!r}"
        for key, field in settings().items()
        if field.metadata["changes_result"]
        and key not in ("train.epochs", "train.steps")
        and flat_stored[key] != flat_wanted[key]
    ]


def flatten(config: Config) -> dict[str, Any]:
    """Return {dotted key: value} of all settings."""
    return {
        f"{section}.{key}": value
        for section, values in dataclasses.asdict(config).items()
        for key, value in values.items()
    }
