"""Clashes between sections: settings that are valid alone but do not fit together."""

from collections.abc import Callable

from flax_resnet.config.config import Config
from flax_resnet.optim.losses import CLASS_WEIGHTS
from flax_resnet.optim.optimizer_section import OPTIMIZERS
from flax_resnet.settings import Clash


def _is_resident(c: Config) -> bool:
    return c.train.feed == "resident"


def _is_left_open(section: str, name: str) -> Callable[[Config], bool]:
    return lambda c: not getattr(getattr(c, section), name) and not c.model.pretrained


def _has_other_channels(name: str) -> Callable[[Config], bool]:
    return lambda c: (
        bool(c.model.name and (own := getattr(c.augment, name))) and (len(own) != c.model.channels)
    )


RESIDENT = (
    Clash(
        key="train.feed",
        when=lambda c: _is_resident(c) and c.data.train_crop == "random_resized",
        problem="images kept on the device do not change, but data.train_crop='random_resized' draws new crops",
        cure="set train.feed='streaming', or data.train_crop='resize' or 'center'",
    ),
    Clash(
        key="train.feed",
        when=lambda c: _is_resident(c) and bool(c.data.progressive),
        problem="images kept on the device have one size, but data.progressive={c.data.progressive} has several",
        cure="set train.feed='streaming', or data.progressive=()",
    ),
)

# Without pretrained weights there is nothing to take these settings from.
LEFT_OPEN = tuple(
    Clash(
        key=f"{section}.{name}",
        when=_is_left_open(section, name),
        allowed=words,
        cure="or set model.pretrained, to take it from the weights",
    )
    for section, name, words in (
        ("model", "name", "a network's name"),
        ("data", "image_size", "at least 1"),
        ("augment", "mean", "3 numbers (1 for grey)"),
        ("augment", "std", "3 numbers (1 for grey)"),
    )
)

TRAINING_SIZE = (
    "{c.data.smallest_size} px of the smallest training images (data.image_size={c.data.image_size}, "
    "data.progressive={c.data.progressive})"
)
# An image size of 0 is that of the pretrained weights.
SIZES = (
    Clash(
        key="augment.pad_crop",
        when=lambda c: 0 < c.data.smallest_size <= c.augment.pad_crop,
        allowed=f"below the {TRAINING_SIZE}",
    ),
    Clash(
        key="augment.eval_shift",
        when=lambda c: 0 < (c.data.eval_size or c.data.image_size) <= c.augment.eval_shift,
        allowed="below the height and width of the evaluated images (data.image_size={c.data.image_size}, "
        "data.eval_size={c.data.eval_size})",
    ),
    Clash(
        key="augment.cutout",
        when=lambda c: 0 < c.data.smallest_size < c.augment.cutout,
        allowed=f"at most the {TRAINING_SIZE}",
    ),
)

CHANNELS = tuple(
    Clash(
        key=f"augment.{name}",
        when=_has_other_channels(name),
        allowed="{c.model.channels} numbers, one per channel (model.in_channels={c.model.channels})",
    )
    for name in ("mean", "std")
)

MIXING = (
    Clash(
        key="train.batch_size",
        when=lambda c: bool(c.augment.mixup or c.augment.cutmix) and c.train.batch_size % 2 > 0,
        allowed="even with augment.mixup={c.augment.mixup:g} and augment.cutmix={c.augment.cutmix:g}, "
        "which mix images in pairs",
    ),
)

CLASS_WEIGHTS_FROM_COUNTS = (
    Clash(
        key="loss.class_weights",
        when=lambda c: c.data.class_balanced and CLASS_WEIGHTS[c.loss.class_weights].needs_counts,
        problem="data.class_balanced=True already shows all classes equally often",
        cure="set only one of the two",
    ),
)

AVERAGE = (
    Clash(
        key="ema.bn_batches",
        when=lambda c: bool(c.ema.bn_batches) and not c.averages_weights,
        problem="there is no moving average of the weights",
        cure="set ema.decay above 0",
    ),
    Clash(
        key="ema.decay",
        when=lambda c: bool(c.ema.decay) and OPTIMIZERS[c.optimizer.name].average is not None,
        problem="optimizer.name={c.optimizer.name!r} averages the weights itself",
        allowed="0",
    ),
    Clash(
        key="ema.bn_batches",
        when=lambda c: bool(c.ema.bn_batches and c.data.progressive),
        problem="measures statistics on the first training batches, but data.progressive changes their image size",
        allowed="0, which averages the statistics like the weights",
    ),
    Clash(
        key="ema.lookahead",
        when=lambda c: bool(c.ema.lookahead and c.ema.bn_batches),
        problem="copies the averaged statistics to the weights, but ema.bn_batches does not average them",
        allowed="0 with ema.bn_batches above 0",
    ),
)

NORM = (
    Clash(
        key="train.gradient_dtype",
        when=lambda c: c.train.gradient_dtype != "float32" and c.model.norm_scope != "local",
        allowed="'float32' unless model.norm_scope='local'",
    ),
    Clash(
        key="model.norm_groups",
        when=lambda c: c.train.batch_size % c.model.ghost_groups > 0,
        allowed="a divisor of train.batch_size={c.train.batch_size}",
    ),
)

CLASHES = (
    *RESIDENT,
    *LEFT_OPEN,
    *SIZES,
    *CHANNELS,
    *MIXING,
    *CLASS_WEIGHTS_FROM_COUNTS,
    *AVERAGE,
    *NORM,
)
