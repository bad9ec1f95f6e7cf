"""The configuration: valid and invalid values, conversion from and to JSON, and the plan of a run."""

import dataclasses
import json

import pytest
from conftest import refused

from flax_resnet.config import Config, default_config, differences, freeze, owners, settings
from flax_resnet.config.plan import Plan, plan
from flax_resnet.errors import DataError
from flax_resnet.settings import UNSET


def test_defaults_are_valid_and_survive_json():
    config = freeze(default_config())
    assert config == Config()
    assert freeze(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_only_options_of_the_network_and_settings_that_belong_to_others_have_no_default():
    fields = settings()
    own = {f"model.{name}" for name in ("name", "pretrained", "num_classes", "dtype")}
    options = {key for key in fields if key.startswith("model.")} - own
    unset = {key for key, field in fields.items() if field.default is UNSET}
    assert unset == options | {*owners()}


def test_the_config_dict_rejects_unknown_keys():
    with pytest.raises(AttributeError):
        default_config().train.batchsize = 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.batch_size", 0),
        ("train.batch_size", "many"),
        ("train.batch_size", True),
        ("train.batch_size", None),
        ("data.image_size", 0),  # 0 takes the size of pretrained weights, but there are none
        ("optimizer.learning_rate", -0.1),
        ("optimizer.learning_rate", float("inf")),
        ("optimizer.momentum", 1.5),
        ("distill.temperature", 4.0),  # without a teacher
        ("data.source", "folders"),
        ("data.crop_area", (0.9, 0.1)),
        ("augment.mean", (0.1, 0.2)),
        ("augment.mean", ("a", "b", "c")),
        ("augment.pad_crop", 8),  # images have 8 px
        ("augment.pad_crop_fill", "edge"),
        ("augment.hue", 0.6),
        ("augment.policy", "autoaugment"),
        ("augment.policy_magnitude", 31),
        ("augment.random_erasing_area", (0.4, 0.2)),
        ("augment.cutout", 9),
        ("augment.eval_shift", 8),
        ("augment.mix_mode", "elem"),
        ("model.norm_groups", 3),  # without ghost normalisation
        ("train.gradient_dtype", "bfloat16"),  # without local normalisation
        ("model.in_channels", 2),
        ("schedule.milestones", (60, 30)),
        ("optimizer.name", "adam"),
        ("optimizer.betas", (0.9, 1.0)),
        ("optimizer.weight_decay_rules", (("kernel", -1.0),)),
        ("optimizer.learning_rate_rules", (("(", 1.0),)),
        ("optimizer.learning_rate_rules", ("fc", 0.1)),
        ("loss.weight_per_class", (0, 0)),
        ("loss.weight_per_class", (1.0, float("inf"))),
        ("loss.weight_per_class", ("a", "b")),
    ],
)
def test_the_error_for_a_bad_value_is_one_line_with_key_value_and_cure(key, value):
    section, name = key.split(".")
    given = {"class_weights": "given"} if name == "weight_per_class" else {}
    with refused(key, value) as caught:
        freeze({section: {name: value, **given}})
    assert caught.value.allowed or caught.value.cure
    assert str(caught.value).startswith(f"{key}=")


def test_nan_is_refused():
    with refused("optimizer.learning_rate"):
        freeze({"optimizer": {"learning_rate": float("nan")}})


@pytest.mark.parametrize(
    ("sections", "key", "meant"),
    [
        ({"train": {"batchsize": 3}}, "train.batchsize", "train.batch_size"),
        ({"schedule": {"warmup_epochs": 5.0}}, "schedule.warmup_epochs", "schedule.warmup"),
        ({"trian": {"batch_size": 3}}, "trian", "train"),
    ],
)
def test_the_error_for_an_unknown_setting_suggests_the_nearest_one(sections, key, meant):
    with refused(key) as caught:
        freeze(sections)
    assert repr(meant) in caught.value.cure


def test_a_folder_needs_its_path():
    with refused("data.path"):
        freeze({"data": {"source": "folder"}})
    with refused("data.path", ""):
        freeze({"data": {"source": "folder", "path": ""}})


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_mixing_needs_an_even_batch(key):
    sections = {"train": {"batch_size": 15}, "augment": {key: 1.0}}
    with refused("train.batch_size", 15) as caught:
        freeze(sections)
    assert f"augment.{key}" in caught.value.allowed


CROPS = {"train_crop": "random_resized", "crop_area": [0.5, 1.0]}


def test_ints_become_floats_and_lists_become_tuples():
    config = freeze({"optimizer": {"learning_rate": 1}, "data": CROPS})
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
        num_train=1437,
        num_eval=360,
        num_classes=10,
        steps_per_epoch=22,
        total_steps=66,
        peak_learning_rate=0.1,
        warmup_steps=33,
        cooldown_steps=0,
        milestones=(),
        unit=22,
        sizes=((0, 8),),
        eval_every=11,
        checkpoint_every=22,
        eval_batch_size=64,
        drop_until=0,
    )


def test_train_steps_overrides_train_epochs():
    config = freeze({"train": {"batch_size": 10, "steps": 25}, "schedule": {"warmup": 1.0}})
    made = plan(config, num_train=100, num_eval=1, num_classes=10)
    assert (made.total_steps, made.steps_per_epoch, made.warmup_steps) == (25, 10, 10)
    longer = freeze({"train": {"batch_size": 10, "steps": 30}, "schedule": {"warmup": 1.0}})
    assert not differences(config, longer)
    short = freeze({"train": {"batch_size": 10, "steps": 9}, "schedule": {"warmup": 1.0}})
    with refused("schedule.warmup", 1.0) as caught:
        plan(short, num_train=100, num_eval=1, num_classes=10)
    assert "train.steps=9" in caught.value.allowed


def test_rules_survive_json():
    config = freeze({"optimizer": {"learning_rate_rules": (("^fc", 1), ("", 0.1))}})
    assert freeze(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_class_weights_need_one_number_per_class():
    config = freeze(
        {"loss": {"class_weights": "given", "weight_per_class": (1, 2)}, "train": {"batch_size": 1}}
    )
    with refused("loss.weight_per_class", (1.0, 2.0)):
        plan(config, num_train=1, num_eval=1, num_classes=3)


def test_plan_refuses_settings_that_do_not_fit_the_data():
    config = freeze({"train": {"batch_size": 64}, "model": {"num_classes": 5}})
    with refused("train.batch_size", 64):
        plan(config, num_train=63, num_eval=1, num_classes=5)
    with refused("data.eval_split", "test", DataError):
        plan(config, num_train=64, num_eval=0, num_classes=5)
    with refused("model.num_classes", 5):
        plan(config, num_train=64, num_eval=1, num_classes=6)


def test_differences_list_only_settings_that_change_the_result():
    wanted = freeze(
        {"train": {"epochs": 99, "log_every": 3, "seed": 1}, "data": {"data_dir": "/elsewhere"}}
    )
    assert differences(Config(), wanted) == ["train.seed: 0 -> 1"]
