"""Choices and the settings that belong to them: defaults by row, and refusals of what a row does not use."""

import dataclasses
from typing import get_type_hints

import pytest
from absl.flags import DEFINE_string, FlagValues
from conftest import refused

from flax_resnet.augment.augment_section import Augment
from flax_resnet.cli import app, config_flag
from flax_resnet.config import default_config, freeze, override, settings
from flax_resnet.config.config import sections
from flax_resnet.optim.optimizer_section import OPTIMIZERS, Optimizer
from flax_resnet.settings import REQUIRED, UNSET, switch_terms, terms

DECLARED = {key: field for key, field in settings().items() if "registry" in field.metadata}
# The choices whose row the section knows. The named network determines the others.
REGISTRIES = {
    key: field.metadata["registry"] for key, field in DECLARED.items() if field.default is not UNSET
}
CHOICES = [(key, row) for key, registry in REGISTRIES.items() for row in registry.values()]


def set_of(row):
    """Values for the settings of a row that have no default."""
    values = {"drop_until": 1.0, "path": "photographs", "weight_per_class": (1.0, 2.0)}
    return {name: values[name] for name, default in row.uses.items() if default is ...}


@pytest.mark.parametrize(("key", "row"), CHOICES, ids=lambda x: getattr(x, "name", x))
def test_a_row_has_defaults_that_its_section_allows(key, row):
    section, name = key.split(".")
    needed = set_of(row)
    config = getattr(freeze({section: {name: row.name, **needed}}), section)
    assert row.help
    assert row.name == getattr(config, name)
    for setting in REGISTRIES[key].settings:
        expected = {**row.uses, **needed}.get(setting, UNSET)
        assert getattr(config, setting) == expected
    stored = freeze({section: dataclasses.asdict(config)})  # as in a run's config.json
    assert getattr(stored, section) == config


@pytest.mark.parametrize(("key", "row"), CHOICES, ids=lambda x: getattr(x, "name", x))
def test_what_a_row_does_not_use_is_refused_when_set(key, row):
    section, name = key.split(".")
    registry = REGISTRIES[key]
    for setting in registry.settings.keys() - row.uses.keys():
        user = next(other for other in registry.values() if setting in other.uses)
        value = {**user.uses, **set_of(user)}[setting]
        with refused(f"{section}.{setting}", value) as caught:
            freeze({section: {name: row.name, **set_of(row), setting: value}})
        assert key in caught.value.problem
        assert row.name in caught.value.problem


@pytest.mark.parametrize("key", sorted(DECLARED.keys() - REGISTRIES.keys()))
def test_a_section_checks_only_the_name_of_a_row_that_it_does_not_determine(key):
    section, name = key.split(".")
    registry = DECLARED[key].metadata["registry"]
    assert getattr(getattr(freeze({}), section), name) is UNSET
    for row in registry:
        made = getattr(freeze({section: {name: row}}), section)
        assert getattr(made, name) == row
        assert all(getattr(made, owned) is UNSET for owned in registry.settings)
        for owned in (n for n in registry.settings if f"{section}.{n}" not in NEEDING):
            sections()[section](**{name: row, owned: "any value"})  # `create_model` checks it
    with refused(key, "nothing") as caught:
        freeze({section: {name: "nothing"}})
    assert caught.value.allowed == tuple(registry)


@pytest.mark.parametrize(
    ("section", "key", "choice", "value"),
    [
        ("schedule", "drop_until", "drop_rates", "early"),  # a row uses it
        ("model", "norm_groups", "norm_scope", "ghost"),  # it needs another setting
    ],
)
def test_a_setting_without_a_default_must_be_set(section, key, choice, value):
    with refused(f"{section}.{key}") as caught:
        freeze({section: {choice: value}})
    assert f"{section}.{choice}={value!r}" in caught.value.cure


def test_an_unknown_choice_is_met_by_the_nearest_one():
    with refused("optimizer.name", "adam") as caught:
        freeze({"optimizer": {"name": "adam"}})
    assert caught.value.allowed == tuple(OPTIMIZERS)
    assert "adamw" in str(caught.value)


def test_no_setting_belongs_to_two_choices():
    for section in sections().values():
        owned = [
            name
            for field in dataclasses.fields(section)
            if "registry" in field.metadata
            for name in field.metadata["registry"].settings
        ]
        assert len(owned) == len(set(owned))
        assert set(owned) <= {field.name for field in dataclasses.fields(section)}


@pytest.mark.parametrize(
    ("flags", "momentum", "nesterov"),
    [
        ([], 0.85, True),  # as in the recipe
        (["--config.optimizer.name=sgd"], 0.85, True),
        (["--config.optimizer.name=lars"], 0.9, False),
        (["--config.optimizer.name=lars", "--config.optimizer.momentum=0.5"], 0.5, False),
        (["--config.optimizer.name=adamw"], UNSET, False),
    ],
)
def test_another_choice_on_the_command_line_leaves_the_recipes_settings_out(
    flags, momentum, nesterov
):
    argv = app.resolve_config(["--config=cifar_speedrun", *flags])
    values = FlagValues()
    config_flag.define(values, argv)
    DEFINE_string("data_dir", "", "", flag_values=values)
    values(["", *argv])
    optimizer = config_flag.frozen_config(values).optimizer
    assert (optimizer.momentum, optimizer.nesterov) == (momentum, nesterov)


def test_a_placeholder_takes_a_value():
    config = default_config()
    assert config.optimizer.momentum is None
    config.optimizer.momentum = 0.5
    assert freeze(config).optimizer.momentum == 0.5
    with pytest.raises(TypeError):
        config.optimizer.momentum = "much"


def test_terms_are_the_settings_of_the_row():
    section = Optimizer(name="adamw", nesterov=True)
    described = terms(section, OPTIMIZERS["adamw"])
    assert described == [
        *("betas 0.9 0.999", "nesterov", "epsilon 1e-08", "weight decay form decoupled"),
    ]


NEEDING = {key: field for key, field in settings().items() if "needs" in field.metadata}
ON_VALUES = {bool: True, int: 2, float: 0.5, str: "x", tuple: (1,)}


@pytest.mark.parametrize("key", NEEDING)
def test_a_setting_that_needs_others_is_unset_or_refused_without_them(key):
    section, name = key.split(".")
    field, make = NEEDING[key], sections()[section]
    kinds, needs = get_type_hints(make), field.metadata["needs"]
    on = {n: ON_VALUES[kinds[n]] if v is ... else v for n, v in needs.values.items()}
    default = field.metadata["default"]
    if default is REQUIRED:
        with refused(key):
            make(**on)
        default = ON_VALUES[kinds[name]]
        on |= {name: default}
    assert getattr(make(**on), name) == default
    off = {n: getattr(make(), n) if v is ... else "resize" for n, v in needs.values.items()}
    off |= {"feed": "streaming"} if section == "train" else {}
    assert getattr(make(**off), name) is UNSET
    with refused(key, default) as caught:
        make(**off, **{name: default})
    for owner in needs.values:
        assert f"{section}.{owner}" in caught.value.problem
        assert f"{section}.{owner}" in caught.value.cure


def test_but_unsets_what_is_not_used_any_more():
    mixing = Augment(mixup=0.2, cutmix=1.0, mix_mode="pair", random_erasing=0.1)
    assert mixing.but(flip="horizontal").mix_mode == "pair"
    assert mixing.but(cutmix=0.0).mix_mode == "pair"
    assert mixing.but(cutmix=0.0).mix_switch_prob is UNSET
    assert mixing.but(mixup=0.0, cutmix=0.0).mix_mode is UNSET
    adamw = Optimizer(nesterov=True).but(name="adamw", epsilon=1e-3)
    assert (adamw.momentum, adamw.nesterov, adamw.epsilon) == (UNSET, False, 1e-3)
    with refused("augment.mix_mode", "batch"):
        Augment().but(mix_mode="batch")


def test_override_keeps_what_is_still_used():
    recipe = {"augment": {"mixup": 0.2, "cutmix": 0.0, "mix_mode": "pair", "mix_prob": 0.5}}
    kept = override(recipe, {"augment.mixup": 0.4})["augment"]
    assert (kept["mix_mode"], kept["mix_prob"]) == ("pair", 0.5)
    dropped = override(recipe, {"augment.mixup": 0.0, "augment.mix_prob": 1.0})["augment"]
    assert (dropped["mix_mode"], dropped["mix_prob"]) == (UNSET, 1.0)


def test_switch_terms_describe_what_is_on():
    section = Augment(pad_crop=4, random_erasing=0.25, flip="horizontal")
    assert switch_terms(section, "pad_crop", "flip", "cutout", "random_erasing") == [
        "pad crop 4 (fill black)",
        "flip horizontal",
        "random erasing 0.25 (area 0.02 0.33, aspect 0.3 3.3, fill zero)",
    ]
