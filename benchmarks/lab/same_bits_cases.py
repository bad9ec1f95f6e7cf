"""The cases of same_bits: small configurations that together use every mechanism of training.

Settings have their current names. `RENAMED` maps them to their names in earlier revisions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

RUN = "run:"  # prefix of a value that is the run folder of another case
DEVICES = "--xla_force_host_platform_device_count="

# {(setting, value): setting and value in revisions without the setting `NEWEST`, or None to leave it out}
NEWEST = "loss.weight_per_class"
FORMER: dict[tuple[str, Any], tuple[str, Any] | None] = {
    ("augment.flip", "horizontal"): ("augment.flip", True),
    ("loss.class_weights", "given"): None,
}
# {setting: its name in earlier revisions}
RENAMED: dict[str, str] = {
    "loss.weight_per_class": "loss.class_weights",
    "train.monitor": "train.judged_by",
    "optimizer.unfreeze_at": "optimizer.thaw",
    "optimizer.agc": "optimizer.clip_adaptive",
    "schedule.gamma": "schedule.factor",
    "model.scan_blocks": "model.scan",
    "augment.pad_crop": "augment.shift",
    "augment.pad_crop_fill": "augment.shift_padding",
    "augment.random_erasing": "augment.erase",
    "augment.random_erasing_area": "augment.erase_area",
    "augment.random_erasing_aspect": "augment.erase_aspect",
    "augment.random_erasing_fill": "augment.erase_fill",
    "augment.mix_switch_prob": "augment.mix_switch",
    "augment.mix_prob": "augment.mix_probability",
    "data.augmentation_repeats": "data.repeats",
    "data.class_balanced": "data.balanced",
    "data.eval_fraction": "data.holdout",
    "train.microbatch_size": "train.microbatch",
    "ema.decay": "average.decay",
    "ema.warmup": "average.warmup",
    "ema.decay_power": "average.rise",
    "ema.lookahead": "average.lookahead",
    "ema.bn_batches": "average.recalibrate",
}

# Six steps of a network of two blocks on the digits, with an evaluation and a checkpoint at the end.
COMMON: dict[str, Any] = {
    "data.name": "digits",
    "model.depths": (1, 1),
    "model.widths": (8, 16),
    "schedule.unit": "steps",
    "schedule.warmup": 1.0,
    "train.steps": 6,
    "train.batch_size": 32,
    "train.log_every": 2,
}
# In epochs; an epoch has 44 steps.
EVERY_TWO_STEPS = {"train.eval_every": 2 / 44, "train.checkpoint_every": 2 / 44}


class Case(NamedTuple):
    """A run whose result is compared.

    Attributes:
      settings: {dotted key: value}, in addition to `COMMON` and configs/resnet18.py; None leaves a key of `COMMON`
        out.
      environment: additional environment variables of the process.
      killed: whether the run is killed after its first checkpoint, and resumed.
    """

    settings: Mapping[str, Any]
    environment: Mapping[str, str] = {}
    killed: bool = False

    def needs(self) -> list[str]:
        """Return the cases whose run folders this one reads."""
        texts = (str(value) for value in self.settings.values())
        return [text.removeprefix(RUN) for text in texts if text.startswith(RUN)]


CASES: dict[str, Case] = {
    # Cosine after a warm-up, SGD with Nesterov's momentum, and images that stay on the device.
    "plain": Case({"train.steps": 12, "optimizer.clip_norm": 1.0}),
    "streaming": Case(
        {
            "train.feed": "streaming",
            "data.image_size": 12,
            "data.train_crop": "random_resized",
            "data.train_antialias": True,
            "data.interpolation": "bicubic",
            "data.eval_crop": "center",
            "data.augmentation_repeats": 2,
            "data.class_balanced": True,
            "model.in_channels": 1,
            "augment.mean": (0.3,),
            "augment.std": (0.4,),
        }
    ),
    "progressive": Case(
        {
            "data.progressive": ((0, 6), (2, 8)),
            "data.eval_size": 10,
            "train.steps_per_call": 2,
            "schedule.name": "linear",
            "schedule.warmup": 2.0,
            "schedule.warmup_from": 0.2,
            "schedule.final": 0.1,
        }
    ),
    "calls_and_parts": Case(
        {
            "train.steps_per_call": 3,
            "train.microbatch_size": "16",
            "data.fraction": 0.5,
            "data.limit": 320,
            "data.split_seed": 3,
            "model.dropout": 0.2,
            "augment.cutout": 3,
            "optimizer.agc": 0.02,
            "schedule.batch_scaling": "sqrt",
        }
    ),
    "ghost_norm": Case(
        {
            "model.norm_scope": "ghost",
            "model.norm_groups": 16,
            "augment.pad_crop": 1,
            "augment.mixup": 0.2,
            "train.microbatch_size": "16",
        },
        {"XLA_FLAGS": f"{DEVICES}8"},
    ),
    "local_norm": Case(
        {
            "model.norm_scope": "local",
            "train.gradient_dtype": "bfloat16",
            "augment.random_erasing": 0.5,
            "augment.random_erasing_fill": "noise",
            "optimizer.clip_norm": 0.5,
            "ema.decay": 0.9,
        },
        {"XLA_FLAGS": f"{DEVICES}8"},
    ),
    "float16_rmsprop": Case(
        {
            "model.dtype": "float16",
            "optimizer.name": "rmsprop",
            "optimizer.nesterov": True,
            "optimizer.learning_rate": 0.01,
            "optimizer.epsilon": 1e-3,
            "schedule.name": "constant",
        }
    ),
    "bfloat16_lamb": Case(
        {
            "model.dtype": "bfloat16",
            "model.zero_init_last": True,
            "optimizer.name": "lamb",
            "optimizer.nesterov": True,
            "schedule.name": "polynomial",
            "schedule.power": 1.5,
            "schedule.cooldown": 1.0,
            "augment.mixup": 0.4,
            "augment.mix_mode": "pair",
        }
    ),
    "recalibrated_adamw": Case(
        {
            "ema.decay": 0.9,
            "ema.bn_batches": 2,
            "train.microbatch_size": "16",
            "optimizer.name": "adamw",
            "optimizer.nesterov": True,
            "optimizer.learning_rate": 0.003,
            "optimizer.weight_decay_rules": (("conv1/kernel", 2.0),),
            "loss.label_smoothing": 0.1,
        }
    ),
    "lookahead_lars": Case(
        {
            "ema.decay": 0.8,
            "ema.warmup": False,
            "ema.decay_power": 1.0,
            "ema.lookahead": 2,
            "optimizer.name": "lars",
            "optimizer.nesterov": True,
            "optimizer.learning_rate": 2.0,
            "schedule.name": "multi_step",
            "schedule.milestones": (2.0, 4.0),
        }
    ),
    "distilled_muon": Case(
        {
            "distill.teacher": f"{RUN}plain",
            "distill.temperature": 2.0,
            "distill.weight": 0.5,
            "augment.flip": "horizontal",
            "augment.pad_crop": 1,
            "augment.pad_crop_fill": "reflect",
            "optimizer.name": "muon",
            "optimizer.nesterov": True,
            "optimizer.weight_decay_form": "coupled",
        }
    ),
    "fine_tuned": Case(
        {
            "model.name": "",
            "model.pretrained": f"{RUN}plain",
            "model.num_classes": 11,
            "optimizer.unfreeze_at": (("^conv1", 3.0), ("layer1", 1.0)),
            "optimizer.learning_rate_rules": (("bn\\d/scale", 0.5), ("layer2_0/conv1", 0.0)),
            "optimizer.layer_decay": 0.7,
            "ema.decay": 0.9,
        }
    ),
    "mixed_by_element": Case(
        {
            "augment.policy": "trivialaugment",
            "augment.mixup": 0.8,
            "augment.cutmix": 1.0,
            "augment.mix_mode": "element",
            "augment.mix_prob": 0.9,
            "augment.random_erasing": 0.5,
            "augment.pad_crop": 1,
            "augment.flip": "horizontal",
        }
    ),
    "randaugment_jitter": Case(
        {
            "augment.policy": "randaugment",
            "augment.brightness": 0.4,
            "augment.contrast": 0.4,
            "augment.saturation": 0.4,
            "augment.hue": 0.1,
            "augment.cutmix": 1.0,
            "train.feed": "streaming",
            "train.seed": 7,
        }
    ),
    "scanned": Case(
        {
            "model.scan_blocks": True,
            "model.remat": "block",
            "model.depths": (4, 3),
            "model.drop_path": 0.3,
            "model.dropout": 0.2,
            "schedule.drop_rates": "linear",
        }
    ),
    "whitened": Case(
        {
            "model.name": "airbench94",
            "model.depths": None,
            "model.widths": (8, 16, 16),
            "data.image_size": 16,
            "augment.flip": "horizontal",
            "augment.pad_crop": 2,
            "augment.pad_crop_fill": "reflect",
            "augment.eval_flip": True,
            "augment.eval_shift": 1,
            "optimizer.learning_rate_rules": (("bn\\d/scale", 0.0), ("bn\\d/bias", 64.0)),
            "optimizer.weight_decay_rules": (("bn\\d/bias", 0.015625),),
        }
    ),
    "sigmoid": Case(
        {
            **EVERY_TWO_STEPS,
            "loss.name": "sigmoid",
            "loss.label_smoothing": 0.1,
            "loss.threshold": 0.2,
            "loss.sum_classes": True,
            "loss.class_weights": "given",
            "loss.weight_per_class": (1, 2, 1, 1, 1, 1, 3, 1, 1, 0.5),
            "augment.mixup": 1.0,
            "model.attention": "eca",
            "model.norm": "frn",
            "model.act": "silu",
            "model.global_pool": "avgmax",
            "train.monitor": "macro_f1",
            "train.early_stopping": 1,
            "train.steps": 12,
            "train.eval_batch_size": 100,
        }
    ),
    "attention": Case(
        {
            "model.name": "seresnet50",
            "model.stem": "deep",
            "model.shortcut": "average",
            "model.anti_alias": "blur",
            "model.remat": "stage",
            "model.drop_path": 0.2,
            "schedule.drop_rates": "early",
            "schedule.drop_until": 3.0,
            "data.image_size": 16,
        }
    ),
    "preactivation": Case(
        {
            "model.name": "wrn16_4",
            "model.depths": (1, 1, 1),
            "model.widths": (8, 8, 8),
            "model.dropout": 0.3,
            "schedule.drop_rates": "late",
            "schedule.drop_until": 3.0,
            "model.norm_momentum": 0.2,
            "model.norm_epsilon": 1e-3,
        }
    ),
    "big_transfer": Case(
        {
            "model.name": "resnetv2_50x1_bit",
            "model.stem": "imagenet",
            "model.widths": (32, 32),
            "model.output_stride": 8,
            "data.image_size": 16,
            "optimizer.nesterov": False,
            "optimizer.weight_decay_form": "decoupled",
        }
    ),
    "killed": Case(
        {
            **EVERY_TWO_STEPS,
            "train.steps": 30,
            "augment.pad_crop": 1,
            "augment.mixup": 0.2,
            "model.dropout": 0.1,
            "ema.decay": 0.95,
        },
        killed=True,
    ),
}
