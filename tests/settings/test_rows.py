"""Choices and the settings that belong to them: defaults by row, and refusals of what a row does not use."""

import dataclasses

import pytest
from absl.flags import DEFINE_string, FlagValues
from conftest import refused

from flax_resnet.cli import app, config_flag
from flax_resnet.config import default_config, freeze, settings
from flax_resnet.config.config import sections
from flax_resnet.optim.optimizer_section import OPTIMIZERS, Optimizer
from flax_resnet.settings import UNSET, terms

REGISTRIES = {
    key: field.metadata["registry"]
    for key, field in settings().items()
    if "registry" in field.metadata
}
CHOICES = [(key, row) for key, registry in REGISTRIES.items() for row in registry.values()]


def set_of(registry, row):
    """Values for the settings of a row that have no default."""
    return {name: 1.0 for name, default in row.uses.items() if default is ...}


@pytest.mark.parametrize(("key", "row"), CHOICES, ids=lambda x: getattr(x, "name", x))
def test_a_row_has_defaults_that_its_section_allows(key, row):
    section, name = key.split(".")
    needed = set_of(REGISTRIES[key], row)
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
        value = {**user.uses, **set_of(registry, user)}[setting]
        with refused(f"{section}.{setting}", value) as caught:
            freeze({section: {name: row.name, **set_of(registry, row), setting: value}})
        assert key in caught.value.problem
        assert row.name in caught.value.problem


def test_a_setting_without_a_default_must_be_set():
    with refused("schedule.drop_until") as caught:
        freeze({"schedule": {"drop_rates": "early"}})
    assert "schedule.drop_rates='early'" in caught.value.cure


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
