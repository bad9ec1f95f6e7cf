"""Typed, frozen, validated configuration, and the plan derived from it.

The dataclasses below are the one statement of every setting: name, type, default, allowed values,
meaning. `default_config()` gives them as a locked `ConfigDict`, a file in configs/ changes what its
recipe changes, the command line overrides single keys, and `freeze()` turns the result into the
dataclasses, once. Nothing behind that line reads a default or a `ConfigDict`.

A zero or an empty string stands for "as the data says" where the help text says so; no default is None,
because ml_collections cannot override a None.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_type_hints

from ml_collections import ConfigDict

from flax_resnet.errors import ConfigError, DataError, suggestion


class Rule(NamedTuple):
    """What a value must satisfy, and the words that say so; a tuple holds numbers but where it does not."""

    holds: Callable[[Any], bool]
    words: str
    numbers: bool = True


def one_of(*choices: Any) -> Rule:
    """The value is one of the named choices."""
    return Rule(lambda v: v in choices, f"one of {', '.join(map(str, choices))}")


def at_least(low: float) -> Rule:
    """The value is finite and not below `low`."""
    return Rule(lambda v: math.isfinite(v) and v >= low, f"at least {low}")


def above(low: float) -> Rule:
    """The value is finite and above `low`."""
    return Rule(lambda v: math.isfinite(v) and v > low, f"above {low}")


def within(low: float, high: float) -> Rule:
    """The value lies in [low, high]."""
    return Rule(lambda v: low <= v <= high, f"between {low} and {high}")


def per_channel(low: float, high: float) -> Rule:
    """The value is a tuple of three numbers, or of one for grey images, each in [low, high]."""
    return Rule(
        lambda v: len(v) in (1, 3) and all(low <= x <= high for x in v),
        f"3 numbers (1 for grey) between {low} and {high}",
    )


def ascending_pair(low: float, high: float) -> Rule:
    """The value is (a, b) with low <= a <= b <= high and b > 0."""
    return Rule(
        lambda v: len(v) == 2 and low <= v[0] <= v[1] <= high and v[1] > 0,
        f"two ascending numbers between {low} and {high}",
    )


def _are_rules(pairs: tuple) -> bool:
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            return False
        if not isinstance(pair[1], int | float) or not math.isfinite(pair[1]) or pair[1] < 0:
            return False
        try:
            re.compile(pair[0])
        except re.error:
            return False
    return True


ANY = Rule(lambda v: True, "any value")
ASCENDING = Rule(
    lambda v: v and v[0] > 0 and all(a < b for a, b in itertools.pairwise(v)),
    "ascending numbers above 0",
)
CLASS_WEIGHTS = Rule(
    lambda v: all(x >= 0 for x in v) and (not v or sum(v) > 0), "numbers of at least 0, not all 0"
)
BETAS = Rule(lambda v: len(v) == 2 and all(0 <= x < 1 for x in v), "two numbers from 0 to below 1")
PARAMETER_RULES = Rule(
    _are_rules, "pairs of a regular expression and a factor of at least 0", numbers=False
)


def setting(default: Any, rule: Rule, help: str, *, changes_result: bool = True) -> Any:
    """One field: its default, its rule, its meaning, and whether it changes what is trained."""
    return dataclasses.field(
        default=default, metadata={"rule": rule, "help": help, "changes_result": changes_result}
    )


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images, and how the host cuts them to size."""

    source: str = setting(
        "tfds", one_of("tfds", "folder", "csv", "arrays"), "where the images come from"
    )
    name: str = setting("digits", ANY, "TFDS dataset, as name, name/config or name:version")
    path: str = setting(
        "",
        ANY,
        "folder of images, or CSV file of path and label, for source=folder or csv",
        changes_result=False,
    )
    data_dir: str = setting("", ANY, "TFDS data folder; empty for TFDS's own", changes_result=False)
    image_feature: str = setting("", ANY, "TFDS feature; empty for 'image', or the only image")
    label_feature: str = setting(
        "", ANY, "TFDS feature; empty for 'label', or the only class label"
    )
    train_split: str = setting("train", ANY, "TFDS split expression, or folder split, to train on")
    eval_split: str = setting("test", ANY, "split to evaluate on")
    holdout: float = setting(
        0.2, within(0.01, 0.99), "share kept for evaluation where files come without a split"
    )
    split_seed: int = setting(
        0, within(0, 2**31 - 1), "chooses the files kept for evaluation, and subsets"
    )
    fraction: float = setting(
        1.0, within(1e-6, 1), "share of the training examples used, chosen at random"
    )
    limit: int = setting(0, at_least(0), "most training examples used; 0 for all")
    repeats: int = setting(
        1, at_least(1), "how often an epoch shows an example, and so 1/repeats of them"
    )
    balanced: bool = setting(False, ANY, "draw every class equally often")
    exif: bool = setting(True, ANY, "turn image files upright as their EXIF data say")
    image_size: int = setting(8, at_least(1), "height and width of the network's input, pixels")
    train_crop: str = setting(
        "resize", one_of("resize", "center", "random_resized"), "how a training image is cut"
    )
    eval_crop: str = setting("resize", one_of("resize", "center"), "how a test image is cut")
    eval_crop_fraction: float = setting(
        0.875, within(0.01, 1), "side of the centre crop over the resized image's short side"
    )
    crop_area: tuple = setting((0.08, 1.0), ascending_pair(0, 1), "area share of a random crop")
    crop_aspect: tuple = setting(
        (0.75, 4 / 3), ascending_pair(0.01, 100), "width over height of a random crop"
    )
    interpolation: str = setting("bilinear", one_of("bilinear", "bicubic"), "resampling filter")
    train_antialias: bool = setting(
        False, ANY, "antialias random crops below twice the image size too; all else always is"
    )
    reduced_decode: bool = setting(
        True, ANY, "decode random crops of twice the image size or more to half size, and so on"
    )
    dct: str = setting("accurate", one_of("accurate", "fast"), "JPEG transform of training images")
    max_bad_images: int = setting(
        10,
        at_least(0),
        "unreadable images named and replaced before the run stops",
        changes_result=False,
    )
    threads: int = setting(
        0, at_least(0), "decoding threads; 0 for one per core", changes_result=False
    )


@dataclasses.dataclass(frozen=True)
class Augment:
    """What the device does to a batch of uint8 images."""

    mean: tuple = setting((0.485, 0.456, 0.406), per_channel(0, 1), "subtracted, per channel")
    std: tuple = setting((0.229, 0.224, 0.225), per_channel(1e-6, 10), "divided by, per channel")
    flip: bool = setting(False, ANY, "mirror every other training image, left to right")
    shift: int = setting(0, at_least(0), "pad by this many pixels and crop back at random")
    shift_padding: str = setting("black", one_of("black", "reflect"), "what shift pads with")
    brightness: float = setting(
        0.0, at_least(0), "jitter: the factor is 1 - this (0 at least) to 1 + this; 0 for none"
    )
    contrast: float = setting(0.0, at_least(0), "jitter about the mean grey, as brightness")
    saturation: float = setting(0.0, at_least(0), "jitter about each pixel's grey, as brightness")
    hue: float = setting(0.0, within(0, 0.5), "jitter: turns of the colour circle, either way")
    policy: str = setting(
        "none",
        one_of("none", "randaugment", "trivialaugment"),
        "random operations, each image with its own",
    )
    policy_ops: int = setting(2, within(1, 14), "for randaugment: operations on each image")
    policy_magnitude: int = setting(9, within(0, 30), "for randaugment: how strong, of 30")
    erase: float = setting(0.0, within(0, 1), "share of images that lose a random rectangle")
    erase_area: tuple = setting((0.02, 0.33), ascending_pair(0, 1), "its share of the image")
    erase_aspect: tuple = setting((0.3, 3.3), ascending_pair(0.01, 100), "its height over width")
    erase_fill: str = setting(
        "zero", one_of("zero", "noise"), "what replaces it: the mean, or normal noise"
    )
    cutout: int = setting(0, at_least(0), "side of the square set to the mean, pixels; 0 for none")
    mixup: float = setting(0.0, at_least(0), "alpha of mixup's Beta distribution; 0 for none")
    cutmix: float = setting(0.0, at_least(0), "alpha of CutMix's Beta distribution; 0 for none")
    mix_mode: str = setting(
        "batch", one_of("batch", "pair", "element"), "what shares one draw of mixup or CutMix"
    )
    mix_probability: float = setting(1.0, within(0, 1), "that a draw of mixup or CutMix mixes")
    mix_switch: float = setting(0.5, within(0, 1), "that it is CutMix, with both on")


@dataclasses.dataclass(frozen=True)
class Model:
    """The network. An option at its default is left as the named network has it.

    What an option may be is said, and checked, where networks are made: models/registry.py.
    """

    name: str = setting("resnet18", ANY, "a name of flax_resnet.list_models()")
    pretrained: str = setting(
        "", ANY, "weights to start from: a timm name such as resnet50.a1_in1k, or a file of weights"
    )
    num_classes: int = setting(0, at_least(0), "size of the logits; 0 for the dataset's classes")
    in_channels: int = setting(3, one_of(1, 3), "3 for colour, 1 for grey")
    dtype: str = setting(
        "float32", one_of("float32", "bfloat16"), "compute dtype; logits stay float32"
    )
    depths: tuple = setting((), ANY, "blocks per stage")
    widths: tuple = setting((), ANY, "channels per stage, before a bottleneck's expansion")
    stem: str = setting("", ANY, "imagenet (7x7/2, pool), cifar (3x3, no pool), deep or tiered")
    shortcut: str = setting("", ANY, "projection (B), average (D), pad (A), or none (plain)")
    output_stride: int = setting(32, ANY, "8, 16 or 32: later stages are dilated, not strided")
    attention: str = setting("", ANY, "none, se or eca")
    anti_alias: str = setting("", ANY, "none, blur or average, before subsampling")
    act: str = setting("", ANY, "relu, silu, gelu, leaky_relu or elu")
    norm: str = setting("", ANY, "batch, frozen, group, evonorm_s0 or frn")
    norm_scope: str = setting(
        "global",
        one_of("global", "local", "ghost"),
        "whose statistics batch normalisation takes: the batch's, each device's, each group's",
    )
    norm_groups: int = setting(1, at_least(1), "groups of the batch, for norm_scope=ghost")
    norm_momentum: float = setting(
        0.1, within(0, 1), "weight of the newest batch in the statistics"
    )
    norm_epsilon: float = setting(1e-5, above(0), "added to the variance")
    zero_init_last: bool = setting(False, ANY, "start every residual block as the identity")
    dropout: float = setting(-1.0, ANY, "rate; -1 for the network's own (0 but for AlexNet, VGG)")
    drop_path: float = setting(0.0, ANY, "rate of stochastic depth in the last block")
    global_pool: str = setting("avg", one_of("avg", "max", "avgmax"), "how the last map is pooled")
    remat: str = setting("none", ANY, "compute again in the backward pass: none, block or stage")
    scan: bool = setting(False, ANY, "identical blocks as one loop: compiles faster, slower on CPU")

    def options(self) -> dict[str, Any]:
        """Returns what differs from the named network, as options of `create_model`."""
        apart = ("name", "pretrained", "num_classes", "norm_scope")
        values, unset = dataclasses.asdict(self), dataclasses.asdict(Model())
        return {k: v for k, v in values.items() if k not in apart and v != unset[k]}


@dataclasses.dataclass(frozen=True)
class Loss:
    """What training minimises."""

    name: str = setting(
        "softmax",
        one_of("softmax", "sigmoid"),
        "cross-entropy over all classes, or binary cross-entropy of each",
    )
    label_smoothing: float = setting(0.0, within(0, 0.99), "share of the label spread over all")
    class_weights: tuple = setting(
        (), CLASS_WEIGHTS, "one per class, in their order; none for equal"
    )
    threshold: float = setting(
        1.0,
        within(0, 1),
        "for sigmoid: soft labels above it count as 1, others as 0; 1 for as they are",
    )
    sum_classes: bool = setting(False, ANY, "for sigmoid: the sum over the classes, not the mean")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How a gradient becomes an update; training/optimizer.py has the formulas.

    Rules are pairs of a regular expression and a factor. A parameter, named like layer1_0/conv1/kernel, takes the
    factor of the first expression found in its name, and 1 where there is none.
    """

    name: str = setting(
        "sgd", one_of("sgd", "lars", "lamb", "adamw", "rmsprop", "muon"), "what scales the gradient"
    )
    learning_rate: float = setting(0.1, above(0), "peak, reached at the end of the warm-up")
    momentum: float = setting(
        0.9, within(0, 0.9999), "of the gradient's running sum, but for lamb and adamw"
    )
    nesterov: bool = setting(False, ANY, "look ahead by one momentum step")
    betas: tuple = setting(
        (0.9, 0.999), BETAS, "for lamb, adamw: of the gradient's running mean, and of its square's"
    )
    rms_decay: float = setting(0.9, within(0, 0.9999), "for rmsprop: of the square's running mean")
    epsilon: float = setting(1e-8, above(0), "added to what is divided by; sgd divides by nothing")
    trust_coefficient: float = setting(
        0.001, above(0), "for lars: the update's norm over the weights' at learning rate 1"
    )
    weight_decay: float = setting(1e-4, at_least(0), "times the weights")
    weight_decay_form: str = setting(
        "auto",
        one_of("auto", "coupled", "decoupled"),
        "added to the gradient, or to what the optimizer makes of it (then times the learning rate); auto is "
        "coupled for sgd, lars and rmsprop, decoupled for lamb, adamw and muon",
    )
    weight_decay_rules: tuple = setting(
        (("kernel$", 1.0), ("", 0.0)),
        PARAMETER_RULES,
        "rules for the weight decay: as it stands, of kernels only",
    )
    learning_rate_rules: tuple = setting(
        (), PARAMETER_RULES, "rules for the learning rate; 0 freezes"
    )
    layer_decay: float = setting(
        1.0, within(0.01, 1), "factor on the learning rate for each block further from the head"
    )
    clip_norm: float = setting(0.0, at_least(0), "largest norm of the whole gradient; 0 for any")
    clip_adaptive: float = setting(
        0.0,
        at_least(0),
        "largest norm of a unit's gradient over its weights', but the head's; 0 for any",
    )


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate over time: a rise to the peak, a shape, and what it ends on.

    A warm-up and a linear fall are together the triangle of fast recipes.
    """

    name: str = setting(
        "cosine",
        one_of("cosine", "linear", "polynomial", "multi_step", "constant"),
        "shape after the warm-up",
    )
    unit: str = setting(
        "epochs",
        one_of("epochs", "steps", "fraction"),
        "of warmup, cooldown and milestones; fraction of the run",
    )
    warmup: float = setting(0.0, at_least(0), "length of the linear rise")
    warmup_from: float = setting(0.0, within(0, 1), "share of the peak it rises from")
    cooldown: float = setting(0.0, at_least(0), "length of the end at the final learning rate")
    final: float = setting(0.0, within(0, 1), "share of the peak that a fall ends on")
    power: float = setting(2.0, above(0), "for polynomial: of the share of the fall that is left")
    milestones: tuple = setting((30.0, 60.0), ASCENDING, "for multi_step: when it drops")
    factor: float = setting(0.1, within(0, 1), "for multi_step: what a drop multiplies by")
    batch_scaling: str = setting(
        "none",
        one_of("none", "linear", "sqrt"),
        "the peak times train.batch_size / base_batch_size, or the square root of that",
    )
    base_batch_size: int = setting(
        256, at_least(1), "the batch size that learning_rate is meant for"
    )


@dataclasses.dataclass(frozen=True)
class Average:
    """A running mean of the weights, evaluated beside them, and what `load` returns."""

    decay: float = setting(
        0.0, within(0, 0.999999), "share of the mean that a step leaves; 0 for no mean"
    )
    warmup: bool = setting(True, ANY, "at most (1 + step) / (10 + step) of it, in the beginning")
    recalibrate: int = setting(
        0,
        at_least(0),
        "training batches from which its batch statistics are measured before it is used; 0 averages them "
        "as the weights",
    )


@dataclasses.dataclass(frozen=True)
class Train:
    """The run."""

    batch_size: int = setting(128, at_least(1), "images per step, over all devices")
    epochs: int = setting(10, within(1, 10**6), "passes over the data; more of them extend a run")
    seed: int = setting(0, within(0, 2**31 - 1), "of weights, order and augmentation")
    matmul_precision: str = setting(
        "default", one_of("default", "tf32", "float32"), "of float32 products on GPU and TPU"
    )
    eval_batch_size: int = setting(
        0, at_least(0), "images per evaluation step; 0 for batch_size", changes_result=False
    )
    log_every: int = setting(
        10, at_least(1), "steps between records of training", changes_result=False
    )
    eval_every: float = setting(
        1.0,
        above(0),
        "epochs between evaluations; the last step is always one",
        changes_result=False,
    )
    checkpoint_every: float = setting(
        1.0,
        above(0),
        "epochs between checkpoints; the last step is always one",
        changes_result=False,
    )
    prefetch: int = setting(
        2, at_least(1), "calls whose batches are placed on the device ahead", changes_result=False
    )
    feed: str = setting(
        "auto",
        one_of("auto", "streaming", "resident"),
        "resident keeps the decoded set on the device; auto does where it is small, and cut the same "
        "way every time",
        changes_result=False,
    )
    resident_gib: float = setting(
        1.0, at_least(0), "largest decoded split that feed=auto keeps, GiB", changes_result=False
    )
    steps_per_call: int = setting(
        1,
        at_least(1),
        "updates per call of the compiled step, between which nothing is saved or stopped: a loop on GPU and "
        "TPU, written out on CPU",
        changes_result=False,
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    data: Data = Data()
    augment: Augment = Augment()
    model: Model = Model()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    average: Average = Average()
    train: Train = Train()

    def keeps_resident(self, examples: int, crop: str) -> bool:
        """Says whether a split of so many examples, cut so, is decoded once and kept on the device."""
        if crop == "random_resized" or self.train.feed != "auto":
            return crop != "random_resized" and self.train.feed == "resident"
        size = 3 * examples * self.data.image_size**2
        return size <= self.train.resident_gib * 2**30


def default_config() -> ConfigDict:
    """Returns every setting at its default; locked, so that an unknown key is refused."""
    return ConfigDict(dataclasses.asdict(Config())).lock()


def settings() -> dict[str, dataclasses.Field]:
    """Returns every field by its dotted key, such as ``train.batch_size``."""
    return {
        f"{section.name}.{field.name}": field
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(section.type)
    }


def freeze(values: Mapping[str, Any]) -> Config:
    """Makes the frozen configuration of a nested mapping (a ConfigDict, or parsed config.json).

    Missing keys keep their defaults.

    Raises:
      ConfigError: an unknown key, a wrong type, or a value out of range; one line with key, value and
        what is allowed.
    """
    if isinstance(values, ConfigDict):
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
    if config.augment.shift >= config.data.image_size:
        raise ConfigError(
            f"augment.shift={config.augment.shift}: must be below "
            f"data.image_size={config.data.image_size}"
        )
    if config.augment.cutout > config.data.image_size:
        raise ConfigError(
            f"augment.cutout={config.augment.cutout}: must be at most "
            f"data.image_size={config.data.image_size}"
        )
    for key in ("mixup", "cutmix"):
        if getattr(config.augment, key) and config.train.batch_size % 2:
            raise ConfigError(
                f"train.batch_size={config.train.batch_size}: must be even with "
                f"augment.{key}={getattr(config.augment, key)}, which mixes images in pairs"
            )
    for key in ("mean", "std"):
        if len(getattr(config.augment, key)) != config.model.in_channels:
            raise ConfigError(
                f"augment.{key}={getattr(config.augment, key)}: must be {config.model.in_channels} "
                f"numbers, as model.in_channels={config.model.in_channels}"
            )
    if config.average.recalibrate and not config.average.decay:
        raise ConfigError(
            f"average.recalibrate={config.average.recalibrate}: goes with average.decay above 0; there is no mean"
        )
    if (config.model.norm_groups > 1) != (config.model.norm_scope == "ghost"):
        raise ConfigError(
            f"model.norm_groups={config.model.norm_groups}: must be above 1 with "
            f"model.norm_scope='ghost', and 1 without (norm_scope={config.model.norm_scope!r})"
        )
    if config.train.batch_size % config.model.norm_groups:
        raise ConfigError(
            f"model.norm_groups={config.model.norm_groups}: must divide "
            f"train.batch_size={config.train.batch_size}"
        )


def differences(stored: Config, wanted: Config) -> list[str]:
    """Returns ``key: stored -> wanted`` for every setting that changes the result, bar train.epochs."""
    flat_stored, flat_wanted = flatten(stored), flatten(wanted)
    return [
        f"{key}: {flat_stored[key]!r} -> {flat_wanted[key]!r}"
        for key, field in settings().items()
        if field.metadata["changes_result"]
        and key != "train.epochs"
        and flat_stored[key] != flat_wanted[key]
    ]


def flatten(config: Config) -> dict[str, Any]:
    """Returns every value by its dotted key."""
    return {
        f"{section}.{key}": value
        for section, values in dataclasses.asdict(config).items()
        for key, value in values.items()
    }


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a configuration means for a dataset of a given size; all in optimizer steps."""

    num_train: int
    num_eval: int
    num_classes: int
    steps_per_epoch: int
    total_steps: int
    peak_learning_rate: float
    warmup_steps: int
    cooldown_steps: int
    milestones: tuple[int, ...]
    eval_every: int
    checkpoint_every: int
    eval_batch_size: int

    @classmethod
    def nominal(cls, num_classes: int) -> "Plan":
        """Returns a plan of one step, for a state whose schedule does not matter."""
        return cls(1, 1, num_classes, 1, 1, 1.0, 0, 0, (), 1, 1, 1)


def plan(config: Config, *, num_train: int, num_eval: int, num_classes: int) -> Plan:
    """Derives steps from epochs. The remainder of an epoch is dropped: no batch crosses an epoch.

    Args:
      config: the frozen configuration.
      num_train: examples to train on.
      num_eval: examples to evaluate on.
      num_classes: classes of the dataset.

    Raises:
      ConfigError: `model.num_classes` is set to fewer classes than the dataset has, or another number that does
        not go with its size.
      DataError: the dataset has no examples, or fewer than one batch.
    """
    batch = config.train.batch_size
    if num_train < batch:
        raise ConfigError(
            f"train.batch_size={batch}: must be at most the {num_train} images used of data.train_split="
            f"{config.data.train_split!r} (data.limit={config.data.limit}, "
            f"data.fraction={config.data.fraction})"
        )
    if num_eval < 1:
        raise DataError(f"data.eval_split={config.data.eval_split!r} holds no images")
    if config.model.num_classes and config.model.num_classes < num_classes:
        raise ConfigError(
            f"model.num_classes={config.model.num_classes}: must be at least the dataset's "
            f"{num_classes} classes, or 0 for exactly these"
        )
    logits = config.model.num_classes or num_classes
    if config.loss.class_weights and len(config.loss.class_weights) != logits:
        raise ConfigError(
            f"loss.class_weights={config.loss.class_weights}: must be {logits} numbers, one per class"
        )
    steps = num_train // batch
    if config.train.steps_per_call > steps:
        raise ConfigError(
            f"train.steps_per_call={config.train.steps_per_call}: must be at most the {steps} steps of an epoch"
        )

    def in_steps(epochs: float) -> int:
        """Whole calls, so that a run and its resumption make the same ones."""
        calls = math.ceil(max(1, round(epochs * steps)) / config.train.steps_per_call)
        return calls * config.train.steps_per_call

    schedule, total = config.schedule, config.train.epochs * steps
    unit = {"epochs": steps, "steps": 1, "fraction": total}[schedule.unit]
    warmup, cooldown = round(schedule.warmup * unit), round(schedule.cooldown * unit)
    if warmup + cooldown and warmup + cooldown >= total:
        raise ConfigError(
            f"schedule.warmup={schedule.warmup:g} and schedule.cooldown={schedule.cooldown:g} {schedule.unit}: "
            f"must be below the {total} steps of train.epochs={config.train.epochs}, together"
        )
    scale = batch / schedule.base_batch_size
    peak = (
        config.optimizer.learning_rate
        * {"none": 1.0, "linear": scale, "sqrt": math.sqrt(scale)}[schedule.batch_scaling]
    )

    return Plan(
        num_train=num_train,
        num_eval=num_eval,
        num_classes=logits,
        steps_per_epoch=steps,
        total_steps=total,
        peak_learning_rate=peak,
        warmup_steps=warmup,
        cooldown_steps=cooldown,
        milestones=tuple(round(m * unit) for m in schedule.milestones),
        eval_every=in_steps(config.train.eval_every),
        checkpoint_every=in_steps(config.train.checkpoint_every),
        eval_batch_size=config.train.eval_batch_size or batch,
    )
