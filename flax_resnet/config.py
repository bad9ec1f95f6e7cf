"""A whole configuration, frozen and validated once.

`default_config()` gives the settings of sections.py as a locked `ConfigDict`, a file in configs/ changes what its
recipe changes, the command line overrides single keys, and `freeze()` turns the result into the dataclasses, once.
Nothing behind that line reads a default or a `ConfigDict`.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from flax_resnet.errors import ConfigError, suggestion
from flax_resnet.sections import (
    Augment,
    Average,
    Data,
    Distill,
    Loss,
    Model,
    Optimizer,
    Schedule,
    Train,
)

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
    average: Average = dataclasses.field(default_factory=Average)
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
        f"{section.name}.{field.name}": field
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(section.type)
    }


def freeze(values: "Mapping[str, Any] | ConfigDict") -> Config:
    """Makes the frozen configuration of a nested mapping (a ConfigDict, or parsed config.json).

    Missing keys keep their defaults.

    Raises:
      ConfigError: an unknown key, a wrong type, or a value out of range; one line with key, value and
        what is allowed.
    """
    if not isinstance(values, Mapping):
        values = values.to_dict()
    known = settings()
    sections = {section.name: section.type for section in dataclasses.fields(Config)}
    built = {}
    for name, section in values.items():
        if name not in sections or not isinstance(section, Mapping):
            raise ConfigError(f"config key {name!r} is unknown: {suggestion(name, sections)}")
        types, fields = get_type_hints(sections[name]), {}
        for key, value in section.items():
            dotted = f"{name}.{key}"
            if dotted not in known:
                raise ConfigError(f"config key {dotted!r} is unknown: {suggestion(dotted, known)}")
            fields[key] = _checked(dotted, value, types[key], known[dotted].metadata)
        built[name] = sections[name](**fields)
    config = Config(**built)
    _check_together(config)
    return config


def _checked(key: str, value: Any, kind: type, metadata: Mapping[str, Any]) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is tuple and isinstance(value, list | tuple):
        value = tuple(tuple(part) if isinstance(part, list) else part for part in value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{key}={value!r}: must be {kind.__name__} ({metadata['help']})")
    if (
        kind is tuple
        and metadata["rule"].numbers
        and not all(isinstance(x, int | float) for x in value)
    ):
        raise ConfigError(f"{key}={value!r}: must be numbers ({metadata['help']})")
    if not metadata["rule"].holds(value):
        raise ConfigError(f"{key}={value!r}: must be {metadata['rule'].words} ({metadata['help']})")
    return value


def _check_together(config: Config) -> None:
    """Refuses values that are each allowed but do not go together."""
    needs = {"folder": "the folder of images", "csv": "the CSV file"}.get(config.data.source)
    if needs and not config.data.path:
        raise ConfigError(
            f"data.path='': must name {needs} when data.source={config.data.source!r}"
        )
    if config.train.feed == "resident" and config.data.train_crop == "random_resized":
        raise ConfigError(
            "train.feed='resident': goes with data.train_crop='resize' or 'center', not "
            "'random_resized', which cuts an image anew every time"
        )
    if config.train.feed == "resident" and config.data.progressive:
        raise ConfigError(
            f"train.feed='resident': keeps images of one size; not with data.progressive={config.data.progressive}"
        )
    least = min((int(size) for _, size in config.data.progressive), default=config.data.image_size)
    model, size = config.model, config.data.image_size
    left_open = {
        "model.name": (model.name, "a network's name"),
        "data.image_size": (size, "at least 1"),
        "augment.mean": (config.augment.mean, "3 numbers (1 for grey)"),
        "augment.std": (config.augment.std, "3 numbers (1 for grey)"),
    }
    for key, (value, words) in left_open.items():
        if not value and not model.pretrained:
            raise ConfigError(
                f"{key}={value!r}: must be {words} where model.pretrained names no weights to take it from"
            )
    if size and config.augment.shift >= least:
        raise ConfigError(
            f"augment.shift={config.augment.shift}: must be below the {least} px of the smallest training "
            f"images (data.image_size={size}, data.progressive={config.data.progressive})"
        )
    evaluated = config.data.eval_size or size
    if size and config.augment.eval_shift >= evaluated:
        raise ConfigError(
            f"augment.eval_shift={config.augment.eval_shift}: must be below the {evaluated} px that are evaluated"
        )
    if size and config.augment.cutout > least:
        raise ConfigError(
            f"augment.cutout={config.augment.cutout}: must be at most the {least} px of the smallest training "
            f"images (data.image_size={size}, data.progressive={config.data.progressive})"
        )
    for key in ("mixup", "cutmix"):
        if getattr(config.augment, key) and config.train.batch_size % 2:
            raise ConfigError(
                f"train.batch_size={config.train.batch_size}: must be even with "
                f"augment.{key}={getattr(config.augment, key)}, which mixes images in pairs"
            )
    for key in ("mean", "std"):
        given = getattr(config.augment, key)
        if given and model.name and len(given) != model.in_channels:
            raise ConfigError(
                f"augment.{key}={getattr(config.augment, key)}: must be {config.model.in_channels} "
                f"numbers, as model.in_channels={config.model.in_channels}"
            )
    unset = Distill()
    for field in dataclasses.fields(Distill):
        value = getattr(config.distill, field.name)
        if not config.distill.teacher and value != getattr(unset, field.name):
            raise ConfigError(
                f"distill.{field.name}={value!r}: goes with distill.teacher; there is none"
            )
    if config.average.recalibrate and config.data.progressive:
        raise ConfigError(
            f"average.recalibrate={config.average.recalibrate}: measures on the run's first images, whose size "
            "data.progressive changes; allowed: 0, which averages the statistics as the weights"
        )
    if config.average.recalibrate and not config.average.decay:
        raise ConfigError(
            f"average.recalibrate={config.average.recalibrate}: goes with average.decay above 0; there is no mean"
        )
    average = config.average
    for key in ("rise", "lookahead"):
        if getattr(average, key) and not average.decay:
            raise ConfigError(
                f"average.{key}={getattr(average, key):g}: goes with average.decay above 0; there is no mean"
            )
    if average.lookahead and average.recalibrate:
        raise ConfigError(
            f"average.lookahead={average.lookahead}: the weights go on from the mean and its statistics; allowed: "
            "0, or average.recalibrate=0"
        )
    schedule = config.schedule
    if (schedule.drop_until > 0) != (schedule.drop_rates in ("early", "late")):
        raise ConfigError(
            f"schedule.drop_until={schedule.drop_until:g}: must be above 0 with schedule.drop_rates='early' or "
            f"'late', and 0 without (drop_rates={schedule.drop_rates!r})"
        )
    if (config.model.norm_groups > 1) != (config.model.norm_scope == "ghost"):
        raise ConfigError(
            f"model.norm_groups={config.model.norm_groups}: must be above 1 with "
            f"model.norm_scope='ghost', and 1 without (norm_scope={config.model.norm_scope!r})"
        )
    if config.train.gradient_dtype != "float32" and config.model.norm_scope != "local":
        raise ConfigError(
            f"train.gradient_dtype={config.train.gradient_dtype!r}: must be 'float32' without "
            f"model.norm_scope='local' (norm_scope={config.model.norm_scope!r})"
        )
    if config.train.batch_size % config.model.norm_groups:
        raise ConfigError(
            f"model.norm_groups={config.model.norm_groups}: must divide "
            f"train.batch_size={config.train.batch_size}"
        )


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
