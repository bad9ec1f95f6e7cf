"""Checks of settings that are valid alone but not in combination."""

import dataclasses

from flax_resnet.config.config import Config
from flax_resnet.errors import ConfigError
from flax_resnet.optim.distillation import Distill


def check_together(config: Config) -> None:
    """Raise ConfigError for settings that are valid alone but not in combination."""
    for check in CHECKS:
        check(config)


def _check_source(config: Config) -> None:
    needs = {"folder": "the folder of images", "csv": "the CSV file"}.get(config.data.source)
    if needs and not config.data.path:
        raise ConfigError(
            key="data.path", value="", allowed=f"{needs} with data.source={config.data.source!r}"
        )
    resident = config.train.feed == "resident"
    if resident and config.data.train_crop == "random_resized":
        raise ConfigError(
            "images kept on the device do not change, but data.train_crop='random_resized' draws new crops",
            key="train.feed",
            value="resident",
            cure="set train.feed='streaming', or data.train_crop='resize' or 'center'",
        )
    if resident and config.data.progressive:
        raise ConfigError(
            f"images kept on the device have one size, but data.progressive={config.data.progressive} has several",
            key="train.feed",
            value="resident",
            cure="set train.feed='streaming', or data.progressive=()",
        )


def _check_left_open(config: Config) -> None:
    """Raise for empty settings if there are no pretrained weights to take them from."""
    model = config.model
    left_open = {
        "model.name": (model.name, "a network's name"),
        "data.image_size": (config.data.image_size, "at least 1"),
        "augment.mean": (config.augment.mean, "3 numbers (1 for grey)"),
        "augment.std": (config.augment.std, "3 numbers (1 for grey)"),
    }
    for key, (value, words) in left_open.items():
        if not value and not model.pretrained:
            raise ConfigError(
                key=key,
                value=value,
                allowed=words,
                cure="or set model.pretrained, to take it from the weights",
            )


def _check_sizes(config: Config) -> None:
    """Raise for augmentations that are larger than the images."""
    size = config.data.image_size
    if not size:  # taken from pretrained weights
        return
    smallest = min((int(px) for _, px in config.data.progressive), default=size)
    evaluated = config.data.eval_size or size
    training = (
        "of the smallest training images "
        f"(data.image_size={size}, data.progressive={config.data.progressive})"
    )
    limits = {
        "pad_crop": (smallest - 1, f"below the {smallest} px {training}"),
        "eval_shift": (evaluated - 1, f"below the {evaluated} px of the evaluated images"),
        "cutout": (smallest, f"at most the {smallest} px {training}"),
    }
    for key, (most, words) in limits.items():
        if (value := getattr(config.augment, key)) > most:
            raise ConfigError(key=f"augment.{key}", value=value, allowed=words)


def _check_mixing(config: Config) -> None:
    for key in ("mixup", "cutmix"):
        if (alpha := getattr(config.augment, key)) and config.train.batch_size % 2:
            raise ConfigError(
                key="train.batch_size",
                value=config.train.batch_size,
                allowed=f"even with augment.{key}={alpha:g}, which mixes images in pairs",
            )


def _check_channels(config: Config) -> None:
    model = config.model
    for key in ("mean", "std"):
        per_channel = getattr(config.augment, key)
        if per_channel and model.name and len(per_channel) != model.in_channels:
            raise ConfigError(
                key=f"augment.{key}",
                value=per_channel,
                allowed=f"{model.in_channels} numbers, one per channel (model.in_channels={model.in_channels})",
            )


def _check_distill(config: Config) -> None:
    default = Distill()
    for field in dataclasses.fields(Distill):
        value = getattr(config.distill, field.name)
        if not config.distill.teacher and value != getattr(default, field.name):
            raise ConfigError(
                "there is no teacher",
                key=f"distill.{field.name}",
                value=value,
                cure="set distill.teacher",
            )


def _check_ema(config: Config) -> None:
    ema = config.ema
    for key in ("bn_batches", "decay_power", "lookahead"):
        if (value := getattr(ema, key)) and not ema.decay:
            raise ConfigError(
                "there is no moving average",
                key=f"ema.{key}",
                value=value,
                cure="set ema.decay above 0",
            )
    if ema.bn_batches and config.data.progressive:
        raise ConfigError(
            "measures statistics on the first training batches, but data.progressive changes their image size",
            key="ema.bn_batches",
            value=ema.bn_batches,
            allowed="0, which averages the statistics like the weights",
        )
    if ema.lookahead and ema.bn_batches:
        raise ConfigError(
            "copies the averaged statistics to the weights, but ema.bn_batches does not average them",
            key="ema.lookahead",
            value=ema.lookahead,
            allowed="0 with ema.bn_batches above 0",
        )


def _check_norm(config: Config) -> None:
    model, train = config.model, config.train
    if (model.norm_groups > 1) != (model.norm_scope == "ghost"):
        raise ConfigError(
            key="model.norm_groups",
            value=model.norm_groups,
            allowed="above 1 with model.norm_scope='ghost', and 1 with others "
            f"(norm_scope={model.norm_scope!r})",
        )
    if train.gradient_dtype != "float32" and model.norm_scope != "local":
        raise ConfigError(
            key="train.gradient_dtype",
            value=train.gradient_dtype,
            allowed=f"'float32' unless model.norm_scope='local' (norm_scope={model.norm_scope!r})",
        )
    if train.batch_size % model.norm_groups:
        raise ConfigError(
            key="model.norm_groups",
            value=model.norm_groups,
            allowed=f"a divisor of train.batch_size={train.batch_size}",
        )


CHECKS = (
    _check_source,
    _check_left_open,
    _check_sizes,
    _check_mixing,
    _check_channels,
    _check_distill,
    _check_ema,
    _check_norm,
)
