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
            f"data.path='': must name {needs} when data.source={config.data.source!r}"
        )
    if config.train.feed == "resident" and config.data.train_crop == "random_resized":
        raise ConfigError(
            "train.feed='resident': goes with data.train_crop='resize' or 'center', not "
            "'random_resized', which takes a new random crop each time"
        )
    if config.train.feed == "resident" and config.data.progressive:
        raise ConfigError(
            f"train.feed='resident': keeps images of one size; cannot be used with data.progressive="
            f"{config.data.progressive}"
        )


def _check_left_open(config: Config) -> None:
    """Raise for settings left empty, to be taken from pretrained weights, when no weights are named."""
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
                f"{key}={value!r}: must be {words} where model.pretrained names no weights to take it from"
            )


def _check_sizes(config: Config) -> None:
    """Raise for augmentations that are larger than the images."""
    least = min((int(size) for _, size in config.data.progressive), default=config.data.image_size)
    size = config.data.image_size
    if size and config.augment.pad_crop >= least:
        raise ConfigError(
            f"augment.pad_crop={config.augment.pad_crop}: must be below the {least} px of the smallest training "
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


def _check_mixing(config: Config) -> None:
    for key in ("mixup", "cutmix"):
        if getattr(config.augment, key) and config.train.batch_size % 2:
            raise ConfigError(
                f"train.batch_size={config.train.batch_size}: must be even with "
                f"augment.{key}={getattr(config.augment, key)}, which mixes images in pairs"
            )


def _check_channels(config: Config) -> None:
    model = config.model
    for key in ("mean", "std"):
        per_channel = getattr(config.augment, key)
        if per_channel and model.name and len(per_channel) != model.in_channels:
            raise ConfigError(
                f"augment.{key}={getattr(config.augment, key)}: must be {config.model.in_channels} "
                f"numbers, one per channel (model.in_channels={config.model.in_channels})"
            )


def _check_distill(config: Config) -> None:
    unset = Distill()
    for field in dataclasses.fields(Distill):
        value = getattr(config.distill, field.name)
        if not config.distill.teacher and value != getattr(unset, field.name):
            raise ConfigError(
                f"distill.{field.name}={value!r}: goes with distill.teacher, which is not set"
            )


def _check_ema(config: Config) -> None:
    if config.ema.bn_batches and config.data.progressive:
        raise ConfigError(
            f"ema.bn_batches={config.ema.bn_batches}: measures on the run's first images, whose size "
            "data.progressive changes; allowed: 0, which averages the statistics like the weights"
        )
    if config.ema.bn_batches and not config.ema.decay:
        raise ConfigError(
            f"ema.bn_batches={config.ema.bn_batches}: goes with ema.decay above 0; there is no moving average"
        )
    ema = config.ema
    for key in ("decay_power", "lookahead"):
        if getattr(ema, key) and not ema.decay:
            raise ConfigError(
                f"ema.{key}={getattr(ema, key):g}: goes with ema.decay above 0; there is no moving average"
            )
    if ema.lookahead and ema.bn_batches:
        raise ConfigError(
            f"ema.lookahead={ema.lookahead}: the weights go on from the moving average and its statistics; "
            "allowed: 0, or ema.bn_batches=0"
        )


def _check_dropping(config: Config) -> None:
    schedule = config.schedule
    if (schedule.drop_until > 0) != (schedule.drop_rates in ("early", "late")):
        raise ConfigError(
            f"schedule.drop_until={schedule.drop_until:g}: must be above 0 with schedule.drop_rates='early' or "
            f"'late', and 0 without (drop_rates={schedule.drop_rates!r})"
        )


def _check_norm(config: Config) -> None:
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


CHECKS = (
    _check_source,
    _check_left_open,
    _check_sizes,
    _check_mixing,
    _check_channels,
    _check_distill,
    _check_ema,
    _check_dropping,
    _check_norm,
)
