import dataclasses
import json

import pytest

from flax_resnet.config import Config, default_config, differences, freeze, settings
from flax_resnet.config.plan import Plan, plan
from flax_resnet.errors import ConfigError, DataError


def test_defaults_are_valid_and_survive_json():
    config = freeze(default_config())
    assert config == Config()
    assert freeze(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_no_default_is_none():
    assert all(field.default is not None for field in settings().values())


def test_the_dict_is_locked():
    with pytest.raises(AttributeError):
        default_config().train.batchsize = 3


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("train", "batch_size", 0, "at least 1"),
        ("train", "batch_size", "many", "int"),
        ("train", "batch_size", True, "int"),
        ("data", "image_size", 0, "at least 1 where model.pretrained"),
        ("optimizer", "learning_rate", -0.1, "above 0"),
        ("optimizer", "learning_rate", float("nan"), "above 0"),
        ("optimizer", "momentum", 1.5, "between 0 and 0.9999"),
        ("distill", "temperature", 4.0, "goes with distill.teacher"),
        ("data", "source", "folders", "one of tfds, folder"),
        ("data", "source", "folder", "data.path"),
        ("data", "crop_area", (0.9, 0.1), "two ascending numbers"),
        ("augment", "mean", (0.1, 0.2), "3 numbers"),
        ("augment", "mean", ("a", "b", "c"), "numbers"),
        ("augment", "pad_crop", 8, "below the 8 px"),
        ("augment", "pad_crop_fill", "edge", "one of black, reflect"),
        ("augment", "hue", 0.6, "between 0 and 0.5"),
        ("augment", "policy", "autoaugment", "one of none, randaugment, trivialaugment"),
        ("augment", "policy_magnitude", 31, "between 0 and 30"),
        ("augment", "random_erasing_area", (0.4, 0.2), "two ascending numbers"),
        ("augment", "cutout", 9, "at most the 8 px"),
        ("augment", "mix_mode", "elem", "one of batch, pair, element"),
        ("model", "norm_groups", 3, "model.norm_scope='ghost'"),
        ("train", "gradient_dtype", "bfloat16", "model.norm_scope='local'"),
        ("model", "in_channels", 2, "one of 1, 3"),
        ("schedule", "milestones", (60, 30), "ascending numbers"),
        ("schedule", "warmup_epochs", 5.0, "is unknown"),
        ("optimizer", "name", "adam", "one of sgd, lars, lamb, adamw"),
        ("optimizer", "betas", (0.9, 1.0), "two numbers from 0 to below 1"),
        ("optimizer", "weight_decay_rules", (("kernel", -1.0),), "pairs of a regular expression"),
        ("optimizer", "learning_rate_rules", (("(", 1.0),), "pairs of a regular expression"),
        ("optimizer", "learning_rate_rules", ("fc", 0.1), "pairs of a regular expression"),
        ("loss", "class_weights", (0, 0), "not all 0"),
        ("loss", "class_weights", ("a", "b"), "numbers"),
        ("train", "batchsize", 3, "did you mean 'train.batch_size'"),
        ("trian", "batch_size", 3, "did you mean 'train'"),
    ],
)
def test_a_bad_value_is_one_line_with_key_and_cure(section, key, value, words):
    with pytest.raises(ConfigError) as error:
        freeze({section: {key: value}})
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    if section != "trian":
        assert f"{section}.{key}" in str(error.value)


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_mixing_needs_an_even_batch(key):
    sections = {"train": {"batch_size": 15}, "augment": {key: 1.0}}
    with pytest.raises(ConfigError, match=f"train.batch_size=15: must be even with augment.{key}"):
        freeze(sections)


def test_an_int_serves_as_a_float_and_a_list_as_a_tuple():
    config = freeze({"optimizer": {"learning_rate": 1}, "data": {"crop_area": [0.5, 1.0]}})
    assert config.optimizer.learning_rate == 1.0
    assert config.data.crop_area == (0.5, 1.0)


def test_plan_drops_the_remainder_of_an_epoch():
    config = freeze(
        {
            "train": {"batch_size": 64, "epochs": 3, "eval_every": 0.5},
            "schedule": {"warmup": 1.5},
        }
    )
    result = plan(config, num_train=1437, num_eval=360, num_classes=10)
    assert result == Plan(
        1437, 360, 10, 22, 66, 0.1, 33, 0, (660, 1320), 22, ((0, 8),), 11, 22, 64, 0
    )


def test_a_run_has_so_many_steps_as_epochs_make_or_as_are_asked_for():
    config = freeze({"train": {"batch_size": 10, "steps": 25}, "schedule": {"warmup": 1.0}})
    made = plan(config, num_train=100, num_eval=1, num_classes=10)
    assert (made.total_steps, made.steps_per_epoch, made.warmup_steps) == (25, 10, 10)
    longer = freeze({"train": {"batch_size": 10, "steps": 30}, "schedule": {"warmup": 1.0}})
    assert not differences(config, longer)
    short = freeze({"train": {"batch_size": 10, "steps": 9}, "schedule": {"warmup": 1.0}})
    with pytest.raises(ConfigError, match=r"the 9 steps of train.steps=9"):
        plan(short, num_train=100, num_eval=1, num_classes=10)


def test_rules_survive_json():
    config = freeze({"optimizer": {"learning_rate_rules": (("^fc", 1), ("", 0.1))}})
    assert freeze(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_class_weights_are_as_many_as_the_classes():
    config = freeze({"loss": {"class_weights": (1, 2)}, "train": {"batch_size": 1}})
    with pytest.raises(ConfigError, match=r"loss.class_weights=\(1, 2\): must be 3 numbers"):
        plan(config, num_train=1, num_eval=1, num_classes=3)


def test_plan_refuses_what_the_data_cannot_give():
    config = freeze({"train": {"batch_size": 64}, "model": {"num_classes": 5}})
    with pytest.raises(ConfigError, match="at most the 63 images"):
        plan(config, num_train=63, num_eval=1, num_classes=5)
    with pytest.raises(DataError, match="holds no images"):
        plan(config, num_train=64, num_eval=0, num_classes=5)
    with pytest.raises(ConfigError, match="num_classes=5"):
        plan(config, num_train=64, num_eval=1, num_classes=6)


def test_differences_name_what_changes_the_result_and_nothing_else():
    wanted = freeze(
        {"train": {"epochs": 99, "log_every": 3, "seed": 1}, "data": {"data_dir": "/elsewhere"}}
    )
    assert differences(Config(), wanted) == ["train.seed: 0 -> 1"]
