"""The sections of a configuration: every setting with its name, type, default, allowed values and meaning.

A zero or an empty string stands for "as the data says" where the help text says so; no default is None,
because ml_collections cannot override a None.
"""

import dataclasses
from typing import Any

from flax_resnet.rules import (
    ANY,
    ASCENDING,
    BETAS,
    CLASS_WEIGHTS,
    MICROBATCH,
    PARAMETER_RULES,
    SIZES,
    above,
    ascending_pair,
    at_least,
    one_of,
    per_channel,
    setting,
    within,
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
    image_size: int = setting(
        8, at_least(0), "height and width of the network's input, pixels; 0 for those of pretrained"
    )
    progressive: tuple = setting(
        (),
        SIZES,
        "sizes to train at from a point of the run on, in schedule.unit, as ((0, 160), (6, 192)); () for "
        "image_size throughout",
    )
    eval_size: int = setting(
        0, at_least(0), "image_size to evaluate at, and to predict at; 0 for that of training"
    )
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

    mean: tuple = setting(
        (0.485, 0.456, 0.406),
        per_channel(0, 1),
        "subtracted, per channel; () for that of pretrained",
    )
    std: tuple = setting(
        (0.229, 0.224, 0.225),
        per_channel(1e-6, 10),
        "divided by, per channel; () for that of pretrained",
    )
    flip: bool = setting(False, ANY, "mirror every other training image, left to right")
    eval_flip: bool = setting(
        False, ANY, "evaluate the mean logits of an image and its mirror", changes_result=False
    )
    eval_shift: int = setting(
        0,
        at_least(0),
        "evaluate the mean logits of an image (1/2) and of it moved up left and down right by this many pixels, "
        "its edge mirrored (1/4 each)",
        changes_result=False,
    )
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

    name: str = setting(
        "resnet18", ANY, "a name of flax_resnet.list_models(); '' for that of pretrained"
    )
    pretrained: str = setting(
        "",
        ANY,
        "weights to start from: a timm name such as resnet50.a1_in1k, a run folder, or a file of weights",
    )
    num_classes: int = setting(0, at_least(0), "size of the logits; 0 for the dataset's classes")
    in_channels: int = setting(3, one_of(1, 3), "3 for colour, 1 for grey")
    dtype: str = setting(
        "auto",
        one_of("auto", "float32", "bfloat16", "float16"),
        "compute dtype; logits stay float32; auto is bfloat16 on GPU and TPU, float32 on CPU; float16 scales "
        "the loss",
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
    drop_path: float = setting(
        0.0,
        ANY,
        "rate of stochastic depth in the last block; it rises linearly from 0 in the first",
    )
    global_pool: str = setting("avg", one_of("avg", "max", "avgmax"), "how the last map is pooled")
    remat: str = setting("none", ANY, "compute again in the backward pass: none, block or stage")
    scan: bool = setting(False, ANY, "identical blocks as one loop: compiles faster, slower on CPU")

    def options(self) -> dict[str, Any]:
        """Returns what differs from the named network, as options of `create_model`."""
        apart = ("name", "pretrained", "num_classes", "norm_scope", "dtype")
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
class Distill:
    """A teacher, whose outputs for the same augmented images are learned beside, or in place of, the labels."""

    teacher: str = setting(
        "",
        ANY,
        "as model.pretrained: a timm name, a run folder, or a file of weights; '' for none",
        changes_result=False,  # its weights do, whose checksum the checkpoint has
    )
    teacher_model: str = setting(
        "", ANY, "of a file: the network that it holds, where no JSON file beside it says so"
    )
    temperature: float = setting(1.0, above(0), "by which both networks' logits are divided")
    weight: float = setting(
        1.0, within(0, 1), "share of the teacher in the loss; the rest is the labels'"
    )


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
    thaw: tuple = setting(
        (),
        PARAMETER_RULES,
        "rules for when a parameter begins to learn, in schedule.unit: until then its learning rate is 0",
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
    """The learning rate over time: a rise to the peak, a shape, and what it ends on. And the rates of dropping.

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
        "of warmup, cooldown, milestones, drop_until, optimizer.thaw, data.progressive; fraction of the run",
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
    drop_rates: str = setting(
        "constant",
        one_of("constant", "linear", "early", "late"),
        "model.dropout and model.drop_path over the run: as they are, rising from 0, or only before or only "
        "after drop_until",
    )
    drop_until: float = setting(
        0.0, at_least(0), "for drop_rates=early and late: when dropping ends, or begins"
    )


@dataclasses.dataclass(frozen=True)
class Average:
    """A running mean of the weights, evaluated beside them, and what `load` returns."""

    decay: float = setting(
        0.0, within(0, 0.999999), "share of the mean that a step leaves; 0 for no mean"
    )
    warmup: bool = setting(True, ANY, "at most (1 + step) / (10 + step) of it, in the beginning")
    rise: float = setting(
        0.0,
        at_least(0),
        "power of the share of the run done, by which decay is multiplied; 0 for 1",
    )
    lookahead: int = setting(
        0,
        at_least(0),
        "steps after which the mean is moved, and the weights go on from it; 0 for a mean of every step that "
        "only watches",
    )
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
    steps: int = setting(
        0, at_least(0), "updates of the run, in place of epochs; 0 for those of the epochs"
    )
    seed: int = setting(0, within(0, 2**31 - 1), "of weights, order and augmentation")
    matmul_precision: str = setting(
        "default", one_of("default", "tf32", "float32"), "of float32 products on GPU and TPU"
    )
    eval_batch_size: int = setting(
        0, at_least(0), "images per evaluation step; 0 for batch_size", changes_result=False
    )
    judged_by: str = setting(
        "top1",
        one_of("top1", "top5", "loss", "class_accuracy", "macro_f1", "ece"),
        "what the best checkpoint is the best of, and early stopping waits for",
        changes_result=False,
    )
    early_stopping: int = setting(
        0,
        at_least(0),
        "evaluations without a better one after which the run ends; 0 for never",
        changes_result=False,
    )
    gradient_dtype: str = setting(
        "float32",
        one_of("float32", "bfloat16"),
        "in which devices sum their gradients, with model.norm_scope=local: bfloat16 sends half as much",
    )
    microbatch: str = setting(
        "whole",
        MICROBATCH,
        "images whose gradient is computed at once; auto takes as many as memory holds",
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
